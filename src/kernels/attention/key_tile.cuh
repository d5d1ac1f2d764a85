// Attention keys on their way from cache entries to bf16 in shared memory, 64 dims of a key at a time.
//
// A tile has rows of 64 bf16 values in eight chunks of 16 bytes; chunk c of row r lies at place c ^ (r % 8),
// so that eight rows' same chunks lie in all banks.
#pragma once

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/formats.cuh"
#include "kernels/cuda/mma.cuh"

namespace foresight::cuda {

constexpr int kSliceDims = 64;
constexpr int kTileRowBytes = 2 * kSliceDims;

__device__ inline std::byte* ChunkOf(std::byte* tile, int row, int chunk) {
  return tile + row * kTileRowBytes + (chunk ^ (row & 7)) * 16;
}

// What lies at `from` in global memory, or zero without a look there: one instruction, no branch. The
// compiler can't know of an address that came through shared memory or a shuffle that it is global.
__device__ inline void LoadIf(bool there, const std::byte* from, uint32_t& value) {
  asm volatile("{ .reg .pred there; setp.ne.b32 there, %1, 0; mov.b32 %0, 0; @there ld.global.b32 %0, [%2]; }"
               : "=r"(value)
               : "r"(static_cast<int>(there)), "l"(from));
}
__device__ inline void LoadIf(bool there, const std::byte* from, uint2& value) {
  asm volatile(
      "{ .reg .pred there; setp.ne.b32 there, %2, 0; mov.b32 %0, 0; mov.b32 %1, 0; "
      "@there ld.global.v2.b32 {%0, %1}, [%3]; }"
      : "=r"(value.x), "=r"(value.y)
      : "r"(static_cast<int>(there)), "l"(from));
}

// What lies at `from` in global memory, whatever the compiler knows of the address.
__device__ inline void LoadGlobal(const std::byte* from, uint32_t& value) {
  asm volatile("ld.global.b32 %0, [%1];" : "=r"(value) : "l"(from));
}
__device__ inline void LoadGlobal(const std::byte* from, uint2& value) {
  asm volatile("ld.global.v2.b32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "l"(from));
}

// The part of x that its bf16 value leaves.
__device__ inline float Remainder(float x) {
  return x - RoundBf16(x);
}

__device__ inline uint32_t MultiplyBf16(uint32_t pair, uint32_t factor) {
  const __nv_bfloat162 product =
      __hmul2(reinterpret_cast<const __nv_bfloat162&>(pair), reinterpret_cast<const __nv_bfloat162&>(factor));
  return reinterpret_cast<const uint32_t&>(product);
}

// Four E4M3 codes as bf16, 2^-120 of their values, subnormals included: exponents and mantissas are moved to
// bf16's places.
__device__ inline uint2 MoveE4M3(uint32_t codes) {
  const uint32_t upper = (codes & 0x80808080) | (codes >> 4 & 0x07070707);  // bytes
  const uint32_t lower = codes << 4 & 0xf0f0f0f0;
  return {__byte_perm(lower, upper, 0x5140), __byte_perm(lower, upper, 0x7362)};
}

// The same of two codes, bytes `first` and `second` of four, in fewer operations: signs are moved by copies
// of them in the bytes above.
__device__ inline uint32_t MoveTwoE4M3(uint32_t codes, uint32_t first, uint32_t second) {
  uint32_t pair;
  asm("prmt.b32 %0, %1, 0, %2;" : "=r"(pair) : "r"(codes), "r"(first * 0x11 + second * 0x1100 + 0x8080));
  return pair << 4 & 0x87f087f0;
}

// The bf16 value 2^(scale - 127) of a scale byte.
__device__ inline uint32_t ScaleBf16(uint32_t scale) {
  return scale == 255 ? 0x7fc0 : max(scale << 7, 0x40);
}

// Moved codes times the factors of a pair; exact in bf16 but where that has no smaller values. 2^120 is a
// step of its own, for with some scales their product is beyond bf16.
__device__ inline uint32_t ScaleMoved(uint32_t moved, uint32_t factors) {
  return MultiplyBf16(MultiplyBf16(moved, 0x7b807b80), factors);
}

// Eight E4M3 codes that share a scale byte.
__device__ inline uint4 DecodeE4M3(uint2 codes, uint32_t scale) {
  const uint32_t factors = ScaleBf16(scale) * 0x10001;
  const uint2 low = MoveE4M3(codes.x);
  const uint2 high = MoveE4M3(codes.y);
  return {ScaleMoved(low.x, factors), ScaleMoved(low.y, factors), ScaleMoved(high.x, factors),
          ScaleMoved(high.y, factors)};
}

// Scales below 2: the factor and 2^120 in one, which gives the same values.
__device__ inline bool AreSmallScales(uint32_t four_scales) {
  return (four_scales & 0x80808080) == 0;
}
// That one factor, from the scale's bf16 value.
__device__ inline uint32_t SmallFactor(uint32_t scale_bf16) {
  return (scale_bf16 & 0x7f80) + (120 << 7);
}
__device__ inline uint4 DecodeSmallE4M3(uint2 codes, uint32_t scale) {
  const uint32_t factors = scale * 0x00800080 + (120 << 23 | 120 << 7);
  return {
      MultiplyBf16(MoveTwoE4M3(codes.x, 0, 1), factors), MultiplyBf16(MoveTwoE4M3(codes.x, 2, 3), factors),
      MultiplyBf16(MoveTwoE4M3(codes.y, 0, 1), factors), MultiplyBf16(MoveTwoE4M3(codes.y, 2, 3), factors)};
}

// By a warp, for 16 addresses that its first 16 lanes have, by way of shared memory of its own: all at once,
// for between copies to shared memory a load from there costs several instructions.
struct alignas(16) SixteenAddresses {
  const std::byte* items[16];
};
__device__ inline SixteenAddresses GiveToAll(const std::byte* address, SixteenAddresses& shared) {
  const int lane = threadIdx.x % 32;
  if (lane < 16) shared.items[lane] = address;
  __syncwarp();
  SixteenAddresses all;
#pragma unroll
  for (int i = 0; i < 8; ++i) reinterpret_cast<uint4*>(&all)[i] = reinterpret_cast<const uint4*>(&shared)[i];
  return all;
}

// The two numerics' ways with eight values of a key, `chunk` of its dims [64 slice, 64 slice + 64): what a
// thread loads, and how it is stored as row `row` of a tile. Absent keys (null) and dims are zeros.

// Packed entries: one bf16 value each; 64 keys are a block of the softmax.
struct PackedKeys {
  static constexpr int kBlock = 64;
  static constexpr int kParts = 1;
  struct Raw {
    uint4 word;  // eight codes and their scale, or eight bf16 values
  };

  __device__ static Raw Load(const EntryLayout& layout, const std::byte* entry, int slice, int chunk) {
    const int nope = layout.dim - layout.rope_dim;
    const int first = kSliceDims * slice + 8 * chunk;
    const bool is_nope = kSliceDims * slice < nope;
    uint4 word = {};
    if (entry != nullptr && first < layout.dim) {
      const std::byte* from = entry + (is_nope ? first : nope + 2 * (first - nope));
      const uint2 low = *reinterpret_cast<const uint2*>(from);
      word.x = low.x;
      word.y = low.y;
      if (is_nope) {
        word.z = static_cast<uint32_t>(entry[nope + 2 * layout.rope_dim + slice]);
      } else {
        const uint2 high = *reinterpret_cast<const uint2*>(from + 8);
        word.z = high.x;
        word.w = high.y;
      }
    }
    return {word};
  }

  __device__ static void Store(const EntryLayout& layout, const Raw& raw, int slice, int chunk,
                               std::byte* tile, int, int row) {
    uint4 values = raw.word;
    if (kSliceDims * slice < layout.dim - layout.rope_dim) {
      values = DecodeE4M3({values.x, values.y}, values.z);
    }
    *reinterpret_cast<uint4*>(ChunkOf(tile, row, chunk)) = values;
  }

  // What clusters do with tiles of 8 keys of 512 values, 64 of them rotary, in shared memory.
  static constexpr int kShareTiles = 10;  // of a thread block
  static constexpr int kTileSpace = 10;   // in pairs
  static constexpr int kSoonTiles = 6;    // of these, sent before maxima
  static constexpr int kCodedSlices = 7;  // the last one is bf16

  // A slice of a tile as it lies in its entries. Piece p of 16 bytes of a row lies at place p ^ row / 2 % 4,
  // so that eight rows' same pieces lie in all banks.
  struct alignas(16) Piece {
    std::byte codes[8][64];
    uint16_t factors[8];  // bf16

    __device__ const std::byte* At(int key, int piece) const {
      return &codes[key][16 * (piece ^ key / 2 % 4)];
    }
  };
  struct Tiles {  // slices of all tiles together, for they go to other blocks
    Piece pieces[kCodedSlices][kTileSpace];
    std::byte last[kTileSpace][8 * kTileRowBytes];  // as in tiles of decoded keys
  };
  // A half of the dims of two tiles, by a warp: `entry` is key lane % 16's, `here` has a bit for each key
  // that isn't absent, `shared` is room of the warp's own. Copies aren't awaited. Returns whether all scales
  // are small.
  __device__ static bool FetchHalf(const std::byte* entry, uint32_t here, SixteenAddresses& shared,
                                   Tiles& tiles, int first_tile, int half) {
    const int lane = threadIdx.x % 32;
    uint2 scales;
    LoadIf(entry != nullptr, entry + 8 * 72, scales);
    const SixteenAddresses entries = GiveToAll(entry, shared);
    const int at = 32 * half + lane;  // of pieces of 8 bytes
    if (at < 56) {
#pragma unroll
      for (int key = 0; key < 16; ++key) {
        std::byte* const to =
            const_cast<std::byte*>(tiles.pieces[at / 8][first_tile + key / 8].At(key % 8, at % 8 / 2)) +
            at % 2 * 8;
        CopyAsync<8>(to, entries.items[key] + 8 * at, here >> key & 1);
      }
    }
    if (half != 0) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const bool odd = lane >= 16;
        const int key = 2 * i + odd;
        const std::byte* from = odd ? entries.items[2 * i + 1] : entries.items[2 * i];
        std::byte* const to = ChunkOf(tiles.last[first_tile + i / 4], key % 8, lane % 16 / 2) + lane % 2 * 8;
        CopyAsync<8>(to, from + 8 * (56 + lane % 16), here >> key & 1);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int slice = 4 * half + 2 * i + lane / 16;
      const uint32_t scale = (half == 0 ? scales.x : scales.y) >> (16 * i + lane / 16 * 8) & 0xff;
      if (slice < 7) {
        tiles.pieces[slice][first_tile + lane % 16 / 8].factors[lane % 8] =
            static_cast<uint16_t>(ScaleBf16(scale));
      }
    }
    return __all_sync(0xffffffff, AreSmallScales(scales.x) && AreSmallScales(scales.y & 0xffffff));
  }
  // A lane's fragments of four interleaved products: values 16 k + 4 t .. + 3 of a slice of key g in
  // the places of columns 2 t, 2 t + 1, 2 t + 8 and 2 t + 9.
  using Fragments = uint32_t[4][kParts][2];
  template <bool kSmallScales>
  __device__ static void LoadFragments(const Tiles& tiles, int tile, int slice, Fragments& fragments) {
    const int g = threadIdx.x % 32 / 4;
    const int t = threadIdx.x % 4;
    const Piece& piece = tiles.pieces[slice][tile];
    const uint32_t factor = piece.factors[g];
    const uint32_t factors = (kSmallScales ? SmallFactor(factor) : factor) * 0x10001;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const uint32_t codes = *reinterpret_cast<const uint32_t*>(piece.At(g, k) + 4 * t);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t moved = MoveTwoE4M3(codes, 2 * i, 2 * i + 1);
        fragments[k][0][i] = kSmallScales ? MultiplyBf16(moved, factors) : ScaleMoved(moved, factors);
      }
    }
  }
  __device__ static void LoadLastFragments(const Tiles& tiles, int tile, Fragments& fragments) {
    const int g = threadIdx.x % 32 / 4;
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const std::byte* chunk = ChunkOf(const_cast<std::byte*>(tiles.last[tile]), g, 2 * k + t / 2);
      const uint2 values = *reinterpret_cast<const uint2*>(chunk + 8 * (t % 2));
      fragments[k][0][0] = values.x;
      fragments[k][0][1] = values.y;
    }
  }

  // Fragments of a block of keys as values, of dims 16 n + 2 g and 16 n + 2 g + 1 of a slice: the products'
  // rows g and g + 8.
  using ValueFragments = uint32_t[kBlock / 16][kParts][4];
  struct RawValues {
    uint32_t codes[8];    // of keys 2 t and 2 t + 1 of each tile of keys, two dims each
    uint32_t factors[8];  // of these keys
  };
  __device__ static void LoadValues(const Piece* tiles, int n, RawValues& raw) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      LoadMatricesTransposed(*reinterpret_cast<uint32_t(*)[4]>(&raw.codes[4 * half]),
                             tiles[4 * half + lane / 8].At(lane % 8, n));
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      raw.factors[i] = *reinterpret_cast<const uint32_t*>(&tiles[i].factors[2 * (lane % 4)]);
    }
  }
  // Those of 16 keys, the block's keys 16 k and on.
  __device__ static void DecodeValues(const RawValues& raw, int k, ValueFragments& fragments) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t codes = raw.codes[2 * k + i];
      const uint32_t factors = raw.factors[2 * k + i];
      fragments[k][0][2 * i] = ScaleMoved(MoveTwoE4M3(codes, 0, 2), factors);
      fragments[k][0][2 * i + 1] = ScaleMoved(MoveTwoE4M3(codes, 1, 3), factors);
    }
  }
};

