// Times the entries of a device's kernel table at released shapes: kernel_bench [--filter TEXT] [--json
// FILE].
//
// Every figure is of a chain: calls on data that is in no cache, recorded once and replayed, so that a kernel
// may overlap its predecessor as it does in a step. Bytes are what a call must move at least, stored weights
// and cache entries above all; the share is of the rate of a copy on the same device in the same run.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <fstream>
#include <functional>
#include <random>
#include <set>
#include <string>

#include "bench/kernels/device_data.h"
#include "kernels/backend.h"
#include "kernels/indexer/indexer_parts.h"

namespace foresight {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRepeats = 7;
constexpr int64_t kColdBytes = int64_t{400} << 20;  // several times any GPU's cache
constexpr int kMaxCalls = 64;

struct Timing {
  std::string name;
  double bytes = 0;
  double flops = 0;
  std::vector<double> us;  // ascending
};

struct Flash {
  int dim = 4096, heads = 64, head_dim = 512, rope_dim = 64, q_lora = 1024, o_groups = 8, o_lora = 1024;
  int experts = 256, per_token = 6, intermediate = 2048, index_heads = 64, index_dim = 128, index_topk = 512,
      streams = 4;
};
constexpr Flash kFlash;

class KernelBench {
 public:
  KernelBench(Backend backend, DeviceData data, DeviceMemory scratch, std::string filter)
      : backend_(std::move(backend)),
        data_(std::move(data)),
        scratch_memory_(std::move(scratch)),
        scratch_(std::span(scratch_memory_.data(), static_cast<size_t>(scratch_memory_.bytes()))),
        filter_(std::move(filter)) {}

  void RunAll();
  std::string Json(std::string_view commit) const;
  void MeasureCopy();
  const Status& status() const { return status_; }

 private:
  bool Wants(const std::string& name) const { return name.find(filter_) != std::string::npos; }
  KernelContext context() {
    return {.device = backend_.device.get(), .scratch = &scratch_, .numerics = Numerics::kFaithful};
  }
  // `launch(i)` is call i of `calls`; bytes and flops are of one.
  void Measure(const std::string& name, double bytes, double flops, int calls,
               const std::function<void(int)>& launch);
  void Linear(const std::string& what, int rows, const std::vector<std::pair<DType, int64_t>>& weights,
              int64_t cols, LinearNumerics numerics, bool of_heads = false);
  void GroupedLinear(int rows);
  void Moe(int rows, bool with_shared);
  void Attention(const std::string& what, int heads, int sequences, int rows_each, int topk, int entries,
                 CompressedKeys compressed);
  void Indexer(int sequences, int rows_each, int keys);
  void Small(int rows);
  // Of one row each of `sequences`, which ends a window of `ratio` or begins one.
  void Compressors(int ratio, int sequences, bool ends_window);
  // `like`: temperature and cuts.
  void Sample(const std::string& what, int sequences, int num_drafts, bool by_rejection,
              const SampleRow& like = {.inverse_temperature = 1});
  // Half of all drafts; in steps of 43 layers.
  void PlanDrafts(int sequences, int num_drafts);
  // Sequences of `rows_each` rows at a position where they see `entries` compressed entries.
  std::vector<SequenceRows> Sequences(int count, int rows_each, int64_t entries, int ratio, bool keys);

  Backend backend_;
  DeviceData data_;
  DeviceMemory scratch_memory_;
  Arena scratch_;
  std::string filter_;
  double copy_gb_per_second_ = 0;
  uint64_t key_ = uint64_t{1} << 62;
  std::vector<Timing> results_;
  Status status_;
};

void KernelBench::MeasureCopy() {
  constexpr int64_t kBytes = int64_t{512} << 20;
  std::byte* from = data_.Allocate<std::byte>(2 * kBytes);
  Device& device = *backend_.device;
  std::vector<double> rates;
  for (int r = 0; r < kRepeats; ++r) {
    status_ = device.Synchronize();
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < 8; ++i) device.Copy(from + kBytes, from, kBytes);
    status_ = device.Synchronize();
    rates.push_back(16e-9 * kBytes / std::chrono::duration<double>(Clock::now() - start).count());
  }
  std::sort(rates.begin(), rates.end());
  copy_gb_per_second_ = rates[kRepeats / 2];
}

void KernelBench::Measure(const std::string& name, double bytes, double flops, int calls,
                          const std::function<void(int)>& launch) {
  if (!status_.ok()) return;
  Device& device = *backend_.device;
  const uint64_t key = ++key_;
  const auto replay = [&] {
    device.Replay(key, [&] {
      for (int i = 0; i < calls; ++i) launch(i);
    });
  };
  for (int i = 0; i < 2; ++i) replay();  // a device may record from the second time on
  status_ = device.Synchronize();
  Timing result{name, bytes, flops, {}};
  const int replays = 3;
  for (int r = 0; r < kRepeats && status_.ok(); ++r) {
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < replays; ++i) replay();
    status_ = device.Synchronize();
    result.us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count() /
                        (replays * calls));
  }
  if (!status_.ok()) return;
  std::sort(result.us.begin(), result.us.end());
  const double us = result.us[kRepeats / 2];
  fmt::print("{:44} {:9.2f} us ({:.2f} to {:.2f})  {:7.0f} GB/s {:3.0f} % of a copy  {:7.1f} TFLOP/s\n", name,
             us, result.us.front(), result.us.back(), bytes / us * 1e-3,
             bytes / us * 0.1 / copy_gb_per_second_, flops / us * 1e-6);
  std::fflush(stdout);
  results_.push_back(std::move(result));
}

