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

// Eight values of a row, chunk `chunk` of its slice, where interleaved products look for them (key_tile.cuh):
// of each 16 dims the first chunk has 0, 1, 4, 5, 8, 9, 12, 13, the second one the others.
__device__ inline void StoreInterleaved(const float* v, std::byte* tile, int row, int chunk) {
  const int half = chunk % 2 * 8;
  *reinterpret_cast<uint2*>(ChunkOf(tile, row, chunk & ~1) + half) = {PackBf16(v[0], v[1]),
                                                                      PackBf16(v[4], v[5])};
  *reinterpret_cast<uint2*>(ChunkOf(tile, row, chunk | 1) + half) = {PackBf16(v[2], v[3]),
                                                                     PackBf16(v[6], v[7])};
}

// Queries of heads first_head + i become rows i of the tiles, for each i of `warp`, `warp` + `warps` .. below
// `count`, a multiple of kAtOnce * warps: kAtOnce of them at a time. A lane has chunks of eight values `lane`
// and `lane` + 32, one of them rotary at most.
template <int kParts, int kAtOnce, bool kReleasedShape = false, bool kInterleaved = false>
__device__ inline void LoadQueries(const Attending& args, int row, int first_head, int count,
                                   const QueryTiles& tiles, int warp, int warps) {
  // Halves of the dims, whose squares are added up apart: two blocks may share them.
  constexpr int kGroups = 2;
  static_assert(kMaxSlices == 4 * kGroups);
  const int lane = threadIdx.x % 32;
  const int dim = kReleasedShape ? 512 : args.layout.dim;
  const int turns = kReleasedShape ? 32 : args.layout.rope_dim / 2;
  const int first_rotary = (dim - 2 * turns) / 8;  // chunk
  const int turn = (lane - first_rotary) & 31;
  float cos[4] = {}, sin[4] = {};
  if (4 * turn < turns) {
    *reinterpret_cast<float4*>(cos) = *reinterpret_cast<const float4*>(args.cos + row * turns + 4 * turn);
    *reinterpret_cast<float4*>(sin) = *reinterpret_cast<const float4*>(args.sin + row * turns + 4 * turn);
  }
  const float share = 1.0f / static_cast<float>(dim);
#pragma unroll 1
  for (int begin = warp; begin < count; begin += kAtOnce * warps) {
    float x[kAtOnce][kGroups][8] = {};
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int head = first_head + begin + i * warps;
      const int64_t first = (static_cast<int64_t>(row) * args.heads + head) * dim + 8 * lane;
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        if (head >= args.heads || 8 * (32 * group + lane) >= dim) continue;
        LoadQuery<kParts == 1>(args, first + 256 * group, x[i][group]);
      }
    }
    float halves[kAtOnce][kGroups] = {};
#pragma unroll
    for (int k = 0; k < 8; ++k) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          halves[i][group] = __fmaf_rn(x[i][group][k], x[i][group][k], halves[i][group]);
        }
      }
    }
    // The sum of each half of the dims by half of the lanes.
    float squares[kAtOnce];
    const bool upper = lane >= 16;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float other = upper ? halves[i][0] : halves[i][1];
      squares[i] = (upper ? halves[i][1] : halves[i][0]) + __shfl_xor_sync(0xffffffff, other, 16);
    }
#pragma unroll
    for (int other = 8; other > 0; other /= 2) {
#pragma unroll
      for (float& sum : squares) sum += __shfl_xor_sync(0xffffffff, sum, other);
    }
#pragma unroll
    for (float& sum : squares) sum += __shfl_xor_sync(0xffffffff, sum, 16);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float rinv = rsqrtf(__fmaf_rn(squares[i], share, args.query_eps));
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        const int chunk = 32 * group + lane;
        float* v = x[i][group];
#pragma unroll
        for (int k = 0; k < 8; ++k) v[k] = __fmul_rn(v[k], rinv);
        if (!(kReleasedShape && group == 0) && chunk >= first_rotary && 8 * chunk < dim) {
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const float2 turned = Turned({v[2 * k], v[2 * k + 1]}, cos[k], sin[k]);
            v[2 * k] = turned.x;
            v[2 * k + 1] = turned.y;
          }
        }
        if (chunk / 8 * kSliceDims >= dim) continue;
        if constexpr (kInterleaved) {
          std::byte* tile = tiles.data + chunk / 8 * tiles.slice_bytes;
          StoreInterleaved(v, tile, begin + i * warps, chunk % 8);
          if constexpr (kParts == 2) {
#pragma unroll
            for (int k = 0; k < 8; ++k) v[k] = Remainder(v[k]);
            StoreInterleaved(v, tile + tiles.part_bytes, begin + i * warps, chunk % 8);
          }
          continue;
        }
        std::byte* to = ChunkOf(tiles.data + chunk / 8 * tiles.slice_bytes, begin + i * warps, chunk % 8);
        *reinterpret_cast<uint4*>(to) = {PackBf16(v[0], v[1]), PackBf16(v[2], v[3]), PackBf16(v[4], v[5]),
                                         PackBf16(v[6], v[7])};
        if constexpr (kParts == 2) {
          *reinterpret_cast<uint4*>(to + tiles.part_bytes) = {
              PackBf16(Remainder(v[0]), Remainder(v[1])), PackBf16(Remainder(v[2]), Remainder(v[3])),
              PackBf16(Remainder(v[4]), Remainder(v[5])), PackBf16(Remainder(v[6]), Remainder(v[7]))};
        }
      }
    }
  }
}

}  // namespace foresight::cuda
