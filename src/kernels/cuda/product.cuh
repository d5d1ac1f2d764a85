// Matrix products on the tensor cores: out = x w^T for stored weights and prepared activations.
//
// One arithmetic for every number of rows, so that a row's bits don't depend on its company: per block of 128
// columns the tensor cores add up eight steps from zero, in float32, and the blocks' sums are added in order.
// Two kernels do the same arithmetic. The skinny one (skinny_product.cuh) streams weights for few rows of x,
// the tiled one (tiled_product.cuh) shares the weights of 128 rows among 64 rows of x. Split activations are
// there to be compared with an oracle, not to be fast: the tiled one multiplies them however few they are.
#pragma once

#include <algorithm>

#include "base/check.h"
#include "kernels/cuda/skinny_product.cuh"
#include "kernels/cuda/tiled_product.cuh"

namespace foresight::cuda {

// How a launch is cut; every choice gives the same bits.
struct ProductShape {
  bool tiled = false;
  int tile_rows = 16;    // skinny: 16, or 32, of FP8 and MXFP4
  int tile_columns = 8;  // skinny: 8, 16 or 32
};

// For up to `columns` rows of x that share weights: 8, 16 or 32. Tiles of 16 rows and 16 columns take no more
// than 99 KB of shared memory, all that some GPUs give to a thread block.
inline ProductShape SkinnyShape(const KernelContext& ctx, bool tall, int columns) {
  int ordinal = 0;
  int bytes = 0;
  CudaQueue& device = DeviceOf(ctx);
  device.Note(cudaGetDevice(&ordinal), "device of a kernel");
  device.Note(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal),
              "shared memory of a device");
  if (bytes < 160 << 10) return {.tile_rows = 16, .tile_columns = std::min(columns, 16)};
  return {.tile_rows = tall ? 32 : 16, .tile_columns = columns};
}

constexpr ProductShape kTiledShape = {.tiled = true, .tile_rows = kTiledRows, .tile_columns = kTiledColumns};

// Of a skinny shape; null where Tasks never come in it, so that no kernel is compiled for nothing.
template <typename Format, int kM, int kTiles, typename Tasks>
constexpr auto SkinnyLauncher() {
  using Launcher = decltype(&LaunchSkinnyProduct<Format, kM, kTiles, Tasks>);
  if constexpr ((kM == 1 || Format::kHalf) && Tasks::HasShape(16 * kM, 8 * kTiles)) {
    return Launcher{LaunchSkinnyProduct<Format, kM, kTiles, Tasks>};
  } else {
    return Launcher{nullptr};
  }
}

// Tasks::Get(row tile, column tile, rows of a tile, columns of a tile, tile) says what a thread block does;
// false: nothing, nor in any later column tile. Tasks::kKnownBeforehand: Get reads nothing that another
// kernel writes. Tasks::HasShape(rows, columns): which skinny tiles they may be cut into. staged_columns: of
// a tile with plain_x (skinny shapes alone), at most.
template <typename Format, typename Tasks>
void LaunchProduct(const KernelContext& ctx, const ProductShape& shape, bool split, const Tasks& tasks,
                   int64_t cols, unsigned row_tiles, unsigned column_tiles, int staged_columns = 0) {
  if (shape.tiled) {
    auto* kernel = split ? TiledProductKernel<Format, true, Tasks> : TiledProductKernel<Format, false, Tasks>;
    Launch(ctx, kernel, dim3(column_tiles, row_tiles), kProductThreads, TiledSharedBytes(split), tasks, cols);
    return;
  }
  CHECK(!split);
  const bool tall = shape.tile_rows == 32;
  auto* launch = shape.tile_columns == 8
                     ? (tall ? SkinnyLauncher<Format, 2, 1, Tasks>() : SkinnyLauncher<Format, 1, 1, Tasks>())
                 : shape.tile_columns == 16
                     ? (tall ? SkinnyLauncher<Format, 2, 2, Tasks>() : SkinnyLauncher<Format, 1, 2, Tasks>())
                     : (tall ? SkinnyLauncher<Format, 2, 4, Tasks>() : SkinnyLauncher<Format, 1, 4, Tasks>());
  CHECK(launch != nullptr);
  launch(ctx, tasks, cols, static_cast<int>(row_tiles), static_cast<int>(column_tiles), staged_columns);
}

}  // namespace foresight::cuda