std::vector<float> Values(int64_t count) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(count));
  for (float& v : x) v = RoundBf16(normal(rng));
  return x;
}

std::vector<bf16> Packed(const std::vector<float>& x) {
  std::vector<bf16> packed(x.size());
  std::transform(x.begin(), x.end(), packed.begin(), FloatToBf16);
  return packed;
}

void KernelBench::Linear(const std::string& what, int rows,
                         const std::vector<std::pair<DType, int64_t>>& weights, int64_t cols,
                         LinearNumerics numerics, bool of_heads) {
  const std::string name = fmt::format("linear {}, {} rows", what, rows);
  if (!Wants(name)) return;
  ArenaScope scope(data_.arena());
  double bytes = 0, outputs = 0;
  for (const auto& [dtype, n] : weights) {
    bytes += static_cast<double>(MatrixView{.dtype = dtype, .rows = n, .cols = cols}.bytes());
    outputs += static_cast<double>(n);
  }
  const int copies = std::clamp(static_cast<int>(kColdBytes / bytes) + 1, 1, kMaxCalls);
  std::vector<std::vector<LinearTarget>> targets(copies);
  for (auto& list : targets) {
    for (const auto& [dtype, n] : weights) {
      list.push_back({.w = data_.Matrix(dtype, n, cols),
                      .out = of_heads ? ActivationBuffer(data_.Allocate<bf16>(rows * n))
                                      : data_.Allocate<float>(rows * n),
                      .numerics = dtype == DType::kBF16 ? numerics : LinearNumerics::kProjection});
    }
  }
  const float* x = data_.Upload(Values(rows * cols));
  Measure(name, bytes, 2.0 * rows * outputs * static_cast<double>(cols), std::max(copies, 8), [&](int i) {
    backend_.kernels->linear(context(), {.rows = rows, .x = x, .targets = targets[i % copies]});
  });
}

void KernelBench::GroupedLinear(int rows) {
  const std::string name = fmt::format("grouped_linear wo_a, {} rows", rows);
  if (!Wants(name)) return;
  ArenaScope scope(data_.arena());
  const int64_t cols = kFlash.heads * kFlash.head_dim / kFlash.o_groups;
  const int64_t n = kFlash.o_groups * kFlash.o_lora;
  std::vector<MatrixView> weights;
  for (int i = 0; i < 14; ++i) weights.push_back(data_.Matrix(DType::kF8E4M3, n, cols));
  const bf16* x = data_.Upload(Packed(Values(rows * kFlash.o_groups * cols)));
  float* out = data_.Allocate<float>(rows * n);
  Measure(name, static_cast<double>(weights[0].bytes()), 2.0 * rows * static_cast<double>(n * cols), 14,
          [&](int i) {
            backend_.kernels->grouped_linear(
                context(), {.rows = rows, .groups = kFlash.o_groups, .x = x, .w = weights[i], .out = out});
          });
}

void KernelBench::Moe(int rows, bool with_shared) {
  const std::string name = fmt::format("moe routed{}, {} rows", with_shared ? " and shared" : "", rows);
  if (!Wants(name)) return;
  ArenaScope scope(data_.arena());
  const auto expert = [&](DType dtype) {
    return ExpertWeights{.w1 = data_.Matrix(dtype, kFlash.intermediate, kFlash.dim),
                         .w3 = data_.Matrix(dtype, kFlash.intermediate, kFlash.dim),
                         .w2 = data_.Matrix(dtype, kFlash.dim, kFlash.intermediate)};
  };
  std::vector<ExpertWeights> experts;
  for (int e = 0; e < kFlash.experts; ++e) experts.push_back(expert(DType::kI8));
  constexpr int kCalls = 24;
  constexpr int kShared = 12;
  std::vector<ExpertWeights> shared;
  for (int e = 0; e < kShared; ++e) shared.push_back(with_shared ? expert(DType::kF8E4M3) : ExpertWeights{});
  std::mt19937 rng(rows);
  std::vector<const int32_t*> ids;
  double distinct = 0;
  for (int call = 0; call < kCalls; ++call) {
    std::vector<int32_t> chosen;
    for (int r = 0; r < rows; ++r) {
      std::set<int32_t> of_row;
      while (std::ssize(of_row) < kFlash.per_token) {
        const int32_t id = static_cast<int32_t>(rng() % kFlash.experts);
        if (of_row.insert(id).second) chosen.push_back(id);
      }
    }
    distinct += static_cast<double>(std::set<int32_t>(chosen.begin(), chosen.end()).size()) / kCalls;
    ids.push_back(data_.Upload(chosen));
  }
  const auto bytes_of = [](const ExpertWeights& e) {
    return static_cast<double>(e.w1.bytes() + e.w3.bytes() + e.w2.bytes());
  };
  const float* x = data_.Upload(Values(rows * kFlash.dim));
  const float* weights = data_.Upload(std::vector<float>(rows * kFlash.per_token, 0.25f));
  const ExpertWeights* on_device = data_.Upload(experts);
  float* out = data_.Allocate<float>(rows * kFlash.dim);
  Measure(name, distinct * bytes_of(experts[0]) + bytes_of(shared[0]),
          6.0 * rows * (kFlash.per_token + with_shared) * kFlash.dim * kFlash.intermediate, kCalls,
          [&](int i) {
            backend_.kernels->moe(context(), {.rows = rows,
                                              .dim = kFlash.dim,
                                              .intermediate = kFlash.intermediate,
                                              .experts_per_token = kFlash.per_token,
                                              .swiglu_limit = 10,
                                              .experts = {on_device, experts.size()},
                                              .expert_dtype = DType::kI8,
                                              .shared = shared[i % kShared],
                                              .x = x,
                                              .ids = ids[i],
                                              .weights = weights,
                                              .out = out});
          });
}

