// What every expert has to do in a step, found on the device, and the step's rows as the products want them.
//
// A pair is what one expert does for one row: number row * slots + slot for the routed ones and
// rows * slots + row for the shared expert's.
#pragma once

#include <algorithm>

#include "kernels/cuda/activations.cuh"
#include "kernels/moe/moe.h"
#include "kernels/moe/route.cuh"

namespace foresight::cuda {

// Pairs [begin, begin + count) of the list, all of one expert.
struct ExpertTile {
  int expert;
  int begin;
  int count;
};

// The pairs by expert, experts ascending, in no order within one, and in any order the tiles of at most
// tile_columns that cover the routed ones. The shared expert's pairs stand behind them, in their order.
struct ExpertPlan {
  int32_t* list;  // [rows * slots + rows]
  int32_t* rows;  // of these pairs
  ExpertTile* tiles;
  int* num_tiles;
  int* counters;  // set to zero
  int num_counters;
};

constexpr int kPlanThreads = kRouterThreads;

// By a whole thread block: use(pair, expert) of every pair.
template <typename Use>
__device__ inline void ForPairs(const int32_t* ids, int pairs, const Use& use) {
  constexpr int kAtOnce = 8;  // loads
  for (int first = threadIdx.x; first < pairs; first += kAtOnce * kPlanThreads) {
    int experts[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int pair = first + i * kPlanThreads;
      experts[i] = pair < pairs ? __ldcg(&ids[pair]) : 0;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int pair = first + i * kPlanThreads;
      if (pair < pairs) use(pair, experts[i]);
    }
  }
}

constexpr int kFewPairs = 32;

// The plan of up to kFewPairs pairs, by one warp: a lane knows its pair's expert, or -1.
__device__ inline void PlanFewPairs(int id, int pairs, int slots, int tile_columns, const ExpertPlan& plan) {
  const int lane = threadIdx.x % 32;
  const unsigned before = (1u << lane) - 1;
  const unsigned same = __match_any_sync(0xffffffff, id);
  const int rank = __popc(same & before);
  const int count = __popc(same);
  int first = 0;  // pairs of lower experts
#pragma unroll 8
  for (int other = 0; other < pairs; ++other) first += __shfl_sync(0xffffffff, id, other) < id;
  const bool begins = lane < pairs && rank % tile_columns == 0;
  const unsigned tiles = __ballot_sync(0xffffffff, begins);
  if (begins) plan.tiles[__popc(tiles & before)] = {id, first + rank, min(tile_columns, count - rank)};
  if (lane == 0) *plan.num_tiles = __popc(tiles);
  if (lane < pairs) {
    plan.list[first + rank] = lane;
    plan.rows[first + rank] = lane / slots;
  }
}

// By one thread block; counts [num_experts] in shared memory. Other blocks may have written ids.
__device__ inline void MakePlan(const int32_t* ids, int rows, int slots, int num_experts, int tile_columns,
                                const ExpertPlan& plan, int* counts) {
  __shared__ int2 warp_totals[kPlanThreads / 32];
  const int pairs = rows * slots;
  for (int i = threadIdx.x; i < plan.num_counters; i += kPlanThreads) plan.counters[i] = 0;
  for (int i = threadIdx.x; i < rows; i += kPlanThreads) {
    plan.list[pairs + i] = pairs + i;
    plan.rows[pairs + i] = i;
  }
  if (pairs <= kFewPairs) {
    if (threadIdx.x >= 32) return;
    const int id = threadIdx.x < pairs ? __ldcg(&ids[threadIdx.x]) : -1;
    PlanFewPairs(id, pairs, slots, tile_columns, plan);
    return;
  }
  for (int e = threadIdx.x; e < num_experts; e += kPlanThreads) counts[e] = 0;
  __syncthreads();
  ForPairs(ids, pairs, [&](int, int expert) { atomicAdd(&counts[expert], 1); });
  __syncthreads();
  // A thread's experts are neighbours; what lies before them is a sum over lower lanes and warps.
  const int each = (num_experts + kPlanThreads - 1) / kPlanThreads;
  const int first = min(static_cast<int>(threadIdx.x) * each, num_experts);
  const int end = min(first + each, num_experts);
  int2 own = {0, 0};  // pairs, tiles
  for (int e = first; e < end; ++e) {
    own.x += counts[e];
    own.y += (counts[e] + tile_columns - 1) / tile_columns;
  }
  int2 upto = own;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int x = __shfl_up_sync(0xffffffff, upto.x, step);
    const int y = __shfl_up_sync(0xffffffff, upto.y, step);
    if (lane >= step) {
      upto.x += x;
      upto.y += y;
    }
  }
  if (lane == 31) warp_totals[threadIdx.x / 32] = upto;
  __syncthreads();
  int at = upto.x - own.x;
  int tile = upto.y - own.y;
  for (unsigned w = 0; w < threadIdx.x / 32; ++w) {
    at += warp_totals[w].x;
    tile += warp_totals[w].y;
  }
  for (int e = first; e < end; ++e) {
    const int count = counts[e];
    for (int done = 0; done < count; done += tile_columns) {
      plan.tiles[tile++] = {e, at + done, min(tile_columns, count - done)};
    }
    counts[e] = at;
    at += count;
  }
  if (threadIdx.x == kPlanThreads - 1) *plan.num_tiles = tile;
  __syncthreads();
  ForPairs(ids, pairs, [&](int pair, int expert) {
    const int place = atomicAdd(&counts[expert], 1);
    plan.list[place] = pair;
    plan.rows[place] = pair / slots;
  });
}

