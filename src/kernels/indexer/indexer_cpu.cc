// Scores by products with panels of keys (attention/panel_cpu.h), then an exact selection.
//
// A score is summed over the dims of a head in order, then over the heads in order, in a lane of its own: it
// depends on the row and the key alone. A panel is decoded once for a block of rows.
#include <cstring>

#include "base/thread_pool.h"
#include "kernels/indexer/indexer.h"
#include "tensor/formats.h"

// clang-format off
#include "kernels/cpu/isa_begin.h"
#include "kernels/cpu/simd.h"
#include "kernels/norm_rope/rotate_cpu.h"
#include "kernels/attention/panel_cpu.h"
// clang-format on

namespace foresight::FORESIGHT_ISA {
namespace {

constexpr int kRatio = 4;                 // tokens of a compressed entry in CSA layers
constexpr int64_t kRowBlock = 16;         // rows that share a decoded panel
constexpr int64_t kSegment = 16;          // panels of one parallel item
constexpr int64_t kTileRows = 64;         // rows at work at a time, fewer when
constexpr int64_t kTileScores = 1 << 22;  // their scores would be more than so many

int64_t Smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// The query as the keys are stored: rotated and, for packed keys, transformed and rounded like them.
void PrepareHead(const IndexerArgs& args, bool faithful, int64_t t, float* q) {
  const int dim = args.key.dim;
  const int pairs = args.rope_dim / 2;
  RotateRow(q + dim - args.rope_dim, pairs, args.cos + t * pairs, args.sin + t * pairs);
  if (faithful) RoundRow(q, dim);
  if (args.key.format == CacheFormat::kPacked) {
    HadamardRow(q, dim);
    RoundRow(q, dim);
    Fp4RoundTripRow(q, dim);
  }
}

// The bits of lanes whose value is `threshold` or more.
uint32_t AtLeast(const int32_t* p, int32_t threshold) {
  const I32 v = LoadUnitVector(p);
#ifdef FORESIGHT_AVX512
  return _mm512_cmpge_epi32_mask((__m512i)v, _mm512_set1_epi32(threshold));
#else
  const I32 yes = v >= threshold;
  return static_cast<uint32_t>(_mm256_movemask_ps((Vec)yes));
#endif
}

// Scores as integers of the same order, -0 equal to +0; lanes behind `count` up to a whole vector become the
// lowest.
void ToSortable(float* scores, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const I32 bits = (I32)(Load(scores + i) + Zero());  // -0 + 0 is +0
    const I32 sortable = bits ^ ((bits >> 31) & 0x7fffffff);
    std::memcpy(scores + i, &sortable, sizeof(sortable));
  }
  for (int64_t i = count; i % kLanes != 0; ++i) {
    const int32_t lowest = INT32_MIN;
    std::memcpy(scores + i, &lowest, 4);
  }
}

// The k largest of keys [count], ascending by index; of equal ones the first. 0 < k < count; keys are
// readable up to a whole vector and lowest there.
void SelectTopK(const int32_t* keys, int64_t count, int k, int32_t* picks) {
  // The k-th largest key, bit by bit from the top: the highest threshold that k keys reach. Counted from
  // INT32_MIN.
  uint32_t rank = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t candidate = rank | (1u << bit);
    const int32_t threshold = static_cast<int32_t>(candidate ^ 0x80000000u);
    I32 reached = {};
    for (int64_t i = 0; i < count; i += kLanes) reached -= LoadUnitVector(keys + i) >= threshold;
    int64_t total = 0;
    for (int j = 0; j < kLanes; ++j) total += reached[j];
    if (total >= k) rank = candidate;
    if (total == k) break;  // exactly the picks
  }
  const int32_t threshold = static_cast<int32_t>(rank ^ 0x80000000u);
  int64_t above = 0;
  for (int64_t i = 0; i < count; ++i) above += keys[i] > threshold;
  int64_t ties = k - above;  // how many of the equal ones, from the lowest index
  int64_t picked = 0;
  for (int64_t i = 0; i < count && picked < k; i += kLanes) {
    for (uint32_t bits = AtLeast(keys + i, threshold); bits != 0; bits &= bits - 1) {
      const int64_t s = i + __builtin_ctz(bits);
      if (keys[s] == threshold && ties-- <= 0) continue;
      picks[picked++] = static_cast<int32_t>(s);
    }
  }
}

template <typename Units>
class Scorer {
 public:
  Scorer(const KernelContext& ctx, const IndexerArgs& args, const SequenceRows& sequence)
      : ctx_(ctx), args_(args), sequence_(sequence), units_(args.key.dim / Units::kValues) {}

  int64_t Visible(int64_t i) const { return (sequence_.first_position + i + 1) / kRatio; }

  // Picks of the sequence's rows [begin, end), all of which see more than topk entries.
  void Run(int64_t begin, int64_t end) {
    ArenaScope scope(*ctx_.scratch);
    Arena& arena = *ctx_.scratch;
    stride_ = (Visible(end - 1) + kPanel - 1) / kPanel * kPanel;
    int64_t tile = Smaller(Smaller(kTileRows, end - begin), kTileScores / stride_);
    if (tile < 1) tile = 1;
    scores_ = arena.Allocate<float>(tile * stride_);
    queries_ = arena.Allocate<uint32_t>(tile * args_.heads * units_);
    panels_ = arena.Allocate<uint32_t>(ctx_.pool->num_threads() * PanelSize());
    for (int64_t row = begin; row < end; row += tile) RunTile(row, Smaller(row + tile, end));
  }

