// Passes over the rows with many blocks a row: the largest logit, the sum that normalises, the draw, whose
// last block of a sequence speaks the verdict. Where every row draws and nothing is cut, the draw alone does.
#include <climits>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"

namespace foresight::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTokensPerThread = 8;
constexpr int kChunk = kThreads * kTokensPerThread;  // tokens of a block

// What blocks tell each other of a row: [R, chunks] each.
struct ChunkResults {
  float* largest;  // +inf: a logit that is no number
  double* sums;
  // Of the draw, then of the draw from p where nothing is left of p - q: [2, R, chunks].
  double* scores;
  int* winners;
  int* arrivals;  // [S] blocks of the draw that are done; zeros before and after it
};

__device__ double WarpSum(double x) {
#pragma unroll
  for (int other = 16; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffff, x, other);
  return x;
}

__device__ double BlockSum(double x, double* shared) {
  x = WarpSum(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0;
  for (int w = 0; w < kThreads / 32; ++w) sum += shared[w];
  return sum;
}

// All threads get it. `shared` [kThreads / 32] is free again after a barrier.
__device__ float BlockMax(float x, float* shared) {
  x = WarpMax(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  x = shared[0];
  for (int w = 1; w < kThreads / 32; ++w) x = fmaxf(x, shared[w]);
  return x;
}

// What is no number is +inf, and so is the largest logit of its row.
__device__ float Checked(float logit) {
  return logit < INFINITY ? logit : INFINITY;
}

// Of the row's chunks, by a warp; all lanes get it.
__device__ float RowLargest(const float* chunk_largest, int chunks) {
  float largest = -INFINITY;
  for (int c = threadIdx.x % 32; c < chunks; c += 32) largest = fmaxf(largest, __ldcg(chunk_largest + c));
  return WarpMax(largest);
}

__device__ double RowLogNormalizer(const double* chunk_sums, int chunks) {
  double sum = 0;
  for (int c = threadIdx.x % 32; c < chunks; c += 32) sum += __ldcg(chunk_sums + c);
  return log(WarpSum(sum));
}

__device__ bool CanDraw(float largest) {
  return largest > -INFINITY && largest < INFINITY;
}

// Rounded as on the host, where products and sums aren't contracted.
__device__ double LogWeight(float logit, float largest, double inverse_temperature) {
  return __dmul_rn(__dsub_rn(logit, largest), inverse_temperature);
}

__device__ double Probability(float logit, const RowStatistics& statistics, const SampleRow& row) {
  const double w = LogWeight(logit, statistics.largest, row.inverse_temperature);
  return w >= row.lowest_log_weight ? exp(w - statistics.log_normalizer) : 0;
}

__global__ void LargestKernel(const SampleRow* rows, int vocab_size, ChunkResults chunks) {
  AwaitInputs();
  __shared__ float shared[kThreads / 32];
  const int r = blockIdx.y;
  const float* logits = rows[r].logits;
  float largest = -INFINITY;
#pragma unroll
  for (int i = 0; i < kTokensPerThread; ++i) {
    const int token = blockIdx.x * kChunk + i * kThreads + threadIdx.x;
    if (token >= vocab_size) break;
    largest = fmaxf(largest, Checked(logits[token]));
  }
  largest = BlockMax(largest, shared);
  if (threadIdx.x == 0) chunks.largest[r * gridDim.x + blockIdx.x] = largest;
}

__global__ void SumKernel(const SampleRow* rows, int vocab_size, ChunkResults chunks) {
  AwaitInputs();
  __shared__ double shared[kThreads / 32];
  const int r = blockIdx.y;
  const SampleRow& row = rows[r];
  const float largest = RowLargest(chunks.largest + r * gridDim.x, gridDim.x);
  double sum = 0;
  if (CanDraw(largest)) {
#pragma unroll
    for (int i = 0; i < kTokensPerThread; ++i) {
      const int token = blockIdx.x * kChunk + i * kThreads + threadIdx.x;
      if (token >= vocab_size) break;
      const double w = LogWeight(row.logits[token], largest, row.inverse_temperature);
      if (w >= row.lowest_log_weight) sum += exp(w);
    }
  }
  sum = BlockSum(sum, shared);
  if (threadIdx.x == 0) chunks.sums[r * gridDim.x + blockIdx.x] = sum;
}

// 53 random bits of a token (base/rng.h), and the noise that they make (sampling/distribution.cc).
__device__ uint64_t NoiseBits(uint64_t state, int token) {
  uint64_t z = state + (static_cast<uint64_t>(token) + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return (z ^ (z >> 31)) >> 11;
}

__device__ double Gumbel(uint64_t bits) {
  return -log(-log1p(__dmul_rn(-__dadd_rn(static_cast<double>(bits), 0.5), 0x1p-53)));
}

// Within 1e-4 of Gumbel.
__device__ float RoughGumbel(uint64_t bits) {
  const bool upper = bits >> 52;  // near 1 it is the distance from 1 that counts
  const float part =
      (static_cast<float>(upper ? (uint64_t{1} << 53) - bits : bits) + (upper ? -0.5f : 0.5f)) * 0x1p-53f;
  return -logf(upper ? -logf(part) : -log1pf(-part));
}

struct Candidate {
  double score;
  int token;

  __device__ void Take(const Candidate& other) {
    if (other.score > score || (other.score == score && other.token < token)) *this = other;
  }
};

// How far scores in float32 may lie from the exact ones, for tokens that can win a row: their weights are at
// least 1e-18 of the largest one.
constexpr float kBoundMargin = 2e-3f;
constexpr float kProbabilityMargin = 1e-4f;  // relative

// The scores of a row's tokens: log-weight plus noise.
class Scores {
 public:
  __device__ Scores(const SampleRow& row, float largest, double log_normalizer, bool residual)
      : row_(row),
        largest_(largest),
        inverse_(static_cast<float>(row.inverse_temperature)),
        lowest_(static_cast<float>(fmax(row.lowest_log_weight, -3e38)) * 1.0001f - kBoundMargin),
        log_normalizer_(log_normalizer),
        residual_(residual) {
    if (residual && row.draft_logits != nullptr) draft_ = *row.draft_statistics;
  }

  // At least as large as Exact, or the token can't win the row.
  __device__ float Bound(int token, float logit) const {
    if (row_.inverse_temperature == 0) return logit;
    float w = (logit - largest_) * inverse_;
    if (!(w >= lowest_)) return -INFINITY;
    if (residual_) {
      float left = expf(w - static_cast<float>(log_normalizer_)) * (1 + kProbabilityMargin);
      if (row_.draft_logits == nullptr) {
        left = token == row_.draft ? 0.0f : left;
      } else {
        const float wq = (row_.draft_logits[token] - draft_.largest) * inverse_;
        const bool surely_in =
            wq >= static_cast<float>(fmax(row_.lowest_log_weight, -3e38)) * 0.9999f + kBoundMargin;
        if (row_.lowest_log_weight < -1e30 || surely_in) {
          left -= expf(wq - static_cast<float>(draft_.log_normalizer)) * (1 - kProbabilityMargin);
        }
      }
      if (!(left > 0)) return -INFINITY;
      w = logf(left);
    }
    return w + RoughGumbel(NoiseBits(row_.noise, token)) + kBoundMargin;
  }

  // Whether Bound is never more than two margins above Exact.
  __device__ bool IsTight() const {
    return row_.inverse_temperature == 0 || (!residual_ && row_.lowest_log_weight == -DBL_MAX);
  }

  // -inf: the token can't be drawn.
  __device__ double Exact(int token, float logit) const {
    if (row_.inverse_temperature == 0) return logit;
    double w = LogWeight(logit, largest_, row_.inverse_temperature);
    if (!(w >= row_.lowest_log_weight)) return -INFINITY;
    if (residual_) {
      const double q = row_.draft_logits == nullptr ? (token == row_.draft ? 1.0 : 0.0)
                                                    : Probability(row_.draft_logits[token], draft_, row_);
      const double left = exp(w - log_normalizer_) - q;
      if (!(left > 0)) return -INFINITY;
      w = log(left);
    }
    return __dadd_rn(w, Gumbel(NoiseBits(row_.noise, token)));
  }

 private:
  const SampleRow& row_;
  float largest_;
  float inverse_;
  float lowest_;
  double log_normalizer_;
  bool residual_;
  RowStatistics draft_;
};

__device__ Candidate WarpBest(Candidate best) {
#pragma unroll
  for (int other = 16; other > 0; other /= 2) {
    best.Take(
        {__shfl_xor_sync(0xffffffff, best.score, other), __shfl_xor_sync(0xffffffff, best.token, other)});
  }
  return best;
}

// All threads get it. `shared` [kThreads / 32] is free again after a barrier.
__device__ Candidate BlockBest(Candidate best, Candidate* shared) {
  best = WarpBest(best);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = best;
  __syncthreads();
  best = shared[0];
  for (int w = 1; w < kThreads / 32; ++w) best.Take(shared[w]);
  return best;
}

constexpr Candidate kNobody = {-INFINITY, INT_MAX};

// The best of the block's tokens, which thread i holds at i, i + kThreads, ...; all threads get it. Its score
// is exact, or at most two margins more. Float64 logarithms are dear: bounds in float32 leave few tokens that
// need them, mostly none.
__device__ Candidate BestOfChunk(const Scores& scores, const float (&logits)[kTokensPerThread],
                                 Candidate* shared) {
  const int first = blockIdx.x * kChunk + threadIdx.x;
  float bounds[kTokensPerThread];
  Candidate best = kNobody;
#pragma unroll
  for (int i = 0; i < kTokensPerThread; ++i) {
    bounds[i] = logits[i] > -INFINITY ? scores.Bound(first + i * kThreads, logits[i]) : -INFINITY;
    if (bounds[i] > -INFINITY) best.Take({bounds[i], first + i * kThreads});
  }
  best = BlockBest(best, shared);
  float reached = -INFINITY;  // the exact score of some token
  if (scores.IsTight()) {
    reached = static_cast<float>(best.score) - 2 * kBoundMargin;
    bool is_contested = false;
#pragma unroll
    for (int i = 0; i < kTokensPerThread; ++i) {
      is_contested |= bounds[i] > -INFINITY && bounds[i] >= reached && first + i * kThreads != best.token;
    }
    if (!__syncthreads_or(is_contested)) return best;
  } else if (best.token != INT_MAX) {
    __shared__ float of_best;
    if (best.token % kThreads == first % kThreads) {  // the thread that has it
      float logit = 0;
#pragma unroll
      for (int i = 0; i < kTokensPerThread; ++i) {
        if (first + i * kThreads == best.token) logit = logits[i];
      }
      of_best = __double2float_rd(scores.Exact(best.token, logit));
    }
    __syncthreads();
    reached = of_best;
  }
  best = kNobody;
#pragma unroll
  for (int i = 0; i < kTokensPerThread; ++i) {
    if (bounds[i] == -INFINITY || bounds[i] < reached) continue;
    const double score = scores.Exact(first + i * kThreads, logits[i]);
    if (score > -INFINITY) best.Take({score, first + i * kThreads});
  }
  __syncthreads();
  best = BlockBest(best, shared);
  __syncthreads();
  return best;
}

// Of a row's chunks, by a warp; all lanes get its token, or INT_MAX. `lift(c)` is added to the scores of
// chunk c.
template <typename Lift>
__device__ int RowBest(const Scores& scores, const float* logits, const double* chunk_scores,
                       const int* winners, int chunks, Lift lift) {
  const int lane = threadIdx.x % 32;
  Candidate best = kNobody;
  for (int c = lane; c < chunks; c += 32)
    best.Take({__ldcg(chunk_scores + c) + lift(c), __ldcg(winners + c)});
  best = WarpBest(best);
  const double reached = best.score - 2 * kBoundMargin;
  int contenders = 0;
  for (int c = lane; c < chunks; c += 32) contenders += __ldcg(chunk_scores + c) + lift(c) >= reached;
  if (__reduce_add_sync(0xffffffff, contenders) <= 1 || best.token == INT_MAX) return best.token;
  best = kNobody;
  for (int c = lane; c < chunks; c += 32) {
    if (!(__ldcg(chunk_scores + c) + lift(c) >= reached)) continue;
    const int token = __ldcg(winners + c);
    best.Take({scores.Exact(token, logits[token]), token});
  }
  return WarpBest(best).token;
}

// By rejection one row of a sequence draws, that of the first draft which is not accepted: its place. By a
// block; `first_rejected` is shared.
__device__ int FirstRejected(const SampleRow* rows, const SampleSequence& sequence,
                             const ChunkResults& chunks, int num_chunks, int* first_rejected) {
  if (threadIdx.x == 0) *first_rejected = sequence.num_drafts;
  __syncthreads();
  for (int k = threadIdx.x / 32; k < sequence.num_drafts; k += kThreads / 32) {
    const int r = sequence.first_row + k;
    const SampleRow& row = rows[r];
    const float largest = RowLargest(chunks.largest + r * num_chunks, num_chunks);
    const RowStatistics p = {RowLogNormalizer(chunks.sums + r * num_chunks, num_chunks), largest};
    if (threadIdx.x % 32 != 0) continue;
    bool is_accepted = false;
    if (CanDraw(largest) && row.acceptance_probability >= 0) {
      is_accepted = row.acceptance_noise < row.acceptance_probability;
    } else if (CanDraw(largest)) {
      const double q = row.draft_logits == nullptr
                           ? 1
                           : Probability(row.draft_logits[row.draft], *row.draft_statistics, row);
      is_accepted = __dmul_rn(row.acceptance_noise, q) < Probability(row.logits[row.draft], p, row);
    }
    if (!is_accepted) atomicMin(first_rejected, k);
  }
  __syncthreads();
  return *first_rejected;
}

// kAlone: no pass came before; chunks take their own largest logit for that of the row.
template <bool kAlone>
__global__ void __launch_bounds__(kThreads)
    DrawKernel(const SampleRow* rows, const SampleSequence* sequences, int vocab_size, bool normalize,
               ChunkResults chunks, int32_t* accepted, int32_t* tokens, RowStatistics* statistics) {
  AwaitInputs();
  __shared__ Candidate shared[kThreads / 32];
  __shared__ int first_rejected;
  const int num_chunks = gridDim.x;
  const int r = blockIdx.y;
  const SampleRow& row = rows[r];
  const SampleSequence sequence = sequences[row.sequence];
  const bool by_rejection = !kAlone && sequence.by_rejection;
  const int drawing =
      by_rejection ? FirstRejected(rows, sequence, chunks, num_chunks, &first_rejected) : sequence.num_drafts;

  const int place = r * num_chunks + blockIdx.x;
  const int fallback = gridDim.y * num_chunks;
  float logits[kTokensPerThread];
  float largest = -INFINITY;
#pragma unroll
  for (int i = 0; i < kTokensPerThread; ++i) {
    const int token = blockIdx.x * kChunk + i * kThreads + threadIdx.x;
    logits[i] = token < vocab_size ? Checked(row.logits[token]) : -INFINITY;
    largest = fmaxf(largest, logits[i]);
  }
  if (kAlone) {
    largest = BlockMax(largest, reinterpret_cast<float*>(shared));
    __syncthreads();
    if (normalize) {
      double sum = 0;
#pragma unroll
      for (int i = 0; i < kTokensPerThread; ++i) {
        const double w = LogWeight(logits[i], largest, row.inverse_temperature);
        if (CanDraw(largest) && w >= -DBL_MAX) sum += exp(w);
      }
      sum = BlockSum(sum, reinterpret_cast<double*>(shared));
      if (threadIdx.x == 0) chunks.sums[place] = sum;
      __syncthreads();
    }
    if (threadIdx.x == 0) chunks.largest[place] = largest;
  } else {
    largest = RowLargest(chunks.largest + r * num_chunks, num_chunks);
  }

  const bool residual = by_rejection && drawing < sequence.num_drafts && row.inverse_temperature > 0;
  if (!by_rejection || drawing == r - sequence.first_row) {
    Candidate best = kNobody;
    if (CanDraw(largest)) {
      const double log_normalizer = residual ? RowLogNormalizer(chunks.sums + r * num_chunks, num_chunks) : 0;
      best = BestOfChunk(Scores(row, largest, log_normalizer, residual), logits, shared);
    }
    if (threadIdx.x == 0) {
      chunks.scores[place] = best.score;
      chunks.winners[place] = best.token;
    }
    if (residual && CanDraw(largest)) {
      __syncthreads();
      best = BestOfChunk(Scores(row, largest, 0, false), logits, shared);
      if (threadIdx.x == 0) {
        chunks.scores[fallback + place] = best.score;
        chunks.winners[fallback + place] = best.token;
      }
    }
  }

  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    __threadfence();
    const int blocks = num_chunks * (sequence.num_drafts + 1);
    is_last = atomicAdd(chunks.arrivals + row.sequence, 1) == blocks - 1;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  if (threadIdx.x == 0) chunks.arrivals[row.sequence] = 0;

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (statistics != nullptr) {
    for (int k = warp; k <= sequence.num_drafts; k += kThreads / 32) {
      const int of = (sequence.first_row + k) * num_chunks;
      const float row_largest = RowLargest(chunks.largest + of, num_chunks);
      double log_normalizer;
      if (kAlone) {
        const double inverse = rows[sequence.first_row + k].inverse_temperature;
        double sum = 0;
        for (int c = lane; c < num_chunks; c += 32) {
          const float chunk_largest = __ldcg(chunks.largest + of + c);
          if (!CanDraw(chunk_largest)) continue;
          sum += __ldcg(chunks.sums + of + c) * exp(LogWeight(chunk_largest, row_largest, inverse));
        }
        log_normalizer = log(WarpSum(sum));
      } else {
        log_normalizer = RowLogNormalizer(chunks.sums + of, num_chunks);
      }
      if (lane == 0) statistics[sequence.first_row + k] = {log_normalizer, row_largest};
    }
  }
  if (warp != 0) return;
  for (int k = by_rejection ? drawing : 0;; ++k) {
    const int judge = sequence.first_row + k;
    const SampleRow& j = rows[judge];
    const int of = judge * num_chunks;
    const float row_largest = RowLargest(chunks.largest + of, num_chunks);
    int token = 0;
    if (CanDraw(row_largest)) {
      // Scores of a chunk that knew its own largest logit alone are above those of the row.
      const auto lift = [&](int c) {
        return kAlone && j.inverse_temperature > 0
                   ? LogWeight(__ldcg(chunks.largest + of + c), row_largest, j.inverse_temperature)
                   : 0;
      };
      const double log_normalizer = residual ? RowLogNormalizer(chunks.sums + of, num_chunks) : 0;
      token = RowBest(Scores(j, row_largest, log_normalizer, residual), j.logits, chunks.scores + of,
                      chunks.winners + of, num_chunks, lift);
      if (token == INT_MAX) {  // nothing is left of p - q
        token = RowBest(Scores(j, row_largest, 0, false), j.logits, chunks.scores + fallback + of,
                        chunks.winners + fallback + of, num_chunks, lift);
      }
      if (!by_rejection && k < sequence.num_drafts && token == j.draft) continue;
    }
    if (lane == 0) {
      accepted[row.sequence] = CanDraw(row_largest) ? k : kSampleError;
      tokens[row.sequence] = token;
    }
    return;
  }
}

}  // namespace

void Sample(const KernelContext& ctx, const SampleArgs& args) {
  CHECK(args.statistics == nullptr || args.normalize);
  CHECK(args.num_sequences <= CudaDevice::kZeros);
  ArenaScope scope(*ctx.scratch);
  const unsigned num_chunks = CeilDiv(args.vocab_size, kChunk);
  const int64_t places = int64_t{args.num_rows} * num_chunks;
  const ChunkResults chunks = {.largest = ctx.scratch->Allocate<float>(places),
                               .sums = ctx.scratch->Allocate<double>(places),
                               .scores = ctx.scratch->Allocate<double>(2 * places),
                               .winners = ctx.scratch->Allocate<int>(2 * places),
                               .arrivals = DeviceOf(ctx).zeros()};
  const dim3 grid(num_chunks, static_cast<unsigned>(args.num_rows));
  // Rejection must know all probabilities before it draws, a cut the largest one.
  const bool alone = !args.has_min_p && (!args.normalize || args.num_rows == args.num_sequences);
  if (!alone) {
    Launch(ctx, LargestKernel, grid, kThreads, 0, args.rows, args.vocab_size, chunks);
    if (args.normalize) Launch(ctx, SumKernel, grid, kThreads, 0, args.rows, args.vocab_size, chunks);
  }
  Launch(ctx, alone ? DrawKernel<true> : DrawKernel<false>, grid, kThreads, 0, args.rows, args.sequences,
         args.vocab_size, args.normalize, chunks, args.accepted, args.tokens, args.statistics);
}

}  // namespace foresight::cuda
