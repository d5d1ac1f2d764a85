#include <algorithm>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/product.cuh"
#include "kernels/linear/stream_product.h"
#include "kernels/linear/wide_product.h"

namespace foresight::cuda {
namespace {

// kMostParts: of the sums over K (product_tile.cuh).
template <int kMostParts>
struct PlainTasks {
  static constexpr bool kKnownBeforehand = true;
  static constexpr int kParts = kMostParts;
  static constexpr bool HasShape(int tile_rows, int tile_columns) {
    return tile_rows == 16 || tile_columns != 16;  // ChooseShape
  }

  Product products[kMaxProducts];
  int first_tile[kMaxProducts];  // row tiles before this product's
  int count = 0;
  int rows = 0;
  int64_t rows_per_column = 1;
  PreparedRows x;          // or, where the kernel prepares them,
  ActivationView plain_x;  // the rows as they are
  bool quantize = false;

  __device__ int ColumnTiles(int launched) const { return launched; }
  __device__ bool Get(int row_tile, int column_tile, int tile_rows, int tile_columns,
                      ProductTile& tile) const {
    int i = count - 1;
    while (first_tile[i] > row_tile) --i;
    const Product& p = products[i];
    tile.weights = reinterpret_cast<const uint8_t*>(p.w.data);
    tile.scales = p.w.scales;
    tile.scale_cols = (p.w.cols + 127) / 128;
    tile.row = p.row_begin + int64_t{row_tile - first_tile[i]} * tile_rows;
    tile.row_end = p.row_end;
    tile.x = x.data + p.prepared_row * x.stride();
    tile.x_stride = rows_per_column * x.stride();
    tile.id_divisor = 1;
    tile.ids = nullptr;
    tile.first_id = column_tile * tile_columns;
    tile.columns = rows - tile.first_id < tile_columns ? rows - tile.first_id : tile_columns;
    tile.out = p.out;
    tile.out_stride = p.w.rows;
    tile.output = p.output;
    tile.plain_is_bf16 = plain_x.dtype == DType::kBF16;
    tile.plain_x = plain_x.data == nullptr ? nullptr
                                           : static_cast<const std::byte*>(plain_x.data) +
                                                 p.prepared_row * p.w.cols * (tile.plain_is_bf16 ? 2 : 4);
    tile.plain_stride = rows_per_column * p.w.cols;
    tile.quantize = quantize;
    return true;
  }
};
using LinearTasks = PlainTasks<kLinearParts>;

// Big enough tiles for the rows at hand; the tiled kernel for split ones, and once its tiles keep every
// multiprocessor busy.
// Skinny tiles are tall while there are enough of them, where a tile of 16 weight rows would be short of work
// (a single round for few rows of x) or short of weights (many rows of x).
ProductShape ChooseShape(const KernelContext& ctx, DType dtype, bool split, int rows, int64_t weight_rows,
                         int64_t k) {
  if (split) return kTiledShape;
  const int64_t sms = DeviceOf(ctx).num_sms();
  if (rows > 32 && CeilDiv(rows, kTiledColumns) * int64_t{CeilDiv(weight_rows, kTiledRows)} >= sms) {
    return kTiledShape;
  }
  const int64_t tall_tiles = CeilDiv(weight_rows, 32) * int64_t{CeilDiv(rows, 32)};
  const bool may_be_tall = dtype != DType::kBF16;
  if (rows <= 8) return SkinnyShape(ctx, may_be_tall && k <= kRoundK && tall_tiles >= sms, 8);
  if (rows <= 16) return SkinnyShape(ctx, false, 16);
  return SkinnyShape(ctx, may_be_tall && tall_tiles >= sms * 2 / 3, 32);
}

// So few values that every thread block may as well prepare them itself, instead of a kernel before.
constexpr int kMaxStagedColumns = 8;
constexpr int64_t kMaxStagedBytes = StagedBytes(8192, 1);

// Products that share prepared activations.
template <typename Format, typename Tasks>
void RunAs(const KernelContext& ctx, Tasks& tasks, const ActivationView& x, int64_t x_rows,
           InputNumerics numerics) {
  ArenaScope scope(*ctx.scratch);
  const int64_t k = tasks.products[0].w.cols;
  int64_t weight_rows = 0;
  for (int i = 0; i < tasks.count; ++i)
    weight_rows += tasks.products[i].row_end - tasks.products[i].row_begin;
  const ProductShape shape = ChooseShape(ctx, Format::kDType, numerics.split, tasks.rows, weight_rows, k);
  const bool staged =
      !shape.tiled && tasks.rows <= kMaxStagedColumns && StagedBytes(k, tasks.rows) <= kMaxStagedBytes;
  if (staged) {
    tasks.plain_x = x;
    tasks.quantize = numerics.quantize;
  } else if (x.dtype == DType::kBF16) {
    tasks.x = Prepare<Format>(ctx, Bf16Rows{x.b16(), k}, x_rows, k, numerics);
  } else {
    tasks.x = Prepare<Format>(ctx, PlainRows{x.f32(), k}, x_rows, k, numerics);
  }
  unsigned row_tiles = 0;
  for (int i = 0; i < tasks.count; ++i) {
    tasks.first_tile[i] = static_cast<int>(row_tiles);
    row_tiles += CeilDiv(tasks.products[i].row_end - tasks.products[i].row_begin, shape.tile_rows);
  }
  LaunchProduct<Format>(ctx, shape, numerics.split, tasks, k, row_tiles,
                        CeilDiv(tasks.rows, shape.tile_columns), staged ? tasks.rows : 0);
}

template <int kParts>
StreamedProducts Streamed(const PlainTasks<kParts>& tasks, const ActivationView& x, InputNumerics numerics) {
  StreamedProducts streamed;
  streamed.parts = kParts;
  streamed.count = tasks.count;
  streamed.groups = static_cast<int>(tasks.rows_per_column);
  streamed.rows = tasks.rows;
  streamed.cols = static_cast<int>(tasks.products[0].w.cols);
  streamed.x = x;
  streamed.quantize = numerics.quantize;
  std::copy_n(tasks.products, tasks.count, streamed.products);
  return streamed;
}

void Run(const KernelContext& ctx, LinearTasks& tasks, const ActivationView& x, int64_t x_rows,
         InputNumerics numerics) {
  if (!numerics.split) {
    const StreamedProducts streamed = Streamed(tasks, x, numerics);
    if (StreamProducts(ctx, streamed) || WideProducts(ctx, streamed)) return;
  }
  switch (tasks.products[0].w.dtype) {
    case DType::kBF16:
      return RunAs<Bf16Weights>(ctx, tasks, x, x_rows, numerics);
    case DType::kF8E4M3:
      return RunAs<Fp8Weights>(ctx, tasks, x, x_rows, numerics);
    default:
      CHECK(false, "no product with {} weights", DTypeName(tasks.products[0].w.dtype));
  }
}

// What the tensor cores have no use for: float32 weights, and rows that 16-byte loads can't read. And MXFP4,
// in which models store routed experts alone.
bool NeedsPlainProduct(const MatrixView& w) {
  return w.dtype == DType::kF32 || w.dtype == DType::kI8 || w.cols % 32 != 0 ||
         reinterpret_cast<uintptr_t>(w.data) % 16 != 0;
}

__device__ float WeightValue(const MatrixView& w, int64_t row, int64_t col) {
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(w.data);
  const int64_t i = row * w.cols + col;
  switch (w.dtype) {
    case DType::kF32:
      return reinterpret_cast<const float*>(bytes)[i];
    case DType::kBF16:
      return Bf16(reinterpret_cast<const uint16_t*>(bytes)[i]);
    case DType::kF8E4M3:
      return E4M3(bytes[i]) * E8M0(w.scales[row / 128 * ((w.cols + 127) / 128) + col / 128]);
    default:
      return 0x1p6f *
             E4M3(static_cast<uint8_t>(i % 2 == 0 ? FirstInE4M3(bytes[i / 2]) : SecondInE4M3(bytes[i / 2]))) *
             E8M0(w.scales[row * (w.cols / 32) + col / 32]);
  }
}

// One warp per weight row and eight rows of x: float32, lanes stride over K, then one tree.
template <typename Rows>
__global__ void PlainProductKernel(Product product, Rows x, int rows, bool quantize) {
  AwaitInputs();
  constexpr int kColumns = 8;
  const int64_t row = product.row_begin + int64_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= product.row_end) return;
  const int lane = threadIdx.x % 32;
  const int first = blockIdx.y * kColumns;
  const int64_t k = product.w.cols;
  float sums[kColumns] = {};
  // By blocks of act_quant; a lane's values of a block are 32 apart.
  for (int64_t block = 0; block < k; block += kBlockK) {
    float w[4];
    for (int i = 0; i < 4; ++i) {
      const int64_t at = block + i * 32 + lane;
      w[i] = at < k ? WeightValue(product.w, row, at) : 0.0f;
    }
    for (int c = 0; c < kColumns; ++c) {
      if (first + c >= rows) break;
      const int64_t from = product.prepared_row * k + block + lane;
      float v[4];
      float amax = 0;
      for (int i = 0; i < 4; ++i) {
        v[i] = block + i * 32 + lane < k ? x(first + c, from + i * 32) : 0.0f;
        amax = fmaxf(amax, fabsf(v[i]));
      }
      if (quantize) amax = WarpMax(amax);
      const uint8_t scale = ActQuantScale(amax);
      for (int i = 0; i < 4; ++i) {
        if (quantize) v[i] = ActQuantCode(v[i], scale) * E8M0(scale);
        sums[c] = fmaf(w[i], v[i], sums[c]);
      }
    }
  }
  for (int c = 0; c < kColumns; ++c) {
    if (first + c >= rows) break;
    const float y = WarpSum(sums[c]);
    if (lane == 0) StoreOutput(product.out, (first + c) * product.w.rows + row, product.output, y);
  }
}

void RunPlain(const KernelContext& ctx, const Product& product, const ActivationView& x, int rows,
              int64_t x_stride, bool quantize) {
  constexpr int kWarps = 4;
  const auto run = [&](const auto& x_rows) {
    Launch(ctx, PlainProductKernel<std::remove_cvref_t<decltype(x_rows)>>,
           dim3(CeilDiv(product.row_end - product.row_begin, kWarps), CeilDiv(rows, 8)), kWarps * 32, 0,
           product, x_rows, rows, quantize);
  };
  if (x.dtype == DType::kBF16) {
    run(Bf16Rows{x.b16(), x_stride});
  } else {
    run(PlainRows{x.f32(), x_stride});
  }
}

InputNumerics NumericsOf(const KernelContext& ctx, DType dtype, LinearNumerics numerics) {
  return {.quantize = ctx.faithful() && numerics == LinearNumerics::kProjection &&
                      (dtype == DType::kF8E4M3 || dtype == DType::kI8),
          .split = !ctx.faithful()};
}

Product ProductOf(const KernelContext& ctx, const LinearTarget& target) {
  const bool rounds = ctx.faithful() && target.numerics != LinearNumerics::kFloat32;
  const bool is_bf16 = target.out.dtype == DType::kBF16;
  CHECK(rounds || !is_bf16);
  return {.w = target.w,
          .row_end = target.w.rows,
          .out = target.out.data,
          .output = is_bf16  ? OutputType::kBf16
                    : rounds ? OutputType::kRounded
                             : OutputType::kFloat32};
}

}  // namespace

