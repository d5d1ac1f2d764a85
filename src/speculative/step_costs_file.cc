#include <charconv>

#include "speculative/json_fields.h"
#include "speculative/step_costs.h"

namespace foresight {
namespace {

constexpr std::string_view kFormat = "dspark-sps";
constexpr int kVersion = 4;
constexpr size_t kPointsMax = 256;
constexpr size_t kContextsMax = 32;
constexpr int64_t kCountMax = 1'000'000;

std::string FormatPoints(std::span<const CostPoint> points) {
  std::string text = "[";
  for (const CostPoint& point : points) {
    text += fmt::format("{}[{}, {:.6g}]", text.size() == 1 ? "" : ", ", point.count, point.ms);
  }
  return text + "]";
}

Result<std::vector<CostPoint>> ParsePoints(const boost::json::object& object, std::string_view key) {
  ASSIGN_OR_RETURN(const boost::json::array* array, JsonArray(object, key, kPointsMax));
  std::vector<CostPoint> points;
  for (const boost::json::value& entry : *array) {
    const boost::json::array* pair = entry.if_array();
    if (pair == nullptr || pair->size() != 2) return InvalidArgument("{}: want pairs [count, ms]", key);
    ASSIGN_OR_RETURN(const int64_t count, JsonCount((*pair)[0], key, kCountMax));
    ASSIGN_OR_RETURN(const double ms, JsonNumber((*pair)[1], key));
    points.push_back({static_cast<int>(count), ms});
  }
  return points;
}

Result<StepCostTable> Parse(std::string_view json) {
  ASSIGN_OR_RETURN(const boost::json::value document, ParseJson(json));
  ASSIGN_OR_RETURN(const boost::json::object* object, JsonObject(document, "the document"));
  RETURN_IF_ERROR(CheckJsonFormat(*object, kFormat, kVersion));
  StepCostTable table;
  ASSIGN_OR_RETURN(table.model, JsonText(*object, "model"));
  ASSIGN_OR_RETURN(table.build, JsonText(*object, "engine_build"));
  ASSIGN_OR_RETURN(table.device, JsonText(*object, "device"));
  ASSIGN_OR_RETURN(const boost::json::value* gamma, JsonMember(*object, "gamma"));
  ASSIGN_OR_RETURN(const int64_t drafts_max, JsonCount(*gamma, "gamma", 1024));
  table.drafts_max = static_cast<int>(drafts_max);
  ASSIGN_OR_RETURN(const boost::json::value* host_ms, JsonMember(*object, "host_ms"));
  ASSIGN_OR_RETURN(table.host_ms, JsonNumber(*host_ms, "host_ms"));
  ASSIGN_OR_RETURN(const boost::json::value* wait_ms, JsonMember(*object, "wait_ms"));
  ASSIGN_OR_RETURN(table.wait_ms, JsonNumber(*wait_ms, "wait_ms"));
  ASSIGN_OR_RETURN(table.draft_ms, ParsePoints(*object, "draft_ms"));
  ASSIGN_OR_RETURN(table.draft_first_ms, ParsePoints(*object, "draft_first_ms"));
  ASSIGN_OR_RETURN(const boost::json::value* verify_ms, JsonMember(*object, "verify_ms"));
  ASSIGN_OR_RETURN(const boost::json::object* contexts, JsonObject(*verify_ms, "verify_ms"));
  if (contexts->size() > kContextsMax) {
    return InvalidArgument("verify_ms: want at most {} contexts, got {}", kContextsMax, contexts->size());
  }
  for (const auto& entry : *contexts) {
    const std::string_view key(entry.key().data(), entry.key().size());
    int64_t context = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), context);
    if (error != std::errc() || end != key.data() + key.size() || context <= 0) {
      return InvalidArgument("verify_ms: want contexts in tokens, got \"{}\"", key);
    }
    ASSIGN_OR_RETURN(std::vector<CostPoint> points, ParsePoints(*contexts, key));
    if (!table.verify_ms.emplace(context, std::move(points)).second) {
      return InvalidArgument("verify_ms: context {} occurs twice", context);
    }
  }
  // Points that Create refuses are refused here already, with the file's name in front.
  RETURN_IF_ERROR(StepCosts::Create(table, 1, 1).status());
  return table;
}

}  // namespace

std::string FormatStepCosts(const StepCostTable& table) {
  std::string text = fmt::format(
      "{{\n  \"format\": \"{}\",\n  \"version\": {},\n  \"model\": {},\n  \"engine_build\": {},\n"
      "  \"device\": {},\n  \"gamma\": {},\n  \"host_ms\": {:.6g},\n  \"wait_ms\": {:.6g},\n"
      "  \"draft_ms\": {},\n"
      "  \"draft_first_ms\": {},\n  \"verify_ms\": {{",
      kFormat, kVersion, JsonString(table.model), JsonString(table.build), JsonString(table.device),
      table.drafts_max, table.host_ms, table.wait_ms, FormatPoints(table.draft_ms),
      FormatPoints(table.draft_first_ms));
  const char* separator = "\n";
  for (const auto& [context, points] : table.verify_ms) {
    text += fmt::format("{}    \"{}\": {}", separator, context, FormatPoints(points));
    separator = ",\n";
  }
  return text + "\n  }\n}\n";
}

Result<StepCostTable> ParseStepCosts(std::string_view json) {
  Result<StepCostTable> table = Parse(json);
  if (!table.ok()) return table.status().WithContext("step costs");
  return table;
}

Status CheckStepCosts(const StepCostTable& table, std::string_view model, std::string_view build,
                      int drafts_max) {
  const auto refuse = [](std::string_view what, const auto& want, const auto& got) {
    return InvalidArgument(
        "step costs were measured for another {}: this is \"{}\", the file says \"{}\"; measure again "
        "(foresight calibrate)",
        what, want, got);
  };
  if (table.model != model) return refuse("model", model, table.model);
  if (table.build != build) return refuse("build", build, table.build);
  if (table.drafts_max != drafts_max) return refuse("draft length", drafts_max, table.drafts_max);
  return Status();
}

}  // namespace foresight
