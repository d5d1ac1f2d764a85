// Attention of one chunk of a row's list and some heads by a cluster of 8 blocks that share the keys: for few
// rows (sm_90). The arithmetic is BlockAttention's.
#pragma once

#include "kernels/attention/key_list.cuh"
#include "kernels/attention/key_tile.cuh"
#include "kernels/attention/query_tile.cuh"
#include "kernels/cuda/barriers.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/exponential.cuh"

namespace foresight::cuda {

constexpr int kClusterBlocks = 8;  // one for each slice of 64 dims
constexpr int kClusterThreads = 512;

// A panel of a chunk is a number of whole blocks of keys, in tiles of 8. In a panel, a thread block
// multiplies the queries with its share of the tiles, a warp with each, in all dims, and the probabilities
// with all keys, in its slice of dims. In between the thread blocks send one another the slices of their
// keys, the largest logit of each tile, then probabilities.
template <typename Keys, int kOfHeads>
struct ClusterSpace {
  static constexpr int kParts = Keys::kParts;
  static constexpr int kHeads = kOfHeads;  // 8 or 16
  static constexpr int kBlockTiles = Keys::kBlock / 8;
  static constexpr int kTiles = Keys::kShareTiles;  // of a thread block
  static constexpr int kPanelTiles = kClusterBlocks * kTiles;
  static constexpr int kKeys = 8 * kPanelTiles;
  static constexpr int kBlocks = kPanelTiles / kBlockTiles;

  struct Weights {  // of a tile
    uint4 p[kParts][kHeads];
    float sums[kHeads];
  };

