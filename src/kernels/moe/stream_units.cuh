// How the warps of the experts' streaming kernel send for weights.
//
// A warp's piece of work is a unit: two fragments of 16 weight rows of one expert over all of K, for all of a
// tile's columns. Of w1 and w3 eight rows each stand in turn, so that both values of eight activations meet
// in a fragment; those of w2 stand in their order.
#pragma once

#include "kernels/cuda/copy_once.cuh"
#include "kernels/moe/stream_step.cuh"

namespace foresight::cuda {

constexpr int kStreamWarps = 12;                     // of a thread block
constexpr int kRoundBytes = 128;                     // of every row of a unit
constexpr int kRoundSize = kUnitRows * kRoundBytes;  // what a warp sends for at a time
constexpr int kRingRounds = 3;                       // of a warp on their way
constexpr int kM = kUnitRows / 16;                   // fragments

// The weights of one expert, and its pairs with their rows of the step and their weights. Behind the last
// column stands another, whose products nobody asks for.
struct StreamTile {
  const uint8_t* data[3];  // w1, w3, w2
  const uint8_t* scales[3];
  float weights[kStreamColumns];
  uint16_t pairs[kStreamColumns];
  uint16_t rows[kStreamColumns];
  int count;

  __device__ void Set(const ExpertWeights& w, int columns) {
    const MatrixView* views[3] = {&w.w1, &w.w3, &w.w2};
    for (int i = 0; i < 3; ++i) {
      data[i] = reinterpret_cast<const uint8_t*>(views[i]->data);
      scales[i] = views[i]->scales;
    }
    count = columns;
  }
  __device__ void SetColumn(int column, int pair, int row, float weight) {
    pairs[column] = static_cast<uint16_t>(pair);
    rows[column] = static_cast<uint16_t>(row);
    weights[column] = weight;
  }
};
constexpr int kMostStreamPairs = 1 << 16;  // the shared expert's included

// A value that the compiler would find again in every round keeps its register.
template <typename T>
__device__ inline T Kept(T x) {
  asm volatile("" : "+r"(x));
  return x;
}

template <typename Format>
__device__ inline bool IsFp8(const StreamArgs& args, int tile) {
  return Format::kDType == DType::kF8E4M3 || tile < args.shared_tiles;
}

// Which units there are, or are known of.
struct StepUnits {
  int tiles;
  int turned;  // from this number on, up to `end`, the other way round
  int end;     // behind the last one, or behind its round of all warps

  // Of a round of all warps.
  __device__ static int OfRound() { return kStreamWarps * static_cast<int>(gridDim.x); }
  __device__ static StepUnits OfShared(const StreamArgs& args) {
    const int end = args.shared_tiles * args.units[0];  // without those of w2
    return {args.shared_tiles, end, end};
  }
  __device__ static StepUnits All(const StreamArgs& args, int tiles) {
    const int all = tiles * (args.units[0] + args.units[1]);
    const int round = OfRound();
    const int last = all % round;
    const int end = all - last + round;
    // The first round may have begun before all units are known; one that nearly all warps are in stays.
    const bool turns = all > round && last < round / 4 * 3;
    return {tiles, turns ? end - round : end, end};
  }
};

// Where a unit is. All have numbers: those of w1 and w3, tile after tile, then those of w2. Warps take every
// so many, but in the last round the other way round: those that it doesn't reach then have one more of w1
// and w3, which are twice as large.
struct Unit {
  int tile;
  int row;  // the first in each of its weights
  bool is_down;

