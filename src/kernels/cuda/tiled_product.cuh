// The product for many rows of x, and for any number of split ones.
#pragma once

#include <cuda_pipeline.h>

#include "kernels/cuda/product_tile.cuh"

namespace foresight::cuda {

constexpr int kTiledRows = 128;    // weight rows of a tile
constexpr int kTiledColumns = 64;  // rows of x of a tile

// A lane's 16 bytes of one row at column k; zeros outside of the weight.
template <typename Format>
__device__ inline uint4 LoadWeights(const ProductTile& tile, int64_t row, int64_t k, int64_t cols) {
  if (row >= tile.row_end || k >= cols) return uint4{0, 0, 0, 0};
  return __ldcs(reinterpret_cast<const uint4*>(tile.weights + Format::Bytes(row * cols + k)));
}

template <typename Format>
__device__ inline uint8_t LoadScale(const ProductTile& tile, int64_t row, int64_t k, int64_t cols) {
  if (!Format::kHasScales || row >= tile.row_end || k >= cols) return 0;
  return __ldg(tile.scales + Format::ScaleIndex(row, k, tile.scale_cols));
}

template <typename Format>
__device__ inline RowPair LoadRowPair(const ProductTile& tile, int64_t row, int64_t k, int64_t cols) {
  return {{LoadWeights<Format>(tile, row, k, cols), LoadWeights<Format>(tile, row + 8, k, cols)}};
}

constexpr size_t TiledSharedBytes(bool split) {
  return size_t{2} * (split ? 2 : 1) * kTiledColumns * kStagedColumnBytes;
}

// Warps 4 x 2, each with 32 weight rows and 32 columns. Weights go from global memory to registers, one chunk
// ahead; activations go through shared memory, one block ahead.
template <typename Format, bool kSplit, typename Tasks>
__global__ void __launch_bounds__(kProductThreads) TiledProductKernel(Tasks tasks, int64_t cols) {
  AwaitInputs();
  constexpr int kChunks = kBlockK / (4 * Format::kValues);
  constexpr int kChunkSteps = kBlockSteps / kChunks;
  constexpr int kTerms = kSplit ? 2 : 1;
  constexpr int kTermBytes = kTiledColumns * kStagedColumnBytes;
  constexpr int kPieces = kTiledColumns * 16 / kProductThreads;  // of 16 bytes, per thread and term
  extern __shared__ __align__(16) uint8_t staged[];

  ProductTile tile;
  if (!tasks.Get(blockIdx.y, blockIdx.x, kTiledRows, kTiledColumns, tile)) return;
  const int warp = threadIdx.x / 32;
  const int g = threadIdx.x % 32 / 4;
  const int t = threadIdx.x % 4;
  const int64_t blocks = (cols + kBlockK - 1) / kBlockK;
  const int64_t padded = blocks * kBlockK;
  const int64_t row = tile.row + warp % 4 * 32 + g;
  const int first_column = warp / 4 * 32;

  const uint16_t* x[kPieces];
  for (int p = 0; p < kPieces; ++p) x[p] = tile.Column(p * (kProductThreads / 16) + threadIdx.x / 16);
  auto stage = [&](int64_t block) {
    if (block < blocks) {
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        const int column = p * (kProductThreads / 16) + threadIdx.x / 16;
        uint8_t* to =
            staged + block % 2 * kTerms * kTermBytes + column * kStagedColumnBytes + threadIdx.x % 16 * 16;
        const uint16_t* from = (x[p] != nullptr ? x[p] : tile.x) + block * kBlockK + threadIdx.x % 16 * 8;
        const size_t zeros = x[p] != nullptr ? 0 : 16;
        __pipeline_memcpy_async(to, from, 16, zeros);
        if constexpr (kSplit) __pipeline_memcpy_async(to + kTermBytes, from + padded, 16, zeros);
        if (Format::kHalf && threadIdx.x % 16 == 0) {
          const uint16_t* factors = (x[p] != nullptr ? x[p] : tile.x) + kTerms * padded;
          __pipeline_memcpy_async(to + 2 * kBlockK, factors + 2 * block, 4, zeros / 4);
        }
      }
    }
    __pipeline_commit();
  };
  auto load = [&](int64_t chunk, RowPair(&pairs)[2]) {
    const int64_t k = chunk * 4 * Format::kValues + t * Format::kValues;
#pragma unroll
    for (int m = 0; m < 2; ++m) pairs[m] = LoadRowPair<Format>(tile, row + 16 * m, k, cols);
  };

