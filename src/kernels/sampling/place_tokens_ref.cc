#include "kernels/sampling/place_tokens.h"

namespace foresight {

void PlaceTokensRef(const KernelContext&, const PlaceTokensArgs& args) {
  std::byte* const to = reinterpret_cast<std::byte*>(args.to);
  for (const PlacedToken& placed : args.tokens) {
    *reinterpret_cast<TokenId*>(to + placed.row * args.stride) = *placed.token;
  }
}

}  // namespace foresight
