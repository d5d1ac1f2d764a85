// All experts of a step of one or two rows in one launch: as expert_stream.cuh's, but for work that is shared
// by all warps of a thread block, since there is too little for each to have its own.
//
// Thread blocks stay, one per multiprocessor, and take items in turn: a few groups of 32 weight rows of one
// expert, for all its rows of the step. First come those of w1 and w3 (sixteen rows of each, so that both
// values of sixteen activations meet), the shared expert's before the routed ones', then those of w2 in the
// same order. Sixteen warps multiply, each its own blocks of 128 columns. Four copy slabs of weights, a block
// for each of these, to a ring in shared memory, items ahead. Three add up the blocks' products in order and
// finish groups in turn. Who finishes the last of the groups that make up 128 values of the activation
// prepares these for w2; one warp waits for activations and tells its thread block.
//
// A step of few pairs has no launch before this one: every thread block routes, plans and prepares the rows
// in its shared memory, while the shared expert's first slabs are on their way.
//
// Nobody waits for ever: items depend on earlier ones alone, every thread block takes its own in order, and
// all thread blocks run at the same time, since there is one for each multiprocessor, and it fits there.
#pragma once

#include <cuda_pipeline.h>

#include "kernels/cuda/copy_once.cuh"
#include "kernels/moe/stream_step.cuh"

namespace foresight::cuda {

constexpr int kSlabWarps = 16;  // that multiply
constexpr int kCopyWarps = 4;
constexpr int kSumWarps = 3;  // each every third group
constexpr int kSlabThreads = (kSlabWarps + kSumWarps + kCopyWarps + 1) * 32;
constexpr int kPlanningThreads = kSlabThreads - kSlabWarps * 32;  // that don't multiply
// Of weights: w1's rows i..i+7, w3's, w1's next eight, w3's; or w2's in order.
constexpr int kGroupRows = kUnitRows;
// Of some warps of the block: those that multiply, and the others.
constexpr int kRowsBarrier = 1;
constexpr int kPlanBarrier = 2;

// The weights of sixteen blocks: all rows of the group in FP4, half of them (one operand A) in FP8. Rows lie
// so that eight lanes that read 16 bytes each, four of a row, never meet in a bank.
template <typename Format>
struct SlabShape {
  static constexpr int kBlockBytes = static_cast<int>(Format::Bytes(kBlockK));
  static constexpr int kRowBytes = kSlabWarps * kBlockBytes;
  static constexpr int kPitch = kRowBytes + 64;
  static constexpr int kRows = kBlockBytes == 64 ? kGroupRows : kGroupRows / 2;
};
constexpr int kScalePitch = kSlabWarps + 4;

// Of FP8 weights, whose scales are of 128 rows, the row of scales that a group has.
__device__ inline int ScaleRow(int group, bool is_down) {
  return is_down ? group / (128 / kGroupRows) : group / (256 / kGroupRows);
}

struct WeightSlab {
  alignas(16) uint8_t weights[SlabShape<Mxfp4Weights>::kRows * SlabShape<Mxfp4Weights>::kPitch];
  // The aligned words that hold a block's scales: of every row in FP4, of w1 and w3 (or w2, twice) in FP8.
  uint32_t scales[kGroupRows][kScalePitch];
};
static_assert(SlabShape<Fp8Weights>::kRows * SlabShape<Fp8Weights>::kPitch <= sizeof(WeightSlab::weights));

// The weights of one expert, and its pairs.
struct SlabTile {
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

// Where in the items' order somebody is.
struct GroupCursor {
  int group;  // first of the item, in its tile, or behind that
  int tile = 0;
  bool is_down = false;

