// The exact choice of the largest scores of one row by a thread block, or by a cluster of them for long rows.
// A pure function of the scores: the number of blocks and threads doesn't matter.
//
// A histogram over the blocks tells in which of 4,096 intervals of scores the k largest end; that interval is
// divided in the same way, until all of an interval is taken or its scores are equal. Then every warp knows
// how many picks come before its own, and writes them in order. A cluster first does this with the largest
// score of each thread: the k-th of these is a bound that few scores reach, and only they are looked at
// again.
#pragma once

#include "kernels/cuda/cluster.cuh"

namespace foresight::cuda {

constexpr int kStepScores = 128;  // that a warp takes at a time, four per lane
constexpr int kDigitBits = 12;
constexpr int kBins = 1 << kDigitBits;
constexpr int kGroupBins = 32;
constexpr int kGroups = kBins / kGroupBins;
constexpr int kListed = 1024;  // scores that a block can set apart

struct TopKShared {
  struct Histogram {
    uint4 bins[kBins / 4];
    uint4 groups[kGroups / 4];  // sums of 32 bins each

    __device__ uint32_t* bin(int i) { return reinterpret_cast<uint32_t*>(bins) + i; }
    template <int kThreads>
    __device__ void Clear() {
#pragma unroll
      for (int i = 0; i < kBins / 4; i += kThreads) bins[i + threadIdx.x] = {};
    }
  };
  Histogram histograms[2];  // of this and the next round
  float4 list[kListed / 4];
  int list_indices[kListed];
  uint32_t larger[32];  // of each warp
  uint32_t equal[32];
  struct {
    uint32_t digit;
    uint32_t highest_digit;
    uint32_t wanted;
    uint32_t count;
    uint32_t larger_before;
    uint32_t equal_before;
  } found;

  // Before the first use.
  template <int kThreads>
  __device__ void Clear() {
    for (Histogram& histogram : histograms) histogram.Clear<kThreads>();
    if (threadIdx.x < 32) larger[threadIdx.x] = equal[threadIdx.x] = 0;
    __syncthreads();
  }
};

constexpr uint32_t kLeastOrdered = 0x007fffff;  // minus infinity's

// Orders as the scores do; -0 is +0.
__device__ inline uint32_t OrderedBits(float score) {
  const uint32_t bits = __float_as_uint(score + 0.0f);
  return bits ^ (static_cast<uint32_t>(static_cast<int>(bits) >> 31) | 0x80000000);
}
__device__ inline float FromOrderedBits(uint32_t ordered) {
  return __uint_as_float(ordered & 0x80000000 ? ordered ^ 0x80000000 : ~max(ordered, kLeastOrdered));
}

// Four scores from `position` on. What is no number or beyond the end is minus infinity, and the last ones of
// a row can't be picked before others.
__device__ inline float4 LoadScores(const float* scores, int position, int count) {
  float4 s = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  if (position < count) {
    const float4 v = *reinterpret_cast<const float4*>(scores + position);
    s.x = fmaxf(v.x, -INFINITY);
    if (position + 1 < count) s.y = fmaxf(v.y, -INFINITY);
    if (position + 2 < count) s.z = fmaxf(v.z, -INFINITY);
    if (position + 3 < count) s.w = fmaxf(v.w, -INFINITY);
  }
  return s;
}

// Which scores a lane has: four neighbours from begin + i * kStepScores on in each step i. Warps have
// consecutive stretches of the row, all of the same length.
struct TopKShare {
  int count;  // of the row
  int begin;
  int steps;
  int stretch;  // of a warp

  __device__ TopKShare(int count, int blocks, int rank, int threads) : count(count) {
    const int warps = blocks * threads / 32;
    steps = (count + warps * kStepScores - 1) / (warps * kStepScores);
    const int warp_begin = (rank * threads + static_cast<int>(threadIdx.x)) / 32 * steps * kStepScores;
    begin = warp_begin + static_cast<int>(threadIdx.x) % 32 * 4;
    stretch = steps * kStepScores;
    steps = warp_begin < count ? steps : 0;  // of warps beyond the end
  }
  // The number of threads, in all blocks, that have scores.
  __device__ int Threads() const { return count / stretch * 32 + min((count % stretch + 3) / 4, 32); }
};

// Scores in memory; a row is read from the first-level cache from the second time on, up to a point.
struct RowScores {
  const float* scores;
  TopKShare share;

