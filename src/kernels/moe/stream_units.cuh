// What the experts' streaming kernel is asked for, and how its warps send for weights.
//
// A warp's piece of work is a unit: 16 weight rows of one expert, eight of w1 and the same eight of w3 (so
// that both values of eight activations meet in it), or of w2, over all of K, for all of a tile's columns.
#pragma once

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/copy_once.cuh"
#include "kernels/cuda/product_tile.cuh"
#include "kernels/moe/expert_plan.cuh"
#include "kernels/moe/swiglu.cuh"

namespace foresight::cuda {

constexpr int kStreamWarps = 16;   // that multiply
constexpr int kStreamColumns = 8;  // rows of the step that share a unit's weights, at most
constexpr int kUnitRows = 16;
constexpr int kRoundBytes = 128;                     // of every row of a unit
constexpr int kRoundSize = kUnitRows * kRoundBytes;  // what a warp sends for at a time

// The weights of one expert, and its pairs.
struct StreamTile {
  const uint8_t* data[3];  // w1, w3, w2
  const uint8_t* scales[3];
  int begin;
  int count;

  __device__ void Set(const ExpertWeights& w, int first, int pairs) {
    const MatrixView* views[3] = {&w.w1, &w.w3, &w.w2};
    for (int i = 0; i < 3; ++i) {
      data[i] = reinterpret_cast<const uint8_t*>(views[i]->data);
      scales[i] = views[i]->scales;
    }
    begin = first;
    count = pairs;
  }
};

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
  int span;       // units in a row that are one thread block's; kStreamWarps is a multiple
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

template <typename Format>
__device__ inline bool IsFp8(const StreamArgs& args, int tile) {
  return Format::kDType == DType::kF8E4M3 || tile < args.shared_tiles;
}

// Where in the order of a warp's units somebody is: all of w1 and w3, tile after tile, then those of w2.
struct UnitCursor {
  int unit;  // in its tile, or behind that
  int tile = 0;
  bool is_down = false;

  __device__ static UnitCursor First(const StreamArgs& args, int warp) {
    const int item = warp / args.span * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
    return {item * args.span + warp % args.span};
  }
  __device__ void Advance() { unit += kStreamWarps * static_cast<int>(gridDim.x); }
  // Goes on to the tile that has the unit. False: there is none among the first `tiles`.
  __device__ bool Settle(const StreamArgs& args, int tiles, bool with_down) {
    for (;;) {
      const int units = args.units[is_down];
      if (tile == tiles) {
        if (is_down || !with_down) return false;
        tile = 0;
        is_down = true;
      } else if (unit < units) {
        return true;
      } else {
        unit -= units;
        ++tile;
      }
    }
  }
  // The first of the unit's rows in each of its weights.
  __device__ int Row() const { return unit * (is_down ? kUnitRows : kUnitRows / 2); }
};

// What a warp sends for, round after round. In shared memory eight lanes that read 16 bytes each, four of a
// row, never meet in a bank: the halves of odd rows change places.
template <typename Format>
class WeightRounds {
 public:
  __device__ WeightRounds(const StreamArgs& args, const StreamTile* tiles, int warp)
      : args_(args), tiles_(tiles), next_(UnitCursor::First(args, warp)) {}

  // Whether there is a further round among the first `tiles`.
  __device__ bool HasNext(int tiles, bool with_down) {
    if (left_ > 0) return true;
    if (!next_.Settle(args_, tiles, with_down)) return false;
    const StreamTile& tile = tiles_[next_.tile];
    const int cols = args_.Cols(next_.is_down);
    left_ = IsFp8<Format>(args_, next_.tile) ? cols : cols / 2;
    four_rows_ = 4 * left_;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int64_t at = int64_t{next_.Row() + lane / 8} * left_ + lane % 8 * 16;
    from_[0] = tile.data[next_.is_down ? 2 : 0] + at;
    from_[1] = next_.is_down ? from_[0] + 2 * four_rows_ : tile.data[1] + at;
    next_.Advance();
    return true;
  }
  // The one that is there, as a group of copies.
  __device__ void Copy(uint8_t* slot) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    uint8_t* to = slot + lane / 8 * kRoundBytes + (lane % 8 ^ lane / 8 % 2 * 4) * 16;
    if (lane % 8 * 16 < left_) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        policy_.Copy(to + i * 4 * kRoundBytes, from_[i / 2] + i % 2 * four_rows_);
      }
    }
    EndCopies();
    left_ -= kRoundBytes;
    from_[0] += kRoundBytes;
    from_[1] += kRoundBytes;
  }

 private:
  const StreamArgs& args_;
  const StreamTile* tiles_;
  const CopyOnce policy_;
  UnitCursor next_;
  const uint8_t* from_[2] = {};  // the lane's first bytes in the upper and in the lower eight rows
  int four_rows_ = 0;            // bytes
  int left_ = 0;                 // of each row of the unit
};

