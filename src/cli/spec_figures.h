// What reports compute of the replication's rows.
#pragma once

#include <algorithm>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/spec_bench.h"

namespace foresight {

// The values of a field, in order of their first row.
template <typename Row, typename Value>
std::vector<Value> Distinct(const std::vector<Row>& rows, Value Row::*field) {
  std::vector<Value> values;
  for (const Row& row : rows) {
    if (std::find(values.begin(), values.end(), row.*field) == values.end()) values.push_back(row.*field);
  }
  return values;
}

// The mean over domains of what `value` gives for the rows of a setup.
double Macro(const std::vector<AcceptanceRow>& rows, std::string_view setup, double temperature,
             const std::function<double(const AcceptanceRow&)>& value);
double AcceptedLength(const AcceptanceRow& row);
double AcceptedShare(const AcceptanceRow& row);  // of verified drafts
// Of all domains together, by position; as long as at least 50 drafts reached it.
std::vector<double> ConditionalAcceptance(const std::vector<AcceptanceRow>& rows, std::string_view setup,
                                          double temperature);

// How fast users are served where another setup serves them all at a certain rate (Figure 7).
struct MatchedSpeed {
  std::string setup;
  int concurrency = 0;               // at which MTP-1 was measured
  double tokens_per_second = 0;      // of all its users
  double mtp_user_speed = 0;         // tokens/s of one
  std::optional<double> user_speed;  // of one of `setup`; nothing: it doesn't serve that much
};
// Tokens/s that each user gets from `setup` when it serves `tokens_per_second` in all: on the front of what
// was measured, straight between two numbers of requests. Below the first, as there. Nothing above its best.
std::optional<double> UserSpeedAt(const std::vector<SpeedRow>& load, std::string_view setup,
                                  double tokens_per_second);
// Every other setup at each throughput that MTP-1 (one draft) was measured to have; none without it.
std::vector<MatchedSpeed> AgainstMtp(const std::vector<SpeedRow>& load);

}  // namespace foresight
