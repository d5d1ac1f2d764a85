// What every layer of one step shares. Internal to the model.
#pragma once

#include <optional>

#include "base/row_tiers.h"
#include "model/model.h"

namespace foresight {

inline constexpr int64_t kCsaRatio = static_cast<int64_t>(LayerKind::kCsa);

// A step that isn't recorded is computed as a larger one that is so often, before a recording of its own
// takes less time than that did; and where each sequence has one row, in its tier, which is a fifth larger at
// most, so often before it is recorded as it is.
inline constexpr int kCallsAsLarger = 16;
inline constexpr int kCallsAsTier = 128;

// Kinds of recordings besides those of steps (StepKind).
inline constexpr int kReplayedDraft = 3;
inline constexpr int kReplayedDraftHead = 4;

// Which layers a step runs through, and how its rows see each other.
enum class StepKind : uint8_t {
  kMain,        // the main layers
  kMtp,         // the MTP-1 block, one position after the other
  kDraftBlock,  // DSpark's stages: rows of a block see all of it, and are not stored
};

struct Model::StepState {
  int rows = 0;        // T, padding among them
  int num_logits = 0;  // R, likewise
  StepKind kind = StepKind::kMain;
  const StepInputs* inputs = nullptr;
  // The rest is the device's memory.
  TokenId* tokens = nullptr;               // [T]
  const TokenId* const* placed = nullptr;  // [T]: where rows' tokens lie that the host doesn't know
  int64_t* positions = nullptr;            // [T]
  int32_t* logit_rows = nullptr;           // [R]
  // As each layer of the step sees them: layer first_layer + i at [i * num_sequences, (i + 1) *
  // num_sequences). Behind them, of a main step with a DSpark head, `taps`.
  SequenceRows* sequences = nullptr;
  size_t num_sequences = 0;  // padding among them
  int first_layer = 0;
  int num_layers = 0;
  std::byte* entries = nullptr;        // [num_layers, T, entry bytes]: the rows' raw keys
  std::span<const SequenceRows> taps;  // the same rows, `cache` the taps ring; with a DSpark head
  int64_t entries_max = 0;             // no row sees more CSA entries (the host's knowledge)
  float* streams = nullptr;            // [T, m, D]
  // A sub-layer's normed input and its output [T, D], and how this is mixed back: [T, m], [T, m, m].
  float* x = nullptr;
  float* y = nullptr;
  float* post = nullptr;
  float* comb = nullptr;
  bool heads_all = false;   // logit_rows has each row once, padding for padding
  bool is_pending = false;  // the output isn't mixed back yet
  int pending_tap = -1;     // which tap is to be stored of the streams once it is; -1: none
  float* logits = nullptr;  // [R, V]
  float* hidden = nullptr;  // [R, D] before the norm; null when nobody asks
  bool has_branch = false;  // what writes into the rings that the next attention reads is to be joined first
  // Angles of the rows' positions (ComputeAngles), for SWA layers and for CSA/HCA layers: [T, rope/2] each.
  RopeAngles window;
  RopeAngles compressed;

  // What is to be mixed back, if anything.
  SublayerOutput Pending() const { return is_pending ? SublayerOutput{y, post, comb} : SublayerOutput{}; }
  std::span<const SequenceRows> Sequences(int layer) const {
    return {sequences + static_cast<size_t>(layer - first_layer) * num_sequences, num_sequences};
  }
  std::byte* Entries(int layer, const EntryLayout& layout) const {
    return entries + static_cast<int64_t>(layer - first_layer) * rows * layout.bytes();
  }
  const RopeAngles& angles(LayerKind layer_kind) const {
    return layer_kind == LayerKind::kSwa ? window : compressed;
  }
};

// Rows of a draft block's context that are to be made of taps.
struct Model::ContextRows {
  int rows = 0;               // T; the last ones may be nobody's
  int64_t num_sequences = 0;  // padding among them
  // Of the host, staged: with the taps, then with each stage's cache, [1 + stages, num_sequences]; and [T].
  SequenceRows* sequences = nullptr;
  int64_t* positions = nullptr;
  // Room for what the host makes of them, [stages] each.
  LinearTarget* projections = nullptr;
  KeyArgs* keys = nullptr;
};

// A draft block with its context, and the draws of its tokens, if the device draws them.
struct Model::StagedDraft {
  ContextRows context;
  StepState step;
  std::optional<uint64_t> key;  // what tells it from other drafts, if the device may record it
  bool forks = false;           // work that nothing waits for runs beside the rest
  // The draws. Arrays of the host, staged.
  int depth = 0;
  bool keep_distributions = false;
  bool has_min_p = false;
  bool has_cuts = false;
  bool margins = false;
  TokenId* anchors = nullptr;           // [R]
  SampleSequence* sequences = nullptr;  // [R]
  SampleRow* draws = nullptr;           // [depth, R]
  // Of the device: what they leave, [depth, R] each.
  int32_t* errors = nullptr;
  TokenId* tokens = nullptr;
  float* confidences = nullptr;
  float* margins_out = nullptr;
  RowStatistics* statistics = nullptr;
};

}  // namespace foresight
