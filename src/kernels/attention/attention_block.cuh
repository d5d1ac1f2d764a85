// Attention of one row and 16 heads by one block, key block by key block: on every GPU, for any number of
// rows.
//
// The arithmetic, which no choice of kernel changes: keys are taken in blocks of Keys::kBlock. A logit is the
// sum of two halves of 256 dims, each a chain of tensor core products in steps of 16 dims, so that two thread
// blocks can share dims; scaling it and taking the maximum away is one operation. The online softmax's
// maximum starts at the sink. A block's probabilities are added up in pairs of keys, four pairs, four of
// these eights, which are half a block; the halves' sums meet at the end only. Values are added up block by
// block by tensor core products, in the order of keys. Chunks of a long list are softmaxes of their own,
// merged in order.
#pragma once

#include "kernels/attention/key_list.cuh"
#include "kernels/attention/key_tile.cuh"
#include "kernels/attention/query_tile.cuh"
#include "kernels/cuda/exponential.cuh"
#include "kernels/cuda/launch.cuh"

namespace foresight::cuda {

constexpr int kBlockHeads = 16;
constexpr int kBlockThreads = 32 * kMaxSlices;  // a warp has a slice of the output

// Shared memory, in bytes.
template <typename Keys>
struct BlockSpace {
  static constexpr int kSliceBytes = Keys::kBlock * kTileRowBytes;
  static constexpr int kQueryBytes = kBlockHeads * kTileRowBytes;
  static constexpr int kP = kBlockHeads * kTileRowBytes;
  static constexpr int kLogits = kBlockHeads * Keys::kBlock * 4;
  static constexpr int kFactors = 2 * kBlockHeads * 4;
  __host__ __device__ static int KeyPart(int slices) { return slices * kSliceBytes; }
  __host__ __device__ static int QueryPart(int slices) { return slices * kQueryBytes; }
  __host__ __device__ static int Bytes(int slices) {
    return Keys::kParts * (KeyPart(slices) + QueryPart(slices)) + kP + kLogits + kFactors + 16;
  }
};

template <typename Keys>
__global__ void __launch_bounds__(kBlockThreads, 1) BlockAttention(Attending args) {
  AwaitInputs();
  using P = BlockSpace<Keys>;
  constexpr int kParts = Keys::kParts;
  constexpr int kBlock = Keys::kBlock;
  constexpr int kHeads = kBlockHeads;
  constexpr int kLoads = kBlock * kMaxSlices * 8 / kBlockThreads;
  const int dim = args.layout.dim;
  const int slices = (dim + kSliceDims - 1) / kSliceDims;
  const int key_part = P::KeyPart(slices);
  const int query_part = P::QueryPart(slices);

  extern __shared__ __align__(128) std::byte space[];
  std::byte* const tile = space;                                                // [parts, slices, keys]
  std::byte* const q_tile = tile + kParts * key_part;                           // [parts, slices, heads]
  std::byte* const p_tile = q_tile + kParts * query_part;                       // [heads]
  float* const logits = reinterpret_cast<float*>(p_tile + P::kP);               // [heads, keys]
  float* const factors = logits + kHeads * kBlock;                              // [2, heads]
  uint32_t* const present = reinterpret_cast<uint32_t*>(factors + 2 * kHeads);  // [2, keys / 32]

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int row = blockIdx.y;
  const int first_head = blockIdx.x * kHeads;
  const SequenceRows& sequence = WarpSequenceOf(args, row);
  const KeyList<kBlock> list(args, sequence, row);

  LoadQueries<kParts, 2>(args, row, first_head, kHeads, {q_tile, P::kQueryBytes, query_part}, warp,
                         kBlockThreads / 32);

  // Every warp finds all keys of a block; eight threads take a slice of a key.
  typename Keys::Raw raw[kLoads];
  const int part_of_slice = lane % 8;
  const auto load = [&](int block, int buffer) {
    const std::byte* entry[kBlock / 32];
#pragma unroll
    for (int i = 0; i < kBlock / 32; ++i) {
      entry[i] = list.Entry(block * kBlock + lane + 32 * i);
      const uint32_t mask = __ballot_sync(0xffffffff, entry[i] != nullptr);
      if (threadIdx.x == 0) present[buffer * (kBlock / 32) + i] = mask;
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      // Slice `warp` of key 4 i + lane / 8.
      const int key = 4 * i + lane / 8;
      const std::byte* from = reinterpret_cast<const std::byte*>(
          __shfl_sync(0xffffffff, reinterpret_cast<unsigned long long>(entry[4 * i / 32]), key % 32));
      raw[i] = Keys::Load(args.layout, from, warp, part_of_slice);
    }
  };

  // A warp has the softmax of rows 2 warp and 2 warp + 1: maximum and, in each half of the lanes, the sum of
  // its half of the keys; of the chunk so far and of those before.
  float now_max[2], now_sum[2] = {}, all_max[2], all_sum[2] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int head = first_head + 2 * warp + i;
    now_max[i] = fmaxf(head < args.heads ? SinkLogit(args, head) : 0, kLowest);
  }
  const bool adds = warp < slices;
  float o[8][4] = {};    // of the chunk
  float all[8][4] = {};  // of the chunks before
  const int blocks = list.blocks();
  int chunk = 0;
  load(0, 0);
#pragma unroll 1
  for (int block = 0; block < blocks; ++block) {
    __syncwarp();  // a warp alone reads its slice of the values: it is done with the last block's
    if (adds) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        Keys::Store(args.layout, raw[i], warp, part_of_slice, tile + warp * P::kSliceBytes, key_part,
                    4 * i + lane / 8);
      }
    }
    if (block + 1 < blocks) load(block + 1, (block + 1) % 2);  // arrives while this block is worked on
    __syncthreads();

    if (warp < kBlock / 8) {
      float s[4] = {};
      LogitHalves halves;
#pragma unroll 2
      for (int k = 0; k < 4 * slices; k += 2) {
        uint32_t q[kParts][2][4];
        uint32_t keys[kParts][4];
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
#pragma unroll
          for (int odd = 0; odd < 2; ++odd) {
            LoadMatrices(q[part][odd], ChunkOf(q_tile + part * query_part + k / 4 * P::kQueryBytes, lane % 16,
                                               2 * (k % 4 + odd) + lane / 16));
          }
          LoadMatrices(keys[part], ChunkOf(tile + part * key_part + k / 4 * P::kSliceBytes,
                                           8 * warp + lane % 8, 2 * (k % 4) + lane / 8));
        }
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          if constexpr (kParts == 2) {
            MmaBf16(s, q[1][odd], keys[0][2 * odd], keys[0][2 * odd + 1]);
            MmaBf16(s, q[0][odd], keys[1][2 * odd], keys[1][2 * odd + 1]);
          }
          MmaBf16(s, q[0][odd], keys[0][2 * odd], keys[0][2 * odd + 1]);
        }
        if (k + 2 == 4 * kHalfSlices) halves.TakeFirst(s);
      }
      halves.Finish(s);
      const uint32_t mask = present[block % 2 * (kBlock / 32) + warp / 4] >> (8 * (warp % 4) + 2 * t);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!(mask >> i % 2 & 1)) s[i] = -INFINITY;
      }
      // Columns are moved by row, so that the rows of a store lie in different banks.
      float* to = logits + g * kBlock + ((8 * warp + 2 * t) ^ (g % 4 * 8));
      *reinterpret_cast<float2*>(to) = {s[0], s[1]};
      *reinterpret_cast<float2*>(to + 8 * kBlock) = {s[2], s[3]};
    }
    __syncthreads();

