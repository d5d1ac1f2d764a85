// The exact choice of the largest scores of one row by a thread block. A pure function of the scores: the
// number of threads and the way to the choice don't matter.
//
// A histogram tells in which of 4,096 intervals of scores the k largest end; that interval is divided in the
// same way, until all of an interval is taken or its scores are equal. A thread has neighbouring scores, so
// that the picks before its own are a sum over threads, and picks are written in order.
//
// In a long row the k runs of kMaximumOf scores with the largest maxima are chosen first, in the same way: no
// other run has a pick. (If one had, k runs would have a score that is larger, or equal and before it.) So
// the scores of about k runs are looked at, and both choices are made by the same instructions, for a kernel
// as short as this one waits for its instructions as well.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/shared_counts.cuh"
#include "kernels/indexer/indexing.cuh"

namespace foresight::cuda {

constexpr int kBins = 4096;

template <int kThreads>
struct TopKShared {
  uint4 bins[2][kBins / 4];  // of this and the next round, which is empty
  int list[kThreads];        // runs
  uint32_t totals[2][32];    // of warps
  struct {
    uint32_t digit;   // at which the wanted largest end; kBins: they are not all in the interval
    uint32_t wanted;  // of the scores with it
    uint32_t count;   // of these
  } found;

  // Before the first use.
  __device__ void Clear() {
    for (auto& of_round : bins) {
#pragma unroll
      for (int i = 0; i < kBins / 4; i += kThreads) of_round[i + threadIdx.x] = {};
    }
    if (threadIdx.x < 32) totals[0][threadIdx.x] = totals[1][threadIdx.x] = 0;
    __syncthreads();
  }
};

// OrderedBits [low, high], divided into bins of 2^shift; the last bin has the rest.
struct ScoreInterval {
  static constexpr uint32_t kHighest = ~kLeastOrdered;

  uint32_t low;
  uint32_t high;
  int shift;

  // From 2^-16 on, 128 bins for every power of two: where the largest scores mostly end.
  __device__ static ScoreInterval First() { return {0x80000000 + ((127 - 16) << 23), kHighest, 23 - 7}; }
  // From a bound on that the last picks are near: 16,384 bins for every power of two.
  __device__ static ScoreInterval Near(uint32_t low) { return {low, kHighest, 23 - 14}; }
  __device__ static ScoreInterval Evenly(uint32_t low, uint32_t high) {
    return {low, high, max(32 - __clz(static_cast<int>(high - low)) - 12, 0)};
  }
  __device__ bool Has(uint32_t ordered) const { return ordered - low <= high - low; }
  __device__ uint32_t Digit(uint32_t ordered) const { return min((ordered - low) >> shift, kBins - 1); }
  __device__ ScoreInterval Of(uint32_t digit) const {
    if (digit == kBins) return Evenly(kLeastOrdered, low - 1);
    const uint32_t begin = low + (digit << shift);
    return Evenly(begin, digit == kBins - 1 ? high : min(high, begin + (1u << shift) - 1));
  }
};

// Scores of a row, or those of its runs in a list.
struct ScoreSource {
  const float* scores;
  int row_count;
  const int* list;  // null: all
  int count;        // of them

  __device__ int Index(int position) const {
    return list == nullptr ? position : list[position / kMaximumOf] * kMaximumOf + position % kMaximumOf;
  }
  // OrderedBits of four scores. What is no number is minus infinity, what is beyond the end less than
  // anything.
  __device__ uint4 Load(int position) const {
    const int at = position < count ? Index(position) : row_count;
    if (at >= row_count) return {};
    const float4 v = *reinterpret_cast<const float4*>(scores + at);
    uint4 ordered = {OrderedBits(fmaxf(v.x, -INFINITY)), OrderedBits(fmaxf(v.y, -INFINITY)),
                     OrderedBits(fmaxf(v.z, -INFINITY)), OrderedBits(fmaxf(v.w, -INFINITY))};
    if (at + 3 >= row_count) {
      ordered.w = 0;
      if (at + 2 >= row_count) ordered.z = 0;
      if (at + 1 >= row_count) ordered.y = 0;
    }
    return ordered;
  }
};

__device__ inline uint32_t InclusiveSumOfWarp(uint32_t x) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint32_t other = __shfl_up_sync(0xffffffff, x, distance);
    if (static_cast<int>(threadIdx.x) % 32 >= distance) x += other;
  }
  return x;
}

// Finds the digit at which the `wanted` largest of the scores counted in round `round` end, and empties the
// bins of the next round. Threads have neighbouring bins, the first thread the highest.
template <int kThreads>
__device__ inline void FindDigit(int round, uint32_t wanted, TopKShared<kThreads>& shared) {
  constexpr int kWarps = kThreads / 32;
  constexpr int kQuads = kBins / 4 / kThreads;  // of a thread
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int last = kBins / 4 - 1 - kQuads * static_cast<int>(threadIdx.x);  // quad
  __syncthreads();
  uint32_t counts[kQuads * 4];
  uint32_t own = 0;
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    const uint4 quad = shared.bins[round % 2][last - i];
    counts[4 * i] = quad.w;
    counts[4 * i + 1] = quad.z;
    counts[4 * i + 2] = quad.y;
    counts[4 * i + 3] = quad.x;
    own += quad.x + quad.y + quad.z + quad.w;
    if (round > 0) shared.bins[(round + 1) % 2][last - i] = {};
  }
  const uint32_t of_warp = __reduce_add_sync(0xffffffff, own);
  if (lane == 0) shared.totals[0][warp] = of_warp;
  __syncthreads();
  uint32_t above = __reduce_add_sync(0xffffffff, lane < warp ? shared.totals[0][lane] : 0);
  if (above < wanted && above + of_warp >= wanted) {
    above += InclusiveSumOfWarp(own) - own;
    if (above < wanted && above + own >= wanted) {
      uint32_t digit = 4 * last + 3;
      uint32_t count = counts[0];
#pragma unroll
      for (int i = 1; i < kQuads * 4; ++i) {
        if (above + count >= wanted) break;
        above += count;
        --digit;
        count = counts[i];
      }
      shared.found = {digit, wanted - above, count};
    }
  } else if (warp == kWarps - 1 && lane == 0 && above + of_warp < wanted) {
    shared.found = {kBins, wanted - above - of_warp, 0xffff};
  }
  __syncthreads();
}

