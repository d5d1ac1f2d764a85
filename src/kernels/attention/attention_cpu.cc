// Attention of one row as two products with panels of its keys: scores = q K^T, out = p V.
//
// Keys are decoded into panels (panel_cpu.h) and used at once while they lie in the first-level cache. The
// list of a row's keys follows from its position alone and an element of either product is summed along that
// list or along the head's dims in order, so neither chunking nor threads nor where a key lies can change a
// bit. Whether rows or the parts of one row are spread over the threads is a matter of speed only.
#include <cstring>

#include "kernels/attention/attention.h"
#include "tensor/formats.h"

// clang-format off
#include "kernels/cpu/isa_begin.h"
#include "kernels/cpu/simd.h"
#include "kernels/norm_rope/rotate_cpu.h"
#include "kernels/attention/panel_cpu.h"
// clang-format on

namespace foresight::FORESIGHT_ISA {
namespace {

int64_t RoundUp(int64_t x, int64_t to) {
  return (x + to - 1) / to * to;
}

int64_t MaxKeys(const AttentionArgs& args) {
  int64_t end = 0;
  int64_t rows = 0;
  for (const SequenceRows& s : args.sequences) {
    if (s.first_position + s.num_rows > end) end = s.first_position + s.num_rows;
    if (s.num_rows > rows) rows = s.num_rows;
  }
  const int64_t raw = args.raw == RawKeys::kBlock ? args.window + rows : args.window;
  int64_t keys = raw < end ? raw : end;
  if (args.compressed == CompressedKeys::kAll) keys += end / args.ratio;
  if (args.compressed == CompressedKeys::kPicked)
    keys += args.topk < end / args.ratio ? args.topk : end / args.ratio;
  return keys;
}

// One row at work; memory of the scratch arena.
struct Row {
  const std::byte** keys = nullptr;  // [count] in their one order
  int64_t count = 0;
  uint32_t* q = nullptr;          // [H] rows of units
  float* scores = nullptr;        // [H, stride]; the probabilities' units after the softmax
  float* denominators = nullptr;  // [H]
};

template <typename Units>
class RowAttention {
 public:
  RowAttention(const KernelContext& ctx, const AttentionArgs& args)
      : ctx_(ctx),
        args_(args),
        dim_(args.layout.dim),
        q_units_((dim_ + Units::kValues - 1) / Units::kValues) {
    const int64_t max_keys = MaxKeys(args);
    stride_ = RoundUp(max_keys, kPanel);
    const int64_t key_panel = RoundUp(q_units_, kLanes) * kPanel;
    const int64_t value_panel = stride_ / Units::kValues * kPanel;
    panel_size_ = key_panel > value_panel ? key_panel : value_panel;
  }

  Row AllocateRow() const {
    Arena& arena = *ctx_.scratch;
    Row row;
    row.keys = arena.Allocate<const std::byte*>(stride_);
    row.q = arena.Allocate<uint32_t>(args_.heads * q_units_);
    row.scores = arena.Allocate<float>(args_.heads * stride_);
    row.denominators = arena.Allocate<float>(args_.heads);
    return row;
  }
  uint32_t* AllocatePanel() const { return ctx_.scratch->Allocate<uint32_t>(panel_size_); }

  // Lists the keys that the row at `position` of the sequence sees: raw by position, then compressed by
  // index.
  void Begin(const SequenceRows& sequence, int64_t position, Row* row) const {
    const int64_t t = sequence.first_row + position - sequence.first_position;
    const std::byte** key = row->keys;
    const RawRange raw = VisibleRaw(args_, sequence, position);
    int64_t p = raw.first;
    for (; p < sequence.first_position; ++p) *key++ = sequence.cache.window[p];
    for (; p < raw.end; ++p) {
      *key++ = args_.entries + (sequence.first_row + p - sequence.first_position) * args_.layout.bytes();
    }
    const PagedView& compressed = sequence.cache.compressed;
    if (args_.compressed == CompressedKeys::kAll) {
      for (int64_t s = 0; s < (position + 1) / args_.ratio; ++s) *key++ = compressed[s];
    } else if (args_.compressed == CompressedKeys::kPicked) {
      const int32_t* picks = args_.picks + t * args_.topk;
      for (int i = 0; i < args_.topk && picks[i] >= 0; ++i) *key++ = compressed[picks[i]];
    }
    row->count = key - row->keys;
    for (int h = 0; h < args_.heads; ++h) {
      Units::Pack(args_.q + (t * args_.heads + h) * dim_, dim_, row->q + h * q_units_);
    }
  }

