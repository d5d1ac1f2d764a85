// Compressors as a part of a launch (cuda/side_by_side.cuh), a thread block per row and compressor.
#pragma once

#include <algorithm>
#include <cfloat>
#include <optional>

#include "base/check.h"
#include "kernels/compressor/compressor.h"
#include "kernels/cuda/sequences.cuh"
#include "kernels/cuda/side_by_side.cuh"
#include "kernels/norm_rope/encode.cuh"

namespace foresight::cuda {

struct Compression {
  const SequenceRows* sequences = nullptr;
  int num_sequences = 0;
  int ratio = 0;
  bool for_indexer = false;
  bool faithful = false;
  EntryLayout entry;
  IndexKeyLayout index_key;
  int dim = 0;
  int rope_dim = 0;
  int width = 0;  // of a row, c * dim
  const float* a = nullptr;
  const float* b = nullptr;
  const float* ape = nullptr;
  VectorView norm;
  float eps = 0;
  const float* frequencies = nullptr;
  int rows = 0;
  int threads = 0;  // of a row, whole warps

  Compression() = default;
  Compression(const CompressorArgs& args, bool faithful)
      : sequences(args.sequences.data()),
        num_sequences(static_cast<int>(args.sequences.size())),
        ratio(args.ratio),
        for_indexer(args.for_indexer),
        faithful(faithful),
        entry(args.entry),
        index_key(args.index_key),
        dim(args.dim),
        rope_dim(args.rope_dim),
        width(static_cast<int>(args.ape.cols)),
        a(args.a),
        b(args.b),
        ape(args.ape.f32()),
        norm(args.norm),
        eps(args.norm_eps),
        frequencies(args.frequencies),
        rows(args.rows),
        threads((args.dim + 31) / 32 * 32) {
    CHECK(threads <= kMaxPartThreads && args.dim % 4 == 0 && (args.ratio == 4 || args.ratio % 16 == 0) &&
          args.rope_dim % 2 == 0);
  }
};

__device__ inline float4 LoadQuad(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}
__device__ inline float4 Sum(float4 a, float4 b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}
__device__ inline float Element(float4 v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Of positions, by 32 bit arithmetic.
__device__ inline uint32_t Remainder(int64_t position, int64_t divisor) {
  return static_cast<uint32_t>(position) % static_cast<uint32_t>(divisor);
}

// Puts row i of the sequence's into the ring.
__device__ inline void KeepRow(const Compression& args, const SequenceRows& sequence, const RingView& ring,
                               int i) {
  const int64_t position = sequence.first_position + i;
  float4* kept = reinterpret_cast<float4*>(ring.data + Remainder(position, ring.slots) * ring.item_bytes);
  const int quads = args.width / 4;
  const int64_t row = int64_t{sequence.first_row + i} * quads;
  const float4* a = reinterpret_cast<const float4*>(args.a) + row;
  const float4* b = reinterpret_cast<const float4*>(args.b) + row;
  const float4* ape =
      reinterpret_cast<const float4*>(args.ape) + int64_t{Remainder(position, args.ratio)} * quads;
  for (int c = threadIdx.x; c < 2 * quads; c += args.threads) {
    kept[c] = c < quads ? a[c] : Sum(b[c - quads], ape[c - quads]);
  }
}

// The transform of a vector whose value `channel` the thread has, with the sums of tensor/formats.h's
// Hadamard. Bits 0 and 1 of a channel are lane bits 3 and 4, bits 2 to 4 lane bits 0 to 2. `space` [2, dim]
// is shared memory.
__device__ inline float HadamardOfLanes(float x, int channel, int dim, float* space) {
  for (int half = 1, lanes = 8; half < min(dim, 32); half *= 2, lanes = lanes == 16 ? 1 : 2 * lanes) {
    const float other = __shfl_xor_sync(0xffffffff, x, lanes);
    x = channel & half ? other - x : x + other;
  }
  int turn = 0;
  for (int half = 32; half < dim; half *= 2, turn = dim - turn) {
    if (channel < dim) space[turn + channel] = x;
    __syncthreads();
    const float other = channel < dim ? space[turn + (channel ^ half)] : 0.0f;
    x = channel & half ? other - x : x + other;
  }
  return x * (1.0f / sqrtf(static_cast<float>(dim)));
}

// The pooling of a window. A quad of channels is pooled by four lanes, which have a quarter of the window
// each, kItems at a time, so that their loads overlap; then each of them has one of the channels.
template <int kItems>
class Pooling {
 public:
  // The window that ends with row `end` of the sequence's, of `items`, from the step's rows, to which ape is
  // added here, and the ring's.
  __device__ Pooling(const Compression& args, const SequenceRows& sequence, const RingView& ring, int end,
                     int items)
      : args_(args),
        ring_(ring),
        first_row_(sequence.first_row),
        own_item_(items - 1 - end),
        first_position_(static_cast<int>(sequence.first_position) + end + 1 - items) {
#pragma unroll
    for (float& x : top_) x = -FLT_MAX;
  }

  // Asks for the lane's items from `first` on.
  __device__ void Load(int first) {
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      const int item = first + j;
      a_[j] = {0, 0, 0, 0};
      b_[j] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
      if (4 * Quad() >= args_.dim || first_position_ + item < 0)
        continue;  // a missing previous window has no items
      // The previous window contributes the first half of the channels, the current one the second.
      const int c = args_.ratio == 4 && item >= args_.ratio ? args_.dim + 4 * Quad() : 4 * Quad();
      if (item >= own_item_) {
        const int64_t at = int64_t{first_row_ + item - own_item_} * args_.width + c;
        a_[j] = LoadQuad(args_.a + at);
        b_[j] = Sum(LoadQuad(args_.b + at), LoadQuad(args_.ape + item % args_.ratio * args_.width + c));
      } else {
        const uint32_t slot = Remainder(first_position_ + item, ring_.slots);
        const float* kept = reinterpret_cast<const float*>(ring_.data + slot * ring_.item_bytes);
        a_[j] = LoadQuad(kept + c);
        b_[j] = LoadQuad(kept + args_.width + c);
      }
    }
  }
  // An online softmax: adds what was asked for.
  __device__ void Add() {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      float top = top_[c];
#pragma unroll
      for (int j = 0; j < kItems; ++j) top = fmaxf(top, Element(b_[j], c));
      const float share = expf(top_[c] - top);
      top_[c] = top;
      sum_[c] *= share;
      weighted_[c] *= share;
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        const float e = expf(Element(b_[j], c) - top);
        sum_[c] += e;
        weighted_[c] += e * Element(a_[j], c);
      }
    }
  }
  // The pooled value of the lane's Channel().
  __device__ float Value() const {
    float value = 0;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      float top = fmaxf(top_[c], __shfl_xor_sync(0xffffffff, top_[c], 8));
      top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 16));
      const float share = expf(top_[c] - top);
      float sum = sum_[c] * share;
      float weighted = weighted_[c] * share;
