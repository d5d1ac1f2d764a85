// The routed experts of many rows: weights decoded into registers as operand A of f16 warpgroup products,
// rows of the step that share an expert as operand B. Per block of 128 columns of a weight the products add
// up eight steps from zero, and the blocks' sums are added in order, as everywhere (product.cuh): so bits are
// those of the streaming kernel.
//
// Thread blocks stay, one per multiprocessor, and take items in turn: 64 weight rows for each of the
// warpgroups that multiply, for all columns of one tile. Of a last warpgroup two warps copy weights, and two
// prepare their scales, one of which sends for columns, too, that an earlier kernel has gathered and laid out
// (expert_image.cuh). With up to 32 columns four warpgroups multiply; with up to 128 there are registers for
// two.
#include <algorithm>

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/barriers.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/product_tile.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/moe/expert_image.cuh"
#include "kernels/moe/expert_plan.cuh"
#include "kernels/moe/expert_wide.h"
#include "kernels/moe/swiglu.cuh"

namespace foresight::cuda {

namespace {

struct WideArgs {
  const ExpertWeights* experts;
  ExpertPlan plan;
  const uint8_t* image;
  const float* place_weights;
  int cols;       // K
  int rows;       // of one weight
  uint16_t* out;  // [places, rows] activations, or [pairs, rows] outputs of w2
  Swiglu swiglu;
};

constexpr int kWeightWarps = 2;
constexpr int kScaleWarps = 2;

template <typename Format, int kGroups>
struct WideShape {
  static constexpr int kRows = 64 * kGroups;  // of an item: of w2, or half as many of w1 and of w3
  static constexpr int kMathWarps = 4 * kGroups;
  static constexpr int kThreads = 32 * (kMathWarps + 4);
  // Of threads that multiply and of the others, together no more than all begin with.
  static constexpr int kMathRegisters = kGroups == 4 ? 104 : 208;
  static constexpr int kOtherRegisters = kGroups == 4 ? 64 : 88;
  static constexpr int kColumns = kGroups == 4 ? 32 : 128;  // of a tile, at most
  static constexpr int kStageColumns = kGroups == 4 ? 64 : 128;
  static constexpr int kSparePlaces = SparePlaces(kColumns);
  static constexpr int kBlockBytes = static_cast<int>(Format::Bytes(kBlockK));
  static constexpr int kStageRowBytes = 128;
  static constexpr int kStageBlocks = kStageRowBytes / kBlockBytes;  // of a stage of weights
  static constexpr int kWeightStages = kGroups == 4 ? 4 : 6;
  static constexpr int kColumnStages = kGroups == 4 ? 4 : 3;

  // Blocks of a stage of columns.
  __host__ __device__ static constexpr int ColumnBlocks(int width) {
    return 4 * width <= kStageColumns ? 4 : 2 * width <= kStageColumns ? 2 : 1;
  }

  // Sixty-four bytes of odd rows lie in place of their neighbours, so that eight lanes that read 16 bytes
  // each, four of a row, never meet in a bank.
  struct alignas(128) WeightStage {
    uint8_t codes[kRows * kStageRowBytes];
    uint2 scales[kStageBlocks][kRows];  // how far below the row's largest each is, and the bits of its factor
  };
  struct Space {
    WeightStage weights[kWeightStages];
    alignas(128) uint8_t columns[kColumnStages][ImageBytes(kStageColumns)];
    SharedBarrier weights_full[kWeightStages];
    SharedBarrier weights_empty[kWeightStages];
    TransferBarrier columns_full[kColumnStages];
    SharedBarrier columns_empty[kColumnStages];
  };
};

// Where in a ring of kStages somebody is.
template <int kStages>
struct Turn {
  int stage = 0;
  uint32_t parity;

