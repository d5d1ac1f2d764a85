// Attention of one row and some heads by a cluster of 8 blocks that share the row's keys: for few rows
// (sm_90). The arithmetic is BlockAttention's.
#pragma once

#include "kernels/attention/key_list.cuh"
#include "kernels/attention/key_tile.cuh"
#include "kernels/attention/query_tile.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/exponential.cuh"

namespace foresight::cuda {

constexpr int kClusterBlocks = 8;  // one for each slice of 64 dims
constexpr int kClusterThreads = 512;

// A panel of a row's key list is a number of whole blocks of keys. In a panel, a thread block multiplies the
// queries with its share of the keys, in all dims, and the probabilities with all keys, in its slice of dims.
// In between the thread blocks send one another the largest logit of each tile of 8 keys, then probabilities.
template <typename Keys, int kM>
struct ClusterSpace {
  static constexpr int kParts = Keys::kParts;
  static constexpr int kHeads = 16 * kM;
  static constexpr int kBlockTiles = Keys::kBlock / 8;
  static constexpr int kTiles = Keys::kShareTiles;                       // of a thread block
  static constexpr int kShare = 8 * kTiles;                              // keys
  static constexpr int kBlocks = kTiles * kClusterBlocks / kBlockTiles;  // of a panel
  static constexpr int kKeys = kBlocks * Keys::kBlock;
  // Chunks of 16 bytes in a row of probabilities: an odd number, so that rows lie in different banks.
  static constexpr int kRowChunks = kParts * kTiles | 1;

  struct Weights {                // of a thread block's share of the keys
    uint4 p[kHeads][kRowChunks];  // [heads, parts, tiles]
    float sums[kHeads][kTiles];
  };
  struct Inputs {
    std::byte q[kParts][kClusterBlocks][kHeads * kTileRowBytes];
    std::byte keys[Keys::kRawSlices][kShare][Keys::kRawBytes];
  };

  union {  // values take the place of the keys once these are multiplied
    std::byte key_tile[kParts][kClusterBlocks][kShare * kTileRowBytes];
    std::byte value_tile[kParts][kKeys * kTileRowBytes];
  };
  union {
    Inputs in;
    Weights weights[kClusterBlocks];
  };
  std::byte values[kKeys][Keys::kRawBytes];
  uint2 scales[kKeys];
  uint2 own_scales[kShare];
  float tops[kClusterBlocks][kHeads][kTiles];
  const std::byte* entries[kKeys];
  float maxima[kBlocks][kHeads];  // up to each block
  float factors[kBlocks][kHeads];
  float sinks[kHeads];
  float now_max[kHeads];  // of the chunk so far
  float now_sum[2][kHeads];
  float all_max[kHeads];  // of the chunks before
  float all_sum[2][kHeads];
  uint32_t present[kKeys / 32];
  TransferBarrier tops_here;
  TransferBarrier weights_here;
};

template <typename Keys, int kM>
__global__ void __launch_bounds__(kClusterThreads, 1) ClusterAttention(Attending args) {
  using Space = ClusterSpace<Keys, kM>;
  constexpr int kParts = Keys::kParts;
  constexpr int kHeads = Space::kHeads;
  constexpr int kBlock = Keys::kBlock;
  constexpr int kBlockTiles = Space::kBlockTiles;
  constexpr int kTiles = Space::kTiles;
  constexpr int kWarps = kClusterThreads / 32;
  extern __shared__ __align__(128) std::byte shared[];
  Space& space = *reinterpret_cast<Space*>(shared);
  if (threadIdx.x == 0) {
    space.tops_here.Init();
    space.weights_here.Init();
  }
  ClusterArrive();  // awaited before the first transfer to another block
  AwaitInputs();

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int rank = ClusterRank();
  const int row = blockIdx.y;
  const int first_head = blockIdx.x / kClusterBlocks * kHeads;
  const int eighth = threadIdx.x % 8;

  const SequenceRows& sequence = WarpSequenceOf(args, row);
  const KeyList<kBlock> list(args, sequence, row);
  if (threadIdx.x < kHeads) {
    const int head = first_head + threadIdx.x;
    const float sink = head < args.heads ? SinkLogit(args, head) : 0;
    space.sinks[threadIdx.x] = sink;
    space.now_max[threadIdx.x] = fmaxf(sink, kLowest);
    space.now_sum[0][threadIdx.x] = space.now_sum[1][threadIdx.x] = 0;
  }

  // Of PV: a warp has 16 heads and a tile of 8 dims.
  const bool adds = warp < 8 * kM;
  const int h = warp / 8 % kM * 16 + g;
  const int column = warp % 8;
  float o[4] = {};    // of the chunk
  float all[4] = {};  // of the chunks before
  const auto merge = [&](bool first) {
    float factors[2] = {0, 0};
    float now_factors[2] = {1, 1};
    if (!first) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float top = fmaxf(space.all_max[h + 8 * half], space.now_max[h + 8 * half]);
        factors[half] = Exp2(space.all_max[h + 8 * half] - top);
        now_factors[half] = Exp2(space.now_max[h + 8 * half] - top);
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      all[i] = __fmaf_rn(all[i], factors[i / 2], __fmul_rn(o[i], now_factors[i / 2]));
      o[i] = 0;
    }
    if (threadIdx.x < kHeads) {
      const int r = threadIdx.x;
      const float top = first ? space.now_max[r] : fmaxf(space.all_max[r], space.now_max[r]);
      const float factor = first ? 0 : Exp2(space.all_max[r] - top);
      const float now_factor = Exp2(space.now_max[r] - top);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        space.all_sum[half][r] = __fmaf_rn(first ? 0 : space.all_sum[half][r], factor,
                                           __fmul_rn(space.now_sum[half][r], now_factor));
        space.now_sum[half][r] = 0;
      }
      space.all_max[r] = top;
      space.now_max[r] = kLowest;
    }
    __syncthreads();
  };

  int block = 0;
  int chunk = 0;
  uint32_t parity = 0;
  int blocks = min(list.ChunkBegin(1), Space::kBlocks);