// A lane's scales of eight blocks of the rows g and g + 8 (g = lane / 4, t = lane % 4): of blocks 2 t and 2 t
// + 1. They are sent for while the eight blocks before them are multiplied, the unit's before included.
template <typename Format>
class UnitScales {
 public:
  static constexpr int kBlocks = 8;

  __device__ UnitScales(const StreamArgs& args, const StreamTile* tiles, int num_tiles, int warp)
      : args_(args), tiles_(tiles), num_tiles_(num_tiles), at_(UnitCursor::First(args, warp)) {
    Open();
  }

  // Whether there is a unit; then `at` is it.
  __device__ bool Unit(UnitCursor& at) const {
    at = at_;
    return left_ > 0;
  }
  // The next eight blocks': what codes are decoded with, a byte per lane of g (the upper byte of a factor's
  // halves), and the factors of the rows' sums.
  template <typename F>
  __device__ void Take(uint32_t (&decode)[2][2], float (&factors)[2][2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if constexpr (F::kDType == DType::kF8E4M3) {
          decode[half][i] = 0;
          factors[half][i] = F::Scale(static_cast<uint8_t>(words_[half][i])).block;
        } else {
          const uint32_t largest = F::LargestScale(words_[half][i]);
          decode[half][i] = F::Factors(words_[half][i], largest);
          factors[half][i] = F::BlockFactor(static_cast<uint8_t>(largest));
        }
      }
    }
    from_[0] += step_;
    from_[1] += step_;
    left_ -= kBlocks;
    if (left_ > 0) {
      Load();
    } else {
      at_.Advance();
      Open();
    }
  }

 private:
  __device__ void Open() {
    left_ = 0;
    if (!at_.Settle(args_, num_tiles_, true)) return;
    const StreamTile& tile = tiles_[at_.tile];
    const int g = static_cast<int>(threadIdx.x) % 32 / 4;
    const int t = static_cast<int>(threadIdx.x) % 4;
    const int blocks = args_.Cols(at_.is_down) / kBlockK;
    const bool is_fp8 = IsFp8<Format>(args_, at_.tile);
    const int bytes = is_fp8 ? 1 : 4;  // of a row and block
    const int row = is_fp8 ? at_.Row() / 128 : at_.Row() + g;
    const int64_t at = int64_t{row} * blocks * bytes + 2 * t * bytes;
    from_[0] = tile.scales[at_.is_down ? 2 : 0] + at;
    from_[1] = at_.is_down ? from_[0] + (is_fp8 ? 0 : 8 * blocks * bytes) : tile.scales[1] + at;
    step_ = kBlocks * bytes;
    left_ = blocks;
    Load();
  }
  __device__ void Load() {
    const int own = left_ - static_cast<int>(threadIdx.x) % 4 * 2;  // blocks from the lane's first on
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint8_t* from = from_[half];
      if (step_ == kBlocks) {
#pragma unroll
        for (int i = 0; i < 2; ++i) words_[half][i] = i < own ? __ldg(from + i) : 0;
      } else if (own > 1 && reinterpret_cast<uintptr_t>(from) % 8 == 0) {
        const uint2 both = LoadOnce(from);
        words_[half][0] = both.x;
        words_[half][1] = both.y;
      } else {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          words_[half][i] = i < own ? __ldg(reinterpret_cast<const uint32_t*>(from) + i) : 0;
        }
      }
    }
  }
  // Past the first-level cache, and the 128 bytes around it into the second-level one.
  __device__ static uint2 LoadOnce(const uint8_t* from) {
    uint2 both;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];"
                 : "=r"(both.x), "=r"(both.y)
                 : "l"(from));
    return both;
  }

  const StreamArgs& args_;
  const StreamTile* tiles_;
  const int num_tiles_;
  UnitCursor at_;
  const uint8_t* from_[2] = {};
  int step_ = 0;  // bytes of eight blocks
  int left_ = 0;  // blocks of the unit, with those that were sent for
  uint32_t words_[2][2] = {};
};

}  // namespace foresight::cuda