// picks [k]: the indices of the k largest of a row of more than k scores, ascending; of equal ones the lower
// indices. By all threads of a block.
template <int kThreads>
__device__ inline void TopK(const float* scores, const float* maxima, int count, int k,
                            TopKShared<kThreads>& shared, int32_t* picks) {
  constexpr int kQuads = kMaximumOf / 4;  // that a thread holds at most
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int runs = (count + kMaximumOf - 1) / kMaximumOf;
  bool of_runs = runs > kThreads && k <= kThreads;
  ScoreSource source = {scores, count, nullptr, count};
  if (of_runs) source = {maxima, runs, nullptr, runs};
  ScoreInterval interval = ScoreInterval::First();
  int round = 0;
#pragma unroll 1
  for (;;) {
    const int per_thread = min((source.count + 4 * kThreads - 1) / (4 * kThreads), kQuads);
    const int at_once = per_thread * 4 * kThreads;  // scores
    const bool held = source.count <= at_once;
    uint4 ordered[kQuads];
    const auto load = [&](int begin) {
#pragma unroll
      for (int j = 0; j < kQuads; ++j) {
        if (j < per_thread) ordered[j] = source.Load(begin + 4 * j);
      }
    };
    const int own_begin = static_cast<int>(threadIdx.x) * per_thread * 4;
    uint32_t wanted = k;  // of those in the interval
    bool again = true;
#pragma unroll 1
    for (bool first = true; again; first = false, ++round) {
      uint32_t* bins = reinterpret_cast<uint32_t*>(shared.bins[round % 2]);
#pragma unroll 1
      for (int begin = 0; begin + warp * 32 * per_thread * 4 < source.count; begin += at_once) {
        if (first || !held) load(begin + own_begin);
#pragma unroll
        for (int j = 0; j < kQuads; ++j) {
          if (j >= per_thread) break;
          for (const uint32_t x : {ordered[j].x, ordered[j].y, ordered[j].z, ordered[j].w}) {
            CountIf(interval.Has(x), bins + interval.Digit(x));
          }
        }
      }
      FindDigit(round, wanted, shared);
      interval = interval.Of(shared.found.digit);
      wanted = shared.found.wanted;
      // Of runs no fewer than k, and as many as there are threads for, will do.
      again = shared.found.count > wanted && interval.high > interval.low &&
              !(of_runs && k - wanted + shared.found.count <= kThreads);
    }
    if (of_runs) wanted = min(shared.found.count, kThreads - k + wanted);

    uint32_t larger_before = 0;
    uint32_t equal_before = 0;
    int turn = 0;
#pragma unroll 1
    for (int begin = 0; begin < source.count; begin += at_once, turn ^= 1) {
      uint32_t larger = 0;
      uint32_t equal = 0;
      uint32_t before = 0;
      if (begin + warp * 32 * per_thread * 4 < source.count) {
        if (!held) load(begin + own_begin);
#pragma unroll
        for (int j = 0; j < kQuads; ++j) {
          if (j >= per_thread) break;
          int i = 4 * j;
          for (const uint32_t x : {ordered[j].x, ordered[j].y, ordered[j].z, ordered[j].w}) {
            if (x > interval.high) larger |= 1u << i;
            if (interval.Has(x)) equal |= 1u << i;
            ++i;
          }
        }
        const uint32_t own = __popc(larger) << 16 | __popc(equal);
        const uint32_t up_to_own = InclusiveSumOfWarp(own);
        if (lane == 31) shared.totals[turn][warp] = up_to_own;
        before = up_to_own - own;
      } else if (lane == 31) {
        shared.totals[turn][warp] = 0;
      }
      __syncthreads();
      const uint32_t total = shared.totals[turn][lane];
      before += __reduce_add_sync(0xffffffff, lane < warp ? total : 0);
      const uint32_t equals = equal_before + (before & 0xffff);
      uint32_t at = larger_before + (before >> 16) + min(equals, wanted);
      if (!held) {
        const uint32_t all = __reduce_add_sync(0xffffffff, total);
        larger_before += all >> 16;
        equal_before += all & 0xffff;
      }
      while (equal != 0 && equals + __popc(equal) > wanted) equal &= ~(0x80000000 >> __clz(equal));
      int32_t* to = of_runs ? shared.list : picks;
#pragma unroll 1
      for (uint32_t bits = larger | equal; bits != 0; bits &= bits - 1) {
        to[at++] = source.Index(begin + own_begin + __ffs(bits) - 1);
      }
    }
    if (!of_runs) return;
    of_runs = false;
    source = {scores, count, shared.list, static_cast<int>(k - shared.found.wanted + wanted) * kMaximumOf};
    interval = ScoreInterval::Near(interval.low);
    __syncthreads();
  }
}

}  // namespace foresight::cuda
