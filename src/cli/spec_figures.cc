#include "cli/spec_figures.h"

namespace foresight {

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

}  // namespace foresight
