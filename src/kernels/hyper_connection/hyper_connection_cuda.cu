#include <bit>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/formats.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/sequences.cuh"
#include "kernels/taps/tap_row.cuh"

namespace foresight::cuda {
namespace {

constexpr int kMaxStreams = 8;
constexpr int kSlice = 128;  // of the columns of fn that one thread block multiplies, at most
constexpr int kRowsPerBlock = 8;
constexpr unsigned kRehearsedRows = 32;  // of a step, at most: more take their time anyway
constexpr int kMixThreads = 256;
constexpr int kRowThreads = 512;  // of a row's mixing
constexpr int kMixQuads = 4;      // values of a row that one of them has, by four, at most
// Narrow rows, of so few streams and values, have a kernel of their own.
constexpr int kNarrowStreams = 4;
constexpr int kNarrowQuads = 2;

__global__ void EmbedKernel(const int32_t* tokens, const int32_t* const* placed, int32_t* placed_in,
                            const uint16_t* embed, int m, int64_t dim, float* streams) {
  AwaitInputs();
  int32_t token = tokens[blockIdx.x];
  const int32_t* const there = placed != nullptr ? placed[blockIdx.x] : nullptr;
  if (there != nullptr) {
    token = *there;
    if (blockIdx.y == 0 && threadIdx.x == 0) placed_in[blockIdx.x] = token;
  }
  const uint16_t* from = embed + token * dim;
  float* to = streams + blockIdx.x * m * dim;
  for (int64_t i = int64_t{blockIdx.y} * blockDim.x + threadIdx.x; i < dim; i += gridDim.y * blockDim.x) {
    const float x = Bf16(from[i]);
    for (int j = 0; j < m; ++j) to[j * dim + i] = x;
  }
}

__device__ float4 AddScaled(const float4& sum, float w, const float4& x) {
  return {fmaf(w, x.x, sum.x), fmaf(w, x.y, sum.y), fmaf(w, x.z, sum.z), fmaf(w, x.w, sum.w)};
}

__device__ float4 RoundQuad(const float4& x) {
  return {RoundBf16(x.x), RoundBf16(x.y), RoundBf16(x.z), RoundBf16(x.w)};
}

__device__ float Dot(const float4& a, const float4& b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// A slice of neighbouring dims of every stream of a row: what a warp has, four values to a lane.
struct Slice {
  int m;
  int dim;
  int dims;  // of each stream

  static Slice Of(int m, int dim) {
    return {m, dim, kSlice / static_cast<int>(std::bit_ceil(static_cast<unsigned>(m)))};
  }
  int count() const { return static_cast<int>(CeilDiv(dim, dims)); }
  __device__ int stream() const { return static_cast<int>(threadIdx.x) % 32 / (dims / 4); }
  // Of the lane's dims in slice `index`.
  __device__ int first(int index) const {
    return index * dims + static_cast<int>(threadIdx.x) % (dims / 4) * 4;
  }
  __device__ bool has(int index) const { return stream() < m && first(index) < dim; }
};

__device__ float4 LoadQuad(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}

// post_k x + sum_j comb_jk streams_j for four neighbouring dims of stream k of one row.
__device__ float4 MixQuadBack(const SublayerOutput& back, bool faithful, int m, int dim, const float* streams,
                              int64_t row, int k, int i) {
  float4 from[kMaxStreams];
  float weights[kMaxStreams];
#pragma unroll
  for (int j = 0; j < kMaxStreams; ++j) {
    if (j >= m) continue;
    from[j] = LoadQuad(streams + (row * m + j) * dim + i);
    weights[j] = back.comb[(row * m + j) * m + k];
  }
  const float4 x = LoadQuad(back.x + row * dim + i);
  const float post = back.post[row * m + k];
  float4 sum = {post * x.x, post * x.y, post * x.z, post * x.w};
#pragma unroll
  for (int j = 0; j < kMaxStreams; ++j) {
    if (j < m) sum = AddScaled(sum, weights[j], from[j]);
  }
  return faithful ? RoundQuad(sum) : sum;
}

// partial [rows, outputs + 1, slices]: the sums of one slice of fn z for every output, and of z z behind
// them. Grid (slices, groups of rows). fn is 1.5 MB and more, too much for one multiprocessor to read per
// row; so slices spread over all of them, and a group of rows shares what is read. Up to kHeldOutputs of fn a
// warp are read before the streams are there. With kBack the streams are changed first.
template <bool kBack>
__global__ void __launch_bounds__(kMixThreads)
    MixLogitsKernel(Slice slice, const float* fn, int outputs, float* streams, SublayerOutput back,
                    bool faithful, const int32_t* row_ids, int rows, float* partial) {
  constexpr int kWarps = kMixThreads / 32;
  constexpr int kHeldOutputs = 4;
  static_assert(kWarps == kRowsPerBlock && kSlice == 4 * 32);
  __shared__ float4 z[kRowsPerBlock][32];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int64_t cols = int64_t{slice.m} * slice.dim;
  const int first_dim = slice.first(blockIdx.x);
  const bool has = slice.has(blockIdx.x);
  const int64_t at = int64_t{slice.stream()} * slice.dim + first_dim;
  const auto load = [&](int o) {
    return o < outputs && has ? __ldg(reinterpret_cast<const float4*>(fn + o * cols + at))
                              : float4{0, 0, 0, 0};
  };
  float4 held[kHeldOutputs];
#pragma unroll
  for (int k = 0; k < kHeldOutputs; ++k) held[k] = load(warp + k * kWarps);
  const int first_row = blockIdx.y * kRowsPerBlock;
  const int count = min(kRowsPerBlock, rows - first_row);
  RehearseAndRun(gridDim.y == 1, [&](bool real) {
    if (warp < count) {  // a warp has all that becomes of its row's slice
      int64_t row = real ? first_row + warp : 0;
      if (real && row_ids != nullptr) row = row_ids[row];
      const float* from = real ? streams : fn;
      const SublayerOutput from_back = real ? back : SublayerOutput{fn, fn, fn};
      float4 value = {0, 0, 0, 0};
      if (has) {
        value =
            kBack ? MixQuadBack(from_back, faithful, slice.m, slice.dim, from, row, slice.stream(), first_dim)
                  : LoadQuad(from + row * cols + at);
      }
      z[warp][lane] = value;
      __syncwarp();
      if (kBack && has && real) *reinterpret_cast<float4*>(streams + row * cols + at) = value;
    }
    __syncthreads();
    // Outputs first, first + kWarps, ... of all rows at hand.
    const auto multiply = [&](int first) {
      for (int r = 0; r < count; ++r) {
        float sums[kHeldOutputs];
        const float4 v = z[r][lane];
#pragma unroll
        for (int k = 0; k < kHeldOutputs; ++k)
          sums[k] = Dot(first + k * kWarps < outputs ? held[k] : v, v, 0);
        const float sum = WarpSumOfFour(sums);
        const int o = first + lane / 8 * kWarps;
        if (real && lane % 8 == 0 && o <= outputs) {
          partial[(int64_t{first_row + r} * (outputs + 1) + o) * gridDim.x + blockIdx.x] = sum;
        }
      }
    };
    multiply(warp);
    for (int first = warp + kHeldOutputs * kWarps; real && first <= outputs; first += kHeldOutputs * kWarps) {
#pragma unroll
      for (int k = 0; k < kHeldOutputs; ++k) held[k] = load(first + k * kWarps);
      multiply(first);
    }
  });
}

__device__ float Sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

// sums[i] = what output first + i * step has in all slices, for i below kCount where there is one, and behind
// them z . z; by a warp. All of it is read before anything is added up over the lanes.
template <int kCount>
__device__ void SumSlices(const float* partial, int slices, int outputs, int first, int step,
                          float (&sums)[kCount + 1]) {
#pragma unroll
  for (float& sum : sums) sum = 0;
#pragma unroll 4
  for (int s = threadIdx.x % 32; s < slices; s += 32) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int o = first + i * step;
      if (o < outputs) sums[i] += partial[o * slices + s];
    }
    sums[kCount] += partial[outputs * slices + s];
  }
#pragma unroll
  for (float& sum : sums) sum = WarpSum(sum);
}

// fn_o . z / rms(z), given the sums over z, of cols values, and over its squares.
__device__ float MixLogit(float sum, float squares, int64_t cols, float eps) {
  return sum * (1.0f / sqrtf(squares / static_cast<float>(cols) + eps));
}

// 1 / x to the last bit, without the branch of a division: dozens of them follow one another.
__device__ float Inverse(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// c: row softmax, then alternating normalisations that end with the columns (model spec 2.3), all of it in
// registers. Rows and columns from m on stay zero.
template <int kM>
__device__ void Sinkhorn(int m, int iters, float eps, float (&c)[kM][kM]) {
#pragma unroll
  for (int j = 0; j < kM; ++j) {
    float top = -INFINITY;
#pragma unroll
    for (int k = 0; k < kM; ++k) top = k < m ? fmaxf(top, c[j][k]) : top;
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kM; ++k) sum += c[j][k] = j < m && k < m ? expf(c[j][k] - top) : 0.0f;
    const float inverse = Inverse(sum);
#pragma unroll
    for (int k = 0; k < kM; ++k) c[j][k] = j < m && k < m ? c[j][k] * inverse + eps : 0.0f;
  }
  // Sums in pairs: their latency is all that this takes.
  const auto total = [eps](const auto& value) {
    float sums[kM];
#pragma unroll
    for (int i = 0; i < kM; ++i) sums[i] = value(i);
#pragma unroll
    for (int width = kM / 2; width > 0; width /= 2) {
#pragma unroll
      for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
    }
    return sums[0] + eps;
  };
  const auto normalise_columns = [&] {
#pragma unroll
    for (int k = 0; k < kM; ++k) {
      const float inverse = Inverse(total([&](int j) { return c[j][k]; }));
#pragma unroll
      for (int j = 0; j < kM; ++j) c[j][k] *= inverse;
    }
  };
  normalise_columns();
  for (int i = 1; i < iters; ++i) {
#pragma unroll
    for (int j = 0; j < kM; ++j) {
      const float inverse = Inverse(total([&](int k) { return c[j][k]; }));
#pragma unroll
      for (int k = 0; k < kM; ++k) c[j][k] *= inverse;
    }
    normalise_columns();
  }
}

// What a thread has of a row: kQuads times four neighbouring values, kRowThreads quads apart.
__device__ int QuadOf(int q) {
  return q * kRowThreads + static_cast<int>(threadIdx.x);
}

// The norm's weights of a thread's values, which may be read before the inputs are there.
template <int kQuads>
struct NormWeights {
  float4 quads[kQuads];

