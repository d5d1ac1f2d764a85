// The router: in float64 like the definition, so that both select the same experts.
#pragma once

#include "kernels/cuda/formats.cuh"
#include "kernels/moe/moe.h"

namespace foresight::cuda {

constexpr int kRouterThreads = 256;

constexpr size_t RouterSharedBytes(int num_experts) {
  return 2 * num_experts * sizeof(double);
}

__device__ inline double Score(double z) {
  return sqrt(z > 20 ? z : log1p(exp(z)));
}

// In the order of the values, as an integer; NaN is 0, below everything.
__device__ inline uint64_t OrderedBits(double x) {
  const uint64_t bits = static_cast<uint64_t>(__double_as_longlong(x));
  if (x != x) return 0;
  return bits >> 63 != 0 ? ~bits : bits | uint64_t{1} << 63;
}

// Who of a warp has the highest value, of those the lowest id; num_experts if all are 0.
__device__ inline int BestOfWarp(uint64_t value, int id, int num_experts) {
  const uint32_t high = __reduce_max_sync(0xffffffff, static_cast<uint32_t>(value >> 32));
  const bool leads = value >> 32 == high;
  const uint32_t low = __reduce_max_sync(0xffffffff, leads ? static_cast<uint32_t>(value) : 0);
  const bool is_best = leads && static_cast<uint32_t>(value) == low && value != 0;
  return static_cast<int>(__reduce_min_sync(0xffffffff, static_cast<unsigned>(is_best ? id : num_experts)));
}

// Where those of one row are among all rows'.
__device__ inline double* ScoresOf(double* scores, int row, int num_experts) {
  return scores + 2 * row * num_experts;
}

// The scores of a row, by kRouterThreads threads, whose numbers are `thread`: in shared memory,
// RouterSharedBytes(), the scores and behind them the biased ones in order.
__device__ inline void ScoreRow(const RouterArgs& args, int64_t row, int thread, double* scores) {
  uint64_t* biased = reinterpret_cast<uint64_t*>(scores + args.num_experts);
  for (int e = thread; e < args.num_experts; e += kRouterThreads) {
    const double score = Score(args.logits[row * args.num_experts + e]);
    scores[e] = score;
    biased[e] = OrderedBits(score + (args.bias.data != nullptr ? VectorValue(args.bias, e) : 0.0f));
  }
}

// Selects from a row's scores, by a warp.
__device__ inline void SelectExperts(const RouterArgs& args, int64_t row, double* scores) {
  uint64_t* biased = reinterpret_cast<uint64_t*>(scores + args.num_experts);
  const int k = args.experts_per_token;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int32_t* ids = args.ids + row * k;
  double sum = 0;
  for (int i = 0; i < k; ++i) {
    int id;
    if (args.forced_ids != nullptr) {
      id = args.forced_ids[row * k + i];
    } else if (args.tid2eid != nullptr) {
      id = static_cast<int>(args.tid2eid[int64_t{args.tokens[row]} * k + i]);
    } else {
      uint64_t best = 0;
      id = args.num_experts;
      for (int e = lane; e < args.num_experts; e += 32) {
        if (biased[e] > best) {
          best = biased[e];
          id = e;
        }
      }
      id = BestOfWarp(best, id, args.num_experts);
      if (id == args.num_experts) id = i;  // a row of NaN
      __syncwarp();
      if (lane == 0) biased[id] = 0;
      __syncwarp();
    }
    if (lane == 0) ids[i] = id;
    sum += scores[id];
  }
  __syncwarp();
  for (int i = lane; i < k; i += 32) {
    args.weights[row * k + i] = static_cast<float>(scores[ids[i]] / sum * args.scaling);
  }
}

// By a thread block.
__device__ inline void RouteRow(const RouterArgs& args, int64_t row) {
  extern __shared__ double scores[];
  ScoreRow(args, row, static_cast<int>(threadIdx.x), scores);
  __syncthreads();
  if (threadIdx.x < 32) SelectExperts(args, row, scores);
}

}  // namespace foresight::cuda
