// What every normalisation over a vocabulary spends its time on.
#pragma once

#include <span>

namespace foresight {

// sum_i exp(x_i) for x_i <= 0 (-inf adds nothing); relative error below 1e-14. The order of the sum depends
// on the number of values alone, and so do its bits, on every processor.
double SumExp(std::span<const double> x);

}  // namespace foresight
