// Passes over the rows with many blocks a row: the largest logit where something is cut, where top_k and
// top_p cut, the sums that normalise where drafts are judged by rejection, the draw. The last block of a
// sequence speaks the verdict. Where every row draws and nothing is cut, the draw alone does.
#include "kernels/sampling/row_cuts.cuh"

namespace foresight::cuda {
namespace {

// The same, exactly.
struct ExactBest {
  double score = -INFINITY;
  int token = INT_MAX;

  __device__ void Take(const ExactBest& other) {
    if (other.score > score || (other.score == score && other.token < token)) *this = other;
  }
};

// All lanes get it.
__device__ Best WarpBest(const Best& best) {
  const uint32_t score = Ordered(best.score);
  const uint32_t largest = __reduce_max_sync(0xffffffff, score);
  return {FromOrdered(largest), __reduce_min_sync(0xffffffff, score == largest ? best.token : INT_MAX)};
}

__device__ ExactBest WarpBest(ExactBest best) {
#pragma unroll
  for (int other = 16; other > 0; other /= 2) {
    best.Take(
        {__shfl_xor_sync(0xffffffff, best.score, other), __shfl_xor_sync(0xffffffff, best.token, other)});
  }
  return best;
}

// All threads get it. `shared` [kThreads / 32] is free again after a barrier.
template <typename AnyBest>
__device__ AnyBest BlockBest(AnyBest best, AnyBest* shared) {
  best = WarpBest(best);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = best;
  __syncthreads();
  return WarpBest(shared[threadIdx.x % (kThreads / 32)]);
}

// --- rows, by a warp, all of whose lanes get the results; from what chunks have told, in this kernel too

__device__ double RowLogNormalizer(const ChunkResults& chunks, int row, int num_chunks, float largest,
                                   double inverse_temperature) {
  double sum = 0;
  for (int c = threadIdx.x % 32; c < num_chunks; c += 32) {
    const float of_chunk = __ldcg(chunks.largest + row * num_chunks + c);
    if (!CanDraw(of_chunk)) continue;
    sum +=
        __ldcg(chunks.sums + row * num_chunks + c) * exp(LogWeight(of_chunk, largest, inverse_temperature));
  }
  return log(WarpSum(sum));
}

// The row's token, or INT_MAX. `lift`: chunks' scores are above those of the row, as their largest logits are
// below its own.
template <bool kCuts>
__device__ int RowToken(const Scores<kCuts>& scores, const SampleRow& row, float largest,
                        const Best* best_of_chunks, const float* largest_of_chunks, int num_chunks,
                        bool lift) {
  const auto lifted = [&](int c) {
    const Best* const at = best_of_chunks + c;
    Best best = {__ldcg(&at->score), __ldcg(&at->token)};
    if (lift) {
      best.score += (__ldcg(largest_of_chunks + c) - largest) * static_cast<float>(row.inverse_temperature);
    }
    return best;
  };
  Best best;
  for (int c = threadIdx.x % 32; c < num_chunks; c += 32) best.Take(lifted(c));
  best = WarpBest(best);
  if (best.token == INT_MAX) return best.token;
  const float reached = best.score - 2 * kBoundMargin;  // by the best token, exactly
  ExactBest exact;
  bool is_contested = false;
  for (int c = threadIdx.x % 32; c < num_chunks; c += 32) {
    const Best other = lifted(c);
    is_contested |= other.score >= reached && other.token != best.token;
  }
  if (!__any_sync(0xffffffff, is_contested)) return best.token;
  for (int c = threadIdx.x % 32; c < num_chunks; c += 32) {
    const Best other = lifted(c);
    if (other.score >= reached) exact.Take({scores.Exact(other.token, row.logits[other.token]), other.token});
  }
  return WarpBest(exact).token;
}

// --- the passes

__global__ void LargestKernel(const SampleRow* rows, int vocab_size, ChunkResults chunks) {
  AwaitInputs();
  __shared__ float shared[kThreads / 32];
  float logits[kTokens];
  const float largest = BlockMax(LoadLogits(rows[blockIdx.y].logits, blockIdx.x, vocab_size, logits), shared);
  if (threadIdx.x == 0) chunks.largest[blockIdx.y * gridDim.x + blockIdx.x] = largest;
  if (chunks.bins == nullptr) return;
  auto* const bins = reinterpret_cast<uint4*>(chunks.bins + blockIdx.y);
  for (unsigned i = blockIdx.x * kThreads + threadIdx.x; i < CutBins::kZeroBytes / sizeof(uint4);
       i += gridDim.x * kThreads) {
    bins[i] = {};
  }
}

__device__ RowCut CutOfRow(const ChunkResults& chunks, int row) {
  return chunks.cuts == nullptr ? RowCut() : chunks.cuts[row];
}

// Thread 0 gets the sum of a chunk. `largest`: of the chunk; `row_largest`: what is cut by, where it is.
template <bool kCut, int kCount>
__device__ double ChunkSum(const SampleRow& row, int chunk, const float (&logits)[kCount], float largest,
                           float row_largest, const RowCut& cut, double* shared) {
  double sum = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int token = (chunk * kCount + i) * kThreads + threadIdx.x;
    const double w = LogWeight(logits[i], row_largest, row.inverse_temperature);
    if (CanDraw(largest) && w >= row.lowest_log_weight && (!kCut || IsKept(logits[i], token, cut))) {
      sum += exp(LogWeight(logits[i], largest, row.inverse_temperature));
    }
  }
  return BlockSum(sum, shared);
}

// Draft k of a sequence is accepted. By a warp; lane 0 gets it.
__device__ bool IsAccepted(const SampleRow* rows, int r, const ChunkResults& chunks, int num_chunks) {
  const SampleRow& row = rows[r];
  const float largest = RowLargest(chunks, r, num_chunks);
  const RowStatistics p = {RowLogNormalizer(chunks, r, num_chunks, largest, row.inverse_temperature), largest,
                           CutOfRow(chunks, r)};
  if (threadIdx.x % 32 != 0 || !CanDraw(largest)) return false;
  if (row.acceptance_probability >= 0) return row.acceptance_noise < row.acceptance_probability;
  const double q =
      row.draft_logits == nullptr ? 1 : Probability(row.draft_logits, row.draft, *row.draft_statistics, row);
  return __dmul_rn(row.acceptance_noise, q) < Probability(row.logits, row.draft, p, row);
}

// kCut: the largest logits are there already, and where rows are cut.
template <int kCount, bool kCut>
__global__ void __launch_bounds__(kThreads)
    SumKernel(const SampleRow* rows, const SampleSequence* sequences, int vocab_size, ChunkResults chunks) {
  AwaitInputs();
  __shared__ double shared[kThreads / 32];
  __shared__ int first_rejected;
  const int num_chunks = gridDim.x;
  const int r = blockIdx.y;
  const SampleRow& row = rows[r];
  const SampleSequence sequence = sequences[row.sequence];
  float logits[kCount];
  const float largest =
      BlockMax(LoadLogits(row.logits, blockIdx.x, vocab_size, logits), reinterpret_cast<float*>(shared));
  const float row_largest = kCut ? RowLargest(chunks, r, num_chunks) : largest;
  __syncthreads();
  const RowCut cut = kCut ? CutOfRow(chunks, r) : RowCut();
  const double sum = ChunkSum<kCut>(row, blockIdx.x, logits, largest, row_largest, cut, shared);
  if (threadIdx.x == 0) {
    chunks.sums[r * num_chunks + blockIdx.x] = sum;
    if (!kCut) chunks.largest[r * num_chunks + blockIdx.x] = largest;
  }
  if (!sequence.by_rejection) return;
  if (!IsLastBlock(chunks.arrivals + row.sequence, num_chunks * (sequence.num_drafts + 1))) return;
  if (threadIdx.x == 0) first_rejected = sequence.num_drafts;
  __syncthreads();
  for (int k = threadIdx.x / 32; k < sequence.num_drafts; k += kThreads / 32) {
    const bool is_accepted = IsAccepted(rows, sequence.first_row + k, chunks, num_chunks);
    if (threadIdx.x % 32 == 0 && !is_accepted) atomicMin(&first_rejected, k);
  }
  __syncthreads();
  if (threadIdx.x == 0) chunks.drawing[row.sequence] = first_rejected;
}

// Value i of those in registers, though the compiler may not know i.
template <int kCount>
__device__ float ValueAt(const float (&values)[kCount], int i) {
  float value = 0;
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    if (k == i) value = values[k];
  }
  return value;
}