  int64_t KeyPanels(const Row& row) const { return (row.count + kPanel - 1) / kPanel; }
  int64_t ValuePanels() const { return (dim_ + kPanel - 1) / kPanel; }

  // Scores of all heads for keys [index * kPanel, ...).
  void ScorePanel(const Row& row, int64_t index, uint32_t* panel) const {
    const int64_t first = index * kPanel;
    const int count = static_cast<int>(row.count - first < kPanel ? row.count - first : kPanel);
    PackColumns(
        count, q_units_, [&](int j, int u) { return Units::LoadEntry(args_.layout, row.keys[first + j], u); },
        panel);
    const Vec scale = Set(1.0f / __builtin_sqrtf(static_cast<float>(dim_)));
    Product<Units>(args_.heads, row.q, q_units_, panel, q_units_, [&](int h, const Vec* sums) {
      float* to = row.scores + h * stride_ + first;
      Store(to, sums[0] * scale);
      Store(to + kLanes, sums[1] * scale);
    });
  }

  // The head's scores become the units of its probabilities times the denominator, zeros behind the last key.
  void Softmax(const Row& row, int64_t h) const {
    float* scores = row.scores + h * stride_;
    const int64_t padded = KeyPanels(row) * kPanel;
    const float sink = args_.sink[h];
    Vec highest = Set(sink);
    for (int64_t i = 0; i < padded; i += kLanes) {
      const Vec x = MaskTail(Load(scores + i), i, row.count, -__builtin_inff());
      highest = Max(x, highest);
    }
    const float top = MaxLane(highest);
    Vec sum = Zero();
    for (int64_t i = 0; i < padded; i += kLanes) {
      const Vec e = MaskTail(Exp(Load(scores + i) - Set(top)), i, row.count, 0.f);
      sum = sum + e;
      Store(scores + i, ctx_.faithful() ? RoundToBf16(e) : e);
    }
    float sink_weight[kLanes];
    Store(sink_weight, Exp(Set(sink - top)));
    row.denominators[h] = Sum(sum) + sink_weight[0];
    Units::Pack(scores, padded, reinterpret_cast<uint32_t*>(scores));
  }

  // Values [index * kPanel, ...) of every head's output.
  void ValuePanel(const Row& row, int64_t index, uint32_t* panel, float* out) const {
    const int first = static_cast<int>(index * kPanel);
    const int64_t steps = (row.count + Units::kValues - 1) / Units::kValues;
    PackRows(row, first, panel);
    const int left = dim_ - first;
    Product<Units>(args_.heads, reinterpret_cast<const uint32_t*>(row.scores), stride_, panel, steps,
                   [&](int h, const Vec* sums) {
                     const Vec denominator = Set(row.denominators[h]);
                     for (int half = 0; half < 2; ++half) {
                       const int width = left - half * kLanes;
                       if (width <= 0) break;
                       Vec y = sums[half] / denominator;
                       if (ctx_.faithful()) y = RoundToBf16(y);
                       float* to = out + static_cast<int64_t>(h) * dim_ + first + half * kLanes;
                       if (width >= kLanes) {
                         Store(to, y);
                       } else {
                         StorePart(to, y, width);
                       }
                     }
                   });
  }

  // The inverse rotation of every head's output.
  void Finish(int64_t t, float* out) const {
    const int pairs = args_.layout.rope_dim / 2;
    for (int h = 0; h < args_.heads; ++h) {
      float* rotary = out + static_cast<int64_t>(h) * dim_ + args_.layout.nope();
      RotateRowBack(rotary, pairs, args_.cos + t * pairs, args_.sin + t * pairs);
      if (ctx_.faithful()) RoundRow(rotary, 2 * pairs);
    }
  }

 private:
  // Lanes i, i + 1, ... at or behind `count` replaced by `filler`.
  static Vec MaskTail(Vec x, int64_t i, int64_t count, float filler) {
    if (i + kLanes <= count) return x;
    float lane[kLanes];
    Store(lane, x);
    for (int64_t k = count > i ? count - i : 0; k < kLanes; ++k) lane[k] = filler;
    return Load(lane);
  }

