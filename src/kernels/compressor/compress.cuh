// Compressors as a part of a launch (cuda/side_by_side.cuh), a thread block per row and compressor.
#pragma once

#include <algorithm>
#include <optional>

#include "base/check.h"
#include "kernels/compressor/compressor.h"
#include "kernels/cuda/sequences.cuh"
#include "kernels/cuda/side_by_side.cuh"
#include "kernels/norm_rope/encode.cuh"

namespace foresight::cuda {

constexpr int kMaxPairs = 512;  // of rotary values

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
        threads(std::min((args.dim + 31) / 32 * 32 + 32, kMaxPartThreads)) {
    CHECK(args.rope_dim / 2 <= kMaxPairs);
  }
};

// Of positions, by 32 bit arithmetic.
__device__ inline uint32_t Remainder(int64_t position, int64_t divisor) {
  return static_cast<uint32_t>(position) % static_cast<uint32_t>(divisor);
}

// Entry s of the window that ends at `position`, from the step's rows, to which ape is added here, and the
// ring's. By all threads of the part; the last warp has the angles ready when the others have pooled.
__device__ inline void EmitEntry(const Compression& args, const SequenceRows& sequence, const RingView& ring,
                                 int64_t position, float* entry) {
  __shared__ float sums[32];
  __shared__ float2 angles[kMaxPairs];
  const int64_t begin = sequence.first_position;
  const int64_t s = (position + 1) / args.ratio - 1;
  const bool overlap = args.ratio == 4;
  const int items = overlap ? 2 * args.ratio : args.ratio;
  const int64_t first_item = position + 1 - items;
  const int pooling = args.threads - 32;
  for (int i = static_cast<int>(threadIdx.x) - pooling; i >= 0 && i < args.rope_dim / 2; i += 32) {
    const AngleOf angle(s * args.ratio, args.frequencies[i]);
    angles[i] = {angle.cos, angle.sin};
  }
  for (int i = threadIdx.x; static_cast<int>(threadIdx.x) < pooling && i < args.dim; i += pooling) {
    // An online softmax in the order of the window, eight items at a time so that their loads overlap. A
    // missing previous window has no items.
    constexpr int kItems = 8;
    float top = -INFINITY;
    float sum = 0;
    float weighted = 0;
    uint32_t slot = first_item < 0 ? 0 : Remainder(first_item, ring.slots);
    for (int first = 0; first < items; first += kItems) {
      float a[kItems];
      float b[kItems];
      float group_top = top;
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        const int64_t t = first_item + first + j;
        // The previous window contributes the first half of the channels, the current one the second.
        const int channel = overlap && first + j >= args.ratio ? args.dim + i : i;
        b[j] = -INFINITY;
        a[j] = 0;
        if (t >= begin) {
          const int64_t at = (sequence.first_row + t - begin) * args.width + channel;
          a[j] = args.a[at];
          b[j] = args.b[at] + args.ape[(first + j) % args.ratio * args.width + channel];
        } else if (t >= 0) {
          const float* kept = reinterpret_cast<const float*>(ring.data + slot * ring.item_bytes);
          a[j] = kept[channel];
          b[j] = kept[args.width + channel];
        }
        if (t >= 0 && ++slot == ring.slots) slot = 0;
        group_top = fmaxf(group_top, b[j]);
      }
      const float kept_share = expf(top - group_top);  // 0 at first
      top = group_top;
      sum *= kept_share;
      weighted *= kept_share;
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        const float e = expf(b[j] - top);
        sum += e;
        weighted += e * a[j];
      }
    }
    const float pooled = weighted / sum;
    entry[i] = args.faithful ? RoundBf16(pooled) : pooled;
  }
  __syncthreads();
  NormShared(entry, args.dim, args.norm, args.eps, args.faithful, sums, args.threads);
  float2* rotary = reinterpret_cast<float2*>(entry + args.dim - args.rope_dim);
  for (int i = threadIdx.x; i < args.rope_dim / 2; i += args.threads) {
    const float2 v = Turned(rotary[i], angles[i].x, angles[i].y);
    rotary[i] = args.faithful ? float2{RoundBf16(v.x), RoundBf16(v.y)} : v;
  }
  __syncthreads();
  if (args.for_indexer) {
    EncodeIndexKeyShared(args.index_key, entry, ItemOf(sequence.cache.index_keys, s), args.threads);
  } else {
    EncodeEntryShared(args.entry, entry, ItemOf(sequence.cache.compressed, s), args.threads);
  }
}

// Puts row i of the sequence's into the ring.
__device__ inline void KeepRow(const Compression& args, const SequenceRows& sequence, const RingView& ring,
                               int i) {
  const int64_t position = sequence.first_position + i;
  float* kept = reinterpret_cast<float*>(ring.data + Remainder(position, ring.slots) * ring.item_bytes);
  const int64_t row = sequence.first_row + i;
  const float* a = args.a + row * args.width;
  const float* b = args.b + row * args.width;
  const float* ape = args.ape + Remainder(position, args.ratio) * static_cast<int64_t>(args.width);
#pragma unroll 4
  for (int c = threadIdx.x; c < args.width; c += args.threads) {
    kept[c] = a[c];
    kept[args.width + c] = b[c] + ape[c];
  }
}

// What becomes of a row, by args.threads threads. It may end a window, and be one that the ring keeps.
__device__ inline void CompressRow(const Compression& args, int row) {
  extern __shared__ float entry[];
  const SequenceRows& sequence = SequenceOf(args.sequences, args.num_sequences, row);
  const RingView ring =
      args.for_indexer ? sequence.cache.index_compressor_rows : sequence.cache.compressor_rows;
  const int rows = sequence.num_rows;
  const int items = args.ratio == 4 ? 2 * args.ratio : args.ratio;
  // Whether no row takes the place of one that a window of this step is made of. If some do, the first block
  // has all windows that began before the step, and the rows to keep after them.
  const bool apart = rows + items - 1 <= ring.slots;
  const int i = row - sequence.first_row;
  const bool is_first = !apart && i == 0;
  const int to_window_end =
      args.ratio - 1 - static_cast<int>(Remainder(sequence.first_position + i, args.ratio));
  if (apart) KeepRow(args, sequence, ring, i);
  const bool has_window = to_window_end == 0 && (apart || i + 1 >= items);
  const int windows_end = is_first ? min(rows, items - 1) : i + has_window;
  for (int end = i + to_window_end; end < windows_end; end += args.ratio) {
    EmitEntry(args, sequence, ring, sequence.first_position + end, entry);
    __syncthreads();
  }
  if (!is_first) return;
  for (int j = max(0, rows - static_cast<int>(ring.slots)); j < rows; ++j) KeepRow(args, sequence, ring, j);
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

  size_t shared_bytes() const { return std::max(compressors[0].dim, compressors[1].dim) * sizeof(float); }

  __device__ void operator()(int block) const {
    const bool is_second = block >= compressors[0].rows;
    const Compression& args = compressors[is_second];
    if (static_cast<int>(threadIdx.x) < args.threads) {
      CompressRow(args, is_second ? block - compressors[0].rows : block);
    }
  }
};

}  // namespace foresight::cuda