// All threads get it. Float64 logarithms are dear: bounds in float32 leave few tokens that need them, mostly
// none. kOnce: what these need is compiled once, in a loop that bounds them again for want of registers.
template <bool kOnce, int kCount, bool kCuts>
__device__ Best BestOfChunk(const Scores<kCuts>& scores, const float (&logits)[kCount], int chunk,
                            ExactBest* shared) {
  const int first = chunk * kCount * kThreads + threadIdx.x;
  float bounds[kCount];
  Best best;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    bounds[i] = logits[i] > -INFINITY ? scores.Bound(first + i * kThreads, logits[i]) : -INFINITY;
    if (bounds[i] > -INFINITY) best.Take({bounds[i], first + i * kThreads});
  }
  best = BlockBest(best, reinterpret_cast<Best*>(shared));
  float reached = -INFINITY;  // by some token, exactly
  if (scores.IsTight()) {
    reached = best.score - 2 * kBoundMargin;
    bool is_contested = false;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      is_contested |= bounds[i] > -INFINITY && bounds[i] >= reached && first + i * kThreads != best.token;
    }
    if (!__syncthreads_or(is_contested)) return best;
  } else if (best.token != INT_MAX) {
    __shared__ float of_best;
    if (best.token % kThreads == first % kThreads) {  // the thread that has it
      const float logit = ValueAt(logits, (best.token - first) / kThreads);
      of_best = __double2float_rd(scores.Exact(best.token, logit));
    }
    __syncthreads();
    reached = of_best;
  }
  ExactBest exact;
