#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/sequences.cuh"
#include "kernels/indexer/top_k.cuh"
#include "kernels/norm_rope/encode.cuh"

namespace foresight::cuda {
namespace {

constexpr int kRatio = 4;
// Scores of a step that exist at a time; more rows come in turn.
constexpr int64_t kScoreBytes = int64_t{64} << 20;
// Rows of scores are padded to a power of two of at least this many, so that launches are the same for
// contexts of about the same length.
constexpr int64_t kLeastStride = 512;
constexpr int kMmaDim = 128;    // of a key, the most that the tensor core kernel takes
constexpr int kWarpKeys = 32;   // that a warp of it scores at a time
constexpr int kScoreWarps = 4;  // of a block
constexpr int kTileKeys = 32;   // of the plain kernel
constexpr int kHeadGroups = 4;  // of the plain kernel

// What kernels need of the arguments, by value.
struct Indexing {
  const SequenceRows* sequences;
  int num_sequences;
  int heads;
  int rope_dim;
  int topk;
  bool faithful;
  IndexKeyLayout key;
  float factor;
  float* iq;
  const float* w;
  const float* cos;
  const float* sin;
  int32_t* picks;
  float* scores;  // [rows of this turn, stride]
  int64_t stride;
  int first_row;  // of this turn

  // The number of entries that the row sees.
  __device__ int Visible(const SequenceRows& sequence, int row) const {
    return static_cast<int>((sequence.first_position + row - sequence.first_row + 1) / kRatio);
  }
};

// A head's query as the keys are stored: rotated and, for packed keys, transformed and rounded like them. One
// block of one warp per head and row; a row that needs no scores is left alone.
__global__ void PrepareQueryKernel(Indexing args) {
  AwaitInputs();
  const int head = blockIdx.x;
  const int row = blockIdx.y;
  const SequenceRows& sequence = SequenceOf(args.sequences, args.num_sequences, row);
  if (args.Visible(sequence, row) <= args.topk) return;
  extern __shared__ float x[];
  const int dim = args.key.dim;
  const int pairs = args.rope_dim / 2;
  const int first = dim / 2 - pairs;
  float2* values = reinterpret_cast<float2*>(args.iq + (static_cast<int64_t>(row) * args.heads + head) * dim);
  for (int i = threadIdx.x; i < dim / 2; i += 32) {
    float2 v = values[i];
    if (i >= first) {
      const int64_t at = static_cast<int64_t>(row) * pairs + i - first;
      v = Turned(v, args.cos[at], args.sin[at]);
    }
    if (args.faithful) v = {RoundBf16(v.x), RoundBf16(v.y)};
    reinterpret_cast<float2*>(x)[i] = v;
  }
  __syncthreads();
  if (args.key.format == CacheFormat::kPacked) {
    HadamardShared(x, dim);
    for (int i = threadIdx.x; i < dim; i += 32) {
      const float v = RoundBf16(x[i]);
      const float scale = E8M0(Fp4ScaleOfWarp(v));
      x[i] = E2M1(ToE2M1(v / scale)) * scale;
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < dim / 2; i += 32) values[i] = reinterpret_cast<float2*>(x)[i];
}

// Eight E2M1 codes times a power of two as bf16 pairs: values (0, 4), (1, 5), (2, 6), (3, 7).
__device__ inline void DecodeE2M1(uint32_t codes, __nv_bfloat162 scale, uint32_t (&pairs)[4]) {
  // Exponent and mantissa moved to a bf16's place are 2^-126 of the value, subnormals included.
  const __nv_bfloat162 bias = __bfloat162bfloat162(__ushort_as_bfloat16(0x7e80));
  const uint32_t raw[4] = {
      (codes << 6 & 0x01c001c0) | (codes << 12 & 0x80008000),
      (codes << 2 & 0x01c001c0) | (codes << 8 & 0x80008000),
      (codes >> 2 & 0x01c001c0) | (codes << 4 & 0x80008000),
      (codes >> 6 & 0x01c001c0) | (codes & 0x80008000),
  };
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162 value = __hmul2(reinterpret_cast<const __nv_bfloat162&>(raw[i]), bias);
    const __nv_bfloat162 scaled = __hmul2(value, scale);
    pairs[i] = reinterpret_cast<const uint32_t&>(scaled);
  }
}

// Scores of packed keys of at most 128 values: 32 keys by all heads per warp. All products are exact in bf16.
//
// A dot product doesn't care for the order of its dims, so lane t of a quad takes dims [32t, 32t+32) of a
// key, which are one block of codes with one scale, and the query is laid out in the order in which codes
// unpack: of each eight values 0 4 1 5 2 6 3 7. Dims beyond the key's are zeros.
__global__ void __launch_bounds__(32 * kScoreWarps) PackedScoresKernel(Indexing args) {
  AwaitInputs();
  constexpr int kUnits = 20;  // of 16 bytes per head: 16 and four that keep heads in other banks
  extern __shared__ uint4 q[];
  const int row = args.first_row + blockIdx.y;
  const SequenceRows& sequence = SequenceOf(args.sequences, args.num_sequences, row);
  const int visible = args.Visible(sequence, row);
  if (visible <= args.topk || blockIdx.x * kWarpKeys * kScoreWarps >= visible) return;

  const int dim = args.key.dim;
  const int padded_heads = (args.heads + 7) / 8 * 8;
  float* w = reinterpret_cast<float*>(q + padded_heads * kUnits);
  for (int i = threadIdx.x; i < padded_heads * 16; i += blockDim.x) {
    const int head = i / 16;
    const int word = i / 4 % 4;
    const int first = i % 4 * 32 + word * 8;
    uint4 unit = {};
    if (head < args.heads && first < dim) {
      const float4* from = reinterpret_cast<const float4*>(
          args.iq + (static_cast<int64_t>(row) * args.heads + head) * dim + first);
      const float4 a = from[0];
      const float4 b = from[1];
      unit = {PackBf16(a.x, b.x), PackBf16(a.y, b.y), PackBf16(a.z, b.z), PackBf16(a.w, b.w)};
    }
    q[head * kUnits + i % 16] = unit;
  }
  for (int h = threadIdx.x; h < padded_heads; h += blockDim.x) {
    w[h] = h < args.heads ? args.w[static_cast<int64_t>(row) * args.heads + h] * args.factor : 0.0f;
  }
  __syncthreads();

  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  float* scores = args.scores + blockIdx.y * args.stride;
  const int step = gridDim.x * kWarpKeys * kScoreWarps;
  for (int first = (blockIdx.x * kScoreWarps + threadIdx.x / 32) * kWarpKeys; first < visible;
       first += step) {
    uint32_t a[2][8][4];  // by half of the keys and step of 16 dims
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int key = first + g + 8 * k;
      uint32_t words[4] = {};
      uint8_t scale = 127;
      if (key < visible && 32 * t < dim) {
        const uint8_t* item = reinterpret_cast<const uint8_t*>(ItemOf(sequence.cache.index_keys, key));
        const uint32_t* codes = reinterpret_cast<const uint32_t*>(item) + 4 * t;
#pragma unroll
        for (int i = 0; i < 4; ++i) words[i] = codes[i];
        scale = item[dim / 2 + t];
      }
      const __nv_bfloat162 factor = __bfloat162bfloat162(__float2bfloat16_rn(E8M0(scale)));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t pairs[4];
        DecodeE2M1(words[i], factor, pairs);
        a[k / 2][2 * i][k % 2] = pairs[0];
        a[k / 2][2 * i][k % 2 + 2] = pairs[1];
        a[k / 2][2 * i + 1][k % 2] = pairs[2];
        a[k / 2][2 * i + 1][k % 2 + 2] = pairs[3];
      }
    }
    float sums[4] = {};  // of keys g, g + 8, g + 16, g + 24
    for (int h = 0; h < padded_heads; h += 8) {
      float c[2][4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint4 b = q[(h + g) * kUnits + 4 * i + t];
        MmaBf16(c[0], a[0][2 * i], b.x, b.y);
        MmaBf16(c[1], a[1][2 * i], b.x, b.y);
        MmaBf16(c[0], a[0][2 * i + 1], b.z, b.w);
        MmaBf16(c[1], a[1][2 * i + 1], b.z, b.w);
      }
      const float2 weight = reinterpret_cast<const float2*>(w + h)[t];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        sums[k] += weight.x * fmaxf(c[k / 2][k % 2 * 2], 0.0f);
        sums[k] += weight.y * fmaxf(c[k / 2][k % 2 * 2 + 1], 0.0f);
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      sums[k] += __shfl_xor_sync(0xffffffff, sums[k], 1);
      sums[k] += __shfl_xor_sync(0xffffffff, sums[k], 2);
    }
    const float own = t == 0 ? sums[0] : t == 1 ? sums[1] : t == 2 ? sums[2] : sums[3];
    if (first + g + 8 * t < visible) scores[first + g + 8 * t] = own;
  }
}

