// What every kernel call gets besides its arguments.
#pragma once

#include <limits>

#include "base/arena.h"
#include "foresight/numerics.h"
#include "tensor/cache_view.h"

namespace foresight {

class Device;
class ThreadPool;

struct KernelContext {
  Device* device = nullptr;  // that all memory in the arguments belongs to
  ThreadPool* pool = nullptr;
  Arena* scratch = nullptr;  // a kernel rewinds it to where it found it
  Numerics numerics = Numerics::kClean;

  bool faithful() const { return numerics == Numerics::kFaithful; }
};

// Rows of one sequence within a step: rows [first_row, first_row + num_rows) of every activation, at
// positions first_position, first_position + 1, ...; `cache` is the layer at hand. A step's sequences are in
// row order, without a gap, all different. Rows behind them are padding, copies of the last one (padding.h).
// Padding of the sequences themselves lies behind them: no rows, from kNoRow on, and no cache.
struct SequenceRows {
  static constexpr int kNoRow = std::numeric_limits<int>::max();
  int first_row = 0;
  int num_rows = 0;
  int64_t first_position = 0;
  LayerCacheView cache;
};

}  // namespace foresight
