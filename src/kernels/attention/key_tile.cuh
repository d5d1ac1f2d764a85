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

// Eight E4M3 codes times 2^(scale - 127), exact in bf16 but where that has no smaller values.
__device__ inline uint4 DecodeE4M3(uint2 codes, uint32_t scale) {
  uint2 a = MoveE4M3(codes.x);
  uint2 b = MoveE4M3(codes.y);
  uint32_t factor = (scale + 120) << 7;  // 2^(scale - 7)
  if (scale > 134) {                     // which bf16 doesn't have: in two steps
    const uint32_t bias = 0x7b807b80;    // 2^120
    a = {MultiplyBf16(a.x, bias), MultiplyBf16(a.y, bias)};
    b = {MultiplyBf16(b.x, bias), MultiplyBf16(b.y, bias)};
    factor = scale == 255 ? 0x7fc0 : scale << 7;
  }
  factor *= 0x10001;
  return {MultiplyBf16(a.x, factor), MultiplyBf16(a.y, factor), MultiplyBf16(b.x, factor),
          MultiplyBf16(b.y, factor)};
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

  // The same by way of shared memory, for entries of 512 values, 64 of them rotary: slices but the last lie
  // there as codes; the last one's values go straight to their place in the tile.
  static constexpr int kRawSlices = 7;
  static constexpr int kRawBytes = 64;
  static constexpr int kShareTiles = 10;  // of 8 keys, of a block of a cluster
  __device__ static void Fetch(const std::byte* entry, int slice, int chunk, std::byte* raw) {
    CopyAsync<8>(raw + 8 * chunk, entry + 64 * slice + 8 * chunk, entry != nullptr);
  }
  __device__ static void FetchLast(const std::byte* entry, int chunk, std::byte* tile, int row) {
    std::byte* to = ChunkOf(tile, row, chunk);
    CopyAsync<8>(to, entry + 448 + 16 * chunk, entry != nullptr);
    CopyAsync<8>(to + 8, entry + 448 + 16 * chunk + 8, entry != nullptr);
  }
  __device__ static void FetchScales(const std::byte* entry, uint2* scales) {
    CopyAsync<8>(scales, entry + 448 + 128, entry != nullptr);
  }
  // Quarter `piece` of a slice: sixteen values.
  __device__ static void Decode(const std::byte* raw, const uint2& scales, int slice, int piece,
                                std::byte* tile, int, int row) {
    const uint4 codes = *reinterpret_cast<const uint4*>(raw + 16 * piece);
    const uint32_t scale = reinterpret_cast<const uint8_t*>(&scales)[slice];
    *reinterpret_cast<uint4*>(ChunkOf(tile, row, 2 * piece)) = DecodeE4M3({codes.x, codes.y}, scale);
    *reinterpret_cast<uint4*>(ChunkOf(tile, row, 2 * piece + 1)) = DecodeE4M3({codes.z, codes.w}, scale);
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

  static constexpr int kRawSlices = 8;
  static constexpr int kRawBytes = 256;
  static constexpr int kShareTiles = 3;
  __device__ static void Fetch(const std::byte* entry, int slice, int chunk, std::byte* raw) {
    CopyAsync<16>(raw + 32 * chunk, entry + 256 * slice + 32 * chunk, entry != nullptr);
    CopyAsync<16>(raw + 32 * chunk + 16, entry + 256 * slice + 32 * chunk + 16, entry != nullptr);
  }
  __device__ static void FetchLast(const std::byte*, int, std::byte*, int) {}
  __device__ static void FetchScales(const std::byte*, uint2*) {}
  __device__ static void Decode(const std::byte* raw, const uint2&, int, int piece, std::byte* tile,
                                int part_bytes, int row) {
    const float4* from = reinterpret_cast<const float4*>(raw + 64 * piece);
    Store({}, {from[0], from[1]}, 0, 2 * piece, tile, part_bytes, row);
    Store({}, {from[2], from[3]}, 0, 2 * piece + 1, tile, part_bytes, row);
  }
};

}  // namespace foresight::cuda
