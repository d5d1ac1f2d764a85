// Matrix products on the tensor cores: out = x w^T for stored weights and prepared activations.
//
// One arithmetic for every number of rows, so that a row's bits don't depend on its company: per block of 128
// columns the tensor cores add up eight steps from zero, in float32, and the blocks' sums are added in order.
// Two kernels do the same arithmetic. The skinny one spreads the blocks of a few weight rows over a thread
// block's warps: weights are read once, with much in flight, for up to 32 rows of x. The tiled one shares the
// weights of 128 rows among 64 rows of x.
#pragma once

#include <cuda_pipeline.h>

#include "kernels/cuda/activations.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/weight_formats.cuh"

namespace foresight::cuda {

constexpr int kProductThreads = 256;
constexpr int kSkinnyRows = 16;    // weight rows of a skinny tile
constexpr int kTiledRows = 128;    // of a tiled one
constexpr int kTiledColumns = 64;  // rows of x of a tiled one

// What one thread block multiplies. "Rows" are the weight's, "columns" are rows of x.
struct ProductTile {
  const uint8_t* weights;
  const uint8_t* scales;
  int64_t scale_cols;
  int64_t row;        // first of the tile
  int64_t row_end;    // of the weight
  const uint16_t* x;  // prepared; column id's lies at x + id / id_divisor * x_stride
  int64_t x_stride;
  int id_divisor;
  const int32_t* ids;  // of the tile's columns; null: first_id, first_id + 1, ...
  int first_id;
  int columns;
  float* out;  // [id][row]
  int64_t out_stride;
  bool round_output;  // to bf16