  std::byte q[kParts][kClusterBlocks][kHeads * kTileRowBytes];
  union {
    typename Keys::Piece values[kPanelTiles];
    std::byte last_values[Keys::kCodedSlices < 8 ? kKeys * kTileRowBytes : 1];  // in the last slice's block
  };
  typename Keys::Tiles keys;
  Weights weights[kPanelTiles];
  float tops[kPanelTiles][kHeads];
  float own_maxima[kTiles][kHeads];       // up to the block of each own tile
  float maxima[2][kHeads];                // so far, before panels in turn
  float factors[kBlocks][kHeads];         // from each block's maximum to the next one's
  float sums[Keys::kBlock / 32][kHeads];  // of all weights, of each half of blocks of 64 keys
  float sinks[kHeads];
  TransferBarrier values_here;
  TransferBarrier tops_here;
  TransferBarrier weights_here;
};

// By a warp; multiples of 16 bytes.
__device__ inline void CopyShared(void* to, const void* from, int bytes) {
  for (int i = threadIdx.x % 32; i < bytes / 16; i += 32) {
    static_cast<uint4*>(to)[i] = static_cast<const uint4*>(from)[i];
  }
}

// Elementwise.
__device__ inline void KeepMaxima(float4& to, const float4& x) {
  to = {fmaxf(to.x, x.x), fmaxf(to.y, x.y), fmaxf(to.z, x.z), fmaxf(to.w, x.w)};
}
__device__ inline float4 ShuffleXor(const float4& x, int lanes) {
  return {__shfl_xor_sync(0xffffffff, x.x, lanes), __shfl_xor_sync(0xffffffff, x.y, lanes),
          __shfl_xor_sync(0xffffffff, x.z, lanes), __shfl_xor_sync(0xffffffff, x.w, lanes)};
}

__device__ inline float4 ShuffleUp(const float4& x, int lanes) {
  return {__shfl_up_sync(0xffffffff, x.x, lanes, 16), __shfl_up_sync(0xffffffff, x.y, lanes, 16),
          __shfl_up_sync(0xffffffff, x.z, lanes, 16), __shfl_up_sync(0xffffffff, x.w, lanes, 16)};
}

template <typename Keys, int kOfHeads>
__global__ void __launch_bounds__(kClusterThreads, 1) ClusterAttention(Attending args) {
  using Space = ClusterSpace<Keys, kOfHeads>;
  constexpr int kParts = Keys::kParts;
  constexpr int kHeads = Space::kHeads;
  constexpr int kHalves = kHeads / 8;  // of a product's 16 rows
  constexpr int kBlock = Keys::kBlock;
  constexpr int kBlockTiles = Space::kBlockTiles;
  constexpr int kTiles = Space::kTiles;
  constexpr int kWarps = kClusterThreads / 32;
  // A warp has one tile of keys; the others have queries, and what a warp or two can do.
  constexpr int kTileThreads = 32 * kTiles;
  constexpr int kOtherWarps = kWarps - kTiles;
  constexpr int kQueryWarps = 4;
  constexpr int kValueWarps = 8;  // each with eight dims
  constexpr int kFactorWarps = kHeads / 8;
  constexpr int kFactorThreads = 32 * (kValueWarps + 2);
  constexpr int kSumWarp = kWarps - 1;
  constexpr int kSendWarp = kWarps - 2;
  static_assert(kOtherWarps >= kQueryWarps + kFactorWarps);
  constexpr bool kHasLast = Keys::kCodedSlices < kClusterBlocks;
  // A warp looks at four heads a lane of several tiles.
  constexpr int kQuads = kHeads / 4;
  constexpr int kTilesAtOnce = 32 / kQuads;
  extern __shared__ __align__(128) std::byte shared[];
  Space& space = *reinterpret_cast<Space*>(shared);

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int quad = lane % kQuads;
  const int rank = ClusterRank();
  const int row = blockIdx.y;
  const int chunk = blockIdx.z;
  const int first_head = blockIdx.x / kClusterBlocks * kHeads;
  const bool multiplies = warp < kTiles;
  const bool picked = args.compressed == CompressedKeys::kPicked;

  if (threadIdx.x == 0) {
    space.values_here.Init();
    space.tops_here.Init();
    space.weights_here.Init();
  }
  __syncwarp();
  if (warp == kTiles && lane < kHeads) {
    const int head = first_head + lane;
    const float sink = head < args.heads ? SinkLogit(args, head) : 0;
    space.sinks[lane] = sink;
    space.maxima[0][lane] = chunk == 0 ? fmaxf(sink, kLowest) : kLowest;
  }
  ClusterArrive();  // awaited before the first transfer to another block
  Prepare(args, row);
  LoadArgument(args.chunk_sums.values);
  AwaitInputs();

  // A pick is sent for before it is known where it belongs: as if the row saw a whole window and `topk`
  // entries, in one chunk.
  const int raw_guess = (args.window + kBlock - 1) / kBlock;
  const int blocks_guess = min(raw_guess + (args.topk + kBlock - 1) / kBlock, Space::kBlocks);
  const int share_guess = (blocks_guess * kBlockTiles + kClusterBlocks - 1) / kClusterBlocks;
  int pick = -1;
  if (multiplies) {
    const int at = 8 * (share_guess * rank + warp) + lane % 8 - raw_guess * kBlock;
    if (picked) pick = args.picks[int64_t{row} * args.topk + max(0, min(at, args.topk - 1))];
  } else if (warp < kTiles + kQueryWarps) {
    LoadQueries<kParts, kHeads / kQueryWarps, true, true>(
        args, row, first_head, kHeads, {space.q[0][0], sizeof(space.q[0][0]), sizeof(space.q[0])},
        warp - kTiles, kQueryWarps);
  }
  const SequenceRows sequence = SequenceAtOnce(args, row);
  const KeyList<kBlock> list(args, sequence, row);

  const bool adds = warp < kValueWarps;
  const bool coded = rank < Keys::kCodedSlices;
  float o[4] = {};
  // Of sums of weights, in the sum warp: a lane has a head's, of one half of each block.
  const bool sums = warp == kSumWarp && lane < kHeads * (kBlock / 32);
  const int sum_half = lane / kHeads;
  const int sum_head = lane % kHeads;
  float sum = 0;

  int block = list.ChunkBegin(chunk);
  const int end_block = list.ChunkBegin(chunk + 1);
  if (block == end_block) {  // the list has fewer chunks
    ClusterWait();
    return;
  }
  const bool is_whole = list.chunks() == 1;
  bool first = true;  // panel
  uint32_t parity = 0;
  int blocks = min(end_block - block, Space::kBlocks);
  // Own tiles are there, in the first panel also queries. Who has made them waits too, which costs nothing.
  const auto await_tiles = [&] {
    if (first) {
      __syncthreads();
    } else if (multiplies || warp == kSendWarp) {
      GroupBarrier<2>(kTileThreads + 32);
    } else {  // as many barriers as the others (barriers.cuh)
      GroupBarrier<4>(kClusterThreads - kTileThreads - 32);
    }
  };
#pragma unroll 1
  while (true) {
    const bool more = block + blocks < end_block;
    const int tiles = blocks * kBlockTiles;
    const int share = (tiles + kClusterBlocks - 1) / kClusterBlocks;
    const int own_begin = min(share * rank, tiles);
    const int own_tiles = min(share, tiles - own_begin);
    if (threadIdx.x == 0) {
      space.values_here.Expect((tiles - own_tiles) * (coded ? sizeof(space.values[0]) : 8 * kTileRowBytes));
      space.tops_here.Expect(tiles * sizeof(space.tops[0]));
      space.weights_here.Expect(tiles * sizeof(space.weights[0]));
    }

    if (multiplies) {
      // The warp's tile of keys comes, and goes to all blocks.
      const int tile = own_begin + warp;
      const bool has_tile = warp < own_tiles;
      uint32_t here = 0;
      if (has_tile) {
        const int key = block * kBlock + 8 * tile + lane % 8;
        int compressed = pick;
        const std::byte* entry;  // a tile's are raw or compressed together: no branch diverges
        const auto find = [&](const KeyList<kBlock>& list) {
          if (block > 0 || !picked || list.raw_blocks != raw_guess || share != share_guess) {
            compressed = list.CompressedEntry(key);
          } else if (key - raw_guess * kBlock >= list.num_compressed) {
            compressed = -1;
          }
          entry = list.Entry(key, compressed);
        };
        if (first) {
          find(list);
        } else {  // which spares registers
          find(KeyList<kBlock>(args, WarpSequenceOf(args, row), row));
        }
        here = __ballot_sync(0xffffffff, entry != nullptr);
        Keys::FetchTile(entry, space.keys, warp);
        EndCopies();
        AwaitCopies<0>();
        __syncwarp();
        Keys::FinishTile(space.keys, warp);
        FenceForTransfers();
        __syncwarp();
      }
      await_tiles();

      // Logits.
      float s[4] = {};
      if (has_tile) {
        using Fragments = typename Keys::Fragments;
        using QueryFragments = uint32_t[4][kParts][4];
        const auto load_queries = [&](int slice, QueryFragments& q) {
#pragma unroll
          for (int part = 0; part < kParts; ++part) {
            if constexpr (kHeads == 16) {
#pragma unroll
              for (int k = 0; k < 4; ++k) {
                LoadMatrices(q[k][part], ChunkOf(space.q[part][slice], lane % 16, 2 * k + lane / 16));
              }
            } else {
#pragma unroll
              for (int k = 0; k < 4; k += 2) {
                uint32_t both[4];
                LoadMatrices(both, ChunkOf(space.q[part][slice], lane % 8, 2 * k + lane / 8));
#pragma unroll
                for (int odd = 0; odd < 2; ++odd) {
                  q[k + odd][part][0] = both[2 * odd];
                  q[k + odd][part][2] = both[2 * odd + 1];
                  q[k + odd][part][1] = q[k + odd][part][3] = 0;
                }
              }
            }
          }
        };
        // Both halves of the dims side by side: each is a chain of products that wait for one another.
        float upper[4] = {};
#pragma unroll 1
        for (int slice = 0; slice < kHalfSlices; ++slice) {
          Fragments keys[2];
          QueryFragments q[2];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int at = slice + kHalfSlices * half;
            load_queries(at, q[half]);
            if (at < Keys::kCodedSlices) {
              Keys::LoadFragments(space.keys, warp, at, keys[half]);
            } else if constexpr (kHasLast) {
              Keys::LoadLastFragments(space.keys, warp, keys[half]);
            }
          }
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            if constexpr (kParts == 2) {
              MmaBf16(s, q[0][k][1], keys[0][k][0][0], keys[0][k][0][1]);
              MmaBf16(upper, q[1][k][1], keys[1][k][0][0], keys[1][k][0][1]);
              MmaBf16(s, q[0][k][0], keys[0][k][1][0], keys[0][k][1][1]);
              MmaBf16(upper, q[1][k][0], keys[1][k][1][0], keys[1][k][1][1]);
            }
            MmaBf16(s, q[0][k][0], keys[0][k][0][0], keys[0][k][0][1]);
            MmaBf16(upper, q[1][k][0], keys[1][k][0][0], keys[1][k][0][1]);
          }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) s[i] = __fadd_rn(s[i], upper[i]);
      }

      if (first) ClusterWait();

      // The quads' maxima, four heads a lane, to all blocks of the cluster.
      const auto of_heads = [&](const float(&x)[2]) {
        const float mine = kHalves == 2 && t % 2 != 0 ? x[1] : x[0];
        uint4 all;
        const auto take = [&](int i) {
          const int head = 4 * quad + i;
          return __float_as_uint(__shfl_sync(0xffffffff, mine, head % 8 * 4 + head / 8));
        };
        all = {take(0), take(1), take(2), take(3)};
        return all;
      };
      if (has_tile) {
        float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& x = s[2 * half + i];
            if (!(here >> (2 * t + i) & 1)) x = -INFINITY;
            top[half] = fmaxf(top[half], x);
          }
          top[half] = __fmul_rn(top[half], args.scale);
          top[half] = fmaxf(top[half], __shfl_xor_sync(0xffffffff, top[half], 1));
          top[half] = fmaxf(top[half], __shfl_xor_sync(0xffffffff, top[half], 2));
        }
        const uint4 four = of_heads(top);
        if (lane < kQuads * kClusterBlocks) {
          space.tops_here.Store(lane / kQuads, &space.tops[tile][4 * quad], four);
        }
      }
      if (has_tile) {
        space.tops_here.Wait(parity);

        // The maximum up to the tile's block.
        const int end = (tile / kBlockTiles + 1) * kBlockTiles;
        float4 most = *reinterpret_cast<const float4*>(&space.maxima[parity][4 * quad]);
#pragma unroll
        for (int i = 0; i < Space::kPanelTiles; i += kTilesAtOnce) {
          const int of = i + lane / kQuads;
          if (of < end) KeepMaxima(most, *reinterpret_cast<const float4*>(&space.tops[of][4 * quad]));
        }
#pragma unroll
        for (int lanes = kQuads; lanes < 32; lanes *= 2) KeepMaxima(most, ShuffleXor(most, lanes));
        if (lane < kQuads) *reinterpret_cast<float4*>(&space.own_maxima[warp][4 * lane]) = most;
        __syncwarp();

        // Probabilities and the tile's sum of them.
        float sum[2];
        uint32_t words[kParts][2];
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          const float top = space.own_maxima[warp][g + 8 * half];
          const float p[2] = {Exp2(__fmaf_rn(s[2 * half], args.scale, -top)),
                              Exp2(__fmaf_rn(s[2 * half + 1], args.scale, -top))};
          sum[half] = __fadd_rn(p[0], p[1]);
          sum[half] += __shfl_xor_sync(0xffffffff, sum[half], 1);
          sum[half] += __shfl_xor_sync(0xffffffff, sum[half], 2);
          words[0][half] = PackBf16(p[0], p[1]);
          if constexpr (kParts == 2) words[1][half] = PackBf16(Remainder(p[0]), Remainder(p[1]));
        }
        const uint4 sums_of_four = of_heads(sum);
        typename Space::Weights& weights = space.weights[tile];
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          const int of = lane % kHeads;
          const auto take = [&](int i) {
            const uint32_t low = __shfl_sync(0xffffffff, words[part][0], of % 8 * 4 + i);
            if constexpr (kHalves == 1) return low;
            const uint32_t high = __shfl_sync(0xffffffff, words[part][kHalves - 1], of % 8 * 4 + i);
            return of < 8 ? low : high;
          };
          const uint4 p = {take(0), take(1), take(2), take(3)};
