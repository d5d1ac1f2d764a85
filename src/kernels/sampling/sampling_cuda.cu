// Three passes over the rows, each with many blocks a row: the largest logit, the sum that normalises (where
// somebody needs it), the draw. Its last block of a sequence speaks the verdict.
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
  int* arrivals;  // [S] blocks of the draw that are done
};

__device__ double BlockSum(double x, double* shared) {
#pragma unroll
  for (int other = 16; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffff, x, other);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0;
  for (int w = 0; w < kThreads / 32; ++w) sum += shared[w];
  return sum;
}

// Of the row's chunks, by a warp; all lanes get it.
__device__ float RowLargest(const float* chunk_largest, int chunks) {
  float largest = -INFINITY;
  for (int c = threadIdx.x % 32; c < chunks; c += 32) largest = fmaxf(largest, chunk_largest[c]);
  return WarpMax(largest);
}

__device__ double RowLogNormalizer(const double* chunk_sums, int chunks) {
  double sum = 0;
  for (int c = threadIdx.x % 32; c < chunks; c += 32) sum += chunk_sums[c];
#pragma unroll
  for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(0xffffffff, sum, other);
  return log(sum);
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

__global__ void LargestKernel(const SampleRow* rows, const SampleSequence* sequences, int vocab_size,
                              ChunkResults chunks) {
  AwaitInputs();
  __shared__ float shared[kThreads / 32];
  const int r = blockIdx.y;
  const float* logits = rows[r].logits;
  float largest = -INFINITY;
#pragma unroll
  for (int i = 0; i < kTokensPerThread; ++i) {
    const int token = blockIdx.x * kChunk + i * kThreads + threadIdx.x;
    if (token >= vocab_size) break;
    const float logit = logits[token];
    largest = fmaxf(largest, logit < INFINITY ? logit : INFINITY);  // NaN is not below
  }
  largest = WarpMax(largest);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = largest;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kThreads / 32; ++w) largest = fmaxf(largest, shared[w]);
  chunks.largest[r * gridDim.x + blockIdx.x] = largest;
  const int s = rows[r].sequence;
  if (blockIdx.x == 0 && sequences[s].first_row == r) chunks.arrivals[s] = 0;
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

// How far the scores in float32 may lie below the exact ones, for those that can win a row: their weights
// are at least 1e-18 of the largest one.
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

// Thread 0 gets it. `shared` [kThreads / 32] is free again after a barrier.
__device__ Candidate BlockBest(Candidate best, Candidate* shared) {
  best = WarpBest(best);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kThreads / 32; ++w) best.Take(shared[w]);
  }
  return best;
}

// The best of the block's tokens; thread 0 gets it. Float64 logarithms are dear: bounds in float32 leave few
// tokens that need them.
__device__ Candidate BestOfChunk(const Scores& scores, const float* logits, int vocab_size) {
  __shared__ Candidate shared[kThreads / 32];
  __shared__ double reached;
  float bounds[kTokensPerThread];
  Candidate best = {-INFINITY, INT_MAX};
#pragma unroll
  for (int i = 0; i < kTokensPerThread; ++i) {
    const int token = blockIdx.x * kChunk + i * kThreads + threadIdx.x;
    bounds[i] = token < vocab_size ? scores.Bound(token, logits[token]) : -INFINITY;
    if (bounds[i] > -INFINITY) best.Take({bounds[i], token});
  }
  best = BlockBest(best, shared);
  if (threadIdx.x == 0) {
    reached = best.score;  // at least so much, in the end
    if (scores.IsTight()) {
      reached -= 2 * kBoundMargin;
    } else if (best.score > -INFINITY) {
      reached = scores.Exact(best.token, logits[best.token]);
    }
  }
  __syncthreads();
  best = {-INFINITY, INT_MAX};
#pragma unroll
  for (int i = 0; i < kTokensPerThread; ++i) {
    const int token = blockIdx.x * kChunk + i * kThreads + threadIdx.x;
    if (bounds[i] == -INFINITY || bounds[i] < reached) continue;
    const double score = scores.Exact(token, logits[token]);
    if (score > -INFINITY) best.Take({score, token});
  }
  best = BlockBest(best, shared);
  __syncthreads();
  return best;
}

// Of a row, by a warp, from what other blocks have written in this kernel; all lanes get it.
__device__ Candidate RowBest(const double* scores, const int* winners, int chunks) {
  Candidate best = {-INFINITY, INT_MAX};
  for (int c = threadIdx.x % 32; c < chunks; c += 32) best.Take({__ldcg(scores + c), __ldcg(winners + c)});
  return WarpBest(best);
}

