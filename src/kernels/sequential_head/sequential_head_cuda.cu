#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/formats.cuh"
#include "kernels/cuda/launch.cuh"

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
