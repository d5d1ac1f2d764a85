#include <cmath>

#include "base/thread_pool.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/hyper_connection/hyper_connection.h"

// clang-format off
#include "kernels/cpu/isa_begin.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/jobs.h"
// clang-format on

namespace foresight::FORESIGHT_ISA {
namespace {

constexpr int kMaxStreams = 8;
constexpr int kMaxMixes = kMaxStreams * (2 + kMaxStreams);
// fn . z is summed per chunk of K, then over the chunks in order: a fixed split, so that one row has parallel
// work.
constexpr int64_t kChunk = 1024;
constexpr int kSide = 4;  // rows of fn and rows of z that share their loads
constexpr int64_t kPostChunk = 1024;

int64_t Chunks(int64_t k) {
  return CeilDiv(k, kChunk);
}

// One chunk of `outputs` rows of fn with `rows` rows of z: sums[r][o].
template <int outputs, int rows>
void DotChunk(const float* const (&fn)[kSide], const float* const (&z)[kSide], int64_t count,
              float (&sums)[kSide][kSide]) {
  Vec sum[rows][outputs];
  for (auto& row : sum) {
    for (Vec& s : row) s = Zero();
  }
  auto add = [&](auto load, int64_t i) {
    Vec x[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) x[r] = load(z[r] + i);
#pragma GCC unroll 4
    for (int o = 0; o < outputs; ++o) {
      const Vec w = load(fn[o] + i);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) sum[r][o] = Fma(w, x[r], sum[r][o]);
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) add([](const float* p) { return Load(p); }, i);
  if (i < count) {
    const int left = static_cast<int>(count - i);
    add([left](const float* p) { return LoadPart(p, left); }, i);
  }
  for (int r = 0; r < rows; ++r) {
    for (int o = 0; o < outputs; ++o) sums[r][o] = Sum(sum[r][o]);
  }
}

template <int outputs>
void DotChunkRows(const float* const (&fn)[kSide], const float* const (&z)[kSide], int rows, int64_t count,
                  float (&sums)[kSide][kSide]) {
  switch (rows) {
    case 1:
      return DotChunk<outputs, 1>(fn, z, count, sums);
    case 2:
      return DotChunk<outputs, 2>(fn, z, count, sums);
    case 3:
      return DotChunk<outputs, 3>(fn, z, count, sums);
    default:
      return DotChunk<outputs, 4>(fn, z, count, sums);
  }
}

// The partial results of one chunk for up to kSide rows: partial[r] = [fn_0 . z, ..., fn_{n-1} . z, z . z] at
// partial + r * row_stride.
void MixChunk(const MatrixView& fn, const float* const (&z)[kSide], int rows, int64_t begin, int64_t count,
              float* partial, int64_t row_stride) {
  const float* x[kSide];
  for (int r = 0; r < kSide; ++r) x[r] = z[r < rows ? r : 0] + begin;
  float sums[kSide][kSide];
  for (int64_t o = 0; o < fn.rows;) {
    const float* w[kSide] = {};
    const int outputs = fn.rows - o >= kSide ? kSide : 1;
    for (int i = 0; i < outputs; ++i) w[i] = fn.f32() + (o + i) * fn.cols + begin;
    if (outputs == kSide) {
      DotChunkRows<kSide>(w, x, rows, count, sums);
    } else {
      DotChunkRows<1>(w, x, rows, count, sums);
    }
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < outputs; ++i) partial[r * row_stride + o + i] = sums[r][i];
    }
    o += outputs;
  }
  for (int r = 0; r < rows; ++r) {
    const float* one[kSide] = {x[r]};
    DotChunk<1, 1>(one, one, count, sums);
    partial[r * row_stride + fn.rows] = sums[0][0];
  }
}

// partial[t][chunk][fn.rows + 1] for all rows; row t of the streams is row(t).
template <typename Row>
float* MixPartials(const KernelContext& ctx, const MatrixView& fn, int64_t rows, Row&& row) {
  const int64_t k = fn.cols;
  const int64_t chunks = Chunks(k);
  const int64_t width = fn.rows + 1;
  float* partial = ctx.scratch->Allocate<float>(rows * chunks * width);
  const int64_t groups = CeilDiv(rows, kSide);
  // Few rows: a job is one chunk. Many: all chunks of four rows.
  const int64_t splits = groups < 2 * ctx.pool->num_threads() ? chunks : 1;
  ForJobs(ctx, groups * splits, fn.rows * fn.cols * 4 * rows, [&](int64_t job, int) {
    const int64_t first = job / splits * kSide;
    const int count = static_cast<int>(rows - first < kSide ? rows - first : kSide);
    const float* z[kSide] = {};
    for (int r = 0; r < count; ++r) z[r] = row(first + r);
    const int64_t c0 = splits == 1 ? 0 : job % splits;
    const int64_t c1 = splits == 1 ? chunks : c0 + 1;
    for (int64_t c = c0; c < c1; ++c) {
      const int64_t begin = c * kChunk;
      MixChunk(fn, z, count, begin, k - begin < kChunk ? k - begin : kChunk,
               partial + (first * chunks + c) * width, chunks * width);
    }
  });
  return partial;
}

