// Values that no weight of a model may have, found before they become NaN in the text.
#pragma once

#include <span>
#include <vector>

#include "weights/layout.h"
#include "weights/loader.h"
#include "weights/problems.h"

namespace foresight {

// A slot with its stored bytes (aligned for the dtype).
struct BoundSlot {
  const WeightSlot* slot = nullptr;
  std::span<const std::byte> data;
  std::span<const std::byte> scales;
};

// Looks at the values of every slot as `options.checks` asks and notes the first bad one of each tensor with
// its place:
//   E8M0 scales    not 255 (NaN)
//   tid2eid        in [0, E)
//   F32, BF16      finite (vectors; matrices with kAll)
//   F8_E4M3        not 0x7F or 0xFF (NaN; kAll only: it reads every page of the model)
void CheckValues(std::span<const BoundSlot> slots, const ModelConfig& config, const LoadOptions& options,
                 ProblemList* problems);

}  // namespace foresight
