// Speeds as ratios within one run on one machine: decode against a plain read of the same weights by the same
// threads, measured in turn with it; prefill against oneDNN's GEMM (a program of its own beside this one).

#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <optional>
#include <random>

#include "base/json.h"
#include "base/read_bandwidth.h"
#include "base/tell.h"
#include "base/text_file.h"
#include "base/units.h"
#include "cli/command.h"
#include "cli/model_flags.h"
#include "engine/engine_access.h"
#include "model/costs.h"
#include "weights/synthetic.h"

namespace foresight {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kWarmUpsMax = 10;

struct BenchFlags {
  ModelFlags model;
  std::string synthetic;
  int experts = 0;
  std::vector<int> batches = {1, 2, 4, 8};
  std::vector<int64_t> contexts = {1024, 4096};
  int prefill_rows = 512;
  int repeat = 5;
  int steps = 8;
  std::string json;
};

struct Spread {
  double median = 0;
  double min = 0;
  double max = 0;
};

Spread SpreadOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {values[values.size() / 2], values.front(), values.back()};
}

std::string ToJson(const Spread& s) {
  return fmt::format("{{\"median\": {:.6g}, \"min\": {:.6g}, \"max\": {:.6g}}}", s.median, s.min, s.max);
}

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// GFLOP/s of the yardstick program beside this one; none when this build has none.
std::optional<double> MeasureGemmPeak(int threads) {
  std::array<char, 4096> path;
  const ssize_t length = readlink("/proc/self/exe", path.data(), path.size());
  if (length <= 0) return std::nullopt;
  std::string program(path.data(), length);
  program = program.substr(0, program.rfind('/') + 1) + "foresight-gemm-peak";
  if (access(program.c_str(), X_OK) != 0) return std::nullopt;
  std::FILE* pipe = popen(fmt::format("'{}' {}", program, threads).c_str(), "r");
  if (pipe == nullptr) return std::nullopt;
  std::string text;
  std::array<char, 512> piece;
  while (const size_t n = std::fread(piece.data(), 1, piece.size(), pipe)) text.append(piece.data(), n);
  if (pclose(pipe) != 0) return std::nullopt;
  const auto json = ParseJson(text);
  if (!json.ok() || !json->is_object()) return std::nullopt;
  const boost::json::value* median = json->get_object().if_contains("gflops_median");
  return median != nullptr && median->is_double() ? std::optional(median->get_double()) : std::nullopt;
}

struct DecodePoint {
  int batch = 0;
  int64_t context = 0;
  Spread tokens_per_second;
  Spread read_share;  // at batch 1: of the rate at which a plain read of a token's weights ran just before
};

class Bench {
 public:
  Bench(Runtime& engine, const BenchFlags& flags)
      : engine_(engine), flags_(flags), weights_of_token_(WeightsOfToken(engine.weights())) {}

  Status Run();

 private:
  TokenId NextToken() {
    return static_cast<TokenId>((token_ = token_ * 1664525u + 1013904223u) % engine_.config().vocab_size);
  }
  // One step of `rows` rows a sequence, the last one with logits; returns the seconds until these are there,
  // in the device's memory.
  Result<double> Step(std::span<SequenceState*> sequences, int rows);
  Result<Spread> MeasurePrefill();
  Result<DecodePoint> MeasureDecode(int batch, int64_t context);
  // GB/s: on the host, at which the engine's threads read the weights of a token, and nothing else; on
  // another device, that a copy within its memory reads and writes together.
  Result<double> MeasureBandwidth();
  // Prefills a sequence up to `length`, in chunks.
  Status Fill(SequenceState& sequence, int64_t length);

  Runtime& engine_;
  const BenchFlags& flags_;
  const std::vector<std::span<const std::byte>> weights_of_token_;
  DeviceMemory copied_;
  uint32_t token_ = 1;
};

Result<double> Bench::MeasureBandwidth() {
  Device& device = engine_.device();
  if (device.is_host()) return MeasureReadBandwidth(engine_.pool(), weights_of_token_, 1).front();
  constexpr int64_t kBytes = int64_t{512} << 20;
  constexpr int kCopies = 8;
  if (copied_.data() == nullptr) {
    ASSIGN_OR_RETURN(copied_, device.Allocate(2 * kBytes, "copies that measure the bandwidth"));
  }
  RETURN_IF_ERROR(device.Synchronize());
  const Clock::time_point start = Clock::now();
  for (int i = 0; i < kCopies; ++i) device.Copy(copied_.data(), copied_.data() + kBytes, kBytes);
  RETURN_IF_ERROR(device.Synchronize());
  return 2e-9 * kBytes * kCopies / SecondsSince(start);
}

