// Where top_k and top_p cut a row.
//
// Blocks count the row's tokens into bins of log-weight, and the last one finds the bins in which the cut
// falls. Sums are integers there, so that no order of the blocks changes them. In a second pass blocks
// collect the tokens of these bins, and the last one puts them in order. Where they are more than can be put
// in order (all logits are equal, say), one block halves what they are in until few are left.
#pragma once

#include "kernels/sampling/row_chunks.cuh"

namespace foresight::cuda {

// Log-weight -x is in a bin by the leading bits of 1 + x: 64 bins for every power of two, and the last one
// for all the rest, whose weights are 0 in float64.
constexpr int kBinShift = 23 - 6;
constexpr int kFirstBin = 127 << 6;

__device__ inline int BinOf(double log_weight) {
  const float x = static_cast<float>(-log_weight) + 1;
  return min((__float_as_int(x) >> kBinShift) - kFirstBin, CutBins::kCount - 1);
}

// The largest log-weight in a bin, but for rounding.
__device__ inline double BinBegin(int bin) {
  return 1 - double{__int_as_float((bin + kFirstBin) << kBinShift)};
}

// exp(x) for -1/2 <= x <= 0, in fixed point, within 2^-40 near 0 and 2^-27 at the other end; the bins that
// are so wide have weights below 1e-13.
__device__ inline unsigned long long FixedExp(double x) {
  double sum = 1;
#pragma unroll
  for (int n = 8; n > 0; --n) sum = fma(sum, x * (1.0 / n), 1.0);
  return __double2ull_rn(sum * CutBins::kOne);
}
constexpr double kLowestCounted = -63;  // log-weight: all tokens of a row below it have a weight of 1e-22

// Tokens in the order of the cuts: the larger, the earlier. Both zeros are the same.
__device__ inline uint64_t CutKey(float logit, int token) {
  return uint64_t{Ordered(logit + 0.0f)} << 32 | ~static_cast<uint32_t>(token);
}
__device__ inline float LogitOf(uint64_t key) {
  return FromOrdered(static_cast<uint32_t>(key >> 32));
}
__device__ inline RowCut CutOf(uint64_t key) {
  return {LogitOf(key), static_cast<int>(~static_cast<uint32_t>(key))};
}

struct ReachesCount {
  uint32_t count;
  __device__ bool operator()(const CutSums& sums) const { return sums.count >= count; }
};

struct ReachesWeight {
  double weight;
  __device__ bool operator()(const CutSums& sums) const { return sums.weight >= weight; }
};

// A bin that has tokens.
struct BinPlace {
  int bin;
  uint32_t count;
  CutSums before;
};

constexpr int kSortedMax = kThreads;

struct CutShared {
  unsigned long long sorted[kSortedMax];
  CutSums warps[kThreads / 32];
  uint32_t counts[kThreads / 32];
  unsigned long long weights[kThreads / 32];
  unsigned long long ends[2];  // the least and the largest key
  int num_sorted;
  int first;
  int last;
  BinPlace place;
  CutSums sums;
};

// Thread by thread: what those before it have; `all` gets the sum.
__device__ inline CutSums SumsBefore(const CutSums& own, CutShared& shared, CutSums& all) {
  const int lane = threadIdx.x % 32;
  CutSums sums = own;  // of this lane and those before
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const CutSums other = {__shfl_up_sync(0xffffffff, sums.count, distance),
                           __shfl_up_sync(0xffffffff, sums.weight, distance)};
    if (lane >= distance) sums = other + sums;
  }
  __syncthreads();
  if (lane == 31) shared.warps[threadIdx.x / 32] = sums;
  __syncthreads();
  CutSums before;
  all = {};
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w == threadIdx.x / 32) before = all;
    all = all + shared.warps[w];
  }
  const CutSums of_lane_before = {__shfl_up_sync(0xffffffff, sums.count, 1),
                                  __shfl_up_sync(0xffffffff, sums.weight, 1)};
  return lane == 0 ? before : before + of_lane_before;
}

