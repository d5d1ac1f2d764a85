// All experts of a step of few rows in one launch that reads weights without a pause.
//
// Thread blocks stay, one per multiprocessor. Each warp has units of its own (stream_units.cuh),
// first of w1 and w3, the shared expert's before the routed ones', then of w2 in the same order, and reads
// them through a ring of its own in shared memory, rounds ahead: nobody in the thread block waits for
// another. Who finishes the last of the units that make up 128 values of an activation prepares these for w2.
// Of the warps that wait for activations one watches for its thread block; by then their first weights of w2
// are there.
//
// A step of few pairs has no launch before this one: every thread block routes, plans and prepares the rows
// in its shared memory, while the shared expert's first weights are on their way.
//
// Nobody waits for ever: units depend on earlier ones alone, every warp takes its own in order, and all
// thread blocks run at the same time, since there is one for each multiprocessor, and it fits there.
#pragma once

#include "kernels/moe/stream_products.cuh"

namespace foresight::cuda {

constexpr int kRouterBarrier = 1;

// Of each warp.
template <int kWarps, int kM, int kSlots>
struct StreamRing {
  uint8_t rounds[kWarps][kSlots * kRoundSize<kM>];
  BlockFactors<kM> factors[kWarps];
};

// What is known before the inputs are.
__device__ inline void SetUp(const StreamArgs& args, StreamShared& shared, uint8_t* memory,
                             StreamTile* tiles) {
  const int pairs = args.rows * args.slots;
  const int thread = threadIdx.x;
  for (int i = thread; i < args.shared_tiles * kStreamColumns; i += static_cast<int>(blockDim.x)) {
    StreamTile& tile = tiles[i / kStreamColumns];
    const int row = min(i, args.rows - 1);
    tile.SetColumn(i % kStreamColumns, pairs + row, row, 1);
    if (i % kStreamColumns == 0) tile.Set(args.shared, min(kStreamColumns, args.rows - i));
  }
  if (thread == 0) {
    shared.ready_tiles = 0;
    shared.watched = 0;
    shared.done_warps = 0;
    shared.plan = args.plan;
    shared.weights = args.weights;
    shared.x[0] = args.x_routed.data;
    shared.x[1] = args.x_shared.data;
    if (args.plans) {
      shared.plan.list = shared.few.list;
      shared.plan.rows = shared.few.rows;
      shared.plan.tiles = shared.few.tiles;
      shared.plan.num_tiles = &shared.few.num_tiles;
      if (args.routes) shared.weights = shared.few.weights;
      shared.x[0] = shared.x[1] = reinterpret_cast<uint16_t*>(memory + args.rows_at);
      if (!args.one_format) shared.x[1] += args.rows * args.x_routed.stride();
    }
  }
  // Where the experts' weights are is known a little sooner.
  constexpr int kLine = 128;
  const int line = blockIdx.x + gridDim.x * thread;
  if (line * kLine < args.num_experts * static_cast<int>(sizeof(ExpertWeights))) {
    PrefetchL2(reinterpret_cast<const uint8_t*>(args.experts) + line * kLine);
  }
}

// The step's rows for all of the thread block, by its warps from `first` on.
template <typename Format, bool kSplit>
__device__ inline void PrepareRows(const StreamArgs& args, const StreamShared& shared, int first) {
  const int blocks = args.dim / kBlockK;
  const int lane = threadIdx.x % 32;
  const int begin = static_cast<int>(threadIdx.x / 32) - first;
  const int step = static_cast<int>(blockDim.x / 32) - first;
  const int end = args.rows * blocks;
  for (int i = begin; i < end; i += step) {  // all on their way at once
    if (lane < 4) Touch(args.x.x + i * kBlockK + lane * 32);
  }
  const auto prepare = [&]<typename F>(int row, int block, bool of_shared) {
    LaneValues values;
    values.Load<F>(args.x, row, block, args.dim);
    StoreBlock<F>(values, args.swiglu.faithful, PreparedRows{shared.x[of_shared], args.dim, kSplit, true},
                  row, block);
  };
#pragma unroll 1
  for (int i = begin; i < end; i += step) {
    const int row = i / blocks;
    const int block = i - row * blocks;
    if (!args.one_format) prepare.template operator()<Fp8Weights>(row, block, true);
    prepare.template operator()<Format>(row, block, false);
  }
}

// By kRouterThreads threads: which experts the rows have, and what their tiles are.
__device__ inline void PlanRows(const StreamArgs& args, const StreamShared& shared, double* scores) {
  const int thread = static_cast<int>(threadIdx.x);
  const int pairs = args.rows * args.slots;
  RouterArgs router = args.router;
  router.ids = const_cast<int32_t*>(shared.few.ids);
  router.weights = const_cast<float*>(shared.few.weights);
  if (args.routes) {
    // Few experts are each row's other warps'.
#pragma unroll 1
    for (int row = 0; row < args.rows; ++row) {
      ScoreRow(router, row, (thread + kRouterThreads - row % 8 * 32) % kRouterThreads,
               ScoresOf(scores, row, args.num_experts));
    }
    GroupBarrier<kRouterBarrier>(kRouterThreads);
#pragma unroll 1
    for (int row = thread / 32; row < args.rows; row += kRouterThreads / 32) {
      SelectExperts(router, row, ScoresOf(scores, row, args.num_experts));
    }
    GroupBarrier<kRouterBarrier>(kRouterThreads);
    if (blockIdx.x == 0 && thread < pairs) {
      args.router.ids[thread] = router.ids[thread];
      args.router.weights[thread] = router.weights[thread];
    }
  }
  if (thread >= 32) return;
  const int32_t* ids = args.routes ? router.ids : args.ids;
  PlanFewPairs(thread < pairs ? ids[thread] : -1, pairs, args.slots, kStreamColumns, shared.plan);
}

// By the whole thread block: the routed experts' tiles. Returns how many tiles there are.
template <typename Format, bool kSplit>
__device__ inline int FindTiles(const StreamArgs& args, StreamShared& shared, double* scores,
                                StreamTile* tiles) {
  const int thread = static_cast<int>(threadIdx.x);
  if (args.plans) {
    const int planning = args.routes ? kRouterThreads : 32;
    if (thread < planning) {
      PlanRows(args, shared, scores);
    } else {
      PrepareRows<Format, kSplit>(args, shared, planning / 32);
    }
    __syncthreads();
  }
  const int num_tiles = args.shared_tiles + *shared.plan.num_tiles;
  for (int i = thread; i < args.max_tiles * kStreamColumns; i += static_cast<int>(blockDim.x)) {
    const ExpertTile from =
        shared.plan.tiles[i / kStreamColumns];  // garbage behind the end; read beside the number
    const int at = args.shared_tiles + i / kStreamColumns;
    if (at >= num_tiles) break;
    const int column = i % kStreamColumns;
    const int pair = shared.plan.list[from.begin + min(column, from.count - 1)];
    tiles[at].SetColumn(column, pair, pair / args.slots, shared.weights[pair]);
    if (column == 0) tiles[at].Set(args.experts[from.expert], from.count);
  }
  __syncthreads();
  return num_tiles;
}

template <typename Format, bool kSplit, int kWarps, int kM, int kSlots>
__global__ void __launch_bounds__(kWarps * 32, 1)
    ExpertStreamKernel(const __grid_constant__ StreamArgs args) {
  static_assert(kRouterThreads <= kWarps * 32);
  using Ring = StreamRing<kWarps, kM, kSlots>;
  extern __shared__ __align__(128) uint8_t memory[];
  Ring& rings = *reinterpret_cast<Ring*>(memory);
  StreamShared& shared = *reinterpret_cast<StreamShared*>(&rings + 1);
  StreamTile* tiles = reinterpret_cast<StreamTile*>(&shared + 1);
  SetUp(args, shared, memory, tiles);
  __syncthreads();
  const int warp = static_cast<int>(threadIdx.x / 32);
  const uint32_t ring = static_cast<uint32_t>(__cvta_generic_to_shared(rings.rounds[warp]));
  WeightRounds<Format, kM> rounds(args, tiles, warp);
  UnitScales<Format, kM> scales(args, tiles, warp);
  int sent = 0;
  const auto fill = [&](int num_tiles, bool with_down) {
    scales.Begin(num_tiles, with_down);  // before what they would have to wait for
    for (; sent < kSlots && rounds.HasNext(num_tiles, with_down); ++sent) {
      rounds.Copy(ring + rounds.Place() + sent * kRoundSize<kM>);
    }
  };
  fill(args.shared_tiles, false);
  AwaitInputs();
  const int num_tiles =
      FindTiles<Format, kSplit>(args, shared, reinterpret_cast<double*>(memory + args.scores_at), tiles);
  fill(num_tiles, true);
  for (; sent < kSlots; ++sent) EndCopies();  // as many groups as slots
  UnitMultiplier<Format, kSplit, kM, kSlots> multiplier(args, shared, tiles, num_tiles, rounds, ring,
                                                        rings.factors[warp]);
  multiplier.Run(scales);
  multiplier.Leave();
}

}  // namespace foresight::cuda