#pragma unroll 1
  while (true) {
    const int next = block + blocks;
    const int next_chunk = chunk + (next == list.ChunkBegin(chunk + 1));
    const bool more = next_chunk < list.chunks();
    const int keys = blocks * kBlock;
    const int share = (blocks * kBlockTiles + kClusterBlocks - 1) / kClusterBlocks;  // tiles
    const int own_begin = min(share * rank, blocks * kBlockTiles);
    const int own_tiles = min(share, blocks * kBlockTiles - own_begin);
    const uint32_t reciprocal = 65536 / share + 1;  // of share, exact for a panel's tiles
    const auto rank_of = [&](int tile) { return static_cast<int>(tile * reciprocal >> 16); };

    constexpr int kFinds = (Space::kKeys + kClusterThreads - 1) / kClusterThreads;
    int compressed[kFinds];
#pragma unroll
    for (int n = 0; n < kFinds; ++n) {
      compressed[n] = list.CompressedEntry(block * kBlock + threadIdx.x + n * kClusterThreads);
    }
#pragma unroll
    for (int n = 0; n < kFinds; ++n) {
      const int i = threadIdx.x + n * kClusterThreads;
      if (i >= keys) continue;  // whole warps
      const std::byte* entry = list.Entry(block * kBlock + i, compressed[n]);
      space.entries[i] = entry;
      const uint32_t mask = __ballot_sync(0xffffffff, entry != nullptr);
      if (lane == 0) space.present[i / 32] = mask;
    }
    if (threadIdx.x == 0) {
      space.tops_here.Expect((kClusterBlocks - 1) * sizeof(space.tops[0]));
      space.weights_here.Expect((kClusterBlocks - 1) * sizeof(space.weights[0]));
    }
    __syncthreads();

    // This block's share of the keys comes.
#pragma unroll 2
    for (int u = threadIdx.x / 8; u < 8 * own_tiles * Keys::kRawSlices; u += kClusterThreads / 8) {
      const int key = u / Keys::kRawSlices;
      const int slice = u % Keys::kRawSlices;
      Keys::Fetch(space.entries[8 * own_begin + key], slice, eighth, space.in.keys[slice][key]);
    }
#pragma unroll 1
    for (int key = threadIdx.x / 8; key < 8 * own_tiles; key += kClusterThreads / 8) {
      const std::byte* entry = space.entries[8 * own_begin + key];
      Keys::FetchLast(entry, eighth, space.key_tile[0][kClusterBlocks - 1], key);
      if (eighth == 0) Keys::FetchScales(entry, &space.own_scales[key]);
    }
    EndCopies();
    const QueryTiles tiles = {space.in.q[0][0], sizeof(space.in.q[0][0]), sizeof(space.in.q[0])};
    LoadQueries<kParts, 1>(args, row, first_head, kHeads, tiles, warp, kWarps);
    AwaitCopies<0>();
    __syncthreads();
    for (int u = threadIdx.x / 4; u < 8 * own_tiles * Keys::kRawSlices; u += kClusterThreads / 4) {
      const int slice = u / (8 * own_tiles);
      const int key = u - slice * (8 * own_tiles);
      Keys::Decode(space.in.keys[slice][key], space.own_scales[key], slice, threadIdx.x % 4,
                   space.key_tile[0][slice], sizeof(space.key_tile[0]), key);
    }
    __syncthreads();

    // A tile's logits and their maximum by a warp; meanwhile the other warps fetch this block's values.
    float s[kM][4] = {};
    if (warp >= kTiles) {
      constexpr int kFetching = (kWarps - kTiles) * 4;
      if (rank < Keys::kRawSlices) {
#pragma unroll 4
        for (int key = threadIdx.x / 8 - 4 * kTiles; key < keys; key += kFetching) {
          Keys::Fetch(space.entries[key], rank, eighth, space.values[key]);
          if (eighth == 0) Keys::FetchScales(space.entries[key], &space.scales[key]);
        }
      }
      EndCopies();
    } else if (warp < own_tiles) {
#pragma unroll
      for (int slice = 0; slice < kClusterBlocks; ++slice) {
#pragma unroll
        for (int k = 0; k < 4; k += 2) {
          uint32_t keys_of[kParts][4];
#pragma unroll
          for (int part = 0; part < kParts; ++part) {
            LoadMatrices(keys_of[part],
                         ChunkOf(space.key_tile[part][slice], 8 * warp + lane % 8, 2 * k + lane / 8));
          }
#pragma unroll
          for (int m = 0; m < kM; ++m) {
#pragma unroll
            for (int odd = 0; odd < 2; ++odd) {
              uint32_t q[kParts][4];
#pragma unroll
              for (int part = 0; part < kParts; ++part) {
                LoadMatrices(q[part],
                             ChunkOf(space.in.q[part][slice], 16 * m + lane % 16, 2 * (k + odd) + lane / 16));
              }
              if constexpr (kParts == 2) {
                MmaBf16(s[m], q[1], keys_of[0][2 * odd], keys_of[0][2 * odd + 1]);
                MmaBf16(s[m], q[0], keys_of[1][2 * odd], keys_of[1][2 * odd + 1]);
              }
              MmaBf16(s[m], q[0], keys_of[0][2 * odd], keys_of[0][2 * odd + 1]);
            }
          }
        }
      }
      const int tile = own_begin + warp;
      const uint32_t mask = space.present[tile / 4] >> (8 * (tile % 4) + 2 * t);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float top = -INFINITY;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& x = s[m][2 * half + i];
            if (!(mask >> i & 1)) x = -INFINITY;
            top = fmaxf(top, x);
          }
          top = __fmul_rn(top, args.scale);
          top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
          top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
          if (t == 0) space.tops[rank][16 * m + g + 8 * half][warp] = top;
        }
      }
      FenceForTransfers();
    }
    AwaitCopies<0>();
    if (block == 0) ClusterWait();
    __syncthreads();
    if (lane == 0 && warp < kClusterBlocks && warp != rank) {
      space.tops_here.Transfer(warp, space.tops[rank], sizeof(space.tops[0]));
    }
    if (rank < Keys::kRawSlices) {
#pragma unroll 2
      for (int key = threadIdx.x / 4; key < keys; key += kClusterThreads / 4) {
        Keys::Decode(space.values[key], space.scales[key], rank, threadIdx.x % 4, space.value_tile[0],
                     sizeof(space.value_tile[0]), key);
      }
    } else {
#pragma unroll 2
      for (int key = threadIdx.x / 8; key < keys; key += kClusterThreads / 8) {
        Keys::FetchLast(space.entries[key], eighth, space.value_tile[0], key);
      }
      EndCopies();
    }
    space.tops_here.Wait(parity);

    // Maxima up to each block: 16 lanes have a head's blocks.
    if (const int r = 2 * warp + lane / 16; r < kHeads) {
      const int b = lane % 16;
      float top = -INFINITY;
      if (b < blocks) {
        int of = rank_of(b * kBlockTiles);
        int tile = b * kBlockTiles - of * share;
#pragma unroll
        for (int i = 0; i < kBlockTiles; ++i) {
          top = fmaxf(top, space.tops[of][r][tile]);
          if (++tile == share) {
            ++of;
            tile = 0;
          }
        }
      }
#pragma unroll
      for (int d = 1; d < 16; d *= 2) {
        const float before = __shfl_up_sync(0xffffffff, top, d, 16);
        if (b >= d) top = fmaxf(top, before);
      }
      const float start = space.now_max[r];
      top = fmaxf(top, start);
      float before = __shfl_up_sync(0xffffffff, top, 1, 16);
      if (b == 0) before = start;
      if (b < blocks) {
        space.maxima[b][r] = top;
        space.factors[b][r] = Exp2(before - top);
      }
      __syncwarp();
      if (b == blocks - 1) space.now_max[r] = top;
    }
    __syncthreads();

    // Probabilities and the tile's sum of them.
    if (warp < own_tiles) {
      const int b = (own_begin + warp) / kBlockTiles;
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int r = 16 * m + g + 8 * half;
          const float top = space.maxima[b][r];
          const float p[2] = {Exp2(__fmaf_rn(s[m][2 * half], args.scale, -top)),
                              Exp2(__fmaf_rn(s[m][2 * half + 1], args.scale, -top))};
          float sum = __fadd_rn(p[0], p[1]);
          sum += __shfl_xor_sync(0xffffffff, sum, 1);
          sum += __shfl_xor_sync(0xffffffff, sum, 2);
          if (t == 0) space.weights[rank].sums[r][warp] = sum;
          uint32_t* to = reinterpret_cast<uint32_t*>(&space.weights[rank].p[r][warp]) + t;
          *to = PackBf16(p[0], p[1]);
          if constexpr (kParts == 2) to[4 * kTiles] = PackBf16(Remainder(p[0]), Remainder(p[1]));
        }
      }
      FenceForTransfers();
    }
    AwaitCopies<0>();  // the last slice's values
    __syncthreads();
    if (lane == 0 && warp < kClusterBlocks && warp != rank) {
      space.weights_here.Transfer(warp, &space.weights[rank], sizeof(space.weights[0]));
    }
    space.weights_here.Wait(parity);
    ClusterArrive();

    // Sums: 16 lanes have a head's blocks.
    constexpr int kFirst = kWarps - kHeads / 2;
    if (const int r = 2 * (warp - kFirst) + lane / 16; warp >= kFirst) {
      const int b = lane % 16;
      float sums[kBlockTiles] = {};
      float factor = 0;
      if (b < blocks) {
        int of = rank_of(b * kBlockTiles);
        int tile = b * kBlockTiles - of * share;
#pragma unroll
        for (int i = 0; i < kBlockTiles; ++i) {
          sums[i] = space.weights[of].sums[r][tile];
          if (++tile == share) {
            ++of;
            tile = 0;
          }
        }
        factor = space.factors[b][r];
      }
#pragma unroll
      for (int half = 0; half < kBlockTiles / 4; ++half) {
        const float own = __fadd_rn(__fadd_rn(sums[4 * half], sums[4 * half + 1]),
                                    __fadd_rn(sums[4 * half + 2], sums[4 * half + 3]));
        float total = space.now_sum[half][r];
#pragma unroll 1
        for (int i = 0; i < blocks; ++i) {
          total =
              __fmaf_rn(total, __shfl_sync(0xffffffff, factor, i, 16), __shfl_sync(0xffffffff, own, i, 16));
        }
        __syncwarp();
        if (b == 0) space.now_sum[half][r] = total;
      }
    }

    // Values.