#pragma unroll(kOnce ? 1 : kCount)
  for (int i = 0; i < kCount; ++i) {
    const int token = first + i * kThreads;
    const float logit = ValueAt(logits, i);
    float bound = kOnce ? logit : ValueAt(bounds, i);
    if (kOnce && logit > -INFINITY) bound = scores.Bound(token, logit);
    if (bound == -INFINITY || bound < reached) continue;
    const double score = scores.Exact(token, logit);
    if (score > -INFINITY) exact.Take({score, token});
  }
  __syncthreads();
  exact = BlockBest(exact, shared);
  __syncthreads();
  return {__double2float_ru(exact.score), exact.token};
}

// kAlone: no pass came before; chunks take their own largest logit for that of the row. kCuts: rows may have
// top_k or top_p. `zeros`: a chunk of them, to rehearse with.
template <int kCount, bool kAlone, bool kCuts>
__global__ void __launch_bounds__(kThreads, 4)
    DrawKernel(const SampleRow* rows, const SampleSequence* sequences, int vocab_size, ChunkResults chunks,
               const int* zeros, int32_t* accepted, int32_t* tokens, RowStatistics* statistics) {
  __shared__ ExactBest shared[kThreads / 32];
  __shared__ SampleRow rehearsed_row;
  if (threadIdx.x == 0) {
    rehearsed_row = SampleRow();
    rehearsed_row.logits = reinterpret_cast<const float*>(zeros);
    rehearsed_row.inverse_temperature = 1;
  }
  __syncthreads();
  // Others take their time anyway, or more registers than there are.
  constexpr bool kRehearses = kAlone && kCount == kFewTokens;
  constexpr bool kOnce = !kAlone;
  RehearseAndRun(kRehearses, [&](bool is_real) {
    const bool real = !kRehearses || is_real;
    const int num_chunks = real ? gridDim.x : 1;
    const int chunk = real ? blockIdx.x : 0;
    const int r = real ? blockIdx.y : 0;
    const SampleRow* const all_rows = real ? rows : &rehearsed_row;
    const SampleRow& row = all_rows[r];
    const SampleSequence sequence = real ? sequences[row.sequence] : SampleSequence();
    const bool by_rejection = !kAlone && sequence.by_rejection;
    const int drawing = by_rejection ? chunks.drawing[row.sequence] : 0;
    if (by_rejection && drawing != r - sequence.first_row) return;
    const bool residual = by_rejection && drawing < sequence.num_drafts && row.inverse_temperature > 0;
    // What chunks have told.
    ChunkResults told = chunks;
    if (!real) {
      told.largest = reinterpret_cast<float*>(const_cast<int*>(zeros));
      told.sums = reinterpret_cast<double*>(told.largest);
      told.best = reinterpret_cast<Best*>(told.largest);
    }

    const int place = r * num_chunks + chunk;
    const int fallback = gridDim.y * num_chunks;
    float logits[kCount];
    float largest = LoadLogits(row.logits, chunk, vocab_size, logits);
    if (kAlone) {
      largest = BlockMax(largest, reinterpret_cast<float*>(shared));
      __syncthreads();
      if (real && threadIdx.x == 0) chunks.largest[place] = largest;
      if (statistics != nullptr) {
        const double sum = ChunkSum<false>(row, chunk, logits, largest, largest, RowCut(),
                                           reinterpret_cast<double*>(shared));
        if (real && threadIdx.x == 0) chunks.sums[place] = sum;
        __syncthreads();
      }
    } else {
      largest = RowLargest(told, r, num_chunks);
    }
    const RowCut cut = kCuts ? CutOfRow(told, r) : RowCut();
    Best best;
    if (CanDraw(largest)) {
      const double log_normalizer =
          residual ? RowLogNormalizer(told, r, num_chunks, largest, row.inverse_temperature) : 0;
      best = BestOfChunk<kOnce>(Scores<kCuts>(row, largest, cut, log_normalizer, residual), logits, chunk,
                                shared);
    }
    if (real && threadIdx.x == 0) chunks.best[place] = best;
    if (residual && CanDraw(largest)) {
      __syncthreads();
      best = BestOfChunk<kOnce>(Scores<kCuts>(row, largest, cut, 0, false), logits, chunk, shared);
      if (threadIdx.x == 0) chunks.best[fallback + place] = best;
    }
    const int blocks = by_rejection ? num_chunks : num_chunks * (sequence.num_drafts + 1);
    if (real && !IsLastBlock(chunks.arrivals + CudaQueue::kZeros / 2 + row.sequence, blocks)) return;

    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (statistics != nullptr) {  // the first warp has other work
      for (int k = kThreads / 32 - 1 - warp; k <= sequence.num_drafts; k += kThreads / 32) {
        const int of = sequence.first_row + k;
        const float of_row = RowLargest(told, of, num_chunks);
        const double log_normalizer =
            RowLogNormalizer(told, of, num_chunks, of_row, all_rows[of].inverse_temperature);
        const RowCut of_cut = kCuts ? CutOfRow(told, of) : RowCut();
        if (real && lane == 0) statistics[of] = {log_normalizer, of_row, of_cut};
      }
    }
    if (warp != 0) return;
    for (int k = drawing;; ++k) {
      const int judge = sequence.first_row + k;
      const SampleRow& j = all_rows[judge];
      const Best* const of_chunks = told.best + judge * num_chunks;
      const float* const largest_of_chunks = told.largest + judge * num_chunks;
      const float of_row = RowLargest(told, judge, num_chunks);
      const RowCut of_cut = kCuts ? CutOfRow(told, judge) : RowCut();
      int token = 0;
      if (CanDraw(of_row)) {
        const double log_normalizer =
            residual ? RowLogNormalizer(told, judge, num_chunks, of_row, j.inverse_temperature) : 0;
        const bool lift = kAlone && j.inverse_temperature > 0;
        token = RowToken(Scores<kCuts>(j, of_row, of_cut, log_normalizer, residual), j, of_row, of_chunks,
                         largest_of_chunks, num_chunks, lift);
        if (token == INT_MAX) {  // nothing is left of p - q
          token = RowToken(Scores<kCuts>(j, of_row, of_cut, 0, false), j, of_row, of_chunks + fallback,
                           largest_of_chunks, num_chunks, lift);
        }
        if (!by_rejection && k < sequence.num_drafts && token == j.draft) continue;
      }
      if (real && lane == 0) {
        accepted[row.sequence] = CanDraw(of_row) ? k : kSampleError;
        tokens[row.sequence] = token;
      }
      return;
    }
  });
}

