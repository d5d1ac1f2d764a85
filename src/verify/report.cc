#include "verify/verify.h"

namespace foresight {

std::string ReportToText(const VerifyReport& report) {
  std::string text = fmt::format("table {}, clean numerics\n", report.table);
  text += fmt::format("  {:24} {:>12} {:>14}\n", "tensor", "max |error|", "max rel L2/row");
  for (const TensorComparison& c : report.tensors) {
    text += fmt::format("  {:24} {:12.3e} {:14.3e}", c.name, c.max_abs, c.row_l2_max);
    if (c.tolerance > 0) {
      text += fmt::format("  {} <= {:.0e}: {}", c.relative ? "rel L2" : "|error|", c.tolerance,
                          c.passed ? "ok" : "FAILED");
    }
    text += '\n';
  }
  for (const SetComparison& c : report.sets) {
    text += fmt::format("  {:24} {} of {} rows differ, {} members{}\n", c.name, c.rows_different, c.rows,
                        c.items_different, c.judged ? (c.rows_different == 0 ? ": ok" : ": FAILED") : "");
  }
  if (report.greedy_total > 0) {
    text += fmt::format(
        "  {:24} {} of {} tokens equal{}", "greedy", report.greedy_equal, report.greedy_tokens,
        report.greedy_judged ? (report.greedy_equal == report.greedy_tokens ? ": ok" : ": FAILED") : "");
    if (report.greedy_tokens < report.greedy_total) {
      text += fmt::format(" ({} in the golden; the rest follows a choice closer than the error)",
                          report.greedy_total);
    }
    text += '\n';
  }
  if (report.draft_total > 0) {
    text += fmt::format(
        "  {:24} {} of {} tokens equal{}", "dspark.greedy_tokens", report.draft_equal, report.draft_tokens,
        report.greedy_judged ? (report.draft_equal == report.draft_tokens ? ": ok" : ": FAILED") : "");
    if (report.draft_tokens < report.draft_total) {
      text += fmt::format(" ({} in the golden; the others are choices closer than the error)",
                          report.draft_total);
    }
    text += '\n';
  }
  for (const std::string& name : report.not_compared) text += fmt::format("  {:24} not compared\n", name);
  text += report.passed ? "passed\n" : "FAILED\n";
  return text;
}

std::string ReportToJson(const VerifyReport& report) {
  auto boolean = [](bool b) { return b ? "true" : "false"; };
  // Infinity (a NaN was met) has no JSON form.
  auto number = [](double x) { return x < 1e300 ? fmt::format("{:.6g}", x) : std::string("null"); };
  std::string json =
      fmt::format("{{\n  \"table\": \"{}\",\n  \"numerics\": \"clean\",\n  \"passed\": {},\n  \"tensors\": [",
                  report.table, boolean(report.passed));
  const char* separator = "\n";
  for (const TensorComparison& c : report.tensors) {
    json += fmt::format(
        "{}    {{\"name\": \"{}\", \"max_abs\": {}, \"row_relative_l2_max\": {}, \"judged_by\": {}, "
        "\"tolerance\": {}, \"passed\": {}}}",
        separator, c.name, number(c.max_abs), number(c.row_l2_max),
        c.tolerance == 0 ? "null" : (c.relative ? "\"row_relative_l2_max\"" : "\"max_abs\""),
        c.tolerance == 0 ? "null" : number(c.tolerance), boolean(c.passed));
    separator = ",\n";
  }
  json += "\n  ],\n  \"sets\": [";
  separator = "\n";
  for (const SetComparison& c : report.sets) {
    json += fmt::format(
        "{}    {{\"name\": \"{}\", \"rows\": {}, \"rows_different\": {}, \"items_different\": {}, "
        "\"judged\": {}}}",
        separator, c.name, c.rows, c.rows_different, c.items_different, boolean(c.judged));
    separator = ",\n";
  }
  json += fmt::format(
      "\n  ],\n  \"greedy\": {{\"total\": {}, \"compared\": {}, \"equal\": {}, \"judged\": {}}},\n",
      report.greedy_total, report.greedy_tokens, report.greedy_equal, boolean(report.greedy_judged));
  json +=
      fmt::format("  \"draft\": {{\"total\": {}, \"compared\": {}, \"equal\": {}, \"judged\": {}}},\n",
                  report.draft_total, report.draft_tokens, report.draft_equal, boolean(report.greedy_judged));
  json += "  \"not_compared\": [";
  separator = "";
  for (const std::string& name : report.not_compared) {
    json += fmt::format("{}\"{}\"", separator, name);
    separator = ", ";
  }
  json += "]\n}\n";
  return json;
}

}  // namespace foresight