  __device__ NormWeights(const VectorView& norm, int dim) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int i = QuadOf(q);
      quads[q] = i < dim / 4 ? float4{VectorValue(norm, 4 * i), VectorValue(norm, 4 * i + 1),
                                      VectorValue(norm, 4 * i + 2), VectorValue(norm, 4 * i + 3)}
                             : float4{0, 0, 0, 0};
    }
  }
};

// A thread's values of the streams. The first of them, all that it has of four streams of 4096, are on their
// way while the weights of the mix are found out; others are read where they are needed.
template <bool kHasAll>
class StreamQuads {
 public:
  __device__ StreamQuads(const float* streams, int m, int dim) : streams_(streams), m_(m), dim_(dim) {
#pragma unroll
    for (int q = 0; q < kQuadsAhead; ++q) {
#pragma unroll
      for (int j = 0; j < kStreamsAhead; ++j) {
        quads_[q][j] = QuadOf(q) < dim / 4 && j < m ? Load(q, j) : float4{0, 0, 0, 0};
      }
    }
  }
  // sum_j weight_j streams_j
  __device__ float4 Mix(int q, const float* weight) const {
    float4 sum = {0, 0, 0, 0};
    int next = 0;
    if (q < kQuadsAhead) {
#pragma unroll
      for (int j = 0; j < kStreamsAhead; ++j) {
        if (j < m_) sum = AddScaled(sum, weight[j], quads_[q][j]);
      }
      next = kStreamsAhead;
    }
    if constexpr (!kHasAll) {
      for (int j = next; j < m_; ++j) sum = AddScaled(sum, weight[j], Load(q, j));
    }
    return sum;
  }