// Value i of an index key.
__device__ inline float IndexKeyValue(const IndexKeyLayout& layout, const std::byte* item, int i) {
  if (layout.format == CacheFormat::kFloat32) return reinterpret_cast<const float*>(item)[i];
  const uint8_t* codes = reinterpret_cast<const uint8_t*>(item);
  return E2M1(codes[i / 2] >> i % 2 * 4 & 15) * E8M0(codes[layout.dim / 2 + i / 32]);
}

// Scores of keys of any kind in float32: a thread has one key and every fourth head.
__global__ void __launch_bounds__(kTileKeys* kHeadGroups) PlainScoresKernel(Indexing args) {
  AwaitInputs();
  extern __shared__ float4 space[];
  __shared__ float partial[kHeadGroups][kTileKeys];
  const int row = args.first_row + blockIdx.y;
  const SequenceRows& sequence = SequenceOf(args.sequences, args.num_sequences, row);
  const int visible = args.Visible(sequence, row);
  if (visible <= args.topk || blockIdx.x * kTileKeys >= visible) return;

  const int dim = args.key.dim;
  const int quads = dim / 4;
  float4* q = space;                      // [heads, quads]
  float4* keys = q + args.heads * quads;  // [kTileKeys, quads + 1]: keys begin in other banks
  const float4* from =
      reinterpret_cast<const float4*>(args.iq + static_cast<int64_t>(row) * args.heads * dim);
  for (int i = threadIdx.x; i < args.heads * quads; i += blockDim.x) q[i] = from[i];

  const int key = threadIdx.x % kTileKeys;
  const int group = threadIdx.x / kTileKeys;
  for (int first = blockIdx.x * kTileKeys; first < visible; first += gridDim.x * kTileKeys) {
    for (int i = threadIdx.x; i < kTileKeys * dim; i += blockDim.x) {
      const int s = first + i / dim;
      reinterpret_cast<float*>(keys + i / dim * (quads + 1))[i % dim] =
          s < visible ? IndexKeyValue(args.key, ItemOf(sequence.cache.index_keys, s), i % dim) : 0.0f;
    }
    __syncthreads();
    float sum = 0;
    for (int h = group; h < args.heads; h += kHeadGroups) {
      float4 dot = {};
      for (int i = 0; i < quads; ++i) {
        const float4 x = q[h * quads + i];
        const float4 y = keys[key * (quads + 1) + i];
        dot.x += x.x * y.x;
        dot.y += x.y * y.y;
        dot.z += x.z * y.z;
        dot.w += x.w * y.w;
      }
      const float w = args.w[static_cast<int64_t>(row) * args.heads + h] * args.factor;
      sum += w * fmaxf((dot.x + dot.y) + (dot.z + dot.w), 0.0f);
    }
    partial[group][key] = sum;
    __syncthreads();
    if (group == 0 && first + key < visible) {
      args.scores[blockIdx.y * args.stride + first + key] =
          (partial[0][key] + partial[1][key]) + (partial[2][key] + partial[3][key]);
    }
  }
}

