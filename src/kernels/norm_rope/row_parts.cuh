// The norm of rows and their raw keys as parts of a launch (cuda/side_by_side.cuh), a thread block per row.
#pragma once

#include "base/check.h"
#include "kernels/norm_rope/encode.cuh"
#include "kernels/norm_rope/norm_rope.h"

namespace foresight::cuda {

constexpr int kNormThreads = 256;
constexpr int kNormQuads = 8;  // values of a row that a thread has, by four

// out may be x: a thread writes what it alone has read.
struct RmsNormPart {
  const float* x = nullptr;
  VectorView weight;
  int dim = 0;
  float eps = 0;
  bool round = false;
  float* out = nullptr;
  int blocks = 0;
  int threads = kNormThreads;

  RmsNormPart() = default;
  RmsNormPart(const RmsNormArgs& args, bool faithful)
      : x(args.x),
        weight(args.weight),
        dim(args.dim),
        eps(args.eps),
        round(faithful),
        out(args.out),
        blocks(args.rows) {
    CHECK(args.dim % 4 == 0 && args.dim <= 4 * kNormQuads * kNormThreads);
  }

  __device__ void operator()(int row) const {
    __shared__ float sums[32];
    const float4* from = reinterpret_cast<const float4*>(x + static_cast<int64_t>(row) * dim);
    float4* to = reinterpret_cast<float4*>(out + static_cast<int64_t>(row) * dim);
    float4 values[kNormQuads];
    float squares = 0;
#pragma unroll
    for (int q = 0; q < kNormQuads; ++q) {
      const int i = q * kNormThreads + threadIdx.x;
      values[q] = i < dim / 4 ? from[i] : float4{0, 0, 0, 0};
    }
#pragma unroll
    for (const float4& v : values) squares += (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
    const float rinv = 1.0f / sqrtf(BlockSum(squares, sums, kNormThreads) / static_cast<float>(dim) + eps);
#pragma unroll
    for (int q = 0; q < kNormQuads; ++q) {
      const int i = q * kNormThreads + threadIdx.x;
      if (i >= dim / 4) continue;
      const float4& v = values[q];
      float4 y = {VectorValue(weight, 4 * i) * (v.x * rinv), VectorValue(weight, 4 * i + 1) * (v.y * rinv),
                  VectorValue(weight, 4 * i + 2) * (v.z * rinv),
                  VectorValue(weight, 4 * i + 3) * (v.w * rinv)};
      if (round) y = {RoundBf16(y.x), RoundBf16(y.y), RoundBf16(y.z), RoundBf16(y.w)};
      to[i] = y;
    }
  }
};

// A thread to a pair of neighbours: the 64 values that share a scale are a warp's.
struct KeyPart {
  const float* kv = nullptr;
  VectorView norm;
  const float* cos = nullptr;
  const float* sin = nullptr;
  EntryLayout layout;
  int64_t entry_bytes = 0;
  float eps = 0;
  bool round = false;
  std::byte* entries = nullptr;
  int blocks = 0;
  int threads = 0;

  KeyPart() = default;
  KeyPart(const KeyArgs& args, bool faithful)
      : kv(args.kv),
        norm(args.norm),
        cos(args.cos),
        sin(args.sin),
        layout(args.layout),
        entry_bytes(args.layout.bytes()),
        eps(args.eps),
        round(faithful),
        entries(args.entries),
        blocks(args.rows),
        threads((args.layout.dim / 2 + 31) / 32 * 32) {
    CHECK(args.layout.dim % 2 == 0 && args.layout.dim <= 1024);
  }

  __device__ void operator()(int row) const {
    __shared__ float sums[32];
    const int pair = threadIdx.x;
    const int first_rotary = (layout.dim - layout.rope_dim) / 2;
    const bool mine = pair < layout.dim / 2;
    float2 v = mine ? reinterpret_cast<const float2*>(kv + static_cast<int64_t>(row) * layout.dim)[pair]
                    : float2{0, 0};
    const float squares = v.x * v.x + v.y * v.y;
    const float rinv = 1.0f / sqrtf(BlockSum(squares, sums, threads) / static_cast<float>(layout.dim) + eps);
    std::byte* entry = entries + row * entry_bytes;
    if (mine) {
      v = {VectorValue(norm, 2 * pair) * (v.x * rinv), VectorValue(norm, 2 * pair + 1) * (v.y * rinv)};
      if (round) v = {RoundBf16(v.x), RoundBf16(v.y)};
      if (pair >= first_rotary) {
        const int64_t at = static_cast<int64_t>(row) * (layout.rope_dim / 2) + pair - first_rotary;
        v = Turned(v, cos[at], sin[at]);
      }
    }
    EncodeEntryPairs(layout, pair, v, entry);
  }
};

}  // namespace foresight::cuda
