#include <cmath>

#include "base/check.h"
#include "kernels/attention/key_tile.cuh"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/sequences.cuh"

namespace foresight::cuda {
namespace {

constexpr int kHeads = 16;  // of a block: the rows of a tensor core product
constexpr int kMaxWarps = 8;
constexpr int kTileBytes = 8192;  // of a warp: 64 keys in bf16, or 32 in two parts
constexpr float kLog2E = 1.44269504f;
constexpr int kPBytes = kHeads * kTileRowBytes;

// What the kernel needs of the arguments, by value.
struct Attending {
  const SequenceRows* sequences;
  int num_sequences;
  int heads;
  int window;
  EntryLayout layout;
  int64_t entry_bytes;
  RawKeys raw;
  CompressedKeys compressed;
  int ratio;
  int topk;
  float scale;  // of logits, to base 2
  const float* q;
  const std::byte* entries;
  VectorView sink;
  const int32_t* picks;
  const float* cos;
  const float* sin;
  float* out;
};

// The keys of one row in their one order, in blocks of kKeys: raw ones by position, padded to whole blocks
// with absent ones, then compressed ones by index.
template <int kKeys>
struct KeyList {
  const Attending& args;
  const SequenceRows& sequence;
  const int32_t* picks;
  int64_t first_raw;
  int num_raw;
  int num_compressed;
  int raw_blocks;

  __device__ KeyList(const Attending& args, const SequenceRows& sequence, int row)
      : args(args), sequence(sequence), picks(args.picks + static_cast<int64_t>(row) * args.topk) {
    const int64_t position = sequence.first_position + row - sequence.first_row;
    const bool block = args.raw == RawKeys::kBlock;
    const int64_t end = block ? sequence.first_position + sequence.num_rows : position + 1;
    const int64_t first = (block ? sequence.first_position : position + 1) - args.window;
    first_raw = first > 0 ? first : 0;
    num_raw = static_cast<int>(end - first_raw);
    raw_blocks = (num_raw + kKeys - 1) / kKeys;
    num_compressed = 0;
    if (args.compressed != CompressedKeys::kNone) {
      num_compressed = static_cast<int>((position + 1) / args.ratio);
      if (args.compressed == CompressedKeys::kPicked) num_compressed = min(num_compressed, args.topk);
    }
  }
  __device__ int blocks() const { return raw_blocks + (num_compressed + kKeys - 1) / kKeys; }

  // Where key i of a block lies; null for an absent one.
  __device__ const std::byte* Entry(int block, int i) const {
    if (block < raw_blocks) {
      const int at = block * kKeys + i;
      if (at >= num_raw) return nullptr;
      const int64_t step_row = first_raw + at - sequence.first_position;
      if (step_row >= 0) return args.entries + (sequence.first_row + step_row) * args.entry_bytes;
      return ItemOf(sequence.cache.window, first_raw + at);
    }
    const int at = (block - raw_blocks) * kKeys + i;
    if (at >= num_compressed) return nullptr;
    const int entry = args.compressed == CompressedKeys::kPicked ? picks[at] : at;
    return entry < 0 ? nullptr : ItemOf(sequence.cache.compressed, entry);
  }
};

// 16 heads of one row. Warp w has dims [64w, 64w + 64) of every key, which are both its part of the logits
// and its columns of the output, so tiles are a warp's own. Per block of keys:
//   1. Each warp multiplies its dims of queries and keys and leaves the products in shared memory.
//   2. Each warp adds up the logits of some heads, in the order of dims, and makes probabilities of them by
//   an
//      online softmax; the sink is where it starts.
//   3. Each warp multiplies all probabilities with its dims of the keys.
// With FloatSlice, queries, keys and probabilities are sums of two bf16 parts, and three of the four products
// are taken.
template <typename Slice>
__global__ void __launch_bounds__(32 * kMaxWarps, 1) AttentionKernel(Attending args) {
  AwaitInputs();
  constexpr int kKeys = Slice::kKeys;
  constexpr bool kSplit = kKeys == 32;
  constexpr int kParts = kSplit ? 2 : 1;
  constexpr int kPartBytes = kTileBytes / kParts;
  extern __shared__ __align__(128) std::byte space[];
  const int warps = blockDim.x / 32;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  std::byte* tile = space + warp * kTileBytes;
  std::byte* p_tile = space + warps * kTileBytes;
  float* partial = reinterpret_cast<float*>(p_tile + kPBytes);  // [warps, kHeads, kKeys]
  float* row_max = partial + warps * kHeads * kKeys;            // [kHeads] each
  float* row_sum = row_max + kHeads;
  float* row_factor = row_sum + kHeads;

  const int row = blockIdx.y;
  const int first_head = blockIdx.x * kHeads;
  const int dim = args.layout.dim;
  const int begin = warp * kSliceDims;
  const SequenceRows& sequence = SequenceOf(args.sequences, args.num_sequences, row);
  const KeyList<kKeys> list(args, sequence, row);

  if (threadIdx.x < kHeads) {
    const int head = first_head + threadIdx.x;
    const float sink = (head < args.heads ? VectorValue(args.sink, head) : 0.0f) * kLog2E;
    const float top = fmaxf(sink, -1e30f);  // finite whatever the sink
    row_max[threadIdx.x] = top;
    row_sum[threadIdx.x] = exp2f(sink - top);
  }

  uint32_t q[kParts][4][4];  // by part and step of 16 dims
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int head = first_head + g + i % 2 * 8;
      const int d = begin + 16 * k + 2 * t + i / 2 * 8;
      float2 x = {};
      if (head < args.heads && d < dim) {
        x = *reinterpret_cast<const float2*>(args.q + (static_cast<int64_t>(row) * args.heads + head) * dim +
                                             d);
      }
      q[0][k][i] = PackBf16(x.x, x.y);
      if constexpr (kSplit) q[1][k][i] = PackBf16(Remainder(x.x), Remainder(x.y));
    }
  }