  __device__ void Advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// Rows of an item lie so that both values of an activation meet in a thread (eight of w1 and of w3 in turn),
// or four neighbours of w2 do (a pair of each half of a fragment). Where row `row` of the item's of w1, w3 or
// w2 lies; the place of a sum whose bits don't meet is the sum of the places.
template <bool kDown>
__host__ __device__ constexpr int PlaceOf(int row, int matrix) {
  if (kDown) return row / 16 * 16 + row / 2 % 2 * 8 + row / 4 % 4 * 2 + row % 2;
  return row / 8 * 16 + matrix * 8 + row % 8;
}
// And the other way round.
template <bool kDown>
__device__ inline int RowAt(int place) {
  if (kDown) return place / 16 * 16 + place % 8 / 2 * 4 + place / 8 % 2 * 2 + place % 2;
  return place / 16 * 8 + place % 8;
}
template <bool kDown>
__device__ inline const MatrixView& WeightOf(const WideArgs& args, const ExpertTile& tile, int half) {
  const ExpertWeights& expert = args.experts[tile.expert];
  return kDown ? expert.w2 : half == 0 ? expert.w1 : expert.w3;
}

// The items of a thread block, in their order: which weight rows of which tile.
template <bool kDown, int kItemRows>
class ItemCursor {
 public:
  static constexpr int kWeightRows = kDown ? kItemRows : kItemRows / 2;  // of one weight

  __device__ explicit ItemCursor(const WideArgs& args)
      : args_(args), items_(RowTiles() * *args.plan.num_tiles), item_(static_cast<int>(blockIdx.x)) {
    Open();
  }
  __device__ explicit operator bool() const { return item_ < items_; }
  __device__ void Advance() {
    item_ += static_cast<int>(gridDim.x);
    Open();
  }

  __device__ int first_row() const { return item_ % RowTiles() * kWeightRows; }
  __device__ const ExpertTile& tile() const { return tile_; }
  __device__ bool HasNext() const { return item_ + static_cast<int>(gridDim.x) < items_; }
  __device__ ExpertTile Next() const {
    return args_.plan.tiles[(item_ + static_cast<int>(gridDim.x)) / RowTiles()];
  }

 private:
  __device__ int RowTiles() const { return (args_.rows + kWeightRows - 1) / kWeightRows; }
  __device__ void Open() {
    if (item_ < items_) tile_ = args_.plan.tiles[item_ / RowTiles()];
  }

  const WideArgs& args_;
  const int items_;
  int item_;
  ExpertTile tile_;
};

// Warp `warp` of those that copy weights.
template <typename Format, int kGroups, bool kDown>
__device__ void SendWeights(const WideArgs& args, typename WideShape<Format, kGroups>::Space& space,
                            int warp) {
  using Shape = WideShape<Format, kGroups>;
  constexpr int kWeights = kDown ? 1 : 2;
  constexpr int kRowLanes = Shape::kStageRowBytes / 16;
  constexpr int kRowsAtOnce = 32 / kRowLanes;
  constexpr int kRows = Shape::kRows / kWeights / kWeightWarps;  // of a weight, the warp's
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int at_byte = lane % kRowLanes * 16;
  const int lane_row = lane / kRowLanes;
  const int lane_place = (warp * kRows * kWeights + PlaceOf<kDown>(lane_row, 0)) * Shape::kStageRowBytes +
                         (at_byte ^ lane_row % 2 * 64);
  const int blocks = args.cols / kBlockK;
  const int row_bytes = blocks * Shape::kBlockBytes;
  Turn<Shape::kWeightStages> turn = {.parity = 1};
  ItemCursor<kDown, Shape::kRows> at(args);
  const std::byte* next[kWeights] = {};
  for (int i = 0; i < kWeights && at; ++i) next[i] = WeightOf<kDown>(args, at.tile(), i).data;
  for (; at; at.Advance()) {
    const uint8_t* from[kWeights];
    const int first =
        min(at.first_row() + warp * kRows, args.rows - kRows);  // others where there are no more
#pragma unroll
    for (int i = 0; i < kWeights; ++i) {
      from[i] = reinterpret_cast<const uint8_t*>(next[i]) + int64_t{first + lane_row} * row_bytes + at_byte;
      if (at.HasNext()) next[i] = WeightOf<kDown>(args, at.Next(), i).data;  // while the item's are copied
    }
#pragma unroll 1
    for (int block = 0; block < blocks; block += Shape::kStageBlocks) {
      space.weights_empty[turn.stage].Wait(turn.parity);
      if (at_byte < (blocks - block) * Shape::kBlockBytes) {
        uint8_t* to = space.weights[turn.stage].codes + lane_place;
#pragma unroll
        for (int i = 0; i < kWeights; ++i) {
          const uint8_t* rows_from = from[i];
#pragma unroll
          for (int row = 0; row < kRows; row += kRowsAtOnce) {
            StreamAsync(to + PlaceOf<kDown>(row, i) * Shape::kStageRowBytes, rows_from);
            rows_from += kRowsAtOnce * row_bytes;
          }
        }
      }
      space.weights_full[turn.stage].ArriveWithCopies();
#pragma unroll
      for (int i = 0; i < kWeights; ++i) from[i] += Shape::kStageRowBytes;
      turn.Advance();
    }
  }
}

// Sends for columns.
template <typename Shape>
class ColumnSender {
 public:
  __device__ ColumnSender(const WideArgs& args, typename Shape::Space& space)
      : args_(args), space_(space), blocks_(args.cols / kBlockK) {}

