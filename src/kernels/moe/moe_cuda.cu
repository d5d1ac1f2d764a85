#include <algorithm>
#include <type_traits>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/product.cuh"
#include "kernels/moe/expert_plan.cuh"
#include "kernels/moe/expert_slabs.cuh"
#include "kernels/moe/expert_stream.cuh"
#include "kernels/moe/expert_wide.h"
#include "kernels/moe/swiglu.cuh"

namespace foresight::cuda {
namespace {

__global__ void __launch_bounds__(kRouterThreads) RouterKernel(RouterArgs args) {
  AwaitInputs();
  RouteRow(args, blockIdx.x);
}

// Products of every expert with its pairs: w1 and w3 with the pair's row of x, or w2 with the pair's
// activation.
struct ExpertTasks {
  static constexpr bool kKnownBeforehand = false;  // the plan

  const ExpertWeights* experts;
  ExpertPlan plan;
  PreparedRows x;
  int pairs_per_row;  // of x
  int rows;           // of one weight
  bool is_down;
  bool round_output;
  float* out[2];  // [pairs, rows]: of w1 and w3, or of w2

  __device__ int ColumnTiles(int) const { return *plan.num_tiles; }
  __device__ bool Get(int row_tile, int column_tile, int tile_rows, int, ProductTile& tile) const {
    const ExpertTile columns = plan.tiles[column_tile];  // garbage behind the end; read beside the number
    if (column_tile >= *plan.num_tiles) return false;
    const int tiles_per_weight = (rows + tile_rows - 1) / tile_rows;
    const int which = row_tile / tiles_per_weight;
    const ExpertWeights& expert = experts[columns.expert];
    const MatrixView& w = is_down ? expert.w2 : which == 0 ? expert.w1 : expert.w3;
    tile.weights = reinterpret_cast<const uint8_t*>(w.data);
    tile.scales = w.scales;
    tile.scale_cols = w.dtype == DType::kI8 ? w.cols / 32 : (w.cols + 127) / 128;
    tile.row = int64_t{row_tile - which * tiles_per_weight} * tile_rows;
    tile.row_end = rows;
    tile.x = x.data;
    tile.x_stride = x.stride();
    tile.id_divisor = pairs_per_row;
    tile.ids = plan.list + columns.begin;
    tile.first_id = 0;
    tile.columns = columns.count;
    tile.out = which == 0 ? out[0] : out[1];
    tile.out_stride = rows;
    tile.round_output = round_output;
    tile.plain_x = nullptr;
    return true;
  }
};

// The activation between the products, from their gate and up.
struct SwigluRows {
  const float* gate;
  const float* up;
  const float* weights;  // of the rows; null: 1
  int64_t width;
  Swiglu swiglu;

