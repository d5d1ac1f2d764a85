// What the linear entries' kernels that stream weights share: tiles of 16 weight rows, of which every warp
// has its own, and columns of x in the order in which tensor cores take them.
#pragma once

#include <cstdint>

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/copy_once.cuh"
#include "kernels/cuda/product_tile.cuh"
#include "kernels/linear/stream_product.h"

namespace foresight::cuda {

constexpr int kTileWarps = 8;  // that multiply
constexpr int kTileRows = 16;
constexpr int kRoundBytes = 256;                     // of every row of a tile
constexpr int kSlotBytes = kTileRows * kRoundBytes;  // what a warp reads at a time

__host__ __device__ inline bool IsAligned(const void* p, uintptr_t to) {
  return reinterpret_cast<uintptr_t>(p) % to == 0;
}

// Numbers the products' tiles, each product's and each group's from a multiple of `multiple` on. False: they
// can't be streamed.
inline bool PlaceTiles(StreamedProducts& of, int multiple) {
  const DType dtype = of.products[0].w.dtype;
  const int blocks = of.cols / kBlockK;
  if ((dtype != DType::kF8E4M3 && dtype != DType::kBF16) || of.cols % (2 * kBlockK) != 0 ||
      blocks % PartBlocks(blocks, of.parts) != 0 || !IsAligned(of.x.data, 16)) {
    return false;
  }
  int tiles = 0;
  for (int i = 0; i < of.count; ++i) {
    const Product& p = of.products[i];
    if (p.row_begin % kTileRows != 0 || !IsAligned(p.w.data, 16) || !IsAligned(p.w.scales, 2)) return false;
    of.first_tile[i] = tiles;
    tiles += static_cast<int>(CeilDiv(p.row_end - p.row_begin, kTileRows * multiple)) * multiple;
  }
  of.tiles = tiles / of.groups;
  return true;
}

// A block of columns of x lies in units of eight values, each unit for all columns one after another: lane
// t's value i of step s in unit 2 s + i / 2, at place 2 t + i % 2.
constexpr int kBlockUnits = kBlockK / 8;

// A block's values of one column, by a warp.
template <typename Format>
__device__ inline void StoreColumn(LaneValues& values, bool quantize, uint8_t* block_units, int column,
                                   int columns, float* factors) {
  const int lane = threadIdx.x % 32;
  const Slot slot = SlotOf(4 * lane);
  float factor = 1;
  const uint2 packed = values.Pack<Format>(quantize, factor);
  uint8_t* to = block_units + (2 * slot.step * columns + column) * 16 + slot.lane * 4;
  *reinterpret_cast<uint32_t*>(to) = packed.x;
  *reinterpret_cast<uint32_t*>(to + columns * 16) = packed.y;
  if (lane == 0) factors[column] = factor;
}

template <typename Format>
__device__ inline void LoadColumn(LaneValues& values, const float* block) {
  const float4 x = *reinterpret_cast<const float4*>(
      block + Format::Source(SlotOf(4 * (static_cast<int>(threadIdx.x) % 32))));
  values.x[0] = x.x;
  values.x[1] = x.y;
  values.x[2] = x.z;
  values.x[3] = x.w;
}
template <typename Format>
__device__ inline void LoadColumn(LaneValues& values, const uint16_t* block) {
  const uint2 x = *reinterpret_cast<const uint2*>(
      block + Format::Source(SlotOf(4 * (static_cast<int>(threadIdx.x) % 32))));
  *reinterpret_cast<float2*>(values.x) = UnpackBf16(x.x);
  *reinterpret_cast<float2*>(values.x + 2) = UnpackBf16(x.y);
}

// A tile of 16 weight rows, of which the first `rows` are there, none if it is not positive.
struct StreamTile {
  const uint8_t* weights;
  const uint8_t* scales;
  int64_t row;  // the first, of the weight
  int rows;
  void* out;  // [column][row of the weight]
  int64_t out_stride;
  OutputType output;

  template <typename Format>
  __device__ static StreamTile Of(const StreamedProducts& of, int index, int k0) {
    return Of<Format>(of, index, k0, of.count - 1);
  }
  // The same of one of the first `last` + 1 products.
  template <typename Format>
  __device__ static StreamTile Of(const StreamedProducts& of, int index, int k0, int last) {
    int i = last;
    while (of.first_tile[i] > index) --i;
    const Product& p = of.products[i];
    const int64_t row = p.row_begin + int64_t{index - of.first_tile[i]} * kTileRows;
    StreamTile tile;
    tile.weights = reinterpret_cast<const uint8_t*>(p.w.data) + Format::Bytes(row * of.cols + k0);
    tile.scales = Format::kHasScales ? p.w.scales + min(row, p.row_end - 1) / 128 * (of.cols / 128) + k0 / 128
                                     : nullptr;
    tile.row = row;
    tile.rows = static_cast<int>(min(p.row_end - row, int64_t{kTileRows}));
    tile.out = p.out;
    tile.out_stride = p.w.rows;
    tile.output = p.output;
    return tile;
  }
  // A row's sum with a column, unless the tile lacks the row.
  __device__ void Store(int tile_row, int column, float y) const {
    if (tile_row < rows) StoreOutput(out, column * out_stride + row + tile_row, output, y);
  }
};

// Every `step`th tile from `index` on.
struct StridedTiles {
  const StreamedProducts& of;
  int index;
  int step;
  int end;

  __device__ bool Done() const { return index >= end; }
  template <typename Format>
  __device__ StreamTile Now(int k0) const {
    return StreamTile::Of<Format>(of, index, k0);
  }
  __device__ void Advance() { index += step; }
};

// What a warp sends for: of each of `tiles`, `rounds` rounds from column k0 on, into the slots of its ring
// in turn. Lane l copies 16 bytes of the rows l / 8, l / 8 + 4, ..., once in each half of a round.
template <typename Format, typename Tiles>
class TileStream {
 public:
  __device__ TileStream(const StreamedProducts& of, const Tiles& tiles, int k0, int rounds, int read)
      : of_(of), tiles_(tiles), k0_(k0), rounds_(rounds) {
    const int lane = threadIdx.x % 32;
    to_ = lane / 8 * 128 + (lane % 8 ^ (lane / 8 % 2 * 4)) * 16 - read;
    if (!tiles_.Done()) Open();
  }
  // Ends a group of copies to the next slot, of none behind the end.
  __device__ void Copy(uint32_t slot) {
    if (left_ > 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          weights_.Copy(slot + to_ + half * 2048 + i * 512, round_ + rows_[i] + half * 128);
        }
      }
      round_ += kRoundBytes;
      if (--left_ == 0) {
        tiles_.Advance();
        if (!tiles_.Done()) Open();
      }
    }
    EndCopies();
  }

 private:
  __device__ void Open() {
    const StreamTile tile = tiles_.template Now<Format>(k0_);
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = min(lane / 8 + 4 * i, tile.rows - 1);
      rows_[i] = row * static_cast<int>(Format::Bytes(of_.cols));
    }
    round_ = tile.weights + lane % 8 * 16;
    left_ = rounds_;
  }

  const StreamedProducts& of_;
  const uint8_t* round_ = nullptr;  // the lane's first 16 bytes, of the tile's first row
  int rows_[4];                     // the lane's, in bytes from there
  Tiles tiles_;
  const int k0_;
  const int rounds_;
  int left_ = 0;
  int to_;
  const CopyOnce weights_;
};

}  // namespace foresight::cuda