  __device__ void Open(const ExpertTile& tile) {
    width_ = TileWidth(tile.count);
    from_ = args_.image + int64_t{TilePlace(tile, Shape::kSparePlaces)} * blocks_ * ImageBytes(1);
    next_ = 0;
  }
  // All blocks before this one.
  __device__ void Send(int end) {
    const int step = Shape::ColumnBlocks(width_);
#pragma unroll 1
    for (; next_ < min(end, blocks_); next_ += step) {
      const int bytes = min(step, blocks_ - next_) * ImageBytes(width_);
      space_.columns_empty[turn_.stage].Wait(turn_.parity);
      if (threadIdx.x % 32 == 0) {
        auto& full = space_.columns_full[turn_.stage];
        full.Expect(bytes);
        full.Fetch(space_.columns[turn_.stage], from_, bytes);
      }
      from_ += bytes;
      turn_.Advance();
    }
  }

 private:
  const WideArgs& args_;
  typename Shape::Space& space_;
  const int blocks_;
  Turn<Shape::kColumnStages> turn_ = {.parity = 1};
  int width_ = 0;
  int next_ = 0;
  const uint8_t* from_ = nullptr;
};

// One of the warps that prepare what rows are decoded with: a lane's are those at the warp's first place +
// lane, 32 further, .... The second one sends for the columns of the same blocks, too, and sooner: what frees
// a stage of either ring needs nothing but what was sent for before.
template <typename Format, int kGroups, bool kDown>
class ScaleSender {
 public:
  using Shape = WideShape<Format, kGroups>;

  __device__ ScaleSender(const WideArgs& args, typename Shape::Space& space, int warp)
      : args_(args),
        space_(space),
        first_place_(warp * kRows * 32),
        blocks_(args.cols / kBlockK),
        at_(args),
        columns_(args, space) {
    if (at_) next_ = WeightOf<kDown>(args_, at_.tile(), half()).scales;
    Open();
  }

  __device__ void Run() {
    Turn<Shape::kWeightStages> turn = {.parity = 1};
    while (at_) {
      uint32_t scales[kRows][kBlocks];  // they come while there is no room yet
      Load(scales);
      if (first_place_ > 0) columns_.Send(block_ + kBlocks);
      Step();
      space_.weights_empty[turn.stage].Wait(turn.parity);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
          uint2 entry;
          if constexpr (Format::kDType == DType::kF8E4M3) {
            entry = {0, __float_as_uint(Format::Scale(static_cast<uint8_t>(scales[i][b])).block)};
          } else {
            const uint32_t largest = Format::LargestScale(scales[i][b]);
            entry = {largest * 0x0101u - scales[i][b],  // no byte borrows from another
                     __float_as_uint(Format::BlockFactor(largest))};
          }
          space_.weights[turn.stage].scales[b][first_place_ + lane() + 32 * i] = entry;
        }
      }
      space_.weights_full[turn.stage].Arrive();
      turn.Advance();
    }
  }

 private:
  static constexpr int kRows = Shape::kRows / 32 / kScaleWarps;
  static constexpr int kBlocks = Shape::kStageBlocks;
  static constexpr int kRowStride = kDown ? 32 : 16;  // from one of the lane's to the next, in the weight

