// What the kernels that do all experts of a step of few rows in one launch have in common: expert_stream.cuh,
// and expert_slabs.cuh for the fewest.
#pragma once

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/barriers.cuh"
#include "kernels/cuda/product_tile.cuh"
#include "kernels/moe/expert_plan.cuh"
#include "kernels/moe/swiglu.cuh"

namespace foresight::cuda {

constexpr int kStreamColumns = 8;  // rows of the step that share a unit's weights, at most
constexpr int kUnitRows = 32;      // of weights: of w2, or half as many of w1 and of w3

// Tiles are numbered from the shared expert's on. D and I are multiples of 128.
struct StreamArgs {
  const ExpertWeights* experts;
  ExpertWeights shared;
  ExpertPlan plan;
  int num_experts;
  int rows;
  int slots;
  int dim;
  int intermediate;
  int shared_tiles;
  int max_tiles;      // of the routed experts
  int span;           // units in a row that are one thread block's: an item
  int turn_units;     // of an item of each thread block: from the host, since gridDim would keep a register
  int units[2];       // of a tile: of w1 and w3, and of w2
  int item_units[2];  // as many as its items could have
  Swiglu swiglu;
  // Where pairs are few, thread blocks route, plan and prepare the rows by themselves, each all of it.
  bool plans;
  bool routes;
  RouterArgs router;
  const int32_t* ids;  // [rows, slots]
  PlainRows x;
  int rows_at;    // in shared memory: prepared rows for the routed experts, then, unless `one_format`, others
  int scores_at;  // and the router's
  bool one_format;
  const float* weights;   // [rows, slots]
  PreparedRows x_routed;  // [rows]; where thread blocks prepare them, without data
  PreparedRows x_shared;
  float* hidden;            // [pairs, I] activations
  PreparedRows activation;  // [pairs] of them, in the order of the expert's format
  float* y;                 // [pairs, D] the experts' outputs
  float* out;               // their sums; null: left to others
  // Counters, zero at first.
  int* units_of_block;  // [tiles, blocks of I] finished units of w1 and w3
  int* ready_blocks;    // [tiles] prepared ones
  int* outputs;         // [D / 32] finished units of w2
  int* watchers;        // [1] thread blocks that know of all activations; unless null, all are left at zero

  __device__ int Cols(bool is_down) const { return is_down ? intermediate : dim; }
};

// What a thread block finds by itself of a step of few pairs.
struct FewPairs {
  int32_t list[2 * kFewPairs];
  int32_t rows[2 * kFewPairs];
  ExpertTile tiles[kFewPairs];
  int num_tiles;
  int32_t ids[kFewPairs];
  float weights[kFewPairs];
};

// What a thread block knows of the step.
struct StreamStep {
  ExpertPlan plan;
  const float* weights;  // [rows, slots]
  uint16_t* x[2];        // rows prepared for the routed experts, and for the shared one
  FewPairs few;

  // By the whole thread block, before the inputs are there.
  __device__ void SetUp(const StreamArgs& args, uint8_t* memory) {
    if (threadIdx.x == 0) {
      plan = args.plan;
      weights = args.weights;
      x[0] = args.x_routed.data;
      x[1] = args.x_shared.data;
      if (args.plans) {
        plan.list = few.list;
        plan.rows = few.rows;
        plan.tiles = few.tiles;
        plan.num_tiles = &few.num_tiles;
        if (args.routes) weights = few.weights;
        x[0] = x[1] = reinterpret_cast<uint16_t*>(memory + args.rows_at);
        if (!args.one_format) x[1] += args.rows * args.x_routed.stride();
      }
    }
    // Where the experts' weights are is known a little sooner.
    constexpr int kLine = 128;
    const int line = static_cast<int>(blockIdx.x + gridDim.x * threadIdx.x);
    if (line * kLine < args.num_experts * static_cast<int>(sizeof(ExpertWeights))) {
      PrefetchL2(reinterpret_cast<const uint8_t*>(args.experts) + line * kLine);
    }
  }

  // By kRouterThreads threads, or one warp if nothing is to be routed, whose numbers are `thread`: which
  // experts the rows have, and what their tiles are.
  template <int kBarrier>
  __device__ void Plan(const StreamArgs& args, int thread, double* scores) {
    const int pairs = args.rows * args.slots;
    if (args.routes) {
      RouterArgs router = args.router;
      router.ids = few.ids;
      router.weights = few.weights;
      // Few experts are each row's other warps'.
#pragma unroll 1
      for (int row = 0; row < args.rows; ++row) {
        ScoreRow(router, row, (thread + kRouterThreads - row % 8 * 32) % kRouterThreads,
                 ScoresOf(scores, row, args.num_experts));
      }
      GroupBarrier<kBarrier>(kRouterThreads);
#pragma unroll 1
      for (int row = thread / 32; row < args.rows; row += kRouterThreads / 32) {
        SelectExperts(router, row, ScoresOf(scores, row, args.num_experts));
      }
      GroupBarrier<kBarrier>(kRouterThreads);
      if (blockIdx.x == 0 && thread < pairs) {
        args.router.ids[thread] = few.ids[thread];
        args.router.weights[thread] = few.weights[thread];
      }
    }
    if (thread >= 32) return;
    const int32_t* ids = args.routes ? few.ids : args.ids;
    PlanFewPairs(thread < pairs ? ids[thread] : -1, pairs, args.slots, kStreamColumns, plan);
  }

