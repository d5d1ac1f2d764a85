#include <cmath>

#include "base/thread_pool.h"
#include "kernels/moe/moe.h"

// clang-format off
#include "kernels/cpu/isa_begin.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/jobs.h"
// clang-format on

namespace foresight::FORESIGHT_ISA {
namespace {

// Columns of the result per job of the second half: long streams of weights when rows are few, else few
// enough that the products of all pairs stay in cache.
constexpr int64_t kDownOutputs = 32;
constexpr int64_t kDownOutputsFewRows = 128;

// Unbiased router score sqrt(softplus(z)); float64 as in the definition, so that ties are the definition's
// ties.
double Score(double z) {
  return std::sqrt(z > 20 ? z : std::log1p(std::exp(z)));
}

// The k largest of `biased`, equal ones in favour of the lower id, in descending order; `biased` is consumed.
void TakeTop(double* biased, int num_experts, int k, int32_t* ids) {
  for (int i = 0; i < k; ++i) {
    int best = 0;
    for (int e = 1; e < num_experts; ++e) {
      if (biased[e] > biased[best]) best = e;
    }
    ids[i] = best;
    biased[best] = -HUGE_VAL;
  }
}

// (row, slot) pairs sorted by expert; the shared expert, if there is one, is expert E and has every row once.
struct Grouping {
  int32_t* begin;  // [E + 2]: pairs of expert e are [begin[e], begin[e+1])
  int32_t* row;    // [pairs]: the pair's row
  int32_t* pair;   // [T, slots]: where (row, slot) went, the shared expert's slot last
  float* weight;   // [pairs]
  int64_t pairs;
};

Grouping Group(const KernelContext& ctx, const MoeArgs& args) {
  const int k = args.experts_per_token;
  const int num_experts = static_cast<int>(args.experts.size());
  const int slots = k + args.HasShared();
  Grouping g;
  g.pairs = int64_t{args.rows} * slots;
  g.begin = ctx.scratch->Allocate<int32_t>(num_experts + 2);
  g.row = ctx.scratch->Allocate<int32_t>(g.pairs);
  g.pair = ctx.scratch->Allocate<int32_t>(g.pairs);
  g.weight = ctx.scratch->Allocate<float>(g.pairs);
  int32_t* next = ctx.scratch->Allocate<int32_t>(num_experts + 1);
  for (int e = 0; e <= num_experts; ++e) next[e] = 0;
  for (int64_t i = 0; i < int64_t{args.rows} * k; ++i) {
    DCHECK(args.ids[i] >= 0 && args.ids[i] < num_experts);
    ++next[args.ids[i]];
  }
  next[num_experts] = args.HasShared() ? args.rows : 0;
  int32_t at = 0;
  for (int e = 0; e <= num_experts; ++e) {
    g.begin[e] = at;
    at += next[e];
    next[e] = g.begin[e];
  }
  g.begin[num_experts + 1] = at;
  for (int32_t t = 0; t < args.rows; ++t) {
    for (int s = 0; s < slots; ++s) {
      const int e = s < k ? args.ids[int64_t{t} * k + s] : num_experts;
      const int32_t p = next[e]++;
      g.row[p] = t;
      g.pair[int64_t{t} * slots + s] = p;
      g.weight[p] = s < k ? args.weights[int64_t{t} * k + s] : 1.0f;
    }
  }
  return g;
}

// act = weight * silu(min(gate, limit)) * clamp(up, -limit, limit), in place of `gate`. count is a multiple
// of 4, not of the lanes.
void Activate(bool faithful, float limit, float weight, const float* up, int64_t count, float* gate) {
  const Vec bound = Set(limit > 0 ? limit : HUGE_VALF);
  auto activate = [&](Vec g, Vec u) {
    g = Min(bound, g);  // no lower bound; a NaN passes
    u = Max(Set(-limit > 0 ? 0 : limit > 0 ? -limit : -HUGE_VALF), Min(bound, u));
    const Vec silu = Div(g, Add(Set(1.0f), Exp(Sub(Zero(), g))));
    const Vec a = Mul(Set(weight), Mul(silu, u));
    return faithful ? RoundToBf16(a) : a;
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Store(gate + i, activate(Load(gate + i), Load(up + i)));
  if (i < count) {
    const int left = static_cast<int>(count - i);
    StorePart(gate + i, activate(LoadPart(gate + i, left), LoadPart(up + i, left)), left);
  }
}

int64_t Max(int64_t a, int64_t b) {
  return a > b ? a : b;
}

}  // namespace

void Router(const KernelContext& ctx, const RouterArgs& args) {
  ArenaScope scope(*ctx.scratch);
  const int k = args.experts_per_token;
  const int num_experts = args.num_experts;
  double* scratch = ctx.scratch->Allocate<double>(int64_t{2} * num_experts * ctx.pool->num_threads());
  // About 30 ns a score: as much as reading a kilobyte of weights.
  ForJobs(ctx, args.rows, int64_t{args.rows} * num_experts * 512, [&](int64_t t, int thread) {
    double* score = scratch + int64_t{2} * num_experts * thread;
    double* biased = score + num_experts;
    int32_t* ids = args.ids + t * k;
    for (int e = 0; e < num_experts; ++e) score[e] = Score(args.logits[t * num_experts + e]);
    if (args.forced_ids != nullptr) {
      for (int i = 0; i < k; ++i) ids[i] = args.forced_ids[t * k + i];
    } else if (args.tid2eid != nullptr) {
      for (int i = 0; i < k; ++i)
        ids[i] = static_cast<int32_t>(args.tid2eid[int64_t{args.tokens[t]} * k + i]);
    } else {
      for (int e = 0; e < num_experts; ++e) biased[e] = score[e] + (args.bias ? args.bias[e] : 0.0f);
      TakeTop(biased, num_experts, k, ids);
    }
    double sum = 0;
    for (int i = 0; i < k; ++i) sum += score[ids[i]];
    for (int i = 0; i < k; ++i)
      args.weights[t * k + i] = static_cast<float>(score[ids[i]] / sum * args.scaling);
  });
}

// Two parallel parts. First, per expert and 128 columns of I: both products, the activation, and its packing
// for the second product (128 columns are act_quant's block). Then, per 32 columns of D: the second product
// of every expert and the sum over slots.
void Moe(const KernelContext& ctx, const MoeArgs& args) {
  if (args.rows == 0) return;
  if (args.router != nullptr) Router(ctx, *args.router);
  ArenaScope scope(*ctx.scratch);
  const int num_experts = static_cast<int>(args.experts.size());
  const int slots = args.experts_per_token + args.HasShared();
  const int threads = ctx.pool->num_threads();
  const Grouping g = Group(ctx, args);
  const ExpertWeights& shared = args.HasShared() ? args.shared : args.experts[0];
  auto expert = [&](int e) -> const ExpertWeights& { return e < num_experts ? args.experts[e] : shared; };

  // Routed experts share one dtype; the shared expert may have another.
  auto form_of = [&](const MatrixView& w) { return FormOf(ctx, w.dtype, /*is_projection=*/true); };
  auto pack = [&](const MatrixView& w) {
    return Pack(ctx, args.x, args.dim, args.rows, args.dim, form_of(w));
  };
  const MatrixView& routed_w1 = args.experts[0].w1;
  const PackedRows shared_x = pack(shared.w1);
  const PackedRows routed_x = form_of(routed_w1) == form_of(shared.w1) ? shared_x : pack(routed_w1);

  // The activation of every pair, packed for w2: pair p at h + p * h_stride.
  const int64_t h_stride = Max(PackedStride(form_of(args.experts[0].w2), args.intermediate),
                               PackedStride(form_of(shared.w2), args.intermediate));
  std::byte* h = ctx.scratch->Allocate<std::byte>(g.pairs * h_stride);

  // The jobs of the first part: active experts (the shared one, which has the most rows, first) x row blocks
  // x column blocks.
  struct Job {
    int32_t expert;
    int32_t first;  // pair
    int32_t rows;
    int32_t column;
  };
  const int64_t column_blocks = CeilDiv(args.intermediate, kBlock);
  const int64_t max_jobs = (g.pairs / kJobRows + num_experts + 1) * column_blocks;
  Job* jobs = ctx.scratch->Allocate<Job>(max_jobs);
  int64_t num_jobs = 0;
  int64_t weight_bytes = 0;
  int job_rows = 0;
  for (int i = 0; i <= num_experts; ++i) {
    const int e = i == 0 ? num_experts : i - 1;
    for (int32_t first = g.begin[e]; first < g.begin[e + 1]; first += kJobRows) {
      const int32_t rows = g.begin[e + 1] - first < kJobRows ? g.begin[e + 1] - first : kJobRows;
      for (int64_t c = 0; c < column_blocks; ++c)
        jobs[num_jobs++] = {e, first, rows, static_cast<int32_t>(c)};
      weight_bytes += expert(e).w1.rows * expert(e).w1.row_bytes() * rows;
      job_rows = rows > job_rows ? rows : job_rows;
    }
  }

  // Per thread: a product's scratch, and the gate and up tiles [rows, kBlock].
  int64_t product_bytes = 0;
  for (const ExpertWeights* w : {&args.experts[0], &shared}) {
    product_bytes =
        Max(product_bytes, Max(ProductScratchBytes(w->w1, job_rows), ProductScratchBytes(w->w2, job_rows)));
  }
  product_bytes = CeilDiv(product_bytes, 64) * 64;
  const int64_t tile_floats = int64_t{job_rows} * kBlock;
  const bool few = args.rows <= kFewRows && args.dim >= 4 * threads * kDownOutputsFewRows;
  const int64_t down_outputs = few ? kDownOutputsFewRows : kDownOutputs;
  const int64_t down_floats = g.pairs * down_outputs;
  std::byte* product_scratch = ctx.scratch->Allocate<std::byte>(product_bytes * threads);
  const int64_t thread_floats = Max(2 * tile_floats, down_floats);
  float* tiles = ctx.scratch->Allocate<float>(thread_floats * threads);

  ForJobs(ctx, num_jobs, 2 * weight_bytes, [&](int64_t index, int thread) {
    const Job& job = jobs[index];
    const ExpertWeights& w = expert(job.expert);
    const int64_t begin = int64_t{job.column} * kBlock;
    const int64_t columns = args.intermediate - begin < kBlock ? args.intermediate - begin : kBlock;
    float* gate = tiles + thread * thread_floats;
    float* up = gate + tile_floats;
    Product product{
        .w = &w.w1,
        .begin = begin,
        .end = begin + columns,
        .x = job.expert == num_experts ? shared_x : routed_x,
        .ids = g.row + job.first,
        .rows = job.rows,
        .out = gate,
        .out_stride = kBlock,
        .round_to_bf16 = ctx.faithful(),
        .scratch = product_scratch + thread * product_bytes,
    };
    product.next = w.w3.data + begin * w.w3.row_bytes();
    Multiply(product);
    product.next = nullptr;
    product.w = &w.w3;
    product.out = up;
    Multiply(product);
    const Form form = form_of(w.w2);
    const int64_t term_bytes = PaddedBytes(form.order, args.intermediate);
    for (int r = 0; r < job.rows; ++r) {
      const int64_t p = job.first + r;
      Activate(ctx.faithful(), args.swiglu_limit, g.weight[p], up + r * kBlock, columns, gate + r * kBlock);
      PackRow(gate + r * kBlock, columns, form, term_bytes,
              h + p * h_stride + PaddedBytes(form.order, begin));
    }
  });

  const int64_t down_jobs = CeilDiv(args.dim, down_outputs);
  ForJobs(ctx, down_jobs, weight_bytes, [&](int64_t job, int thread) {
    const int64_t begin = job * down_outputs;
    const int64_t columns = args.dim - begin < down_outputs ? args.dim - begin : down_outputs;
    float* y = tiles + thread * thread_floats;  // [pairs, down_outputs]
    auto weights_at = [&](int e) { return expert(e).w2.data + begin * expert(e).w2.row_bytes(); };
    for (int e = 0; e <= num_experts; ++e) {
      int after = e + 1;
      while (after <= num_experts && g.begin[after] == g.begin[after + 1]) ++after;
      for (int32_t first = g.begin[e]; first < g.begin[e + 1]; first += kJobRows) {
        const int32_t rows = g.begin[e + 1] - first < kJobRows ? g.begin[e + 1] - first : kJobRows;
        Multiply({
            .w = &expert(e).w2,
            .begin = begin,
            .end = begin + columns,
            .x = {h + first * h_stride, h_stride, form_of(expert(e).w2).terms},
            .rows = rows,
            .out = y + first * down_outputs,
            .out_stride = down_outputs,
            .round_to_bf16 = ctx.faithful(),
            .scratch = product_scratch + thread * product_bytes,
            .next = after <= num_experts ? weights_at(after) : nullptr,
        });
      }
    }
    for (int64_t t = 0; t < args.rows; ++t) {
      float* out = args.out + t * args.dim + begin;
      const int32_t* pair = g.pair + t * slots;
      for (int64_t i = 0; i < columns; i += kLanes) {
        const int left = static_cast<int>(columns - i < kLanes ? columns - i : kLanes);
        auto load = [&](int s) {
          const float* p = y + pair[s] * down_outputs + i;
          return left == kLanes ? Load(p) : LoadPart(p, left);
        };
        Vec sum = load(0);
        for (int s = 1; s < slots; ++s) sum = Add(sum, load(s));
        if (ctx.faithful()) sum = RoundToBf16(sum);
        if (left == kLanes) {
          Store(out + i, sum);
        } else {
          StorePart(out + i, sum, left);
        }
      }
    }
  });
}

}  // namespace foresight::FORESIGHT_ISA

#include "kernels/cpu/isa_end.h"