  // The warp's first number, and from each to its next.
  __device__ static int First(const StreamArgs& args, int warp) {
    const int item = warp / args.span * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
    return item * args.span + warp % args.span;
  }
  // False: there is none.
  __device__ bool Find(const StreamArgs& args, const StepUnits& units_of, int number) {
    if (number >= units_of.end) return false;
    if (number >= units_of.turned) number = units_of.turned + units_of.end - 1 - number;
    const int first_down = units_of.tiles * args.units[0];
    is_down = number >= first_down;
    if (is_down) number -= first_down;
    const int units = args.units[is_down];
    tile = static_cast<int>(static_cast<unsigned>(number) / static_cast<unsigned>(units));
    row = (number - tile * units) * (is_down ? kUnitRows : kUnitRows / 2);
    return tile < units_of.tiles;
  }
};

// What a warp sends for, round after round. In shared memory eight lanes that read 16 bytes each, four of a
// row, never meet in a bank: the halves of odd rows change places.
template <typename Format>
class WeightRounds {
 public:
  __device__ WeightRounds(const StreamArgs& args, const StreamTile* tiles, int warp)
      : args_(args),
        tiles_(tiles),
        lane_bytes_(Kept(static_cast<int>(threadIdx.x % 8 * 16))),
        next_(Unit::First(args, warp)) {}

  // Whether there is a further round.
  __device__ bool HasNext(const StepUnits& units) {
    if (left_ > 0) return true;
    Unit unit = {};
    if (!unit.Find(args_, units, next_)) return false;
    const StreamTile& tile = tiles_[unit.tile];
    const int cols = args_.Cols(unit.is_down);
    left_ = IsFp8<Format>(args_, unit.tile) ? cols : cols / 2;
    four_rows_ = 4 * left_;
    fragment_ = (unit.is_down ? 16 : 8) * left_;
    const int at_row = unit.row + static_cast<int>(threadIdx.x % 32 / 8);
    const int64_t at = int64_t{at_row} * left_ + threadIdx.x % 8 * 16;
    from_[0] = tile.data[unit.is_down ? 2 : 0] + at;
    from_[1] = unit.is_down ? from_[0] + 2 * four_rows_ : tile.data[1] + at;
    next_ += StepUnits::OfRound();
    return true;
  }
  // Where the lane's first bytes of a round go, from its slot's address on.
  __device__ static int Place() {
    const unsigned row = threadIdx.x % 32 / 8;
    return static_cast<int>(row * kRoundBytes + (threadIdx.x % 8 ^ row % 2 * 4) * 16);
  }
  // The round that is there, to the slot whose address in shared memory is `place` less Place(), as a group
  // of copies.
  __device__ void Copy(uint32_t place) {
    if (lane_bytes_ < left_) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint8_t* from = from_[half] + m * fragment_;
          policy_.Copy(place + (16 * m + 8 * half) * kRoundBytes, from);
          policy_.Copy(place + (16 * m + 8 * half + 4) * kRoundBytes, from + four_rows_);
        }
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
  const int lane_bytes_;  // before the lane's in a row of a round
  const CopyOnce policy_;
  int next_;                     // unit
  const uint8_t* from_[2] = {};  // the lane's first bytes in the first and in the second eight rows
  int four_rows_ = 0;            // in bytes
  int fragment_ = 0;             // from eight rows to those of the next fragment, in bytes
  int left_ = 0;                 // of each row of the unit
};

// What sums of eight blocks are multiplied by, and what codes are decoded with.
constexpr int kFactorBlocks = 8;
struct BlockFactors {
  // A byte for each lane of a row (see FactorOf()), and a float's bits; blocks begin in other banks.
  uint2 of_rows[kFactorBlocks][kUnitRows + 2];
  float of_columns[kFactorBlocks][kStreamColumns];
};

// A lane's scales of eight blocks of its fragments' rows g and g + 8 (g = lane / 4, t = lane % 4): of blocks
// 2 t and 2 t + 1. They are sent for while the eight blocks before them are multiplied, the unit's before
// included.
template <typename Format>
class UnitScales {
 public:
  __device__ UnitScales(const StreamArgs& args, const StreamTile* tiles, const StepUnits& units, int warp)
      : args_(args), tiles_(tiles), units_(units), next_(Unit::First(args, warp)) {
    Open();
  }

