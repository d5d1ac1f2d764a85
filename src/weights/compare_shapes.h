// A draft head is of use only to the model that it was made for.
#pragma once

#include "weights/config.h"
#include "weights/problems.h"

namespace foresight {

// Notes every field in which the config of a draft head differs from the model's: all that shapes the layers,
// since its blocks are blocks of the model and its inputs are the model's. Draft fields and token ids that
// only text needs are not compared.
void CompareShapes(const ModelConfig& model, const ModelConfig& draft, ProblemList* problems);

}  // namespace foresight
