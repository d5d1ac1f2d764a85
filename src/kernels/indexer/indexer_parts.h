// The halves of the CUDA indexer, for tests and benchmarks of one of them.
#pragma once

#include "base/status.h"
#include "kernels/indexer/indexer.h"

namespace foresight {

// Index scores in device memory.
struct IndexScores {
  static constexpr int kMaximumOf = 16;

  float* scores = nullptr;  // [T, stride] f32; only those of visible entries are written
  float* maxima = nullptr;  // [T, stride / kMaximumOf] f32: the largest of each kMaximumOf neighbours
  // A power of two, 512 or more, and no less than IndexerArgs' entries_max.
  int64_t stride = 0;
};

// Rows that see no more entries than they may pick have no scores. All rows in one go.
struct IndexerParts {
  void (*scores)(const KernelContext&, const IndexerArgs&, const IndexScores&) = nullptr;
  void (*picks)(const KernelContext&, const IndexerArgs&, const IndexScores&) = nullptr;
};

// Errors: kUnimplemented (a build without CUDA).
Result<IndexerParts> CudaIndexerParts();

}  // namespace foresight