  __device__ float operator()(int64_t row, int64_t i) const {
    return swiglu(gate[row * width + i], up[row * width + i], weights != nullptr ? weights[row] : 1.0f);
  }
};

__global__ void SwigluKernel(SwigluRows rows, float* out) {
  AwaitInputs();
  const int64_t i = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (i < rows.width) out[blockIdx.x * rows.width + i] = rows(blockIdx.x, i);
}

// out = the slots' outputs in their order, then the shared expert's [rows, dim], which may be out itself, or
// null.
__global__ void CombineKernel(const float* routed, int slots, const float* shared, int64_t dim, bool faithful,
                              float* out) {
  AwaitInputs();
  const int64_t i = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (i >= dim) return;
  float sum = 0;
  for (int k = 0; k < slots; ++k) sum += routed[(int64_t{blockIdx.x} * slots + k) * dim + i];
  const int64_t at = blockIdx.x * dim + i;
  sum += shared != nullptr ? shared[at] : 0.0f;
  out[at] = faithful ? RoundBf16(sum) : sum;
}

void Combine(const KernelContext& ctx, const MoeArgs& args, const float* routed, const float* shared) {
  Launch(ctx, CombineKernel, dim3(args.rows, CeilDiv(args.dim, 256)), 256, 0, routed, args.experts_per_token,
         shared, args.dim, ctx.faithful(), args.out);
}

// The experts of a step share few rows each, or many.
constexpr int64_t kTiledPairs = 40;  // of an expert, from which on tiles of 64 pay

ProductShape ChooseShape(const KernelContext& ctx, int64_t pairs, int64_t num_experts) {
  if (pairs > kTiledPairs * num_experts) return kTiledShape;
  return SkinnyShape(ctx, /*tall=*/true, pairs <= 4 * num_experts ? 8 : pairs <= 12 * num_experts ? 16 : 32);
}

template <typename Format>
void RoutedExperts(const KernelContext& ctx, const MoeArgs& args, float* routed) {
  const int pairs = args.rows * args.experts_per_token;
  const bool faithful = ctx.faithful();
  const InputNumerics numerics = {.quantize = faithful, .split = !faithful};
  const ProductShape shape = ChooseShape(ctx, pairs, static_cast<int64_t>(args.experts.size()));
  const int max_tiles = MaxTiles(args, shape.tile_columns);
  const ExpertPlan plan = AllocatePlan(ctx, args, max_tiles, 0);
  const PreparedRows x = AllocateRows<Format>(ctx, args.rows, args.dim, numerics.split);
  LaunchPlan<Format>(ctx, args, shape.tile_columns, plan, numerics.quantize, x, {});

  float* gate = ctx.scratch->Allocate<float>(int64_t{pairs} * args.intermediate);
  float* up = ctx.scratch->Allocate<float>(int64_t{pairs} * args.intermediate);
  ExpertTasks tasks = {
      .experts = args.experts.data(),
      .plan = plan,
      .x = x,
      .pairs_per_row = args.experts_per_token,
      .rows = args.intermediate,
      .is_down = false,
      .round_output = faithful,
      .out = {gate, up},
  };
  LaunchProduct<Format>(ctx, shape, numerics.split, tasks, args.dim,
                        2 * CeilDiv(args.intermediate, shape.tile_rows), max_tiles);

  const SwigluRows activation = {gate, up, args.weights, args.intermediate, {args.swiglu_limit, faithful}};
  tasks.x = Prepare<Format>(ctx, activation, pairs, args.intermediate, numerics);
  tasks.pairs_per_row = 1;
  tasks.rows = args.dim;
  tasks.is_down = true;
  tasks.out[0] = routed;
  LaunchProduct<Format>(ctx, shape, numerics.split, tasks, args.intermediate,
                        CeilDiv(args.dim, shape.tile_rows), max_tiles);
}

void SharedExpert(const KernelContext& ctx, const MoeArgs& args) {
  ArenaScope scope(*ctx.scratch);
  float* gate = ctx.scratch->Allocate<float>(int64_t{args.rows} * args.intermediate);
  float* up = ctx.scratch->Allocate<float>(int64_t{args.rows} * args.intermediate);
  const LinearTarget in[] = {{.w = args.shared.w1, .out = gate}, {.w = args.shared.w3, .out = up}};
  LinearInOneSum(ctx, {.rows = args.rows, .x = args.x, .targets = in});
  const SwigluRows activation = {gate, up, nullptr, args.intermediate, {args.swiglu_limit, ctx.faithful()}};
  Launch(ctx, SwigluKernel, dim3(args.rows, CeilDiv(args.intermediate, 256)), 256, 0, activation, gate);
  const LinearTarget down[] = {{.w = args.shared.w2, .out = args.out}};
  LinearInOneSum(ctx, {.rows = args.rows, .x = gate, .targets = down});
}

// One launch per product: for experts with many rows each, and for GPUs before sm_90.
template <typename Format>
void ByProduct(const KernelContext& ctx, const MoeArgs& args) {
  if (args.HasShared()) SharedExpert(ctx, args);
  float* routed = ctx.scratch->Allocate<float>(int64_t{args.rows} * args.experts_per_token * args.dim);
  RoutedExperts<Format>(ctx, args, routed);
  Combine(ctx, args, routed, args.HasShared() ? args.out : nullptr);
}

void Wide(const KernelContext& ctx, const MoeArgs& args) {
  if (args.HasShared()) SharedExpert(ctx, args);
  WideExperts(ctx, args, args.HasShared() ? args.out : nullptr);
}

constexpr int kCombinedRows = 8;  // of a step that the streaming kernel adds up by itself

int SharedTiles(const MoeArgs& args) {
  return args.HasShared() ? static_cast<int>(CeilDiv(args.rows, kStreamColumns)) : 0;
}

// How thread blocks stream: with units of their own for all warps, or with slabs that these share.
struct StreamInUnits {
  static constexpr int kThreads = kStreamThreads;