// By a block, once all have counted.
class CutFinder {
 public:
  // `largest`: of the row; `largest_of_chunks` [num_chunks], of `chunk_tokens` tokens each. `keys`
  // [CutBins::kKeysMax], in shared memory; null for FindBins.
  __device__ CutFinder(const SampleRow& row, int vocab_size, float largest, const float* largest_of_chunks,
                       int num_chunks, int chunk_tokens, CutShared& shared, unsigned long long* keys)
      : row_(row),
        vocab_size_(vocab_size),
        largest_(largest),
        largest_of_chunks_(largest_of_chunks),
        num_chunks_(num_chunks),
        chunk_tokens_(chunk_tokens),
        shared_(shared),
        keys_(keys) {}

  // In which bins the cut falls: `bins` is told.
  __device__ void FindBins(CutBins& bins) {
    const CutSums all = LoadBins(bins);
    const bool by_count = IsCutByCount(all);
    BinPlace first = {};
    BinPlace last = {-1, 0, {}};
    double weight = all.weight;  // at least so much is left by top_k
    if (by_count) {
      first = last = FindBin(TopK());
      weight = last.before.weight;
    }
    if (row_.top_p < 1) {
      first = FindBin(TopPOf(weight));
      if (!by_count) last = first;
      if (first.bin > last.bin) first = last;  // by rounding
    }
    if (threadIdx.x != 0) return;
    const uint32_t count = last.before.count + last.count - first.before.count;
    bins.first_bin = count <= CutBins::kKeysMax ? first.bin : CutBins::kCount;
    bins.last_bin = last.bin;
    bins.before = first.before;
    bins.all = all;
  }

  // The row's cut, which falls among the keys that are collected.
  __device__ RowCut FindAmongKeys(const CutBins& bins) {
    num_keys_ = __ldcg(&bins.num_keys);
    const BinPlace place = {bins.first_bin, static_cast<uint32_t>(num_keys_), bins.before};
    const bool by_count = IsCutByCount(bins.all);
    double weight = bins.all.weight;
    if (num_keys_ <= kSortedMax) {
      if (threadIdx.x < num_keys_) shared_.sorted[threadIdx.x] = __ldcg(&bins.keys[threadIdx.x]);
      Sort(num_keys_);
      int kept = num_keys_;
      const auto walk = [&](const auto& reaches) {
        const CutSums sums = Walk(kept, place.before, reaches);
        kept = static_cast<int>(sums.count - place.before.count);
        return sums.weight;
      };
      if (by_count) weight = walk(TopK());
      if (row_.top_p < 1) walk(TopPOf(weight));
      return CutOf(shared_.sorted[kept - 1]);
    }
    for (int i = threadIdx.x; i < num_keys_; i += kThreads) keys_[i] = __ldcg(&bins.keys[i]);
    uint64_t least = 0;  // key that is kept
    if (by_count) weight = Search<true>(place, TopK(), least).weight;
    if (row_.top_p < 1) Search<true>(place, TopPOf(weight), least);
    return CutOf(least);
  }

  // The same where they are not.
  __device__ RowCut FindInRow(const CutBins& bins) {
    const CutSums all = LoadBins(bins);
    uint64_t least = 0;
    double weight = all.weight;
    if (IsCutByCount(all)) weight = Search<false>(FindBin(TopK()), TopK(), least).weight;
    if (row_.top_p < 1) {
      const auto reaches = TopPOf(weight);
      Search<false>(FindBin(reaches), reaches, least);
    }
    return CutOf(least);
  }

 private:
  static constexpr int kOwnBins = CutBins::kCount / kThreads;

  __device__ ReachesCount TopK() const { return {static_cast<uint32_t>(row_.top_k)}; }
  __device__ ReachesWeight TopPOf(double all) const { return {__dmul_rn(row_.top_p, all)}; }
  __device__ bool IsCutByCount(const CutSums& all) const {
    return row_.top_k > 0 && TopK().count < all.count;
  }
  __device__ double LogWeightOf(float logit) const {
    return LogWeight(logit, largest_, row_.inverse_temperature);
  }

  // Thread i has bins kOwnBins * i, ...; gives the sums of all.
  __device__ CutSums LoadBins(const CutBins& bins) {
    CutSums own;
#pragma unroll
    for (int i = 0; i < kOwnBins; ++i) {
      const int bin = kOwnBins * static_cast<int>(threadIdx.x) + i;
      const auto weight = static_cast<double>(__ldcg(&bins.weights[bin]));
      bins_[i] = {__ldcg(&bins.counts[bin]), weight / CutBins::kOne * exp(BinBegin(bin))};
      own = own + bins_[i];
    }
    CutSums all;
    before_ = SumsBefore(own, shared_, all);
    return all;
  }