  __device__ static int lane() {
    return static_cast<int>(threadIdx.x) % 32;
  }
  __device__ static int half() {
    return lane() / 8 % 2;
  }

  __device__ void Open() {
    if (!at_) return;
    block_ = 0;
    columns_.Open(at_.tile());
    first_ = at_.first_row() + RowAt<kDown>(first_place_ + lane());
    from_ = next_;
    whole_ = blocks_ % 2 == 0 && reinterpret_cast<uintptr_t>(next_) % 8 == 0;
    if (at_.HasNext()) next_ = WeightOf<kDown>(args_, at_.Next(), half()).scales;
  }
  __device__ void Step() {
    block_ += kBlocks;
    if (block_ < blocks_) return;
    at_.Advance();
    Open();
  }
  // Of the stage at hand.
  __device__ void Load(uint32_t (&scales)[kRows][kBlocks]) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = min(first_ + kRowStride * i, args_.rows - 1);
      if constexpr (Format::kDType == DType::kF8E4M3) {
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
          scales[i][b] = block_ + b < blocks_ ? __ldg(from_ + row / 128 * blocks_ + block_ + b) : 0;
        }
      } else {
        const uint32_t* words = reinterpret_cast<const uint32_t*>(from_) + int64_t{row} * blocks_ + block_;
        if (whole_) {
          const uint2 all = __ldg(reinterpret_cast<const uint2*>(words));
          scales[i][0] = all.x;
          scales[i][kBlocks - 1] = all.y;
        } else {
#pragma unroll
          for (int b = 0; b < kBlocks; ++b) scales[i][b] = block_ + b < blocks_ ? __ldg(words + b) : 0;
        }
      }
    }
  }

  const WideArgs& args_;
  typename Shape::Space& space_;
  const int first_place_;
  const int blocks_;
  ItemCursor<kDown, Shape::kRows> at_;
  ColumnSender<Shape> columns_;
  const uint8_t* next_ = nullptr;
  const uint8_t* from_ = nullptr;
  int first_ = 0;       // row of the lane's
  int block_ = 0;       // the stage's first
  bool whole_ = false;  // both blocks' in one load
};

// What a thread of the warpgroups that multiply does.
template <typename Format, int kGroups, bool kDown>
class WideMultiplier {
 public:
  using Shape = WideShape<Format, kGroups>;
  using Cursor = ItemCursor<kDown, Shape::kRows>;

  __device__ WideMultiplier(const WideArgs& args, typename Shape::Space& space)
      : args_(args),
        space_(space),
        lane_(threadIdx.x % 32),
        row_(threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4),
        blocks_(args.cols / kBlockK) {}

  __device__ void Run() {
    for (Cursor at(args_); at; at.Advance()) {
      switch (TileWidth(at.tile().count)) {
        case 8:
          Item<8>(at);
          break;
        case 16:
          Item<16>(at);
          break;
        case 32:
          Item<32>(at);
          break;
        case 64:
          if constexpr (Shape::kColumns > 32) Item<64>(at);
          break;
        case 96:
          if constexpr (Shape::kColumns > 32) Item<96>(at);
          break;
        default:
          if constexpr (Shape::kColumns > 32) Item<128>(at);
      }
    }
  }

 private:
  static constexpr int kHalfSteps = kBlockSteps / 2;  // of half a block, the first or the second one

  // Codes of the thread's two rows: of a block, or of half of it, whichever is 16 bytes of a row.
  struct Codes {
    RowPair pair;
    RowScale scales[2];
  };
  static constexpr bool kWhole = Shape::kBlockBytes == 64;

