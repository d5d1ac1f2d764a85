// Identities that cross modules.
#pragma once

#include "foresight/ids.h"  // IWYU pragma: export