__global__ void __launch_bounds__(kThreads)
    DrawKernel(const SampleRow* rows, const SampleSequence* sequences, int vocab_size, ChunkResults chunks,
               int32_t* accepted, int32_t* tokens, RowStatistics* statistics) {
  AwaitInputs();
  const int num_chunks = gridDim.x;
  const int r = blockIdx.y;
  const SampleRow& row = rows[r];
  const SampleSequence sequence = sequences[row.sequence];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;

  // By rejection one row of the sequence draws: that of the first draft which is not accepted.
  __shared__ int drawing;
  if (sequence.by_rejection) {
    if (threadIdx.x == 0) drawing = sequence.num_drafts;
    __syncthreads();
    for (int k = warp; k < sequence.num_drafts; k += kThreads / 32) {
      const int judge = sequence.first_row + k;
      const SampleRow& j = rows[judge];
      const float largest = RowLargest(chunks.largest + judge * num_chunks, num_chunks);
      const RowStatistics p = {RowLogNormalizer(chunks.sums + judge * num_chunks, num_chunks), largest};
      if (lane != 0) continue;
      bool is_accepted = false;
      if (CanDraw(largest) && j.acceptance_probability >= 0) {
        is_accepted = j.acceptance_noise < j.acceptance_probability;
      } else if (CanDraw(largest)) {
        const double q =
            j.draft_logits == nullptr ? 1 : Probability(j.draft_logits[j.draft], *j.draft_statistics, j);
        is_accepted = __dmul_rn(j.acceptance_noise, q) < Probability(j.logits[j.draft], p, j);
      }
      if (!is_accepted) atomicMin(&drawing, k);
    }
    __syncthreads();
  }

  const int place = r * num_chunks + blockIdx.x;
  const int fallback = gridDim.y * num_chunks;
  const float largest = RowLargest(chunks.largest + r * num_chunks, num_chunks);
  if (CanDraw(largest) && (!sequence.by_rejection || drawing == r - sequence.first_row)) {
    const bool residual =
        sequence.by_rejection && drawing < sequence.num_drafts && row.inverse_temperature > 0;
    const double log_normalizer = residual ? RowLogNormalizer(chunks.sums + r * num_chunks, num_chunks) : 0;
    const Candidate best =
        BestOfChunk(Scores(row, largest, log_normalizer, residual), row.logits, vocab_size);
    if (threadIdx.x == 0) {
      chunks.scores[place] = best.score;
      chunks.winners[place] = best.token;
    }
    if (residual) {
      const Candidate of_p = BestOfChunk(Scores(row, largest, 0, false), row.logits, vocab_size);
      if (threadIdx.x == 0) {
        chunks.scores[fallback + place] = of_p.score;
        chunks.winners[fallback + place] = of_p.token;
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

  if (statistics != nullptr) {
    for (int k = warp; k <= sequence.num_drafts; k += kThreads / 32) {
      const int of = sequence.first_row + k;
      const RowStatistics found = {RowLogNormalizer(chunks.sums + of * num_chunks, num_chunks),
                                   RowLargest(chunks.largest + of * num_chunks, num_chunks)};
      if (lane == 0) statistics[of] = found;
    }
  }
  if (warp != 0) return;
  for (int k = sequence.by_rejection ? drawing : 0;; ++k) {
    const int judge = sequence.first_row + k;
    const bool can_draw = CanDraw(RowLargest(chunks.largest + judge * num_chunks, num_chunks));
    Candidate best = {};
    if (can_draw) {
      best = RowBest(chunks.scores + judge * num_chunks, chunks.winners + judge * num_chunks, num_chunks);
      if (best.token == INT_MAX) {  // nothing is left of p - q
        best = RowBest(chunks.scores + fallback + judge * num_chunks,
                       chunks.winners + fallback + judge * num_chunks, num_chunks);
      }
      if (!sequence.by_rejection && k < sequence.num_drafts && best.token == rows[judge].draft) continue;
    }
    if (lane == 0) {
      accepted[row.sequence] = can_draw ? k : kSampleError;
      tokens[row.sequence] = best.token;
    }
    return;
  }
}

}  // namespace

void Sample(const KernelContext& ctx, const SampleArgs& args) {
  CHECK(args.statistics == nullptr || args.normalize);
  ArenaScope scope(*ctx.scratch);
  const unsigned num_chunks = CeilDiv(args.vocab_size, kChunk);
  const int64_t places = int64_t{args.num_rows} * num_chunks;
  const ChunkResults chunks = {.largest = ctx.scratch->Allocate<float>(places),
                               .sums = ctx.scratch->Allocate<double>(places),
                               .scores = ctx.scratch->Allocate<double>(2 * places),
                               .winners = ctx.scratch->Allocate<int>(2 * places),
                               .arrivals = ctx.scratch->Allocate<int>(args.num_sequences)};
  const dim3 grid(num_chunks, static_cast<unsigned>(args.num_rows));
  Launch(ctx, LargestKernel, grid, kThreads, 0, args.rows, args.sequences, args.vocab_size, chunks);
  if (args.normalize) Launch(ctx, SumKernel, grid, kThreads, 0, args.rows, args.vocab_size, chunks);
  Launch(ctx, DrawKernel, grid, kThreads, 0, args.rows, args.sequences, args.vocab_size, chunks,
         args.accepted, args.tokens, args.statistics);
}

}  // namespace foresight::cuda