#pragma unroll
    for (int i = 0; i < 2; ++i) {  // a lane has two keys, of 32 the lower half of lanes
      const int r = 2 * warp + i;
      const bool has_keys = 2 * lane < kBlock;
      float2 x = {-INFINITY, -INFINITY};
      if (has_keys) x = *reinterpret_cast<const float2*>(logits + r * kBlock + ((2 * lane) ^ (r % 4 * 8)));
      const float top = fmaxf(now_max[i], __fmul_rn(WarpMax(fmaxf(x.x, x.y)), args.scale));
      const float factor = Exp2(now_max[i] - top);
      const float2 p = {Exp2(__fmaf_rn(x.x, args.scale, -top)), Exp2(__fmaf_rn(x.y, args.scale, -top))};
      float sum = __fadd_rn(p.x, p.y);
#pragma unroll
      for (int other = 1; other < 16; other *= 2) sum += __shfl_xor_sync(0xffffffff, sum, other);
      now_sum[i] = __fmaf_rn(now_sum[i], factor, sum);
      now_max[i] = top;
      if (lane == 0) factors[r] = factor;
      if (has_keys) {
        reinterpret_cast<uint32_t*>(ChunkOf(p_tile, r, lane / 4))[t] = PackBf16(p.x, p.y);
        if constexpr (kParts == 2) {  // lower parts in the right half of the row
          reinterpret_cast<uint32_t*>(ChunkOf(p_tile, r, 4 + lane / 4))[t] =
              PackBf16(Remainder(p.x), Remainder(p.y));
        }
      }
    }
    __syncthreads();

    if (adds) {
      const float factor[2] = {factors[g], factors[g + 8]};
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) o[n][i] *= factor[i / 2];
      }
