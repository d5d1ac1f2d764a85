// Scores of packed keys of 128 values on the tensor cores. All products are exact in bf16. A score is a pure
// function of its key and query: who computes it, and with what company, doesn't matter.
#pragma once

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/indexer/packed_query.cuh"
#include "kernels/indexer/score_share.cuh"

namespace foresight::cuda {

constexpr int kSlots = 4;  // tiles on their way per warpgroup

// Eight E2M1 codes times a power of two as bf16 pairs: values (0, 4), (1, 5), (2, 6), (3, 7).
__device__ inline void DecodeE2M1(uint32_t codes, __nv_bfloat162 factor, uint32_t (&pairs)[4]) {
  // Exponent and mantissa moved to a bf16's place are 2^-126 of the value, subnormals included. A product
  // moves two copies of a code at once, one for the sign.
  const uint32_t upper = codes >> 8;
  const uint32_t raw[4] = {(codes & 0x000f000f) * 0x1040, (codes & 0x00f000f0) * 0x104,
                           (upper & 0x000f000f) * 0x1040, (upper & 0x00f000f0) * 0x104};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t bits = raw[i] & 0x81c081c0;
    const __nv_bfloat162 value = __hmul2(reinterpret_cast<const __nv_bfloat162&>(bits), factor);
    pairs[i] = reinterpret_cast<const uint32_t&>(value);
  }
}

// What turns raw E2M1s into 2^-kKeyShift of a block's values.
__device__ inline __nv_bfloat162 DecodeFactor(uint32_t scale_byte) {
  const uint32_t exponent = min(scale_byte + (126 - kKeyShift), 254u);
  return __bfloat162bfloat162(__ushort_as_bfloat16(static_cast<uint16_t>(exponent << 7)));
}

// Half of a warp's keys of a tile as operand A, by step of 16 dims: `key` is the lane's, key g of the half.
__device__ inline void DecodeKey(const uint8_t* key, int half, int lane, uint32_t (&a)[8][4]) {
  const int t = lane % 4;
  const __nv_bfloat162 factor = DecodeFactor(key[kPackedDim / 2 + t]);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t pairs[4];
    DecodeE2M1(reinterpret_cast<const uint32_t*>(key)[4 * t + i], factor, pairs);
    a[2 * i][half] = pairs[0];
    a[2 * i][half + 2] = pairs[1];
    a[2 * i + 1][half] = pairs[2];
    a[2 * i + 1][half + 2] = pairs[3];
  }
}

// All of them, which lie one after another.
__device__ inline void DecodeKeys(const uint8_t* keys, int lane, uint32_t (&a)[8][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    DecodeKey(keys + (lane / 4 + 8 * half) * kPackedKeyBytes, half, lane, a);
  }
}

// dots [keys of the warp, heads]: eight steps of 16 dims from zero.
__device__ inline void DotsOfRow(const uint32_t (&a)[8][4], const uint16_t* query, int lane,
                                 float (&c)[8][4]) {
#pragma unroll
  for (int heads = 0; heads < 8; ++heads) {
    for (float& x : c[heads]) x = 0;
#pragma unroll
    for (int step = 0; step < 8; step += 2) {
      uint32_t b[4];
      LoadMatrices(b, query + QueryPlace(8 * heads + lane % 8, 4 * step + lane / 8));
      MmaBf16(c[heads], a[step], b[0], b[1]);
      MmaBf16(c[heads], a[step + 1], b[2], b[3]);
    }
  }
}

// Sums of two neighbours' values: the even lane gets that of `a`, the odd one that of `b`.
__device__ inline float SumOfNeighbors(float a, float b, int lane) {
  const bool odd = lane % 2;
  return (odd ? b : a) + __shfl_xor_sync(0xffffffff, odd ? a : b, 1);
}

// Sums of four neighbours' values: lane 0 and lane 2 of each quad get that of `a`, 1 and 3 that of `b`.
__device__ inline float SumOfQuad(float a, float b, int lane) {
  const float sum = SumOfNeighbors(a, b, lane);
  return sum + __shfl_xor_sync(0xffffffff, sum, 2);
}