void Linear(const KernelContext& ctx, const LinearArgs& args) {
  if (args.rows == 0) return;
  const size_t count = args.targets.size();
  CHECK(count <= kMaxProducts);
  const ActivationView x = args.x;
  // Targets that are multiplied together.
  struct Group {
    InputNumerics numerics;
    LinearTasks tasks;
  };
  Group groups[4];  // of two dtypes, with quantised and plain inputs
  Group* end = groups;
  for (const LinearTarget& target : args.targets) {
    const InputNumerics numerics = NumericsOf(ctx, target.w.dtype, target.numerics);
    const Product product = ProductOf(ctx, target);
    if (NeedsPlainProduct(target.w)) {
      RunPlain(ctx, product, x, args.rows, target.w.cols, numerics.quantize);
      continue;
    }
    Group* group = std::find_if(groups, end, [&](const Group& g) {
      return g.tasks.products[0].w.dtype == target.w.dtype && g.numerics == numerics;
    });
    if (group == end) {
      ++end;
      group->numerics = numerics;
      group->tasks.rows = args.rows;
    }
    group->tasks.products[group->tasks.count++] = product;
  }
  if (end - groups == 2 && !groups[0].numerics.split) {
    const bool fp8_first = groups[0].tasks.products[0].w.dtype == DType::kF8E4M3;
    const Group& fp8 = groups[fp8_first ? 0 : 1];
    const Group& bf16 = groups[fp8_first ? 1 : 0];
    if (fp8.tasks.products[0].w.dtype == DType::kF8E4M3 && bf16.tasks.products[0].w.dtype == DType::kBF16 &&
        StreamProducts(ctx, Streamed(fp8.tasks, x, fp8.numerics), Streamed(bf16.tasks, x, bf16.numerics))) {
      return;
    }
  }
  for (Group* group = groups; group != end; ++group) {
    Run(ctx, group->tasks, x, args.rows, group->numerics);
  }
}

