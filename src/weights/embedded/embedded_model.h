// The model that is linked into the program (models/foresight-mini), so that it runs with no download.
#pragma once

#include "weights/model_files.h"

namespace foresight {

// The files of the model; no files when the program was built from a tree without one.
ModelFiles EmbeddedModel();

}  // namespace foresight
