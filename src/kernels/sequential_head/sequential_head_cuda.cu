#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/formats.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"

namespace foresight::cuda {
namespace {

constexpr int kThreads = 256;

// A row's inputs side by side: [first ; embedding of the previous token ; last], of which `first` and `last`
// may have no width.
struct Concatenation {
  const float* first;
  int64_t first_width;
  const uint16_t* embedding;  // [V, rank]
  int64_t rank;
  const float* last;
  int64_t last_width;

  int64_t width() const { return first_width + rank + last_width; }
};

__global__ void ConcatenateKernel(Concatenation parts, const int32_t* previous, int64_t width, float* out) {
  AwaitInputs();
  const int64_t row = blockIdx.x;
  const int64_t i = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (i >= width) return;
  const int64_t after_first = i - parts.first_width;
  const int64_t after_embedding = after_first - parts.rank;
  out[row * width + i] = after_first < 0 ? parts.first[row * parts.first_width + i]
                         : after_embedding < 0
                             ? Bf16(parts.embedding[previous[row] * parts.rank + after_first])
                             : parts.last[row * parts.last_width + after_embedding];
}

__device__ float Sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

// x [R, rank] holds the gate's product and becomes the gated embedding, which ends each row of z.
__global__ void GateKernel(VectorView bias, const float* z, int64_t width, int64_t rank, float* x) {
  AwaitInputs();
  const int64_t row = blockIdx.x;
  const int64_t i = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (i >= rank) return;
  float* to = x + row * rank + i;
  *to = Sigmoid(*to + VectorValue(bias, i)) * z[row * width + width - rank + i];
}

// products [R, 3 rank]: gate, candidate and output before their biases.
__global__ void RecurrenceKernel(VectorView bias, const float* products, int64_t rank, float* state,
                                 float* x) {
  AwaitInputs();
  const int64_t row = blockIdx.x;
  const int64_t i = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (i >= rank) return;
  const float* from = products + row * 3 * rank;
  const float keep = Sigmoid(from[i] + VectorValue(bias, i));
  const float candidate = tanhf(from[rank + i] + VectorValue(bias, rank + i));
  float* to = state + row * rank + i;
  *to = keep * *to + (1.0f - keep) * candidate;
  x[row * rank + i] = tanhf(from[2 * rank + i] + VectorValue(bias, 2 * rank + i));
}

__global__ void AddKernel(const float* x, int64_t count, float* sum) {
  AwaitInputs();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) sum[i] += x[i];
}

constexpr int kMarkovThreads = 128;
constexpr int kMarkovTokens = kMarkovThreads / 32 * 16;  // of a thread block
constexpr int kChunk = 32;                               // of the rank; a lane has a quarter

// logits += w2 w1[previous]. A warp has 16 tokens and all of the rank, and goes through the rows eight at a
// time. What is kHeld chunks of w2 or less is read before the inputs are there.
template <int kHeld>
__global__ void __launch_bounds__(kMarkovThreads)
    MarkovKernel(const uint4* w1, const uint4* w2, int vocab_size, int chunks, const int32_t* previous,
                 int rows, float* logits) {
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int token = blockIdx.x * kMarkovTokens + threadIdx.x / 32 * 16 + g;  // and the one eight behind it
  const int row_quads = 4 * chunks;
  const uint4* const low = w2 + int64_t{min(token, vocab_size - 1)} * row_quads + t;
  const uint4* const high = w2 + int64_t{min(token + 8, vocab_size - 1)} * row_quads + t;
  uint4 held[kHeld][2];
#pragma unroll
  for (int c = 0; c < kHeld; ++c) {
    if (c >= chunks) break;
    held[c][0] = low[4 * c];
    held[c][1] = high[4 * c];
  }
  RehearseAndRun(true, [&](bool real) {
    const int end = real ? rows : 1;
#pragma unroll 1
    for (int first = 0; first < end; first += 8) {
      const uint4* const x = w1 + (real ? int64_t{previous[min(first + g, rows - 1)]} * row_quads : 0) + t;
      const auto at = [&](int i) { return int64_t{first + 2 * t + i % 2} * vocab_size + token + i / 2 * 8; };
      const auto has = [&](int i) {
        return real && first + 2 * t + i % 2 < rows && token + i / 2 * 8 < vocab_size;
      };
      float before[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) before[i] = has(i) ? logits[at(i)] : 0.0f;
      float sums[4] = {};
      const auto multiply = [&](const uint4& a, const uint4& b, const uint4& v) {
        const uint32_t first_half[4] = {a.x, b.x, a.y, b.y};
        const uint32_t second_half[4] = {a.z, b.z, a.w, b.w};
        MmaBf16(sums, first_half, v.x, v.y);
        MmaBf16(sums, second_half, v.z, v.w);
      };
#pragma unroll
      for (int c = 0; c < kHeld; ++c) {
        if (c >= chunks) break;
        multiply(held[c][0], held[c][1], x[4 * c]);
      }
#pragma unroll 4
      for (int c = kHeld; c < chunks; ++c) multiply(low[4 * c], high[4 * c], x[4 * c]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (has(i)) logits[at(i)] = before[i] + sums[i];
      }
    }
  });
}

// Whether it can: by whole chunks, with 16-byte loads.
bool CanRunMarkov(const SequentialHeadWeights& w) {
  const auto is_aligned = [](const MatrixView& m) { return reinterpret_cast<uintptr_t>(m.data) % 16 == 0; };
  return w.type == MarkovHeadType::kVanilla && w.w2.dtype == DType::kBF16 && w.rank() % kChunk == 0 &&
         is_aligned(w.w1) && is_aligned(w.w2);
}

void RunMarkov(const KernelContext& ctx, const SequentialHeadArgs& args) {
  const SequentialHeadWeights& w = *args.weights;
  constexpr int kFewChunks = 2;
  constexpr int kManyChunks = 8;
  const int chunks = static_cast<int>(w.rank()) / kChunk;
  Launch(ctx, chunks <= kFewChunks ? MarkovKernel<kFewChunks> : MarkovKernel<kManyChunks>,
         CeilDiv(w.w2.rows, kMarkovTokens), kMarkovThreads, 0, reinterpret_cast<const uint4*>(w.w1.data),
         reinterpret_cast<const uint4*>(w.w2.data), static_cast<int>(w.w2.rows), chunks, args.previous,
         args.rows, args.logits);
}

dim3 RowGrid(int rows, int64_t width) {
  return dim3(static_cast<unsigned>(rows), CeilDiv(width, kThreads));
}

// In scratch of the caller's scope.
float* Concatenate(const KernelContext& ctx, const SequentialHeadArgs& args, const Concatenation& parts) {
  float* out = ctx.scratch->Allocate<float>(args.rows * parts.width());
  Launch(ctx, ConcatenateKernel, RowGrid(args.rows, parts.width()), kThreads, 0, parts, args.previous,
         parts.width(), out);
  return out;
}

}  // namespace