#pragma unroll
      for (int other = 8; other < 32; other *= 2) {
        sum += __shfl_xor_sync(0xffffffff, sum, other);
        weighted += __shfl_xor_sync(0xffffffff, weighted, other);
      }
      if (Part() == c) value = weighted / sum;
    }
    return value;
  }

  // Which quarter of a window the lane has.
  __device__ static int Part() {
    return static_cast<int>(threadIdx.x) % 32 / 8;
  }
  __device__ static int Quad() {
    return static_cast<int>(threadIdx.x) / 32 * 8 + static_cast<int>(threadIdx.x) % 8;
  }
  __device__ static int Channel() {
    return 4 * Quad() + Part();
  }

 private:
  const Compression& args_;
  const RingView& ring_;
  int first_row_;
  int own_item_;        // from it on items are rows of the step
  int first_position_;  // of the first item: negative if that is missing
  float4 a_[kItems];
  float4 b_[kItems];
  float top_[4];
  float sum_[4] = {};
  float weighted_[4] = {};
};

// The entry of the window that ends with row `end` of the sequence's, by all threads of the part. That row is
// put into the ring while the window's are on their way, if it `keeps` it.
__device__ inline void EmitEntry(const Compression& args, const SequenceRows& sequence, const RingView& ring,
                                 int end, bool keeps, float* space) {
  __shared__ float sums[32];
  const bool overlap = args.ratio == 4;
  const int channel = Pooling<1>::Channel();
  Pooling<2> few(args, sequence, ring, end, 2 * args.ratio);
  if (overlap) few.Load(2 * few.Part());
  const float norm = channel < args.dim ? VectorValue(args.norm, channel) : 0.0f;
  const int nope = args.dim - args.rope_dim;
  const bool turns = channel < args.dim && channel >= nope;
  const float frequency = turns ? args.frequencies[(channel - nope) / 2] : 0.0f;
  if (keeps) KeepRow(args, sequence, ring, end);
  float x = 0;
  if (overlap) {
    few.Add();
    x = few.Value();
  } else {
    constexpr int kAtOnce = 2;
    Pooling<kAtOnce> many(args, sequence, ring, end, args.ratio);
    const int of_lane = args.ratio / 4;
    for (int first = 0; first < of_lane; first += kAtOnce) {
      many.Load(many.Part() * of_lane + first);
      many.Add();
    }
    x = many.Value();
  }
  if (channel >= args.dim) x = 0;
  if (args.faithful) x = RoundBf16(x);
  float2 angle = {1, 0};
  if (__any_sync(0xffffffff, turns)) {
    const AngleOf of(sequence.first_position + end + 1 - args.ratio, frequency);
    angle = {of.cos, of.sin};
  }
  const float squares = BlockSum(x * x, sums, args.threads);
  x = norm * (x * (1.0f / sqrtf(squares / static_cast<float>(args.dim) + args.eps)));
  if (args.faithful) x = RoundBf16(x);
  const float other = __shfl_xor_sync(0xffffffff, x, 8);  // the pair's
  if (turns) {
    const bool is_first = channel % 2 == 0;
    const float2 v = is_first ? Turned({x, other}, angle.x, angle.y) : Turned({other, x}, angle.x, angle.y);
    x = is_first ? v.x : v.y;
    if (args.faithful) x = RoundBf16(x);
  }
  if (args.for_indexer && args.index_key.format == CacheFormat::kPacked) {
    x = HadamardOfLanes(x, channel, args.dim, space + args.dim);
  }
  if (channel < args.dim) space[channel] = x;
  __syncthreads();
  const int64_t s = (sequence.first_position + end + 1) / args.ratio - 1;
  if (args.for_indexer) {
    EncodeIndexKeyShared(args.index_key, space, ItemOf(sequence.cache.index_keys, s), args.threads);
  } else {
    EncodeEntryShared(args.entry, space, ItemOf(sequence.cache.compressed, s), args.threads);
  }
}

