// Activations as operands of the tensor cores.
//
// Faithful numerics are exact in one bf16 per value (bf16 values, or e4m3 times a power of two). Everything
// else is split into two, x = high + low with an error of 2^-18 relative at most, and multiplied twice.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/weight_formats.cuh"

namespace foresight::cuda {

// x through act_quant and back, `amax` the largest magnitude of its block.
__device__ inline float ActQuant(float x, float amax) {
  const uint8_t scale = ActQuantScale(amax);
  // One over a power of two is exact, and so is the product.
  return E4M3(ToE4M3(x * E8M0(static_cast<uint8_t>(254 - scale)))) * E8M0(scale);
}

// Rows [rows, terms, padded] of bf16, zeros behind K, in the order of a weight format (SlotOf, Source).
struct PreparedRows {
  uint16_t* data = nullptr;
  int64_t padded = 0;  // K rounded up to whole blocks
  bool split = false;

  __host__ __device__ int64_t stride() const { return split ? 2 * padded : padded; }
};

// Float32 rows as they are.
struct PlainRows {
  const float* x;
  int64_t k;
  __device__ float operator()(int64_t row, int64_t i) const { return x[row * k + i]; }
};

// One warp per block of 128: a lane takes four neighbours of the prepared order.
template <typename Format, typename Source>
__global__ void PrepareKernel(Source source, int64_t k, bool quantize, PreparedRows out) {
  AwaitInputs();
  const int64_t row = blockIdx.x;
  const int64_t block = int64_t{blockIdx.y} * (blockDim.x / 32) + threadIdx.x / 32;
  if (block * kBlockK >= out.padded) return;
  const int position = static_cast<int>(threadIdx.x % 32) * 4;
  float x[4];
  float amax = 0;
  for (int i = 0; i < 4; ++i) {
    const int64_t from = block * kBlockK + Format::Source(SlotOf(position + i));
    x[i] = from < k ? source(row, from) : 0.0f;
    amax = fmaxf(amax, fabsf(x[i]));
  }
  if (quantize) {
    amax = WarpMax(amax);
    for (float& v : x) v = ActQuant(v, amax);
  }
  uint32_t high[4], low[4];
  for (int i = 0; i < 4; ++i) {
    high[i] = Bf16Bits(x[i]);
    low[i] = Bf16Bits(x[i] - Bf16(static_cast<uint16_t>(high[i])));
  }
  uint16_t* to = out.data + row * out.stride() + block * kBlockK + position;
  *reinterpret_cast<uint2*>(to) = uint2{high[0] | high[1] << 16, high[2] | high[3] << 16};
  if (out.split) {
    *reinterpret_cast<uint2*>(to + out.padded) = uint2{low[0] | low[1] << 16, low[2] | low[3] << 16};
  }
}

// What a projection does to its input: model spec 2.1, 6.1.
struct InputNumerics {
  bool quantize = false;
  bool split = false;

  bool operator==(const InputNumerics&) const = default;
};

// The rows of source, in scratch of the caller's scope.
template <typename Format, typename Source>
PreparedRows Prepare(const KernelContext& ctx, const Source& source, int64_t rows, int64_t k,
                     InputNumerics numerics) {
  PreparedRows out;
  out.padded = CeilDiv(k, kBlockK) * int64_t{kBlockK};
  out.split = numerics.split;
  out.data = ctx.scratch->Allocate<uint16_t>(rows * out.stride());
  constexpr int kWarps = 4;
  Launch(ctx, PrepareKernel<Format, Source>,
         dim3(static_cast<unsigned>(rows), CeilDiv(out.padded / kBlockK, kWarps)), kWarps * 32, 0, source, k,
         numerics.quantize, out);
  return out;
}

}  // namespace foresight::cuda