 private:
  static constexpr int kQuadsAhead = kNarrowQuads;
  static constexpr int kStreamsAhead = kNarrowStreams;

  __device__ float4 Load(int q, int j) const {
    return LoadQuad(streams_ + int64_t{j} * dim_ + 4 * QuadOf(q));
  }

  const float* streams_;
  const int m_;
  const int dim_;
  float4 quads_[kQuadsAhead][kStreamsAhead];
};

// out = RMSNorm(sum_j weight_j streams_j); `hidden`, unless null, receives the value before the norm.
template <int kQuads>
__device__ void MixAndNorm(bool faithful, int dim, const StreamQuads<kQuads == kNarrowQuads>& streams,
                           const float* weight, const NormWeights<kQuads>& norm, float norm_eps, bool stores,
                           float* hidden, float* out) {
  __shared__ float shared[32];
  float4 mixed[kQuads];
  float squares = 0;
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const int i = QuadOf(q);
    mixed[q] = float4{0, 0, 0, 0};
    if (i >= dim / 4) continue;
    float4 sum = streams.Mix(q, weight);
    if (faithful) sum = RoundQuad(sum);
    if (stores && hidden != nullptr) reinterpret_cast<float4*>(hidden)[i] = sum;
    squares = Dot(sum, sum, squares);
    mixed[q] = sum;
  }
  const float rinv = 1.0f / sqrtf(BlockSum(squares, shared) / static_cast<float>(dim) + norm_eps);
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const int i = QuadOf(q);
    if (i >= dim / 4) continue;
    const float4 x = mixed[q];
    const float4 w = norm.quads[q];
    const float4 y = {w.x * (x.x * rinv), w.y * (x.y * rinv), w.z * (x.z * rinv), w.w * (x.w * rinv)};
    if (stores) reinterpret_cast<float4*>(out)[i] = faithful ? RoundQuad(y) : y;
  }
}