  __device__ static GroupCursor First(const StreamArgs& args) {
    return {static_cast<int>(blockIdx.x) * args.span};
  }
  __device__ void Advance(const StreamArgs& args) { group += args.turn_units; }
  // Goes on to the tile that has the item. False: there is none among the first `tiles`.
  __device__ bool Settle(const StreamArgs& args, int tiles, bool with_down) {
    for (;;) {
      const int groups = args.item_units[is_down];
      if (tile == tiles) {
        if (is_down || !with_down) return false;
        tile = 0;
        is_down = true;
      } else if (group < groups) {
        return true;
      } else {
        group -= groups;
        ++tile;
      }
    }
  }
  // Behind the last group of the item.
  __device__ int End(const StreamArgs& args) const { return min(group + args.span, args.units[is_down]); }
};

template <int kSlabs>
struct SlabRing {
  WeightSlab slabs[kSlabs];
  SharedBarrier full[kSlabs];
  SharedBarrier empty[kSlabs];

  __device__ void Init() {
    for (int i = 0; i < kSlabs; ++i) {
      full[i].Init(kCopyWarps * 32);
      empty[i].Init(kSlabWarps * 32);
    }
  }
};

// Where in a ring somebody is.
template <int kSlots>
struct RingPlace {
  static_assert((kSlots & (kSlots - 1)) == 0);
  uint32_t place = 0;

  __device__ int slot() const { return static_cast<int>(place % kSlots); }
  __device__ uint32_t phase() const { return place / kSlots % 2; }
  __device__ void Advance() { ++place; }
};

// A warp that copies its part of the slabs of its thread block's items, in their order.
template <typename Format, int kSlabs>
class SlabStream {
 public:
  __device__ SlabStream(const StreamArgs& args, const SlabTile* tiles, SlabRing<kSlabs>& ring, int warp)
      : args_(args), tiles_(tiles), ring_(ring), warp_(warp), next_(GroupCursor::First(args)) {}

  // Copies of the next slab, if there is one among the first `tiles`, as soon as there is room. It has fewer
  // blocks at the end of a weight's rows.
  __device__ bool Send(int tiles, bool with_down) {
    if (block_ >= blocks_) {
      if (group_ + 1 < end_) {
        ++group_;
      } else {
        if (!next_.Settle(args_, tiles, with_down)) return false;
        tile_ = next_.tile;
        is_down_ = next_.is_down;
        is_fp8_ = Format::kDType == DType::kF8E4M3 || tile_ < args_.shared_tiles;
        blocks_ = args_.Cols(is_down_) / kBlockK;
        group_ = next_.group;
        end_ = next_.End(args_);
        next_.Advance(args_);
      }
      block_ = 0;
    }
    ring_.empty[place_.slot()].Wait(place_.phase() ^ 1);
    if (is_fp8_) {
      Copy<Fp8Weights>();
    } else {
      Copy<Format>();
    }
    ring_.full[place_.slot()].ArriveWithCopies();
    if (is_fp8_) part_ ^= 1;
    if (part_ == 0) block_ += kSlabWarps;
    place_.Advance();
    return true;
  }

