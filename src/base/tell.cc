#include "base/tell.h"

#include <cstdio>

namespace foresight {

void TellText(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stderr);
}

}  // namespace foresight