// What is made of a mixing logit before its sigmoid or the Sinkhorn passes; may be read before the inputs are
// there.
struct LogitScale {
  float scale = 0;
  float base = 0;

  // Of logit `o` of `outputs`; part: 0 of what is mixed, 1 of post, 2 of comb.
  __device__ LogitScale(const VectorView& scales, const VectorView& bases, int part, int o, int outputs) {
    if (o >= outputs) return;
    scale = VectorValue(scales, part);
    base = VectorValue(bases, o);
  }
  __device__ float operator()(float logit) const { return logit * scale + base; }
};

// weights[j] = sigmoid(logit_j scale + base_j) + eps of one row, a warp to each. Ends with a barrier.
__device__ void FindMix(const float* partial, int slices, int m, int outputs, int64_t cols, float norm_eps,
                        const LogitScale& scale, float eps, float* weights) {
  const int warp = threadIdx.x / 32;
  static_assert(kMaxStreams <= kRowThreads / 32);
  if (warp < m) {
    float sums[2];
    SumSlices<1>(partial, slices, outputs, warp, 0, sums);
    const float logit = MixLogit(sums[0], sums[1], cols, norm_eps);
    if (threadIdx.x % 32 == 0) weights[warp] = Sigmoid(scale(logit)) + eps;
  }
  __syncthreads();
}

// What a rehearsal reads.
__device__ const float* Rehearsed(const HyperConnectionPreArgs& args) {
  return reinterpret_cast<const float*>(args.fn.data);
}

// logits: what comb is made of, [m, m].
template <int kM>
__device__ void FindComb(const HyperConnectionPreArgs& args, int row, const float* logits, bool stores) {
  const int m = args.m;
  float c[kM][kM];
#pragma unroll
  for (int j = 0; j < kM; ++j) {
#pragma unroll
    for (int k = 0; k < kM; ++k) c[j][k] = j < m && k < m ? logits[j * m + k] : 0.0f;
  }
  Sinkhorn<kM>(m, args.sinkhorn_iters, args.hc_eps, c);
#pragma unroll
  for (int j = 0; j < kM; ++j) {
#pragma unroll
    for (int k = 0; k < kM; ++k) {
      if (stores && threadIdx.x == (j * kM + k) % 32 && j < m && k < m)
        args.comb[(int64_t{row} * m + j) * m + k] = c[j][k];
    }
  }
}

// Narrow rows' inputs are there before a rehearsal is over.
template <bool kNarrow>
__device__ bool Rehearses() {
  return !kNarrow && gridDim.x <= kRehearsedRows;
}

// How the output is mixed back, of one row: post, and comb by the first warp.
template <bool kNarrow>
__device__ void FindMixBack(const HyperConnectionPreArgs& args, const float* partial, int slices, int row) {
  constexpr int kM = kNarrow ? kNarrowStreams : kMaxStreams;
  constexpr int kWarps = kRowThreads / 32;
  constexpr int kRounds = (kM * (1 + kM) + kWarps - 1) / kWarps;
  __shared__ float logits[kM * kM];
  const int m = args.m;
  const int outputs = m * (2 + m);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  // Lane i has what the warp's i-th logit needs.
  const int own = m + warp + lane * kWarps;
  const LogitScale own_scale(args.scale, args.base, own < 2 * m ? 1 : 2, lane < kRounds ? own : outputs,
                             outputs);
  RehearseAndRun<Successors::kBehindInputs>(Rehearses<kNarrow>(), [&](bool real) {
    float sums[kRounds + 1];
    SumSlices<kRounds>(real ? partial : Rehearsed(args), slices, outputs, m + warp, kWarps, sums);
    float own_sum = 0;
#pragma unroll
    for (int i = 0; i < kRounds; ++i) own_sum = lane == i ? sums[i] : own_sum;
    if (lane < kRounds && own < outputs) {
      const float value = own_scale(MixLogit(own_sum, sums[kRounds], int64_t{m} * args.dim, args.norm_eps));
      if (own < 2 * m) {
        const float post = 2.0f * Sigmoid(value);
        if (real) args.post[int64_t{row} * m + own - m] = post;
      } else {
        logits[own - 2 * m] = value;
      }
    }
    __syncthreads();
    if (warp > 0) return;
    if (kNarrow || m <= kNarrowStreams) {
      FindComb<kNarrowStreams>(args, row, logits, real);
    } else {
      FindComb<kM>(args, row, logits, real);
    }
  });
}