 private:
  template <typename F>
  __device__ void Copy() {
    using Shape = SlabShape<F>;
    constexpr int kRows = Shape::kRows / kCopyWarps;  // of the warp
    constexpr int kRun = kRows < 8 ? kRows : 8;       // neighbours in a weight
    constexpr int kRowCopies = Shape::kRowBytes / (32 * 16);
    const SlabTile& tile = tiles_[tile_];
    WeightSlab& slab = ring_.slabs[place_.slot()];
    const int lane = threadIdx.x % 32;
    const int row_bytes = blocks_ * Shape::kBlockBytes;
    const int bytes = (blocks_ - block_) * Shape::kBlockBytes - lane * 16;  // there are for the lane
#pragma unroll
    for (int run = 0; run < kRows; run += kRun) {
      const int first = warp_ * kRows + run;  // of the slab's rows
      int matrix;
      const int64_t row = WeightRow(part_ * Shape::kRows + first, matrix);
      const uint8_t* from = tile.data[matrix] + row * row_bytes + block_ * Shape::kBlockBytes + lane * 16;
      uint8_t* to = slab.weights + first * Shape::kPitch + lane * 16;
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
#pragma unroll
        for (int part = 0; part < kRowCopies; ++part) {
          if (part * 512 < bytes) {
            policy_.Copy(to + i * Shape::kPitch + part * 512, from + part * 512);
          }
        }
        from += row_bytes;
      }
    }
    if constexpr (F::kDType == DType::kF8E4M3) {
      const int block = lane % kSlabWarps;
      const int half = lane / kSlabWarps;
      if (warp_ != 0 || block_ + block >= blocks_) return;
      const int first = ScaleRow(group_, is_down_) * blocks_;
      const auto from =
          reinterpret_cast<uintptr_t>(tile.scales[is_down_ ? 2 : half] + first + block_ + block) &
          ~uintptr_t{3};
      __pipeline_memcpy_async(&slab.scales[half][block], reinterpret_cast<const void*>(from), 4);
    } else if (blocks_ % 4 == 0 && reinterpret_cast<uintptr_t>(tile.scales[is_down_ ? 2 : 0]) % 16 == 0 &&
               reinterpret_cast<uintptr_t>(tile.scales[is_down_ ? 2 : 1]) % 16 ==
                   0) {  // four blocks' words at once
      static_assert(Format::kDType == DType::kF8E4M3 || kRun == 8);
#pragma unroll
      for (int run = 0; run < kRows; run += kRun) {
        const int first = warp_ * kRows + run;
        int matrix;
        const int64_t row = WeightRow(first, matrix) + lane / 4;
        const int block = lane % 4 * 4;
        if (block_ + block < blocks_) {
          policy_.Copy(&slab.scales[first + lane / 4][block],
                       tile.scales[matrix] + (row * blocks_ + block_ + block) * 4);
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < kRows; i += 2) {
        const int first = warp_ * kRows + i;
        const int block = lane % kSlabWarps;
        int matrix;
        const int64_t row = WeightRow(first, matrix) + lane / kSlabWarps;
        if (block_ + block < blocks_) {
          __pipeline_memcpy_async(&slab.scales[first + lane / kSlabWarps][block],
                                  tile.scales[matrix] + (row * blocks_ + block_ + block) * 4, 4);
        }
      }
    }
  }

  // Where row `of_group` of the group is: in w1, w3 or w2.
  __device__ int64_t WeightRow(int of_group, int& matrix) const {
    matrix = is_down_ ? 2 : of_group / 8 % 2;
    if (is_down_) return int64_t{group_} * kGroupRows + of_group;
    return int64_t{group_} * (kGroupRows / 2) + of_group / 16 * 8 + of_group % 8;
  }

  const StreamArgs& args_;
  const SlabTile* tiles_;
  SlabRing<kSlabs>& ring_;
  const int warp_;
  const CopyOnce policy_;
  GroupCursor next_;  // item
  RingPlace<kSlabs> place_;
  int group_ = 0;
  int end_ = 0;     // of the item
  int block_ = 0;   // the slab's first
  int blocks_ = 0;  // of a weight row
  int part_ = 0;    // of a group's rows
  int tile_ = 0;
  bool is_down_ = false;
  bool is_fp8_ = false;
};

// A block's products: lane 4 g + t stores all that it has from Place(t, g) on, in other banks than the
// others.
struct BlockSums {
  static constexpr int kPair = 2 * kGroupRows + 8;  // two columns', and factors of eight rows
  static constexpr int kColumnFactors = kStreamColumns / 2 * kPair;
  static constexpr int kSize = kColumnFactors + kStreamColumns;

  __device__ static constexpr int Place(int t, int g) { return t * kPair + g; }
  __device__ static constexpr int OfColumn(int column) {
    return column / 2 * kPair + column % 2 * kGroupRows;
  }
  __device__ static constexpr int FactorOfRow(int row) { return row / 8 * kPair + 2 * kGroupRows + row % 8; }

  float values[kSize];
};

struct SlabShared : StreamStep {
  static constexpr int kSlabs = 4;
  static constexpr int kBuffers = 2;

