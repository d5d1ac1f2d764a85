// A warp's share of a block of attention keys: 64 of their dims, from cache entries to bf16 in shared memory.
//
// A tile has rows of 64 bf16 values in eight chunks of 16 bytes; chunk c of row r lies at place c ^ (r % 8),
// so that eight rows' same chunks lie in all banks.
#pragma once

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

// Two E4M3 codes (bytes `at` and `at + 1` of a word, the selector's) times a power of two, exact in bf16.
__device__ inline uint32_t DecodeE4M3Pair(uint32_t word, uint32_t selector, __nv_bfloat162 scale) {
  // With a code in the upper byte of a half, exponent and mantissa moved to a bf16's place are 2^-120 of the
  // value, subnormals included.
  const uint32_t codes = __byte_perm(word, 0, selector);
  const uint32_t raw = (codes & 0x80008000) | (codes & 0x7f007f00) >> 4;
  const __nv_bfloat162 bias = __bfloat162bfloat162(__ushort_as_bfloat16(0x7b80));
  const __nv_bfloat162 value = __hmul2(__hmul2(reinterpret_cast<const __nv_bfloat162&>(raw), bias), scale);
  return reinterpret_cast<const uint32_t&>(value);
}

// What a lane has loaded of a block of keys and not yet stored; keys that are absent are zeros.
//   kPacked   keys 4i + lane / 8, chunk lane % 8: eight codes and their scale, or eight bf16 values
//   kFloat32  keys 2i + lane / 16, values 4 (lane % 16)..+3
struct RawKeys16 {
  uint4 words[16];
};

// Packed entries: 64 keys. `entry` is of key lane in .x and of key lane + 32 in .y.
struct PackedSlice {
  static constexpr int kKeys = 64;
  const std::byte* entry[2];

  __device__ void Load(const EntryLayout& layout, int begin, RawKeys16& raw) const {
    const int lane = threadIdx.x % 32;
    const int nope = layout.dim - layout.rope_dim;
    const int first = begin + 8 * (lane % 8);
    const bool is_nope = begin < nope;
    const int at = is_nope ? first : nope + 2 * (first - nope);
    const int scale_at = nope + 2 * layout.rope_dim + begin / 64;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      // Key 4i + lane / 8 is lane (4i + lane / 8) % 32's.
      const std::byte* from = reinterpret_cast<const std::byte*>(__shfl_sync(
          0xffffffff, reinterpret_cast<unsigned long long>(entry[i / 8]), 4 * (i % 8) + lane / 8));
      uint4 word = {};
      if (from != nullptr && first < layout.dim) {
        const uint2 low = *reinterpret_cast<const uint2*>(from + at);
        word.x = low.x;
        word.y = low.y;
        if (is_nope) {
          word.z = static_cast<uint32_t>(from[scale_at]);
        } else {
          const uint2 high = *reinterpret_cast<const uint2*>(from + at + 8);
          word.z = high.x;
          word.w = high.y;
        }
      }
      raw.words[i] = word;
    }
  }

  __device__ static void Store(const EntryLayout& layout, int begin, const RawKeys16& raw, std::byte* tile) {
    const int lane = threadIdx.x % 32;
    const bool is_nope = begin < layout.dim - layout.rope_dim;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      uint4 chunk = raw.words[i];
      if (is_nope) {
        const __nv_bfloat162 scale =
            __bfloat162bfloat162(__float2bfloat16_rn(E8M0(static_cast<uint8_t>(chunk.z))));
        const uint2 codes = {chunk.x, chunk.y};
        chunk = {DecodeE4M3Pair(codes.x, 0x1404, scale), DecodeE4M3Pair(codes.x, 0x3424, scale),
                 DecodeE4M3Pair(codes.y, 0x1404, scale), DecodeE4M3Pair(codes.y, 0x3424, scale)};
      }
      *reinterpret_cast<uint4*>(ChunkOf(tile, 4 * i + lane / 8, lane % 8)) = chunk;
    }
  }
};

// Float32 entries: 32 keys, each value as the sum of two bf16 ones; the tile of the lower parts follows that
// of the upper ones.
struct FloatSlice {
  static constexpr int kKeys = 32;
  static constexpr int kTileBytes = kKeys * kTileRowBytes;
  const std::byte* entry[1];

  __device__ void Load(const EntryLayout& layout, int begin, RawKeys16& raw) const {
    const int lane = threadIdx.x % 32;
    const int first = begin + 4 * (lane % 16);
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const std::byte* from = reinterpret_cast<const std::byte*>(
          __shfl_sync(0xffffffff, reinterpret_cast<unsigned long long>(entry[0]), 2 * i + lane / 16));
      uint4 word = {};
      if (from != nullptr && first < layout.dim) word = *reinterpret_cast<const uint4*>(from + 4 * first);
      raw.words[i] = word;
    }
  }

  __device__ static void Store(const EntryLayout&, int, const RawKeys16& raw, std::byte* tile) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float4 x = reinterpret_cast<const float4&>(raw.words[i]);
      std::byte* to = ChunkOf(tile, 2 * i + lane / 16, lane % 16 / 2) + lane % 2 * 8;
      *reinterpret_cast<uint2*>(to) = {PackBf16(x.x, x.y), PackBf16(x.z, x.w)};
      *reinterpret_cast<uint2*>(to + kTileBytes) = {PackBf16(Remainder(x.x), Remainder(x.y)),
                                                    PackBf16(Remainder(x.z), Remainder(x.w))};
    }
  }
};

}  // namespace foresight::cuda
