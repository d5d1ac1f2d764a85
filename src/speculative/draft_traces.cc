#include "speculative/draft_traces.h"

#include <cmath>

#include "foresight/request.h"
#include "speculative/json_fields.h"

namespace foresight {
namespace {

constexpr std::string_view kFormat = "foresight-draft-traces";
constexpr int kVersion = 1;
constexpr int kOne = 1000;  // what probability 1 is in the file
constexpr size_t kDraftersMax = 16;
constexpr size_t kDomainsMax = 256;
constexpr size_t kAnswersMax = 1 << 16;
constexpr size_t kNumbersMax = 1 << 20;  // of an answer
constexpr double kTemperatureMax = 100;

std::string FormatProbabilities(const std::vector<float>& probabilities) {
  std::string text = "[";
  for (float p : probabilities) {
    text += fmt::format("{}{}", text.size() == 1 ? "" : ",", std::lround(p * static_cast<float>(kOne)));
  }
  return text + "]";
}

Result<std::vector<float>> ParseProbabilities(const boost::json::object& object, std::string_view key) {
  ASSIGN_OR_RETURN(const boost::json::array* array, JsonArray(object, key, kNumbersMax));
  std::vector<float> probabilities;
  probabilities.reserve(array->size());
  for (const boost::json::value& value : *array) {
    ASSIGN_OR_RETURN(const int64_t number, JsonCount(value, key, kOne));
    probabilities.push_back(static_cast<float>(number) / static_cast<float>(kOne));
  }
  return probabilities;
}

Result<TracedAnswer> ParseAnswer(const boost::json::value& value, size_t drafts_max) {
  ASSIGN_OR_RETURN(const boost::json::object* object, JsonObject(value, "answers"));
  TracedAnswer answer;
  ASSIGN_OR_RETURN(answer.acceptance, ParseProbabilities(*object, "acceptance"));
  if (answer.acceptance.empty() || answer.acceptance.size() % drafts_max != 0) {
    return InvalidArgument("acceptance: want {} numbers for each position, got {}", drafts_max,
                           answer.acceptance.size());
  }
  if (!object->contains("confidence")) return answer;
  ASSIGN_OR_RETURN(answer.confidences, ParseProbabilities(*object, "confidence"));
  if (answer.confidences.size() != answer.acceptance.size()) {
    return InvalidArgument("confidence: want as many numbers as acceptance has, {}, got {}",
                           answer.acceptance.size(), answer.confidences.size());
  }
  return answer;
}

Result<TracedDomain> ParseDomain(const boost::json::value& value, size_t drafts_max) {
  ASSIGN_OR_RETURN(const boost::json::object* object, JsonObject(value, "domains"));
  TracedDomain domain;
  ASSIGN_OR_RETURN(domain.name, JsonName(*object, "name"));
  ASSIGN_OR_RETURN(const boost::json::array* answers, JsonArray(*object, "answers", kAnswersMax));
  if (answers->empty()) return InvalidArgument("answers: {} has none", domain.name);
  for (const boost::json::value& entry : *answers) {
    ASSIGN_OR_RETURN(TracedAnswer answer, ParseAnswer(entry, drafts_max));
    domain.answers.push_back(std::move(answer));
  }
  return domain;
}

Result<DraftTrace> ParseTrace(const boost::json::value& value) {
  ASSIGN_OR_RETURN(const boost::json::object* object, JsonObject(value, "drafters"));
  DraftTrace trace;
  ASSIGN_OR_RETURN(trace.method, JsonName(*object, "method"));
  ASSIGN_OR_RETURN(const boost::json::value* gamma, JsonMember(*object, "gamma"));
  ASSIGN_OR_RETURN(const int64_t drafts_max, JsonCount(*gamma, "gamma", kDraftPositionsMax));
  if (drafts_max == 0) return InvalidArgument("gamma: want 1 or more");
  trace.drafts_max = static_cast<int>(drafts_max);
  ASSIGN_OR_RETURN(const boost::json::array* domains, JsonArray(*object, "domains", kDomainsMax));
  if (domains->empty()) return InvalidArgument("domains: {} has none", trace.method);
  for (const boost::json::value& entry : *domains) {
    ASSIGN_OR_RETURN(TracedDomain domain, ParseDomain(entry, static_cast<size_t>(drafts_max)));
    trace.domains.push_back(std::move(domain));
  }
  const bool has_confidences = !trace.domains[0].answers[0].confidences.empty();
  for (const TracedDomain& domain : trace.domains) {
    for (const TracedAnswer& answer : domain.answers) {
      if (answer.confidences.empty() == has_confidences) {
        return InvalidArgument("confidence: some answers of {} have it and some don't", trace.method);
      }
    }
  }
  return trace;
}

Result<DraftTraces> Parse(std::string_view json) {
  ASSIGN_OR_RETURN(const boost::json::value document, ParseJson(json));
  ASSIGN_OR_RETURN(const boost::json::object* object, JsonObject(document, "the document"));
  RETURN_IF_ERROR(CheckJsonFormat(*object, kFormat, kVersion));
  DraftTraces traces;
  ASSIGN_OR_RETURN(traces.model, JsonName(*object, "model"));
  ASSIGN_OR_RETURN(const boost::json::value* temperature, JsonMember(*object, "temperature"));
  ASSIGN_OR_RETURN(traces.temperature, JsonNumber(*temperature, "temperature"));
  if (!(traces.temperature >= 0 && traces.temperature <= kTemperatureMax)) {
    return InvalidArgument("temperature: want 0..{}, got {}", kTemperatureMax, traces.temperature);
  }
  ASSIGN_OR_RETURN(const boost::json::array* drafters, JsonArray(*object, "drafters", kDraftersMax));
  for (const boost::json::value& entry : *drafters) {
    ASSIGN_OR_RETURN(DraftTrace trace, ParseTrace(entry));
    if (traces.Find(trace.method) != nullptr)
      return InvalidArgument("drafters: {} occurs twice", trace.method);
    traces.drafters.push_back(std::move(trace));
  }
  return traces;
}

}  // namespace

const DraftTrace* DraftTraces::Find(std::string_view method) const {
  for (const DraftTrace& trace : drafters) {
    if (trace.method == method) return &trace;
  }
  return nullptr;
}

std::vector<float> MeanAcceptance(const DraftTrace& trace) {
  std::vector<double> reached(trace.drafts_max + 1);
  for (const TracedDomain& domain : trace.domains) {
    for (const TracedAnswer& answer : domain.answers) {
      for (size_t begin = 0; begin < answer.acceptance.size(); begin += trace.drafts_max) {
        double survival = 1;
        for (int k = 0; k < trace.drafts_max; ++k) {
          reached[k] += survival;
          survival *= answer.acceptance[begin + k];
        }
        reached.back() += survival;
      }
    }
  }
  std::vector<float> means(trace.drafts_max);
  for (int k = 0; k < trace.drafts_max && reached[k] > 0; ++k) {
    means[k] = static_cast<float>(reached[k + 1] / reached[k]);
  }
  return means;
}

std::string FormatDraftTraces(const DraftTraces& traces) {
  std::string text = fmt::format(
      "{{\"format\": \"{}\", \"version\": {}, \"model\": {}, \"temperature\": {},\n \"drafters\": [", kFormat,
      kVersion, JsonString(traces.model), traces.temperature);
  const char* drafter_separator = "\n";
  for (const DraftTrace& trace : traces.drafters) {
    text += fmt::format("{}  {{\"method\": {}, \"gamma\": {}, \"domains\": [", drafter_separator,
                        JsonString(trace.method), trace.drafts_max);
    drafter_separator = ",\n";
    const char* domain_separator = "\n";
    for (const TracedDomain& domain : trace.domains) {
      text += fmt::format("{}   {{\"name\": {}, \"answers\": [", domain_separator, JsonString(domain.name));
      domain_separator = ",\n";
      const char* separator = "\n";
      for (const TracedAnswer& answer : domain.answers) {
        text += fmt::format("{}    {{\"acceptance\": {}", separator, FormatProbabilities(answer.acceptance));
        separator = ",\n";
        if (!answer.confidences.empty()) {
          text += fmt::format(",\n     \"confidence\": {}", FormatProbabilities(answer.confidences));
        }
        text += "}";
      }
      text += "]}";
    }
    text += "]}";
  }
  return text + "\n ]}\n";
}

Result<DraftTraces> ParseDraftTraces(std::string_view json) {
  Result<DraftTraces> traces = Parse(json);
  if (!traces.ok()) return traces.status().WithContext("draft traces");
  return traces;
}

}  // namespace foresight