  alignas(128) SlabRing<kSlabs> ring;    // a copy of 512 bytes is four lines
  BlockSums sums[kBuffers][kSlabWarps];  // of a round
  // A round of the warp's groups; nobody is more rounds ahead of another than there are buffers.
  SharedBarrier full[kSumWarps][kBuffers];
  SharedBarrier empty[kBuffers];
  // What depends on the step's routing is known from here on.
  SharedBarrier planned;
  int num_tiles;
  int ready_tiles;  // so many first tiles' activations are there
  // Prepared rows for the routed experts and for the shared one, and activations.
  struct alignas(16) Source {
    const uint16_t* data;
    int stride;
    int factors;  // in a row
  };
  Source sources[3];
};

// What a multiplying warp does.
template <typename Format>
class SlabMultiplier {
 public:
  __device__ SlabMultiplier(const StreamArgs& args, SlabShared& shared, const SlabTile* tiles)
      : args_(args), shared_(shared), ring_(shared.ring), tiles_(tiles) {}

  __device__ void Run() {
    if (args_.plans) {
      shared_.template PrepareRows<Format>(args_, static_cast<int>(threadIdx.x / 32), kSlabWarps);
      GroupBarrier<kRowsBarrier>(kSlabWarps * 32);
    }
    bool planned = false;
    for (GroupCursor at = GroupCursor::First(args_);;) {
      if (!at.Settle(args_, planned ? shared_.num_tiles : args_.shared_tiles, planned)) {
        if (planned) break;
        shared_.planned.Wait(0);  // not for the shared expert's items
        planned = true;
        continue;
      }
      const SourceColumn x = FindColumn(at);
      if (at.is_down) AwaitActivation(at.tile);
      if (Format::kDType == DType::kF8E4M3 || at.tile < args_.shared_tiles) {
        Item<Fp8Weights>(at, x);
      } else {
        Item<Format>(at, x);
      }
      at.Advance(args_);
    }
  }

 private:
  static constexpr int kSlabs = SlabShared::kSlabs;

  // The lane's column of an item's source: where its values of block 0 lie, and its factors.
  struct SourceColumn {
    const uint16_t* data;
    int values;
    int factors;
  };
  // Behind the last one it is another, whose products nobody asks for.
  __device__ SourceColumn FindColumn(const GroupCursor& at) const {
    const SlabTile& tile = tiles_[at.tile];
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int32_t* rows = (at.is_down ? shared_.plan.list : shared_.plan.rows) + tile.begin;
    const SlabShared::Source source = shared_.sources[at.is_down ? 2 : at.tile < args_.shared_tiles];
    const int begin = rows[min(lane / 4, tile.count - 1)] * source.stride;
    return {source.data, begin + lane % 4 * 8, begin + source.factors};
  }

  template <typename F>
  __device__ void Item(const GroupCursor& at, const SourceColumn& x) {
    const int end = at.End(args_);
    for (int group = at.group; group < end; ++group) Multiply<F>(at, group, x);
  }