Result<double> Bench::Step(std::span<SequenceState*> sequences, int rows) {
  std::vector<SequenceChunk> chunks;
  std::vector<TokenId> tokens;
  std::vector<int32_t> logit_rows;
  for (SequenceState* s : sequences) {
    chunks.push_back({.sequence = s, .num_rows = rows});
    for (int i = 0; i < rows; ++i) tokens.push_back(NextToken());
    logit_rows.push_back(static_cast<int32_t>(tokens.size()) - 1);
  }
  const Clock::time_point start = Clock::now();
  ASSIGN_OR_RETURN(const StepOutputs out,
                   engine_.model().Step(
                       {.tokens = tokens, .chunks = chunks, .logit_rows = logit_rows, .keep_logits = true}));
  RETURN_IF_ERROR(engine_.device().Synchronize());
  if (out.device_logits == nullptr) return InvalidArgument("a step without logits");
  return SecondsSince(start);
}

// Random compressed entries and index keys for the first `length` tokens of a synthetic model's sequence: as
// good as what random weights would have put there, and at once. Rings stay as they are: a window of real
// rows comes after.
Status FillWithRandomEntries(const CacheLayout& layout, int64_t length, Device& device,
                             SequenceState& sequence) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(std::max(layout.entry.dim, layout.index_key.dim));
  std::vector<std::byte> entry_bytes(layout.entry.bytes());
  std::vector<std::byte> key_bytes(layout.index_key.bytes());
  RETURN_IF_ERROR(sequence.Reserve(length));
  for (int i = 0; i < layout.num_main_layers; ++i) {
    const LayerCacheLayout& layer = layout.layers[i];
    if (layer.kind == LayerKind::kSwa) continue;
    for (int64_t entry = 0; entry < length / static_cast<int64_t>(layer.kind); ++entry) {
      for (float& value : x) value = normal(random);
      EncodeEntry(layout.entry, x.data(), entry_bytes.data());
      device.Upload(sequence.CompressedEntry(i, entry), entry_bytes.data(), std::ssize(entry_bytes));
      if (layer.kind != LayerKind::kCsa) continue;
      EncodeIndexKey(layout.index_key, x.data(), key_bytes.data());
      device.Upload(sequence.IndexKey(i, entry), key_bytes.data(), std::ssize(key_bytes));
    }
  }
  sequence.Advance(length);
  return Status();
}

Status Bench::Fill(SequenceState& sequence, int64_t length) {
  const int64_t skipped = (length - engine_.model().max_step_rows()) / kBlockTokens * kBlockTokens;
  if (engine_.is_synthetic() && skipped > 0) {
    RETURN_IF_ERROR(
        FillWithRandomEntries(engine_.model().cache_layout(), skipped, engine_.device(), sequence));
  }
  SequenceState* one[] = {&sequence};
  while (sequence.length() < length) {
    const int rows =
        static_cast<int>(std::min<int64_t>(length - sequence.length(), engine_.model().max_step_rows()));
    ASSIGN_OR_RETURN([[maybe_unused]] const double seconds, Step(one, rows));
  }
  return Status();
}

Result<Spread> Bench::MeasurePrefill() {
  std::vector<double> tokens_per_second;
  for (int run = -1; run < flags_.repeat; ++run) {
    ASSIGN_OR_RETURN(SequenceState sequence, engine_.cache().NewSequence());
    SequenceState* one[] = {&sequence};
    ASSIGN_OR_RETURN(const double seconds, Step(one, flags_.prefill_rows));
    if (run >= 0) tokens_per_second.push_back(flags_.prefill_rows / seconds);
  }
  return SpreadOf(tokens_per_second);
}

Result<DecodePoint> Bench::MeasureDecode(int batch, int64_t context) {
  DecodePoint point{.batch = batch, .context = context, .tokens_per_second = {}, .read_share = {}};
  std::vector<SequenceState> states;
  ASSIGN_OR_RETURN(SequenceState first, engine_.cache().NewSequence());
  RETURN_IF_ERROR(Fill(first, context));
  states.push_back(std::move(first));
  for (int i = 1; i < batch; ++i) {
    ASSIGN_OR_RETURN(SequenceState fork, states.front().Fork());
    states.push_back(std::move(fork));
  }
  std::vector<SequenceState*> sequences;
  sequences.reserve(states.size());
  for (SequenceState& s : states) sequences.push_back(&s);
  // A device records a step that comes again and again, but one of many rows.
  for (int i = 0; i < kWarmUpsMax; ++i) {
    const int64_t unrecorded_runs = engine_.device().unrecorded_runs();
    ASSIGN_OR_RETURN([[maybe_unused]] const double seconds, Step(sequences, 1));
    if (engine_.device().unrecorded_runs() == unrecorded_runs) break;
  }
  const double token_gb = WeightBytesPerToken(engine_.weights()) * 1e-9;
  std::vector<double> tokens_per_second;
  std::vector<double> read_share;
  for (int run = 0; run < flags_.repeat; ++run) {
    ASSIGN_OR_RETURN(const double read, MeasureBandwidth());
    double seconds = 0;
    for (int i = 0; i < flags_.steps; ++i) {
      ASSIGN_OR_RETURN(const double step_seconds, Step(sequences, 1));
      seconds += step_seconds;
    }
    tokens_per_second.push_back(batch * flags_.steps / seconds);
    read_share.push_back(token_gb * flags_.steps / seconds / read);
  }
  point.tokens_per_second = SpreadOf(tokens_per_second);
  point.read_share = SpreadOf(read_share);
  return point;
}

