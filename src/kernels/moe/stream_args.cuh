// What the kernels that do a step's experts in one launch are asked for.
#pragma once

#include "kernels/cuda/product_tile.cuh"
#include "kernels/moe/expert_plan.cuh"
#include "kernels/moe/swiglu.cuh"

namespace foresight::cuda {

constexpr int kStreamColumns = 8;  // rows of the step that share weights, at most

// Tiles are numbered from the shared expert's on. D and I are multiples of 128.
struct StreamArgs {
  const ExpertWeights* experts;
  ExpertWeights shared;
  ExpertPlan plan;
  int num_experts;
  int rows;
  int slots;
  int dim;
  int intermediate;
  int shared_tiles;
  int max_tiles;  // of the routed experts
  int span;       // units in a row that are one thread block's
  int units[2];   // of a tile: of w1 and w3, and of w2
  Swiglu swiglu;
  // Where pairs are few, thread blocks route, plan and prepare the rows by themselves, each all of it.
  bool plans;
  bool routes;
  RouterArgs router;
  const int32_t* ids;  // [rows, slots]
  PlainRows x;
  int rows_at;    // in shared memory: prepared rows for the routed experts, then, unless `one_format`, others
  int scores_at;  // and the router's
  bool one_format;
  const float* weights;   // [rows, slots]
  PreparedRows x_routed;  // [rows]; where thread blocks prepare them, without data
  PreparedRows x_shared;
  float* hidden;            // [pairs, I] activations
  PreparedRows activation;  // [pairs] of them, in the order of the expert's format
  float* y;                 // [pairs, D] the experts' outputs
  float* out;               // their sums; null: left to others
  // Counters, zero at first.
  int* units_of_block;  // [tiles, blocks of I] finished units of w1 and w3
  int* ready_blocks;    // [tiles] prepared ones
  int* outputs;         // [D / 16] finished units of w2
  int* watchers;        // [1] thread blocks that know of all activations; unless null, all are left at zero

  __device__ int Cols(bool is_down) const { return is_down ? intermediate : dim; }
};

// What a thread block finds by itself of a step of few pairs.
struct FewPairs {
  int32_t list[2 * kFewPairs];
  int32_t rows[2 * kFewPairs];
  ExpertTile tiles[kFewPairs];
  int num_tiles;
  int32_t ids[kFewPairs];
  float weights[kFewPairs];
};

}  // namespace foresight::cuda