  __device__ RowScores(const float* scores, TopKShare share) : scores(scores), share(share) {}
  // f(position of the first, four scores) in order, kAhead times as many loads at once.
  template <int kAhead = 1, typename F>
  __device__ void ForEach(const F& f) const {
#pragma unroll kAhead
    for (int i = 0; i < share.steps; ++i) {
      const int position = share.begin + i * kStepScores;
      f(position, LoadScores(scores, position, share.count));
    }
  }
  __device__ int Index(int position) const {
    return position;
  }
};

// A lane's scores, held in registers from the start.
template <int kSteps>
struct HeldScores {
  TopKShare share;
  float4 held[kSteps];

  __device__ HeldScores(const float* scores, TopKShare share) : share(share) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if (i < share.steps) held[i] = LoadScores(scores, share.begin + i * kStepScores, share.count);
    }
  }
  template <int kAhead = 1, typename F>
  __device__ void ForEach(const F& f) const {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if (i < share.steps) f(share.begin + i * kStepScores, held[i]);
    }
  }
  __device__ int Index(int position) const {
    return position;
  }
};

// Those that a block has set apart, in the order of the row.
struct ListedScores : RowScores {
  const int* indices;

  __device__ ListedScores(const TopKShared& shared, int count, int threads)
      : RowScores(reinterpret_cast<const float*>(shared.list), TopKShare(count, 1, 0, threads)),
        indices(shared.list_indices) {}
  __device__ int Index(int position) const { return indices[position]; }
};

// OrderedBits [low, low + span].
struct ScoreInterval {
  uint32_t low;
  uint32_t span;

  __device__ uint32_t high() const { return low + span; }
  __device__ bool Has(uint32_t ordered) const { return ordered - low <= span; }
};

// The first digit divides magnitudes from 2^-16 to 2^16 into 64 bins per power of two, for scores of one size
// fill many bins then, and has smaller and larger ones in the bins at the ends.
struct FirstDigit {
  static constexpr int kShift = 23 - 6;
  static constexpr int kFirst = (127 - 16) << 6;
  static constexpr int kHalf = kBins / 2;

  __device__ uint32_t operator()(uint32_t ordered) const {
    const bool negative = ordered < 0x80000000;
    const uint32_t magnitude = ordered ^ (negative ? 0x7fffffff : 0x80000000);
    const int bin = min(max(static_cast<int>(magnitude >> kShift) - kFirst, 0), kHalf - 1);
    return static_cast<uint32_t>(kHalf + bin) ^ (negative ? kBins - 1 : 0);
  }
  __device__ ScoreInterval Interval(uint32_t digit) const {
    const bool negative = digit < kHalf;
    const uint32_t bin = (digit ^ (negative ? kBins - 1 : 0)) - kHalf;
    const uint32_t begin = bin == 0 ? 0 : (bin + kFirst) << kShift;
    const uint32_t end = bin == kHalf - 1 ? 0x80000000 : (bin + 1 + kFirst) << kShift;
    return {negative ? 0x80000000 - end : 0x80000000 + begin, end - begin - 1};
  }
};

// The other digits divide an interval evenly.
struct NextDigit {
  ScoreInterval interval;
  int shift;