  template <typename F>
  __device__ void Multiply(const GroupCursor& at, int group, const SourceColumn& x) {
    constexpr bool kFp8 = F::kDType == DType::kF8E4M3;
    const int warp = threadIdx.x / 32;
    const int blocks = args_.Cols(at.is_down) / kBlockK;
    const int half = static_cast<int>(threadIdx.x % 2);  // of row lane % 4 * 8 + lane / 4
    uint32_t scale_offset = 0;                           // of block 0's, in FP8
    if constexpr (kFp8) {
      const int first = ScaleRow(group, at.is_down) * blocks;
      scale_offset = static_cast<uint32_t>(
          reinterpret_cast<uintptr_t>(tiles_[at.tile].scales[at.is_down ? 2 : half]) + first);
    }

    // A warp without a block goes with the others.
    for (int block = warp; block - warp < blocks; block += kSlabWarps) {
      float acc[2][4] = {};
      const int there = min(block, blocks - 1);
      const uint16_t* from = x.data + (x.values + there * kBlockK);
      LaneColumn column;  // sent for before its weights are in
#pragma unroll
      for (int pair = 0; pair < kBlockSteps / 2; ++pair) column.Load(from, pair);
      const float of_column = *reinterpret_cast<const float*>(x.data + (x.factors + 2 * there));
      RowScale scales[2][2] = {};
      float row_factor;
      if constexpr (kFp8) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          RowPair weights[2];
          TakeSlab<F>([&](const WeightSlab& slab) {
#pragma unroll
            for (int c = 0; c < 2; ++c) weights[c] = Rows<F>(slab, 0, c * 64);
            // One for all rows of a weight's in the group.
            if (m == 0) {
              row_factor =
                  F::Scale(static_cast<uint8_t>(slab.scales[half][warp] >> (scale_offset + block) % 4 * 8))
                      .block;
            }
          });
#pragma unroll
          for (int step = 0; step < kBlockSteps; ++step) {
            Step<F>(weights[step / 4], step % 4, scales[m], column, step / 2, acc[m]);
          }
        }
      } else {
        RowPair weights[2];
        TakeSlab<F>([&](const WeightSlab& slab) {
          row_factor = FindScales<F>(slab, scales);
#pragma unroll
          for (int m = 0; m < 2; ++m) weights[m] = Rows<F>(slab, m * 16, 0);
        });
#pragma unroll
        for (int step = 0; step < kBlockSteps; ++step) {
#pragma unroll
          for (int m = 0; m < 2; ++m) Step<F>(weights[m], step, scales[m], column, step / 2, acc[m]);
        }
      }
      PutSums(acc, of_column, row_factor, block < blocks);
    }
    finisher_ = finisher_ + 1 < kSumWarps ? finisher_ + 1 : 0;
  }

  template <typename F>
  __device__ static void Step(const RowPair& weights, int step, const RowScale (&scales)[2],
                              const LaneColumn& column, int pair, float (&acc)[4]) {
    uint32_t a[4];
    DecodePair<F>(weights, step, scales, a);
    MultiplyStep<F>(acc, a, step, column.values[pair]);
  }

  // Waits for the next slab, lets `read` take what it needs, and gives the room back.
  template <typename F, typename Read>
  __device__ void TakeSlab(const Read& read) {
    ring_.full[place_.slot()].Wait(place_.phase());
    read(ring_.slabs[place_.slot()]);
    ring_.empty[place_.slot()].Arrive();
    place_.Advance();
  }

  // Sixteen bytes of the slab's rows `first` + g and + g + 8, of the warp's block.
  template <typename F>
  __device__ static RowPair Rows(const WeightSlab& slab, int first, int at) {
    using Shape = SlabShape<F>;
    const int lane = threadIdx.x % 32;
    const uint8_t* from = slab.weights + (first + lane / 4) * Shape::kPitch +
                          threadIdx.x / 32 * Shape::kBlockBytes + at + lane % 4 * 16;
    return {*reinterpret_cast<const uint4*>(from), *reinterpret_cast<const uint4*>(from + 8 * Shape::kPitch)};
  }

