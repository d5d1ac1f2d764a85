// Queries of the indexer as packed keys want them.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sequences.cuh"
#include "kernels/indexer/indexing.cuh"
#include "kernels/norm_rope/encode.cuh"

namespace foresight::cuda {

constexpr int kPackedDim = 128;   // of keys and queries
constexpr int kPackedHeads = 64;  // of a query, zeros behind the last
constexpr int kQueryBytes = kPackedHeads * kPackedDim * 2;
constexpr int kStepBytes = 16 * kPackedHeads * 2;  // of a query: 16 dims of all heads

// A dot product doesn't care for the order of its dims. Lane t of a quad takes dims [32t, 32t+32) of a key,
// which are one block of codes with one scale; of each eight codes the pairs (0, 4), (1, 5), (2, 6), (3, 7)
// unpack together. Queries follow: 16 x 8 matrices of 8 heads by 8 dims as the tensor cores read them, and
// this is where dim d of a head lies, in bf16 values.
__device__ inline int QueryPlace(int head, int d) {
  const int matrix = d % 32 / 8 * 4 + d % 4;
  const int column = d / 32 * 2 + d % 8 / 4;
  return (matrix * kPackedHeads + head) * 8 + column;
}

constexpr int kPackedRopeStep = 8;  // rope_dim is a multiple of it

// Eight heads of a row's query, by one warp: rotated, transformed and rounded as the keys are. A quad of
// lanes has a head: dim 32 b + 8 t + e is x[b][e] of its lane t.
class PackedHeads {
 public:
  // Begins to load them.
  __device__ PackedHeads(const Indexing& args, int64_t row, int first_head)
      : args_(args), row_(row), head_(first_head + static_cast<int>(threadIdx.x) % 32 / 4) {
    const float* from = args.iq + (row * args.heads + head_) * kPackedDim + T() * 8;
#pragma unroll
    for (int b = 0; b < 4; ++b) {
#pragma unroll
      for (int e = 0; e < 8; e += 4) {
        float4 v = {};
        if (head_ < args.heads) v = *reinterpret_cast<const float4*>(from + 32 * b + e);
        x_[b][e] = v.x;
        x_[b][e + 1] = v.y;
        x_[b][e + 2] = v.z;
        x_[b][e + 3] = v.w;
      }
    }
  }

  __device__ void StoreTo(uint16_t* query) {
    Rotate();
    Hadamard();
    Round();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint4 row;  // of a matrix: the upper halves are the bf16 values
      uint32_t* pairs = reinterpret_cast<uint32_t*>(&row);
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        pairs[b] = __byte_perm(__float_as_uint(x_[b][i]), __float_as_uint(x_[b][i + 4]), 0x7632);
      }
      *reinterpret_cast<uint4*>(query + QueryPlace(head_, 8 * T() + i)) = row;
    }
  }

 private:
  __device__ static int T() {
    return threadIdx.x % 4;
  }

  __device__ void Rotate() {
    const int pairs = args_.rope_dim / 2;
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const int pair = 16 * b + 4 * T() - (kPackedDim / 2 - pairs);  // of four, all or none of which turn
      if (pair >= 0) {
        const float4 cos = *reinterpret_cast<const float4*>(args_.cos + row_ * pairs + pair);
        const float4 sin = *reinterpret_cast<const float4*>(args_.sin + row_ * pairs + pair);
        Turn(b, 0, cos.x, sin.x);
        Turn(b, 2, cos.y, sin.y);
        Turn(b, 4, cos.z, sin.z);
        Turn(b, 6, cos.w, sin.w);
      }
      if (args_.faithful) {
#pragma unroll
        for (float& v : x_[b]) v = RoundBf16(v);
      }
    }
  }
  __device__ void Turn(int b, int e, float cos, float sin) {
    const float2 v = Turned({x_[b][e], x_[b][e + 1]}, cos, sin);
    x_[b][e] = v.x;
    x_[b][e + 1] = v.y;
  }

  // tensor/formats.h's: sums in the same order.
  __device__ void Hadamard() {
    const auto combine = [](float& a, float& b) {
      const float sum = a + b;
      b = a - b;
      a = sum;
    };
#pragma unroll
    for (auto& x : x_) {
#pragma unroll
      for (int distance = 1; distance < 8; distance *= 2) {
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          if ((e & distance) == 0) combine(x[e], x[e + distance]);
        }
      }
#pragma unroll
      for (int lanes = 1; lanes < 4; lanes *= 2) {
        const float sign = T() & lanes ? -1.0f : 1.0f;
#pragma unroll
        for (float& v : x) v = fmaf(sign, v, __shfl_xor_sync(0xffffffff, v, lanes));
      }
    }
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) {
#pragma unroll
      for (int b = 0; b < 4; ++b) {
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          if ((b & distance) == 0) combine(x_[b][e], x_[b + distance][e]);
        }
      }
    }
    const float scale = 1.0f / sqrtf(static_cast<float>(kPackedDim));
#pragma unroll
    for (auto& x : x_) {
#pragma unroll
      for (float& v : x) v = RoundBf16(v * scale);
    }
  }

  // To E2M1 times a scale for each b: value by value E2M1(ToE2M1(x / scale)) * scale.
  __device__ void Round() {
#pragma unroll
    for (auto& x : x_) {
      float amax = 0;
#pragma unroll
      for (const float v : x) amax = fmaxf(amax, fabsf(v));
      amax = fmaxf(amax, __shfl_xor_sync(0xffffffff, amax, 1));
      amax = fmaxf(amax, __shfl_xor_sync(0xffffffff, amax, 2));
      // Fp4QuantScale without its division: the least power of two that is a sixth of amax or more, which has
      // no more than 8 bits.
      const int scale = ((__float_as_int(fmaxf(amax, 6.0f * 0x1p-126f)) + 0x3fffff) & 0x7f800000) - (2 << 23);
#pragma unroll
      for (float& v : x) {
        // Neighbours are half a power of two apart, of the value's or of the scale if that is larger. 1.5
        // times 2^22 as much has no more places.
        const int power = max(__float_as_int(v) & 0x7f800000, scale);
        const float places = __int_as_float(power + (22 << 23 | 1 << 22));
        v = (v + places) - places;
      }
    }
  }

  const Indexing& args_;
  int64_t row_;
  int head_;
  float x_[4][8];
};

}  // namespace foresight::cuda
