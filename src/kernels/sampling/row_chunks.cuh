// Rows in chunks, many blocks a row: what blocks of the passes over them have in common.
#pragma once

#include <climits>
#include <cstddef>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/sampling/scores.cuh"

namespace foresight::cuda {

constexpr int kThreads = 256;
// Of a thread: fewer where the vocabulary is small, for as many blocks as there is work for.
constexpr int kTokens = 8;
constexpr int kFewTokens = 2;
constexpr int kSmallVocabulary = 16384;

// The best token of some, by a score that is exact or at most two margins more. INT_MAX: none can be drawn.
struct Best {
  float score = -INFINITY;
  int token = INT_MAX;

  __device__ void Take(const Best& other) {
    if (other.score > score || (other.score == score && other.token < token)) *this = other;
  }
};

// Of the first tokens in the order of the cuts.
struct CutSums {
  uint32_t count = 0;
  double weight = 0;

  __device__ CutSums operator+(const CutSums& other) const {
    return {count + other.count, weight + other.weight};
  }
};

// Tokens of a row by log-weight, of which the largest is 0: their number and the sum of their weights, in
// fixed point, relative to the largest weight that the bin may have. Then those among which the cut falls.
struct alignas(16) CutBins {
  static constexpr int kCount = 1024;
  static constexpr int kFractionBits = 40;
  static constexpr double kOne = int64_t{1} << kFractionBits;
  static constexpr int kKeysMax = 4096;

  unsigned long long weights[kCount];
  uint32_t counts[kCount];
  int arrivals[2];  // blocks that have counted, and collected
  int num_keys;
  int unused;
  // Written before they are read:
  int first_bin;   // of the tokens that are collected; kCount: they are too many
  int last_bin;    // -1: nothing is cut
  CutSums before;  // those bins
  CutSums all;     // of the row
  unsigned long long keys[kKeysMax];

  static constexpr size_t kZeroBytes = kCount * 12 + 16;
};
static_assert(offsetof(CutBins, first_bin) == CutBins::kZeroBytes &&
              CutBins::kZeroBytes % sizeof(uint4) == 0);

// What blocks tell each other: [R, chunks] each, but for `drawing`.
struct ChunkResults {
  float* largest;  // +inf: a logit that is no number
  double* sums;    // of exp(LogWeight(logit, largest of the chunk))
  Best* best;      // of the draw, then of the draw from p where nothing is left of p - q: [2, R, chunks]
  int* drawing;    // [S] by rejection: the row that draws, that of the first draft which is not accepted
  int* arrivals;   // [2, kZeros / 2] blocks of the sums and of the draw that are done, by sequence
  CutBins* bins;   // [R] null: no row has top_k or top_p
  RowCut* cuts;    // [R] with bins
};

// --- sums and maxima

__device__ inline double WarpSum(double x) {
#pragma unroll
  for (int other = 16; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffff, x, other);
  return x;
}

// Thread 0 gets it. `shared` [kThreads / 32].
__device__ inline double BlockSum(double x, double* shared) {
  x = WarpSum(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0) {
    for (int w = 0; w < kThreads / 32; ++w) sum += shared[w];
  }
  return sum;
}

// All threads get it. `shared` [kThreads / 32] is free again after a barrier.
__device__ inline float BlockMax(float x, float* shared) {
  x = WarpMax(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  return WarpMax(shared[threadIdx.x % (kThreads / 32)]);
}

// Unsigned numbers in the order of the floats.
__device__ inline uint32_t Ordered(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits ^ (bits >> 31 != 0 ? 0xffffffffu : 0x80000000u);
}

__device__ inline float FromOrdered(uint32_t x) {
  return __uint_as_float(x ^ (x >> 31 != 0 ? 0x80000000u : 0xffffffffu));
}

// Whether this is the last of `blocks` blocks to come here, with what the others have written before. Leaves
// the counter zero. All threads must have written what they tell before a barrier, or be thread 0.
__device__ inline bool IsLastBlock(int* counter, int blocks) {
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    int before;
    asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    is_last = before == blocks - 1;
    if (is_last) *counter = 0;
  }
  __syncthreads();
  return is_last;
}

// Of what chunks have told, in this kernel too; by a warp, all of whose lanes get it.
__device__ inline float RowLargest(const ChunkResults& chunks, int row, int num_chunks) {
  float largest = -INFINITY;
  for (int c = threadIdx.x % 32; c < num_chunks; c += 32) {
    largest = fmaxf(largest, __ldcg(chunks.largest + row * num_chunks + c));
  }
  return WarpMax(largest);
}

// Of thread i: tokens i, i + kThreads, ... of a block's chunk; -inf behind the vocabulary.
template <int kCount>
__device__ inline float LoadLogits(const float* row, int chunk, int vocab_size, float (&logits)[kCount]) {
  float largest = -INFINITY;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int token = (chunk * kCount + i) * kThreads + threadIdx.x;
    logits[i] = token < vocab_size ? Checked(row[token]) : -INFINITY;
    largest = fmaxf(largest, logits[i]);
  }
  return largest;
}

}  // namespace foresight::cuda
