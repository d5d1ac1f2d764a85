// One thread block: plans are small, and what waits for them is the next launch.
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/launch.cuh"

namespace foresight::cuda {
namespace {

constexpr int kThreadsMin = 128;
constexpr int kThreadsMax = 1024;
// Above the bits of 1.0, the largest survival, plus one.
constexpr int kKeysEnd = 0x3f800002;

struct Plan {
  int count;
  int drafts_max;
  const PlannedSequence* sequences;
  int num_sequences;
  const ConfidenceScale* scales;
  const TokenId* known_tokens;
  int rows;
  int num_logits;
  bool heads_all;
  int layers;
  int64_t layer_views;
  SequenceRows* views;
  TokenId* tokens;
  int64_t* positions;
  int32_t* logit_rows;
  int32_t* verified;
};

__device__ float ConfidenceOf(const Plan& plan, int r, int j) {
  const PlannedSequence& s = plan.sequences[r];
  if (j >= s.num_drafts) return 0;
  const int64_t place = int64_t{j} * s.stride;
  DraftEvidence evidence;
  evidence.logit = s.logits[place];
  if (s.margins != nullptr) evidence.margin = s.margins[place];
  return static_cast<float>(plan.scales[s.first_scale + j].Confidence(evidence));
}

// All threads get it.
template <typename Predicate>
__device__ int Count(int end, const Predicate& predicate) {
  int count = 0;
  for (int first = 0; first < end; first += static_cast<int>(blockDim.x)) {
    const int i = first + static_cast<int>(threadIdx.x);
    count += __syncthreads_count(i < end && predicate(i));
  }
  return count;
}

// The largest x in [low, high) for which `holds`, which it does at `low` and up to some x.
template <typename Holds>
__device__ int LastOf(int low, int high, const Holds& holds) {
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    (holds(middle) ? low : high) = middle;
  }
  return low;
}

__device__ int WarpPrefixSum(int x) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int before = __shfl_up_sync(0xffffffff, x, distance);
    if (static_cast<int>(threadIdx.x % 32) >= distance) x += before;
  }
  return x;
}

// By the first warp: firsts[i] = value(0) + .. + value(i - 1), up to i = end.
template <typename Value>
__device__ void SumUp(int end, const Value& value, int* firsts) {
  int sum = 0;
  for (int first = 0; first < end; first += 32) {
    const int i = first + static_cast<int>(threadIdx.x);
    const int upto = sum + WarpPrefixSum(i < end ? value(i) : 0);
    if (i < end) firsts[i + 1] = upto;
    sum = __shfl_sync(0xffffffff, upto, 31);
  }
  if (threadIdx.x == 0) firsts[0] = 0;
}

// In which part of what SumUp has summed up item i is.
__device__ int PartOf(const int* firsts, int parts, int i) {
  return LastOf(0, parts, [&](int part) { return firsts[part] <= i; });
}

__global__ void __launch_bounds__(kThreadsMax) PlanKernel(const __grid_constant__ Plan plan) {
  AwaitInputs();
  // Draft j of sequence r at j * S + r, as ties go: its confidence, and survivals as keys, which are 0 where
  // there is no draft.
  __shared__ float confidences[kPlannedDraftsMax];
  __shared__ int keys[kPlannedDraftsMax];
  __shared__ int first_rows[kPlannedSequencesMax + 1];
  __shared__ int first_logits[kPlannedSequencesMax + 1];
  __shared__ int first_draws[kPlannedSequencesMax + 1];
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const int num_sequences = plan.num_sequences;
  const int end = plan.drafts_max * num_sequences;
  for (int i = thread; i < end; i += threads) {
    confidences[i] = ConfidenceOf(plan, i % num_sequences, i / num_sequences);
  }
  __syncthreads();
  for (int i = thread; i < end; i += threads) {
    const int r = i % num_sequences;
    double survival = 1;
    for (int at = r; at <= i; at += num_sequences) survival = __dmul_rn(survival, confidences[at]);
    const int bits = survival > 0 ? __float_as_int(static_cast<float>(survival)) : 0;
    keys[i] = i / num_sequences < plan.sequences[r].num_drafts ? bits + 1 : 0;
  }
  __syncthreads();

  // The last key that is verified, and of those that are equal to it the last place.
  const int last_key = LastOf(
      1, kKeysEnd, [&](int key) { return Count(end, [&](int i) { return keys[i] >= key; }) >= plan.count; });
  const int ties = plan.count - Count(end, [&](int i) { return keys[i] > last_key; });
  const int last_place = LastOf(
      0, end, [&](int place) { return Count(place, [&](int i) { return keys[i] == last_key; }) < ties; });
  const auto verified = [&](int r) {
    int count = 0;
    for (int i = r; i < end; i += num_sequences) {
      count += keys[i] > last_key || (keys[i] == last_key && i <= last_place);
    }
    return count;
  };
  if (thread < 32) {
    SumUp(
        num_sequences, [&](int r) { return plan.sequences[r].known_rows + verified(r); }, first_rows);
    SumUp(
        num_sequences, [&](int r) { return plan.sequences[r].has_logits != 0 ? 1 + verified(r) : 0; },
        first_logits);
    SumUp(
        num_sequences, [&](int r) { return plan.sequences[r].has_logits != 0 ? 1 : 0; }, first_draws);
  }
  __syncthreads();

  for (int i = thread; i < plan.layers * num_sequences; i += threads) {
    const int r = i % num_sequences;
    SequenceRows& view = plan.views[i / num_sequences * plan.layer_views + r];
    view.first_row = first_rows[r];
    view.num_rows = first_rows[r + 1] - first_rows[r];
  }
  for (int r = thread; r < num_sequences; r += threads) {
    if (plan.sequences[r].has_logits != 0) {
      plan.verified[first_draws[r]] = first_logits[r + 1] - first_logits[r] - 1;
    }
  }
  const int own_rows = first_rows[num_sequences];
  for (int i = thread; i < plan.rows; i += threads) {
    const int row = min(i, own_rows - 1);
    const int r = PartOf(first_rows, num_sequences, row);
    const PlannedSequence& s = plan.sequences[r];
    const int at = row - first_rows[r];
    plan.tokens[i] = at < s.known_rows ? plan.known_tokens[s.first_known + at]
                                       : s.tokens[int64_t{at - s.known_rows} * s.stride];
    plan.positions[i] = plan.views[r].first_position + at;
  }
  const int own_logits = first_logits[num_sequences];
  for (int i = thread; i < plan.num_logits; i += threads) {
    const int logit = min(i, own_logits - 1);
    // Of sequences that begin at the same one, the last is the one that has logits.
    const int r = PartOf(first_logits, num_sequences, logit);
    plan.logit_rows[i] =
        plan.heads_all ? i : first_rows[r] + plan.sequences[r].known_rows - 1 + logit - first_logits[r];
  }
}