#pragma unroll 2
    for (int b = 0; b < (adds ? blocks : 0); ++b) {
      const float factors[2] = {space.factors[b][h], space.factors[b][h + 8]};
#pragma unroll
      for (int i = 0; i < 4; ++i) o[i] *= factors[i / 2];
#pragma unroll
      for (int k = 0; k < kBlock; k += 32) {
        uint32_t values[kParts][4];
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          LoadMatricesTransposed(values[part],
                                 ChunkOf(space.value_tile[part], b * kBlock + k + lane, column));
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int tile = b * kBlockTiles + k / 8 + 2 * half + lane / 16;
          const int of = rank_of(tile);
          const uint4* from = &space.weights[of].p[h - g + lane % 16][tile - of * share];
          uint32_t p[kParts][4];
#pragma unroll
          for (int part = 0; part < kParts; ++part) LoadMatrices(p[part], from + part * kTiles);
          if constexpr (kParts == 2) {
            MmaBf16(o, p[1], values[0][2 * half], values[0][2 * half + 1]);
            MmaBf16(o, p[0], values[1][2 * half], values[1][2 * half + 1]);
          }
          MmaBf16(o, p[0], values[0][2 * half], values[0][2 * half + 1]);
        }
      }
    }
    __syncthreads();
    if (next_chunk != chunk) merge(chunk == 0);
    ClusterWait();  // all blocks have what this one sent
    if (!more) break;
    block = next;
    chunk = next_chunk;
    blocks = min(list.ChunkBegin(chunk + 1) - block, Space::kBlocks);
    parity ^= 1;
  }

  if (adds) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = h + 8 * half;
      if (first_head + r >= args.heads) continue;
      const float sum = space.all_sum[0][r] + space.all_sum[1][r] + Exp2(space.sinks[r] - space.all_max[r]);
      StoreOutput<kParts == 1>(args, row, first_head + r, kSliceDims * rank + 8 * column + 2 * t,
                               {all[2 * half], all[2 * half + 1]}, 1 / sum);
    }
  }
}

}  // namespace foresight::cuda
