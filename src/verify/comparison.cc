#include "verify/comparison.h"

#include <algorithm>
#include <cmath>

namespace foresight {

TensorComparison Compare(const std::string& name, const std::vector<float>& got,
                         const std::vector<float>& want, int64_t row) {
  TensorComparison c{.name = name};
  for (size_t begin = 0; begin + row <= want.size(); begin += row) {
    double error = 0;
    double norm = 0;
    for (size_t i = begin; i < begin + row; ++i) {
      const double d = static_cast<double>(got[i]) - want[i];
      c.max_abs = std::isnan(d) ? INFINITY : std::max(c.max_abs, std::fabs(d));
      error += d * d;
      norm += static_cast<double>(want[i]) * want[i];
    }
    const double relative = std::sqrt(error / std::max(norm, 1e-300));
    c.row_l2_max = std::isnan(relative) ? INFINITY : std::max(c.row_l2_max, relative);
  }
  return c;
}

SetComparison CompareSets(const std::string& name, std::span<const int32_t> got,
                          std::span<const int32_t> want, int64_t k) {
  SetComparison c{.name = name, .rows = static_cast<int64_t>(want.size()) / k};
  for (int64_t t = 0; t < c.rows; ++t) {
    const auto row = want.subspan(t * k, k);
    int64_t missing = 0;
    for (int32_t id : got.subspan(t * k, k))
      missing += id >= 0 && std::find(row.begin(), row.end(), id) == row.end();
    c.items_different += missing;
    // A set that lacks members without having others differs too.
    const auto other = got.subspan(t * k, k);
    bool lacks = false;
    for (int32_t id : row) lacks |= id >= 0 && std::find(other.begin(), other.end(), id) == other.end();
    c.rows_different += missing > 0 || lacks;
  }
  return c;
}

}  // namespace foresight
