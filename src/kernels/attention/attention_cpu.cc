// Attention of the rows that share their keys (one row; or a draft block) as two products with panels of
// those keys: scores = q K^T, out = p V.
//
// Keys are decoded into panels (panel_cpu.h) and used at once while they lie in the first-level cache. The
// list of a row's keys follows from its position alone and an element of either product is summed along that
// list or along the head's dims in order, so neither chunking nor threads nor where a key lies can change a
// bit. Whether groups of rows or the parts of one group are spread over the threads is a matter of speed
// only.
#include <cstring>

#include "base/thread_pool.h"
#include "kernels/attention/attention.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/padding.h"
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

// Rows with the same keys.
struct Group {
  const SequenceRows* sequence = nullptr;
  int first = 0;  // within the sequence
  int rows = 0;
};

// One group at work; memory of the scratch arena. Its queries are those of `heads` heads, row by row.
struct Work {
  const std::byte** keys = nullptr;  // [count] in their one order
  int64_t count = 0;
  int heads = 0;                  // of all rows together
  uint32_t* q = nullptr;          // [heads] rows of units
  float* scores = nullptr;        // [heads, stride]; the probabilities' units after the softmax
  float* denominators = nullptr;  // [heads]
};

template <typename Units>
class GroupAttention {
 public:
  GroupAttention(const KernelContext& ctx, const AttentionArgs& args, int rows_max)
      : ctx_(ctx),
        args_(args),
        heads_max_(args.heads * rows_max),
        dim_(args.layout.dim),
        q_units_((dim_ + Units::kValues - 1) / Units::kValues) {
    const int64_t max_keys = MaxKeys(args);
    stride_ = RoundUp(max_keys, kPanel);
    const int64_t key_panel = RoundUp(q_units_, kLanes) * kPanel;
    const int64_t value_panel = stride_ / Units::kValues * kPanel;
    panel_size_ = key_panel > value_panel ? key_panel : value_panel;
  }

  Work AllocateWork() const {
    Arena& arena = *ctx_.scratch;
    Work work;
    work.keys = arena.Allocate<const std::byte*>(stride_);
    work.q = arena.Allocate<uint32_t>(heads_max_ * q_units_);
    work.scores = arena.Allocate<float>(heads_max_ * stride_);
    work.denominators = arena.Allocate<float>(heads_max_);
    return work;
  }
  uint32_t* AllocatePanel() const { return ctx_.scratch->Allocate<uint32_t>(panel_size_); }

  // The group's outputs.
  float* Out(const Group& group) const {
    return args_.out.f32() + FirstRow(group) * static_cast<int64_t>(args_.heads) * dim_;
  }

  // Lists the keys that the group's rows see: raw by position, then compressed by index.
  void Begin(const Group& group, Work* work) const {
    const SequenceRows& sequence = *group.sequence;
    const int64_t position = sequence.first_position + group.first;
    const int64_t t = FirstRow(group);
    const std::byte** key = work->keys;
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
    work->count = key - work->keys;
    work->heads = args_.heads * group.rows;
    for (int h = 0; h < work->heads; ++h) {
      Units::Pack(args_.q.f32() + (t * args_.heads + h) * dim_, dim_, work->q + h * q_units_);
    }
  }

  int64_t KeyPanels(const Work& work) const { return (work.count + kPanel - 1) / kPanel; }
  int64_t ValuePanels() const { return (dim_ + kPanel - 1) / kPanel; }

  // Scores of all heads for keys [index * kPanel, ...).
  void ScorePanel(const Work& work, int64_t index, uint32_t* panel) const {
    const int64_t first = index * kPanel;
    const int count = static_cast<int>(work.count - first < kPanel ? work.count - first : kPanel);
    PackColumns(
        count, q_units_,
        [&](int j, int u) { return Units::LoadEntry(args_.layout, work.keys[first + j], u); }, panel);
    const Vec scale = Set(1.0f / __builtin_sqrtf(static_cast<float>(dim_)));
    Product<Units>(work.heads, work.q, q_units_, panel, q_units_, [&](int h, const Vec* sums) {
      float* to = work.scores + h * stride_ + first;
      Store(to, sums[0] * scale);
      Store(to + kLanes, sums[1] * scale);
    });
  }