  // What the lane's four rows are decoded with. Returns the factor of the sums of row lane % 4 * 8 + lane
  // / 4, which is the one that the lane reads the scales of.
  template <typename F>
  __device__ static float FindScales(const WeightSlab& slab, RowScale (&scales)[2][2]) {
    const int lane = threadIdx.x % 32;
    const uint32_t word = slab.scales[lane % 4 * 8 + lane / 4][threadIdx.x / 32];
    const uint32_t largest = F::LargestScale(word);
    const uint32_t factors = F::Factors(word, largest);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scales[i / 2][i % 2].decode = F::FactorOf(__shfl_sync(0xffffffff, factors, i, 4), lane % 4);
    }
    return F::BlockFactor(largest);
  }

  // Hands the block's products to the warp that adds them up; without a block it only takes part.
  __device__ void PutSums(const float (&acc)[2][4], float of_column, float of_row, bool has_block) {
    const int lane = threadIdx.x % 32;
    shared_.empty[buffer_.slot()].Wait(buffer_.phase() ^ 1);
    if (has_block) {
      float* to =
          shared_.sums[buffer_.slot()][threadIdx.x / 32].values + BlockSums::Place(lane % 4, lane / 4);
      to[2 * kGroupRows] = of_row;
      if (lane % 4 == 0) to[BlockSums::kColumnFactors] = of_column;
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        to[m * 16] = acc[m][0];
        to[m * 16 + kGroupRows] = acc[m][1];
        to[m * 16 + 8] = acc[m][2];
        to[m * 16 + kGroupRows + 8] = acc[m][3];
      }
    }
    shared_.full[finisher_][buffer_.slot()].Arrive();
    buffer_.Advance();
  }

  __device__ void AwaitActivation(int tile) {
    if (threadIdx.x % 32 == 0) {
      while (atomicOr_block(&shared_.ready_tiles, 0) <= tile) {
      }
      __threadfence_block();
    }
    __syncwarp();
  }

  const StreamArgs& args_;
  SlabShared& shared_;
  SlabRing<kSlabs>& ring_;
  const SlabTile* tiles_;
  RingPlace<kSlabs> place_;
  RingPlace<SlabShared::kBuffers> buffer_;
  int finisher_ = 0;
};

// What a warp does that adds up every kSumWarps-th group.
template <typename Format>
class SlabFinisher {
 public:
  __device__ SlabFinisher(const StreamArgs& args, SlabShared& shared, const SlabTile* tiles)
      : args_(args), shared_(shared), tiles_(tiles), warp_(threadIdx.x / 32 - kSlabWarps) {}

  __device__ void Run(int tiles) {
    int skip = warp_;  // groups of others
    for (GroupCursor at = GroupCursor::First(args_); at.Settle(args_, tiles, true); at.Advance(args_)) {
      const int count = at.End(args_) - at.group;
      const int rounds = (args_.Cols(at.is_down) / kBlockK + kSlabWarps - 1) / kSlabWarps;
      for (int i = 0; i < count; ++i) {
        if (skip == 0) {
          Group(at, at.group + i, tiles);
          skip = kSumWarps;
        } else {
          buffer_ = (buffer_ + rounds) % kBuffers;
        }
        --skip;
      }
    }
  }

 private:
  static constexpr int kColumns = kStreamColumns;  // a lane has one row of each
  static constexpr int kBuffers = SlabShared::kBuffers;

  __device__ void Group(const GroupCursor& at, int group, int tiles) {
    const SlabTile& tile = tiles_[at.tile];
    const int lane = threadIdx.x % 32;
    // Of column `lane`; they come while the sums are awaited.
    int pair = 0;
    float weight = 1;
    if (lane < tile.count) {
      pair = shared_.plan.list[tile.begin + lane];
      if (!at.is_down && at.tile >= args_.shared_tiles) weight = shared_.weights[pair];
    }
    float sums[kColumns] = {};
    Sum(at, tile.count, sums);
    if (at.is_down) {
      Down(tile, group, sums, pair, tiles);
    } else {
      Up(at.tile, group, sums, pair, weight);
    }
  }