std::vector<SequenceRows> KernelBench::Sequences(int count, int rows_each, int64_t entries, int ratio,
                                                 bool keys) {
  constexpr int64_t kPerBlock = 64;
  const EntryLayout entry{CacheFormat::kPacked, kFlash.head_dim, kFlash.rope_dim};
  const IndexKeyLayout key{CacheFormat::kPacked, kFlash.index_dim};
  // Items of one kind, some patterns' worth, of keys so many that few scores are equal: mild codes, bf16
  // values below 2, scales about one.
  std::vector<std::byte> items(static_cast<size_t>(keys ? 65521 * key.bytes() : 97 * entry.bytes()));
  FillCodes(items, keys ? DType::kI8 : DType::kF8E4M3);
  for (size_t at = 0; at < items.size(); at += keys ? key.bytes() : entry.bytes()) {
    if (keys) {
      for (int i = 0; i < 4; ++i) items[at + 64 + i] = std::byte{126};
      continue;
    }
    FillCodes({&items[at + entry.nope()], size_t{2} * kFlash.rope_dim}, DType::kBF16);
    for (int64_t i = entry.nope() + 2 * kFlash.rope_dim; i < entry.bytes(); ++i)
      items[at + static_cast<size_t>(i)] = std::byte{126};
  }
  const int64_t item_bytes = keys ? key.bytes() : entry.bytes();
  std::vector<SequenceRows> sequences;
  for (int s = 0; s < count; ++s) {
    std::byte* slab = data_.Repeat(items, (entries + kPerBlock) * item_bytes);
    std::vector<std::byte*> blocks;
    for (int64_t i = 0; i <= entries / kPerBlock; ++i) blocks.push_back(slab + i * kPerBlock * item_bytes);
    std::byte* const* on_device = data_.Upload(blocks);
    SequenceRows rows{.first_row = s * rows_each,
                      .num_rows = rows_each,
                      .first_position = entries * ratio + ratio - 1 - rows_each,
                      .cache = {}};
    const PagedView pages{on_device, 0, item_bytes, kPerBlock};
    if (keys) {
      rows.cache.index_keys = pages;
    } else {
      rows.cache.compressed = pages;
      rows.cache.window = {data_.Repeat(items, 144 * item_bytes), item_bytes, 144};
    }
    sequences.push_back(rows);
  }
  return sequences;
}

