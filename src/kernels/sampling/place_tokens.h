// Drawn tokens on their way from the draft step that drew them into the step that verifies them, without the
// host in between.
#pragma once

#include <span>

#include "base/ids.h"
#include "kernels/kernel_context.h"

namespace foresight {

struct PlacedToken {
  const TokenId* token = nullptr;  // in the device's memory
  int32_t row = 0;
};

// The token of row r at `to` + r * stride becomes what its PlacedToken points to; other rows stay.
//
// Shapes   tokens [N], each row at most once
struct PlaceTokensArgs {
  std::span<const PlacedToken> tokens;
  TokenId* to = nullptr;
  int64_t stride = sizeof(TokenId);  // bytes
};

void PlaceTokensRef(const KernelContext& ctx, const PlaceTokensArgs& args);

}  // namespace foresight