  // The step's rows for all of the thread block, by `warps` of its warps.
  template <typename Format>
  __device__ void PrepareRows(const StreamArgs& args, int warp, int warps) const {
    const int blocks = args.dim / kBlockK;
    const int lane = threadIdx.x % 32;
    const int end = args.rows * blocks;
    for (int i = warp; i < end; i += warps) {  // all on their way at once
      if (lane < 4) Touch(args.x.x + i * kBlockK + lane * 32);
    }
    const auto prepare = [&]<typename F>(int row, int block, bool of_shared) {
      LaneValues values;
      values.Load<F>(args.x, row, block, args.dim);
      StoreBlock<F>(values, PreparedRows{x[of_shared], args.dim, false, true}, row, block);
    };
#pragma unroll 1
    for (int i = warp; i < end; i += warps) {
      const int row = i / blocks;
      const int block = i - row * blocks;
      if (!args.one_format) prepare.template operator()<Fp8Weights>(row, block, true);
      prepare.template operator()<Format>(row, block, false);
    }
  }
};

// A lane's values of a block of one column: of eight steps, two in each.
struct LaneColumn {
  uint4 values[kBlockSteps / 2];

  __device__ void Load(const uint16_t* from, int pair) {
    values[pair] = *reinterpret_cast<const uint4*>(from + pair * 32);
  }
};

// A block of the activations of `count` pairs, pair_of(0), pair_of(1), ..., by a warp.
template <typename Format, typename PairOf>
__device__ inline void PrepareActivation(const StreamArgs& args, int count, int block,
                                         const PairOf& pair_of) {
  constexpr int kBatch = 2;  // as many loads at once
  // Of one term, which the compiler could not know.
  const PreparedRows to = {args.activation.data, args.activation.padded, false, true};
  const auto source = [&](int64_t pair, int64_t i) {
    return __ldcg(args.hidden + pair * args.intermediate + i);
  };
  for (int begin = 0; begin < count; begin += kBatch) {
    LaneValues values[kBatch];
    int pairs[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      pairs[i] = pair_of(min(begin + i, count - 1));
      values[i].template Load<Format>(source, pairs[i], block, args.intermediate);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (begin + i >= count) break;
      StoreBlock<Format>(values[i], to, pairs[i], block);
    }
  }
}

// From output `first` on, of every row the slots' outputs in their order, then the shared expert's, by a
// warp: two neighbours a lane, and two rows at once.
__device__ inline void CombineUnit(const StreamArgs& args, int first) {
  constexpr int kTogether = 6;  // slots whose loads are sent for at once
  constexpr int kLanes = kUnitRows / 2;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int output = first + lane % kLanes * 2;
  const auto load = [&](int pair) {
    return __ldcg(reinterpret_cast<const float2*>(args.y + int64_t{pair} * args.dim + output));
  };
  for (int row = lane / kLanes; row < args.rows; row += 32 / kLanes) {
    float2 last = {};
    if (args.shared_tiles != 0) last = load(args.rows * args.slots + row);
    float2 sum = {};
    for (int slot = 0; slot < args.slots; slot += kTogether) {
      float2 y[kTogether];
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        if (slot + k < args.slots) y[k] = load(row * args.slots + slot + k);
      }
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        if (slot + k >= args.slots) break;
        sum.x += y[k].x;
        sum.y += y[k].y;
      }
    }
    *reinterpret_cast<float2*>(args.out + int64_t{row} * args.dim + output) = {RoundBf16(sum.x + last.x),
                                                                               RoundBf16(sum.y + last.y)};
  }
}

// By a warp of a thread block that knows of all activations: the last one knows that nobody needs the
// counters any more.
__device__ inline void LeaveCounters(const StreamArgs& args) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  int before = 0;
  if (lane == 0) before = atomicAdd(args.watchers, 1);
  if (__shfl_sync(0xffffffff, before, 0) != static_cast<int>(gridDim.x) - 1) return;
  const int tiles = args.shared_tiles + args.max_tiles;
  for (int i = lane; i < tiles * (args.intermediate / kBlockK); i += 32) args.units_of_block[i] = 0;
  for (int i = lane; i < tiles; i += 32) args.ready_blocks[i] = 0;
  if (lane == 0) *args.watchers = 0;
}

}  // namespace foresight::cuda