void SequentialHead(const KernelContext& context, const SequentialHeadArgs& args) {
  // Gates and states are float32 in either numerics, where faithful products count on bf16 values.
  KernelContext ctx = context;
  ctx.numerics = Numerics::kClean;
  const SequentialHeadWeights& w = *args.weights;
  const int64_t rank = w.rank();
  CHECK(rank == 0 || w.w1.dtype == DType::kBF16);
  ArenaScope scope(*ctx.scratch);
  const auto* embedding = reinterpret_cast<const uint16_t*>(w.w1.data);
  const bool gated = rank > 0 && args.logits != nullptr && w.type == MarkovHeadType::kGated;
  float* x = ctx.scratch->Allocate<float>(args.rows * rank);

  // What reads [h ; e].
  LinearTarget targets[2];
  size_t num_targets = 0;
  if (w.confidence && args.confidence != nullptr) {
    targets[num_targets++] = {
        .w = w.confidence, .out = args.confidence, .numerics = LinearNumerics::kFloat32};
  }
  if (gated) targets[num_targets++] = {.w = w.proj, .out = x, .numerics = LinearNumerics::kFloat32};
  if (num_targets > 0) {
    const Concatenation parts = {args.hidden, args.dim, embedding, rank, nullptr, 0};
    const float* z = Concatenate(ctx, args, parts);
    Linear(ctx, {.rows = args.rows, .x = z, .targets = {targets, num_targets}});
    if (gated) {
      Launch(ctx, GateKernel, RowGrid(args.rows, rank), kThreads, 0, w.bias, z, parts.width(), rank, x);
    }
  }
  if (rank == 0 || args.logits == nullptr) return;
  if (CanRunMarkov(w)) return RunMarkov(ctx, args);

  if (w.type == MarkovHeadType::kVanilla) {
    x = Concatenate(ctx, args, {nullptr, 0, embedding, rank, nullptr, 0});
  } else if (w.type == MarkovHeadType::kRnn) {
    const float* z = Concatenate(ctx, args, {args.state, rank, embedding, rank, args.hidden, args.dim});
    float* products = ctx.scratch->Allocate<float>(args.rows * 3 * rank);
    const LinearTarget joint[] = {{.w = w.proj, .out = products, .numerics = LinearNumerics::kFloat32}};
    Linear(ctx, {.rows = args.rows, .x = z, .targets = joint});
    Launch(ctx, RecurrenceKernel, RowGrid(args.rows, rank), kThreads, 0, w.bias, products, rank, args.state,
           x);
  }
  const int64_t count = args.rows * w.w2.rows;
  float* correction = ctx.scratch->Allocate<float>(count);
  const LinearTarget out[] = {{.w = w.w2, .out = correction, .numerics = LinearNumerics::kFloat32}};
  Linear(ctx, {.rows = args.rows, .x = x, .targets = out});
  Launch(ctx, AddKernel, CeilDiv(count, kThreads), kThreads, 0, correction, count, args.logits);
}

}  // namespace foresight::cuda