void KernelBench::Attention(const std::string& what, int heads, int sequences, int rows_each, int topk,
                            int entries, CompressedKeys compressed) {
  const int rows = sequences * rows_each;
  const std::string name = fmt::format("attention {}, {} x {} rows", what, sequences, rows_each);
  if (!Wants(name)) return;
  ArenaScope scope(data_.arena());
  const int ratio = compressed == CompressedKeys::kAll ? 128 : 4;
  const EntryLayout entry{CacheFormat::kPacked, kFlash.head_dim, kFlash.rope_dim};
  // Calls take other sequences in turn until these don't fit a cache.
  const int sets =
      std::clamp(static_cast<int>(kColdBytes / (entries * entry.bytes() * sequences)) + 1, 1, 40);
  const int calls = std::max(sets, 12);
  std::mt19937 rng(7);
  std::vector<const SequenceRows*> lists;
  std::vector<const int32_t*> picks;
  for (int i = 0; i < sets; ++i) {
    lists.push_back(data_.Upload(Sequences(sequences, rows_each, entries, ratio, false)));
  }
  for (int i = 0; i < calls; ++i) {
    std::vector<int32_t> of_call;
    for (int r = 0; r < rows && compressed == CompressedKeys::kPicked; ++r) {
      std::set<int32_t> of_row;
      while (std::ssize(of_row) < topk) of_row.insert(static_cast<int32_t>(rng() % (entries - 2)));
      of_call.insert(of_call.end(), of_row.begin(), of_row.end());
    }
    of_call.resize(std::max<size_t>(of_call.size(), 1));
    picks.push_back(data_.Upload(of_call));
  }
  const int64_t q_count = int64_t{rows} * heads * kFlash.head_dim;
  bf16* q = data_.Upload(Packed(Values(q_count)));
  bf16* out = data_.Allocate<bf16>(q_count);
  std::vector<std::byte> own(static_cast<size_t>(rows * entry.bytes()), std::byte{0x38});
  const std::byte* entries_of_step = data_.Upload(own);
  const float* angles = data_.Upload(std::vector<float>(rows * kFlash.rope_dim / 2, 0.5f));
  const VectorView sink = data_.Vector(DType::kF32, heads);
  const double keys = 128.0 + (compressed == CompressedKeys::kPicked ? topk : entries);
  Measure(name, rows * (keys * static_cast<double>(entry.bytes()) + 4.0 * heads * kFlash.head_dim),
          rows * keys * 4.0 * heads * kFlash.head_dim, calls, [&](int i) {
            backend_.kernels->attention(context(),
                                        {.sequences = {lists[i % sets], static_cast<size_t>(sequences)},
                                         .rows = rows,
                                         .entries_max = entries,
                                         .heads = heads,
                                         .window = 128,
                                         .layout = entry,
                                         .compressed = compressed,
                                         .ratio = ratio,
                                         .topk = topk,
                                         .q = q,
                                         .query_eps = 1e-6f,
                                         .entries = entries_of_step,
                                         .sink = sink,
                                         .picks = picks[i],
                                         .cos = angles,
                                         .sin = angles,
                                         .out = out});
          });
}

void KernelBench::Indexer(int sequences, int rows_each, int keys) {
  const int rows = sequences * rows_each;
  const std::string shape = fmt::format("{} x {} rows", sequences, rows_each);
  const std::string both = fmt::format("indexer {} keys, {}", keys, shape);
  const std::string scores_alone = fmt::format("index scores of {} keys, {}", keys, shape);
  const std::string picks_alone = fmt::format("picks {} of {} scores, {}", kFlash.index_topk, keys, shape);
  const std::string picks_cached = picks_alone + ", scores in the cache";
  if (!Wants(both) && !Wants(scores_alone) && !Wants(picks_cached)) return;
  const Result<IndexerParts> parts = CudaIndexerParts();
  if (!parts.ok()) {
    status_ = parts.error();
    return;
  }
  ArenaScope scope(data_.arena());
  const IndexKeyLayout key{CacheFormat::kPacked, kFlash.index_dim};
  const int sets = std::clamp(static_cast<int>(kColdBytes / (keys * key.bytes() * sequences)) + 1, 1, 32);
  std::vector<IndexerArgs> calls;
  float* iq = data_.Upload(Values(int64_t{rows} * kFlash.index_heads * kFlash.index_dim));
  const float* w = data_.Upload(Values(int64_t{rows} * kFlash.index_heads));
  const float* angles = data_.Upload(std::vector<float>(rows * kFlash.rope_dim / 2, 0.5f));
  int32_t* picks = data_.Allocate<int32_t>(int64_t{rows} * kFlash.index_topk);
  for (int i = 0; i < sets; ++i) {
    const SequenceRows* list = data_.Upload(Sequences(sequences, rows_each, keys, 4, true));
    calls.push_back({.sequences = {list, static_cast<size_t>(sequences)},
                     .rows = rows,
                     .entries_max = keys,
                     .heads = kFlash.index_heads,
                     .rope_dim = kFlash.rope_dim,
                     .topk = kFlash.index_topk,
                     .key = key,
                     .iq = iq,
                     .w = w,
                     .cos = angles,
                     .sin = angles,
                     .picks = picks});
  }
  const double key_bytes = static_cast<double>(sequences) * keys * static_cast<double>(key.bytes());
  const double score_bytes = 4.0 * rows * keys;
  const double flops = 2.0 * rows * keys * kFlash.index_heads * kFlash.index_dim;
  if (Wants(both)) {
    Measure(both, key_bytes + 2 * score_bytes, flops, std::max(sets, 12),
            [&](int i) { backend_.kernels->indexer(context(), calls[i % sets]); });
  }
  // One call's scores and their maxima after another.
  const int64_t scores_each = int64_t{rows} * keys;
  const int64_t floats_each = scores_each + scores_each / IndexScores::kMaximumOf;
  const int copies = std::clamp(static_cast<int>(kColdBytes / (4 * floats_each)) + 1, 1, 400);
  float* scores = data_.Allocate<float>(copies * floats_each);
  const auto of_call = [&](int i) {
    float* of = scores + i % copies * floats_each;
    return IndexScores{.scores = of, .maxima = of + scores_each, .stride = keys};
  };
  if (Wants(scores_alone)) {
    Measure(scores_alone, key_bytes + score_bytes, flops, std::max(sets, 12),
            [&](int i) { parts->scores(context(), calls[i % sets], of_call(0)); });
  }
  if (!Wants(picks_cached)) return;
  parts->scores(context(), calls[0], of_call(0));
  for (int i = 1; i < copies; ++i) {
    backend_.device->Copy(of_call(i).scores, scores, floats_each * static_cast<int64_t>(sizeof(float)));
  }
  if (Wants(picks_alone)) {
    Measure(picks_alone, score_bytes, 0, std::max(copies, 12),
            [&](int i) { parts->picks(context(), calls[0], of_call(i)); });
  }
  // As in a step, where they were written just before.
  Measure(picks_cached, score_bytes, 0, 12, [&](int) { parts->picks(context(), calls[0], of_call(0)); });
}

