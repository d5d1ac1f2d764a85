#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/formats.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"

namespace foresight::cuda {
namespace {

constexpr int kMaxStreams = 8;
constexpr int kSlice = 128;  // of the m * D columns of fn that one thread block multiplies
constexpr int kRowsPerBlock = 8;
constexpr int kMixThreads = 256;
constexpr int kRowThreads = 512;  // of a row's mixing
constexpr int kMixQuads = 4;      // values of a row that one of them has, by four

__global__ void EmbedKernel(const int32_t* tokens, const uint16_t* embed, int m, int64_t dim,
                            float* streams) {
  AwaitInputs();
  const uint16_t* from = embed + tokens[blockIdx.x] * dim;
  float* to = streams + blockIdx.x * m * dim;
  for (int64_t i = int64_t{blockIdx.y} * blockDim.x + threadIdx.x; i < dim; i += gridDim.y * blockDim.x) {
    const float x = Bf16(from[i]);
    for (int j = 0; j < m; ++j) to[j * dim + i] = x;
  }
}

__device__ float Dot(const float4& a, const float4& b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// partial [rows, outputs + 1, slices]: the sums of one slice of fn z for every output, and of z z behind
// them. Grid (slices, groups of rows). fn is 1.5 MB and more, too much for one multiprocessor to read per
// row; so slices spread over all of them, and a group of rows shares what is read. Up to kHeldOutputs of fn a
// warp are read before the streams are there.
__global__ void __launch_bounds__(kMixThreads)
    MixLogitsKernel(const float* fn, int outputs, int64_t cols, const float* streams, const int32_t* row_ids,
                    int rows, float* partial) {
  constexpr int kWarps = kMixThreads / 32;
  constexpr int kHeldOutputs = 4;
  constexpr int kQuads = kSlice / 128;  // of a lane
  __shared__ float4 z[kRowsPerBlock][kSlice / 4];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int64_t begin = int64_t{blockIdx.x} * kSlice;
  const auto load = [&](int o, float4(&w)[kQuads]) {
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int64_t at = begin + (i * 32 + lane) * 4;
      w[i] = o < outputs && at < cols ? __ldg(reinterpret_cast<const float4*>(fn + o * cols + at))
                                      : float4{0, 0, 0, 0};
    }
  };
  float4 held[kHeldOutputs][kQuads];
#pragma unroll
  for (int k = 0; k < kHeldOutputs; ++k) load(warp + k * kWarps, held[k]);
  AwaitInputs();

  const int first_row = blockIdx.y * kRowsPerBlock;
  const int count = min(kRowsPerBlock, rows - first_row);
  constexpr int kLoads = kRowsPerBlock * (kSlice / 4) / kMixThreads;
#pragma unroll
  for (int k = 0; k < kLoads; ++k) {
    const int i = k * kMixThreads + threadIdx.x;
    const int row = first_row + i / (kSlice / 4);
    const int64_t at = begin + i % (kSlice / 4) * 4;
    if (i >= count * (kSlice / 4)) continue;
    const int64_t source = row_ids != nullptr ? row_ids[row] : row;
    z[i / (kSlice / 4)][i % (kSlice / 4)] =
        at < cols ? *reinterpret_cast<const float4*>(streams + source * cols + at) : float4{0, 0, 0, 0};
  }
  __syncthreads();
  // Outputs first, first + kWarps, ... of all rows at hand.
  const auto multiply = [&](int first) {
    for (int r = 0; r < count; ++r) {
      float sums[kHeldOutputs] = {};
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        const float4 v = z[r][i * 32 + lane];
#pragma unroll
        for (int k = 0; k < kHeldOutputs; ++k) {
          sums[k] = Dot(first + k * kWarps < outputs ? held[k][i] : v, v, sums[k]);
        }
      }
      const float sum = WarpSumOfFour(sums);
      const int o = first + lane / 8 * kWarps;
      if (lane % 8 == 0 && o <= outputs) {
        partial[(int64_t{first_row + r} * (outputs + 1) + o) * gridDim.x + blockIdx.x] = sum;
      }
    }
  };
  multiply(warp);
  for (int first = warp + kHeldOutputs * kWarps; first <= outputs; first += kHeldOutputs * kWarps) {
#pragma unroll
    for (int k = 0; k < kHeldOutputs; ++k) load(first + k * kWarps, held[k]);
    multiply(first);
  }
}

__device__ float Sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

// fn_o . z of one row from its slices, or z . z for o = outputs. By a warp.
__device__ float SumSlices(const float* partial, int slices, int o) {
  float sum = 0;
  for (int s = threadIdx.x % 32; s < slices; s += 32) sum += partial[o * slices + s];
  return WarpSum(sum);
}

// logits[o] = fn_o . z / rms(z) of one row for o in [begin, end), a warp to an output. All threads of the
// block; ends with a barrier.
__device__ void FinishLogits(const float* partial, int outputs, int slices, int64_t cols, float eps,
                             int begin, int end, float* logits) {
  const float squares = SumSlices(partial, slices, outputs);
  for (int o = begin + threadIdx.x / 32; o < end; o += blockDim.x / 32) {
    const float sum = SumSlices(partial, slices, o);
    if (threadIdx.x % 32 == 0) logits[o] = sum * (1.0f / sqrtf(squares / static_cast<float>(cols) + eps));
  }
  __syncthreads();
}

// 1 / x to the last bit but one, without the branch of a division: dozens of them follow one another.
__device__ float Inverse(float x) {
  const float y = __fdividef(1.0f, x);
  return fmaf(y, fmaf(-x, y, 1.0f), y);
}

// c [m, m]: row softmax, then alternating normalisations that end with the columns (model spec 2.3). By one
// warp: lane i has row i in registers, columns are added up over the lanes. kM: m rounded up to a power of
// two.
template <int kM>
__device__ void Sinkhorn(int m, int iters, float eps, float* c) {
  const int lane = threadIdx.x % 32;
  float row[kM];
  float top = -INFINITY;
#pragma unroll
  for (int k = 0; k < kM; ++k) {
    row[k] = lane < m && k < m ? c[lane * m + k] : -INFINITY;
    top = fmaxf(top, row[k]);
  }
  float sum = 0;
#pragma unroll
  for (int k = 0; k < kM; ++k) {
    row[k] = lane < m && k < m ? expf(row[k] - top) : 0.0f;
    sum += row[k];
  }
#pragma unroll
  for (int k = 0; k < kM; ++k) row[k] = lane < m && k < m ? row[k] / sum + eps : 0.0f;
  for (int pass = 0; pass < 2 * iters - 1; ++pass) {
    if (pass % 2 == 0) {
#pragma unroll
      for (int k = 0; k < kM; ++k) {
        float column = row[k];
#pragma unroll
        for (int other = kM / 2; other > 0; other /= 2) column += __shfl_xor_sync(0xffffffff, column, other);
        row[k] *= Inverse(column + eps);
      }
    } else {
      sum = eps;
#pragma unroll
      for (int k = 0; k < kM; ++k) sum += row[k];
      const float inverse = Inverse(sum);
#pragma unroll
      for (int k = 0; k < kM; ++k) row[k] *= inverse;
    }
  }
#pragma unroll
  for (int k = 0; k < kM; ++k) {
    if (lane < m && k < m) c[lane * m + k] = row[k];
  }
}

// The norm's weights of a thread's values, which may be read before the inputs are there.
struct NormWeights {
  float4 quads[kMixQuads];

