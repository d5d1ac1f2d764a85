// How far a kernel may be from its definition, with the reason beside each bound.
#pragma once

namespace foresight::tolerances {

// Relative L2 error of a float32 kernel against the float64 definition: sums of up to some thousand products
// of float32 values keep about six digits.
inline constexpr double kFloat32 = 3e-6;

// Relative L2 error where both sides round to bfloat16: values that lie within float32's error of a rounding
// boundary fall to either side, and each such one is 2^-8 off; about one value in some thousands does.
inline constexpr double kBf16Flips = 1e-3;

// Relative L2 error of attention whose bf16 probabilities are rounded relative to another maximum than the
// definition's: both sides' roundings, 2^-9 of each probability at most, and those of the outputs are
// independent.
inline constexpr double kBf16Probabilities = 2.5e-3;

// Relative L2 error of products of float32 values that are multiplied as sums of two bf16 ones: 2^-17 of a
// factor is lost at most.
inline constexpr double kSplitBf16 = 1e-5;

}  // namespace foresight::tolerances