Status Bench::Run() {
  const ModelWeights& weights = engine_.weights();
  const int threads = engine_.pool().num_threads();
  const double token_gb = WeightBytesPerToken(weights) * 1e-9;
  // Of one sequence's prefill: logits for its last row only.
  const double prefill_gflop = (static_cast<double>(MatrixFlopsPerRow(weights, false)) * flags_.prefill_rows +
                                2.0 * weights.head.rows * weights.head.cols) *
                               1e-9;
  Tell("{}", engine_.StartUpReport());
  const bool on_host = engine_.device().is_host();
  const std::string_view yardstick = on_host ? "plain read" : "copy on device";
  std::vector<double> reads;
  for (int run = -1; run < flags_.repeat; ++run) {
    ASSIGN_OR_RETURN(const double rate, MeasureBandwidth());
    if (run >= 0) reads.push_back(rate);
  }
  const Spread read = SpreadOf(reads);
  std::optional<double> gemm;
  if (on_host) gemm = MeasureGemmPeak(threads);
  fmt::print("{:<20} {:8.1f} GB/s  ({:.1f} to {:.1f})\n", yardstick, read.median, read.min, read.max);
  if (!on_host) {
    fmt::print("BF16 GEMM peak       not measured on a device\n");
  } else if (gemm) {
    fmt::print("oneDNN BF16 GEMM     {:8.1f} GFLOP/s\n", *gemm);
  } else {
    fmt::print("oneDNN BF16 GEMM     not measured: foresight-gemm-peak is not beside this program\n");
  }

  ASSIGN_OR_RETURN(const Spread prefill, MeasurePrefill());
  const double gflops = prefill.median / flags_.prefill_rows * prefill_gflop;
  fmt::print("prefill of {:<9} {:8.1f} tokens/s ({:.1f} to {:.1f}), {:.1f} GFLOP/s in matrix products{}\n",
             flags_.prefill_rows, prefill.median, prefill.min, prefill.max, gflops,
             gemm ? fmt::format(", {:.0f} % of the GEMM peak", 100 * gflops / *gemm) : "");

  fmt::print("weights read by a token at batch 1: {:.3f} GB\n", token_gb);
  std::vector<DecodePoint> points;
  for (int64_t context : flags_.contexts) {
    for (int batch : flags_.batches) {
      ASSIGN_OR_RETURN(const DecodePoint p, MeasureDecode(batch, context));
      fmt::print("decode, batch {:<3} context {:<7} {:8.1f} tokens/s ({:.1f} to {:.1f})", p.batch, p.context,
                 p.tokens_per_second.median, p.tokens_per_second.min, p.tokens_per_second.max);
      if (p.batch == 1) {
        fmt::print(", {:.1f} GB/s, {:.0f} % of a {} ({:.0f} to {:.0f})",
                   p.tokens_per_second.median * token_gb, 100 * p.read_share.median, yardstick,
                   100 * p.read_share.min, 100 * p.read_share.max);
      }
      fmt::print("\n");
      std::fflush(stdout);
      points.push_back(p);
    }
  }
  const ResidentMemory resident = ReadResidentMemory();
  fmt::print("memory               {} resident, {} accounted\n", FormatBytes(resident.total_bytes()),
             FormatBytes(engine_.AccountedBytes()));

  if (flags_.json.empty()) return Status();
  std::string decode;
  for (const DecodePoint& p : points) {
    decode += fmt::format(
        "{}\n    {{\"batch\": {}, \"context\": {}, \"tokens_per_second\": {}, \"weight_gb_per_second\": {}, "
        "\"read_bandwidth_share\": {}}}",
        decode.empty() ? "" : ",", p.batch, p.context, ToJson(p.tokens_per_second),
        p.batch == 1 ? fmt::format("{:.4f}", p.tokens_per_second.median * token_gb) : "null",
        p.batch == 1 ? ToJson(p.read_share) : "null");
  }
  const std::string json = fmt::format(
      "{{\n  \"version\": \"{}\", \"model\": \"{}\", \"synthetic\": {}, \"experts\": {}, \"processor\": "
      "\"{}\", \"threads\": {}, \"device\": \"{}\",\n"
      "  \"kernels\": \"{}\", \"numerics\": \"{}\", \"runs\": {}, \"steps_per_run\": {},\n"
      "  \"read_gb_per_second\": {}, \"gemm_gflops\": {},\n"
      "  \"prefill\": {{\"rows\": {}, \"tokens_per_second\": {}, \"matrix_gflops\": {:.2f}, "
      "\"gemm_peak_share\": {}}},\n"
      "  \"weight_bytes_per_token\": {}, \"decode\": [{}\n  ],\n"
      "  \"resident_bytes\": {}, \"accounted_bytes\": {}\n}}\n",
      FORESIGHT_VERSION, engine_.is_synthetic() ? flags_.synthetic : "checkpoint", engine_.is_synthetic(),
      engine_.config().n_routed_experts, engine_.machine().processor, threads, engine_.device().name(),
      engine_.model().table().name, engine_.model().numerics() == Numerics::kFaithful ? "faithful" : "clean",
      flags_.repeat, flags_.steps, ToJson(read), gemm ? fmt::format("{:.2f}", *gemm) : "null",
      flags_.prefill_rows, ToJson(prefill), gflops, gemm ? fmt::format("{:.4f}", gflops / *gemm) : "null",
      WeightBytesPerToken(weights), decode, resident.total_bytes(), engine_.AccountedBytes());
  return WriteTextFile(flags_.json, json);
}