  __device__ explicit NextDigit(ScoreInterval interval) : interval(interval) {
    shift = max(32 - __clz(static_cast<int>(interval.span)) - kDigitBits, 0);
  }
  __device__ uint32_t operator()(uint32_t ordered) const { return (ordered - interval.low) >> shift; }
  __device__ ScoreInterval Interval(uint32_t digit) const {
    const uint32_t offset = digit << shift;
    return {interval.low + offset, min((1u << shift) - 1, interval.span - offset)};
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

// From the shared memory of block `rank` of a cluster of kBlocks.
template <int kBlocks, typename T>
__device__ inline T Load(const T* own, int rank) {
  if constexpr (kBlocks > 1) return LoadOfBlock(own, rank);
  return *own;
}

// By one warp: in which bin of the cluster's histogram the `wanted` largest end, how many of its values are
// among them, how many it has, and how many in higher bins and in this one the blocks before `rank` have.
template <int kBlocks, int kThreads>
__device__ inline void FindDigit(TopKShared& shared, TopKShared::Histogram& histogram, int rank,
                                 uint32_t wanted) {
  const int lane = threadIdx.x % 32;
  // Groups and bins from the highest down: a lane has four groups, then one bin.
  const int quad = kGroups / 4 - 1 - lane;
  uint4 sums = {};
  uint4 before = {};                                     // of these, in blocks before this one
  constexpr int kAtOnce = kThreads > 512 ? kBlocks : 4;  // as many loads as there are registers for
#pragma unroll kAtOnce
  for (int r = 0; r < kBlocks; ++r) {
    const uint4 v = Load<kBlocks>(&histogram.groups[quad], r);
    sums = {sums.x + v.x, sums.y + v.y, sums.z + v.z, sums.w + v.w};
    if (r < rank) before = {before.x + v.x, before.y + v.y, before.z + v.z, before.w + v.w};
  }
  const uint32_t own = sums.x + sums.y + sums.z + sums.w;
  uint32_t above = InclusiveSumOfWarp(own) - own;
  const int owner = __ffs(__ballot_sync(0xffffffff, above + own >= wanted)) - 1;
  const int highest = 4 * quad + (sums.w > 0 ? 3 : sums.z > 0 ? 2 : sums.y > 0 ? 1 : 0);
  const int highest_group = __shfl_sync(0xffffffff, highest, __ffs(__ballot_sync(0xffffffff, own > 0)) - 1);
  int group = 4 * quad + 3;
  uint32_t before_above = 0;
  if (lane < owner) before_above = before.x + before.y + before.z + before.w;
  if (lane == owner) {
    const auto pass = [&](uint32_t sum, uint32_t sum_before) {
      if (above + sum >= wanted) return false;
      above += sum;
      before_above += sum_before;
      --group;
      return true;
    };
    if (pass(sums.w, before.w) && pass(sums.z, before.z)) pass(sums.y, before.y);
  }
  group = __shfl_sync(0xffffffff, group, owner);
  above = __shfl_sync(0xffffffff, above, owner);

  const int bin = group * kGroupBins + kGroupBins - 1 - lane;
  uint32_t count = 0;
  uint32_t count_before = 0;
#pragma unroll
  for (int r = 0; r < kBlocks; ++r) {
    const uint32_t v = Load<kBlocks>(histogram.bin(bin), r);
    count += v;
    if (r < rank) count_before += v;
  }
  above += InclusiveSumOfWarp(count) - count;
  const int last = __ffs(__ballot_sync(0xffffffff, above + count >= wanted)) - 1;
  if (lane < last) before_above += count_before;
  const uint32_t larger_before = __reduce_add_sync(0xffffffff, before_above);
  if (lane == last) {
    shared.found = {.digit = static_cast<uint32_t>(bin),
                    .highest_digit = static_cast<uint32_t>(highest_group * kGroupBins + kGroupBins - 1),
                    .wanted = wanted - above,
                    .count = count,
                    .larger_before = larger_before,
                    .equal_before = count_before};
  }
}

// One round, after the block has counted its scores by digit in histogram round % 2: finds the digit at which
// the `wanted` largest end, and leaves the other histogram empty for the next round.
template <int kBlocks, int kThreads>
__device__ inline void FinishRound(int round, uint32_t wanted, int rank, TopKShared& shared) {
  TopKShared::Histogram& histogram = shared.histograms[round % 2];
  __syncthreads();
  const int thread = threadIdx.x;
  constexpr int kQuads = kBins / 4 / kThreads;  // of a thread
  constexpr int kGroupThreads = kGroupBins / 4 / kQuads;
  uint32_t sum = 0;
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    const uint4 quad = histogram.bins[kQuads * thread + i];
    sum += quad.x + quad.y + quad.z + quad.w;
  }
#pragma unroll
  for (int other = 1; other < kGroupThreads; other *= 2) sum += __shfl_xor_sync(0xffffffff, sum, other);
  if (thread % kGroupThreads == 0) {
    reinterpret_cast<uint32_t*>(histogram.groups)[thread / kGroupThreads] = sum;
  }
  if constexpr (kBlocks > 1) {
    ClusterArrive();
    ClusterWait();
  } else {
    __syncthreads();
  }
  // Nobody reads the last round's histogram any more.
  if (round > 0) shared.histograms[(round + 1) % 2].template Clear<kThreads>();
  if (thread < 32) FindDigit<kBlocks, kThreads>(shared, histogram, rank, wanted);
  __syncthreads();
}

// Counts the scores of the interval by digit.
template <typename Scores, typename Digit>
__device__ inline void CountDigits(const Scores& scores, const Digit& digit, ScoreInterval interval,
                                   TopKShared::Histogram& histogram) {
  scores.ForEach([&](int position, float4 v) {
    const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t ordered = OrderedBits(values[i]);
      if (position + i < scores.share.count && interval.Has(ordered))
        atomicAdd(histogram.bin(digit(ordered)), 1u);
    }
  });
}