  float o[8][4] = {};
  RawKeys16 raw;
  uint32_t present[2];  // of the block at hand, by key
  const auto load = [&](int block) {
    Slice slice;
#pragma unroll
    for (int i = 0; i < kKeys / 32; ++i) {
      slice.entry[i] = list.Entry(block, lane + 32 * i);
      present[i] = __ballot_sync(0xffffffff, slice.entry[i] != nullptr);
    }
    slice.Load(args.layout, begin, raw);
  };
  const int blocks = list.blocks();
  load(0);
  for (int block = 0; block < blocks; ++block) {
    __syncwarp();
    Slice::Store(args.layout, begin, raw, tile);
    __syncwarp();
    const uint32_t here[2] = {present[0], present[1]};
    if (block + 1 < blocks) load(block + 1);  // arrives while this block is worked on

#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      float s[4] = {};
      uint32_t keys[kParts][2][4];
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          LoadMatrices(keys[part][half],
                       ChunkOf(tile + part * kPartBytes, 8 * n + lane % 8, 4 * half + lane / 8));
        }
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if constexpr (kSplit) {
          MmaBf16(s, q[1][k], keys[0][k / 2][k % 2 * 2], keys[0][k / 2][k % 2 * 2 + 1]);
          MmaBf16(s, q[0][k], keys[1][k / 2][k % 2 * 2], keys[1][k / 2][k % 2 * 2 + 1]);
        }
        MmaBf16(s, q[0][k], keys[0][k / 2][k % 2 * 2], keys[0][k / 2][k % 2 * 2 + 1]);
      }
      // Columns are moved by row, so that the rows of a store lie in different banks.
      float* to = partial + (warp * kHeads + g) * kKeys + ((8 * n + 2 * t) ^ (g % 4 * 8));
      *reinterpret_cast<float2*>(to) = {s[0], s[1]};
      *reinterpret_cast<float2*>(to + 8 * kKeys) = {s[2], s[3]};
    }
    __syncthreads();

    for (int r = warp; r < kHeads; r += warps) {
      // Lane l has keys 2l and 2l + 1 of 64, or key l of 32.
      constexpr int kOwn = kKeys / 32;
      float logits[kOwn] = {};
#pragma unroll 4
      for (int w = 0; w < warps; ++w) {
        const float* from = partial + (w * kHeads + r) * kKeys + ((kOwn * lane) ^ (r % 4 * 8));
        if constexpr (kSplit) {
          logits[0] += *from;
        } else {
          const float2 both = *reinterpret_cast<const float2*>(from);
          logits[0] += both.x;
          logits[1] += both.y;
        }
      }
      float top = -INFINITY;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const uint32_t mask = kSplit || lane < 16 ? here[0] : here[1];
        logits[i] = mask >> (kOwn * lane + i) % 32 & 1 ? logits[i] * args.scale : -INFINITY;
        top = fmaxf(top, logits[i]);
      }
      const float before = row_max[r];
      top = fmaxf(before, WarpMax(top));
      const float factor = exp2f(before - top);
      float sum = 0;
      float p[kOwn];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        p[i] = exp2f(logits[i] - top);
        sum += p[i];
      }
      sum = row_sum[r] * factor + WarpSum(sum);
      __syncwarp();
      if (lane == 0) {
        row_max[r] = top;
        row_sum[r] = sum;
        row_factor[r] = factor;
      }
      if constexpr (kSplit) {  // lower parts in the right half of the tile
        reinterpret_cast<uint16_t*>(ChunkOf(p_tile, r, lane / 8))[lane % 8] = Bf16Bits(p[0]);
        reinterpret_cast<uint16_t*>(ChunkOf(p_tile, r, 4 + lane / 8))[lane % 8] = Bf16Bits(Remainder(p[0]));
      } else {
        reinterpret_cast<uint32_t*>(ChunkOf(p_tile, r, lane / 4))[lane % 4] = PackBf16(p[0], p[kOwn - 1]);
      }
    }
    __syncthreads();

    const float factors[2] = {row_factor[g], row_factor[g + 8]};
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o[n][i] *= factors[i / 2];
    }
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      uint32_t p[kParts][4];
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        LoadMatrices(p[part], ChunkOf(p_tile, lane % 16, 2 * k + lane / 16 + 4 * part));
      }
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        uint32_t values[kParts][4];
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          LoadMatricesTransposed(values[part],
                                 ChunkOf(tile + part * kPartBytes, 16 * k + lane % 16, n + lane / 16));
        }
        if constexpr (kSplit) {
          MmaBf16(o[n], p[1], values[0][0], values[0][1]);
          MmaBf16(o[n + 1], p[1], values[0][2], values[0][3]);
          MmaBf16(o[n], p[0], values[1][0], values[1][1]);
          MmaBf16(o[n + 1], p[0], values[1][2], values[1][3]);
        }
        MmaBf16(o[n], p[0], values[0][0], values[0][1]);
        MmaBf16(o[n + 1], p[0], values[0][2], values[0][3]);
      }
    }
  }

  const int nope = dim - args.layout.rope_dim;
  const int pairs = args.layout.rope_dim / 2;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const int d = begin + 8 * n + 2 * t;
    if (d >= dim) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = g + 8 * half;
      if (first_head + r >= args.heads) continue;
      float2 v = {o[n][2 * half] / row_sum[r], o[n][2 * half + 1] / row_sum[r]};
      if constexpr (!kSplit) v = {RoundBf16(v.x), RoundBf16(v.y)};
      if (d >= nope) {
        const int64_t at = static_cast<int64_t>(row) * pairs + (d - nope) / 2;
        const float cos = args.cos[at];
        const float sin = args.sin[at];
        v = {v.x * cos + v.y * sin, v.y * cos - v.x * sin};
        if constexpr (!kSplit) v = {RoundBf16(v.x), RoundBf16(v.y)};
      }
      *reinterpret_cast<float2*>(args.out + (static_cast<int64_t>(row) * args.heads + first_head + r) * dim +
                                 d) = v;
    }
  }
}

}  // namespace