// mix[i] = fn_i . z / rms(z) of one row.
void MixLogits(const MatrixView& fn, const float* partial, float eps, float* mix) {
  const int64_t n = fn.rows;
  float squares = 0;
  for (int64_t i = 0; i < n; ++i) mix[i] = 0;
  for (int64_t c = 0; c < Chunks(fn.cols); ++c) {
    const float* part = partial + c * (n + 1);
    for (int64_t i = 0; i < n; ++i) mix[i] += part[i];
    squares += part[n];
  }
  const float rinv = 1.0f / std::sqrt(squares / static_cast<float>(fn.cols) + eps);
  for (int64_t i = 0; i < n; ++i) mix[i] *= rinv;
}

float Sigmoid(float x) {
  return 1.0f / (1.0f + std::exp(-x));
}

// Row softmax, then alternating normalisations that end with the columns (model spec 2.3).
void Sinkhorn(int m, int iters, float eps, float* c) {
  for (int j = 0; j < m; ++j) {
    float* row = c + j * m;
    float top = row[0];
    for (int k = 1; k < m; ++k) top = row[k] > top ? row[k] : top;
    float sum = 0;
    for (int k = 0; k < m; ++k) sum += row[k] = std::exp(row[k] - top);
    for (int k = 0; k < m; ++k) row[k] = row[k] / sum + eps;
  }
  auto normalise = [&](int outer_stride, int inner_stride) {
    for (int o = 0; o < m; ++o) {
      float sum = eps;
      for (int i = 0; i < m; ++i) sum += c[o * outer_stride + i * inner_stride];
      const float inverse = 1.0f / sum;
      for (int i = 0; i < m; ++i) c[o * outer_stride + i * inner_stride] *= inverse;
    }
  };
  normalise(1, m);  // columns
  for (int i = 1; i < iters; ++i) {
    normalise(m, 1);
    normalise(1, m);
  }
}

Vec LoadVector(const VectorView& v, int64_t i) {
  return v.dtype == DType::kF32 ? Load(v.f32() + i) : LoadBf16(v.b16() + i);
}

// mixed = sum_j weight_j * streams[j], out = RMSNorm(mixed).
void MixAndNorm(bool faithful, int m, int dim, const float* streams, const float* weight,
                const VectorView& norm, float norm_eps, float* mixed, float* out) {
  Vec square = Zero();
  int i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    Vec sum = Mul(Set(weight[0]), Load(streams + i));
    for (int j = 1; j < m; ++j) sum = Fma(Set(weight[j]), Load(streams + j * dim + i), sum);
    if (faithful) sum = RoundToBf16(sum);
    Store(mixed + i, sum);
    square = Fma(sum, sum, square);
  }
  float squares = Sum(square);
  for (; i < dim; ++i) {
    float sum = weight[0] * streams[i];
    for (int j = 1; j < m; ++j) sum += weight[j] * streams[j * dim + i];
    mixed[i] = faithful ? RoundBf16(sum) : sum;
    squares += mixed[i] * mixed[i];
  }
  const float rinv = 1.0f / std::sqrt(squares / static_cast<float>(dim) + norm_eps);
  for (i = 0; i + kLanes <= dim; i += kLanes) {
    const Vec y = Mul(LoadVector(norm, i), Mul(Load(mixed + i), Set(rinv)));
    Store(out + i, faithful ? RoundToBf16(y) : y);
  }
  for (; i < dim; ++i) {
    const float y = norm[i] * (mixed[i] * rinv);
    out[i] = faithful ? RoundBf16(y) : y;
  }
}

// streams[k] = post_k * x + sum_j comb[j][k] * streams[j] for the columns [begin, end).
void MixBack(bool faithful, int m, int dim, int begin, int end, const float* x, const float* post,
             const float* comb, float* streams) {
  int i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    Vec stream[kMaxStreams];
    for (int j = 0; j < m; ++j) stream[j] = Load(streams + j * dim + i);
    const Vec v = Load(x + i);
    for (int k = 0; k < m; ++k) {
      Vec sum = Mul(Set(post[k]), v);
      for (int j = 0; j < m; ++j) sum = Fma(Set(comb[j * m + k]), stream[j], sum);
      Store(streams + k * dim + i, faithful ? RoundToBf16(sum) : sum);
    }
  }
  for (; i < end; ++i) {
    float stream[kMaxStreams];
    for (int j = 0; j < m; ++j) stream[j] = streams[j * dim + i];
    for (int k = 0; k < m; ++k) {
      float sum = post[k] * x[i];
      for (int j = 0; j < m; ++j) sum += comb[j * m + k] * stream[j];
      streams[k * dim + i] = faithful ? RoundBf16(sum) : sum;
    }
  }
}

}  // namespace

