// Queries of the indexer as packed keys want them.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sequences.cuh"
#include "kernels/indexer/indexing.cuh"
#include "kernels/norm_rope/encode.cuh"

namespace foresight::cuda {

constexpr int kPackedDim = 128;   // of keys and queries
constexpr int kPackedHeads = 64;  // of a query, zeros behind the last
constexpr int kHeadsOfWarp = 4;   // that a warp packs

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

// Keys in bf16 are decoded to 2^-32 of their values, so that the factor that also moves an E2M1's bias is a
// bf16. Exact for scales from 2^-100 to 2^33.
constexpr uint32_t kKeyShift = 32;

// Keys and queries can be bytes, too: E2M1s of blocks whose scales are no more than 2^3 apart are whole
// numbers below 97 times one power of two. Sums of their products are exact, as they are in bf16 then: 21
// bits. Others, which a Hadamard transform hardly leaves, are multiplied in bf16 alone.

// What is made of the sums of a row's products.
struct alignas(16) QueryWeights {
  float of_values[kPackedHeads];  // of twice the sums of values, which are 2^-kKeyShift of what they are
  float of_bytes[kPackedHeads];   // with the power of two that a head's bytes are without
  uint32_t wide[kPackedHeads / kHeadsOfWarp / 4];  // bytes: one of a warp's heads can't be bytes

  __device__ bool IsWide() const {
    uint32_t any = 0;
    for (const uint32_t w : wide) any |= w;
    return any != 0;
  }
};

// A row's query as the kernels that score packed keys take it.
struct PackedQuery {
  uint16_t values[kPackedHeads * kPackedDim];  // bf16, by QueryPlace
  uint8_t bytes[kPackedHeads * kPackedDim];    // by QueryBytePlace
  QueryWeights weights;
};

// As values, but dims of four blocks that one lane of a quad unpacks from eight codes make a step, and rows
// of a matrix have 16 of them.
__device__ inline int QueryBytePlace(int head, int d) {
  const int matrix = d % 32 / 8 * 2 + d % 8 / 4;
  return (matrix * kPackedHeads + head) * 16 + d / 32 * 4 + d % 4;
}

// kHeadsOfWarp heads of a row's query, by one warp: rotated, transformed and rounded as the keys are. Eight
// lanes have a head: dim 32 b + 8 t + e is x[b % 2][e] of its lane 4 (b / 2) + t.
class PackedHeads {
 public:
  __device__ explicit PackedHeads(const Indexing& args) : args_(args) {}

  // Begins to load kHeadsOfWarp heads and what they are turned by.
  __device__ void Load(int64_t row, int first_head) {
    head_ = first_head + static_cast<int>(threadIdx.x) % 32 / 8;
    const float* from = args_.iq + (row * args_.heads + head_) * kPackedDim + U() * 64 + T() * 8;
#pragma unroll
    for (int b = 0; b < 2; ++b) {
#pragma unroll
      for (int e = 0; e < 8; e += 4) {
        float4 v = {};
        if (head_ < args_.heads) v = *reinterpret_cast<const float4*>(from + 32 * b + e);
        x_[b][e] = v.x;
        x_[b][e + 1] = v.y;
        x_[b][e + 2] = v.z;
        x_[b][e + 3] = v.w;
      }
      const int64_t first = row * (args_.rope_dim / 2) + TurnedPair(b);
      cos_[b] = sin_[b] = {};  // else what was there before is kept in registers all the time
      if (TurnedPair(b) >= 0) {
        cos_[b] = *reinterpret_cast<const float4*>(args_.cos + first);
        sin_[b] = *reinterpret_cast<const float4*>(args_.sin + first);
      }
    }
    w_ = head_ < args_.heads ? args_.w[row * args_.heads + head_] : 0.0f;
  }

  __device__ void Pack() {
    Transform();
    Round();
  }

  // The first half of it.
  __device__ void Transform() {
    Rotate();
    Hadamard();
  }

  // The second half of it: to E2M1 times a scale for each b, value by value E2M1(ToE2M1(x / scale)) * scale.
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

  __device__ void StoreTo(PackedQuery& query) const {
    StoreValues(query.values);
    StoreBytes(query);
    // Half of it, for twice the rectified dots are added up.
    if (T() + U() == 0) query.weights.of_values[head_] = Weight() * (0.5f * (1ll << kKeyShift));
  }

