// The product for few rows of x: as fast as weights can be read.
//
// Each thread block has a run of tiles of 16 or 32 weight rows; each of its eight warps multiplies every
// eighth 128-block of K. Weights pass through a ring in shared memory that every lane fills and empties for
// itself, whole blocks of 128 ahead and across the tiles' borders, so that reading never waits for a tile to
// end, nor, where tasks know their weights beforehand, for the kernel before to end.
#pragma once

#include <algorithm>

#include "kernels/cuda/weight_stream.cuh"

namespace foresight::cuda {

// Thread blocks of a multiprocessor; wide ones need the registers. Tall tiles in a chain of launches leave
// room for the next one's first weights.
template <int kM, int kTiles, typename Tasks>
constexpr int SkinnyBlocksPerSm() {
  return kTiles > 2 || (Tasks::kKnownBeforehand && kM == 2) ? 1 : 2;
}

// Where a warp finds its blocks' columns of x: in the prepared rows or, staged, in shared memory, where it
// prepares them itself from a tile's plain_x, of one column tile.
template <typename Format, bool kStaged>
class WarpColumns {
 public:
  __device__ WarpColumns(uint8_t* staged, int cols) : staged_(staged), cols_(cols) {}

  __device__ void Open(const ProductTile& tile) {
    if constexpr (kStaged) {
      block_bytes_ = tile.columns * kStagedColumnBytes;
      if (tile.plain_x != prepared_) Prepare(tile);
    } else {
      block_bytes_ = kSkinnyWarps * 2 * kBlockK;
    }
  }
  // The first block of column g of eight; behind the last one another, whose products nobody asks for.
  __device__ const uint8_t* Column(const ProductTile& tile, int column) const {
    column = min(column, tile.columns - 1);
    if constexpr (kStaged) return staged_ + column * kStagedColumnBytes;
    return reinterpret_cast<const uint8_t*>(tile.Column(column)) + threadIdx.x / 32 * (2 * kBlockK);
  }
  // A column's two steps of the block of a round.
  __device__ uint4 Load(const uint8_t* column, int round, int pair) const {
    return *reinterpret_cast<const uint4*>(column + round * block_bytes_ + pair * 64 + threadIdx.x % 4 * 16);
  }
  __device__ float Factor(const uint8_t* column, int round) const {
    if constexpr (!Format::kHalf) return 1;
    if constexpr (kStaged) {
      return *reinterpret_cast<const float*>(column + round * block_bytes_ + 2 * kBlockK);
    }
    const uint8_t* row = column - threadIdx.x / 32 * (2 * kBlockK);
    return reinterpret_cast<const float*>(row + 2 * Padded())[round * kSkinnyWarps + threadIdx.x / 32];
  }

 private:
  __device__ int Padded() const { return (cols_ + kBlockK - 1) / kBlockK * kBlockK; }
  __device__ void Prepare(const ProductTile& tile) {
    prepared_ = tile.plain_x;
    const int64_t first = tile.first_id * tile.plain_stride;
    if (tile.plain_is_bf16) {
      Prepare(tile, Bf16Rows{static_cast<const uint16_t*>(tile.plain_x) + first, tile.plain_stride});
    } else {
      Prepare(tile, PlainRows{static_cast<const float*>(tile.plain_x) + first, tile.plain_stride});
    }
  }
  template <typename Source>
  __device__ void Prepare(const ProductTile& tile, const Source& source) {
    constexpr int kBatch = 4;  // as many loads at once
    const int warp = threadIdx.x / 32;
    const int count = (Padded() / kBlockK - warp + kSkinnyWarps - 1) / kSkinnyWarps * tile.columns;
    const int columns = tile.columns;
    const bool quantize = tile.quantize;
    __syncwarp();  // nobody is at work on what was here
    for (int begin = 0; begin < count; begin += kBatch) {
      LaneValues values[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int at = begin + i;
        if (at < count) {
          values[i].Load<Format>(source, at % columns, warp + at / columns * kSkinnyWarps, cols_);
        }
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int at = begin + i;
        if (at < count) {
          uint8_t* to = staged_ + at / columns * block_bytes_ + at % columns * kStagedColumnBytes;
          values[i].Store<Format>(quantize, reinterpret_cast<uint16_t*>(to), nullptr,
                                  reinterpret_cast<float*>(to + 2 * kBlockK));
        }
      }
    }
    __syncwarp();
  }