void KernelBench::Small(int rows) {
  const KernelTable& table = *backend_.kernels;
  const auto named = [&](std::string_view what) { return fmt::format("small {}, {} rows", what, rows); };
  ArenaScope scope(data_.arena());
  constexpr int kSets = 40;
  const int m = kFlash.streams;
  const int64_t dim = kFlash.dim;
  float* streams = data_.Upload(Values(rows * m * dim));
  float* x = data_.Upload(Values(rows * dim));
  const float* y = data_.Upload(Values(rows * dim));
  float* post = data_.Upload(std::vector<float>(rows * m, 1));
  float* comb = data_.Upload(std::vector<float>(rows * m * m, 0.25f));
  const int outputs = m * (2 + m);
  if (Wants(named("hyper_connection_pre"))) {
    std::vector<MatrixView> fn;
    for (int i = 0; i < kSets; ++i) fn.push_back(data_.Matrix(DType::kF32, outputs, m * dim));
    const VectorView base = data_.Vector(DType::kF32, outputs);
    const VectorView scale = data_.Vector(DType::kF32, 4);
    const VectorView norm = data_.Vector(DType::kBF16, dim);
    const auto measure = [&](const std::string& name, const SublayerOutput& back, int passes) {
      Measure(name, static_cast<double>(fn[0].bytes()) + 4.0 * rows * dim * passes, 0, kSets, [&](int i) {
        table.hyper_connection_pre(context(), {.rows = rows,
                                               .m = m,
                                               .dim = kFlash.dim,
                                               .streams = streams,
                                               .back = back,
                                               .tap = {},
                                               .fn = fn[i],
                                               .base = base,
                                               .scale = {DType::kF32, 3, scale.data},
                                               .norm = norm,
                                               .sinkhorn_iters = 20,
                                               .hc_eps = 1e-6f,
                                               .norm_eps = 1e-6f,
                                               .x = x,
                                               .post = post,
                                               .comb = comb});
      });
    };
    measure(named("hyper_connection_pre"), {}, m + 1);
    measure(named("hyper_connection_pre, mixing back"), {y, post, comb}, 2 * m + 2);
  }
  if (Wants(named("hyper_connection_post"))) {
    Measure(named("hyper_connection_post"), 4.0 * rows * dim * (2 * m + 1), 0, kSets, [&](int) {
      table.hyper_connection_post(
          context(), {.rows = rows, .m = m, .dim = kFlash.dim, .back = {y, post, comb}, .streams = streams});
    });
  }
  if (Wants(named("router"))) {
    const float* logits = data_.Upload(Values(rows * kFlash.experts));
    const VectorView bias = data_.Vector(DType::kF32, kFlash.experts);
    int32_t* ids = data_.Allocate<int32_t>(rows * kFlash.per_token);
    float* weights = data_.Allocate<float>(rows * kFlash.per_token);
    Measure(named("router"), 4.0 * rows * kFlash.experts, 0, kSets, [&](int) {
      table.router(context(), {.rows = rows,
                               .num_experts = kFlash.experts,
                               .experts_per_token = kFlash.per_token,
                               .scaling = 1.5f,
                               .logits = logits,
                               .bias = bias,
                               .ids = ids,
                               .weights = weights});
    });
  }
  const float* angles = data_.Upload(std::vector<float>(rows * kFlash.rope_dim / 2, 0.5f));
  if (Wants(named("key"))) {
    const EntryLayout entry{CacheFormat::kPacked, kFlash.head_dim, kFlash.rope_dim};
    const float* kv = data_.Upload(Values(rows * kFlash.head_dim));
    std::byte* entries = data_.Allocate<std::byte>(rows * entry.bytes());
    const VectorView norm = data_.Vector(DType::kBF16, kFlash.head_dim);
    Measure(named("key"), rows * (4.0 * kFlash.head_dim + static_cast<double>(entry.bytes())), 0, kSets,
            [&](int) {
              const KeyArgs key = {.rows = rows,
                                   .layout = entry,
                                   .kv = kv,
                                   .norm = norm,
                                   .eps = 1e-6f,
                                   .cos = angles,
                                   .sin = angles,
                                   .entries = entries};
              table.attention_inputs(context(), {.keys = {&key, 1}});
            });
  }
  if (Wants(named("rms_norm"))) {
    const VectorView norm = data_.Vector(DType::kBF16, kFlash.q_lora);
    Measure(named("rms_norm"), 8.0 * rows * kFlash.q_lora, 0, kSets, [&](int) {
      table.rms_norm(context(),
                     {.rows = rows, .dim = kFlash.q_lora, .x = x, .weight = norm, .eps = 1e-6f, .out = x});
    });
  }
}