Status RunBench(const BenchFlags& flags) {
  if (!flags.json.empty()) RETURN_IF_ERROR(CheckWritable(flags.json));
  EngineOptions options = flags.model.ToOptions();
  TerminalProgress progress;
  options.progress = &progress;
  options.max_sequences = *std::max_element(flags.batches.begin(), flags.batches.end()) + 1;
  options.kept_prefixes_max = 0;
  options.speculation.draft = DraftChoice::kNone;
  const int64_t longest = *std::max_element(flags.contexts.begin(), flags.contexts.end());
  options.context_tokens =
      std::max<int64_t>(longest, flags.prefill_rows) + (flags.repeat + 1) * flags.steps + kBlockTokens;
  options.step_rows_max = std::max(512, flags.prefill_rows);
  if (!flags.synthetic.empty()) {
    ASSIGN_OR_RETURN(const ModelConfig config, ParseSyntheticSpec(flags.synthetic, flags.experts));
    ASSIGN_OR_RETURN(const std::unique_ptr<Runtime> engine, Runtime::Synthesize(config, options));
    return Bench(*engine, flags).Run();
  }
  ASSIGN_OR_RETURN(const ModelFiles files, OpenModel(flags.model.directory));
  ASSIGN_OR_RETURN(const std::unique_ptr<Runtime> engine, Runtime::Load(files, options));
  return Bench(*engine, flags).Run();
}

}  // namespace

void AddBenchCommand(Command& app, Status* result) {
  auto flags = std::make_shared<BenchFlags>();
  Command command = app.AddCommand("bench", "Measure prefill and decode against what this machine can do");
  flags->model.AddTo(command);
  command.Remove("--context");
  const Flag synthetic = command.Add(
      "--synthetic", flags->synthetic,
      "Random weights of a released shape, made in memory: flash:LAYERS or pro:LAYERS, with a draft head "
      "+dspark, +dspark:STAGES or +mtp");
  command.Add("--experts", flags->experts, "Keep only so many routed experts of a synthetic model")
      .Needs(synthetic);
  command.Add("--batches", flags->batches, "Sequences decoded at once")
      .SplitAtCommas()
      .Within(1, 256)
      .ShowDefault();
  command.Add("--contexts", flags->contexts, "Tokens before the decoded ones")
      .SplitAtCommas()
      .Within(1, 1 << 20)
      .ShowDefault();
  command.Add("--prefill", flags->prefill_rows, "Rows of the prefill step").Within(1, 4096).ShowDefault();
  command.Add("--repeat", flags->repeat, "Measurements; the median counts").Within(1, 1000).ShowDefault();
  command.Add("--steps", flags->steps, "Decode steps of one measurement").Within(1, 10000).ShowDefault();
  command.Add("--json", flags->json, "Write the figures to this file");
  AddBenchSpecCommand(command, result);
  command.OnRun([flags, result] { *result = RunBench(*flags); });
}

}  // namespace foresight