// What becomes of a row, by args.threads threads. It may end a window, and be one that the ring keeps.
__device__ inline void CompressRow(const Compression& args, int row) {
  extern __shared__ float space[];
  const SequenceRows& sequence = SequenceOf(args.sequences, args.num_sequences, row);
  const RingView ring =
      args.for_indexer ? sequence.cache.index_compressor_rows : sequence.cache.compressor_rows;
  const int rows = sequence.num_rows;
  const int items = args.ratio == 4 ? 2 * args.ratio : args.ratio;
  // Whether no row takes the place of one that a window of this step is made of. If some do, the first block
  // has all windows that began before the step, and the rows to keep after them.
  const bool apart = rows + items - 1 <= ring.slots;
  const int i = row - sequence.first_row;
  if (i >= rows) return;  // padding
  const bool is_first = !apart && i == 0;
  const int to_window_end =
      args.ratio - 1 - static_cast<int>(Remainder(sequence.first_position + i, args.ratio));
  const bool has_window = to_window_end == 0 && (apart || i + 1 >= items);
  const int windows_end = is_first ? min(rows, items - 1) : i + has_window;
  for (int end = i + to_window_end; end < windows_end; end += args.ratio) {
    EmitEntry(args, sequence, ring, end, apart, space);
    __syncthreads();
  }
  if (apart ? has_window : !is_first) return;
  for (int j = apart ? i : max(0, rows - static_cast<int>(ring.slots)); j < (apart ? i + 1 : rows); ++j) {
    KeepRow(args, sequence, ring, j);
  }
}

struct CompressorPart {
  Compression compressors[2];
  int blocks;
  int threads;

  CompressorPart(const std::optional<CompressorArgs>& first, const std::optional<CompressorArgs>& second,
                 bool faithful)
      : compressors{first ? Compression(*first, faithful) : Compression(),
                    second ? Compression(*second, faithful) : Compression()},
        blocks(compressors[0].rows + compressors[1].rows),
        threads(std::max(compressors[0].threads, compressors[1].threads)) {}

  size_t shared_bytes() const { return 3 * std::max(compressors[0].dim, compressors[1].dim) * sizeof(float); }

  __device__ void operator()(int block) const {
    const bool is_second = block >= compressors[0].rows;
    const Compression& args = compressors[is_second];
    if (static_cast<int>(threadIdx.x) < args.threads) {
      CompressRow(args, is_second ? block - compressors[0].rows : block);
    }
  }
};

}  // namespace foresight::cuda