  __device__ NormWeights(const VectorView& norm, int dim) {
#pragma unroll
    for (int q = 0; q < kMixQuads; ++q) {
      const int i = q * kRowThreads + threadIdx.x;
      quads[q] = i < dim / 4 ? float4{VectorValue(norm, 4 * i), VectorValue(norm, 4 * i + 1),
                                      VectorValue(norm, 4 * i + 2), VectorValue(norm, 4 * i + 3)}
                             : float4{0, 0, 0, 0};
    }
  }
};

// out = RMSNorm(sum_j weight_j streams_j); `hidden`, unless null, receives the value before the norm. A
// thread has up to kMixQuads times four neighbouring values.
__device__ void MixAndNorm(bool faithful, int m, int dim, const float* streams, const float* weight,
                           const NormWeights& norm, float norm_eps, float* hidden, float* out) {
  __shared__ float shared[32];
  const int quads = dim / 4;
  float4 mixed[kMixQuads];
  float squares = 0;
#pragma unroll
  for (int q = 0; q < kMixQuads; ++q) {
    const int i = q * kRowThreads + threadIdx.x;
    mixed[q] = float4{0, 0, 0, 0};
    if (i >= quads) continue;
    float4 from[kMaxStreams];
#pragma unroll
    for (int j = 0; j < kMaxStreams; ++j) {
      if (j < m) from[j] = reinterpret_cast<const float4*>(streams + int64_t{j} * dim)[i];
    }
    float4 sum = {0, 0, 0, 0};
#pragma unroll
    for (int j = 0; j < kMaxStreams; ++j) {
      if (j >= m) continue;
      const float w = weight[j];
      sum = {fmaf(w, from[j].x, sum.x), fmaf(w, from[j].y, sum.y), fmaf(w, from[j].z, sum.z),
             fmaf(w, from[j].w, sum.w)};
    }
    if (faithful) sum = {RoundBf16(sum.x), RoundBf16(sum.y), RoundBf16(sum.z), RoundBf16(sum.w)};
    if (hidden != nullptr) reinterpret_cast<float4*>(hidden)[i] = sum;
    squares = Dot(sum, sum, squares);
    mixed[q] = sum;
  }
  const float rinv = 1.0f / sqrtf(BlockSum(squares, shared) / static_cast<float>(dim) + norm_eps);
#pragma unroll
  for (int q = 0; q < kMixQuads; ++q) {
    const int i = q * kRowThreads + threadIdx.x;
    if (i >= quads) continue;
    const float4 x = mixed[q];
    const float4 w = norm.quads[q];
    float4 y = {w.x * (x.x * rinv), w.y * (x.y * rinv), w.z * (x.z * rinv), w.w * (x.w * rinv)};
    if (faithful) y = {RoundBf16(y.x), RoundBf16(y.y), RoundBf16(y.z), RoundBf16(y.w)};
    reinterpret_cast<float4*>(out)[i] = y;
  }
}

// Two thread blocks per row: one mixes; the other finds out how the output is mixed back, which takes as
// long.
__global__ void __launch_bounds__(kRowThreads)
    PreKernel(HyperConnectionPreArgs args, const float* partial, int slices, bool faithful) {
  __shared__ float logits[kMaxStreams * (2 + kMaxStreams)];
  const int m = args.m;
  const int64_t row = blockIdx.x;
  const int outputs = m * (2 + m);
  const int64_t cols = int64_t{m} * args.dim;
  partial += row * (outputs + 1) * slices;
  const int i = threadIdx.x;
  if (blockIdx.y == 0) {
    const NormWeights norm(args.norm, args.dim);
    const float scale = VectorValue(args.scale, 0);
    const float base = i < m ? VectorValue(args.base, i) : 0.0f;
    AwaitInputs();
    FinishLogits(partial, outputs, slices, cols, args.norm_eps, 0, m, logits);
    if (i < m) logits[i] = Sigmoid(logits[i] * scale + base) + args.hc_eps;
    __syncthreads();
    MixAndNorm(faithful, m, args.dim, args.streams + row * cols, logits, norm, args.norm_eps, nullptr,
               args.x + row * args.dim);
    return;
  }
  AwaitInputs();
  FinishLogits(partial, outputs, slices, cols, args.norm_eps, m, outputs, logits);
  if (i >= 32) return;
  if (i < m) {
    args.post[row * m + i] =
        2.0f * Sigmoid(logits[m + i] * VectorValue(args.scale, 1) + VectorValue(args.base, m + i));
  }
  float* comb = logits + 2 * m;
  for (int e = i; e < m * m; e += 32) {
    comb[e] = comb[e] * VectorValue(args.scale, 2) + VectorValue(args.base, 2 * m + e);
  }
  __syncwarp();
  if (m <= 4) {
    Sinkhorn<4>(m, args.sinkhorn_iters, args.hc_eps, comb);
  } else {
    Sinkhorn<8>(m, args.sinkhorn_iters, args.hc_eps, comb);
  }
  __syncwarp();
  for (int e = i; e < m * m; e += 32) args.comb[row * m * m + e] = comb[e];
}

__global__ void __launch_bounds__(kRowThreads)
    HeadKernel(HyperHeadArgs args, const float* partial, int slices, bool faithful) {
  const NormWeights norm(args.norm, args.dim);
  AwaitInputs();
  __shared__ float logits[kMaxStreams];
  const int m = args.m;
  const int64_t row = blockIdx.x;
  const int64_t cols = int64_t{m} * args.dim;
  FinishLogits(partial + row * (m + 1) * slices, m, slices, cols, args.norm_eps, 0, m, logits);
  if (threadIdx.x < m) {
    const int j = threadIdx.x;
    logits[j] = Sigmoid(logits[j] * VectorValue(args.scale, 0) + VectorValue(args.base, j)) + args.hc_eps;
  }
  __syncthreads();
  float* hidden = args.hidden != nullptr ? args.hidden + row * args.dim : nullptr;
  MixAndNorm(faithful, m, args.dim, args.streams + args.row_ids[row] * cols, logits, norm, args.norm_eps,
             hidden, args.out + row * args.dim);
}

__global__ void PostKernel(HyperConnectionPostArgs args, bool faithful) {
  AwaitInputs();
  const int m = args.m;
  const int64_t row = blockIdx.x;
  const int i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= args.dim) return;
  float* streams = args.streams + row * m * args.dim + i;
  float from[kMaxStreams];
#pragma unroll
  for (int j = 0; j < kMaxStreams; ++j) {
    if (j < m) from[j] = streams[int64_t{j} * args.dim];
  }
  const float x = args.x[row * args.dim + i];
  const float* post = args.post + row * m;
  const float* comb = args.comb + row * m * m;
#pragma unroll
  for (int k = 0; k < kMaxStreams; ++k) {
    if (k >= m) continue;
    float sum = post[k] * x;
#pragma unroll
    for (int j = 0; j < kMaxStreams; ++j) {
      if (j < m) sum = fmaf(comb[j * m + k], from[j], sum);
    }
    streams[int64_t{k} * args.dim] = faithful ? RoundBf16(sum) : sum;
  }
}

