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
// multiplies the queries with its share of the tiles, two warps with each pair, half of the dims each, and
// the probabilities with all keys, in its slice of dims. In between the thread blocks send one another the
// slices of their keys, the largest logit of each tile, then probabilities. The products' rows are keys or
// dims, their columns are heads, of which there are few.
template <typename Keys, int kOfHeads>
struct ClusterSpace {
  static constexpr int kParts = Keys::kParts;
  static constexpr int kHeads = kOfHeads;  // 8 or 16
  static constexpr int kBlockTiles = Keys::kBlock / 8;
  static constexpr int kTiles = Keys::kShareTiles;  // of a thread block, at most
  static constexpr int kPanelTiles = kClusterBlocks * kTiles;
  static constexpr int kKeys = 8 * kPanelTiles;
  static constexpr int kBlocks = kPanelTiles / kBlockTiles;

  // Of a tile: eight heads of each key, of all keys the first heads first, and sums of keys.
  struct Weights {
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
  float2 halves[Keys::kTileSpace][kHeads / 8][32];  // of logits, from a warp to the other of its pair
  SixteenAddresses entries[Keys::kTileSpace];       // of a warp
  float maxima[2][kHeads];                          // so far, before panels in turn
  float factors[kBlocks][kHeads];                   // from each block's maximum to the next one's
  float inverses[kHeads];                           // 1 / the sum of all weights
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
__device__ inline void KeepMaxima(float2& to, const float2& x) {
  to = {fmaxf(to.x, x.x), fmaxf(to.y, x.y)};
}
// Of the lanes that have the same heads of other keys.
__device__ inline void KeepMaximaOfKeys(float2& x) {
#pragma unroll
  for (int lanes = 4; lanes < 32; lanes *= 2) {
    KeepMaxima(x, {__shfl_xor_sync(0xffffffff, x.x, lanes), __shfl_xor_sync(0xffffffff, x.y, lanes)});
  }
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
  constexpr int kHeadGroups = kHeads / 8;  // a product's columns each
  constexpr int kBlock = Keys::kBlock;
  constexpr int kBlockTiles = Space::kBlockTiles;
  constexpr int kWarps = kClusterThreads / 32;
  // A warp has half of the dims of two tiles of keys, then what is left of one; the others have queries, and
  // what a warp or two can do.
  constexpr int kTileWarps = Keys::kTileSpace;
  constexpr int kTileThreads = 32 * kTileWarps;
  constexpr int kOtherWarps = kWarps - kTileWarps;
  constexpr int kQueryWarps = 4;
  constexpr int kValueWarps = 4;  // those that had queries, each with 16 dims
  constexpr int kFactorWarps = kHeads / 8;
  constexpr int kFactorThreads = 32 * (kValueWarps + 2);
  constexpr int kSumWarp = kWarps - 1;
  constexpr int kSendWarp = kWarps - 2;
  static_assert(kOtherWarps >= kQueryWarps + kFactorWarps);
  constexpr bool kHasLast = Keys::kCodedSlices < kClusterBlocks;
  constexpr int kPairBarrier = 6;  // and on, of two warps each
  extern __shared__ __align__(128) std::byte shared[];
  Space& space = *reinterpret_cast<Space*>(shared);

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int rank = ClusterRank();
  const int row = blockIdx.y;
  const int chunk = blockIdx.z;
  const int first_head = blockIdx.x / kClusterBlocks * kHeads;
  const bool multiplies = warp < kTileWarps;
  const int half = warp % 2;  // of the dims
  const bool picked = args.compressed == CompressedKeys::kPicked;

  if (threadIdx.x == 0) {
    space.values_here.Init();
    space.tops_here.Init();
    space.weights_here.Init();
  }
  __syncwarp();
  if (warp == kTileWarps && lane < kHeads) {
    const int head = first_head + lane;
    const float sink = head < args.heads ? SinkLogit(args, head) : 0;
    space.sinks[lane] = sink;
    space.maxima[0][lane] = chunk == 0 ? fmaxf(sink, kLowest) : kLowest;
  }
  ClusterArriveRelaxed();
  Prepare(args, row);
  LoadArgument(args.chunk_sums.values);
  ClusterWait();  // the barriers are there, in all blocks
  AwaitInputs();

  // A pick and then its page are sent for before it is known where it belongs: as if the row saw a whole
  // window and `topk` entries, in one chunk.
  const int raw_guess = (args.window + kBlock - 1) / kBlock;
  const int blocks_guess = min(raw_guess + (args.topk + kBlock - 1) / kBlock, Space::kBlocks);
  const auto share_of = [](int blocks) {
    return (blocks * kBlockTiles + kClusterBlocks - 1) / kClusterBlocks;
  };
  const int share_guess = share_of(blocks_guess);
  const int pick_at = 8 * (share_guess * rank + warp - half) + lane % 16 - raw_guess * kBlock;
  int pick = -1;
  if (multiplies) {
    if (picked) pick = args.picks[int64_t{row} * args.topk + max(0, min(pick_at, args.topk - 1))];
  } else if (warp < kTileWarps + kQueryWarps) {
    LoadQueries<kParts, kHeads / kQueryWarps, true, true>(
        args, row, first_head, kHeads, {space.q[0][0], sizeof(space.q[0][0]), sizeof(space.q[0])},
        warp - kTileWarps, kQueryWarps);
  }
  const SequenceRows sequence = SequenceAtOnce(args, row);
  uint2 pick_page = {};
  if (multiplies && picked) {
    const int64_t seen = sequence.first_position + min(row - sequence.first_row, sequence.num_rows - 1) + 1;
    const bool is_entry = pick >= 0 && pick_at >= 0 && (int64_t{pick} + 1) * args.ratio <= seen;
    const uint32_t page =
        static_cast<uint32_t>(pick) / static_cast<uint32_t>(sequence.cache.compressed.per_block);
    LoadIf(is_entry, reinterpret_cast<const std::byte*>(sequence.cache.compressed.blocks + page), pick_page);
  }
  const KeyList<kBlock> list(args, sequence, row);

  const bool adds = !multiplies && warp < kTileWarps + kValueWarps;
  const int value_warp = warp - kTileWarps;
  const bool coded = rank < Keys::kCodedSlices;
  float o[kHeadGroups][4] = {};  // two dims of two heads
  // Of sums of weights, in the sum warp: a lane has a head's, of one half of each block.
  const bool sums = warp == kSumWarp && lane < kHeads * (kBlock / 32);
  const int sum_half = lane / kHeads;
  const int sum_head = lane % kHeads;
  float sum = 0;

  int block = list.ChunkBegin(chunk);
  const int end_block = list.ChunkBegin(chunk + 1);
  if (block == end_block) return;  // the list has fewer chunks
  const bool is_whole = list.blocks() <= list.chunk_blocks;
  uint32_t parity = 0;
  int blocks = min(end_block - block, Space::kBlocks);
  // Where the lane's key of the panel lies, one of the warp's 16.
  const auto find = [&](const KeyList<kBlock>& list) -> const std::byte* {
    const int share = share_of(blocks);
    const int tile = warp - half + lane % 16 / 8;
    const int key = block * kBlock + 8 * (share * rank + tile) + lane % 8;
    if (tile >= share || key >= kBlock * (block + blocks)) return nullptr;
    const bool guessed = block == 0 && list.raw_blocks == raw_guess && share == share_guess;
    const uint64_t page = uint64_t{pick_page.y} << 32 | pick_page.x;
    if (!guessed || page == 0 || key < raw_guess * kBlock) return list.Entry(key);
    if (key - raw_guess * kBlock >= list.num_compressed) return nullptr;
    const PagedView& pages = list.sequence.cache.compressed;
    return reinterpret_cast<const std::byte*>(page) + pages.offset +
           static_cast<uint32_t>(pick) % static_cast<uint32_t>(pages.per_block) * pages.item_bytes;
  };
  const std::byte* entry = multiplies ? find(list) : nullptr;
  // Own tiles are there, in the first panel also queries. Who has made them waits too, which costs nothing.
  bool first = true;  // panel
  const auto await_tiles = [&] {
    if (first) {
      GroupBarrier<14>(kClusterThreads);  // __syncthreads doesn't allow several places
    } else if (multiplies || warp == kSendWarp) {
      GroupBarrier<2>(kTileThreads + 32);
    } else {  // as many barriers as the others (barriers.cuh)
      GroupBarrier<4>(kClusterThreads - kTileThreads - 32);
    }
  };
  const auto await_maxima_sent = [&] {
    if (multiplies || warp == kSendWarp) {
      GroupBarrier<5>(kTileThreads + 32);
    } else {
      GroupBarrier<4>(kClusterThreads - kTileThreads - 32);
    }
  };
#pragma unroll 1
  while (true) {
    const bool more = block + blocks < end_block;
    const int tiles = blocks * kBlockTiles;
    const int share = share_of(blocks);
    const int own_begin = min(share * rank, tiles);
    const int own_tiles = min(share, tiles - own_begin);
    if (threadIdx.x == 0) {
      space.values_here.Expect((tiles - own_tiles) * (coded ? sizeof(space.values[0]) : 8 * kTileRowBytes));
      space.tops_here.Expect(tiles * sizeof(space.tops[0]));
      space.weights_here.Expect(tiles * sizeof(space.weights[0]));
    }

    if (multiplies) {
      // The warp's keys come, and go to all blocks.
      const int first_tile = warp - half;  // of two
      const int tile = own_begin + warp;
      const bool has_keys = first_tile < own_tiles;
      const bool has_tile = warp < own_tiles;
      uint32_t here = 0;
      bool small = false;  // are all scales
      if (has_keys) {
        here = __ballot_sync(0xffffffff, entry != nullptr);
        small = Keys::FetchHalf(entry, here, space.entries[warp], space.keys, first_tile, half);
        EndCopies();
        AwaitCopies<0>();
        FenceForTransfers();
        __syncwarp();
      }
      await_tiles();

      // Logits: keys as the products' rows, heads as their columns.
      float s[kHeadGroups][4] = {};
      const auto multiply_all = [&]<bool kSmallScales>() {
        using Fragments = typename Keys::Fragments;
#pragma unroll
        for (int i = 0; i < kHalfSlices; ++i) {
          const int slice = kHalfSlices * half + i;
          Fragments keys[2];
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            if (slice < Keys::kCodedSlices) {
              Keys::template LoadFragments<kSmallScales>(space.keys, first_tile + n, slice, keys[n]);
            } else if constexpr (kHasLast) {
              Keys::LoadLastFragments(space.keys, first_tile + n, keys[n]);
            }
          }
#pragma unroll
          for (int heads = 0; heads < kHeadGroups; ++heads) {
#pragma unroll
            for (int k = 0; k < 4; k += 2) {
              uint32_t q[kParts][4];
#pragma unroll
              for (int part = 0; part < kParts; ++part) {
                LoadMatrices(q[part], ChunkOf(space.q[part][slice], 8 * heads + lane % 8, 2 * k + lane / 8));
              }
#pragma unroll
              for (int odd = 0; odd < 2; ++odd) {
                const auto multiply = [&](int key_part, int q_part) {
                  const uint32_t(&first)[2] = keys[0][k + odd][key_part];
                  const uint32_t(&second)[2] = keys[1][k + odd][key_part];
                  MmaBf16(s[heads], {first[0], second[0], first[1], second[1]}, q[q_part][2 * odd],
                          q[q_part][2 * odd + 1]);
                };
                if constexpr (kParts == 2) {
                  multiply(0, 1);
                  multiply(1, 0);
                }
                multiply(0, 0);
              }
            }
          }
        }
      };
      if (has_keys) {
        if (small) {
          multiply_all.template operator()<true>();
        } else {
          multiply_all.template operator()<false>();
        }
#pragma unroll
        for (int heads = 0; heads < kHeadGroups; ++heads) {  // of the other warp's tile
          space.halves[warp][heads][lane] =
              half == 0 ? float2{s[heads][2], s[heads][3]} : float2{s[heads][0], s[heads][1]};
        }
      }
      GroupBarrier(kPairBarrier + warp / 2, 64);
      float x[kHeadGroups][2];  // the logits of the tile's key g and two heads
#pragma unroll
      for (int heads = 0; heads < kHeadGroups; ++heads) {
        const float2 other = space.halves[warp ^ 1][heads][lane];
        x[heads][0] = __fadd_rn(half == 0 ? s[heads][0] : s[heads][2], other.x);
        x[heads][1] = __fadd_rn(half == 0 ? s[heads][1] : s[heads][3], other.y);
        if ((here >> (8 * half + g) & 1) == 0) x[heads][0] = x[heads][1] = -INFINITY;
      }

      // The tile's maxima, two heads a lane, to all blocks of the cluster.
      if (has_tile) {
#pragma unroll
        for (int heads = 0; heads < kHeadGroups; ++heads) {
          float2 top = {__fmul_rn(x[heads][0], args.scale), __fmul_rn(x[heads][1], args.scale)};
          KeepMaximaOfKeys(top);
          space.tops_here.Store(g, &space.tops[tile][8 * heads + 2 * t], top);
        }
      }
      await_maxima_sent();
      if (has_tile) {
        space.tops_here.Wait(parity);

        // Probabilities by the maximum up to the tile's block, and the tile's sum of them.
        const int end = (tile / kBlockTiles + 1) * kBlockTiles;
        uint32_t words[kParts][kHeadGroups];
#pragma unroll
        for (int heads = 0; heads < kHeadGroups; ++heads) {
          const int of = 8 * heads + 2 * t;
          float2 top = *reinterpret_cast<const float2*>(&space.maxima[parity][of]);
#pragma unroll
          for (int i = 0; i < Space::kPanelTiles; i += 8) {
            if (i + g < end) KeepMaxima(top, *reinterpret_cast<const float2*>(&space.tops[i + g][of]));
          }
          KeepMaximaOfKeys(top);
          const float2 p = {Exp2(__fmaf_rn(x[heads][0], args.scale, -top.x)),
                            Exp2(__fmaf_rn(x[heads][1], args.scale, -top.y))};
          float2 sum = p;
#pragma unroll
          for (int lanes = 4; lanes < 32; lanes *= 2) {
            sum.x += __shfl_xor_sync(0xffffffff, sum.x, lanes);
            sum.y += __shfl_xor_sync(0xffffffff, sum.y, lanes);
          }
          space.weights_here.Store(g, &space.weights[tile].sums[of], sum);
          words[0][heads] = PackBf16(p.x, p.y);
          if constexpr (kParts == 2) words[1][heads] = PackBf16(Remainder(p.x), Remainder(p.y));
        }
        typename Space::Weights& weights = space.weights[tile];
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          const int of = lane % kHeads;
          const auto take = [&](int i) {
            const uint32_t low = __shfl_sync(0xffffffff, words[part][0], of % 8 * 4 + i);
            if constexpr (kHeadGroups == 1) return low;
            const uint32_t high = __shfl_sync(0xffffffff, words[part][kHeadGroups - 1], of % 8 * 4 + i);
            return of < 8 ? low : high;
          };
          const uint4 p = {take(0), take(1), take(2), take(3)};
#pragma unroll
          for (int i = 0; i < kClusterBlocks * kHeads / 32; ++i) {
            space.weights_here.Store(lane / kHeads + 32 / kHeads * i, &weights.p[part][of], p);
          }
        }
      }
    } else {
      await_tiles();
      if (warp == kSendWarp) {
        // The tiles' slices go to their blocks, what wouldn't be there before the maxima behind these: what
        // blocks send one another comes in order, 14 bytes a cycle.
        const auto send = [&](int begin, int end) {
          if (begin < end && lane < kClusterBlocks && lane != rank) {
            if (lane < Keys::kCodedSlices) {
              space.values_here.Transfer(lane, &space.values[own_begin + begin],
                                         &space.keys.pieces[lane][begin],
                                         (end - begin) * static_cast<int>(sizeof(space.values[0])));
            } else if constexpr (kHasLast) {
              constexpr int kBytes = 8 * kTileRowBytes;
              space.values_here.Transfer(lane, &space.last_values[(own_begin + begin) * kBytes],
                                         space.keys.last[begin], (end - begin) * kBytes);
            }
          }
          __syncwarp();
        };
        const int soon = (own_tiles * Keys::kSoonTiles + Keys::kShareTiles - 1) / Keys::kShareTiles;
        send(0, soon);
        if (coded) {
          CopyShared(&space.values[own_begin], space.keys.pieces[rank],
                     own_tiles * static_cast<int>(sizeof(space.values[0])));
        } else if constexpr (kHasLast) {
          CopyShared(&space.last_values[own_begin * 8 * kTileRowBytes], space.keys.last,
                     own_tiles * 8 * kTileRowBytes);
        }
        await_maxima_sent();
        send(soon, own_tiles);
      } else {
        await_maxima_sent();
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
        float2 factors[kHeadGroups];
        uint32_t p[kBlock / 16][kParts][kHeadGroups][2];
      };
      const auto load = [&](int b, Step& step) {
#pragma unroll
        for (int heads = 0; heads < kHeadGroups; ++heads) {
          step.factors[heads] = *reinterpret_cast<const float2*>(&space.factors[b][8 * heads + 2 * t]);
#pragma unroll
          for (int k = 0; k < kBlock / 16; k += 2) {
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
              const auto& weights = space.weights[b * kBlockTiles + 2 * k + lane / 8];
              uint32_t p[4];
              LoadMatricesTransposed(p, &weights.p[part][8 * heads + lane % 8]);
#pragma unroll
              for (int i = 0; i < 4; ++i) step.p[k + i / 2][part][heads][i % 2] = p[i];
            }
          }
        }
      };
      using Values = typename Keys::ValueFragments;
      // Then, when each 16 keys' are added, then(k).
      const auto add = [&](const Step& step, const Values& values, const auto& then) {
#pragma unroll
        for (int heads = 0; heads < kHeadGroups; ++heads) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            o[heads][i] *= i % 2 == 0 ? step.factors[heads].x : step.factors[heads].y;
          }
        }
#pragma unroll
        for (int k = 0; k < kBlock / 16; ++k) {
#pragma unroll
          for (int heads = 0; heads < kHeadGroups; ++heads) {
            const auto& p = step.p[k];
            if constexpr (kParts == 2) {
              MmaBf16(o[heads], values[k][0], p[1][heads][0], p[1][heads][1]);
              MmaBf16(o[heads], values[k][1], p[0][heads][0], p[0][heads][1]);
            }
            MmaBf16(o[heads], values[k][0], p[0][heads][0], p[0][heads][1]);
          }
          then(k);
        }
      };
      const int last = blocks - 1;
      space.values_here.Wait(parity);
      if (!more) ClusterArriveRelaxed();
      if (coded) {
        // A block is decoded while the one before is added.
        typename Keys::RawValues raw;
        Values values[2];
        constexpr int kSteps = kHeads == 8 ? 2 : 1;  // for two there are no registers
        Step steps[kSteps];
        Keys::LoadValues(space.values, value_warp, raw);
#pragma unroll
        for (int k = 0; k < kBlock / 16; ++k) Keys::DecodeValues(raw, k, values[0]);
        Keys::LoadValues(&space.values[min(1, last) * kBlockTiles], value_warp, raw);
        space.weights_here.Wait(parity);
        if constexpr (kSteps == 2) load(0, steps[0]);
#pragma unroll 1
        for (int begin = 0; begin < blocks; begin += 2) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int b = begin + i;
            if (i > 0 && b > last) break;
            load(kSteps == 2 ? min(b + 1, last) : b, steps[(i + 1) % kSteps]);
            add(steps[i % kSteps], values[i], [&](int k) { Keys::DecodeValues(raw, k, values[i ^ 1]); });
            Keys::LoadValues(&space.values[min(b + 2, last) * kBlockTiles], value_warp, raw);
          }
        }
      } else if constexpr (kHasLast) {
        space.weights_here.Wait(parity);
        Values values[2];
        Step steps[2];
        const auto load_last = [&](int b, int k, Values& to) {  // rows g and g + 8 are dims g and g + 8
          const int key = b * kBlock + 16 * k + lane / 16 * 8 + lane % 8;
          LoadMatricesTransposed(to[k][0], ChunkOf(space.last_values, key, 2 * value_warp + lane / 8 % 2));
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
    FenceForRefill();
    ClusterArrive();  // the panel is done, in all blocks
    ClusterWait();
    block += blocks;
    blocks = min(end_block - block, Space::kBlocks);
    parity ^= 1;
    first = false;
    // From the start, which spares registers.
    if (multiplies) entry = find(KeyList<kBlock>(args, WarpSequenceOf(args, row), row));
  }

  // Two neighbouring dims of a head at a time: store(head, dim, values).
  const auto for_pairs = [&](const auto& store) {
    const int dim = kSliceDims * rank + 16 * value_warp;
    const bool odd = g % 2 != 0;
#pragma unroll
    for (int heads = 0; heads < kHeadGroups; ++heads) {
      const float(&x)[4] = o[heads];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        if (coded) {
          store(8 * heads + 2 * t + n, dim + 2 * g, float2{x[n], x[n + 2]});
        } else {  // whose neighbour a neighbour has
          const float other = __shfl_xor_sync(0xffffffff, odd ? x[2 * n] : x[2 * n + 1], 4);
          store(8 * heads + 2 * t + odd, dim + 8 * n + g - odd,
                odd ? float2{other, x[2 * n + 1]} : float2{x[2 * n], other});
        }
      }
    }
  };
  if (!is_whole) {  // MergeChunks follows
    if (sums && first_head + sum_head < args.heads) {
      const int64_t at = args.chunk_sums.At(args, row, first_head + sum_head, chunk);
      float* const weights = reinterpret_cast<float*>(args.chunk_sums.weights + at);
      weights[sum_half] = sum;
      if constexpr (kBlock != 64) weights[1] = 0;
      if (sum_half == 0) args.chunk_sums.maxima[at] = space.maxima[parity ^ 1][sum_head];
    }
    if (adds) {
      for_pairs([&](int head, int dim, float2 v) {
        if (first_head + head >= args.heads) return;
        const int64_t at = args.chunk_sums.At(args, row, first_head + head, chunk);
        *reinterpret_cast<float2*>(args.chunk_sums.values + at * kChunkDim + dim) = v;
      });
    }
    ClusterWait();
    return;
  }

  if (warp == kSumWarp) {
    const float upper = __shfl_down_sync(0xffffffff, sum, kHeads);
    if (lane < kHeads) {
      float all = sum;
      if constexpr (kBlock == 64) all += upper;
      all += Exp2(space.sinks[lane] - space.maxima[parity ^ 1][lane]);
      space.inverses[lane] = 1 / all;
    }
  }
  if (adds || warp == kSumWarp) GroupBarrier<1>(32 * kValueWarps + 32);
  if (adds) {
    for_pairs([&](int head, int dim, float2 v) {
      if (first_head + head >= args.heads) return;
      const float factor = space.inverses[head];
      if (coded && kHasLast) {  // no dim is rotary
        const int64_t at = (int64_t{row} * args.heads + first_head + head) * kChunkDim + dim;
        StorePair<kParts == 1>(args, at, OutputOf<kParts == 1, Dims::kOthers>(v, factor, 0, 0));
      } else {
        StoreOutput<kParts == 1>(args, row, first_head + head, dim, v, factor);
      }
    });
  }
  ClusterWait();  // all blocks have the values that this one sent
}

}  // namespace foresight::cuda