  uint8_t* const staged_;
  const int cols_;
  const void* prepared_ = nullptr;
  int block_bytes_ = 0;  // from a round's block to the next one's
};

// The warps' sums of a round, twice.
template <int kM, int kTiles>
struct SkinnySums {
  static constexpr int kColumnStride = 16 * kM + 4;  // four lanes' columns in other banks
  static constexpr int kWarpStride = kTiles * 8 * kColumnStride;
  float of[2][kSkinnyWarps * kWarpStride];
};

// Of one warp, for `columns` that it prepares.
constexpr int64_t StagedBytes(int64_t cols, int columns) {
  return (cols + kRoundK - 1) / kRoundK * columns * kStagedColumnBytes;
}

// Tiles of kM times 16 weight rows and kTiles times eight columns. staged_bytes: of one warp.
template <typename Format, int kM, int kTiles, bool kStaged, typename Tasks>
__global__ void __launch_bounds__(kProductThreads, (SkinnyBlocksPerSm<kM, kTiles, Tasks>()))
    SkinnyProductKernel(const __grid_constant__ Tasks tasks, int cols, int row_tiles, int column_tiles,
                        int staged_bytes) {
  if constexpr (!Tasks::kKnownBeforehand) AwaitInputs();
  using Ring = WeightRing<Format, kM>;
  using Sums = SkinnySums<kM, kTiles>;
  constexpr int kChunkSteps = kBlockSteps / Ring::kChunks;
  constexpr int kRows = 16 * kM;
  constexpr int kColumns = 8 * kTiles;
  constexpr int kSums = (kColumns * kRows + kProductThreads - 1) / kProductThreads;
  extern __shared__ __align__(16) uint8_t shared[];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  Ring& ring = reinterpret_cast<Ring*>(shared)[warp];
  Sums& sums_of = *reinterpret_cast<Sums*>(shared + kSkinnyWarps * sizeof(Ring));
  WarpColumns<Format, kStaged> columns(
      shared + kSkinnyWarps * sizeof(Ring) + sizeof(Sums) + warp * staged_bytes, cols);
  const int rounds = (cols + kRoundK - 1) / kRoundK;
  const int part_blocks = PartBlocks((cols + kBlockK - 1) / kBlockK, PartsOf<Tasks>());

  __shared__ ProductTile tiles[2][kSkinnyWarps];
  TileRun<kRows, kColumns, Tasks> run(tasks, row_tiles, column_tiles, &tiles[0][warp]);
  WeightStream<Format, kM, kColumns, Tasks> stream(
      TileRun<kRows, kColumns, Tasks>(tasks, row_tiles, column_tiles, &tiles[1][warp]), cols);
#pragma unroll 1
  for (int slot = 0; slot < Ring::kSlots; ++slot) stream.Copy(ring.slots[slot]);
  if constexpr (Tasks::kKnownBeforehand) AwaitInputs();

  const uint8_t* x[kTiles];
  int64_t out[kSums];  // where the thread's rows of a tile that begins at row 0 go; below zero: nowhere
  int slot = 0;
  int buffer = 0;
  bool other = true;
#pragma unroll 1
  while (run.left > 0) {
    const ProductTile& tile = run.tile();
    if (other) {
      columns.Open(tile);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) x[n] = columns.Column(tile, n * 8 + g);
#pragma unroll
      for (int s = 0; s < kSums; ++s) {
        const int o = s * kProductThreads + threadIdx.x;
        const int column = o / kRows;
        out[s] = column < tile.columns ? tile.Id(column) * tile.out_stride + o % kRows : -1;
      }
    }
    // Where in their words the scales of the rows g, g + 8, ... lie: the same place in all of the warp's
    // blocks.
    uint32_t scale_at[2 * kM];
    if constexpr (Format::kHasScales) {
      static_assert(Format::ScaleIndex(0, kRoundK, 0) % 4 == 0);
#pragma unroll
      for (int half = 0; half < 2 * kM; ++half) {
        const uint32_t row = static_cast<uint32_t>(run.row) + g + 8 * half;
        const uint32_t k = warp * kBlockK + ScaleColumn<Format>(t);
        scale_at[half] = (static_cast<uint32_t>(reinterpret_cast<uintptr_t>(tile.scales)) +
                          Format::ScaleIndex(row, k, static_cast<uint32_t>(tile.scale_cols))) %
                         4;
      }
    }
    float sums[kSums] = {};
    float totals[kSums] = {};
#pragma unroll 1
    for (int round = 0; round < rounds; ++round) {
      __pipeline_wait_prior(Ring::kSlots - 1);
      typename Ring::Slot& from = ring.slots[slot];
      slot = slot + 1 < Ring::kSlots ? slot + 1 : 0;
      RowPair weights[kM][Ring::kChunks];
      RowScale scales[kM][2];
#pragma unroll
      for (int half = 0; half < 2 * kM; ++half) {
#pragma unroll
        for (int c = 0; c < Ring::kChunks; ++c) {
          weights[half / 2][c].words[half % 2] = from.weights[half][c][lane];
        }
        uint8_t scale = 0;
        if constexpr (Format::kHasScales) {
          scale = reinterpret_cast<const uint8_t*>(&from.scales[half][lane])[scale_at[half]];
        }
        scales[half / 2][half % 2] = Format::Scale(scale);
      }
      stream.Copy(from);

      const int count = (cols - round * kRoundK + kBlockK - 1) / kBlockK;  // blocks, of this round and later
      if (warp < count) {
        float acc[kM][kTiles][4] = {};
#pragma unroll
        for (int pair = 0; pair < kBlockSteps / 2; ++pair) {
          uint4 values[kTiles];
#pragma unroll
          for (int n = 0; n < kTiles; ++n) values[n] = columns.Load(x[n], round, pair);
#pragma unroll
          for (int step = 2 * pair; step < 2 * pair + 2; ++step) {
#pragma unroll
            for (int m = 0; m < kM; ++m) {
              uint32_t a[4];
              DecodePair<Format>(weights[m][step / kChunkSteps], step % kChunkSteps, scales[m], a);
#pragma unroll
              for (int n = 0; n < kTiles; ++n) MultiplyStep<Format>(acc[m][n], a, step, values[n]);
            }
          }
        }
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const float2 factors = ColumnFactors<Format>(columns.Factor(x[n], round));
#pragma unroll
          for (int m = 0; m < kM; ++m) {
            float scaled[4] = {};
            AddScaled<Format>(scaled, acc[m][n], scales[m], factors);
            float* to = sums_of.of[buffer] + warp * Sums::kWarpStride +
                        (n * 8 + 2 * t) * Sums::kColumnStride + 16 * m + g;
            to[0] = scaled[0];
            to[Sums::kColumnStride] = scaled[1];
            to[8] = scaled[2];
            to[Sums::kColumnStride + 8] = scaled[3];
          }
        }
      }
      __syncthreads();  // one for two buffers: who is here has read the other one
#pragma unroll
      for (int s = 0; s < kSums; ++s) {
        if (out[s] < 0) continue;
        const int o = s * kProductThreads + threadIdx.x;
        const float* of = sums_of.of[buffer] + o / kRows * Sums::kColumnStride + o % kRows;
        if constexpr (PartsOf<Tasks>() > 1) {
          int in_part = round * kSkinnyWarps % part_blocks;
          for (int i = 0; i < min(count, kSkinnyWarps); ++i) {
            sums[s] += of[i * Sums::kWarpStride];
            if (++in_part == part_blocks) {
              in_part = 0;
              totals[s] += sums[s];
              sums[s] = 0;
            }
          }
        } else if (count >= kSkinnyWarps) {
#pragma unroll
          for (int i = 0; i < kSkinnyWarps; ++i) sums[s] += of[i * Sums::kWarpStride];
        } else {
          for (int i = 0; i < count; ++i) sums[s] += of[i * Sums::kWarpStride];
        }
      }
      buffer ^= 1;
    }
#pragma unroll
    for (int s = 0; s < kSums; ++s) {
      const int row = (s * kProductThreads + threadIdx.x) % kRows;
      if constexpr (PartsOf<Tasks>() > 1) sums[s] += totals[s];
      if (out[s] >= 0 && run.row + row < run.row_end) {
        StoreOutput(tile.out, out[s] + run.row, tile.output, sums[s]);
      }
    }
    other = run.Next();
  }
}

// staged_columns: how many columns, at most, the kernel prepares by itself.
template <typename Format, int kM, int kTiles, typename Tasks>
void LaunchSkinnyProduct(const KernelContext& ctx, const Tasks& tasks, int64_t cols, int row_tiles,
                         int column_tiles, int staged_columns) {
  const int64_t staged = StagedBytes(cols, staged_columns);
  const int per_sm = SkinnyBlocksPerSm<kM, kTiles, Tasks>();
  const auto launch = [&](auto* kernel) {
    Launch(ctx, kernel, std::min(row_tiles * column_tiles, per_sm * DeviceOf(ctx).num_sms()), kProductThreads,
           kSkinnyWarps * (sizeof(WeightRing<Format, kM>) + staged) + sizeof(SkinnySums<kM, kTiles>), tasks,
           static_cast<int>(cols), row_tiles, column_tiles, static_cast<int>(staged));
  };
  if constexpr (kTiles == 1 && Tasks::kKnownBeforehand) {
    if (staged_columns > 0) return launch(SkinnyProductKernel<Format, kM, kTiles, true, Tasks>);
  }
  launch(SkinnyProductKernel<Format, kM, kTiles, false, Tasks>);
}

}  // namespace foresight::cuda
