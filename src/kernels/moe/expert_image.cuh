// Rows of the step as the warpgroup products of many rows want them: gathered by expert, and laid out as the
// operand B.
#pragma once

#include "kernels/cuda/activations.cuh"
#include "kernels/moe/expert_plan.cuh"

namespace foresight::cuda {

// Columns that products take for a tile's: what is behind its last one is of no interest.
__host__ __device__ constexpr int TileWidth(int count) {
  return count <= 8 ? 8 : count <= 16 ? 16 : count <= 32 ? 32 : count <= 64 ? 64 : count <= 96 ? 96 : 128;
}
// Every tile's columns have places of their own, as many, behind those of the one before it. The last tile of
// an expert may take so many more than it has columns.
__host__ __device__ constexpr int SparePlaces(int tile_columns) {
  return tile_columns <= 32 ? 16 : 32;
}
__device__ inline int TilePlace(const ExpertTile& tile, int spare_places) {
  return tile.begin / 8 * 8 + spare_places * tile.expert;
}

// Columns in global memory: for each tile all blocks of K one after another, each with its columns' values in
// units of eight (a lane's value i of step s in unit 2 s + i / 2, at place 2 t + i % 2), a unit for all
// columns one after another, and the columns' factors.
__host__ __device__ constexpr int ImageBytes(int columns) {
  return columns * (2 * kBlockK + 4);
}

// What one of 16 lanes has of a column's block: of steps 2 pair and 2 pair + 1, lane t's values 0 and 1, and
// 2 and 3.
struct ColumnPiece {
  uint32_t words[2][2];
  float factor;

  __device__ static int Pair() { return static_cast<int>(threadIdx.x) % 16 / 4; }
  __device__ static int T() { return static_cast<int>(threadIdx.x) % 4; }

  __device__ void Store(uint8_t* block, int columns, int column) const {
    uint8_t* to = block + (4 * Pair() * columns + column) * 16 + T() * 4;
#pragma unroll
    for (int unit = 0; unit < 4; ++unit) {
      *reinterpret_cast<uint32_t*>(to + unit * columns * 16) = words[unit / 2][unit % 2];
    }
    if (threadIdx.x % 16 == 0) reinterpret_cast<float*>(block + 2 * kBlockK * columns)[column] = factor;
  }
};

constexpr int kImageWarps = 8;
constexpr int kImageColumns = 16;

// Where images of a plan's tiles go.
struct TileImages {
  ExpertPlan plan;
  int blocks;
  int spare_places;  // of an expert
  uint8_t* image;

  dim3 Grid(int max_tiles, int tile_columns) const {
    return dim3(static_cast<unsigned>(max_tiles), CeilDiv(blocks, kImageWarps),
                CeilDiv(tile_columns, kImageColumns));
  }
};

// What a warp does of them: kImageColumns columns of a block of a tile.
struct ImagePart {
  ExpertTile tile;
  int place;  // of the tile
  int width;
  int block;
  int begin;  // columns
  int end;
  uint8_t* to;

  // False: nothing.
  __device__ bool Find(const TileImages& of) {
    const int index = static_cast<int>(blockIdx.x);
    tile = of.plan.tiles[index];  // garbage behind the end; read beside the number
    block = static_cast<int>(blockIdx.y) * kImageWarps + static_cast<int>(threadIdx.x) / 32;
    begin = static_cast<int>(blockIdx.z) * kImageColumns;
    if (index >= *of.plan.num_tiles || block >= of.blocks || begin >= tile.count) return false;
    end = min(begin + kImageColumns, tile.count);
    width = TileWidth(tile.count);
    place = TilePlace(tile, of.spare_places);
    to = of.image + int64_t{place} * of.blocks * ImageBytes(1) + int64_t{block} * ImageBytes(width);
    return true;
  }
};

// The images of the step's rows, and the routing weights of the places.
static __global__ void __launch_bounds__(32 * kImageWarps)
    GatherKernel(TileImages images, PreparedRows rows, const float* pair_weights, float* place_weights) {
  AwaitInputs();
  ImagePart of;
  if (!of.Find(images)) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const ExpertPlan& plan = images.plan;
#pragma unroll 4
  for (int column = of.begin + lane / 16; column < of.end; column += 2) {
    const int64_t row = plan.rows[of.tile.begin + column];
    const uint4 words =
        *reinterpret_cast<const uint4*>(rows.data + row * rows.stride() + of.block * kBlockK + lane % 16 * 8);
    const ColumnPiece piece = {{{words.x, words.y}, {words.z, words.w}}, rows.Factors(row)[of.block]};
    piece.Store(of.to, of.width, column);
  }
  const int column = of.begin + lane;
  if (of.block != 0 || column >= of.end) return;
  place_weights[of.place + column] = pair_weights[plan.list[of.tile.begin + column]];
}

// The images of activations [places, I] in bf16.
template <typename Format>
static __global__ void __launch_bounds__(32 * kImageWarps)
    QuantizeKernel(TileImages images, const uint16_t* hidden) {
  AwaitInputs();
  ImagePart of;
  if (!of.Find(images)) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first = Format::Source({2 * ColumnPiece::Pair(), ColumnPiece::T(), 0});  // of eight neighbours
#pragma unroll 4
  for (int i = of.begin; i < of.end; i += 2) {
    const int column = i + lane / 16;
    const bool is_there = column < of.end;  // all lanes take part
    uint4 packed = {};
    if (is_there) {
      packed = *reinterpret_cast<const uint4*>(
          hidden + (int64_t{of.place + column} * images.blocks + of.block) * kBlockK + first);
    }
    const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
    float x[8];
    float amax = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      x[j] = Bf16(static_cast<uint16_t>(words[j / 2] >> (j % 2 * 16)));
      amax = fmaxf(amax, fabsf(x[j]));
    }
#pragma unroll
    for (int step = 1; step < 16; step *= 2) amax = fmaxf(amax, __shfl_xor_sync(0xffffffff, amax, step));
    const uint8_t scale = ActQuantScale(amax);
    const float inverse = E8M0(static_cast<uint8_t>(254 - scale));
    ColumnPiece piece;
    piece.factor = E8M0(scale);
#pragma unroll
    for (int step = 0; step < 2; ++step) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        piece.words[step][half] = E4M3Halves(x[Format::Source({step, 0, 2 * half})] * inverse,
                                             x[Format::Source({step, 0, 2 * half + 1})] * inverse);
      }
    }
    if (is_there) piece.Store(of.to, of.width, column);
  }
}

}  // namespace foresight::cuda