// Rejection must know all probabilities before it draws.
bool Judges(const SampleArgs& args) {
  return args.normalize && args.num_rows > args.num_sequences;
}

// The arguments of all passes, in chunks of kCount * kThreads tokens.
template <int kCount>
struct Passes {
  const KernelContext& ctx;
  const SampleArgs& args;
  dim3 grid;
  ChunkResults chunks;

  Passes(const KernelContext& ctx, const SampleArgs& args)
      : ctx(ctx),
        args(args),
        grid(CeilDiv(args.vocab_size, kCount * kThreads), static_cast<unsigned>(args.num_rows)) {
    static_assert(kCount * kThreads <= CudaQueue::kZeros);
    const int64_t places = int64_t{args.num_rows} * grid.x;
    chunks = {.largest = ctx.scratch->Allocate<float>(places),
              .sums = ctx.scratch->Allocate<double>(places),
              .best = ctx.scratch->Allocate<Best>(2 * places),
              .drawing = ctx.scratch->Allocate<int>(args.num_sequences),
              .arrivals = DeviceOf(ctx).zeros(),
              .bins = args.has_cuts ? ctx.scratch->Allocate<CutBins>(args.num_rows) : nullptr,
              .cuts = args.has_cuts ? ctx.scratch->Allocate<RowCut>(args.num_rows) : nullptr};
  }