// Two thread blocks per row: one mixes; the other finds out how the output is mixed back, which takes as
// long. A third one taps the streams, if the launch has it. With kNarrow a block takes half of a
// multiprocessor's registers, so it is there early, beside one of the kernels before. A product comes next,
// whose blocks are to spread.
template <bool kNarrow>
__global__ void __launch_bounds__(kRowThreads, kNarrow ? 2 : 1)
    PreKernel(HyperConnectionPreArgs args, const float* partial, int slices, bool faithful,
              const SequenceRows* tapped, int num_tapped, TapSource tap) {
  constexpr int kQuads = kNarrow ? kNarrowQuads : kMixQuads;
  const int row = static_cast<int>(blockIdx.x);
  if (blockIdx.y == 2) {
    AwaitInputs<Successors::kBehindInputs>();
    const SequenceRows& sequence = SequenceOf(tapped, num_tapped, row);
    StoreTapRow(tap, sequence, row - sequence.first_row);
    return;
  }
  const int m = args.m;
  const int outputs = m * (2 + m);
  const int cols = m * args.dim;
  partial += row * (outputs + 1) * slices;
  if (blockIdx.y == 1) {
    FindMixBack<kNarrow>(args, partial, slices, row);
    return;
  }
  __shared__ float weights[kMaxStreams];
  const NormWeights<kQuads> norm(args.norm, args.dim);
  const LogitScale scale(args.scale, args.base, 0, static_cast<int>(threadIdx.x) / 32, m);
  RehearseAndRun<Successors::kBehindInputs>(Rehearses<kNarrow>(), [&](bool real) {
    const StreamQuads<kNarrow> streams(real ? args.streams + int64_t{row} * cols : Rehearsed(args), m,
                                       args.dim);
    FindMix(real ? partial : Rehearsed(args), slices, m, outputs, cols, args.norm_eps, scale, args.hc_eps,
            weights);
    MixAndNorm(faithful, args.dim, streams, weights, norm, args.norm_eps, real, nullptr,
               args.x + int64_t{row} * args.dim);
  });
}

// One thread block per row, and another one that taps the streams, if the launch has it.
__global__ void __launch_bounds__(kRowThreads)
    HeadKernel(HyperHeadArgs args, const float* partial, int slices, bool faithful,
               const SequenceRows* tapped, int num_tapped, TapSource tap) {
  const int row = static_cast<int>(blockIdx.x);
  if (blockIdx.y == 1) {
    AwaitInputs();
    const SequenceRows& sequence = SequenceOf(tapped, num_tapped, row);
    StoreTapRow(tap, sequence, row - sequence.first_row);
    return;
  }
  __shared__ float weights[kMaxStreams];
  const int m = args.m;
  const int64_t cols = int64_t{m} * args.dim;
  const NormWeights<kMixQuads> norm(args.norm, args.dim);
  const LogitScale scale(args.scale, args.base, 0, static_cast<int>(threadIdx.x) / 32, m);
  RehearseAndRun(gridDim.x <= kRehearsedRows, [&](bool real) {
    const float* const fn = reinterpret_cast<const float*>(args.fn.data);
    const StreamQuads<false> streams(real ? args.streams + args.row_ids[row] * cols : fn, m, args.dim);
    FindMix(real ? partial + row * (m + 1) * slices : fn, slices, m, m, cols, args.norm_eps, scale,
            args.hc_eps, weights);
    float* hidden = args.hidden != nullptr ? args.hidden + int64_t{row} * args.dim : nullptr;
    MixAndNorm(faithful, args.dim, streams, weights, norm, args.norm_eps, real, hidden,
               args.out + int64_t{row} * args.dim);
  });
}

