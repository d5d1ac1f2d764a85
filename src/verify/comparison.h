// How far computed values and sets are from recorded ones. Internal to verify.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "verify/verify.h"

namespace foresight {

// Not judged yet. Relative errors are those of rows of `row` values. NaN counts as infinitely far.
TensorComparison Compare(const std::string& name, const std::vector<float>& got,
                         const std::vector<float>& want, int64_t row);

// Rows of `k` ids, compared as sets; -1 is no member.
SetComparison CompareSets(const std::string& name, std::span<const int32_t> got,
                          std::span<const int32_t> want, int64_t k);

}  // namespace foresight