  // What is to be decoded for half `kHalf` of a block, in turn, and the rows' factors of the block.
  template <int kHalf, int kParity>
  __device__ void Load(int block, Codes& codes, float (&factors)[2]) {
    constexpr int in_stage = kParity % Shape::kStageBlocks;
    if (kHalf == 0 && in_stage == 0) space_.weights_full[weights_.stage].Wait(weights_.parity);
    const auto& stage = space_.weights[weights_.stage];
    const int t = lane_ % 4;
    if (kHalf == 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint2 entry = stage.scales[in_stage][row_ + 8 * half];
        if constexpr (Format::kDType == DType::kI8) {
          codes.scales[half].decode = Format::Factor(__byte_perm(entry.x, 0, 0x4440 | t));
        }
        factors[half] = __uint_as_float(entry.y);
      }
    }
    if (kHalf == 1 && kWhole) return;
    const int unit = kWhole ? in_stage : 2 * in_stage + kHalf;
    const uint8_t* from = stage.codes + row_ * Shape::kStageRowBytes + t * 16 + (unit ^ row_ % 2) * 64;
    codes.pair = {*reinterpret_cast<const uint4*>(from),
                  *reinterpret_cast<const uint4*>(from + 8 * Shape::kStageRowBytes)};
    if ((kHalf == 0 && !kWhole) || (in_stage + 1 < Shape::kStageBlocks && block + 1 < blocks_)) return;
    space_.weights_empty[weights_.stage].Arrive();
    weights_.Advance();
  }

  template <int kHalf>
  __device__ static void Decode(const Codes& codes, uint32_t (&a)[kHalfSteps][4]) {
#pragma unroll
    for (int step = 0; step < kHalfSteps; ++step) {
      DecodePair<Format>(codes.pair, kWhole ? kHalf * kHalfSteps + step : step, codes.scales, a[step]);
    }
  }

  template <int kColumns>
  __device__ void Item(const Cursor& at) {
    float sums[kColumns / 2];
#pragma unroll
    for (float& sum : sums) sum = 0;
    Ahead ahead;
    Load<0, 0>(0, ahead.codes, ahead.factors);
    Decode<0>(ahead.codes, ahead.a);
#pragma unroll 1
    for (int block = 0; block < blocks_; block += 2) {
      Block<0>(block, ahead, sums);
      if (block + 1 < blocks_) Block<1>(block + 1, ahead, sums);
    }
    if (at.first_row() + row_ / 64 * (Cursor::kWeightRows / kGroups) >= args_.rows) return;
    if constexpr (kDown) {
      StoreOutputs<kColumns>(at, sums);
    } else {
      StoreActivations<kColumns>(at, sums);
    }
  }

  // Of the block to come: the first half, decoded, and what the other one is to be decoded from.
  struct Ahead {
    Codes codes;
    float factors[2];
    uint32_t a[kHalfSteps][4];
  };

  // Adds a block's products to the sums. Half a block is decoded while the tensor cores work on the one
  // before it.
  template <int kParity, int kSums>
  __device__ void Block(int block, Ahead& ahead, float (&sums)[kSums]) {
    constexpr int kColumns = 2 * kSums;
    constexpr int kLow = kColumns < 64 ? kColumns : 64;  // columns whose sums are ready sooner
    constexpr int kHigh = kColumns - kLow;
    float low[kLow / 2];
    float high[kHigh > 0 ? kHigh / 2 : 1];
    uint32_t a[kHalfSteps][4];
    const uint8_t* columns = TakeColumns<kColumns>(block);
    const uint32_t operand =
        __shfl_sync(0xffffffff, static_cast<uint32_t>(MatricesAt(columns, kColumns * 16)), 0);
    Multiply<0, kColumns>(low, ahead.a, operand);
    if constexpr (kHigh > 0) Multiply<0, kColumns>(high, ahead.a, operand + kLow);
    EndProducts();
    const float factors[2] = {ahead.factors[0], ahead.factors[1]};
    Load<1, kParity>(block, ahead.codes, ahead.factors);
    Decode<1>(ahead.codes, a);
    Multiply<1, kColumns>(low, a, operand);
    EndProducts();
    if constexpr (kHigh > 0) {
      Multiply<1, kColumns>(high, a, operand + kLow);
      EndProducts();
    }
    if (block + 1 < blocks_) {
      AwaitProducts<(kHigh > 0 ? 2 : 1)>();
      Load<0, 1 - kParity>(block + 1, ahead.codes, ahead.factors);
      Decode<0>(ahead.codes, ahead.a);
    }
    AwaitProducts<(kHigh > 0 ? 1 : 0)>(low);
    Add<0>(low, columns, factors, sums);
    if constexpr (kHigh > 0) {
      AwaitProducts<0>(high);
      Add<kLow>(high, columns, factors, sums);
    }
    LeaveColumns<kColumns>(block);
  }

  // Half a block's products with neighbours among kColumns columns, from the operand on whose lower half this
  // is. Offsets don't reach the upper one.
  template <int kHalf, int kColumns, int kSums>
  __device__ static void Multiply(float (&acc)[kSums], const uint32_t (&a)[kHalfSteps][4], uint32_t operand) {
    const uint64_t upper = MatricesAt(nullptr, kColumns * 16) >> 32 << 32;
    WarpgroupFence();
#pragma unroll
    for (int s = 0; s < kHalfSteps; ++s) {
      const uint64_t of_step = upper | (operand + (kHalf * kHalfSteps + s) * 2 * kColumns);
      if (kHalf == 0 && s == 0) {
        WarpgroupMma<false, true>(acc, a[s], of_step);
      } else {
        WarpgroupMma<true, true>(acc, a[s], of_step);
      }
    }
  }
  // The columns of a block, when they are there.
  template <int kColumns>
  __device__ const uint8_t* TakeColumns(int block) {
    const int in_stage = block % Shape::ColumnBlocks(kColumns);
    if (in_stage == 0) space_.columns_full[columns_.stage].Wait(columns_.parity);
    return space_.columns[columns_.stage] + in_stage * ImageBytes(kColumns);
  }
  template <int kColumns>
  __device__ void LeaveColumns(int block) {
    constexpr int kBlocks = Shape::ColumnBlocks(kColumns);
    if (block % kBlocks + 1 < kBlocks && block + 1 < blocks_) return;
    FenceForRefill();
    space_.columns_empty[columns_.stage].Arrive();
    columns_.Advance();
  }

  // Adds scaled sums of a block to those of columns kFirst, ....
  template <int kFirst, int kCount, int kSums>
  __device__ void Add(const float (&acc)[kCount], const uint8_t* columns, const float (&row_factors)[2],
                      float (&sums)[kSums]) const {
    const float* factors =
        reinterpret_cast<const float*>(columns + 2 * kBlockK * (2 * kSums)) + lane_ % 4 * 2;
#pragma unroll
    for (int n = 0; n < kCount / 4; ++n) {
      const float2 of_columns = *reinterpret_cast<const float2*>(factors + kFirst + 8 * n);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& sum = sums[kFirst / 2 + 4 * n + i];
        const float of_column = i % 2 == 0 ? of_columns.x : of_columns.y;
        sum = AddScaled(sum, acc[4 * n + i], of_column, row_factors[i / 2]);
      }
    }
  }

  template <int kColumns>
  __device__ void StoreActivations(const Cursor& at, const float (&sums)[kColumns / 2]) {
    const int t = lane_ % 4;
    const int place = TilePlace(at.tile(), Shape::kSparePlaces);
    const float* weights = args_.place_weights + place + 2 * t;
    uint16_t* to =
        args_.out + int64_t{place + lane_ / 4} * args_.rows + at.first_row() + row_ / 16 * 8 + 2 * t;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
      if (8 * n >= at.tile().count) break;
      const float2 weight = *reinterpret_cast<const float2*>(weights + 8 * n);
      const float x = args_.swiglu(RoundBf16(sums[4 * n]), RoundBf16(sums[4 * n + 2]), weight.x);
      const float y = args_.swiglu(RoundBf16(sums[4 * n + 1]), RoundBf16(sums[4 * n + 3]), weight.y);
      const uint32_t of_column = TransposeMatrix(PackBf16(x, y));
      if (8 * n + lane_ / 4 < at.tile().count) {
        *reinterpret_cast<uint32_t*>(to + int64_t{8 * n} * args_.rows) = of_column;
      }
    }
  }

  template <int kColumns>
  __device__ void StoreOutputs(const Cursor& at, const float (&sums)[kColumns / 2]) {
    const int32_t* pairs = args_.plan.list + at.tile().begin + lane_ / 4;
    const int left = at.tile().count - lane_ / 4;
    uint16_t* to = args_.out + at.first_row() + row_ / 16 * 16 + lane_ % 4 * 4;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
      if (8 * n >= at.tile().count) break;
      const uint2 of_column = {TransposeMatrix(PackBf16(sums[4 * n], sums[4 * n + 1])),
                               TransposeMatrix(PackBf16(sums[4 * n + 2], sums[4 * n + 3]))};
      if (8 * n < left) *reinterpret_cast<uint2*>(to + int64_t{pairs[8 * n]} * args_.rows) = of_column;
    }
  }

  const WideArgs& args_;
  typename Shape::Space& space_;
  const int lane_;
  const int row_;  // the thread's first, of the item
  const int blocks_;
  Turn<Shape::kWeightStages> weights_ = {.parity = 0};
  Turn<Shape::kColumnStages> columns_ = {.parity = 0};
};