// How many scores of lower lanes, and of this lane before a given one, are in a mask of four bits per lane.
struct OrderInWarp {
  uint32_t mask;
  uint32_t lower_lanes = 0;
  uint32_t all = 0;

  __device__ explicit OrderInWarp(uint32_t mask) : mask(mask) {
    const uint32_t lower = (1u << threadIdx.x % 32) - 1;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t lanes = __ballot_sync(0xffffffff, mask >> i & 1);
      lower_lanes += __popc(lanes & lower);
      all += __popc(lanes);
    }
  }
  __device__ uint32_t Before(int i) const {
    return lower_lanes + __popc(mask & ((1u << i) - 1));
  }
};

// Sets the scores apart that are `bound` or larger; their number, which may be more than there is room for.
template <typename Scores>
__device__ inline int ListScores(const Scores& scores, float bound, TopKShared& shared) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  int own = 0;
  scores.ForEach(
      [&](int, float4 v) { own += (v.x >= bound) + (v.y >= bound) + (v.z >= bound) + (v.w >= bound); });
  own = __reduce_add_sync(0xffffffff, own);
  if (lane == 0) shared.larger[warp] = own;
  __syncthreads();
  const uint32_t of_lane = shared.larger[lane];
  const int all = __reduce_add_sync(0xffffffff, of_lane);
  if (all > kListed) return all;
  if (own > 0) {
    int at = __reduce_add_sync(0xffffffff, lane < warp ? of_lane : 0);
    scores.ForEach([&](int position, float4 v) {
      const float values[4] = {v.x, v.y, v.z, v.w};
      const uint32_t mask = (v.x >= bound) | (v.y >= bound) << 1 | (v.z >= bound) << 2 | (v.w >= bound) << 3;
      if (!__any_sync(0xffffffff, mask != 0)) return;
      const OrderInWarp order(mask);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if ((mask >> i & 1) == 0) continue;
        reinterpret_cast<float*>(shared.list)[at + order.Before(i)] = values[i];
        shared.list_indices[at + order.Before(i)] = position + i;
      }
      at += order.all;
    });
  }
  __syncthreads();
  return all;
}

