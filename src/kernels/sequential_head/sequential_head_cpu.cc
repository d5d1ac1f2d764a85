// The product with w2 reads each of its rows once for all rows of the batch; everything before it is small.
//
// An element of that product is kLanes partial sums in ascending order of the rank, the first terms of x
// before the second ones, added by one tree, whatever the number of rows beside it (row purity). It has a
// loop of its own, because ranks are far below the blocks of K that the weights' product is made for.
#include "base/thread_pool.h"
#include "kernels/sequential_head/sequential_head.h"

// clang-format off
#include "kernels/cpu/isa_begin.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/jobs.h"
// clang-format on

namespace foresight::FORESIGHT_ISA {
namespace {

#ifdef FORESIGHT_AVX512
using Unit = bf16;
using Units = __m512i;
constexpr int kStep = 32;  // values of one vector
constexpr int kSideRows = 4;

inline Units LoadX(const Unit* x) {
  return _mm512_loadu_si512(x);
}
inline Units LoadW(const bf16* w, int64_t left) {
  if (left >= kStep) return _mm512_loadu_si512(w);
  return _mm512_maskz_loadu_epi16((__mmask32{1} << left) - 1, w);
}
inline Vec MultiplyAdd(Units w, Units x, Vec sum) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
}
#else
using Unit = float;
using Units = Vec;
constexpr int kStep = kLanes;
constexpr int kSideRows = 2;

inline Units LoadX(const Unit* x) {
  return Load(x);
}
inline Units LoadW(const bf16* w, int64_t left) {
  if (left >= kStep) return LoadBf16(w);
  bf16 part[kStep] = {};
  __builtin_memcpy(part, w, static_cast<size_t>(left) * sizeof(bf16));
  return LoadBf16(part);
}
inline Vec MultiplyAdd(Units w, Units x, Vec sum) {
  return Fma(w, x, sum);
}
#endif

// x as operands, zeros up to a multiple of kStep; its terms (cpu/activations.h) follow each other.
inline void PackRank(const float* x, int64_t rank, int64_t padded, int terms, Unit* out) {
  for (int64_t i = 0; i < padded; i += kLanes) {
    const int64_t left = rank - i;
    const Vec v = left >= kLanes ? Load(x + i) : left > 0 ? LoadPart(x + i, static_cast<int>(left)) : Zero();
#ifdef FORESIGHT_AVX512
    StoreBf16(out + i, v);
    if (terms > 1) StoreBf16(out + padded + i, Sub(v, RoundToBf16(v)));
#else
    DCHECK(terms == 1);
    Store(out + i, v);
#endif
  }
}

// What the product with w2 needs: R rows of `terms` times `padded` units.
struct BiasInput {
  const MatrixView* w2 = nullptr;
  const Unit* x = nullptr;
  int64_t padded = 0;
  int terms = 1;
  float* logits = nullptr;
};

// logits[first + r][n .. n + outputs) += w2 x for r < rows.
template <int outputs, int rows>
void AddBias(const BiasInput& p, int64_t n, int64_t first) {
  const int64_t rank = p.w2->cols;
  const bf16* w = p.w2->b16() + n * rank;
  const int64_t stride = p.terms * p.padded;
  Vec sum[rows][outputs];
  for (auto& row : sum) {
    for (Vec& s : row) s = Zero();
  }
  for (int term = 0; term < p.terms; ++term) {
    const Unit* x = p.x + first * stride + term * p.padded;
    for (int64_t i = 0; i < rank; i += kStep) {
      Units operand[rows];
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) operand[r] = LoadX(x + r * stride + i);
#pragma GCC unroll 4
      for (int o = 0; o < outputs; ++o) {
        const Units weights = LoadW(w + o * rank + i, rank - i);
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) sum[r][o] = MultiplyAdd(weights, operand[r], sum[r][o]);
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    float* to = p.logits + (first + r) * p.w2->rows + n;
    if constexpr (outputs == kOutputs) {
      const __m128 bias = SumFour(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
      _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), bias));
    } else {
      *to += Sum(sum[r][0]);
    }
  }
}

template <int outputs>
void AddBiasRows(const BiasInput& p, int64_t n, int64_t rows) {
  int64_t r = 0;
  for (; r + kSideRows <= rows; r += kSideRows) AddBias<outputs, kSideRows>(p, n, r);
  for (; r < rows; ++r) AddBias<outputs, 1>(p, n, r);
}

void AddBiases(const KernelContext& ctx, const MatrixView& w2, int64_t rows, const float* x, int terms,
               float* logits) {
  const int64_t rank = w2.cols;
  const int64_t padded = CeilDiv(rank, kStep) * kStep;
  const int64_t stride = terms * padded;
  Unit* units = ctx.scratch->Allocate<Unit>(rows * stride);
  for (int64_t r = 0; r < rows; ++r) PackRank(x + r * rank, rank, padded, terms, units + r * stride);
  const BiasInput input{&w2, units, padded, terms, logits};
  const int64_t per_job = JobOutputs(w2, w2.rows, /*rows=*/1, ctx.pool->num_threads());
  ForJobs(ctx, CeilDiv(w2.rows, per_job), w2.rows * w2.row_bytes() * rows, [&](int64_t job, int) {
    const int64_t begin = job * per_job;
    const int64_t end = begin + per_job < w2.rows ? begin + per_job : w2.rows;
    int64_t n = begin;
    for (; n + kOutputs <= end; n += kOutputs) AddBiasRows<kOutputs>(input, n, rows);
    for (; n < end; ++n) AddBiasRows<1>(input, n, rows);
  });
}