// The slices' sums, in scratch of the caller's scope.
float* MixLogits(const KernelContext& ctx, const MatrixView& fn, const float* streams, const int32_t* row_ids,
                 int rows, int* slices) {
  CHECK(fn.dtype == DType::kF32 && fn.cols % 4 == 0);
  *slices = static_cast<int>(CeilDiv(fn.cols, kSlice));
  float* partial = ctx.scratch->Allocate<float>(rows * (fn.rows + 1) * *slices);
  Launch(ctx, MixLogitsKernel, dim3(*slices, CeilDiv(rows, kRowsPerBlock)), kMixThreads, 0, fn.f32(), fn.rows,
         fn.cols, streams, row_ids, rows, partial);
  return partial;
}

}  // namespace

void Embed(const KernelContext& ctx, const EmbedArgs& args) {
  CHECK(args.embed.dtype == DType::kBF16);
  Launch(ctx, EmbedKernel, dim3(args.rows, CeilDiv(args.embed.cols, 1024)), 256, 0, args.tokens,
         reinterpret_cast<const uint16_t*>(args.embed.data), args.m, args.embed.cols, args.streams);
}

void HyperConnectionPre(const KernelContext& ctx, const HyperConnectionPreArgs& args) {
  CHECK(args.m <= kMaxStreams && args.dim % 4 == 0 && args.dim <= 4 * kMixQuads * kRowThreads);
  ArenaScope scope(*ctx.scratch);
  int slices;
  const float* partial = MixLogits(ctx, args.fn, args.streams, nullptr, args.rows, &slices);
  Launch(ctx, PreKernel, dim3(args.rows, 2), kRowThreads, 0, args, partial, slices, ctx.faithful());
}

void HyperConnectionPost(const KernelContext& ctx, const HyperConnectionPostArgs& args) {
  CHECK(args.m <= kMaxStreams);
  Launch(ctx, PostKernel, dim3(args.rows, CeilDiv(args.dim, 256)), 256, 0, args, ctx.faithful());
}

void HyperHead(const KernelContext& ctx, const HyperHeadArgs& args) {
  CHECK(args.m <= kMaxStreams && args.dim % 4 == 0 && args.dim <= 4 * kMixQuads * kRowThreads);
  ArenaScope scope(*ctx.scratch);
  int slices;
  const float* partial = MixLogits(ctx, args.fn, args.streams, args.row_ids, args.rows, &slices);
  Launch(ctx, HeadKernel, args.rows, kRowThreads, 0, args, partial, slices, ctx.faithful());
}

}  // namespace foresight::cuda