// Packed entries are faithful numerics', float32 ones clean numerics' (tensor/cache_view.h).
void Attention(const KernelContext& ctx, const AttentionArgs& args) {
  const bool packed = args.layout.format == CacheFormat::kPacked;
  const unsigned warps = CeilDiv(args.layout.dim, kSliceDims);
  CHECK(packed == ctx.faithful());
  CHECK(warps <= kMaxWarps);
  const Attending attending = {
      .sequences = args.sequences.data(),
      .num_sequences = static_cast<int>(args.sequences.size()),
      .heads = args.heads,
      .window = args.window,
      .layout = args.layout,
      .entry_bytes = args.layout.bytes(),
      .raw = args.raw,
      .compressed = args.compressed,
      .ratio = args.ratio,
      .topk = args.topk,
      .scale = static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(args.layout.dim))),
      .q = args.q,
      .entries = args.entries,
      .sink = args.sink,
      .picks = args.picks,
      .cos = args.cos,
      .sin = args.sin,
      .out = args.out};
  const int keys = packed ? PackedSlice::kKeys : FloatSlice::kKeys;
  const size_t shared =
      warps * (kTileBytes + kHeads * keys * sizeof(float)) + kPBytes + 3 * kHeads * sizeof(float);
  Launch(ctx, packed ? AttentionKernel<PackedSlice> : AttentionKernel<FloatSlice>,
         dim3(CeilDiv(args.heads, kHeads), args.rows), 32 * warps, shared, attending);
}

}  // namespace foresight::cuda