// Grid (groups of slices, rows).
__global__ void __launch_bounds__(kMixThreads)
    PostKernel(Slice slice, HyperConnectionPostArgs args, bool faithful) {
  AwaitInputs();
  const int index = blockIdx.x * (kMixThreads / 32) + threadIdx.x / 32;
  const int first = slice.first(index);
  const bool has = slice.has(index);
  const int64_t row = blockIdx.y;
  float4 value = {0, 0, 0, 0};
  if (has) {
    value = MixQuadBack(args.back, faithful, args.m, args.dim, args.streams, row, slice.stream(), first);
  }
  __syncwarp();
  if (!has) return;
  *reinterpret_cast<float4*>(args.streams + (row * args.m + slice.stream()) * args.dim + first) = value;
}

// The slices' sums, in scratch of the caller's scope.
float* MixLogits(const KernelContext& ctx, const Slice& slice, const MatrixView& fn, float* streams,
                 const SublayerOutput& back, const int32_t* row_ids, int rows) {
  CHECK(fn.dtype == DType::kF32 && fn.cols == int64_t{slice.m} * slice.dim);
  const int slices = slice.count();
  float* partial = ctx.scratch->Allocate<float>(rows * (fn.rows + 1) * slices);
  Launch(ctx, back.x != nullptr ? MixLogitsKernel<true> : MixLogitsKernel<false>,
         dim3(static_cast<unsigned>(slices), CeilDiv(rows, kRowsPerBlock)), kMixThreads, 0, slice, fn.f32(),
         static_cast<int>(fn.rows), streams, back, ctx.faithful(), row_ids, rows, partial);
  return partial;
}

void CheckShape(int m, int dim) {
  CHECK(m <= kMaxStreams && dim % 4 == 0 && dim <= 4 * kMixQuads * kRowThreads);
}

}  // namespace

void Embed(const KernelContext& ctx, const EmbedArgs& args) {
  CHECK(args.embed.dtype == DType::kBF16);
  Launch(ctx, EmbedKernel, dim3(args.rows, CeilDiv(args.embed.cols, 1024)), 256, 0, args.tokens, args.placed,
         args.placed_in, reinterpret_cast<const uint16_t*>(args.embed.data), args.m, args.embed.cols,
         args.streams);
}

void HyperConnectionPre(const KernelContext& ctx, const HyperConnectionPreArgs& args) {
  CheckShape(args.m, args.dim);
  ArenaScope scope(*ctx.scratch);
  const Slice slice = Slice::Of(args.m, args.dim);
  const float* partial = MixLogits(ctx, slice, args.fn, args.streams, args.back, nullptr, args.rows);
  const unsigned blocks = args.tap.sequences.empty() ? 2 : 3;  // of a row
  const bool narrow = args.m <= kNarrowStreams && args.dim <= 4 * kNarrowQuads * kRowThreads;
  Launch(ctx, narrow ? PreKernel<true> : PreKernel<false>, dim3(static_cast<unsigned>(args.rows), blocks),
         kRowThreads, 0, args, partial, slice.count(), ctx.faithful(), args.tap.sequences.data(),
         static_cast<int>(args.tap.sequences.size()),
         TapSource{args.m, args.dim, args.tap.offset, args.streams, ctx.faithful()});
}

void HyperConnectionPost(const KernelContext& ctx, const HyperConnectionPostArgs& args) {
  CheckShape(args.m, args.dim);
  const Slice slice = Slice::Of(args.m, args.dim);
  Launch(ctx, PostKernel, dim3(CeilDiv(slice.count(), kMixThreads / 32), static_cast<unsigned>(args.rows)),
         kMixThreads, 0, slice, args, ctx.faithful());
}

void HyperHead(const KernelContext& ctx, const HyperHeadArgs& args) {
  CheckShape(args.m, args.dim);
  ArenaScope scope(*ctx.scratch);
  const Slice slice = Slice::Of(args.m, args.dim);
  const float* partial = MixLogits(ctx, slice, args.fn, args.streams, args.back, args.row_ids, args.rows);
  const unsigned blocks = args.tap.sequences.empty() ? 1 : 2;  // of a row
  Launch(ctx, HeadKernel, dim3(static_cast<unsigned>(args.rows), blocks), kRowThreads, 0, args, partial,
         slice.count(), ctx.faithful(), args.tap.sequences.data(),
         static_cast<int>(args.tap.sequences.size()),
         TapSource{args.m, args.dim, args.tap.offset, args.streams, ctx.faithful()});
}

}  // namespace foresight::cuda