__global__ void __launch_bounds__(kTopKThreads) PickKernel(Indexing args) {
  AwaitInputs();
  __shared__ TopKShared shared;
  const int row = args.first_row + blockIdx.x;
  const SequenceRows& sequence = SequenceOf(args.sequences, args.num_sequences, row);
  const int visible = args.Visible(sequence, row);
  int32_t* picks = args.picks + static_cast<int64_t>(row) * args.topk;
  if (visible <= args.topk) {
    for (int i = threadIdx.x; i < args.topk; i += blockDim.x) picks[i] = i < visible ? i : -1;
    return;
  }
  TopK(args.scores + blockIdx.x * args.stride, visible, args.topk, shared, picks);
}

}  // namespace

void Indexer(const KernelContext& ctx, const IndexerArgs& args) {
  const int64_t stride = std::max<int64_t>(
      kLeastStride, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(args.entries_max))));
  Indexing indexing = {
      .sequences = args.sequences.data(),
      .num_sequences = static_cast<int>(args.sequences.size()),
      .heads = args.heads,
      .rope_dim = args.rope_dim,
      .topk = args.topk,
      .faithful = ctx.faithful(),
      .key = args.key,
      .factor = static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.key.dim) * args.heads)),
      .iq = args.iq,
      .w = args.w,
      .cos = args.cos,
      .sin = args.sin,
      .picks = args.picks,
      .scores = nullptr,
      .stride = stride,
      .first_row = 0};
  if (stride <= args.topk) {  // no row has more entries than it may pick
    Launch(ctx, PickKernel, dim3(args.rows), kTopKThreads, 0, indexing);
    return;
  }
  Launch(ctx, PrepareQueryKernel, dim3(args.heads, args.rows), 32, args.key.dim * sizeof(float), indexing);
  ArenaScope scope(*ctx.scratch);
  const int rows_at_a_time = static_cast<int>(
      std::clamp<int64_t>(kScoreBytes / (stride * int64_t{sizeof(float)}), 1, std::max(args.rows, 1)));
  indexing.scores = ctx.scratch->Allocate<float>(rows_at_a_time * stride);
  // Codes are read in words of four bytes, which keys of other sizes are not made of.
  const bool packed =
      args.key.format == CacheFormat::kPacked && args.key.dim <= kMmaDim && args.key.bytes() % 4 == 0;
  const int keys_per_block = packed ? kWarpKeys * kScoreWarps : kTileKeys;
  for (int first = 0; first < args.rows; first += rows_at_a_time) {
    indexing.first_row = first;
    const int rows = std::min(rows_at_a_time, args.rows - first);
    // Enough blocks to fill the device twice over; each goes through the keys in strides.
    const int64_t blocks =
        std::clamp<int64_t>(CeilDiv(8 * DeviceOf(ctx).num_sms(), rows), 1, stride / keys_per_block);
    const dim3 grid(static_cast<unsigned>(blocks), rows);
    if (packed) {
      const int padded_heads = (args.heads + 7) / 8 * 8;
      Launch(ctx, PackedScoresKernel, grid, 32 * kScoreWarps, padded_heads * (320 + sizeof(float)), indexing);
    } else {
      const int64_t floats = int64_t{args.heads} * args.key.dim + kTileKeys * (args.key.dim + 4);
      Launch(ctx, PlainScoresKernel, grid, kTileKeys * kHeadGroups, floats * sizeof(float), indexing);
    }
    Launch(ctx, PickKernel, dim3(rows), kTopKThreads, 0, indexing);
  }
}

}  // namespace foresight::cuda