  // The panel whose rows are keys: units of kValues keys each, columns are the dims [first, first + kPanel).
  void PackRows(const Row& row, int first, uint32_t* panel) const {
    if constexpr (Units::kValues == 1) {
      for (int64_t s = 0; s < row.count; ++s) {
        for (int half = 0; half < 2; ++half) {
          const I32 units = Units::LoadEntry(args_.layout, row.keys[s], first + half * kLanes);
          std::memcpy(panel + s * kPanel + half * kLanes, &units, sizeof(units));
        }
      }
    } else {
      for (int64_t s = 0; s < row.count; s += 2) {
        const I32 even = Units::LoadEntry(args_.layout, row.keys[s], first / 2);
        const I32 odd =
            s + 1 < row.count ? Units::LoadEntry(args_.layout, row.keys[s + 1], first / 2) : I32{};
        Units::Interleave(even, odd, panel + s / 2 * kPanel);
      }
    }
  }

  const KernelContext& ctx_;
  const AttentionArgs& args_;
  int dim_;
  int q_units_;         // units of a head's query
  int64_t stride_ = 0;  // of a head's scores
  int64_t panel_size_ = 0;
};

// Below so many multiply-adds a row's parts are not worth a barrier.
constexpr int64_t kParallelWork = 1 << 20;

template <typename Units>
void Attend(const KernelContext& ctx, const AttentionArgs& args) {
  ArenaScope scope(*ctx.scratch);
  const RowAttention<Units> attention(ctx, args);
  const int threads = ctx.pool->num_threads();
  const int64_t row_values = static_cast<int64_t>(args.heads) * args.layout.dim;
  uint32_t** panels = ctx.scratch->Allocate<uint32_t*>(threads);
  for (int i = 0; i < threads; ++i) panels[i] = attention.AllocatePanel();
  int64_t num_rows = 0;
  for (const SequenceRows& s : args.sequences) num_rows += s.num_rows;

  if (num_rows >= 2 * threads) {
    Row* rows = ctx.scratch->Allocate<Row>(threads);
    for (int i = 0; i < threads; ++i) rows[i] = attention.AllocateRow();
    for (const SequenceRows& sequence : args.sequences) {
      ctx.pool->ParallelFor(sequence.num_rows, [&](int64_t i, int thread) {
        Row& row = rows[thread];
        float* out = args.out + (sequence.first_row + i) * row_values;
        attention.Begin(sequence, sequence.first_position + i, &row);
        for (int64_t k = 0; k < attention.KeyPanels(row); ++k) attention.ScorePanel(row, k, panels[thread]);
        for (int h = 0; h < args.heads; ++h) attention.Softmax(row, h);
        for (int64_t k = 0; k < attention.ValuePanels(); ++k)
          attention.ValuePanel(row, k, panels[thread], out);
        attention.Finish(sequence.first_row + i, out);
      });
    }
    return;
  }

  Row row = attention.AllocateRow();
  for (const SequenceRows& sequence : args.sequences) {
    for (int64_t i = 0; i < sequence.num_rows; ++i) {
      float* out = args.out + (sequence.first_row + i) * row_values;
      attention.Begin(sequence, sequence.first_position + i, &row);
      // In few items when there is little to do: one item runs on this thread.
      const bool small = (args.heads + 8) * row.count * args.layout.dim < kParallelWork;
      const auto spread = [&](int64_t count, const auto& body) {
        const int64_t items = small ? 1 : count;
        ctx.pool->ParallelFor(items, [&](int64_t item, int thread) {
          for (int64_t k = item; k < count; k += items) body(k, panels[thread]);
        });
      };
      spread(attention.KeyPanels(row),
             [&](int64_t k, uint32_t* panel) { attention.ScorePanel(row, k, panel); });
      spread(args.heads, [&](int64_t h, uint32_t*) { attention.Softmax(row, h); });
      spread(attention.ValuePanels(),
             [&](int64_t k, uint32_t* panel) { attention.ValuePanel(row, k, panel, out); });
      attention.Finish(sequence.first_row + i, out);
    }
  }
}

}  // namespace

void Attention(const KernelContext& ctx, const AttentionArgs& args) {
#ifdef FORESIGHT_AVX512
  // Faithful queries and probabilities are bfloat16 values, and so are the values of packed entries: the
  // pairs lose nothing.
  if (ctx.faithful() && args.layout.format == CacheFormat::kPacked) return Attend<Bf16Units>(ctx, args);
#endif
  Attend<FloatUnits>(ctx, args);
}

}  // namespace foresight::FORESIGHT_ISA

#include "kernels/cpu/isa_end.h"