  __device__ void Sum(const GroupCursor& at, int count, float (&sums)[kColumns]) {
    const int lane = threadIdx.x % 32;
    const int blocks = args_.Cols(at.is_down) / kBlockK;
    for (int round = 0; round < blocks; round += kSlabWarps) {
      shared_.full[warp_][buffer_].Wait(phases_ >> buffer_ & 1);
      phases_ ^= 1u << buffer_;
      const int n = min(kSlabWarps, blocks - round);
      const float* row_factors = shared_.sums[buffer_][0].values + BlockSums::FactorOfRow(lane);
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        if (column >= count) break;
        const float* products = shared_.sums[buffer_][0].values + BlockSums::OfColumn(column) + lane;
        const float* factors = shared_.sums[buffer_][0].values + BlockSums::kColumnFactors + column;
#pragma unroll 8
        for (int b = 0; b < n; ++b) {
          const int at = b * BlockSums::kSize;
          sums[column] = AddScaled(sums[column], products[at], factors[at], row_factors[at]);
        }
      }
      shared_.empty[buffer_].Arrive();
      buffer_ = buffer_ + 1 < kBuffers ? buffer_ + 1 : 0;
    }
  }

  __device__ void Up(int at_tile, int group, const float (&sums)[kColumns], int own_pair, float own_weight) {
    const SlabTile& tile = tiles_[at_tile];
    const int lane = threadIdx.x % 32;
    const int output = group * (kGroupRows / 2) + lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
      if (column >= tile.count) break;
      const float y = RoundBf16(sums[column]);
      const float up = __shfl_xor_sync(0xffffffff, y, 8);
      const int pair = __shfl_sync(0xffffffff, own_pair, column);
      const float weight = __shfl_sync(0xffffffff, own_weight, column);
      if (lane % 16 >= 8) continue;
      args_.hidden[int64_t{pair} * args_.intermediate + output] = args_.swiglu(y, up, weight);
    }
    const int blocks = args_.intermediate / kBlockK;
    const int block = group * (kGroupRows / 2) / kBlockK;
    const int before = WarpCount(args_.units_of_block + at_tile * blocks + block);
    if (before != kBlockK / (kGroupRows / 2) - 1) return;
    Fence();
    const auto pair_of = [&](int column) { return shared_.plan.list[tile.begin + column]; };
    if (at_tile < args_.shared_tiles) {
      PrepareActivation<Fp8Weights>(args_, tile.count, block, pair_of);
    } else {
      PrepareActivation<Format>(args_, tile.count, block, pair_of);
    }
    WarpCount(args_.ready_blocks + at_tile);
  }

  __device__ void Down(const SlabTile& tile, int group, const float (&sums)[kColumns], int own_pair,
                       int tiles) {
    const int output = group * kGroupRows + threadIdx.x % 32;
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
      if (column >= tile.count) break;
      const int pair = __shfl_sync(0xffffffff, own_pair, column);
      args_.y[int64_t{pair} * args_.dim + output] = RoundBf16(sums[column]);
    }
    if (args_.out == nullptr || WarpCount(args_.outputs + group) != tiles - 1) return;
    Fence();
    if (args_.watchers != nullptr && threadIdx.x % 32 == 0) args_.outputs[group] = 0;
    CombineUnit(args_, group * kGroupRows);
  }

  const StreamArgs& args_;
  SlabShared& shared_;
  const SlabTile* tiles_;
  const int warp_;
  int buffer_ = 0;
  uint32_t phases_ = 0;  // a bit per buffer: the parity of the warp's next round there
};

// What the warp does that waits for activations, tile after tile, and tells its thread block of them.
__device__ inline void WatchTiles(const StreamArgs& args, int tiles, int* ready_tiles) {
  const int blocks = args.intermediate / kBlockK;
  const int lane = threadIdx.x % 32;
  for (int ready = 0; ready < tiles;) {
    // No acquiring load: it would empty the first-level cache again and again.
    const int tile = ready + lane;
    const bool is_ready = tile < tiles && LoadRelaxed(args.ready_blocks + tile) == blocks;
    const int more = __clz(__brev(~__ballot_sync(0xffffffff, is_ready)));
    if (more == 0) {
      __nanosleep(100);
      continue;
    }
    ready += more;
    Fence();
    __syncwarp();
    if (lane == 0) atomicExch_block(ready_tiles, ready);
  }
  if (args.watchers != nullptr) LeaveCounters(args);
}

