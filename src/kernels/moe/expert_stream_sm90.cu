#include <algorithm>
#include <type_traits>

#include "kernels/cuda/launch.cuh"
#include "kernels/moe/expert_slabs.cuh"
#include "kernels/moe/expert_stream.cuh"
#include "kernels/moe/expert_stream.h"

namespace foresight::cuda {
namespace {

constexpr int kCombinedRows = 8;  // of a step that the streaming kernel adds up by itself

int SharedTiles(const MoeArgs& args) {
  return args.HasShared() ? static_cast<int>(CeilDiv(args.rows, kStreamColumns)) : 0;
}

// How thread blocks stream: with units of their own for all warps, or with slabs that these share.
struct StreamInUnits {
  static constexpr int kThreads = kStreamThreads;

  template <typename Format>
  static constexpr auto* kKernel = ExpertStreamKernel<Format>;
  static size_t SharedBytes(const MoeArgs& args) {
    return sizeof(StreamShared) + (SharedTiles(args) + MaxTiles(args, kStreamColumns)) * sizeof(StreamTile);
  }
};
struct StreamInSlabs {
  static constexpr int kThreads = kSlabThreads;

  template <typename Format>
  static constexpr auto* kKernel = ExpertSlabKernel<Format>;
  static size_t SharedBytes(const MoeArgs& args) {
    return sizeof(SlabShared) + (SharedTiles(args) + MaxTiles(args, kStreamColumns)) * sizeof(SlabTile);
  }
};
// Of a step that has too few units for all warps, and whose units would take one warp too long.
constexpr int kSlabRows = 2;

constexpr size_t kBlockSharedBytes = size_t{227} << 10;  // of sm_90

// What the streaming kernel routes, plans and prepares rows with. Returns how many bytes of shared memory
// that makes of `bytes`.
template <typename Format>
size_t AddPlan(const MoeArgs& args, size_t bytes, StreamArgs& stream) {
  const auto align = [](size_t at) { return (at + 15) / 16 * 16; };
  stream.routes = args.router != nullptr;
  if (stream.routes) stream.router = *args.router;
  stream.ids = args.ids;
  stream.x = {args.x, args.dim};
  stream.x_routed.padded = args.dim;
  stream.x_routed.half = Format::kHalf;
  stream.rows_at = static_cast<int>(align(bytes));
  const int64_t values = args.rows * stream.x_routed.stride() * (stream.one_format ? 1 : 2);
  stream.scores_at = static_cast<int>(align(stream.rows_at + values * sizeof(uint16_t)));
  return stream.scores_at + (stream.routes ? args.rows * RouterSharedBytes(stream.num_experts) : 0);
}

// One launch for all products.
template <typename Format, typename Shape>
ExpertOutputs Stream(const KernelContext& ctx, const MoeArgs& args) {
  const int pairs = args.rows * args.experts_per_token;
  const int shared_tiles = SharedTiles(args);
  const int max_tiles = MaxTiles(args, kStreamColumns);
  StreamArgs stream = {};
  stream.experts = args.experts.data();
  stream.shared = args.shared;
  stream.num_experts = static_cast<int>(args.experts.size());
  stream.rows = args.rows;
  stream.slots = args.experts_per_token;
  stream.dim = args.dim;
  stream.intermediate = args.intermediate;
  stream.shared_tiles = shared_tiles;
  stream.max_tiles = max_tiles;
  // Neighbours share columns, but may leave thread blocks without work at the end.
  stream.span = args.rows == 1 ? 1 : args.rows == 2 ? 2 : args.rows <= 8 ? 4 : kStreamWarps;
  stream.turn_units = DeviceOf(ctx).num_sms() * stream.span;
  stream.units[0] = 2 * args.intermediate / kUnitRows;
  stream.units[1] = args.dim / kUnitRows;
  for (int i = 0; i < 2; ++i) {
    stream.item_units[i] = static_cast<int>(CeilDiv(stream.units[i], stream.span)) * stream.span;
  }
  stream.swiglu = {args.swiglu_limit, /*faithful=*/true};
  stream.weights = args.weights;
  stream.one_format = std::is_same_v<Format, Fp8Weights> || !args.HasShared();
  const int tiles = shared_tiles + max_tiles;
  const int blocks = args.intermediate / kBlockK;
  const int counters = tiles * (blocks + 1) + stream.units[1];
  size_t shared_bytes = Shape::SharedBytes(args);
  const size_t with_plan = AddPlan<Format>(args, shared_bytes, stream);
  if (pairs <= kFewPairs && with_plan <= kBlockSharedBytes && counters < CudaQueue::kZeros) {
    shared_bytes = with_plan;
    stream.plans = true;
    stream.watchers = DeviceOf(ctx).zeros();
    stream.units_of_block = stream.watchers + 1;
  } else {
    stream.plan = AllocatePlan(ctx, args, max_tiles, counters);
    stream.units_of_block = stream.plan.counters;
    stream.x_routed = AllocateRows<Format>(ctx, args.rows, args.dim);
    stream.x_shared =
        stream.one_format ? stream.x_routed : AllocateRows<Fp8Weights>(ctx, args.rows, args.dim);
    LaunchPlan<Format>(ctx, args, kStreamColumns, stream.plan, stream.x_routed,
                       stream.one_format ? PreparedRows{} : stream.x_shared);
  }
  stream.ready_blocks = stream.units_of_block + tiles * blocks;
  stream.outputs = stream.ready_blocks + tiles;

  const int64_t all = pairs + args.rows;
  stream.hidden = ctx.scratch->Allocate<float>(all * args.intermediate);
  stream.activation = AllocateRows<Format>(ctx, all, args.intermediate);
  stream.y = ctx.scratch->Allocate<float>(all * args.dim);
  stream.out = args.rows <= kCombinedRows ? args.out : nullptr;
  Launch(ctx, Shape::template kKernel<Format>, DeviceOf(ctx).num_sms(), Shape::kThreads, shared_bytes,
         stream);
  if (stream.out != nullptr) return {};
  return {stream.y, args.HasShared() ? stream.y + int64_t{pairs} * args.dim : nullptr};
}

template <typename Format>
ExpertOutputs StreamAs(const KernelContext& ctx, const MoeArgs& args) {
  return args.rows <= kSlabRows ? Stream<Format, StreamInSlabs>(ctx, args)
                                : Stream<Format, StreamInUnits>(ctx, args);
}

// Of an expert, up to which most have no more rows than an item of the streaming kernel.
constexpr int64_t kStreamPairs = 4;

}  // namespace

bool CanStreamExperts(const KernelContext& ctx, const MoeArgs& args) {
  const int64_t pairs = int64_t{args.rows} * args.experts_per_token;
  return ctx.faithful() && DeviceOf(ctx).capability() >= 90 && args.dim % kBlockK == 0 &&
         args.intermediate % kBlockK == 0 &&
         pairs <= kStreamPairs * static_cast<int64_t>(args.experts.size()) &&
         pairs + args.rows <= kMostStreamPairs && StreamInUnits::SharedBytes(args) <= kBlockSharedBytes;
}

ExpertOutputs StreamExperts(const KernelContext& ctx, const MoeArgs& args) {
  return args.expert_dtype == DType::kI8 ? StreamAs<Mxfp4Weights>(ctx, args)
                                         : StreamAs<Fp8Weights>(ctx, args);
}

}  // namespace foresight::cuda