__global__ void __launch_bounds__(kThreadsMax)
    PlaceDrawsKernel(const __grid_constant__ PlaceDrawsArgs args, const SampleSequence* sequences,
                     int num_sequences) {
  AwaitInputs();
  __shared__ int first_rows[kPlannedSequencesMax + 1];
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  if (thread < 32) {
    SumUp(
        num_sequences, [&](int s) { return args.verified[s] + 1; }, first_rows);
  }
  __syncthreads();
  for (int s = thread; s < num_sequences; s += threads) {
    SampleSequence placed = sequences[s];
    placed.first_row = first_rows[s];
    placed.num_drafts = args.told[s] = args.verified[s];
    args.placed_sequences[s] = placed;
  }
  for (int row = thread; row < args.num_rows; row += threads) {
    const int s = PartOf(first_rows, num_sequences, row);
    const int from = sequences[s].first_row + row - first_rows[s];
    SampleRow placed = args.rows[from];
    placed.logits = args.logits + int64_t{row} * args.vocab_size;
    if (args.drafts[from] != nullptr) placed.draft = *args.drafts[from];
    args.placed_rows[row] = placed;
  }
}

// As many as there is work for, in whole warps.
int Threads(int64_t items) {
  const int64_t wanted = (items + 31) / 32 * 32;
  return static_cast<int>(wanted < kThreadsMin ? kThreadsMin : wanted < kThreadsMax ? wanted : kThreadsMax);
}

}  // namespace

void PlanDrafts(const KernelContext& ctx, const PlanDraftsArgs& args) {
  const int num_sequences = static_cast<int>(args.sequences.size());
  CHECK(args.count > 0 && num_sequences <= kPlannedSequencesMax &&
        num_sequences * args.drafts_max <= kPlannedDraftsMax);
  const Plan plan = {.count = args.count,
                     .drafts_max = args.drafts_max,
                     .sequences = args.sequences.data(),
                     .num_sequences = num_sequences,
                     .scales = args.scales,
                     .known_tokens = args.known_tokens,
                     .rows = args.rows,
                     .num_logits = args.num_logits,
                     .heads_all = args.heads_all,
                     .layers = args.layers,
                     .layer_views = args.layer_views,
                     .views = args.views,
                     .tokens = args.tokens,
                     .positions = args.positions,
                     .logit_rows = args.logit_rows,
                     .verified = args.verified};
  Launch(ctx, PlanKernel, 1, Threads(int64_t{num_sequences} * args.drafts_max), 0, plan);
}

void PlaceDraws(const KernelContext& ctx, const PlaceDrawsArgs& args) {
  const int num_sequences = static_cast<int>(args.sequences.size());
  CHECK(num_sequences <= kPlannedSequencesMax);
  Launch(ctx, PlaceDrawsKernel, 1, Threads(args.num_rows), 0, args, args.sequences.data(), num_sequences);
}

}  // namespace foresight::cuda