// What is known before the inputs are.
__device__ inline void SetUpSlabs(const StreamArgs& args, SlabShared& shared, uint8_t* memory,
                                  SlabTile* tiles) {
  const int pairs = args.rows * args.slots;
  const int thread = threadIdx.x;
  for (int i = thread; i < args.shared_tiles; i += kSlabThreads) {
    tiles[i].Set(args.shared, pairs + i * kStreamColumns,
                 min(kStreamColumns, args.rows - i * kStreamColumns));
  }
  if (thread == 0) {
    shared.ring.Init();
    for (auto& of_warp : shared.full) {
      for (SharedBarrier& barrier : of_warp) barrier.Init(kSlabWarps * 32);
    }
    for (SharedBarrier& barrier : shared.empty) barrier.Init(32);
    shared.planned.Init(kPlanningThreads);
    shared.ready_tiles = 0;
  }
  shared.SetUp(args, memory);
  if (thread == 0) {
    for (int i = 0; i < 3; ++i) {
      const PreparedRows& rows = i == 2 ? args.activation : args.x_routed;
      shared.sources[i] = {i == 2 ? rows.data : shared.x[i], static_cast<int>(rows.stride()),
                           static_cast<int>(rows.padded)};
    }
  }
  if (args.plans && thread < args.rows) {
    shared.few.list[pairs + thread] = pairs + thread;
    shared.few.rows[pairs + thread] = thread;
  }
}

// By the warps that don't multiply: the routed experts' tiles, for all of the thread block. Returns how many
// tiles there are.
__device__ inline int FindSlabTiles(const StreamArgs& args, SlabShared& shared, double* scores,
                                    SlabTile* tiles) {
  static_assert(kPlanningThreads == kRouterThreads);
  const int thread = static_cast<int>(threadIdx.x) - kSlabWarps * 32;
  const auto sync = [] { GroupBarrier<kPlanBarrier>(kPlanningThreads); };
  if (args.plans) {
    shared.Plan<kPlanBarrier>(args, thread, scores);
    sync();
  }
  const int num_tiles = args.shared_tiles + *shared.plan.num_tiles;
  for (int i = thread; i < args.max_tiles; i += kPlanningThreads) {
    const ExpertTile tile = shared.plan.tiles[i];  // garbage behind the end; read beside the number
    if (args.shared_tiles + i >= num_tiles) break;
    tiles[args.shared_tiles + i].Set(args.experts[tile.expert], tile.begin, tile.count);
  }
  if (thread == 0) shared.num_tiles = num_tiles;
  sync();
  shared.planned.Arrive();  // each for what it has written
  return num_tiles;
}

template <typename Format>
__global__ void __launch_bounds__(kSlabThreads, 1) ExpertSlabKernel(const __grid_constant__ StreamArgs args) {
  extern __shared__ __align__(16) uint8_t memory[];
  SlabShared& shared = *reinterpret_cast<SlabShared*>(memory);
  SlabTile* tiles = reinterpret_cast<SlabTile*>(memory + sizeof(SlabShared));
  SetUpSlabs(args, shared, memory, tiles);
  __syncthreads();
  const int warp = threadIdx.x / 32;
  const int copier = warp - kSlabWarps - kSumWarps;
  const bool copies = copier >= 0 && copier < kCopyWarps;
  SlabStream<Format, SlabShared::kSlabs> stream(args, tiles, shared.ring, copier);
  if (copies) {
    for (int i = 0; i < SlabShared::kSlabs && stream.Send(args.shared_tiles, false); ++i) {
    }
  }
  AwaitInputs<Successors::kBehindInputs>();
  if (warp < kSlabWarps) {
    SlabMultiplier<Format>(args, shared, tiles).Run();
    return;
  }
  const int num_tiles =
      FindSlabTiles(args, shared, reinterpret_cast<double*>(memory + args.scores_at), tiles);
  if (copies) {
    while (stream.Send(num_tiles, true)) {
    }
  } else if (copier == kCopyWarps) {
    WatchTiles(args, num_tiles, &shared.ready_tiles);
  } else {
    SlabFinisher<Format>(args, shared, tiles).Run(num_tiles);
  }
}

}  // namespace foresight::cuda