  // The first bin that has tokens and with which their sums reach; where rounding leaves none, the last one.
  template <typename Reaches>
  __device__ BinPlace FindBin(const Reaches& reaches) {
    __syncthreads();
    if (threadIdx.x == 0) {
      shared_.first = INT_MAX;
      shared_.last = 0;
    }
    __syncthreads();
    const int begin = kOwnBins * static_cast<int>(threadIdx.x);
    CutSums sums = before_;
#pragma unroll
    for (int i = 0; i < kOwnBins; ++i) {
      sums = sums + bins_[i];
      if (bins_[i].count == 0) continue;
      atomicMax(&shared_.last, begin + i);
      if (reaches(sums)) atomicMin(&shared_.first, begin + i);
    }
    __syncthreads();
    const int bin = min(shared_.first, shared_.last);
    sums = before_;
#pragma unroll
    for (int i = 0; i < kOwnBins; ++i) {
      if (begin + i == bin) shared_.place = {bin, bins_[i].count, sums};
      sums = sums + bins_[i];
    }
    __syncthreads();
    return shared_.place;
  }

  // The first token of a bin, or of all that are collected, none behind `least`, with which the sums reach,
  // or the last one; `least` becomes its key. Gives the sums with it.
  template <bool kCollected, typename Reaches>
  __device__ CutSums Search(BinPlace place, const Reaches& reaches, uint64_t& least) {
    uint64_t low = least;
    uint64_t high = ~uint64_t{0};
    if (place.count > kSortedMax) Halve<kCollected>(place, reaches, low, high);
    Gather<kCollected>(place.bin, low, high);
    const int count = shared_.num_sorted;
    if (count == 0) return place.before;  // rounding has led behind `least`
    Sort(count);
    const CutSums sums = Walk(count, place.before, reaches);
    least = shared_.sorted[sums.count - place.before.count - 1];
    __syncthreads();
    return sums;
  }

  // The sums with the first of `count` sorted keys with which they reach, or with all.
  template <typename Reaches>
  __device__ CutSums Walk(int count, const CutSums& before, const Reaches& reaches) {
    const int i = threadIdx.x;
    CutSums own;
    if (i < count) own = {1, exp(LogWeightOf(LogitOf(shared_.sorted[i])))};
    CutSums all;
    const CutSums sums = before + SumsBefore(own, shared_, all) + own;
    if (i == 0) shared_.first = count - 1;
    __syncthreads();
    if (i < count && reaches(sums)) atomicMin(&shared_.first, i);
    __syncthreads();
    if (i == shared_.first) shared_.sums = sums;
    __syncthreads();
    return shared_.sums;
  }

  // Until few enough are between low and high; place.before grows by those above.
  template <bool kCollected, typename Reaches>
  __device__ void Halve(BinPlace& place, const Reaches& reaches, uint64_t& low, uint64_t& high) {
    if (threadIdx.x == 0) {
      shared_.ends[0] = high;
      shared_.ends[1] = low;
    }
    __syncthreads();
    uint64_t least = high;
    uint64_t largest = low;
    Visit<kCollected>(place.bin, low, high, [&](uint64_t key) {
      least = min(least, key);
      largest = max(largest, key);
    });
    atomicMin(&shared_.ends[0], static_cast<unsigned long long>(least));
    atomicMax(&shared_.ends[1], static_cast<unsigned long long>(largest));
    __syncthreads();
    low = shared_.ends[0];
    high = shared_.ends[1];
    place.count = SumsBetween<kCollected>(place.bin, low, high).count;
    while (place.count > kSortedMax) {
      const uint64_t middle = low + (high - low) / 2;
      const CutSums upper = SumsBetween<kCollected>(place.bin, middle + 1, high);
      if (reaches(place.before + upper)) {
        low = middle + 1;
        place.count = upper.count;
      } else {
        high = middle;
        place.count -= upper.count;
        place.before = place.before + upper;
      }
    }
  }

