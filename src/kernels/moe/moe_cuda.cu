#include <algorithm>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/product.cuh"
#include "kernels/moe/expert_plan.cuh"
#include "kernels/moe/expert_stream.h"
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
  static constexpr bool HasShape(int tile_rows, int tile_columns) {
    return tile_rows == 32 || tile_columns < 32;  // SkinnyShape with tall = true
  }

  const ExpertWeights* experts;
  ExpertPlan plan;
  PreparedRows x;
  int pairs_per_row;  // of x
  int rows;           // of one weight
  bool is_down;
  OutputType output;
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
    tile.output = output;
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

ProductShape ChooseShape(const KernelContext& ctx, bool split, int64_t pairs, int64_t num_experts) {
  if (split || pairs > kTiledPairs * num_experts) return kTiledShape;
  return SkinnyShape(ctx, /*tall=*/true, pairs <= 4 * num_experts ? 8 : pairs <= 12 * num_experts ? 16 : 32);
}

template <typename Format>
void RoutedExperts(const KernelContext& ctx, const MoeArgs& args, float* routed) {
  const int pairs = args.rows * args.experts_per_token;
  const bool faithful = ctx.faithful();
  const InputNumerics numerics = {.quantize = faithful, .split = !faithful};
  const ProductShape shape =
      ChooseShape(ctx, numerics.split, pairs, static_cast<int64_t>(args.experts.size()));
  const int max_tiles = MaxTiles(args, shape.tile_columns);
  const ExpertPlan plan = AllocatePlan(ctx, args, max_tiles, 0);
  const PreparedRows x = AllocateRows<Format>(ctx, args.rows, args.dim, numerics.split);
  LaunchPlan<Format>(ctx, args, shape.tile_columns, plan, x, {});

  float* gate = ctx.scratch->Allocate<float>(int64_t{pairs} * args.intermediate);
  float* up = ctx.scratch->Allocate<float>(int64_t{pairs} * args.intermediate);
  ExpertTasks tasks = {
      .experts = args.experts.data(),
      .plan = plan,
      .x = x,
      .pairs_per_row = args.experts_per_token,
      .rows = args.intermediate,
      .is_down = false,
      .output = faithful ? OutputType::kRounded : OutputType::kFloat32,
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

// Rows of a step from which on warpgroup products are faster than streaming MXFP4, however few of an
// expert's they are.
constexpr int kWideRows = 128;
// The same where an expert's weights are so few values each that there is little to stream.
constexpr int kWideRowsOfSmall = 5;
constexpr int64_t kSmallWeight = int64_t{1} << 18;

template <typename Format>
void Experts(const KernelContext& ctx, const MoeArgs& args) {
  const bool streams = CanStreamExperts(ctx, args);
  const bool is_small = int64_t{args.dim} * args.intermediate <= kSmallWeight;
  const bool prefers_wide =
      Format::kDType == DType::kI8 && args.rows >= (is_small ? kWideRowsOfSmall : kWideRows);
  if (HasWideExperts(ctx, args) && (prefers_wide || !streams)) {
    Wide(ctx, args);
  } else if (streams) {
    const ExpertOutputs y = StreamExperts(ctx, args);
    if (y.routed != nullptr) Combine(ctx, args, y.routed, y.shared);
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