 private:
  int64_t PanelSize() const { return static_cast<int64_t>(units_ + kLanes) * kPanel; }

  void RunTile(int64_t begin, int64_t end) {
    const int64_t heads = args_.heads;
    constexpr int64_t kHeadsPerItem = 16;
    const int64_t queries = (end - begin) * heads;
    ctx_.pool->ParallelFor((queries + kHeadsPerItem - 1) / kHeadsPerItem, [&](int64_t item, int) {
      for (int64_t k = item * kHeadsPerItem; k < Smaller(queries, (item + 1) * kHeadsPerItem); ++k) {
        const int64_t t = sequence_.first_row + begin + k / heads;
        float* q = args_.iq + (t * heads + k % heads) * args_.key.dim;
        PrepareHead(args_, ctx_.faithful(), t, q);
        Units::Pack(q, args_.key.dim, queries_ + k * units_);
      }
    });
    const int64_t panels = (Visible(end - 1) + kPanel - 1) / kPanel;
    const int64_t segments = (panels + kSegment - 1) / kSegment;
    const int64_t blocks = (end - begin + kRowBlock - 1) / kRowBlock;
    ctx_.pool->ParallelFor(blocks * segments, [&](int64_t item, int thread) {
      const int64_t first = begin + item / segments * kRowBlock;
      const int64_t last = Smaller(first + kRowBlock, end);
      const int64_t panel_begin = item % segments * kSegment;
      for (int64_t p = panel_begin; p < Smaller(panel_begin + kSegment, panels); ++p) {
        ScorePanel(begin, first, last, p, panels_ + thread * PanelSize());
      }
    });
    ctx_.pool->ParallelFor(end - begin, [&](int64_t i, int) {
      float* scores = scores_ + i * stride_;
      const int64_t visible = Visible(begin + i);
      ToSortable(scores, visible);
      SelectTopK(reinterpret_cast<const int32_t*>(scores), visible, args_.topk,
                 args_.picks + (sequence_.first_row + begin + i) * args_.topk);
    });
  }

  // Scores of rows [first, last) for the keys of panel p as far as they are visible.
  void ScorePanel(int64_t tile_begin, int64_t first, int64_t last, int64_t p, uint32_t* panel) const {
    const int64_t key = p * kPanel;
    const int64_t most = Visible(last - 1) - key;
    if (most <= 0) return;
    const PagedView& keys = sequence_.cache.index_keys;
    PackColumns(
        static_cast<int>(Smaller(most, kPanel)), units_,
        [&](int j, int u) { return Units::LoadIndexKey(args_.key, keys[key + j], u); }, panel);
    for (int64_t i = first; i < last; ++i) {
      if (Visible(i) <= key) continue;
      const int64_t in_tile = i - tile_begin;
      // The common positive factor of the contract changes no pick and is left out.
      const float* w = args_.w + (sequence_.first_row + i) * args_.heads;
      Vec total[2] = {Zero(), Zero()};
      Product<Units>(args_.heads, queries_ + in_tile * args_.heads * units_, units_, panel, units_,
                     [&](int h, const Vec* sums) {
                       for (int half = 0; half < 2; ++half) {
                         total[half] = Fma(Set(w[h]), Max(sums[half], Zero()), total[half]);
                       }
                     });
      float* to = scores_ + in_tile * stride_ + key;
      Store(to, total[0]);
      Store(to + kLanes, total[1]);
    }
  }

  const KernelContext& ctx_;
  const IndexerArgs& args_;
  const SequenceRows& sequence_;
  int units_;           // of a query head or a key
  int64_t stride_ = 0;  // of a row's scores
  float* scores_ = nullptr;
  uint32_t* queries_ = nullptr;
  uint32_t* panels_ = nullptr;
};

template <typename Units>
void Pick(const KernelContext& ctx, const IndexerArgs& args) {
  for (const SequenceRows& sequence : args.sequences) {
    Scorer<Units> scorer(ctx, args, sequence);
    int64_t row = 0;
    for (; row < sequence.num_rows && scorer.Visible(row) <= args.topk; ++row) {
      int32_t* picks = args.picks + (sequence.first_row + row) * args.topk;
      const int64_t visible = scorer.Visible(row);
      for (int i = 0; i < args.topk; ++i) picks[i] = i < visible ? i : -1;
    }
    if (row < sequence.num_rows) scorer.Run(row, sequence.num_rows);
  }
}

}  // namespace

void Indexer(const KernelContext& ctx, const IndexerArgs& args) {
#ifdef FORESIGHT_AVX512
  // Packed keys and queries rounded like them are FP4 values: exact as bfloat16.
  if (args.key.format == CacheFormat::kPacked) return Pick<Bf16Units>(ctx, args);
#endif
  Pick<FloatUnits>(ctx, args);
}

}  // namespace foresight::FORESIGHT_ISA

#include "kernels/cpu/isa_end.h"
