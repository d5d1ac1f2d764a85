#include "cli/spec_figures.h"

#include <cmath>

namespace foresight {
namespace {

constexpr std::string_view kMtp1 = "mtp k=1";

}  // namespace

double Macro(const std::vector<AcceptanceRow>& rows, std::string_view setup, double temperature,
             const std::function<double(const AcceptanceRow&)>& value) {
  double sum = 0;
  int count = 0;
  for (const AcceptanceRow& row : rows) {
    if (row.setup != setup || row.temperature != temperature) continue;
    sum += value(row);
    ++count;
  }
  return count > 0 ? sum / count : 0;
}

double AcceptedLength(const AcceptanceRow& row) {
  return row.accepted_length();
}

std::vector<double> ConditionalAcceptance(const std::vector<AcceptanceRow>& rows, std::string_view setup,
                                          double temperature) {
  DraftCounts sum;
  for (const AcceptanceRow& row : rows) {
    if (row.setup == setup && row.temperature == temperature) sum.Add(row.drafts);
  }
  std::vector<double> shares;
  for (int k = 0; k < kDraftPositionsMax && sum.reached[k] >= 50; ++k) {
    shares.push_back(static_cast<double>(sum.accepted[k]) / static_cast<double>(sum.reached[k]));
  }
  return shares;
}

double AcceptedShare(const AcceptanceRow& row) {
  const int64_t verified = row.drafts.total_verified();
  return verified > 0 ? static_cast<double>(row.drafts.total_accepted()) / static_cast<double>(verified) : 0;
}

std::optional<double> UserSpeedAt(const std::vector<SpeedRow>& load, std::string_view setup,
                                  double tokens_per_second) {
  std::optional<double> best;
  const SpeedRow* previous = nullptr;
  for (const SpeedRow& row : load) {
    if (row.setup != setup) continue;
    const double total = row.median_tokens_per_second();
    if (total >= tokens_per_second) best = std::max(best.value_or(0), row.median_user_speed());
    if (previous != nullptr) {
      const double before = previous->median_tokens_per_second();
      const double share = (tokens_per_second - before) / (total - before);
      if (share > 0 && share < 1) {
        best = std::max(best.value_or(0),
                        std::lerp(previous->median_user_speed(), row.median_user_speed(), share));
      }
    }
    previous = &row;
  }
  return best;
}

std::vector<MatchedSpeed> AgainstMtp(const std::vector<SpeedRow>& load) {
  std::vector<MatchedSpeed> matched;
  for (const std::string& setup : Distinct(load, &SpeedRow::setup)) {
    if (setup == kMtp1) continue;
    for (const SpeedRow& row : load) {
      if (row.setup != kMtp1) continue;
      const double total = row.median_tokens_per_second();
      matched.push_back({.setup = setup,
                         .concurrency = row.concurrency,
                         .tokens_per_second = total,
                         .mtp_user_speed = row.median_user_speed(),
                         .user_speed = UserSpeedAt(load, setup, total)});
    }
  }
  return matched;
}

}  // namespace foresight
