#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/formats.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"

namespace foresight::cuda {
namespace {

constexpr int kMaxStreams = 8;
constexpr int kSlice = 512;  // of the m * D columns of fn that one thread block multiplies
constexpr int kRowsPerBlock = 8;
constexpr int kMixThreads = 256;

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
// row; so slices spread over all of them, and a group of rows shares what is read.
__global__ void __launch_bounds__(kMixThreads)
    MixLogitsKernel(const float* fn, int outputs, int64_t cols, const float* streams, const int32_t* row_ids,
                    int rows, float* partial) {
  AwaitInputs();
  __shared__ float4 z[kRowsPerBlock][kSlice / 4];
  const int first_row = blockIdx.y * kRowsPerBlock;
  const int count = min(kRowsPerBlock, rows - first_row);
  const int64_t begin = int64_t{blockIdx.x} * kSlice;
  for (int i = threadIdx.x; i < count * (kSlice / 4); i += kMixThreads) {
    const int row = first_row + i / (kSlice / 4);
    const int64_t at = begin + i % (kSlice / 4) * 4;
    const int64_t source = row_ids != nullptr ? row_ids[row] : row;
    z[i / (kSlice / 4)][i % (kSlice / 4)] =
        at < cols ? *reinterpret_cast<const float4*>(streams + source * cols + at) : float4{0, 0, 0, 0};
  }
  __syncthreads();
  const int lane = threadIdx.x % 32;
  for (int o = threadIdx.x / 32; o <= outputs; o += kMixThreads / 32) {
    float4 w[kSlice / 128] = {};
    for (int i = 0; i < kSlice / 128 && o < outputs; ++i) {
      const int64_t at = begin + (i * 32 + lane) * 4;
      if (at < cols) w[i] = __ldg(reinterpret_cast<const float4*>(fn + o * cols + at));
    }
    for (int r = 0; r < count; ++r) {
      float sum = 0;
      for (int i = 0; i < kSlice / 128; ++i) {
        const float4 v = z[r][i * 32 + lane];
        sum = Dot(o < outputs ? w[i] : v, v, sum);
      }
      sum = WarpSum(sum);
      if (lane == 0) partial[(int64_t{first_row + r} * (outputs + 1) + o) * gridDim.x + blockIdx.x] = sum;
    }
  }
}

__device__ float Sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

// logits[o] = fn_o . z / rms(z) of one row, from its slices in order. All threads of the block.
__device__ void FinishLogits(const float* partial, int outputs, int slices, int64_t cols, float eps,
                             float* logits) {
  for (int o = threadIdx.x; o <= outputs; o += blockDim.x) {
    float sum = 0;
    for (int s = 0; s < slices; ++s) sum += partial[o * slices + s];
    logits[o] = sum;
  }
  __syncthreads();
  const float rinv = 1.0f / sqrtf(logits[outputs] / static_cast<float>(cols) + eps);
  __syncthreads();
  for (int o = threadIdx.x; o < outputs; o += blockDim.x) logits[o] *= rinv;
  __syncthreads();
}

// c [m, m] in shared memory, by one warp: row softmax, then alternating normalisations that end with the
// columns (model spec 2.3).
__device__ void Sinkhorn(int m, int iters, float eps, float* c) {
  const int lane = threadIdx.x % 32;
  if (lane < m) {
    float* row = c + lane * m;
    float top = row[0];
    for (int k = 1; k < m; ++k) top = fmaxf(top, row[k]);
    float sum = 0;
    for (int k = 0; k < m; ++k) sum += row[k] = expf(row[k] - top);
    for (int k = 0; k < m; ++k) row[k] = row[k] / sum + eps;
  }
  __syncwarp();
  for (int pass = 0; pass < 2 * iters - 1; ++pass) {
    const bool columns = pass % 2 == 0;
    float divided[kMaxStreams * kMaxStreams / 32];
    for (int i = 0; i < kMaxStreams * kMaxStreams / 32; ++i) {
      const int e = i * 32 + lane;
      if (e >= m * m) break;
      const float* from = columns ? c + e % m : c + e / m * m;
      float sum = eps;
      for (int k = 0; k < m; ++k) sum += from[k * (columns ? m : 1)];
      divided[i] = c[e] / sum;
    }
    __syncwarp();
    for (int i = 0; i < kMaxStreams * kMaxStreams / 32; ++i) {
      if (i * 32 + lane < m * m) c[i * 32 + lane] = divided[i];
    }
    __syncwarp();
  }
}

// out = RMSNorm(sum_j weight_j streams_j); `mixed` receives the value before the norm and may be out.
__device__ void MixAndNorm(bool faithful, int m, int dim, const float* streams, const float* weight,
                           const VectorView& norm, float norm_eps, float* mixed, float* out) {
  __shared__ float shared[32];
  float squares = 0;
  for (int i = threadIdx.x; i < dim; i += kMixThreads) {
    float sum = 0;
    for (int j = 0; j < m; ++j) sum = fmaf(weight[j], streams[int64_t{j} * dim + i], sum);
    if (faithful) sum = RoundBf16(sum);
    mixed[i] = sum;
    squares = fmaf(sum, sum, squares);
  }
  const float rinv = 1.0f / sqrtf(BlockSum(squares, shared) / static_cast<float>(dim) + norm_eps);
  for (int i = threadIdx.x; i < dim; i += kMixThreads) {  // every thread its own values
    const float y = VectorValue(norm, i) * (mixed[i] * rinv);
    out[i] = faithful ? RoundBf16(y) : y;
  }
}

// Two thread blocks per row: one mixes; the other finds out how the output is mixed back, which takes as
// long.
__global__ void __launch_bounds__(kMixThreads)
    PreKernel(HyperConnectionPreArgs args, const float* partial, int slices, bool faithful) {
  AwaitInputs();
  __shared__ float logits[kMaxStreams * (2 + kMaxStreams) + 1];
  const int m = args.m;
  const int64_t row = blockIdx.x;
  const int outputs = m * (2 + m);
  FinishLogits(partial + row * (outputs + 1) * slices, outputs, slices, int64_t{m} * args.dim, args.norm_eps,
               logits);
  const int i = threadIdx.x;
  if (blockIdx.y == 0) {
    if (i < m) {
      logits[i] = Sigmoid(logits[i] * VectorValue(args.scale, 0) + VectorValue(args.base, i)) + args.hc_eps;
    }
    __syncthreads();
    float* x = args.x + row * args.dim;
    MixAndNorm(faithful, m, args.dim, args.streams + row * m * args.dim, logits, args.norm, args.norm_eps, x,
               x);
    return;
  }
  if (i < m) {
    args.post[row * m + i] =
        2.0f * Sigmoid(logits[m + i] * VectorValue(args.scale, 1) + VectorValue(args.base, m + i));
  }
  float* comb = logits + 2 * m;
  if (i < m * m) comb[i] = comb[i] * VectorValue(args.scale, 2) + VectorValue(args.base, 2 * m + i);
  __syncthreads();
  if (i < 32) Sinkhorn(m, args.sinkhorn_iters, args.hc_eps, comb);
  __syncthreads();
  if (i < m * m) args.comb[row * m * m + i] = comb[i];
}

__global__ void __launch_bounds__(kMixThreads)
    HeadKernel(HyperHeadArgs args, const float* partial, int slices, bool faithful) {
  AwaitInputs();
  __shared__ float logits[kMaxStreams + 1];
  const int m = args.m;
  const int64_t row = blockIdx.x;
  FinishLogits(partial + row * (m + 1) * slices, m, slices, int64_t{m} * args.dim, args.norm_eps, logits);
  if (threadIdx.x < m) {
    const int j = threadIdx.x;
    logits[j] = Sigmoid(logits[j] * VectorValue(args.scale, 0) + VectorValue(args.base, j)) + args.hc_eps;
  }
  __syncthreads();
  float* out = args.out + row * args.dim;
  float* hidden = args.hidden != nullptr ? args.hidden + row * args.dim : out;
  MixAndNorm(faithful, m, args.dim, args.streams + int64_t{args.row_ids[row]} * m * args.dim, logits,
             args.norm, args.norm_eps, hidden, out);
}

__global__ void PostKernel(HyperConnectionPostArgs args, bool faithful) {
  AwaitInputs();
  const int m = args.m;
  const int64_t row = blockIdx.x;
  const int i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= args.dim) return;
  const float x = args.x[row * args.dim + i];
  const float* post = args.post + row * m;
  const float* comb = args.comb + row * m * m;
  float* streams = args.streams + row * m * args.dim + i;
  float from[kMaxStreams];
#pragma unroll
  for (int j = 0; j < kMaxStreams; ++j) {
    if (j < m) from[j] = streams[int64_t{j} * args.dim];
  }
  for (int k = 0; k < m; ++k) {
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
  CHECK(args.m <= kMaxStreams);
  ArenaScope scope(*ctx.scratch);
  int slices;
  const float* partial = MixLogits(ctx, args.fn, args.streams, nullptr, args.rows, &slices);
  Launch(ctx, PreKernel, dim3(args.rows, 2), kMixThreads, 0, args, partial, slices, ctx.faithful());
}

void HyperConnectionPost(const KernelContext& ctx, const HyperConnectionPostArgs& args) {
  CHECK(args.m <= kMaxStreams);
  Launch(ctx, PostKernel, dim3(args.rows, CeilDiv(args.dim, 256)), 256, 0, args, ctx.faithful());
}

void HyperHead(const KernelContext& ctx, const HyperHeadArgs& args) {
  CHECK(args.m <= kMaxStreams);
  ArenaScope scope(*ctx.scratch);
  int slices;
  const float* partial = MixLogits(ctx, args.fn, args.streams, args.row_ids, args.rows, &slices);
  Launch(ctx, HeadKernel, args.rows, kMixThreads, 0, args, partial, slices, ctx.faithful());
}

}  // namespace foresight::cuda
