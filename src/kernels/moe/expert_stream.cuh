// All experts of a step of few rows in one launch that reads weights without a pause.
//
// Thread blocks stay, one per multiprocessor. Each of twelve warps has units of its own (stream_units.cuh),
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

constexpr int kStreamThreads = kStreamWarps * 32;
constexpr int kRouterBarrier = 1;
constexpr int kPreparingBarrier = 2;
static_assert(kRouterThreads <= kStreamThreads);

// What is known before the inputs are.
__device__ inline void SetUp(const StreamArgs& args, StreamShared& shared, uint8_t* memory,
                             StreamTile* tiles) {
  const int pairs = args.rows * args.slots;
  const int thread = threadIdx.x;
  for (int i = thread; i < args.shared_tiles * kStreamColumns; i += kStreamThreads) {
    StreamTile& tile = tiles[i / kStreamColumns];
    const int row = min(i, args.rows - 1);
    tile.SetColumn(i % kStreamColumns, pairs + row, row, 1);
    if (i % kStreamColumns == 0) tile.Set(args.shared, min(kStreamColumns, args.rows - i));
  }
  if (thread == 0) {
    shared.ready_tiles = 0;
    shared.watched = 0;
    shared.done_warps = 0;
  }
  shared.SetUp(args, memory);
}

// By the whole thread block: the routed experts' tiles, and what units there are.
template <typename Format>
__device__ inline void FindTiles(const StreamArgs& args, StreamShared& shared, double* scores,
                                 StreamTile* tiles) {
  const int thread = static_cast<int>(threadIdx.x);
  if (args.plans) {
    const int planning = args.routes ? kRouterThreads : 32;
    if (thread < planning) {
      shared.Plan<kRouterBarrier>(args, thread, scores);
    } else {
      shared.PrepareRows<Format>(args, (thread - planning) / 32, (kStreamThreads - planning) / 32);
      if (args.routes) {  // as many barriers as in Plan() (barriers.cuh)
        GroupBarrier<kPreparingBarrier>(kStreamThreads - kRouterThreads);
        GroupBarrier<kPreparingBarrier>(kStreamThreads - kRouterThreads);
      }
    }
    __syncthreads();
  }
  const int num_tiles = args.shared_tiles + *shared.plan.num_tiles;
  if (thread == 0) shared.units = StepUnits::All(args, num_tiles);
  for (int i = thread; i < args.max_tiles * kStreamColumns; i += kStreamThreads) {
    // Garbage behind the end; read beside the number.
    const ExpertTile from = shared.plan.tiles[i / kStreamColumns];
    const int at = args.shared_tiles + i / kStreamColumns;
    if (at >= num_tiles) break;
    const int column = i % kStreamColumns;
    const int pair = shared.plan.list[from.begin + min(column, from.count - 1)];
    tiles[at].SetColumn(column, pair, pair / args.slots, shared.weights[pair]);
    if (column == 0) tiles[at].Set(args.experts[from.expert], from.count);
  }
  __syncthreads();
}

template <typename Format>
__global__ void __launch_bounds__(kStreamThreads, 1)
    ExpertStreamKernel(const __grid_constant__ StreamArgs args) {
  extern __shared__ __align__(128) uint8_t memory[];
  StreamShared& shared = *reinterpret_cast<StreamShared*>(memory);
  StreamTile* tiles = reinterpret_cast<StreamTile*>(&shared + 1);
  SetUp(args, shared, memory, tiles);
  __syncthreads();
  const int warp = static_cast<int>(threadIdx.x / 32);
  const uint32_t ring = static_cast<uint32_t>(__cvta_generic_to_shared(shared.rounds[warp]));
  WeightRounds<Format> rounds(args, tiles, warp);
  int sent = 0;
  const auto fill = [&](const StepUnits& units) {
    for (; sent < kRingRounds && rounds.HasNext(units); ++sent) {
      rounds.Copy(ring + rounds.Place() + sent * kRoundSize);
    }
  };
  fill(StepUnits::OfShared(args));
  AwaitInputs<Successors::kBehindInputs>();
  FindTiles<Format>(args, shared, reinterpret_cast<double*>(memory + args.scores_at), tiles);
  fill(shared.units);
  for (; sent < kRingRounds; ++sent) EndCopies();  // as many groups as slots
  UnitMultiplier<Format> multiplier(args, shared, tiles, rounds, ring, shared.factors[warp]);
  multiplier.Run();
  multiplier.Leave();
}

}  // namespace foresight::cuda