  auto load_scales = [&](int64_t block, uint8_t(&bytes)[2][2]) {
    const int64_t k = block * kBlockK + ScaleColumn<Format>(t);
    for (int m = 0; m < 2; ++m) {
      for (int half = 0; half < 2; ++half) {
        bytes[m][half] = LoadScale<Format>(tile, row + 16 * m + 8 * half, k, cols);
      }
    }
  };

  stage(0);
  RowPair next[2];
  load(0, next);
  uint8_t next_scales[2][2];
  load_scales(0, next_scales);
  const int part_blocks = PartBlocks(static_cast<int>(blocks), PartsOf<Tasks>());
  int part_left = part_blocks;
  float totals[2][4][4] = {};
  float sums[2][4][4] = {};
  for (int64_t block = 0; block < blocks; ++block) {
    __pipeline_wait_prior(0);
    __syncthreads();
    stage(block + 1);  // everybody is done with the block that was there
    const uint8_t* mine =
        staged + block % 2 * kTerms * kTermBytes + (first_column + g) * kStagedColumnBytes + t * 16;
    RowScale scales[2][2];
    for (int m = 0; m < 2; ++m) {
      for (int half = 0; half < 2; ++half) scales[m][half] = Format::Scale(next_scales[m][half]);
    }
    load_scales(block + 1, next_scales);
    float acc[2][4][4] = {};
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      RowPair weights[2] = {next[0], next[1]};
      load(block * kChunks + c + 1, next);  // zeros behind the end
#pragma unroll
      for (int pair = c * kChunkSteps / 2; pair < (c + 1) * kChunkSteps / 2; ++pair) {
        uint4 high[4], low[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const uint8_t* from = mine + n * 8 * kStagedColumnBytes + pair * 64;
          high[n] = *reinterpret_cast<const uint4*>(from);
          if constexpr (kSplit) low[n] = *reinterpret_cast<const uint4*>(from + kTermBytes);
        }
#pragma unroll
        for (int step = 2 * pair; step < 2 * pair + 2; ++step) {
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            uint32_t a[4];
            DecodePair<Format>(weights[m], step % kChunkSteps, scales[m], a);
#pragma unroll
            for (int n = 0; n < 4; ++n) {
              MultiplyStep<Format>(acc[m][n], a, step, high[n]);
              if constexpr (kSplit) MultiplyStep<Format>(acc[m][n], a, step, low[n]);
            }
          }
        }
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float2 factors = ColumnFactors<Format>(
          *reinterpret_cast<const float*>(mine + n * 8 * kStagedColumnBytes - t * 16 + 2 * kBlockK));
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        AddScaled<Format>(sums[m][n], acc[m][n], scales[m], factors);
      }
    }
    if (PartsOf<Tasks>() > 1 && --part_left == 0) {
      part_left = part_blocks;
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            totals[m][n][i] = __fadd_rn(totals[m][n][i], sums[m][n][i]);
            sums[m][n][i] = 0;
          }
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (PartsOf<Tasks>() > 1) sums[m][n][i] = __fadd_rn(totals[m][n][i], sums[m][n][i]);
        tile.Store(row + 16 * m + i / 2 * 8, first_column + n * 8 + 2 * t + i % 2, sums[m][n][i]);
      }
    }
  }
}

}  // namespace foresight::cuda