void LinearInOneSum(const KernelContext& ctx, const LinearArgs& args) {
  CHECK(args.targets.size() <= kMaxProducts);
  const InputNumerics numerics = NumericsOf(ctx, DType::kF8E4M3, LinearNumerics::kProjection);
  const ActivationView x = args.x;
  PlainTasks<1> tasks;
  tasks.rows = args.rows;
  for (const LinearTarget& target : args.targets) {
    CHECK(target.w.dtype == DType::kF8E4M3 && target.numerics == LinearNumerics::kProjection);
    const Product product = ProductOf(ctx, target);
    if (NeedsPlainProduct(target.w)) {
      RunPlain(ctx, product, x, args.rows, target.w.cols, numerics.quantize);
    } else {
      tasks.products[tasks.count++] = product;
    }
  }
  if (tasks.count == 0) return;
  if (!numerics.split && WideProducts(ctx, Streamed(tasks, x, numerics))) return;
  RunAs<Fp8Weights>(ctx, tasks, x, args.rows, numerics);
}

void GroupedLinear(const KernelContext& ctx, const GroupedLinearArgs& args) {
  if (args.rows == 0) return;
  CHECK(args.groups <= kMaxProducts);
  const InputNumerics numerics = NumericsOf(ctx, args.w.dtype, LinearNumerics::kUnquantizedInput);
  const int64_t n = args.w.rows / args.groups;
  LinearTasks tasks;
  tasks.rows = args.rows;
  tasks.rows_per_column = args.groups;
  for (int group = 0; group < args.groups; ++group) {
    tasks.products[tasks.count++] = {.w = args.w,
                                     .row_begin = group * n,
                                     .row_end = (group + 1) * n,
                                     .prepared_row = group,
                                     .out = args.out,
                                     .output = ctx.faithful() ? OutputType::kRounded : OutputType::kFloat32};
  }
  if (!NeedsPlainProduct(args.w)) {
    Run(ctx, tasks, args.x, int64_t{args.rows} * args.groups, numerics);
    return;
  }
  for (int group = 0; group < args.groups; ++group) {
    RunPlain(ctx, tasks.products[group], args.x, args.rows, args.groups * args.w.cols, false);
  }
}

}  // namespace foresight::cuda