void KernelBench::Compressors(int ratio, int sequences, bool ends_window) {
  const bool csa = ratio == 4;
  const std::string name = fmt::format("compressors {}, {} rows, {}", csa ? "CSA" : "HCA", sequences,
                                       ends_window ? "an entry each" : "no entry");
  if (!Wants(name)) return;
  ArenaScope scope(data_.arena());
  constexpr int kSets = 40;
  const EntryLayout entry{CacheFormat::kPacked, kFlash.head_dim, kFlash.rope_dim};
  const IndexKeyLayout key{CacheFormat::kPacked, kFlash.index_dim};
  const int64_t position = 50 * ratio - (ends_window ? 1 : ratio);
  const int64_t slots = csa ? 16 : 144;
  const int shares = csa ? 2 : 1;  // of a row, in windows
  const auto pages = [&](int64_t item_bytes) {
    const std::vector<std::byte*> blocks(1, data_.Allocate<std::byte>(64 * item_bytes));
    return PagedView{data_.Upload(blocks), 0, item_bytes, 64};
  };
  const auto ring = [&](int dim) {
    const int64_t floats = int64_t{2} * shares * dim;
    float* rows = data_.Upload(Values(slots * floats));
    return RingView{reinterpret_cast<std::byte*>(rows), floats * int64_t{sizeof(float)}, slots};
  };
  std::vector<AttentionInputsArgs> calls;
  const float* frequencies = data_.Upload(std::vector<float>(kFlash.rope_dim / 2, 0.01f));
  for (int i = 0; i < kSets; ++i) {
    std::vector<SequenceRows> rows;
    for (int s = 0; s < sequences; ++s) {
      rows.push_back({.first_row = s, .num_rows = 1, .first_position = position, .cache = {}});
      rows.back().cache.compressed = pages(entry.bytes());
      rows.back().cache.compressor_rows = ring(kFlash.head_dim);
      if (!csa) continue;
      rows.back().cache.index_keys = pages(key.bytes());
      rows.back().cache.index_compressor_rows = ring(kFlash.index_dim);
    }
    const std::span<const SequenceRows> on_device(data_.Upload(rows), rows.size());
    const auto compressor = [&](bool for_indexer) {
      const int dim = for_indexer ? kFlash.index_dim : kFlash.head_dim;
      return CompressorArgs{.sequences = on_device,
                            .rows = sequences,
                            .ratio = ratio,
                            .for_indexer = for_indexer,
                            .entry = entry,
                            .index_key = key,
                            .dim = dim,
                            .rope_dim = kFlash.rope_dim,
                            .a = data_.Upload(Values(int64_t{sequences} * shares * dim)),
                            .b = data_.Upload(Values(int64_t{sequences} * shares * dim)),
                            .ape = data_.Matrix(DType::kF32, ratio, shares * dim),
                            .norm = data_.Vector(DType::kBF16, dim),
                            .norm_eps = 1e-6f,
                            .frequencies = frequencies};
    };
    calls.push_back({.compressor = compressor(false)});
    if (csa) calls.back().index_compressor = compressor(true);
  }
  Measure(name, 0, 0, kSets, [&](int i) { backend_.kernels->attention_inputs(context(), calls[i]); });
}

void KernelBench::Sample(const std::string& what, int sequences, int num_drafts, bool by_rejection,
                         const SampleRow& like) {
  const std::string name = fmt::format("sample {}, {} sequences", what, sequences);
  if (!Wants(name)) return;
  ArenaScope scope(data_.arena());
  constexpr int kVocabSize = 129280;
  constexpr int kDistinctRows = 32;  // as the head leaves them: in the caches, as far as they hold them
  const int rows_each = num_drafts + 1;
  const int rows = sequences * rows_each;
  const float* logits = data_.Upload(Values(int64_t{kDistinctRows + 1} * kVocabSize));
  const RowStatistics* statistics = data_.Upload(std::vector<RowStatistics>(1, {12, 5, {}}));
  std::vector<SampleRow> draws(rows);
  std::vector<SampleSequence> of(sequences);
  for (int r = 0; r < rows; ++r) {
    draws[r] = like;
    draws[r].logits = logits + int64_t{r % kDistinctRows} * kVocabSize;
    draws[r].noise = static_cast<uint64_t>(r) << 32;
    draws[r].sequence = r / rows_each;
    draws[r].draft = r;
    if (!by_rejection) continue;
    draws[r].draft_logits = draws[r].logits + kVocabSize;
    draws[r].draft_statistics = statistics;
    draws[r].acceptance_noise = 0.5;
    draws[r].acceptance_probability = 0.8;
  }
  for (int s = 0; s < sequences; ++s) {
    of[s] = {.first_row = s * rows_each, .num_drafts = num_drafts, .by_rejection = by_rejection};
  }
  const SampleArgs args = {.num_rows = rows,
                           .num_sequences = sequences,
                           .vocab_size = kVocabSize,
                           .normalize = by_rejection,
                           .has_cuts = like.top_k > 0 || like.top_p < 1,
                           .rows = data_.Upload(draws),
                           .sequences = data_.Upload(of),
                           .accepted = data_.Allocate<int32_t>(sequences),
                           .tokens = data_.Allocate<int32_t>(sequences)};
  Measure(name, 4.0 * rows * kVocabSize, 0, 8, [&](int) { backend_.kernels->sample(context(), args); });
}

