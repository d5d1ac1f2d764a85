#include "sampling/sampling_params.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/object.hpp>
#include <boost/json/value.hpp>

#include "base/json.h"
#include "base/utf8.h"

namespace foresight {
namespace {

// Lines of a message about several parameters.
class Complaints {
 public:
  template <typename... Args>
  void Unless(bool condition, fmt::format_string<Args...> format, Args&&... args) {
    if (condition) return;
    if (!text_.empty()) text_ += "; ";
    text_ += fmt::format(format, std::forward<Args>(args)...);
  }
  Status ToStatus() const { return text_.empty() ? Status() : InvalidArgument("sampling: {}", text_); }

 private:
  std::string text_;
};

}  // namespace

// Conditions are written so that NaN fails them.
Status SamplingParams::Validate(int vocab_size) const {
  Complaints all;
  all.Unless(temperature >= 0 && temperature <= 100, "temperature: want 0..100, got {}", temperature);
  all.Unless(top_p > 0 && top_p <= 1, "top_p: want above 0, at most 1, got {}", top_p);
  all.Unless(top_k >= -1, "top_k: want -1 or more, got {}", top_k);
  all.Unless(min_p >= 0 && min_p <= 1, "min_p: want 0..1, got {}", min_p);
  all.Unless(repetition_penalty > 0 && repetition_penalty <= 1e6,
             "repetition_penalty: want above 0, at most 1e6, got {}", repetition_penalty);
  all.Unless(presence_penalty >= -2 && presence_penalty <= 2, "presence_penalty: want -2..2, got {}",
             presence_penalty);
  all.Unless(frequency_penalty >= -2 && frequency_penalty <= 2, "frequency_penalty: want -2..2, got {}",
             frequency_penalty);
  all.Unless(logit_bias.size() <= kLogitBiasMax, "logit_bias: want at most {} entries, got {}", kLogitBiasMax,
             logit_bias.size());
  std::vector<TokenId> ids;
  for (const auto& [id, bias] : logit_bias) {
    all.Unless(id >= 0 && id < vocab_size, "logit_bias: want ids 0..{}, got {}", vocab_size - 1, id);
    all.Unless(bias >= -100 && bias <= 100, "logit_bias of token {}: want -100..100, got {}", id, bias);
    ids.push_back(id);
  }
  std::sort(ids.begin(), ids.end());
  const auto twice = std::adjacent_find(ids.begin(), ids.end());
  all.Unless(twice == ids.end(), "logit_bias: token {} occurs twice", twice == ids.end() ? 0 : *twice);
  all.Unless(!max_tokens || *max_tokens >= 1, "max_tokens: want 1 or more, got {}", max_tokens.value_or(1));
  all.Unless(stop.size() <= kStopStringsMax, "stop: want at most {} strings, got {}", kStopStringsMax,
             stop.size());
  for (size_t i = 0; i < stop.size(); ++i) {
    all.Unless(!stop[i].empty() && stop[i].size() <= kStopStringBytesMax,
               "stop[{}]: want 1..{} bytes, got {}", i, kStopStringBytesMax, stop[i].size());
    all.Unless(ValidUtf8Length(stop[i], 0) == stop[i].size(), "stop[{}]: not UTF-8", i);
  }
  all.Unless(!logprobs || (*logprobs >= 0 && *logprobs <= std::min(kTopLogProbsMax, vocab_size)),
             "logprobs: want 0..{}, got {}", std::min(kTopLogProbsMax, vocab_size), logprobs.value_or(0));
  return all.ToStatus();
}

Result<SamplingParams> ParseGenerationConfig(std::string_view json) {
  const auto parse = [&]() -> Result<SamplingParams> {
    ASSIGN_OR_RETURN(const boost::json::value document, ParseJson(json));
    const boost::json::object* object = document.if_object();
    if (object == nullptr) return InvalidArgument("want an object, got {}", JsonKindName(document));
    const auto read = [&](std::string_view key, double* out) -> Status {
      const boost::json::value* value = object->if_contains(key);
      if (value == nullptr || value->is_null()) return Status();
      if (!value->is_number()) return InvalidArgument("{}: want a number, got {}", key, JsonKindName(*value));
      *out = value->to_number<double>();
      return Status();
    };
    SamplingParams params;
    double top_k = static_cast<double>(params.top_k);
    RETURN_IF_ERROR(read("temperature", &params.temperature));
    RETURN_IF_ERROR(read("top_p", &params.top_p));
    RETURN_IF_ERROR(read("top_k", &top_k));
    RETURN_IF_ERROR(read("min_p", &params.min_p));
    RETURN_IF_ERROR(read("repetition_penalty", &params.repetition_penalty));
    if (!(top_k >= -1 && top_k <= 1e9)) return InvalidArgument("top_k: want -1..1e9, got {}", top_k);
    params.top_k = static_cast<int64_t>(top_k);
    if (const boost::json::value* sample = object->if_contains("do_sample"); sample != nullptr) {
      if (!sample->is_bool())
        return InvalidArgument("do_sample: want true or false, got {}", JsonKindName(*sample));
      if (!sample->get_bool()) params.temperature = 0;
    }
    RETURN_IF_ERROR(params.Validate(/*vocab_size=*/1));
    return params;
  };
  Result<SamplingParams> params = parse();
  if (!params.ok()) return params.status().WithContext("generation_config.json");
  return params;
}

}  // namespace foresight