  // In fixed point, relative to the largest weight that the bin may have: collected keys have no order.
  template <bool kCollected>
  __device__ CutSums SumsBetween(int bin, uint64_t low, uint64_t high) {
    constexpr double kOne = int64_t{1} << 44;
    const double begin = BinBegin(bin);
    uint32_t count = 0;
    unsigned long long weight = 0;
    Visit<kCollected>(bin, low, high, [&](uint64_t key) {
      ++count;
      weight += __double2ull_rn(exp(LogWeightOf(LogitOf(key)) - begin) * kOne);
    });
#pragma unroll
    for (int other = 16; other > 0; other /= 2) {
      count += __shfl_xor_sync(0xffffffff, count, other);
      weight += __shfl_xor_sync(0xffffffff, weight, other);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
      shared_.counts[threadIdx.x / 32] = count;
      shared_.weights[threadIdx.x / 32] = weight;
    }
    __syncthreads();
    count = 0;
    weight = 0;
#pragma unroll
    for (int w = 0; w < kThreads / 32; ++w) {
      count += shared_.counts[w];
      weight += shared_.weights[w];
    }
    return {count, static_cast<double>(weight) / kOne * exp(begin)};
  }

  template <bool kCollected>
  __device__ void Gather(int bin, uint64_t low, uint64_t high) {
    __syncthreads();
    if (threadIdx.x == 0) shared_.num_sorted = 0;
    __syncthreads();
    Visit<kCollected>(bin, low, high,
                      [&](uint64_t key) { shared_.sorted[atomicAdd(&shared_.num_sorted, 1)] = key; });
    __syncthreads();
  }

  // Keys from low to high: of a bin, or of all that are collected.
  template <bool kCollected, typename VisitKey>
  __device__ void Visit(int bin, uint64_t low, uint64_t high, const VisitKey& visit) {
    if (!kCollected) return VisitBin(bin, low, high, visit);
    __syncthreads();
    for (int i = threadIdx.x; i < num_keys_; i += kThreads) {
      const uint64_t key = keys_[i];
      if (key >= low && key <= high) visit(key);
    }
  }

  // Read from the row; a warp has a chunk.
  template <typename VisitKey>
  __device__ void VisitBin(int bin, uint64_t low, uint64_t high, const VisitKey& visit) {
    constexpr int kBatch = 8;  // loads at once
    const int lane = threadIdx.x % 32;
    for (int c = threadIdx.x / 32; c < num_chunks_; c += kThreads / 32) {
      const float largest = __ldcg(largest_of_chunks_ + c);
      if (BinOf(LogWeightOf(largest)) > bin) continue;
      const int end = min((c + 1) * chunk_tokens_, vocab_size_);
      for (int token = c * chunk_tokens_ + lane; token < end; token += 32 * kBatch) {
        float logits[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          logits[i] = token + 32 * i < end ? row_.logits[token + 32 * i] : -INFINITY;
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          const double w = LogWeightOf(logits[i]);
          if (!(w >= row_.lowest_log_weight) || BinOf(w) != bin) continue;
          const uint64_t key = CutKey(logits[i], token + 32 * i);
          if (key >= low && key <= high) visit(key);
        }
      }
    }
  }

  // The largest first, by a network of comparisons, of which a warp has those within 64 keys.
  __device__ void Sort(int count) {
    const int size = count == 1 ? 1 : 1 << (32 - __clz(count - 1));
    const int i = threadIdx.x;
    unsigned long long* const sorted = shared_.sorted;
    if (i >= count && i < size) sorted[i] = 0;
    __syncthreads();
    for (int length = 2; length <= size; length *= 2) {
      for (int distance = length / 2; distance > 0; distance /= 2) {
        if (i < size / 2) {
          const int a = 2 * i - (i & (distance - 1));
          const unsigned long long x = sorted[a];
          const unsigned long long y = sorted[a + distance];
          if ((x < y) != ((a & length) != 0)) {
            sorted[a] = y;
            sorted[a + distance] = x;
          }
        }
        const int next = distance > 1 ? distance / 2 : length;
        if (max(distance, next) > 32) {
          __syncthreads();
        } else {
          __syncwarp();
        }
      }
    }
    __syncthreads();
  }

  const SampleRow& row_;
  const int vocab_size_;
  const float largest_;
  const float* const largest_of_chunks_;
  const int num_chunks_;
  const int chunk_tokens_;
  CutShared& shared_;
  unsigned long long* const keys_;
  int num_keys_ = 0;
  CutSums bins_[kOwnBins];
  CutSums before_;  // bins_
};

