// How the skinny product reads its weights: block by block, ahead of the multiplication, through shared
// memory.
#pragma once

#include <cuda_pipeline.h>

#include "kernels/cuda/product_tile.cuh"

namespace foresight::cuda {

constexpr int kSkinnyWarps = kProductThreads / 32;
constexpr int kRoundK = kSkinnyWarps * kBlockK;  // columns that the warps multiply between two meetings

// A warp's blocks of weights in flight, of kM times 16 rows. What a lane puts here only it takes out.
template <typename Format, int kM>
struct WeightRing {
  static constexpr int kChunks = kBlockK / (4 * Format::kValues);
  static constexpr int kSlots = kChunks * kM > 3 ? 2 : 6 / (kChunks * kM);  // 6 to 8 KB

  struct Slot {
    uint4 weights[2 * kM][kChunks][32];                    // 16 bytes of the rows g, g + 8, ...
    uint32_t scales[Format::kHasScales ? 2 * kM : 1][32];  // the aligned words that hold their scales
  };
  Slot slots[kSlots];
};

// The run of tiles of a thread block, row tiles of a column tile one after the other, as a warp goes through
// it: what it needs seldom stays in shared memory, the warp's `tile`.
template <int kRows, int kColumns, typename Tasks>
class TileRun {
 public:
  __device__ TileRun(const Tasks& tasks, int row_tiles, int column_tiles, ProductTile* tile)
      : tasks_(tasks), row_tiles_(row_tiles), tile_(tile) {
    const int tiles = row_tiles * tasks.ColumnTiles(column_tiles);
    const int begin = static_cast<int>(int64_t{tiles} * blockIdx.x / gridDim.x);
    left = static_cast<int>(int64_t{tiles} * (blockIdx.x + 1) / gridDim.x) - begin;
    row_tile_ = begin % row_tiles;
    column_tile_ = begin / row_tiles;
    if (left > 0) Get();
  }
  // To the next one of them. True: more has changed than the row.
  __device__ bool Next() {
    if (--left == 0) return false;
    row += kRows;
    if (++row_tile_ < row_tiles_ && row < row_end) return false;
    if (row_tile_ == row_tiles_) {
      row_tile_ = 0;
      ++column_tile_;
    }
    Get();
    return true;
  }
  __device__ const ProductTile& tile() const { return *tile_; }

  int left;  // with the one at hand
  int row;   // the first
  int row_end;

 private:
  __device__ void Get() {
    ProductTile tile;
    tasks_.Get(row_tile_, column_tile_, kRows, kColumns, tile);
    row = static_cast<int>(tile.row);
    row_end = static_cast<int>(tile.row_end);
    __syncwarp();  // all have read what was here
    if (threadIdx.x % 32 == 0) *tile_ = tile;
    __syncwarp();
  }

  const Tasks& tasks_;
  const int row_tiles_;
  ProductTile* const tile_;
  int row_tile_;
  int column_tile_;
};

// Sends for the blocks of a warp, tile by tile and round by round.
template <typename Format, int kM, int kColumns, typename Tasks>
class WeightStream {
 public:
  using Run = TileRun<16 * kM, kColumns, Tasks>;
  using Slot = typename WeightRing<Format, kM>::Slot;
  static constexpr int kChunks = WeightRing<Format, kM>::kChunks;

  __device__ WeightStream(const Run& run, int cols)
      : run_(run), cols_(cols), eight_rows_(static_cast<int>(Format::Bytes(8 * cols))) {
    if (run_.left > 0) Open();
  }

  // The warp's block of the next round, if there is one, into `slot`, as one group of copies.
  __device__ void Copy(Slot& slot) {
    if (run_.left > 0) {
      const int t = threadIdx.x % 4;
      if (rows_ > 16 * kM - 8 && k_ + kBlockK <= cols_) {
        CopyWhole(slot);
      } else if (k_ < cols_) {  // zeros outside of the weight
#pragma unroll
        for (int half = 0; half < 2 * kM; ++half) {
#pragma unroll
          for (int c = 0; c < kChunks; ++c) {
            const bool inside = rows_ > 8 * half && k_ + (4 * c + t) * Format::kValues < cols_;
            CopyWeights(slot, half, c, inside);
          }
          CopyScale(slot, half, rows_ > 8 * half && k_ + ScaleColumn<Format>(t) < cols_);
        }
      }
      k_ += kRoundK;
      weights_ += Format::Bytes(kRoundK);
      scale_ += Format::ScaleIndex(0, kRoundK, 0);
      if (k_ - threadIdx.x / 32 * kBlockK >= cols_) {
        run_.Next();
        Open();
      }
    }
    __pipeline_commit();
  }

 private:
  __device__ void CopyWhole(Slot& slot) {
#pragma unroll
    for (int half = 0; half < 2 * kM; ++half) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) CopyWeights(slot, half, c, true);
      CopyScale(slot, half, true);
    }
  }
  __device__ void CopyWeights(Slot& slot, int half, int c, bool inside) {
    __pipeline_memcpy_async(&slot.weights[half][c][threadIdx.x % 32],
                            inside ? weights_ + half * eight_rows_ + c * 64 : run_.tile().weights, 16,
                            inside ? 0 : 16);
  }
  __device__ void CopyScale(Slot& slot, int half, bool inside) {
    if constexpr (!Format::kHasScales) return;
    const auto from =
        reinterpret_cast<uintptr_t>(inside ? scale_ + scale_steps_[half] : run_.tile().weights) &
        ~uintptr_t{3};
    __pipeline_memcpy_async(&slot.scales[half][threadIdx.x % 32], reinterpret_cast<const void*>(from), 4,
                            inside ? 0 : 4);
  }
  __device__ void Open() {
    const ProductTile& tile = run_.tile();
    const int64_t row = run_.row + threadIdx.x % 32 / 4;
    rows_ = static_cast<int>(run_.row_end - row);
    k_ = threadIdx.x / 32 * kBlockK;
    weights_ = tile.weights + Format::Bytes(row * cols_ + k_) + threadIdx.x % 4 * 16;
    if constexpr (Format::kHasScales) {
      const int64_t k = k_ + ScaleColumn<Format>(threadIdx.x % 4);
      const int64_t first = Format::ScaleIndex(row, k, tile.scale_cols);
      scale_ = tile.scales + first;
#pragma unroll
      for (int half = 0; half < 2 * kM; ++half) {
        scale_steps_[half] = static_cast<int>(Format::ScaleIndex(row + 8 * half, k, tile.scale_cols) - first);
      }
    }
  }

  Run run_;
  const int cols_;
  const int eight_rows_;
  int rows_ = 0;                      // from the lane's first to the end, of which every eighth is the lane's
  int k_ = 0;                         // the block's first
  const uint8_t* weights_ = nullptr;  // the lane's of the block
  const uint8_t* scale_ = nullptr;
  int scale_steps_[2 * kM] = {};  // to those of the rows g, g + 8, ...
};

}  // namespace foresight::cuda