// Float32 entries: each value as the sum of two bf16 ones, the tile of the lower parts `part_bytes` behind
// that of the upper ones; 32 keys are a block of the softmax.
struct FloatKeys {
  static constexpr int kBlock = 32;
  static constexpr int kParts = 2;
  struct Raw {
    float4 half[2];
  };

  __device__ static Raw Load(const EntryLayout& layout, const std::byte* entry, int slice, int chunk) {
    const int first = kSliceDims * slice + 8 * chunk;
    Raw raw = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (entry != nullptr && first + 4 * i < layout.dim) {
        raw.half[i] = reinterpret_cast<const float4*>(entry)[first / 4 + i];
      }
    }
    return raw;
  }

  __device__ static void Store(const EntryLayout&, const Raw& raw, int, int chunk, std::byte* tile,
                               int part_bytes, int row) {
    const float4 a = raw.half[0];
    const float4 b = raw.half[1];
    std::byte* to = ChunkOf(tile, row, chunk);
    *reinterpret_cast<uint4*>(to) = {PackBf16(a.x, a.y), PackBf16(a.z, a.w), PackBf16(b.x, b.y),
                                     PackBf16(b.z, b.w)};
    *reinterpret_cast<uint4*>(to + part_bytes) = {
        PackBf16(Remainder(a.x), Remainder(a.y)), PackBf16(Remainder(a.z), Remainder(a.w)),
        PackBf16(Remainder(b.x), Remainder(b.y)), PackBf16(Remainder(b.z), Remainder(b.w))};
  }

  static constexpr int kShareTiles = 3;
  static constexpr int kTileSpace = 4;
  static constexpr int kSoonTiles = 2;
  static constexpr int kCodedSlices = 8;

  struct alignas(16) Piece {
    float values[8][64 + 4];
  };
  struct Tiles {
    Piece pieces[kCodedSlices][kTileSpace];
  };
  __device__ static bool FetchHalf(const std::byte* entry, uint32_t here, SixteenAddresses& shared,
                                   Tiles& tiles, int first_tile, int half) {
    const int lane = threadIdx.x % 32;
    const SixteenAddresses entries = GiveToAll(entry, shared);
#pragma unroll
    for (int key = 0; key < 16; ++key) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = 64 * half + 32 * i + lane;
        CopyAsync<16>(&tiles.pieces[at / 16][first_tile + key / 8].values[key % 8][at % 16 * 4],
                      entries.items[key] + 16 * at, here >> key & 1);
      }
    }
    return true;
  }
  __device__ static void Split(float a, float b, uint32_t& upper, uint32_t& lower) {
    upper = PackBf16(a, b);
    lower = PackBf16(Remainder(a), Remainder(b));
  }
  using Fragments = uint32_t[4][kParts][2];
  template <bool>
  __device__ static void LoadFragments(const Tiles& tiles, int tile, int slice, Fragments& fragments) {
    const int g = threadIdx.x % 32 / 4;
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float4 a = *reinterpret_cast<const float4*>(&tiles.pieces[slice][tile].values[g][16 * k + 4 * t]);
      Split(a.x, a.y, fragments[k][0][0], fragments[k][1][0]);
      Split(a.z, a.w, fragments[k][0][1], fragments[k][1][1]);
    }
  }
  __device__ static void LoadLastFragments(const Tiles&, int, Fragments&) {}

  using ValueFragments = uint32_t[kBlock / 16][kParts][4];
  struct RawValues {
    float2 values[kBlock / 8][2];  // [tiles, keys]
  };
  __device__ static void LoadValues(const Piece* tiles, int n, RawValues& raw) {
    const int g = threadIdx.x % 32 / 4;
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < kBlock / 8; ++i) {
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        raw.values[i][odd] = *reinterpret_cast<const float2*>(&tiles[i].values[2 * t + odd][16 * n + 2 * g]);
      }
    }
  }
  __device__ static void DecodeValues(const RawValues& raw, int k, ValueFragments& fragments) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2(&pair)[2] = raw.values[2 * k + i];
      Split(pair[0].x, pair[1].x, fragments[k][0][2 * i], fragments[k][1][2 * i]);
      Split(pair[0].y, pair[1].y, fragments[k][0][2 * i + 1], fragments[k][1][2 * i + 1]);
    }
  }
};

}  // namespace foresight::cuda