  __device__ int Id(int column) const { return ids != nullptr ? ids[column] : first_id + column; }
  __device__ const uint16_t* Column(int column) const {
    return column < columns ? x + Id(column) / id_divisor * x_stride : nullptr;
  }
  __device__ void Store(int64_t at_row, int column, float y) const {
    if (at_row < row_end && column < columns) {
      out[Id(column) * out_stride + at_row] = round_output ? RoundBf16(y) : y;
    }
  }
};

// A lane's 16 bytes of one row at column k; zeros outside of the weight.
template <typename Format>
__device__ inline uint4 LoadWeights(const ProductTile& tile, int64_t row, int64_t k, int64_t cols) {
  if (row >= tile.row_end || k >= cols) return uint4{0, 0, 0, 0};
  return __ldcs(reinterpret_cast<const uint4*>(tile.weights + Format::Bytes(row * cols + k)));
}

template <typename Format>
__device__ inline uint32_t LoadDecodeFactor(const ProductTile& tile, int64_t row, int64_t k, int64_t cols) {
  if (row >= tile.row_end || k >= cols) return 0;
  return Format::DecodeFactor(tile.scales, row, k, tile.scale_cols);
}

template <typename Format>
__device__ inline float LoadBlockFactor(const ProductTile& tile, int64_t row, int64_t block) {
  return row < tile.row_end ? Format::BlockFactor(tile.scales, row, block, tile.scale_cols) : 0.0f;
}

// Sixteen bytes of two rows, eight apart: half an operand A.
struct RowPair {
  uint4 words[2];
  uint32_t factors[2];
};

template <typename Format>
__device__ inline RowPair LoadRowPair(const ProductTile& tile, int64_t row, int64_t k, int64_t cols) {
  return {{LoadWeights<Format>(tile, row, k, cols), LoadWeights<Format>(tile, row + 8, k, cols)},
          {LoadDecodeFactor<Format>(tile, row, k, cols), LoadDecodeFactor<Format>(tile, row + 8, k, cols)}};
}

template <typename Format>
__device__ inline void DecodePair(const RowPair& pair, int step, uint32_t (&a)[4]) {
  for (int half = 0; half < 2; ++half) {
    const uint32_t words[4] = {pair.words[half].x, pair.words[half].y, pair.words[half].z,
                               pair.words[half].w};
    Format::Decode(words, step, pair.factors[half], a[half], a[half + 2]);
  }
}

// acc += A B for the two steps whose columns' values are b (and, split, b_low).
template <bool kSplit>
__device__ inline void MultiplyStep(float (&acc)[4], const uint32_t (&a)[4], int step, const uint4& b,
                                    const uint4& b_low) {
  MmaBf16(acc, a, step % 2 == 0 ? b.x : b.z, step % 2 == 0 ? b.y : b.w);
  if constexpr (kSplit) {
    MmaBf16(acc, a, step % 2 == 0 ? b_low.x : b_low.z, step % 2 == 0 ? b_low.y : b_low.w);
  }
}

// kTiles: of eight columns.
template <typename Format, bool kSplit, int kTiles, typename Tasks>
__global__ void __launch_bounds__(kProductThreads) SkinnyProductKernel(Tasks tasks, int64_t cols) {
  AwaitInputs();
  constexpr int kChunks = kBlockK / (4 * Format::kValues);
  constexpr int kChunkSteps = kBlockSteps / kChunks;
  constexpr int kWarps = kProductThreads / 32;
  constexpr int kRound = kTiles <= 2 ? 4 * kWarps : 2 * kWarps;  // blocks between two meetings of the warps
  constexpr int kColumnStride = 20;  // 16 rows; four lanes' columns in other banks
  constexpr int kSums = (kTiles * 8 * kSkinnyRows + kProductThreads - 1) / kProductThreads;
  __shared__ float partial[kRound][kTiles * 8 * kColumnStride];

  ProductTile tile;
  if (!tasks.Get(blockIdx.x, blockIdx.y, kSkinnyRows, kTiles * 8, tile)) return;
  const int warp = threadIdx.x / 32;
  const int g = threadIdx.x % 32 / 4;
  const int t = threadIdx.x % 4;
  const int64_t blocks = (cols + kBlockK - 1) / kBlockK;
  const int64_t padded = blocks * kBlockK;
  const int64_t row = tile.row + g;
  const uint16_t* x[kTiles];
  for (int n = 0; n < kTiles; ++n) x[n] = tile.Column(n * 8 + g);

  RowPair next[kChunks];
  auto load = [&](int64_t block) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      next[c] = LoadRowPair<Format>(tile, row, block * kBlockK + (4 * c + t) * Format::kValues, cols);
    }
  };
  load(warp);
  float sums[kSums] = {};
  for (int64_t round = 0; round < blocks; round += kRound) {
    for (int i = warp; i < kRound && round + i < blocks; i += kWarps) {
      const int64_t block = round + i;
      RowPair weights[kChunks];
#pragma unroll
      for (int c = 0; c < kChunks; ++c) weights[c] = next[c];
      load(block + kWarps);  // zeros behind the end
      float acc[kTiles][4] = {};
#pragma unroll
      for (int pair = 0; pair < kBlockSteps / 2; ++pair) {
        uint4 high[kTiles], low[kTiles];
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          high[n] = low[n] = uint4{0, 0, 0, 0};
          if (x[n] == nullptr) continue;
          const uint16_t* from = x[n] + block * kBlockK + pair * 32 + t * 8;
          high[n] = *reinterpret_cast<const uint4*>(from);
          if constexpr (kSplit) low[n] = *reinterpret_cast<const uint4*>(from + padded);
        }
#pragma unroll
        for (int step = 2 * pair; step < 2 * pair + 2; ++step) {
          uint32_t a[4];
          DecodePair<Format>(weights[step / kChunkSteps], step % kChunkSteps, a);
#pragma unroll
          for (int n = 0; n < kTiles; ++n) MultiplyStep<kSplit>(acc[n], a, step, high[n], low[n]);
        }
      }
      const float upper = LoadBlockFactor<Format>(tile, row, block);
      const float lower = LoadBlockFactor<Format>(tile, row + 8, block);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        float* to = partial[i] + (n * 8 + 2 * t) * kColumnStride + g;
        to[0] = __fmul_rn(acc[n][0], upper);
        to[kColumnStride] = __fmul_rn(acc[n][1], upper);
        to[8] = __fmul_rn(acc[n][2], lower);
        to[kColumnStride + 8] = __fmul_rn(acc[n][3], lower);
      }
    }
    __syncthreads();
    const int count = static_cast<int>(blocks - round < kRound ? blocks - round : kRound);