void KernelBench::PlanDrafts(int sequences, int num_drafts) {
  const std::string name = fmt::format("plan of {} sequences, {} drafts each", sequences, num_drafts);
  if (!Wants(name)) return;
  ArenaScope scope(data_.arena());
  constexpr int kLayers = 44;  // with the taps
  const int64_t drafts = int64_t{sequences} * num_drafts;
  const TokenId* tokens = data_.Upload(std::vector<TokenId>(drafts, 1));
  const float* logits = data_.Upload(Values(drafts));
  std::vector<PlannedSequence> planned(sequences);
  for (int s = 0; s < sequences; ++s) {
    planned[s] = {.first_known = s,
                  .known_rows = 1,
                  .has_logits = 1,
                  .num_drafts = num_drafts,
                  .first_scale = s * num_drafts,
                  .stride = sequences,
                  .tokens = tokens + s,
                  .logits = logits + s,
                  .margins = logits + s};
  }
  const int count = static_cast<int>((drafts + 1) / 2);
  const int rows = sequences + count;
  const PlanDraftsArgs args = {
      .count = count,
      .drafts_max = num_drafts,
      .sequences = {data_.Upload(planned), planned.size()},
      .scales = data_.Upload(std::vector<ConfidenceScale>(drafts)),
      .known_tokens = tokens,
      .rows = rows,
      .num_logits = rows,
      .heads_all = true,
      .layers = kLayers,
      .views = data_.Upload(std::vector<SequenceRows>(static_cast<size_t>(kLayers) * sequences)),
      .tokens = data_.Allocate<TokenId>(rows),
      .positions = data_.Allocate<int64_t>(rows),
      .logit_rows = data_.Allocate<int32_t>(rows),
      .verified = data_.Allocate<int32_t>(sequences)};
  Measure(name, 0, 0, 8, [&](int) { backend_.kernels->plan_drafts(context(), args); });
}