  // Whether there is a unit; then `unit` is it.
  __device__ bool Get(Unit& unit) const { return unit.Find(args_, units_, next_); }
  // Those that were sent for, for the warp.
  template <typename F>
  __device__ void Take(BlockFactors& factors) {
    const int g = static_cast<int>(threadIdx.x % 32 / 4);
    const int t = static_cast<int>(threadIdx.x % 4);
#pragma unroll
    for (int row = 0; row < 2 * kM; ++row) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t word = words_[row][i];
        uint2 of_row;
        if constexpr (F::kDType == DType::kF8E4M3) {
          of_row = {0, __float_as_uint(F::Scale(static_cast<uint8_t>(word)).block)};
        } else {
          const uint32_t largest = F::LargestScale(word);
          of_row = {F::Factors(word, largest), __float_as_uint(F::BlockFactor(largest))};
        }
        factors.of_rows[2 * t + i][g + row * 8] = of_row;
      }
    }
  }
  // For the eight blocks behind those that were taken.
  __device__ void Send() {
    from_[0] += step_;
    from_[1] += step_;
    left_ -= kFactorBlocks;
    if (left_ > 0) {
      Load();
    } else {
      next_ += StepUnits::OfRound();
      Open();
    }
  }

 private:
  __device__ void Open() {
    Unit unit = {};
    if (!Get(unit)) return;
    const StreamTile& tile = tiles_[unit.tile];
    const int g = static_cast<int>(threadIdx.x % 32 / 4);
    const int t = static_cast<int>(threadIdx.x % 4);
    const int blocks = args_.Cols(unit.is_down) / kBlockK;
    const bool is_fp8 = IsFp8<Format>(args_, unit.tile);
    const int bytes = is_fp8 ? 1 : 4;  // of a row and block
    const int row = is_fp8 ? unit.row / 128 : unit.row + g;
    const int64_t at = int64_t{row} * blocks * bytes + 2 * t * bytes;
    from_[0] = tile.scales[unit.is_down ? 2 : 0] + at;
    from_[1] = unit.is_down ? from_[0] + (is_fp8 ? 0 : 8 * blocks * bytes) : tile.scales[1] + at;
    fragment_ = is_fp8 ? 0 : (unit.is_down ? 16 : 8) * blocks * bytes;
    step_ = kFactorBlocks * bytes;
    in_pairs_ = !is_fp8 && blocks % 2 == 0 && reinterpret_cast<uintptr_t>(from_[0]) % 8 == 0 &&
                reinterpret_cast<uintptr_t>(from_[1]) % 8 == 0;
    left_ = blocks;
    Load();
  }
  // Of blocks that aren't there nothing.
  __device__ void Load() {
    const int own = left_ - static_cast<int>(threadIdx.x % 4 * 2);  // blocks from the lane's first on
#pragma unroll
    for (int row = 0; row < 2 * kM; ++row) {
      const uint8_t* from = from_[row % 2] + row / 2 * fragment_;
      if (in_pairs_) {
        if (own > 0) LoadPair(from, words_[row]);
      } else {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (i >= own) break;
          words_[row][i] =
              step_ == kFactorBlocks ? __ldg(from + i) : __ldg(reinterpret_cast<const uint32_t*>(from) + i);
        }
      }
    }
  }
  // Past the first-level cache, and the 128 bytes around it into the second-level one.
  __device__ static void LoadPair(const uint8_t* from, uint32_t (&pair)[2]) {
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];"
                 : "=r"(pair[0]), "=r"(pair[1])
                 : "l"(from));
  }

  const StreamArgs& args_;
  const StreamTile* tiles_;
  const StepUnits& units_;
  int next_;  // unit
  const uint8_t* from_[2] = {};
  int fragment_ = 0;       // from eight rows to those of the next fragment, in bytes
  int step_ = 0;           // bytes of eight blocks
  int left_ = 0;           // blocks of the unit, with those that were sent for
  bool in_pairs_ = false;  // a lane's two blocks are one load
  uint32_t words_[2 * kM][2] = {};
};

}  // namespace foresight::cuda
