// What reports compute of the replication's rows.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/spec_bench.h"

namespace foresight {

// The values of a field, in order of their first row.
template <typename Row>
std::vector<std::string> Distinct(const std::vector<Row>& rows, std::string Row::*field) {
  std::vector<std::string> names;
  for (const Row& row : rows) {
    if (std::find(names.begin(), names.end(), row.*field) == names.end()) names.push_back(row.*field);
  }
  return names;
}

// The mean over domains of what `value` gives for the rows of a setup.
double Macro(const std::vector<AcceptanceRow>& rows, std::string_view setup, double temperature,
             const std::function<double(const AcceptanceRow&)>& value);
double AcceptedLength(const AcceptanceRow& row);
double AcceptedShare(const AcceptanceRow& row);  // of verified drafts
// Of all domains together, by position; as long as at least 50 drafts reached it.
std::vector<double> ConditionalAcceptance(const std::vector<AcceptanceRow>& rows, std::string_view setup,
                                          double temperature);

}  // namespace foresight