  __device__ void StoreValues(uint16_t* query) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t pairs[2];  // of a row of a matrix: the upper halves are the bf16 values
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        pairs[b] = __byte_perm(__float_as_uint(x_[b][i]), __float_as_uint(x_[b][i + 4]), 0x7632);
      }
      *reinterpret_cast<uint2*>(query + QueryPlace(head_, 64 * U() + 8 * T() + i)) = {pairs[0], pairs[1]};
    }
  }

 private:
  // Not before it is needed: who multiplies waits for what was loaded.
  __device__ float Weight() const {
    return w_ * args_.factor;
  }

  // The lane's place among those of its head.
  __device__ static int T() {
    return threadIdx.x % 4;
  }
  __device__ static int U() {
    return threadIdx.x / 4 % 2;
  }

  __device__ void StoreBytes(PackedQuery& query) const {
    constexpr int kExponent = 127;
    constexpr float kToWhole = 0x1.8p23f;  // the bits of it plus a whole number are its bits plus that
    float amax = 0;
#pragma unroll
    for (int b = 0; b < 2; ++b) {
#pragma unroll
      for (int e = 0; e < 8; ++e) amax = fmaxf(amax, fabsf(x_[b][e]));
    }
    amax = fmaxf(amax, __shfl_xor_sync(0xffffffff, amax, 1));
    amax = fmaxf(amax, __shfl_xor_sync(0xffffffff, amax, 2));
    amax = fmaxf(amax, __shfl_xor_sync(0xffffffff, amax, 4));
    // The head's largest value becomes 64 or 96.
    const int power = max(__float_as_int(amax) >> 23, 16);
    const float to_bytes = __int_as_float((2 * kExponent + 6 - power) << 23);
    bool fits = amax == 0 || abs(power - kExponent) <= 40;  // products by values are exact, too
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t quads[2];  // of a row of a matrix
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        uint32_t bits[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float number = fmaf(x_[b][4 * half + i], to_bytes, kToWhole);
          fits &= number - kToWhole == x_[b][4 * half + i] * to_bytes;
          bits[i] = __float_as_uint(number);
        }
        quads[b] =
            __byte_perm(__byte_perm(bits[0], bits[1], 0x0040), __byte_perm(bits[2], bits[3], 0x0040), 0x5410);
      }
      *reinterpret_cast<uint2*>(query.bytes + QueryBytePlace(head_, 64 * U() + 8 * T() + 4 * half)) = {
          quads[0], quads[1]};
    }
    const bool all_fit = __all_sync(0xffffffff, fits);
    if (T() + U() == 0) query.weights.of_bytes[head_] = Weight() * __int_as_float((power - 6) << 23);
    if (threadIdx.x % 32 == 0) {
      reinterpret_cast<uint8_t*>(query.weights.wide)[head_ / kHeadsOfWarp] = !all_fit;
    }
  }

  // The first of the lane's four pairs in x[b] that turn, all or none; below 0: none.
  __device__ int TurnedPair(int b) const {
    return 32 * U() + 16 * b + 4 * T() - (kPackedDim - args_.rope_dim) / 2;
  }

  __device__ void Rotate() {
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      if (TurnedPair(b) >= 0) {
        Turn(b, 0, cos_[b].x, sin_[b].x);
        Turn(b, 2, cos_[b].y, sin_[b].y);
        Turn(b, 4, cos_[b].z, sin_[b].z);
        Turn(b, 6, cos_[b].w, sin_[b].w);
      }
      if (args_.faithful) RoundAll(x_[b]);
    }
  }

  // To bfloat16, by one conversion for two values.
  __device__ static void RoundAll(float (&x)[8]) {
#pragma unroll
    for (int e = 0; e < 8; e += 2) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(x[e], x[e + 1]);
      x[e] = __low2float(pair);
      x[e + 1] = __high2float(pair);
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
      CombineLanes(x, 1);
      CombineLanes(x, 2);
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) combine(x_[0][e], x_[1][e]);
    CombineLanes(x_[0], 4);
    CombineLanes(x_[1], 4);
    const float scale = 1.0f / sqrtf(static_cast<float>(kPackedDim));
#pragma unroll
    for (auto& x : x_) {
#pragma unroll
      for (float& v : x) v *= scale;
      RoundAll(x);
    }
  }

  __device__ static void CombineLanes(float (&x)[8], int distance) {
    const float sign = threadIdx.x & distance ? -1.0f : 1.0f;
#pragma unroll
    for (float& v : x) v = fmaf(sign, v, __shfl_xor_sync(0xffffffff, v, distance));
  }

  const Indexing& args_;
  int head_;
  float w_;
  float x_[2][8];
  float4 cos_[2];
  float4 sin_[2];
};

}  // namespace foresight::cuda