// A warp's keys of tiles on their way to shared memory, in the order in which they are asked for.
struct KeySlots {
  uint8_t keys[kSlots][kWarpTileBytes];

  // The n-th keys that were asked for, when kSlots - 1 groups of copies were ended since.
  __device__ const uint8_t* Await(uint32_t n) {
    AwaitCopies<kSlots - 1>();
    __syncwarp();
    return keys[n % kSlots];
  }

  // Asks for the n-th keys, when the warp needs those kSlots before no more: `count` (below 1: none) from key
  // `first` on. All of them are at `from`, if that's not null.
  __device__ void Ask(uint32_t n, const std::byte* from, const PagedView& view, int first, int count,
                      int lane) {
    uint8_t* to = keys[n % kSlots];
    __syncwarp();
    if (from == nullptr) {
      CopyKeys(to, view, first, min(count, kWarpKeys), lane);
    } else if (count > 0) {
      for (int at = lane * 16; at < kWarpTileBytes; at += 32 * 16) CopyAsync<16>(to + at, from + at, true);
    }
    EndCopies();
  }
};

// Shared memory of a block: queries, keys on their way, weights, and ScoreShare's.
template <int kRows, int kGroups>
struct ScoresShared {
  uint16_t queries[kRows][kPackedHeads * kPackedDim];
  KeySlots slots[kGroups * 4];
  float2 weights[kRows][kPackedHeads / 2];
  int ends[1];  // and more

  static size_t Bytes(int num_sequences) {
    return sizeof(ScoresShared) + static_cast<size_t>(num_sequences) * sizeof(int);
  }
};

