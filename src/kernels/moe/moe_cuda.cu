#include <algorithm>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/product.cuh"

namespace foresight::cuda {
namespace {

// Router: in float64 like the definition, so that both select the same experts.

constexpr int kRouterThreads = 256;

__device__ double Score(double z) {
  return sqrt(z > 20 ? z : log1p(exp(z)));
}

// In the order of the values, as an integer; NaN is 0, below everything.
__device__ uint64_t OrderedBits(double x) {
  const uint64_t bits = static_cast<uint64_t>(__double_as_longlong(x));
  if (x != x) return 0;
  return bits >> 63 != 0 ? ~bits : bits | uint64_t{1} << 63;
}

// Who of a warp has the highest value, of those the lowest id; num_experts if all are 0.
__device__ int BestOfWarp(uint64_t value, int id, int num_experts) {
  const uint32_t high = __reduce_max_sync(0xffffffff, static_cast<uint32_t>(value >> 32));
  const bool leads = value >> 32 == high;
  const uint32_t low = __reduce_max_sync(0xffffffff, leads ? static_cast<uint32_t>(value) : 0);
  const bool is_best = leads && static_cast<uint32_t>(value) == low && value != 0;
  return static_cast<int>(__reduce_min_sync(0xffffffff, static_cast<unsigned>(is_best ? id : num_experts)));
}

// One thread block per row: a thread per score, then one warp selects. Shared memory: the scores, and the
// biased ones in order.
__global__ void __launch_bounds__(kRouterThreads) RouterKernel(RouterArgs args) {
  AwaitInputs();
  extern __shared__ double scores[];
  uint64_t* biased = reinterpret_cast<uint64_t*>(scores + args.num_experts);
  const int64_t row = blockIdx.x;
  const int k = args.experts_per_token;
  for (int e = threadIdx.x; e < args.num_experts; e += kRouterThreads) {
    const double score = Score(args.logits[row * args.num_experts + e]);
    scores[e] = score;
    biased[e] = OrderedBits(score + (args.bias.data != nullptr ? VectorValue(args.bias, e) : 0.0f));
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const int lane = threadIdx.x;
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

// Columns [begin, begin + count) of the list, all of one expert.
struct ExpertTile {
  int expert;
  int begin;
  int count;
};

// The (row, slot) pairs by expert, and within one in their own order: list [pairs], and the tiles of at most
// tile_columns that cover it. One thread block; a thread per expert.
struct ExpertPlan {
  int32_t* list;
  ExpertTile* tiles;
  int* num_tiles;
};

__global__ void PlanKernel(const int32_t* ids, int pairs, int num_experts, int tile_columns,
                           ExpertPlan plan) {
  AwaitInputs();
  constexpr int kStaged = 4096;
  extern __shared__ int counts[];
  __shared__ int4 staged[kStaged / 4];
  for (int e = threadIdx.x; e < num_experts; e += blockDim.x) counts[e] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < pairs; i += blockDim.x) atomicAdd(&counts[ids[i]], 1);
  __syncthreads();
  // The loop's bounds are the same for all threads: they stage ids together.
  for (int base = 0; base < num_experts; base += blockDim.x) {
    const int e = base + threadIdx.x;
    int at = 0;
    int tile = 0;
    for (int other = 0; other < e && other < num_experts; ++other) {
      at += counts[other];
      tile += (counts[other] + tile_columns - 1) / tile_columns;
    }
    if (e < num_experts) {
      for (int done = 0; done < counts[e]; done += tile_columns) {
        plan.tiles[tile++] = {e, at + done, min(tile_columns, counts[e] - done)};
      }
      if (e == num_experts - 1) *plan.num_tiles = tile;
    }
    for (int begin = 0; begin < pairs; begin += kStaged) {
      __syncthreads();
      for (int i = threadIdx.x; i < kStaged && begin + i < (pairs + 3) / 4 * 4; i += blockDim.x) {
        reinterpret_cast<int*>(staged)[i] = begin + i < pairs ? ids[begin + i] : -1;
      }
      __syncthreads();
      if (e >= num_experts) continue;
      const int quads = (min(kStaged, pairs - begin) + 3) / 4;
      for (int q = 0; q < quads; ++q) {
        const int4 four = staged[q];
        if (four.x == e) plan.list[at++] = begin + 4 * q;
        if (four.y == e) plan.list[at++] = begin + 4 * q + 1;
        if (four.z == e) plan.list[at++] = begin + 4 * q + 2;
        if (four.w == e) plan.list[at++] = begin + 4 * q + 3;
      }
    }
  }
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
  float limit;
  bool faithful;

  __device__ float operator()(int64_t row, int64_t i) const {
    float g = gate[row * width + i];
    float u = up[row * width + i];
    if (limit > 0) {
      g = g > limit ? limit : g;  // no lower bound
      u = u > limit ? limit : u < -limit ? -limit : u;
    }
    const float a = (weights != nullptr ? weights[row] : 1.0f) * (g / (1.0f + expf(-g)) * u);
    return faithful ? RoundBf16(a) : a;
  }
};

__global__ void SwigluKernel(SwigluRows rows, float* out) {
  AwaitInputs();
  const int64_t i = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (i < rows.width) out[blockIdx.x * rows.width + i] = rows(blockIdx.x, i);
}

// out = the slots' outputs in their order, then the shared expert's, which is there already.
__global__ void CombineKernel(const float* routed, int slots, int64_t dim, bool faithful, float* out) {
  AwaitInputs();
  const int64_t i = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (i >= dim) return;
  float sum = 0;
  for (int k = 0; k < slots; ++k) sum += routed[(int64_t{blockIdx.x} * slots + k) * dim + i];
  float* to = out + blockIdx.x * dim + i;
  const float y = sum + *to;
  *to = faithful ? RoundBf16(y) : y;
}

// The experts of a step share few rows each, or many.
ProductShape ChooseShape(const KernelContext& ctx, int64_t pairs, int64_t num_experts) {
  if (pairs > 40 * num_experts) return kTiledShape;
  return SkinnyShape(ctx, /*tall=*/true, pairs <= 4 * num_experts ? 8 : pairs <= 12 * num_experts ? 16 : 32);
}

template <typename Format>
void RoutedExperts(const KernelContext& ctx, const MoeArgs& args, float* routed) {
  const int pairs = args.rows * args.experts_per_token;
  const int num_experts = static_cast<int>(args.experts.size());
  const bool faithful = ctx.faithful();
  const InputNumerics numerics = {.quantize = faithful, .split = !faithful};
  const ProductShape shape = ChooseShape(ctx, pairs, num_experts);
  // An expert with any rows has at most one tile that isn't full.
  const unsigned max_tiles =
      static_cast<unsigned>(std::min(pairs, std::min(pairs, num_experts) + pairs / shape.tile_columns));
  const ExpertPlan plan = {.list = ctx.scratch->Allocate<int32_t>(pairs),
                           .tiles = ctx.scratch->Allocate<ExpertTile>(max_tiles),
                           .num_tiles = ctx.scratch->Allocate<int>(1)};
  Launch(ctx, PlanKernel, 1, std::min(1024, std::max(64, (num_experts + 31) / 32 * 32)),
         num_experts * sizeof(int), args.ids, pairs, num_experts, shape.tile_columns, plan);

  float* gate = ctx.scratch->Allocate<float>(int64_t{pairs} * args.intermediate);
  float* up = ctx.scratch->Allocate<float>(int64_t{pairs} * args.intermediate);
  ExpertTasks tasks = {
      .experts = args.experts.data(),
      .plan = plan,
      .x = Prepare<Format>(ctx, PlainRows{args.x, args.dim}, args.rows, args.dim, numerics),
      .pairs_per_row = args.experts_per_token,
      .rows = args.intermediate,
      .is_down = false,
      .round_output = faithful,
      .out = {gate, up},
  };
  LaunchProduct<Format>(ctx, shape, numerics.split, tasks, args.dim,
                        2 * CeilDiv(args.intermediate, shape.tile_rows), max_tiles);

  const SwigluRows activation = {gate, up, args.weights, args.intermediate, args.swiglu_limit, faithful};
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
  Linear(ctx, {.rows = args.rows, .x = args.x, .targets = in});
  const SwigluRows activation = {gate, up, nullptr, args.intermediate, args.swiglu_limit, ctx.faithful()};
  Launch(ctx, SwigluKernel, dim3(args.rows, CeilDiv(args.intermediate, 256)), 256, 0, activation, gate);
  const LinearTarget down[] = {{.w = args.shared.w2, .out = args.out}};
  Linear(ctx, {.rows = args.rows, .x = gate, .targets = down});
}

// Bounds the scratch that long steps take: a piece of this many rows keeps every expert busy.
constexpr int kPieceRows = 1024;

void Piece(const KernelContext& ctx, const MoeArgs& args) {
  ArenaScope scope(*ctx.scratch);
  SharedExpert(ctx, args);
  float* routed = ctx.scratch->Allocate<float>(int64_t{args.rows} * args.experts_per_token * args.dim);
  if (args.expert_dtype == DType::kI8) {
    RoutedExperts<Mxfp4Weights>(ctx, args, routed);
  } else {
    RoutedExperts<Fp8Weights>(ctx, args, routed);
  }
  Launch(ctx, CombineKernel, dim3(args.rows, CeilDiv(args.dim, 256)), 256, 0, routed, args.experts_per_token,
         args.dim, ctx.faithful(), args.out);
}

}  // namespace

void Router(const KernelContext& ctx, const RouterArgs& args) {
  CHECK(args.experts_per_token <= args.num_experts);
  Launch(ctx, RouterKernel, args.rows, kRouterThreads, 2 * args.num_experts * sizeof(double), args);
}

void Moe(const KernelContext& ctx, const MoeArgs& args) {
  CHECK(args.expert_dtype == DType::kI8 || args.expert_dtype == DType::kF8E4M3);
  CHECK(args.dim % 32 == 0 && args.intermediate % 32 == 0);  // rows for 16-byte loads
  for (int begin = 0; begin < args.rows; begin += kPieceRows) {
    MoeArgs piece = args;
    piece.rows = std::min(kPieceRows, args.rows - begin);
    piece.x += int64_t{begin} * args.dim;
    piece.ids += int64_t{begin} * args.experts_per_token;
    piece.weights += int64_t{begin} * args.experts_per_token;
    piece.out += int64_t{begin} * args.dim;
    Piece(ctx, piece);
  }
}

}  // namespace foresight::cuda
