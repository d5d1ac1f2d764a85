// Attention queries on their way from the projection to bf16 in shared memory: normed, turned and, in
// faithful numerics, rounded as QueryArgs says.
#pragma once

#include "kernels/attention/key_list.cuh"
#include "kernels/attention/key_tile.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/norm_rope/encode.cuh"

namespace foresight::cuda {

constexpr int kMaxSlices = 8;  // of 64 dims

// Tiles of one slice each; with two parts a float32 value is the sum of two bf16 ones, the lower ones
// `part_bytes` behind. Absent rows are zeros.
struct QueryTiles {
  std::byte* data;
  int slice_bytes;
  int part_bytes;
};

// The query of a head becomes row `tile_row` of the tiles, by one warp. A lane has neighbours lane of each
// slice.
template <int kParts>
__device__ inline void LoadQuery(const Attending& args, int row, int head, const QueryTiles& tiles,
                                 int tile_row) {
  const int lane = threadIdx.x % 32;
  const int dim = args.layout.dim;
  const int first_rotary = (dim - args.layout.rope_dim) / 2;
  const float2* from =
      reinterpret_cast<const float2*>(args.q + (static_cast<int64_t>(row) * args.heads + head) * dim);
  float2 x[kMaxSlices];
  float squares = 0;
#pragma unroll
  for (int slice = 0; slice < kMaxSlices; ++slice) {
    const int pair = 32 * slice + lane;
    x[slice] = head < args.heads && pair < dim / 2 ? from[pair] : float2{0, 0};
  }
#pragma unroll
  for (const float2& v : x) squares = __fmaf_rn(v.y, v.y, __fmaf_rn(v.x, v.x, squares));
  const float rinv = 1.0f / sqrtf(__fadd_rn(WarpSum(squares) / static_cast<float>(dim), args.query_eps));
#pragma unroll
  for (int slice = 0; slice < kMaxSlices; ++slice) {
    if (slice * kSliceDims >= dim) break;
    const int pair = 32 * slice + lane;
    float2 v = {__fmul_rn(x[slice].x, rinv), __fmul_rn(x[slice].y, rinv)};
    if (pair >= first_rotary && pair < dim / 2) {
      const int64_t at = static_cast<int64_t>(row) * (args.layout.rope_dim / 2) + pair - first_rotary;
      v = Turned(v, args.cos[at], args.sin[at]);
    }
    std::byte* to = ChunkOf(tiles.data + slice * tiles.slice_bytes, tile_row, lane / 4) + lane % 4 * 4;
    *reinterpret_cast<uint32_t*>(to) = PackBf16(v.x, v.y);
    if constexpr (kParts == 2) {
      *reinterpret_cast<uint32_t*>(to + tiles.part_bytes) = PackBf16(Remainder(v.x), Remainder(v.y));
    }
  }
}

}  // namespace foresight::cuda
