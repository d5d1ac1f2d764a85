// The exact choice of the largest scores of one row by one thread block.
#pragma once

#include <cstdint>

namespace foresight::cuda {

constexpr int kTopKThreads = 1024;
constexpr int kFirstDigitBits =
    13;  // sign, exponent and four bits of mantissa: scores of one size fill many bins

struct TopKShared {
  uint32_t bins[1 << kFirstDigitBits];
  uint32_t warp_sums[32];
  uint32_t larger[32];
  uint32_t equal[32];
  uint32_t digit;
  uint32_t wanted;
};

// Orders as the scores do; -0 is +0.
__device__ inline uint32_t OrderedBits(float score) {
  const uint32_t bits = score == 0 ? 0 : __float_as_uint(score);
  return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

// Of the values whose bits above the digit equal `prefix`'s, finds the digit at which the `wanted` largest
// end, and adds it to the prefix; `wanted` becomes how many of those with that digit are among them.
template <int kBits, int kShift>
__device__ inline void NarrowDown(const float* scores, int count, TopKShared& shared, uint32_t& prefix,
                                  uint32_t& wanted) {
  constexpr int kBins = 1 << kBits;
  constexpr int kPerThread = kBins < kTopKThreads ? 1 : kBins / kTopKThreads;
  const int thread = threadIdx.x;
  for (int i = thread; i < kBins; i += kTopKThreads) shared.bins[i] = 0;
  __syncthreads();
#pragma unroll 4
  for (int i = thread; i < count; i += kTopKThreads) {
    const uint32_t bits = OrderedBits(scores[i]);
    bool in_reach = true;
    if constexpr (kBits + kShift < 32) in_reach = bits >> (kBits + kShift) == prefix >> (kBits + kShift);
    if (in_reach) atomicAdd(&shared.bins[bits >> kShift & (kBins - 1)], 1u);
  }
  __syncthreads();
  // Thread i has the bins from top - kPerThread * i downwards.
  const int top = kBins - 1 - thread * kPerThread;
  uint32_t own = 0;
  for (int j = 0; j < kPerThread; ++j) own += top - j >= 0 ? shared.bins[top - j] : 0;
  uint32_t before = own;  // an inclusive sum over the warp, then all before it taken in
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint32_t other = __shfl_up_sync(0xffffffff, before, distance);
    if (thread % 32 >= distance) before += other;
  }
  if (thread % 32 == 31) shared.warp_sums[thread / 32] = before;
  __syncthreads();
  for (int w = 0; w < thread / 32; ++w) before += shared.warp_sums[w];
  before -= own;
  if (before < wanted && wanted <= before + own) {
    int bin = top;
    while (before + shared.bins[bin] < wanted) before += shared.bins[bin--];
    shared.digit = bin;
    shared.wanted = wanted - before;
  }
  __syncthreads();
  prefix |= shared.digit << kShift;
  wanted = shared.wanted;
}

// picks [k]: the indices of the k largest of scores [count], ascending; of equal ones the lower indices.
// count > k.
__device__ inline void TopK(const float* scores, int count, int k, TopKShared& shared, int32_t* picks) {
  uint32_t threshold = 0;
  uint32_t wanted = k;  // of those equal to the threshold, in the end
  NarrowDown<kFirstDigitBits, 19>(scores, count, shared, threshold, wanted);
  NarrowDown<10, 9>(scores, count, shared, threshold, wanted);
  NarrowDown<9, 0>(scores, count, shared, threshold, wanted);

  // Every warp has one stretch of the row: it counts, learns where its picks begin, and writes them in order.
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int stretch = (count + kTopKThreads - 1) / kTopKThreads * 32;
  const int begin = warp * stretch;
  const int end = min(count, begin + stretch);
  uint32_t larger = 0;
  uint32_t equal = 0;
#pragma unroll 4
  for (int i = begin + lane; i < end; i += 32) {
    const uint32_t bits = OrderedBits(scores[i]);
    larger += bits > threshold;
    equal += bits == threshold;
  }
  larger = __reduce_add_sync(0xffffffff, larger);
  equal = __reduce_add_sync(0xffffffff, equal);
  if (lane == 0) {
    shared.larger[warp] = larger;
    shared.equal[warp] = equal;
  }
  __syncthreads();
  uint32_t equal_before = 0;
  uint32_t at = 0;
  for (int w = 0; w < warp; ++w) {
    equal_before += shared.equal[w];
    at += shared.larger[w];
  }
  at += min(equal_before, wanted);
  const uint32_t lower_lanes = (1u << lane) - 1;
#pragma unroll 4
  for (int first = begin; first < end; first += 32) {
    const int i = first + lane;
    const uint32_t bits = i < end ? OrderedBits(scores[i]) : 0;
    const bool is_equal = i < end && bits == threshold;
    const uint32_t equals = __ballot_sync(0xffffffff, is_equal);
    const bool taken =
        (i < end && bits > threshold) || (is_equal && equal_before + __popc(equals & lower_lanes) < wanted);
    const uint32_t takes = __ballot_sync(0xffffffff, taken);
    if (taken) picks[at + __popc(takes & lower_lanes)] = i;
    at += __popc(takes);
    equal_before += __popc(equals);
  }
}

}  // namespace foresight::cuda