void Embed(const KernelContext& ctx, const EmbedArgs& args) {
  const int64_t dim = args.embed.cols;
  ForJobs(ctx, args.rows, args.rows * args.m * dim * 4, [&](int64_t t, int) {
    float* first = args.streams + t * args.m * dim;
    const int32_t* const placed = args.placed != nullptr ? args.placed[t] : nullptr;
    const int32_t token = placed != nullptr ? *placed : args.tokens[t];
    if (placed != nullptr) args.placed_in[t] = token;
    args.embed.DecodeRow(token, first);
    for (int j = 1; j < args.m; ++j) __builtin_memcpy(first + j * dim, first, dim * sizeof(float));
  });
}

void HyperConnectionPost(const KernelContext& ctx, const HyperConnectionPostArgs& args) {
  const int m = args.m;
  CHECK(m <= kMaxStreams, "{} streams", m);
  const int64_t chunks = CeilDiv(args.dim, kPostChunk);
  ForJobs(ctx, args.rows * chunks, int64_t{args.rows} * m * args.dim * 4, [&](int64_t job, int) {
    const int64_t t = job / chunks;
    const int64_t begin = job % chunks * kPostChunk;
    const int64_t end = begin + kPostChunk < args.dim ? begin + kPostChunk : args.dim;
    MixBack(ctx.faithful(), m, args.dim, static_cast<int>(begin), static_cast<int>(end),
            args.back.x + t * args.dim, args.back.post + t * m, args.back.comb + t * m * m,
            args.streams + t * m * args.dim);
  });
}

void HyperConnectionPre(const KernelContext& ctx, const HyperConnectionPreArgs& args) {
  const int m = args.m;
  CHECK(m <= kMaxStreams, "{} streams", m);
  if (args.back.x != nullptr) HyperConnectionPost(ctx, {args.rows, m, args.dim, args.back, args.streams});
  StoreTap(ctx, {args.tap.sequences, m, args.dim, args.tap.offset, args.streams});
  ArenaScope scope(*ctx.scratch);
  const int64_t row_floats = int64_t{m} * args.dim;
  const float* partial =
      MixPartials(ctx, args.fn, args.rows, [&](int64_t t) { return args.streams + t * row_floats; });
  const int64_t partial_floats = Chunks(args.fn.cols) * (args.fn.rows + 1);
  ForJobs(ctx, args.rows, args.rows * row_floats * 4, [&](int64_t t, int) {
    float mix[kMaxMixes];
    MixLogits(args.fn, partial + t * partial_floats, args.norm_eps, mix);
    float pre[kMaxStreams];
    for (int j = 0; j < m; ++j) {
      pre[j] = Sigmoid(mix[j] * args.scale[0] + args.base[j]) + args.hc_eps;
      args.post[t * m + j] = 2 * Sigmoid(mix[m + j] * args.scale[1] + args.base[m + j]);
    }
    float* comb = args.comb + t * m * m;
    for (int i = 0; i < m * m; ++i) comb[i] = mix[2 * m + i] * args.scale[2] + args.base[2 * m + i];
    Sinkhorn(m, args.sinkhorn_iters, args.hc_eps, comb);
    float* x = args.x + t * args.dim;
    MixAndNorm(ctx.faithful(), m, args.dim, args.streams + t * row_floats, pre, args.norm, args.norm_eps, x,
               x);
  });
}

void HyperHead(const KernelContext& ctx, const HyperHeadArgs& args) {
  const int m = args.m;
  CHECK(m <= kMaxStreams, "{} streams", m);
  if (args.back.x != nullptr) HyperConnectionPost(ctx, {args.rows, m, args.dim, args.back, args.streams});
  StoreTap(ctx, {args.tap.sequences, m, args.dim, args.tap.offset, args.streams});
  ArenaScope scope(*ctx.scratch);
  const int64_t row_floats = int64_t{m} * args.dim;
  auto row = [&](int64_t r) { return args.streams + args.row_ids[r] * row_floats; };
  const float* partial = MixPartials(ctx, args.fn, args.rows, row);
  const int64_t partial_floats = Chunks(args.fn.cols) * (args.fn.rows + 1);
  ForJobs(ctx, args.rows, args.rows * row_floats * 4, [&](int64_t r, int) {
    float mix[kMaxStreams];
    MixLogits(args.fn, partial + r * partial_floats, args.norm_eps, mix);
    for (int j = 0; j < m; ++j) mix[j] = Sigmoid(mix[j] * args.scale[0] + args.base[j]) + args.hc_eps;
    float* out = args.out + r * args.dim;
    float* hidden = args.hidden != nullptr ? args.hidden + r * args.dim : out;
    MixAndNorm(ctx.faithful(), m, args.dim, row(r), mix, args.norm, args.norm_eps, hidden, out);
  });
}

}  // namespace foresight::FORESIGHT_ISA

#include "kernels/cpu/isa_end.h"