  template <typename Format>
  static auto* Kernel(bool faithful) {
    return faithful ? ExpertStreamKernel<Format, false> : ExpertStreamKernel<Format, true>;
  }
  static size_t SharedBytes(const MoeArgs& args) {
    return sizeof(StreamShared) + (SharedTiles(args) + MaxTiles(args, kStreamColumns)) * sizeof(StreamTile);
  }
};
struct StreamInSlabs {
  static constexpr int kThreads = kSlabThreads;

  template <typename Format>
  static auto* Kernel(bool faithful) {
    return faithful ? ExpertSlabKernel<Format, false> : ExpertSlabKernel<Format, true>;
  }
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
size_t AddPlan(const MoeArgs& args, bool faithful, size_t bytes, StreamArgs& stream) {
  const auto align = [](size_t at) { return (at + 15) / 16 * 16; };
  stream.routes = args.router != nullptr;
  if (stream.routes) stream.router = *args.router;
  stream.ids = args.ids;
  stream.x = {args.x, args.dim};
  stream.x_routed.padded = args.dim;
  stream.x_routed.split = !faithful;
  stream.x_routed.half = Format::kHalf;
  stream.rows_at = static_cast<int>(align(bytes));
  const int64_t values = args.rows * stream.x_routed.stride() * (stream.one_format ? 1 : 2);
  stream.scores_at = static_cast<int>(align(stream.rows_at + values * sizeof(uint16_t)));
  return stream.scores_at + (stream.routes ? args.rows * RouterSharedBytes(stream.num_experts) : 0);
}

// One launch for all products.
template <typename Format, typename Shape>
void Stream(const KernelContext& ctx, const MoeArgs& args) {
  const int pairs = args.rows * args.experts_per_token;
  const bool faithful = ctx.faithful();
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
  stream.units[0] = 2 * args.intermediate / kUnitRows;
  stream.units[1] = args.dim / kUnitRows;
  for (int i = 0; i < 2; ++i) {
    stream.item_units[i] = static_cast<int>(CeilDiv(stream.units[i], stream.span)) * stream.span;
  }
  stream.swiglu = {args.swiglu_limit, faithful};
  stream.weights = args.weights;
  stream.one_format = std::is_same_v<Format, Fp8Weights> || !args.HasShared();
  const int tiles = shared_tiles + max_tiles;
  const int blocks = args.intermediate / kBlockK;
  const int counters = tiles * (blocks + 1) + stream.units[1];
  size_t shared_bytes = Shape::SharedBytes(args);
  const size_t with_plan = AddPlan<Format>(args, faithful, shared_bytes, stream);
  if (pairs <= kFewPairs && with_plan <= kBlockSharedBytes && counters < CudaQueue::kZeros) {
    shared_bytes = with_plan;
    stream.plans = true;
    stream.watchers = DeviceOf(ctx).zeros();
    stream.units_of_block = stream.watchers + 1;
  } else {
    stream.plan = AllocatePlan(ctx, args, max_tiles, counters);
    stream.units_of_block = stream.plan.counters;
    stream.x_routed = AllocateRows<Format>(ctx, args.rows, args.dim, !faithful);
    stream.x_shared =
        stream.one_format ? stream.x_routed : AllocateRows<Fp8Weights>(ctx, args.rows, args.dim, !faithful);
    LaunchPlan<Format>(ctx, args, kStreamColumns, stream.plan, faithful, stream.x_routed,
                       stream.one_format ? PreparedRows{} : stream.x_shared);
  }
  stream.ready_blocks = stream.units_of_block + tiles * blocks;
  stream.outputs = stream.ready_blocks + tiles;

  const int64_t all = pairs + args.rows;
  stream.hidden = ctx.scratch->Allocate<float>(all * args.intermediate);
  stream.activation = AllocateRows<Format>(ctx, all, args.intermediate, !faithful);
  stream.y = ctx.scratch->Allocate<float>(all * args.dim);
  stream.out = args.rows <= kCombinedRows ? args.out : nullptr;
  auto* kernel = Shape::template Kernel<Format>(faithful);
  Launch(ctx, kernel, DeviceOf(ctx).num_sms(), Shape::kThreads, shared_bytes, stream);
  if (stream.out != nullptr) return;
  Combine(ctx, args, stream.y, args.HasShared() ? stream.y + int64_t{pairs} * args.dim : nullptr);
}

// Of an expert, up to which most have no more rows than an item of the streaming kernel.
constexpr int64_t kStreamPairs = 4;

// Whether the streaming kernel takes so many rows, and such ones.
bool CanStream(const KernelContext& ctx, const MoeArgs& args) {
  const int64_t pairs = int64_t{args.rows} * args.experts_per_token;
  return DeviceOf(ctx).capability() >= 90 && args.dim % kBlockK == 0 && args.intermediate % kBlockK == 0 &&
         pairs <= kStreamPairs * static_cast<int64_t>(args.experts.size()) &&
         pairs + args.rows <= kMostStreamPairs && StreamInUnits::SharedBytes(args) <= kBlockSharedBytes;
}

// Rows of a step from which on warpgroup products are faster than streaming MXFP4, however few of an
// expert's they are.
constexpr int kWideRows = 128;
// The same where an expert's weights are so few values each that there is little to stream.
constexpr int kWideRowsOfSmall = 5;
constexpr int64_t kSmallWeight = int64_t{1} << 18;

template <typename Format>
void Experts(const KernelContext& ctx, const MoeArgs& args) {
  const bool streams = CanStream(ctx, args);
  const bool is_small = int64_t{args.dim} * args.intermediate <= kSmallWeight;
  const bool prefers_wide =
      Format::kDType == DType::kI8 && args.rows >= (is_small ? kWideRowsOfSmall : kWideRows);
  if (HasWideExperts(ctx, args) && (prefers_wide || !streams)) {
    Wide(ctx, args);
  } else if (streams) {
    auto* stream = args.rows <= kSlabRows ? Stream<Format, StreamInSlabs> : Stream<Format, StreamInUnits>;
    stream(ctx, args);
  } else {
    ByProduct<Format>(ctx, args);
  }
}

// Bounds the scratch that long steps take: a piece of this many rows keeps every expert busy.
constexpr int kPieceRows = 1024;

// Where longer ones are faster: at most so many rows, if scratch allows.
constexpr int kWidePieceRows = 4096;

// Of pieces of one length.
int PieceRows(const KernelContext& ctx, const MoeArgs& args) {
  if (!HasWideExperts(ctx, args)) return kPieceRows;
  constexpr int64_t kBytes = int64_t{448} << 20;
  MoeArgs piece = args;
  for (int64_t pieces = std::max(CeilDiv(args.rows, kWidePieceRows), 1u);; ++pieces) {
    piece.rows = static_cast<int>(CeilDiv(args.rows, pieces));
    if (piece.rows <= kPieceRows || WideExpertsBytes(piece) <= kBytes) return std::max(piece.rows, 1);
  }
}

void Piece(const KernelContext& ctx, const MoeArgs& args) {
  ArenaScope scope(*ctx.scratch);
  if (args.expert_dtype == DType::kI8) {
    Experts<Mxfp4Weights>(ctx, args);
  } else {
    Experts<Fp8Weights>(ctx, args);
  }
}

}  // namespace

void Router(const KernelContext& ctx, const RouterArgs& args) {
  CHECK(args.experts_per_token <= args.num_experts);
  Launch(ctx, RouterKernel, args.rows, kRouterThreads, RouterSharedBytes(args.num_experts), args);
}

void Moe(const KernelContext& ctx, const MoeArgs& args) {
  CHECK(args.expert_dtype == DType::kI8 || args.expert_dtype == DType::kF8E4M3);
  CHECK(!args.HasShared() || args.shared.w1.dtype == DType::kF8E4M3);
  CHECK(args.dim % 32 == 0 && args.intermediate % 32 == 0);  // rows for 16-byte loads
  const int piece_rows = PieceRows(ctx, args);
  const bool whole = args.rows <= piece_rows;
  if (args.router != nullptr && !whole) Router(ctx, *args.router);
  for (int begin = 0; begin < args.rows; begin += piece_rows) {
    MoeArgs piece = args;
    if (!whole) piece.router = nullptr;
    piece.rows = std::min(piece_rows, args.rows - begin);
    piece.x += int64_t{begin} * args.dim;
    piece.ids += int64_t{begin} * args.experts_per_token;
    piece.weights += int64_t{begin} * args.experts_per_token;
    piece.out += int64_t{begin} * args.dim;
    Piece(ctx, piece);
  }
}

}  // namespace foresight::cuda