// Behind the pass that finds the largest logits.
static __global__ void __launch_bounds__(kThreads)
    CountKernel(const SampleRow* rows, int vocab_size, ChunkResults chunks) {
  AwaitInputs();
  __shared__ CutShared shared;
  __shared__ uint32_t counts[CutBins::kCount];
  __shared__ uint32_t low[CutBins::kCount];  // halves of weights, whose sums over a chunk have room
  __shared__ uint32_t high[CutBins::kCount];
  constexpr int kHalfBits = CutBins::kFractionBits / 2;
  const int num_chunks = gridDim.x;
  const int r = blockIdx.y;
  const SampleRow& row = rows[r];
  CutBins& bins = chunks.bins[r];
  const bool is_cut = row.top_k > 0 || row.top_p < 1;
  float logits[kTokens];
  if (is_cut) LoadLogits(row.logits, blockIdx.x, vocab_size, logits);
  const float largest = RowLargest(chunks, r, num_chunks);
  if (!is_cut || !CanDraw(largest)) {
    if (blockIdx.x == 0 && threadIdx.x == 0) bins.last_bin = -1;
    return;
  }
  for (int bin = threadIdx.x; bin < CutBins::kCount; bin += kThreads) {
    counts[bin] = low[bin] = high[bin] = 0;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    const double w = LogWeight(logits[i], largest, row.inverse_temperature);
    if (!(w >= row.lowest_log_weight)) continue;
    const int bin = BinOf(w);
    atomicAdd(&counts[bin], 1);
    if (w < kLowestCounted) continue;
    const unsigned long long fixed = FixedExp(w - BinBegin(bin));
    atomicAdd(&low[bin], static_cast<uint32_t>(fixed) & ((1u << kHalfBits) - 1));
    atomicAdd(&high[bin], static_cast<uint32_t>(fixed >> kHalfBits));
  }
  __syncthreads();
  for (int bin = threadIdx.x; bin < CutBins::kCount; bin += kThreads) {
    const uint32_t count = counts[bin];
    if (count == 0) continue;
    atomicAdd(&bins.counts[bin], count);
    atomicAdd(&bins.weights[bin], (static_cast<unsigned long long>(high[bin]) << kHalfBits) + low[bin]);
  }
  __syncthreads();
  if (!IsLastBlock(&bins.arrivals[0], num_chunks)) return;
  CutFinder(row, vocab_size, largest, chunks.largest + r * num_chunks, num_chunks, kTokens * kThreads, shared,
            nullptr)
      .FindBins(bins);
}

static __global__ void __launch_bounds__(kThreads, 3)
    CutKernel(const SampleRow* rows, int vocab_size, ChunkResults chunks) {
  AwaitInputs();
  __shared__ CutShared shared;
  __shared__ unsigned long long keys[CutBins::kKeysMax];
  const int num_chunks = gridDim.x;
  const int r = blockIdx.y;
  CutBins& bins = chunks.bins[r];
  const int first_bin = bins.first_bin;
  const int last_bin = bins.last_bin;
  if (last_bin < 0) {
    if (blockIdx.x == 0 && threadIdx.x == 0) chunks.cuts[r] = RowCut();
    return;
  }
  const bool are_many = first_bin == CutBins::kCount;
  if (are_many && blockIdx.x > 0) return;
  const SampleRow& row = rows[r];
  float logits[kTokens];
  LoadLogits(row.logits, blockIdx.x, vocab_size, logits);
  const float largest = RowLargest(chunks, r, num_chunks);
  if (!are_many) {
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const double w = LogWeight(logits[i], largest, row.inverse_temperature);
      const int bin = BinOf(w);
      if (!(w >= row.lowest_log_weight) || bin < first_bin || bin > last_bin) continue;
      const int token = (blockIdx.x * kTokens + i) * kThreads + threadIdx.x;
      bins.keys[atomicAdd(&bins.num_keys, 1)] = CutKey(logits[i], token);
    }
    __syncthreads();
    if (!IsLastBlock(&bins.arrivals[1], num_chunks)) return;
  }
  CutFinder finder(row, vocab_size, largest, chunks.largest + r * num_chunks, num_chunks, kTokens * kThreads,
                   shared, keys);
  const RowCut cut = are_many ? finder.FindInRow(bins) : finder.FindAmongKeys(bins);
  if (threadIdx.x == 0) chunks.cuts[r] = cut;
}

}  // namespace foresight::cuda