  template <typename Kernel>
  void Scan(const Kernel& kernel) const {
    Launch(ctx, kernel, grid, kThreads, 0, args.rows, args.vocab_size, chunks);
  }
  template <typename Kernel>
  void Sum(const Kernel& kernel) const {
    Launch(ctx, kernel, grid, kThreads, 0, args.rows, args.sequences, args.vocab_size, chunks);
  }
  template <typename Kernel>
  void Draw(const Kernel& kernel) const {
    Launch(ctx, kernel, grid, kThreads, 0, args.rows, args.sequences, args.vocab_size, chunks,
           static_cast<const int*>(chunks.arrivals), args.accepted, args.tokens, args.statistics);
  }
};

template <int kCount>
void RunUncut(const KernelContext& ctx, const SampleArgs& args) {
  ArenaScope scope(*ctx.scratch);
  const Passes<kCount> passes(ctx, args);
  if (!Judges(args)) return passes.Draw(DrawKernel<kCount, true, false>);
  passes.Sum(SumKernel<kCount, false>);
  passes.Draw(DrawKernel<kCount, false, false>);
}

// A cut must know the largest logit. One size of chunks serves all vocabularies: these kernels take long to
// compile.
void RunCut(const KernelContext& ctx, const SampleArgs& args) {
  ArenaScope scope(*ctx.scratch);
  const Passes<kTokens> passes(ctx, args);
  passes.Scan(LargestKernel);
  if (args.has_cuts) {
    passes.Scan(CountKernel);
    passes.Scan(CutKernel);
  }
  if (args.normalize) passes.Sum(SumKernel<kTokens, true>);
  passes.Draw(args.has_cuts ? DrawKernel<kTokens, false, true> : DrawKernel<kTokens, false, false>);
}

}  // namespace

void Sample(const KernelContext& ctx, const SampleArgs& args) {
  CHECK(args.statistics == nullptr || args.normalize);
  CHECK(args.num_sequences <= CudaQueue::kZeros / 2);
  if (args.has_min_p || args.has_cuts) return RunCut(ctx, args);
  (args.vocab_size <= kSmallVocabulary ? RunUncut<kFewTokens> : RunUncut<kTokens>)(ctx, args);
}

}  // namespace foresight::cuda
