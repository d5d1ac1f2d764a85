#include <algorithm>
#include <cmath>

#include "foresight/request.h"
#include "speculative/calibration.h"
#include "speculative/calibration_fit.h"
#include "speculative/json_fields.h"

namespace foresight {
namespace {

constexpr std::string_view kFormat = "dspark-sts";
constexpr int kVersion = 5;
// What a temperature may be; the fit's grid lies within.
constexpr double kTemperatureMin = 1e-3;
constexpr double kTemperatureMax = 1e3;
constexpr double kShiftLimit = 100;
constexpr double kMarginWeightLimit = 1e3;

struct QualityField {
  std::string_view name;
  double PositionQuality::*field;
};
constexpr QualityField kQualityFields[] = {
    {"ece", &PositionQuality::ece},
    {"ece_noise", &PositionQuality::ece_noise},
    {"auc", &PositionQuality::auroc},
    {"auc_best", &PositionQuality::auroc_best},
    {"brier", &PositionQuality::brier},
    {"mean_pred", &PositionQuality::mean_predicted},
    {"mean_obs", &PositionQuality::mean_observed},
};

template <typename Range, typename Get>
std::string FormatNumbers(const Range& range, Get get) {
  std::string text = "[";
  for (const auto& entry : range) text += fmt::format("{}{:.8g}", text.size() == 1 ? "" : ", ", get(entry));
  return text + "]";
}

std::string FormatQuality(const std::vector<PositionQuality>& quality) {
  std::string text =
      "{\"rounds\": " + FormatNumbers(quality, [](const auto& q) { return static_cast<double>(q.rounds); });
  for (const QualityField& entry : kQualityFields) {
    const std::string numbers = FormatNumbers(quality, [&](const auto& q) { return q.*entry.field; });
    text += fmt::format(", \"{}\": {}", entry.name, numbers);
  }
  return text + "}";
}

Result<std::vector<double>> ParseNumbers(const boost::json::object& object, std::string_view key,
                                         int drafts_max) {
  ASSIGN_OR_RETURN(const boost::json::array* array, JsonArray(object, key, kDraftPositionsMax));
  if (std::ssize(*array) != drafts_max) {
    return InvalidArgument("{}: want {} numbers, one for each position, got {}", key, drafts_max,
                           array->size());
  }
  std::vector<double> numbers;
  for (const boost::json::value& value : *array) {
    ASSIGN_OR_RETURN(const double number, JsonNumber(value, key));
    numbers.push_back(number);
  }
  return numbers;
}

Result<std::vector<PositionQuality>> ParseQuality(const boost::json::object& object, std::string_view key,
                                                  int drafts_max) {
  ASSIGN_OR_RETURN(const boost::json::value* value, JsonMember(object, key));
  ASSIGN_OR_RETURN(const boost::json::object* fields, JsonObject(*value, key));
  std::vector<PositionQuality> quality(drafts_max);
  ASSIGN_OR_RETURN(const std::vector<double> rounds, ParseNumbers(*fields, "rounds", drafts_max));
  for (int k = 0; k < drafts_max; ++k) {
    if (!(rounds[k] >= 0 && rounds[k] <= 1e15)) return InvalidArgument("{}: rounds: got {}", key, rounds[k]);
    quality[k].rounds = static_cast<int64_t>(rounds[k]);
  }
  for (const auto& [name, field] : kQualityFields) {
    ASSIGN_OR_RETURN(const std::vector<double> numbers, ParseNumbers(*fields, name, drafts_max));
    for (int k = 0; k < drafts_max; ++k) {
      if (!(numbers[k] >= 0 && numbers[k] <= 1))
        return InvalidArgument("{}: {}: got {}", key, name, numbers[k]);
      quality[k].*field = numbers[k];
    }
  }
  return quality;
}

Result<SamplingRegime> ParseRegime(std::string_view name) {
  for (int i = 0; i < kNumSamplingRegimes; ++i) {
    if (name == SamplingRegimeName(static_cast<SamplingRegime>(i))) return static_cast<SamplingRegime>(i);
  }
  return InvalidArgument("regime: want greedy, unit, cool, top_p or coupled, got \"{}\"", name);
}

Result<RegimeCalibration> ParseTable(const boost::json::value& value, int drafts_max) {
  RegimeCalibration entry;
  ASSIGN_OR_RETURN(const boost::json::object* object, JsonObject(value, "tables"));
  ASSIGN_OR_RETURN(const std::string name, JsonText(*object, "regime"));
  ASSIGN_OR_RETURN(entry.regime, ParseRegime(name));
  ASSIGN_OR_RETURN(const std::vector<double> temperatures, ParseNumbers(*object, "temperatures", drafts_max));
  ASSIGN_OR_RETURN(const std::vector<double> shifts, ParseNumbers(*object, "shifts", drafts_max));
  ASSIGN_OR_RETURN(const std::vector<double> weights, ParseNumbers(*object, "margin_weights", drafts_max));
  for (int k = 0; k < drafts_max; ++k) {
    const ConfidenceScale scale = {
        .temperature = temperatures[k], .shift = shifts[k], .margin_weight = weights[k]};
    if (!(scale.temperature >= kTemperatureMin && scale.temperature <= kTemperatureMax)) {
      return InvalidArgument("temperatures: want {}..{}, got {}", kTemperatureMin, kTemperatureMax,
                             scale.temperature);
    }
    if (!(std::abs(scale.shift) <= kShiftLimit)) {
      return InvalidArgument("shifts: want {} at most either way, got {}", kShiftLimit, scale.shift);
    }
    if (!(scale.margin_weight >= 0 && scale.margin_weight <= kMarginWeightLimit)) {
      return InvalidArgument("margin_weights: want 0..{}, got {}", kMarginWeightLimit, scale.margin_weight);
    }
    entry.scales.push_back(scale);
  }
  ASSIGN_OR_RETURN(const boost::json::value* fit_value, JsonMember(*object, "fit"));
  ASSIGN_OR_RETURN(const boost::json::object* fit, JsonObject(*fit_value, "fit"));
  ASSIGN_OR_RETURN(const boost::json::value* rounds, JsonMember(*fit, "rounds"));
  ASSIGN_OR_RETURN(entry.rounds, JsonCount(*rounds, "fit.rounds", int64_t{1} << 50));
  ASSIGN_OR_RETURN(entry.dataset, JsonText(*fit, "dataset"));
  ASSIGN_OR_RETURN(const boost::json::value* heldout_value, JsonMember(*object, "heldout"));
  ASSIGN_OR_RETURN(const boost::json::object* heldout, JsonObject(*heldout_value, "heldout"));
  ASSIGN_OR_RETURN(entry.before, ParseQuality(*heldout, "before", drafts_max));
  ASSIGN_OR_RETURN(entry.after, ParseQuality(*heldout, "after", drafts_max));
  return entry;
}

Result<CalibrationTable> Parse(std::string_view json) {
  ASSIGN_OR_RETURN(const boost::json::value document, ParseJson(json));
  ASSIGN_OR_RETURN(const boost::json::object* object, JsonObject(document, "the document"));
  RETURN_IF_ERROR(CheckJsonFormat(*object, kFormat, kVersion));
  CalibrationTable table;
  ASSIGN_OR_RETURN(table.draft, JsonText(*object, "draft"));
  ASSIGN_OR_RETURN(table.target, JsonText(*object, "target"));
  ASSIGN_OR_RETURN(table.build, JsonText(*object, "engine_build"));
  ASSIGN_OR_RETURN(const boost::json::value* gamma, JsonMember(*object, "gamma"));
  ASSIGN_OR_RETURN(const int64_t drafts_max, JsonCount(*gamma, "gamma", kDraftPositionsMax));
  table.drafts_max = static_cast<int>(drafts_max);
  ASSIGN_OR_RETURN(const boost::json::array* tables, JsonArray(*object, "tables", kNumSamplingRegimes));
  if (tables->empty()) return InvalidArgument("tables: want at least one");
  for (const boost::json::value& value : *tables) {
    ASSIGN_OR_RETURN(RegimeCalibration entry, ParseTable(value, table.drafts_max));
    for (const RegimeCalibration& other : table.regimes) {
      if (other.regime == entry.regime) {
        return InvalidArgument("tables: regime {} occurs twice", SamplingRegimeName(entry.regime));
      }
    }
    table.regimes.push_back(std::move(entry));
  }
  return table;
}

}  // namespace

std::string FormatCalibration(const CalibrationTable& table) {
  std::string text = fmt::format(
      "{{\n  \"format\": \"{}\",\n  \"version\": {},\n  \"draft\": {},\n  \"target\": {},\n"
      "  \"engine_build\": {},\n  \"gamma\": {},\n"
      "  \"tables\": [",
      kFormat, kVersion, JsonString(table.draft), JsonString(table.target), JsonString(table.build),
      table.drafts_max);
  const char* separator = "\n";
  for (const RegimeCalibration& entry : table.regimes) {
    text += fmt::format(
        "{}    {{\"regime\": \"{}\", \"temperatures\": {}, \"shifts\": {}, \"margin_weights\": {},\n"
        "     \"fit\": {{\"grid\": \"log41[0.1,10]\", \"bins\": {}, \"rounds\": {}, \"dataset\": {}}},\n"
        "     \"heldout\": {{\"bins\": {},\n       \"before\": {},\n       \"after\": {}}}}}",
        separator, SamplingRegimeName(entry.regime),
        FormatNumbers(entry.scales, [](const ConfidenceScale& s) { return s.temperature; }),
        FormatNumbers(entry.scales, [](const ConfidenceScale& s) { return s.shift; }),
        FormatNumbers(entry.scales, [](const ConfidenceScale& s) { return s.margin_weight; }), kFitBins,
        entry.rounds, JsonString(entry.dataset), kReportBins, FormatQuality(entry.before),
        FormatQuality(entry.after));
    separator = ",\n";
  }
  return text + "\n  ]\n}\n";
}

Result<CalibrationTable> ParseCalibration(std::string_view json) {
  Result<CalibrationTable> table = Parse(json);
  if (!table.ok()) return table.status().WithContext("calibration");
  return table;
}

Status CheckCalibration(const CalibrationTable& table, std::string_view draft, std::string_view target,
                        std::string_view build, int drafts_max) {
  const auto refuse = [](std::string_view what, const auto& want, const auto& got) {
    return InvalidArgument(
        "calibration was fitted for another {}: this is \"{}\", the file says \"{}\"; fit it again "
        "(foresight "
        "calibrate)",
        what, want, got);
  };
  if (table.draft != draft) return refuse("draft", draft, table.draft);
  if (table.target != target) return refuse("target", target, table.target);
  if (table.build != build) return refuse("build", build, table.build);
  if (table.drafts_max != drafts_max) return refuse("draft length", drafts_max, table.drafts_max);
  return Status();
}

}  // namespace foresight