// By kGroups warpgroups. Up to kRows rows of a sequence share the key tiles that a block reads; their queries
// are `queries`, PackQueryKernel's. A row that shares with none is packed here.
template <int kRows, int kGroups>
__global__ void __launch_bounds__(128 * kGroups, 1)
    PackedScoresKernel(Indexing args, const PackedQuery* queries) {
  constexpr int kThreads = 128 * kGroups;
  constexpr int kStride = kGroups * kTileKeys;  // from a warp's keys to its next ones
  extern __shared__ __align__(128) uint8_t memory[];
  auto& shared = *reinterpret_cast<ScoresShared<kRows, kGroups>*>(memory);
  const int warp = threadIdx.x / 32;
  const int group = warp / 4;
  int lane = threadIdx.x % 32;
  asm volatile("" : "+r"(lane));  // kept, for asking again takes long
  KeySlots& slots = shared.slots[warp];
  AwaitInputs();
  PagedView view = args.sequences->cache.index_keys;  // of the first sequence, asked for early
  asm volatile("" : "+l"(view.blocks));
  ScoreShare<kRows> share(args, shared.ends);
  uint32_t n = 0;  // tiles of this warp before
  for (ScorePass pass; share.Next(pass);) {
    const SequenceRows& sequence = args.sequences[pass.sequence];
    if (pass.sequence > 0) view = sequence.cache.index_keys;
    const uint32_t seen =  // by the first row
        static_cast<uint32_t>(sequence.first_position - sequence.first_row + 1 + pass.first_row);
    const int all_visible = static_cast<int>((seen + pass.rows - 1) / args.kRatio);
    const int turn_row = pass.first_row - args.first_row;
    const int tiles = (pass.tile_end - pass.tile + kGroups - 1 - group) / kGroups;  // of this warp
    int key = (pass.tile + group) * kTileKeys + warp % 4 * kWarpKeys;               // its first

    // In every cache of the engine a block holds a tile, and its keys begin at a multiple of 16 bytes. Others
    // are copied word by word.
    const int offset = static_cast<int>(view.offset) + warp % 4 * kWarpTileBytes;
    const auto block_of = [&](int i) -> const std::byte* {
      return view.per_block == kTileKeys && i < tiles ? view.blocks[pass.tile + group + i * kGroups]
                                                      : nullptr;
    };
    const std::byte* const first_blocks = block_of(lane);
    const bool whole = view.per_block == kTileKeys &&
                       __all_sync(0xffffffff, (reinterpret_cast<uintptr_t>(first_blocks) + offset) % 16 == 0);
    // Asks for tile i in `block`, which is `ahead` behind the one with `key`.
    const auto ask = [&](int i, int ahead, const std::byte* block) {
      if (i < tiles) {
        const int first = key + ahead * kStride;
        slots.Ask(n + i, whole ? block + offset : nullptr, view, first, all_visible - first, lane);
      } else {
        EndCopies();
      }
    };
    const std::byte* block;  // of the tile that is asked for next
    const auto begin = [&] {
#pragma unroll 1
      for (int i = 0; i < kSlots; ++i) {
        const uint64_t of_tile = __shfl_sync(0xffffffff, reinterpret_cast<uint64_t>(first_blocks), i);
        ask(i, i, reinterpret_cast<const std::byte*>(of_tile));
      }
      block = block_of(kSlots);
      __syncthreads();  // the last pass needs its queries no more
      if (kRows > 1) {
        for (int r = 0; r < pass.rows; ++r) {
          const PackedQuery& from = queries[turn_row + r];
          CopyToShared<kThreads>(shared.queries[r], from.values, sizeof(from.values));
        }
        EndCopies();
      }
      for (int i = threadIdx.x; i < pass.rows * kPackedHeads; i += kThreads) {
        const int head = i % kPackedHeads;
        const int64_t row = pass.first_row + i / kPackedHeads;
        // Half of it, for twice the rectified dots are added up.
        reinterpret_cast<float*>(shared.weights)[i] =
            head < args.heads ? args.w[row * args.heads + head] * args.factor * (0.5f * (1ll << kKeyShift))
                              : 0.0f;
      }
    };
    if constexpr (kRows == 1) {
      PackedHeads heads(args);
      heads.Load(pass.first_row, warp * kHeadsOfWarp);
      begin();
#pragma unroll 1
      for (int first = warp * kHeadsOfWarp;;) {
        heads.Pack();
        heads.StoreValues(shared.queries[0]);
        first += kThreads / 32 * kHeadsOfWarp;
        if (first >= kPackedHeads) break;
        heads.Load(pass.first_row, first);
      }
    } else {
      begin();
      AwaitCopies<0>();
    }
    __syncthreads();

    const int own = lane / 4 + lane % 2 * 8;  // of the warp's keys, that the lane stores
    float* scores = args.scores + turn_row * args.stride + key + own;
    float* maximum = args.maxima + (turn_row * args.stride + key) / kMaximumOf;
#pragma unroll 1
    for (int i = 0; i < tiles; ++i, key += kStride, scores += kStride, maximum += kStride / kMaximumOf) {
      uint32_t a[8][4];
      DecodeKeys(slots.Await(n + i), lane, a);
      ask(i + kSlots, kSlots, block);
      block = block_of(i + kSlots + 1);
      // c[j]: the dots with heads 8 j..8 j + 7.
      const auto write = [&](const float(&c)[8][4], int r) {
        float sums[2] = {};  // of a lane's keys, eight apart
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float2 weight = shared.weights[r][4 * j + lane % 4];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float x = c[j][2 * half];
            const float y = c[j][2 * half + 1];
            sums[half] += weight.x * (x + fabsf(x));
            sums[half] += weight.y * (y + fabsf(y));
          }
        }
        const float sum = SumOfQuad(sums[0], sums[1], lane);
        const int visible = static_cast<int>((seen + r) / args.kRatio) - key;  // of the warp's keys
        if (lane % 4 < 2 && own < visible) scores[r * args.stride] = sum;
        const float largest = LargestOfWarp(own < visible ? sum : -INFINITY);
        if (lane == 0 && visible > 0) maximum[r * (args.stride / kMaximumOf)] = largest;
      };
#pragma unroll 1
      for (int r = 0; r < (kRows == 1 ? 1 : pass.rows); ++r) {
        float c[8][4];
        DotsOfRow(a, shared.queries[r], lane, c);
        write(c, r);
      }
    }
    n += tiles;
  }
  AwaitCopies<0>();
}

}  // namespace foresight::cuda