template <typename Format, int kGroups, bool kDown>
__global__ void __launch_bounds__(WideShape<Format, kGroups>::kThreads, 1)
    ExpertWideKernel(const __grid_constant__ WideArgs args) {
  using Shape = WideShape<Format, kGroups>;
  extern __shared__ __align__(128) uint8_t shared[];
  auto& space = *reinterpret_cast<typename Shape::Space*>(shared);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::kWeightStages; ++i) {
      space.weights_full[i].Init(32 * (kWeightWarps + kScaleWarps));
      space.weights_empty[i].Init(32 * Shape::kMathWarps);
    }
    for (int i = 0; i < Shape::kColumnStages; ++i) {
      space.columns_full[i].Init();
      space.columns_empty[i].Init(32 * Shape::kMathWarps);
    }
  }
  __syncthreads();
  AwaitInputs();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp < Shape::kMathWarps) {
    TakeRegisters<Shape::kMathRegisters>();
    WideMultiplier<Format, kGroups, kDown>(args, space).Run();
    return;
  }
  GiveUpRegisters<Shape::kOtherRegisters>();
  const int other = warp - Shape::kMathWarps;
  if (other < kWeightWarps) {
    SendWeights<Format, kGroups, kDown>(args, space, other);
  } else {
    ScaleSender<Format, kGroups, kDown>(args, space, other - kWeightWarps).Run();
  }
}