#pragma unroll
          for (int i = 0; i < kClusterBlocks * kHeads / 32; ++i) {
            space.weights_here.Store(lane / kHeads + 32 / kHeads * i, &weights.p[part][of], p);
          }
        }
        if (lane < kQuads * kClusterBlocks) {
          space.weights_here.Store(lane / kQuads, &weights.sums[4 * quad], sums_of_four);
        }
      }
    } else {
      await_tiles();
      // Behind await_tiles() in all warps: racecheck takes it for a barrier.
      if (first) ClusterWait();
      if (warp == kSendWarp) {  // the tiles' slices go to their blocks
        const int bytes = own_tiles * static_cast<int>(sizeof(space.values[0]));
        const int last_bytes = own_tiles * 8 * kTileRowBytes;
        std::byte* const last = &space.last_values[kHasLast ? own_begin * 8 * kTileRowBytes : 0];
        if (own_tiles > 0 && lane < kClusterBlocks && lane != rank) {
          if (lane < Keys::kCodedSlices) {
            space.values_here.Transfer(lane, &space.values[own_begin], space.keys.pieces[lane], bytes);
          } else if constexpr (kHasLast) {
            space.values_here.Transfer(lane, last, space.keys.last, last_bytes);
          }
        }
        __syncwarp();
        if (coded) {
          CopyShared(&space.values[own_begin], space.keys.pieces[rank], bytes);
        } else if constexpr (kHasLast) {
          CopyShared(last, space.keys.last, last_bytes);
        }
      }

      // What becomes of sums at each block, when their maximum changes: a lane has four heads and a block.
      const int factor_warp = warp - (kWarps - kFactorWarps);
      if (factor_warp >= 0) {
        space.tops_here.Wait(parity);
        const int b = lane % 16;
        const int heads = 8 * factor_warp + 4 * (lane / 16);
        const float4 start = *reinterpret_cast<const float4*>(&space.maxima[parity][heads]);
        float4 now = start;
        if (b < blocks) {
#pragma unroll
          for (int i = 0; i < kBlockTiles; ++i) {  // from different banks
            KeepMaxima(now, *reinterpret_cast<const float4*>(
                                &space.tops[b * kBlockTiles + (i + b) % kBlockTiles][heads]));
          }
        }
#pragma unroll
        for (int d = 1; d < 16; d *= 2) {
          const float4 before = ShuffleUp(now, d);
          if (b >= d) KeepMaxima(now, before);
        }
        float4 before = ShuffleUp(now, 1);
        if (b == 0) before = start;
        if (b < blocks) {
          *reinterpret_cast<float4*>(&space.factors[b][heads]) = {
              Exp2(before.x - now.x), Exp2(before.y - now.y), Exp2(before.z - now.z), Exp2(before.w - now.w)};
          if (b == blocks - 1) *reinterpret_cast<float4*>(&space.maxima[parity ^ 1][heads]) = now;
        }
      }
    }
    if (adds || warp == kSendWarp || warp == kSumWarp) {
      GroupBarrier<3>(kFactorThreads);  // factors and own values are there
    }

    if (adds) {
      struct Step {
        float factors[2];
        uint32_t p[kBlock / 16][kParts][4];
      };
      const auto load = [&](int b, Step& step) {
#pragma unroll
        for (int half = 0; half < kHalves; ++half) step.factors[half] = space.factors[b][g + 8 * half];
#pragma unroll
        for (int k = 0; k < kBlock / 32; ++k) {
#pragma unroll
          for (int part = 0; part < kParts; ++part) {
            const int tile = b * kBlockTiles + 4 * k;
            if constexpr (kHeads == 16) {
#pragma unroll
              for (int half = 0; half < 2; ++half) {
                LoadMatrices(step.p[2 * k + half][part],
                             &space.weights[tile + 2 * half + lane / 16].p[part][lane % 16]);
              }
            } else {
              uint32_t both[4];
              LoadMatrices(both, &space.weights[tile + lane / 8].p[part][lane % 8]);
#pragma unroll
              for (int half = 0; half < 2; ++half) {
                uint32_t(&p)[4] = step.p[2 * k + half][part];
                p[0] = both[2 * half];
                p[2] = both[2 * half + 1];
                p[1] = p[3] = 0;
              }
            }
          }
        }
      };
      using Values = typename Keys::ValueFragments;
      // Meanwhile ahead(k) for each 16 keys.
      const auto add = [&](const Step& step, const Values& values, const auto& ahead) {
#pragma unroll
        for (int i = 0; i < 2 * kHalves; ++i) o[i] *= step.factors[i / 2];
#pragma unroll
        for (int k = 0; k < kBlock / 16; ++k) {
          ahead(k);
          if constexpr (kParts == 2) {
            MmaBf16(o, step.p[k][1], values[k][0][0], values[k][0][1]);
            MmaBf16(o, step.p[k][0], values[k][1][0], values[k][1][1]);
          }
          MmaBf16(o, step.p[k][0], values[k][0][0], values[k][0][1]);
        }
      };
      // The next block's are loaded and decoded while one's are added.
      const int last = blocks - 1;
      space.values_here.Wait(parity);
      if (!more) ClusterArriveRelaxed();
      if (coded) {
        typename Keys::RawValues raw;
        Values values[2];
        Step steps[2];
        Keys::LoadValues(space.values, warp, raw);
#pragma unroll
        for (int k = 0; k < kBlock / 16; ++k) Keys::DecodeValues(raw, warp, k, values[0]);
        Keys::LoadValues(&space.values[min(1, last) * kBlockTiles], warp, raw);
        space.weights_here.Wait(parity);
        if constexpr (kHeads == 8) load(0, steps[0]);
#pragma unroll 1
        for (int begin = 0; begin < blocks; begin += 2) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int b = begin + i;
            if (i > 0 && b > last) break;
            if constexpr (kHeads == 8) {
              load(min(b + 1, last), steps[i ^ 1]);
            } else {  // for which there are no registers
              load(b, steps[i]);
            }
            add(steps[i], values[i], [&](int k) { Keys::DecodeValues(raw, warp, k, values[i ^ 1]); });
            Keys::LoadValues(&space.values[min(b + 2, last) * kBlockTiles], warp, raw);
          }
        }
      } else if constexpr (kHasLast) {
        space.weights_here.Wait(parity);
        Values values[2];
        Step steps[2];
        const auto load_last = [&](int b, int k, Values& to) {  // of 16 keys, in twos
          if (k % 2 != 0) return;
          uint32_t loaded[4];
          LoadMatricesTransposed(loaded, ChunkOf(space.last_values, b * kBlock + 16 * k + lane, warp));
#pragma unroll
          for (int i = 0; i < 4; ++i) to[k + i / 2][0][i % 2] = loaded[i];
        };
        load(0, steps[0]);
#pragma unroll
        for (int k = 0; k < kBlock / 16; ++k) load_last(0, k, values[0]);
#pragma unroll 1
        for (int begin = 0; begin < blocks; begin += 2) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int b = begin + i;
            if (i > 0 && b > last) break;
            const int next_block = min(b + 1, last);
            load(next_block, steps[i ^ 1]);
            add(steps[i], values[i], [&](int k) { load_last(next_block, k, values[i ^ 1]); });
          }
        }
      }
    } else if (warp == kSumWarp) {
      space.weights_here.Wait(parity);
      if (sums) {
#pragma unroll 2
        for (int b = 0; b < blocks; ++b) {
          const auto* from = &space.weights[b * kBlockTiles + 4 * sum_half];
          const float own = __fadd_rn(__fadd_rn(from[0].sums[sum_head], from[1].sums[sum_head]),
                                      __fadd_rn(from[2].sums[sum_head], from[3].sums[sum_head]));
          sum = __fmaf_rn(sum, space.factors[b][sum_head], own);
        }
      }
    }

    if (!adds && !more) ClusterArriveRelaxed();
    if (!more) break;
    ClusterArrive();  // the panel is done, in all blocks
    ClusterWait();
    first = false;
    block += blocks;
    blocks = min(end_block - block, Space::kBlocks);
    parity ^= 1;
  }

  const int d = kSliceDims * rank;
  if (!is_whole) {  // MergeChunks follows
    if (sums && first_head + sum_head < args.heads) {
      const int64_t at = args.chunk_sums.At(args, row, first_head + sum_head, chunk);
      float* const weights = reinterpret_cast<float*>(args.chunk_sums.weights + at);
      weights[sum_half] = sum;
      if constexpr (kBlock != 64) weights[1] = 0;
      if (sum_half == 0) args.chunk_sums.maxima[at] = space.maxima[parity ^ 1][sum_head];
    }
    if (adds) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const int r = g + 8 * half;
        if (first_head + r >= args.heads) continue;
        float* const to =
            args.chunk_sums.values + args.chunk_sums.At(args, row, first_head + r, chunk) * kChunkDim + d;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          to[coded ? Keys::DimOf(warp, 2 * t + i) : 8 * warp + 2 * t + i] = o[2 * half + i];
        }
      }
    }
    ClusterWait();
    return;
  }

  if (sums) space.sums[sum_half][sum_head] = sum;
  if (adds || warp == kSumWarp) GroupBarrier<1>(32 * kValueWarps + 32);
  if (adds) {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const int r = g + 8 * half;
      if (first_head + r >= args.heads) continue;
      float all = space.sums[0][r];
      if constexpr (kBlock == 64) all += space.sums[1][r];
      all += Exp2(space.sinks[r] - space.maxima[parity ^ 1][r]);
      const float factor = 1 / all;
      const float2 v = {o[2 * half], o[2 * half + 1]};
      if (coded && Keys::kScattered) {
        StoreOutput<kParts == 1>(args, row, first_head + r, d + Keys::DimOf(warp, 2 * t), v.x, factor);
        StoreOutput<kParts == 1>(args, row, first_head + r, d + Keys::DimOf(warp, 2 * t + 1), v.y, factor);
      } else {
        StoreOutput<kParts == 1>(args, row, first_head + r, d + 8 * warp + 2 * t, v, factor);
      }
    }
  }
  ClusterWait();  // all blocks have the values that this one sent
}

}  // namespace foresight::cuda