void KernelBench::RunAll() {
  MeasureCopy();
  fmt::print("{}, table {}: a copy moves {:.0f} GB/s\n", backend_.device->name(), backend_.kernels->name,
             copy_gb_per_second_);
  using enum DType;
  for (int rows : {1, 8, 64, 512, 4096}) {
    Linear("wq_b 32768 x 1024", rows, {{kF8E4M3, 32768}}, 1024, LinearNumerics::kProjection,
           /*of_heads=*/true);
    Linear("wo_b 4096 x 8192", rows, {{kF8E4M3, 4096}}, 8192, LinearNumerics::kProjection);
    Linear("wq_a, wkv 1536 x 4096", rows, {{kF8E4M3, 1024}, {kF8E4M3, 512}}, 4096,
           LinearNumerics::kProjection);
    Linear("indexer wq_b 8192 x 1024", rows, {{kF8E4M3, 8192}}, 1024, LinearNumerics::kProjection);
    GroupedLinear(rows);
    if (rows > 64) continue;
    Linear("CSA inputs: wq_a, wkv, compressors, index weights", rows,
           {{kF8E4M3, 1024},
            {kF8E4M3, 512},
            {kBF16, 1024},
            {kBF16, 1024},
            {kBF16, 256},
            {kBF16, 256},
            {kBF16, 64}},
           4096, LinearNumerics::kFloat32);
    Linear("router 256 x 4096", rows, {{kBF16, 256}}, 4096, LinearNumerics::kFloat32);
    Linear("head 129280 x 4096", rows, {{kBF16, 129280}}, 4096, LinearNumerics::kFloat32);
  }
  for (int rows : {1, 8, 64, 512, 4096}) Moe(rows, /*with_shared=*/false);
  for (int rows : {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096}) Moe(rows, /*with_shared=*/true);
  for (int sequences : {1, 2, 4, 8, 16, 24, 32, 64, 128}) {
    Attention("Flash 128 + 512 keys", 64, sequences, 1, 512, 16384, CompressedKeys::kPicked);
  }
  Attention("Flash 128 + 512 keys", 64, 1, 6, 512, 16384, CompressedKeys::kPicked);
  Attention("Flash 128 + 512 keys", 64, 128, 6, 512, 16384, CompressedKeys::kPicked);
  Attention("Flash 128 keys", 64, 1, 1, 512, 1, CompressedKeys::kNone);
  for (int sequences : {1, 8, 128}) {
    Attention("Pro 128 + 1024 keys", 128, sequences, 1, 1024, 16384, CompressedKeys::kPicked);
  }
  Attention("Flash, HCA 128 + 1024 keys", 64, 1, 1, 512, 1024, CompressedKeys::kAll);
  for (int sequences : {1, 2, 4}) {
    Attention("Flash, HCA 128 + 8192 keys", 64, sequences, 1, 512, 8192, CompressedKeys::kAll);
  }
  for (int keys : {4096, 16384, 65536, 262144}) {
    Indexer(1, 1, keys);
    Indexer(1, 6, keys);
    Indexer(8, 1, keys);
    Indexer(64, 1, keys);
  }
  for (int rows : {1, 8, 64}) Small(rows);
  for (int ratio : {4, 128}) {
    for (int sequences : {1, 8}) {
      for (bool ends_window : {false, true}) Compressors(ratio, sequences, ends_window);
    }
  }
  for (int sequences : {1, 8, 64, 256}) {
    Sample("draws", sequences, 0, false);
    if (sequences <= 64) Sample("5 drafts by rejection", sequences, 5, true);
  }
  // At temperature 1 the logits are so flat that top_p keeps most of them.
  for (int sequences : {1, 8, 64}) {
    constexpr double kCool = 3;  // inverse
    Sample("draws of top_p", sequences, 0, false, {.inverse_temperature = kCool, .top_p = 0.95});
    Sample("draws of top_k and top_p", sequences, 0, false,
           {.inverse_temperature = kCool, .top_p = 0.95, .top_k = 50});
    Sample("draws of top_p of flat rows", sequences, 0, false, {.inverse_temperature = 1, .top_p = 0.95});
    Sample("5 drafts of top_p by rejection", sequences, 5, true,
           {.inverse_temperature = kCool, .top_p = 0.95});
  }
  for (int sequences : {1, 8, 64, 256}) PlanDrafts(sequences, 5);
}

std::string KernelBench::Json(std::string_view commit) const {
  std::string list;
  for (const Timing& r : results_) {
    list += fmt::format(
        "{}\n    {{\"name\": \"{}\", \"bytes\": {:.0f}, \"flops\": {:.0f}, \"us\": {{\"median\": {:.3f}, "
        "\"min\": "
        "{:.3f}, \"max\": {:.3f}}}, \"share_of_copy\": {:.4f}}}",
        list.empty() ? "" : ",", r.name, r.bytes, r.flops, r.us[r.us.size() / 2], r.us.front(), r.us.back(),
        r.bytes / r.us[r.us.size() / 2] * 1e-3 / copy_gb_per_second_);
  }
  return fmt::format(
      "{{\n  \"device\": \"{}\", \"table\": \"{}\", \"commit\": \"{}\", \"copy_gb_per_second\": {:.1f},\n"
      "  \"kernels\": [{}\n  ]\n}}\n",
      backend_.device->name(), backend_.kernels->name, commit, copy_gb_per_second_, list);
}

}  // namespace
}  // namespace foresight

int main(int argc, char** argv) {
  using namespace foresight;
  std::string filter, json, commit = "unknown", device = "cuda", table = "auto";
  int gigabytes = 24;
  CLI::App app("Times the kernels of a device at the released models' shapes");
  app.add_option("--filter", filter, "Only what has this in its name");
  app.add_option("--json", json, "Write the figures to this file");
  app.add_option("--commit", commit, "To be written with them");
  app.add_option("--device", device, "cuda or cuda:N")->capture_default_str();
  app.add_option("--table", table, "The kernel table")->capture_default_str();
  app.add_option("--gigabytes", gigabytes, "Device memory for weights and caches")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const auto fail = [](const Status& status) {
    fmt::print(stderr, "kernel_bench: {}\n", status.message());
    return 1;
  };
  auto backend = OpenBackend(device, table);
  if (!backend.ok()) return fail(backend.error());
  if (backend->device == nullptr)
    return fail(InvalidArgument("times devices; for the CPU there are linear_bench and attention_bench"));
  auto data = DeviceData::Make(*backend->device, int64_t{gigabytes} << 30);
  if (!data.ok()) return fail(data.error());
  auto scratch = backend->device->Allocate(int64_t{4} << 30, "scratch of kernels");
  if (!scratch.ok()) return fail(scratch.error());
  KernelBench bench(std::move(*backend), std::move(*data), std::move(*scratch), filter);
  bench.RunAll();
  if (!bench.status().ok()) return fail(bench.status());
  if (!json.empty() && !(std::ofstream(json) << bench.Json(commit))) {
    return fail(InvalidArgument("can't write {}", json));
  }
  return 0;
}