#pragma unroll
    for (int s = 0; s < kSums; ++s) {
      const int o = s * kProductThreads + threadIdx.x;
      const int column = o / kSkinnyRows;
      if (column >= tile.columns) continue;
      const float* from = &partial[0][column * kColumnStride + o % kSkinnyRows];
      for (int i = 0; i < count; ++i) sums[s] = __fadd_rn(sums[s], from[i * kTiles * 8 * kColumnStride]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
    const int o = s * kProductThreads + threadIdx.x;
    tile.Store(tile.row + o % kSkinnyRows, o / kSkinnyRows, sums[s]);
  }
}

// Bytes of one column's block in shared memory: eight lanes' 16 bytes never meet in a bank.
constexpr int kStagedColumnBytes = 2 * kBlockK + 64;

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
      }
    }
    __pipeline_commit();
  };
  auto load = [&](int64_t chunk, RowPair(&pairs)[2]) {
    const int64_t k = chunk * 4 * Format::kValues + t * Format::kValues;
#pragma unroll
    for (int m = 0; m < 2; ++m) pairs[m] = LoadRowPair<Format>(tile, row + 16 * m, k, cols);
  };

  stage(0);
  RowPair next[2];
  load(0, next);
  float sums[2][4][4] = {};
  for (int64_t block = 0; block < blocks; ++block) {
    __pipeline_wait_prior(0);
    __syncthreads();
    stage(block + 1);  // everybody is done with the block that was there
    const uint8_t* mine =
        staged + block % 2 * kTerms * kTermBytes + (first_column + g) * kStagedColumnBytes + t * 16;
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
            DecodePair<Format>(weights[m], step % kChunkSteps, a);
#pragma unroll
            for (int n = 0; n < 4; ++n) MultiplyStep<kSplit>(acc[m][n], a, step, high[n], low[n]);
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const float factors[2] = {LoadBlockFactor<Format>(tile, row + 16 * m, block),
                                LoadBlockFactor<Format>(tile, row + 16 * m + 8, block)};
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          sums[m][n][i] = __fadd_rn(sums[m][n][i], __fmul_rn(acc[m][n][i], factors[i / 2]));
      }
    }
  }
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        tile.Store(row + 16 * m + i / 2 * 8, first_column + n * 8 + 2 * t + i % 2, sums[m][n][i]);
      }
    }
  }
}

// How the columns of a launch are cut; every choice gives the same bits.
struct ProductShape {
  bool tiled = false;
  int tile_rows = kSkinnyRows;
  int tile_columns = 8;  // skinny: 8, 16 or 32
};

constexpr ProductShape kTiledShape = {.tiled = true, .tile_rows = kTiledRows, .tile_columns = kTiledColumns};

// Tasks::Get(row tile, column tile, rows of a tile, columns of a tile, tile) says what a thread block does;
// false: nothing.
template <typename Format, bool kSplit, typename Tasks>
void LaunchProduct(const KernelContext& ctx, const ProductShape& shape, const Tasks& tasks, int64_t cols,
                   unsigned row_tiles, unsigned column_tiles) {
  if (shape.tiled) {
    Launch(ctx, TiledProductKernel<Format, kSplit, Tasks>, dim3(column_tiles, row_tiles), kProductThreads,
           TiledSharedBytes(kSplit), tasks, cols);
    return;
  }
  auto* kernel = shape.tile_columns == 8    ? SkinnyProductKernel<Format, kSplit, 1, Tasks>
                 : shape.tile_columns == 16 ? SkinnyProductKernel<Format, kSplit, 2, Tasks>
                                            : SkinnyProductKernel<Format, kSplit, 4, Tasks>;
  Launch(ctx, kernel, dim3(row_tiles, column_tiles), kProductThreads, 0, tasks, cols);
}

template <typename Format, typename Tasks>
void LaunchProduct(const KernelContext& ctx, const ProductShape& shape, bool split, const Tasks& tasks,
                   int64_t cols, unsigned row_tiles, unsigned column_tiles) {
  if (split) {
    LaunchProduct<Format, true>(ctx, shape, tasks, cols, row_tiles, column_tiles);
  } else {
    LaunchProduct<Format, false>(ctx, shape, tasks, cols, row_tiles, column_tiles);
  }
}

}  // namespace foresight::cuda