inline Vec Sigmoid(Vec x) {
  return Div(Set(1), Add(Set(1), Exp(Sub(Zero(), x))));
}
// Within 1e-7 of the value.
inline Vec Tanh(Vec x) {
  return Sub(Mul(Set(2), Sigmoid(Mul(Set(2), x))), Set(1));
}

inline Vec LoadUpTo(const float* p, int64_t left) {
  return left >= kLanes ? Load(p) : LoadPart(p, static_cast<int>(left));
}
inline void StoreUpTo(float* p, Vec v, int64_t left) {
  if (left >= kLanes) return Store(p, v);
  StorePart(p, v, static_cast<int>(left));
}

// y [r] is the gate's product without its bias; x = sigmoid(y + bias) * e.
void Gate(const float* y, const float* bias, const float* e, int64_t rank, float* x) {
  for (int64_t i = 0; i < rank; i += kLanes) {
    const int64_t left = rank - i;
    const Vec gate = Sigmoid(Add(LoadUpTo(y + i, left), LoadUpTo(bias + i, left)));
    StoreUpTo(x + i, Mul(gate, LoadUpTo(e + i, left)), left);
  }
}

// y [3r]: gate, candidate and output without their bias.
void Recur(const float* y, const float* bias, int64_t rank, float* state, float* x) {
  for (int64_t i = 0; i < rank; i += kLanes) {
    const int64_t left = rank - i;
    const auto part = [&](int64_t k) {
      return Add(LoadUpTo(y + k * rank + i, left), LoadUpTo(bias + k * rank + i, left));
    };
    const Vec keep = Sigmoid(part(0));
    const Vec candidate = Tanh(part(1));
    const Vec kept = Mul(keep, LoadUpTo(state + i, left));
    StoreUpTo(state + i, Fma(Sub(Set(1), keep), candidate, kept), left);
    StoreUpTo(x + i, Tanh(part(2)), left);
  }
}

}  // namespace

void SequentialHead(const KernelContext& context, const SequentialHeadArgs& args) {
  if (args.rows == 0) return;
  // The head is float32 in both numerics: its products may not count on inputs that are bf16 values.
  KernelContext ctx = context;
  ctx.numerics = Numerics::kClean;
  ArenaScope scope(*ctx.scratch);
  const SequentialHeadWeights& w = *args.weights;
  const int64_t rank = w.rank();
  const int64_t dim = args.dim;
  const int64_t rows = args.rows;
  const bool is_gated = w.type == MarkovHeadType::kGated && args.logits != nullptr;
  const auto floats = [&](int64_t count) { return ctx.scratch->Allocate<float>(count); };

  float* e = floats(rows * rank);
  if (rank > 0) Embed(ctx, {.rows = args.rows, .m = 1, .tokens = args.previous, .embed = w.w1, .streams = e});
  // Copies the parts of a product's input side by side.
  const auto concatenate = [rows](float* z, int64_t width, int64_t at, const float* part, int64_t count) {
    for (int64_t r = 0; r < rows; ++r) {
      __builtin_memcpy(z + r * width + at, part + r * count, static_cast<size_t>(count) * sizeof(float));
    }
  };

  float* projected = floats(rows * w.proj.rows);
  LinearTarget targets[2];
  size_t num_targets = 0;
  if (w.confidence && args.confidence != nullptr) {
    targets[num_targets++] = {
        .w = w.confidence, .out = args.confidence, .numerics = LinearNumerics::kFloat32};
  }
  if (is_gated) {
    targets[num_targets++] = {.w = w.proj, .out = projected, .numerics = LinearNumerics::kFloat32};
  }
  if (num_targets > 0) {
    const int64_t width = dim + rank;
    float* z = floats(rows * width);
    concatenate(z, width, 0, args.hidden, dim);
    concatenate(z, width, dim, e, rank);
    Linear(ctx, {.rows = args.rows, .x = z, .targets = {targets, num_targets}});
  }
  if (rank == 0 || args.logits == nullptr) return;

  float* bias = floats(w.bias.size);
  for (int64_t i = 0; i < w.bias.size; ++i) bias[i] = w.bias[i];
  float* x = w.type == MarkovHeadType::kVanilla ? e : floats(rows * rank);
  if (is_gated) {
    for (int64_t r = 0; r < rows; ++r) Gate(projected + r * rank, bias, e + r * rank, rank, x + r * rank);
  } else if (w.type == MarkovHeadType::kRnn) {
    const int64_t width = 2 * rank + dim;
    float* z = floats(rows * width);
    concatenate(z, width, 0, args.state, rank);
    concatenate(z, width, rank, e, rank);
    concatenate(z, width, 2 * rank, args.hidden, dim);
    const LinearTarget joint[] = {{.w = w.proj, .out = projected, .numerics = LinearNumerics::kFloat32}};
    Linear(ctx, {.rows = args.rows, .x = z, .targets = joint});
    for (int64_t r = 0; r < rows; ++r) {
      Recur(projected + r * 3 * rank, bias, rank, args.state + r * rank, x + r * rank);
    }
  }
  const bool bf16_values = w.type == MarkovHeadType::kVanilla;
  AddBiases(ctx, w.w2, rows, x, TermsOf(OrderOf(w.w2.dtype), bf16_values), args.logits);
}

}  // namespace foresight::FORESIGHT_ISA

#include "kernels/cpu/isa_end.h"