// What isn't split goes through act_quant.
template <typename Format>
__device__ inline void StoreBlock(LaneValues& values, const PreparedRows& to, int64_t row, int block) {
  uint16_t* at = to.data + row * to.stride() + block * kBlockK;
  values.Store<Format>(!to.split, at, to.split ? at + to.padded : nullptr, to.Factors(row) + block);
}

// Which rows' experts are still to be found: by a thread block each, and the last one to finish makes the
// plan. `done` is zero before and after.
struct Routing {
  RouterArgs router;
  int* done;
  int blocks;  // of the launch; one that makes the plan alone where there is nothing to route
  bool routes;

  // By thread block `block`: whether it is the one that makes the plan.
  __device__ bool Run(int block) const {
    __shared__ bool is_last;
    if (!routes) return true;
    RouteRow(router, block);
    if (blocks > 1) {
      __threadfence();
      __syncthreads();
      if (threadIdx.x == 0) {
        is_last = atomicAdd(done, 1) == blocks - 1;
        if (is_last) *done = 0;
        __threadfence();
      }
    }
    __syncthreads();
    return blocks == 1 || is_last;
  }
};

// The first thread blocks route and make the plan; a warp of the others prepares a block of 128 of one row,
// in the order of the routed experts' format and, where shared.data isn't null, in FP8's too.
template <typename Format>
__global__ void __launch_bounds__(kPlanThreads)
    PlanKernel(Routing routing, const int32_t* ids, int slots, int num_experts, int tile_columns,
               ExpertPlan plan, PlainRows source, int64_t k, int rows, PreparedRows routed,
               PreparedRows shared) {
  AwaitInputs();
  extern __shared__ int counts[];
  if (blockIdx.x < routing.blocks) {
    if (routing.Run(blockIdx.x)) MakePlan(ids, rows, slots, num_experts, tile_columns, plan, counts);
    return;
  }
  const int blocks = static_cast<int>(routed.padded / kBlockK);
  const int unit = (blockIdx.x - routing.blocks) * (kPlanThreads / 32) + threadIdx.x / 32;
  const int row = unit / blocks;
  const int block = unit % blocks;
  if (row >= rows) return;
  LaneValues values;
  values.Load<Format>(source, row, block, k);
  StoreBlock<Format>(values, routed, row, block);
  if (shared.data == nullptr) return;
  values.Load<Fp8Weights>(source, row, block, k);
  StoreBlock<Fp8Weights>(values, shared, row, block);
}

// At most so many tiles hold the routed pairs: an expert with any has at most one that isn't full.
inline int MaxTiles(const MoeArgs& args, int tile_columns) {
  const int pairs = args.rows * args.experts_per_token;
  return std::min(pairs, std::min(pairs, static_cast<int>(args.experts.size())) + pairs / tile_columns);
}

inline ExpertPlan AllocatePlan(const KernelContext& ctx, const MoeArgs& args, int max_tiles,
                               int num_counters) {
  const int64_t pairs = int64_t{args.rows} * (args.experts_per_token + 1);
  return {.list = ctx.scratch->Allocate<int32_t>(pairs),
          .rows = ctx.scratch->Allocate<int32_t>(pairs),
          .tiles = ctx.scratch->Allocate<ExpertTile>(max_tiles),
          .num_tiles = ctx.scratch->Allocate<int>(1),
          .counters = ctx.scratch->Allocate<int>(num_counters),
          .num_counters = num_counters};
}

template <typename Format>
PreparedRows AllocateRows(const KernelContext& ctx, int64_t rows, int64_t k, bool split = false) {
  PreparedRows out;
  out.padded = CeilDiv(k, kBlockK) * int64_t{kBlockK};
  out.split = split;
  out.half = Format::kHalf;
  out.data = ctx.scratch->Allocate<uint16_t>(rows * out.stride());
  return out;
}

template <typename Format>
void LaunchPlan(const KernelContext& ctx, const MoeArgs& args, int tile_columns, const ExpertPlan& plan,
                const PreparedRows& routed, const PreparedRows& shared) {
  const int num_experts = static_cast<int>(args.experts.size());
  const int64_t units = args.rows * (routed.padded / kBlockK);
  Routing routing = {};
  routing.routes = args.router != nullptr;
  routing.blocks = routing.routes ? args.rows : 1;
  routing.done = DeviceOf(ctx).zeros();
  if (routing.routes) routing.router = *args.router;
  const size_t shared_bytes = std::max(num_experts * sizeof(int), RouterSharedBytes(num_experts));
  Launch(ctx, PlanKernel<Format>, routing.blocks + CeilDiv(units, kPlanThreads / 32), kPlanThreads,
         shared_bytes, routing, args.ids, args.experts_per_token, num_experts, tile_columns, plan,
         PlainRows{args.x, args.dim}, args.dim, args.rows, routed, shared);
}

}  // namespace foresight::cuda
