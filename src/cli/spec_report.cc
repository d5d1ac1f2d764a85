// What the replication found, as JSON and as text.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/json.h"
#include "cli/spec_bench.h"
#include "cli/spec_figures.h"

namespace foresight {
namespace {

std::string Numbers(const std::vector<double>& values) {
  return fmt::format("[{:.4f}]", fmt::join(values, ", "));
}

std::string Names(const std::vector<std::string>& names) {
  std::string text = "[";
  for (const std::string& name : names) text += (text.size() > 1 ? ", " : "") + JsonString(name);
  return text + "]";
}

std::string ToJson(const AcceptanceRow& r) {
  auto counts = [](const std::array<int64_t, kDraftPositionsMax>& a) {
    return fmt::format("[{}]", fmt::join(a, ", "));
  };
  return fmt::format(
      "{{\"setup\": {}, \"temperature\": {}, \"domain\": {}, \"tokens\": {}, \"steps\": {}, "
      "\"accepted_length\": {:.4f}, \"verified\": {}, \"reached\": {}, \"accepted\": {}}}",
      JsonString(r.setup), r.temperature, JsonString(r.domain), r.completion_tokens, r.steps,
      r.accepted_length(), counts(r.drafts.verified), counts(r.drafts.reached), counts(r.drafts.accepted));
}

std::string WorkList(const std::vector<WorkDone>& work) {
  std::string text;
  for (const WorkDone& w : work) {
    text += fmt::format(
        "{}{{\"tokens\": {}, \"steps\": {}, \"rows\": {}, \"drafted\": {}, \"verified\": {}, "
        "\"accepted\": {}}}",
        text.empty() ? "" : ", ", w.tokens, w.steps, w.rows, w.drafted, w.verified, w.accepted);
  }
  return "[" + text + "]";
}

std::string ToJson(const SpeedRow& r) {
  return fmt::format(
      "{{\"setup\": {}, \"domain\": {}, \"concurrency\": {}, \"tokens_per_second\": {}, "
      "\"ratio_to_none\": {}, \"ratio\": {:.4f}, \"ratio_interval\": {}, \"rows_per_request\": {:.3f}, "
      "\"drafted_per_request\": {:.3f}, "
      "\"accepted_length\": {:.3f}, \"work\": {}}}",
      JsonString(r.setup), JsonString(r.domain), r.concurrency, Numbers(r.tokens_per_second),
      Numbers(r.ratio_to_none), r.ratio.value,
      std::isfinite(r.ratio.error) ? Numbers({r.ratio.low(), r.ratio.high()}) : "null", r.rows_per_request(),
      r.drafted_per_request(), r.accepted_length(), WorkList(r.work));
}

std::string ToJson(const MatchedSpeed& m) {
  return fmt::format(
      "{{\"setup\": {}, \"concurrency\": {}, \"tokens_per_second\": {:.4f}, \"mtp_user_speed\": {:.4f}, "
      "\"user_speed\": {}}}",
      JsonString(m.setup), m.concurrency, m.tokens_per_second, m.mtp_user_speed,
      m.user_speed ? fmt::format("{:.4f}", *m.user_speed) : "null");
}

std::string ToJson(const HeadRow& r) {
  return fmt::format("{{\"setup\": {}, \"stages\": {}, \"markov_rank\": {}}}", JsonString(r.setup), r.stages,
                     r.markov_rank);
}

std::string ToJson(const std::vector<std::vector<ReliabilityBin>>& positions) {
  std::string text = "[";
  for (const std::vector<ReliabilityBin>& bins : positions) {
    text += text.size() > 1 ? ", [" : "[";
    const char* separator = "";
    for (const ReliabilityBin& bin : bins) {
      text +=
          fmt::format("{}[{}, {:.4f}, {:.4f}]", separator, bin.rounds, bin.mean_predicted, bin.mean_observed);
      separator = ", ";
    }
    text += "]";
  }
  return text + "]";
}

std::string QualityList(const std::vector<PositionQuality>& quality, double PositionQuality::*field) {
  std::vector<double> values;
  for (const PositionQuality& q : quality) values.push_back(q.*field);
  return Numbers(values);
}

std::string ScaleList(const std::vector<ConfidenceScale>& scales, double ConfidenceScale::*field) {
  std::vector<double> values;
  for (const ConfidenceScale& s : scales) values.push_back(s.*field);
  return Numbers(values);
}

// Bins are [rounds, mean survival predicted, mean observed].
std::string ToJson(const ReliabilityRow& r) {
  return fmt::format(
      "{{\"regime\": \"{}\", \"temperatures\": {}, \"shifts\": {}, \"margin_weights\": {}, \"ece_before\": "
      "{}, \"ece_after\": {}, "
      "\"ece_noise\": {}, "
      "\"auroc\": {}, \"auroc_best\": {},\n     \"before\": {},\n     \"after\": {}}}",
      SamplingRegimeName(r.fitted.regime), ScaleList(r.fitted.scales, &ConfidenceScale::temperature),
      ScaleList(r.fitted.scales, &ConfidenceScale::shift),
      ScaleList(r.fitted.scales, &ConfidenceScale::margin_weight),
      QualityList(r.fitted.before, &PositionQuality::ece), QualityList(r.fitted.after, &PositionQuality::ece),
      QualityList(r.fitted.after, &PositionQuality::ece_noise),
      QualityList(r.fitted.after, &PositionQuality::auroc),
      QualityList(r.fitted.after, &PositionQuality::auroc_best), ToJson(r.before), ToJson(r.after));
}

template <typename Row>
std::string List(const std::vector<Row>& rows) {
  std::string text = "[";
  for (const Row& row : rows) text += (text.size() > 1 ? ",\n    " : "\n    ") + ToJson(row);
  return text + "\n  ]";
}

std::string BestMtp(const SpecReport& report, double temperature) {
  std::string best;
  double length = 0;
  for (const std::string& setup : Distinct(report.acceptance, &AcceptanceRow::setup)) {
    const double macro = Macro(report.acceptance, setup, temperature, AcceptedLength);
    if (setup.starts_with("mtp") && macro > length) {
      best = setup;
      length = macro;
    }
  }
  return best;
}

std::string AcceptanceText(const SpecReport& r) {
  std::string text;
  for (double temperature : {1.0, 0.0}) {
    text +=
        fmt::format("accepted length, temperature {:g}; conditional acceptance by position\n", temperature);
    for (const std::string& setup : Distinct(r.acceptance, &AcceptanceRow::setup)) {
      text += fmt::format("  {:<14}", setup);
      for (const AcceptanceRow& row : r.acceptance) {
        if (row.setup == setup && row.temperature == temperature) {
          text += fmt::format(" {} {:.2f}", row.domain, row.accepted_length());
        }
      }
      text += fmt::format("  macro {:.3f};", Macro(r.acceptance, setup, temperature, AcceptedLength));
      for (double share : ConditionalAcceptance(r.acceptance, setup, temperature))
        text += fmt::format(" {:.0f} %", 100 * share);
      text += "\n";
    }
    const double dspark = Macro(r.acceptance, "dspark k=5", temperature, AcceptedLength);
    for (const std::string& other : {BestMtp(r, temperature), std::string("dflash k=5")}) {
      const double length = Macro(r.acceptance, other, temperature, AcceptedLength);
      if (dspark > 0 && length > 0) {
        text += fmt::format("  dspark over {}: {:+.1f} %\n", other, 100 * (dspark / length - 1));
      }
    }
  }
  for (const HeadRow& head : r.heads) {
    text += fmt::format("{}: {} stages, sequential head of rank {}: {:.3f}\n", head.setup, head.stages,
                        head.markov_rank, Macro(r.acceptance, head.setup, 1, AcceptedLength));
  }
  for (const ReliabilityRow& row : r.reliability) {
    text += fmt::format("confidences, {}: ECE {} before, {} after; AUROC {} of at most {}\n",
                        SamplingRegimeName(row.fitted.regime),
                        QualityList(row.fitted.before, &PositionQuality::ece),
                        QualityList(row.fitted.after, &PositionQuality::ece),
                        QualityList(row.fitted.after, &PositionQuality::auroc),
                        QualityList(row.fitted.after, &PositionQuality::auroc_best));
  }
  return text;
}

std::string MatchedText(const SpecReport& r) {
  const std::vector<MatchedSpeed> matched = AgainstMtp(r.load);
  if (matched.empty()) return "";
  std::string text =
      "speed of a user, times MTP-1's, at the throughput that MTP-1 has with so many requests\n";
  for (const std::string& setup : Distinct(matched, &MatchedSpeed::setup)) {
    text += fmt::format("  {:<14}", setup);
    for (const MatchedSpeed& m : matched) {
      if (m.setup != setup) continue;
      text += m.user_speed ? fmt::format(" {}: {:.2f}", m.concurrency, *m.user_speed / m.mtp_user_speed)
                           : fmt::format(" {}: -", m.concurrency);
    }
    text += "\n";
  }
  return text;
}

}  // namespace

std::string SpecReportJson(const SpecReport& r) {
  return fmt::format(
      "{{\n  \"format\": \"foresight-spec-bench\", \"version\": 4, \"foresight\": \"{}\", \"complete\": {}, "
      "\"missing\": {}, \"replayed\": {},\n  \"model\": {}, \"processor\": {}, \"threads\": {}, "
      "\"max_tokens\": {}, "
      "\"requests_per_domain\": {},\n"
      "  \"acceptance\": {},\n  \"heads\": {},\n  \"reliability\": {},\n  \"block_lengths\": {},\n  "
      "\"thresholds\": {},\n  \"load\": {},\n  \"at_throughput_of_mtp\": {},\n  "
      "\"by_domain\": {}\n}}\n",
      FORESIGHT_VERSION, r.complete, Names(r.missing), JsonString(r.replayed), JsonString(r.model),
      JsonString(r.machine), r.threads, r.max_tokens, r.requests_per_domain, List(r.acceptance),
      List(r.heads), List(r.reliability), List(r.lengths), List(r.thresholds), List(r.load),
      List(AgainstMtp(r.load)), List(r.domains));
}

std::string SpecReportText(const SpecReport& r) {
  std::string text;
  if (!r.complete) text += "interrupted: a part of the figures\n";
  if (!r.missing.empty()) {
    text += fmt::format("not compared, for there is no head: {}\n", fmt::join(r.missing, ", "));
  }
  if (!r.replayed.empty()) {
    text += fmt::format("{}: which drafts are accepted is replayed from {}\n", r.model, r.replayed);
  }
  if (!r.acceptance.empty()) text += AcceptanceText(r);
  for (const auto* rows : {&r.load, &r.domains}) {
    if (rows->empty()) continue;
    text += rows == &r.load ? "speed, times none, by concurrent requests\n"
                            : "speed, times none, by domain and concurrent requests\n";
    for (const std::string& setup : Distinct(*rows, &SpeedRow::setup)) {
      text += fmt::format("  {:<14}", setup);
      for (const SpeedRow& row : *rows) {
        if (row.setup != setup) continue;
        const std::string at = rows == &r.load ? fmt::format("{}", row.concurrency)
                                               : fmt::format("{} {}", row.domain, row.concurrency);
        if (setup == "none") {
          text += fmt::format(" {}: {:.0f} tokens/s", at, row.median_tokens_per_second());
        } else {
          text += fmt::format(" {}: {}", at, row.ratio.ToText("+-"));
        }
      }
      text += "\n";
    }
  }
  return text + MatchedText(r);
}

}  // namespace foresight
