// What every layer of one step shares. Internal to the model.
#pragma once

#include "model/model.h"

namespace foresight {

// Which layers a step runs through, and how its rows see each other.
enum class StepKind : uint8_t {
  kMain,        // the main layers
  kMtp,         // the MTP-1 block, one position after the other
  kDraftBlock,  // DSpark's stages: rows of a block see all of it, and are not stored
};

struct Model::StepState {
  int rows = 0;
  int64_t end = 0;  // behind the largest position
  StepKind kind = StepKind::kMain;
  const StepInputs* inputs = nullptr;
  std::span<SequenceRows> sequences;
  std::span<const SequenceRows> taps;  // the same rows, `cache` the taps ring; with a DSpark head
  float* streams = nullptr;            // [T, m, D]
  // Angles of the rows' positions, for SWA layers and for CSA/HCA layers: [T, rope/2] each.
  RopeAngles window;
  RopeAngles compressed;

  const RopeAngles& angles(LayerKind layer_kind) const {
    return layer_kind == LayerKind::kSwa ? window : compressed;
  }
};

}  // namespace foresight