  // The head's scores become the units of its probabilities times the denominator, zeros behind the last key.
  void Softmax(const Work& work, int64_t h) const {
    float* scores = work.scores + h * stride_;
    const int64_t padded = KeyPanels(work) * kPanel;
    const float sink = args_.sink[h % args_.heads];
    Vec highest = Set(sink);
    for (int64_t i = 0; i < padded; i += kLanes) {
      const Vec x = MaskTail(Load(scores + i), i, work.count, -__builtin_inff());
      highest = Max(x, highest);
    }
    const float top = MaxLane(highest);
    Vec sum = Zero();
    for (int64_t i = 0; i < padded; i += kLanes) {
      const Vec e = MaskTail(Exp(Load(scores + i) - Set(top)), i, work.count, 0.f);
      sum = sum + e;
      Store(scores + i, ctx_.faithful() ? RoundToBf16(e) : e);
    }
    float sink_weight[kLanes];
    Store(sink_weight, Exp(Set(sink - top)));
    work.denominators[h] = Sum(sum) + sink_weight[0];
    Units::Pack(scores, padded, reinterpret_cast<uint32_t*>(scores));
  }

  // Values [index * kPanel, ...) of every head's output.
  void ValuePanel(const Work& work, int64_t index, uint32_t* panel, float* out) const {
    const int first = static_cast<int>(index * kPanel);
    const int64_t steps = (work.count + Units::kValues - 1) / Units::kValues;
    PackRows(work, first, panel);
    const int left = dim_ - first;
    Product<Units>(work.heads, reinterpret_cast<const uint32_t*>(work.scores), stride_, panel, steps,
                   [&](int h, const Vec* sums) {
                     const Vec denominator = Set(work.denominators[h]);
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
  void Finish(const Group& group, float* out) const {
    const int pairs = args_.layout.rope_dim / 2;
    const int64_t first_row = FirstRow(group);
    for (int h = 0; h < args_.heads * group.rows; ++h) {
      const int64_t t = first_row + h / args_.heads;
      float* rotary = out + static_cast<int64_t>(h) * dim_ + args_.layout.nope();
      RotateRowBack(rotary, pairs, args_.cos + t * pairs, args_.sin + t * pairs);
      if (ctx_.faithful()) RoundRow(rotary, 2 * pairs);
    }
  }

 private:
  static int64_t FirstRow(const Group& group) { return group.sequence->first_row + group.first; }

  // Lanes i, i + 1, ... at or behind `count` replaced by `filler`.
  static Vec MaskTail(Vec x, int64_t i, int64_t count, float filler) {
    if (i + kLanes <= count) return x;
    float lane[kLanes];
    Store(lane, x);
    for (int64_t k = count > i ? count - i : 0; k < kLanes; ++k) lane[k] = filler;
    return Load(lane);
  }

  // The panel whose rows are keys: units of kValues keys each, columns are the dims [first, first + kPanel).
  void PackRows(const Work& work, int first, uint32_t* panel) const {
    if constexpr (Units::kValues == 1) {
      for (int64_t s = 0; s < work.count; ++s) {
        for (int half = 0; half < 2; ++half) {
          const I32 units = Units::LoadEntry(args_.layout, work.keys[s], first + half * kLanes);
          std::memcpy(panel + s * kPanel + half * kLanes, &units, sizeof(units));
        }
      }
    } else {
      for (int64_t s = 0; s < work.count; s += 2) {
        const I32 even = Units::LoadEntry(args_.layout, work.keys[s], first / 2);
        const I32 odd =
            s + 1 < work.count ? Units::LoadEntry(args_.layout, work.keys[s + 1], first / 2) : I32{};
        Units::Interleave(even, odd, panel + s / 2 * kPanel);
      }
    }
  }

  const KernelContext& ctx_;
  const AttentionArgs& args_;
  int64_t heads_max_;  // of a group
  int dim_;
  int q_units_;         // units of a head's query
  int64_t stride_ = 0;  // of a head's scores
  int64_t panel_size_ = 0;
};

// Below so many multiply-adds a group's parts are not worth a barrier.
constexpr int64_t kParallelWork = 1 << 20;

template <typename Units>
void Attend(const KernelContext& ctx, const AttentionArgs& args) {
  ArenaScope scope(*ctx.scratch);
  const int threads = ctx.pool->num_threads();
  const bool block = args.raw == RawKeys::kBlock;
  CHECK(!block || args.compressed == CompressedKeys::kNone, "rows of a block have no picks of their own");
  int64_t num_groups = 0;
  int rows_max = 1;  // of a group
  for (const SequenceRows& s : args.sequences) {
    num_groups += block && s.num_rows > 0 ? 1 : s.num_rows;
    if (block && s.num_rows > rows_max) rows_max = s.num_rows;
  }
  Group* groups = ctx.scratch->Allocate<Group>(num_groups);
  int64_t g = 0;
  for (const SequenceRows& s : args.sequences) {
    const int rows = block ? s.num_rows : 1;
    for (int first = 0; first < s.num_rows; first += rows) groups[g++] = {&s, first, rows};
  }

  const GroupAttention<Units> attention(ctx, args, rows_max);
  uint32_t** panels = ctx.scratch->Allocate<uint32_t*>(threads);
  for (int i = 0; i < threads; ++i) panels[i] = attention.AllocatePanel();
  if (num_groups >= 2 * threads) {
    Work* works = ctx.scratch->Allocate<Work>(threads);
    for (int i = 0; i < threads; ++i) works[i] = attention.AllocateWork();
    ctx.pool->ParallelFor(num_groups, [&](int64_t i, int thread) {
      Work& work = works[thread];
      float* out = attention.Out(groups[i]);
      attention.Begin(groups[i], &work);
      for (int64_t k = 0; k < attention.KeyPanels(work); ++k) attention.ScorePanel(work, k, panels[thread]);
      for (int h = 0; h < work.heads; ++h) attention.Softmax(work, h);
      for (int64_t k = 0; k < attention.ValuePanels(); ++k)
        attention.ValuePanel(work, k, panels[thread], out);
      attention.Finish(groups[i], out);
    });
    return;
  }

  Work work = attention.AllocateWork();
  for (int64_t i = 0; i < num_groups; ++i) {
    float* out = attention.Out(groups[i]);
    attention.Begin(groups[i], &work);
    // In few items when there is little to do: one item runs on this thread.
    const bool small = (work.heads + 8) * work.count * args.layout.dim < kParallelWork;
    const auto spread = [&](int64_t count, const auto& body) {
      const int64_t items = small ? 1 : count;
      ctx.pool->ParallelFor(items, [&](int64_t item, int thread) {
        for (int64_t k = item; k < count; k += items) body(k, panels[thread]);
      });
    };
    spread(attention.KeyPanels(work),
           [&](int64_t k, uint32_t* panel) { attention.ScorePanel(work, k, panel); });
    spread(work.heads, [&](int64_t h, uint32_t*) { attention.Softmax(work, h); });
    spread(attention.ValuePanels(),
           [&](int64_t k, uint32_t* panel) { attention.ValuePanel(work, k, panel, out); });
    attention.Finish(groups[i], out);
  }
}

}  // namespace

void Attention(const KernelContext& ctx, const AttentionArgs& args) {
  Query(ctx, QueriesOf(args));
#ifdef FORESIGHT_AVX512
  // Faithful queries and probabilities are bfloat16 values, and so are the values of packed entries: the
  // pairs lose nothing.
  if (ctx.faithful() && args.layout.format == CacheFormat::kPacked) {
    Attend<Bf16Units>(ctx, args);
    return CopyToPadding(args);
  }
#endif
  Attend<FloatUnits>(ctx, args);
  CopyToPadding(args);
}

}  // namespace foresight::FORESIGHT_ISA

#include "kernels/cpu/isa_end.h"
