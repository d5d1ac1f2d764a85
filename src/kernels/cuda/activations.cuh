// Activations as operands of the tensor cores.
//
// Faithful numerics are exact in one bf16 or scaled f16 per value (bf16 values, or e4m3 times a power of
// two). Everything else is split into two, x = high + low, with an error of 2^-18 relative at most, and
// multiplied twice.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/weight_formats.cuh"

namespace foresight::cuda {

// A value's E4M3 code under act_quant with a block's scale, as a number. One over a power of two is exact,
// and so is the product.
__device__ inline float ActQuantCode(float x, uint8_t scale) {
  return E4M3(ToE4M3(x * E8M0(static_cast<uint8_t>(254 - scale))));
}

// Rows [rows, terms, padded] of bf16 or f16, zeros behind K, in the order of a weight format (SlotOf,
// Source); behind each of f16, a float32 for every block: what the values of the block are to be multiplied
// by.
struct PreparedRows {
  uint16_t* data = nullptr;
  int64_t padded = 0;  // K rounded up to whole blocks
  bool split = false;
  bool half = false;

  // In 16 bits; rows stay 16-byte aligned.
  __host__ __device__ int64_t stride() const {
    return (split ? 2 : 1) * padded + (half ? (padded / kBlockK + 3) / 4 * 8 : 0);
  }
  __device__ float* Factors(int64_t row) const {
    return reinterpret_cast<float*>(data + row * stride() + (split ? 2 : 1) * padded);
  }
};

// Float32 rows as they are.
struct PlainRows {
  const float* x;
  int64_t stride;
  __device__ float operator()(int64_t row, int64_t i) const { return x[row * stride + i]; }
};

// The same of bf16 values.
struct Bf16Rows {
  const uint16_t* x;
  int64_t stride;
  __device__ float operator()(int64_t row, int64_t i) const { return Bf16(x[row * stride + i]); }
};

// What a projection does to its input, one of these at most: model spec 2.1, 6.1.
struct InputNumerics {
  bool quantize = false;
  bool split = false;

  bool operator==(const InputNumerics&) const = default;
};

// A lane's four neighbours of the prepared order of one block; a warp has them all.
struct LaneValues {
  float x[4];

  template <typename Format, typename Source>
  __device__ void Load(const Source& source, int64_t row, int64_t block, int64_t k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int position = static_cast<int>(threadIdx.x % 32) * 4 + i;
      const int64_t from = block * kBlockK + Format::Source(SlotOf(position));
      x[i] = from < k ? source(row, from) : 0.0f;
    }
  }
  // In the format's type; with kHalf as what is to be multiplied by `factor`, and so are the values from then
  // on.
  template <typename Format>
  __device__ uint2 Pack(bool quantize, float& factor) {
    if constexpr (Format::kHalf) {
      // Bits of magnitudes are in their order.
      const float mine = fmaxf(fmaxf(fabsf(x[0]), fabsf(x[1])), fmaxf(fabsf(x[2]), fabsf(x[3])));
      const float amax = __uint_as_float(__reduce_max_sync(0xffffffff, __float_as_uint(mine)));
      if (quantize) {  // exact in one term
        const uint8_t scale = ActQuantScale(amax);
        const float inverse = E8M0(static_cast<uint8_t>(254 - scale));
        factor = E8M0(scale);
        return {E4M3Halves(x[0] * inverse, x[1] * inverse), E4M3Halves(x[2] * inverse, x[3] * inverse)};
      }
      const uint32_t exponent = max(__float_as_uint(amax) >> 23, 32);
      const float inverse = __uint_as_float((254 + 14 - exponent) << 23);
      for (float& v : x) v *= inverse;  // below 2^15
      factor = __uint_as_float((exponent - 14) << 23);
    }
    return Pack<Format>();
  }
  // To the block's 256 bytes at `to`; with kHalf its factor, and unless null what one term misses at
  // `to_low`.
  template <typename Format>
  __device__ void Store(bool quantize, uint16_t* to, uint16_t* to_low, float* factor) {
    const int at = static_cast<int>(threadIdx.x % 32) * 4;
    float multiplier = 1;
    *reinterpret_cast<uint2*>(to + at) = Pack<Format>(quantize, multiplier);
    if constexpr (Format::kHalf) *factor = multiplier;
    if (to_low == nullptr || quantize) return;
    for (float& v : x) v -= Format::kHalf ? __half2float(__float2half_rn(v)) : RoundBf16(v);
    *reinterpret_cast<uint2*>(to_low + at) = Pack<Format>();
  }

 private:
  template <typename Format>
  __device__ uint2 Pack() const {
    if constexpr (Format::kHalf) return {PackHalves(x[0], x[1]), PackHalves(x[2], x[3])};
    return {PackBf16(x[0], x[1]), PackBf16(x[2], x[3])};
  }
};

// One warp per block of 128.
template <typename Format, typename Source>
__global__ void PrepareKernel(Source source, int64_t k, bool quantize, PreparedRows out) {
  AwaitInputs();
  const int64_t row = blockIdx.x;
  const int64_t block = int64_t{blockIdx.y} * (blockDim.x / 32) + threadIdx.x / 32;
  if (block * kBlockK >= out.padded) return;
  LaneValues values;
  values.Load<Format>(source, row, block, k);
  uint16_t* to = out.data + row * out.stride() + block * kBlockK;
  values.Store<Format>(quantize, to, out.split ? to + out.padded : nullptr, out.Factors(row) + block);
}

// The rows of source, in scratch of the caller's scope.
template <typename Format, typename Source>
PreparedRows Prepare(const KernelContext& ctx, const Source& source, int64_t rows, int64_t k,
                     InputNumerics numerics) {
  PreparedRows out;
  out.padded = CeilDiv(k, kBlockK) * int64_t{kBlockK};
  out.split = numerics.split;
  out.half = Format::kHalf;
  out.data = ctx.scratch->Allocate<uint16_t>(rows * out.stride());
  constexpr int kWarps = 4;
  Launch(ctx, PrepareKernel<Format, Source>,
         dim3(static_cast<unsigned>(rows), CeilDiv(out.padded / kBlockK, kWarps)), kWarps * 32, 0, source, k,
         numerics.quantize, out);
  return out;
}

}  // namespace foresight::cuda