// out = the slots' outputs in their order, then `shared`, rounded: four neighbours a thread.
__global__ void CombineKernel(const uint16_t* routed, int slots, const float* shared, int64_t dim,
                              float* out) {
  AwaitInputs();
  const int64_t i = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * 4;
  if (i >= dim) return;
  float sums[4] = {};
#pragma unroll 6
  for (int k = 0; k < slots; ++k) {
    const uint2 y = *reinterpret_cast<const uint2*>(routed + (int64_t{blockIdx.x} * slots + k) * dim + i);
    sums[0] += Bf16(static_cast<uint16_t>(y.x));
    sums[1] += Bf16(static_cast<uint16_t>(y.x >> 16));
    sums[2] += Bf16(static_cast<uint16_t>(y.y));
    sums[3] += Bf16(static_cast<uint16_t>(y.y >> 16));
  }
  const int64_t at = blockIdx.x * dim + i;
  float4 last = {0, 0, 0, 0};
  if (shared != nullptr) last = *reinterpret_cast<const float4*>(shared + at);
  *reinterpret_cast<float4*>(out + at) = {RoundBf16(sums[0] + last.x), RoundBf16(sums[1] + last.y),
                                          RoundBf16(sums[2] + last.z), RoundBf16(sums[3] + last.w)};
}

int64_t Pairs(const MoeArgs& args) {
  return int64_t{args.rows} * args.experts_per_token;
}

// Where things are in scratch: the image of the rows and behind it the activations, then their image in place
// of the rows' and behind it the outputs of w2.
struct WideScratch {
  int64_t places;
  int64_t hidden;  // bytes before the activations
  int64_t out;
  int64_t bytes;