// The k largest of the cluster's scores; those outside of the interval are smaller, and `round` others came
// before.
template <int kBlocks, int kThreads, typename Scores>
__device__ inline void PickFrom(const Scores& scores, ScoreInterval interval, int round, int k, int rank,
                                TopKShared& shared, int32_t* picks) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  uint32_t larger_before = 0;  // in the blocks before this one
  uint32_t wanted = k;         // of those in the interval
  do {
    TopKShared::Histogram& histogram = shared.histograms[round % 2];
    if (round == 0) {
      CountDigits(scores, FirstDigit(), interval, histogram);
      FinishRound<kBlocks, kThreads>(round, wanted, rank, shared);
      interval = FirstDigit().Interval(shared.found.digit);
    } else {
      const NextDigit digit(interval);
      CountDigits(scores, digit, interval, histogram);
      FinishRound<kBlocks, kThreads>(round, wanted, rank, shared);
      interval = digit.Interval(shared.found.digit);
    }
    ++round;
    larger_before += shared.found.larger_before;
    wanted = shared.found.wanted;
  } while (shared.found.count > wanted && interval.span > 0);
  if constexpr (kBlocks > 1) ClusterArrive();  // this block reads no other's memory any more

  const auto is_larger = [&](float v) { return OrderedBits(v) > interval.high(); };
  const auto is_equal = [&](float v) { return interval.Has(OrderedBits(v)); };
  uint32_t larger = 0;
  uint32_t equal = 0;
  scores.ForEach([&](int, float4 v) {
    larger += is_larger(v.x) + is_larger(v.y) + is_larger(v.z) + is_larger(v.w);
    equal += is_equal(v.x) + is_equal(v.y) + is_equal(v.z) + is_equal(v.w);
  });
  larger = __reduce_add_sync(0xffffffff, larger);
  equal = __reduce_add_sync(0xffffffff, equal);
  if (lane == 0) {
    shared.larger[warp] = larger;
    shared.equal[warp] = equal;
  }
  __syncthreads();
  if (larger + equal > 0) {
    uint32_t at = larger_before + __reduce_add_sync(0xffffffff, lane < warp ? shared.larger[lane] : 0);
    uint32_t equal_before =
        shared.found.equal_before + __reduce_add_sync(0xffffffff, lane < warp ? shared.equal[lane] : 0);
    at += min(equal_before, wanted);
    scores.ForEach([&](int position, float4 v) {
      uint32_t taken = is_larger(v.x) | is_larger(v.y) << 1 | is_larger(v.z) << 2 | is_larger(v.w) << 3;
      const uint32_t equals = is_equal(v.x) | is_equal(v.y) << 1 | is_equal(v.z) << 2 | is_equal(v.w) << 3;
      if (__any_sync(0xffffffff, equals != 0)) {
        const OrderInWarp order(equals);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (equals >> i & 1 && equal_before + order.Before(i) < wanted) taken |= 1u << i;
        }
        equal_before += order.all;
      }
      if (!__any_sync(0xffffffff, taken != 0)) return;
      const OrderInWarp order(taken);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (taken >> i & 1) picks[at + order.Before(i)] = scores.Index(position + i);
      }
      at += order.all;
    });
  }
  if constexpr (kBlocks > 1) ClusterWait();  // others may still read this block's memory
}

// picks [k]: the indices of the k largest of a row of more than k scores, ascending; of equal ones the lower
// indices. By all threads of block `rank` of a cluster of kBlocks, each with its share of the scores.
template <int kBlocks, int kThreads, typename Scores>
__device__ inline void TopK(const Scores& scores, int k, int rank, TopKShared& shared, int32_t* picks) {
  if (kBlocks == 1 || scores.share.Threads() < k) {
    PickFrom<kBlocks, kThreads>(scores, {0, 0xffffffff}, /*round=*/0, k, rank, shared, picks);
    return;
  }
  float most = -INFINITY;
  scores.template ForEach<4>(
      [&](int, float4 v) { most = fmaxf(fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)), most); });
  if (scores.share.begin < scores.share.count) {
    atomicAdd(shared.histograms[0].bin(FirstDigit()(OrderedBits(most))), 1u);
  }
  FinishRound<kBlocks, kThreads>(/*round=*/0, k, rank, shared);
  const uint32_t low = FirstDigit().Interval(shared.found.digit).low;
  const ScoreInterval interval = {low, FirstDigit().Interval(shared.found.highest_digit).high() - low};
  const int listed = ListScores(scores, FromOrderedBits(low), shared);
  if (listed <= kListed) {
    PickFrom<kBlocks, kThreads>(ListedScores(shared, listed, kThreads), interval, /*round=*/1, k, rank,
                                shared, picks);
  } else {
    PickFrom<kBlocks, kThreads>(scores, interval, /*round=*/1, k, rank, shared, picks);
  }
}

}  // namespace foresight::cuda