#pragma unroll
      for (int k = 0; k < kBlock / 16; ++k) {
        uint32_t p[kParts][4];
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          LoadMatrices(p[part], ChunkOf(p_tile, lane % 16, 2 * k + lane / 16 + 4 * part));
        }
#pragma unroll
        for (int n = 0; n < 8; n += 2) {
          uint32_t values[kParts][4];
#pragma unroll
          for (int part = 0; part < kParts; ++part) {
            LoadMatricesTransposed(values[part], ChunkOf(tile + part * key_part + warp * P::kSliceBytes,
                                                         16 * k + lane % 16, n + lane / 16));
          }
          if constexpr (kParts == 2) {
            MmaBf16(o[n], p[1], values[0][0], values[0][1]);
            MmaBf16(o[n + 1], p[1], values[0][2], values[0][3]);
            MmaBf16(o[n], p[0], values[1][0], values[1][1]);
            MmaBf16(o[n + 1], p[0], values[1][2], values[1][3]);
          }
          MmaBf16(o[n], p[0], values[0][0], values[0][1]);
          MmaBf16(o[n + 1], p[0], values[0][2], values[0][3]);
        }
      }
    }

    if (block + 1 == list.ChunkBegin(chunk + 1)) {  // the chunk joins those before it
      __syncthreads();
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float top = chunk == 0 ? now_max[i] : fmaxf(all_max[i], now_max[i]);
        const float factor = chunk == 0 ? 0 : Exp2(all_max[i] - top);
        const float now_factor = Exp2(now_max[i] - top);
        all_sum[i] = __fmaf_rn(all_sum[i], factor, __fmul_rn(now_sum[i], now_factor));
        all_max[i] = top;
        now_max[i] = kLowest;
        now_sum[i] = 0;
        if (lane == 0) {
          factors[2 * warp + i] = factor;
          factors[kHeads + 2 * warp + i] = now_factor;
        }
      }
      __syncthreads();
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int r = g + i / 2 * 8;
          all[n][i] = __fmaf_rn(all[n][i], factors[r], __fmul_rn(o[n][i], factors[kHeads + r]));
          o[n][i] = 0;
        }
      }
      ++chunk;
    }
  }

  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int head = first_head + 2 * warp + i;
    const float sum = all_sum[i] + __shfl_xor_sync(0xffffffff, all_sum[i], 16);
    if (lane == 0 && head < args.heads) {
      factors[2 * warp + i] = 1 / (sum + Exp2(SinkLogit(args, head) - all_max[i]));
    }
  }
  __syncthreads();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = g + 8 * half;
    if (!adds || first_head + r >= args.heads) continue;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const int d = kSliceDims * warp + 8 * n + 2 * t;
      if (d < dim) {
        StoreOutput<kParts == 1>(args, row, first_head + r, d, {all[n][2 * half], all[n][2 * half + 1]},
                                 factors[r]);
      }
    }
  }
}

}  // namespace foresight::cuda