  WideScratch(const MoeArgs& args, int spare_places) {
    places = (Pairs(args) + 7) / 8 * 8 + spare_places * static_cast<int64_t>(args.experts.size());
    const int64_t image = places * (args.dim / kBlockK) * ImageBytes(1);
    out = places * (args.intermediate / kBlockK) * ImageBytes(1);
    hidden = std::max(image, out);
    bytes = std::max(hidden + 2 * places * args.intermediate, out + 2 * Pairs(args) * args.dim);
  }
};

template <typename Format, int kGroups>
void Run(const KernelContext& ctx, const MoeArgs& args, const float* shared) {
  using Shape = WideShape<Format, kGroups>;
  const int max_tiles = MaxTiles(args, Shape::kColumns);
  const ExpertPlan plan = AllocatePlan(ctx, args, max_tiles, 0);
  const PreparedRows rows = AllocateRows<Format>(ctx, args.rows, args.dim);
  LaunchPlan<Format>(ctx, args, Shape::kColumns, plan, rows, {});

  const WideScratch scratch(args, Shape::kSparePlaces);
  uint8_t* image = ctx.scratch->Allocate<uint8_t>(scratch.bytes);
  float* place_weights = ctx.scratch->Allocate<float>(scratch.places);
  TileImages images = {plan, args.dim / kBlockK, Shape::kSparePlaces, image};
  Launch(ctx, GatherKernel, images.Grid(max_tiles, Shape::kColumns), 32 * kImageWarps, 0, images, rows,
         args.weights, place_weights);
  uint16_t* hidden = reinterpret_cast<uint16_t*>(image + scratch.hidden);
  WideArgs wide = {.experts = args.experts.data(),
                   .plan = plan,
                   .image = image,
                   .place_weights = place_weights,
                   .cols = args.dim,
                   .rows = args.intermediate,
                   .out = hidden,
                   .swiglu = {args.swiglu_limit, ctx.faithful()}};
  const auto grid = static_cast<unsigned>(DeviceOf(ctx).num_sms());
  Launch(ctx, ExpertWideKernel<Format, kGroups, false>, grid, Shape::kThreads, sizeof(typename Shape::Space),
         wide);
  images.blocks = args.intermediate / kBlockK;
  Launch(ctx, QuantizeKernel<Format>, images.Grid(max_tiles, Shape::kColumns), 32 * kImageWarps, 0, images,
         hidden);
  wide.cols = args.intermediate;
  wide.rows = args.dim;
  wide.out = reinterpret_cast<uint16_t*>(image + scratch.out);
  Launch(ctx, ExpertWideKernel<Format, kGroups, true>, grid, Shape::kThreads, sizeof(typename Shape::Space),
         wide);
  Launch(ctx, CombineKernel, dim3(static_cast<unsigned>(args.rows), CeilDiv(args.dim, 4 * 256)), 256, 0,
         wide.out, args.experts_per_token, shared, args.dim, args.out);
}

// Of an expert, up to which four warpgroups and tiles of 32 columns are faster.
constexpr int64_t kNarrowPairs = 40;

}  // namespace

bool HasWideExperts(const KernelContext& ctx, const MoeArgs& args) {
  return ctx.faithful() && DeviceOf(ctx).capability() == 90 && args.dim % kBlockK == 0 &&
         args.intermediate % kBlockK == 0 && reinterpret_cast<uintptr_t>(args.out) % 16 == 0;
}

int64_t WideExpertsBytes(const MoeArgs& args) {
  return WideScratch(args, WideShape<Mxfp4Weights, 2>::kSparePlaces).bytes +
         int64_t{args.rows} * (2 * args.dim + 4 * args.dim / kBlockK);
}

void WideExperts(const KernelContext& ctx, const MoeArgs& args, const float* shared) {
  const bool narrow = Pairs(args) <= kNarrowPairs * static_cast<int64_t>(args.experts.size());
  if (args.expert_dtype == DType::kI8) {
    narrow ? Run<Mxfp4Weights, 4>(ctx, args, shared) : Run<Mxfp4Weights, 2>(ctx, args, shared);
  } else {
    narrow ? Run<Fp8Weights, 4>(ctx, args, shared) : Run<Fp8Weights, 2>(ctx, args, shared);
  }
}

}  // namespace foresight::cuda
