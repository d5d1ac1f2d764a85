// All experts of a step of few rows in one launch that reads weights without a pause.
//
// Thread blocks stay, one per multiprocessor, and take items in turn: a few groups of 32 weight rows of one
// expert, for all its rows of the step. First come those of w1 and w3 (sixteen rows of each, so that both
// values of sixteen activations meet), the shared expert's before the routed ones', then those of w2 in the
// same order. Sixteen warps multiply: each copies its own blocks of 128 columns to its own ring in shared
// memory, items ahead. Other warps add up the blocks' products in order and finish the group; one finishes
// while the next ones sum. Who finishes the last of the groups that make up 128 values of the activation
// prepares these for w2, and an item of w2 waits for its activations. Items depend on earlier ones alone, so
// that all the launch takes to end is that its thread blocks run at the same time.
#pragma once

#include <cuda_pipeline.h>

#include "kernels/cuda/barriers.cuh"
#include "kernels/cuda/product_tile.cuh"
#include "kernels/moe/expert_plan.cuh"
#include "kernels/moe/swiglu.cuh"

namespace foresight::cuda {

constexpr int kStreamWarps = 16;  // that multiply
constexpr int kStreamSlots = 3;   // of a warp's ring
constexpr int kGroupRows = 32;  // of weights: w1's rows i..i+7, w3's, w1's next eight, w3's; or w2's in order
constexpr int kSumStride = 36;  // of 32 rows' sums; four lanes' columns in other banks

// Two kilobytes of a group: 16 bytes of each lane's rows g, g + 8, g + 16 and g + 24. A block of 128 columns
// is one of them in FP4, two in FP8.
struct WeightPiece {
  uint4 weights[2][2][32];
  uint32_t scales[32];  // of row g + 8 t of lane 4 g + t: the aligned word with the block's scales
};

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
  int rows;
  int slots;
  int dim;
  int intermediate;
  int shared_tiles;
  int span;            // groups of an item
  int groups[2];       // of a tile: of w1 and w3, and of w2
  int item_groups[2];  // as many as its items could have
  Swiglu swiglu;
  const float* weights;   // [rows, slots]
  PreparedRows x_routed;  // [rows]
  PreparedRows x_shared;
  float* hidden;            // [pairs, I] activations
  PreparedRows activation;  // [pairs] of them, in the order of the expert's format
  float* y;                 // [pairs, D] the experts' outputs
  float* out;               // their sums; null: left to others
  // Counters, zero at first.
  int* groups_of_block;  // [tiles, blocks of I] finished groups of w1 and w3
  int* ready_blocks;     // [tiles] prepared ones
  int* ready;            // [1] of all tiles
  int* outputs;          // [D / 32] finished groups of w2

  __device__ int Cols(bool is_down) const { return is_down ? intermediate : dim; }
};

// Where in the items' order somebody is.
struct StreamCursor {
  int group;  // first of the item, in its tile, or behind that
  int tile = 0;
  bool is_down = false;

  __device__ static StreamCursor First(const StreamArgs& args) {
    return {static_cast<int>(blockIdx.x) * args.span};
  }
  __device__ void Advance(const StreamArgs& args) { group += static_cast<int>(gridDim.x) * args.span; }
  // Goes on to the tile that has the item. False: there is none among the first `tiles`.
  __device__ bool Settle(const StreamArgs& args, int tiles, bool with_down) {
    for (;;) {
      const int groups = args.item_groups[is_down];
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
  __device__ int End(const StreamArgs& args) const { return min(group + args.span, args.groups[is_down]); }
};

// Sends for a warp's pieces of its thread block's items, in their order.
template <typename Format>
class PieceStream {
 public:
  __device__ PieceStream(const StreamArgs& args, const StreamTile* tiles)
      : args_(args), tiles_(tiles), next_(StreamCursor::First(args)) {}

  // The next piece, if there is one among the first `tiles`. Ends a group of copies if there is.
  __device__ bool Copy(WeightPiece& piece, int tiles, bool with_down) {
    if (left_ == 0 && !Open(tiles, with_down)) return false;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        __pipeline_memcpy_async(&piece.weights[m][half][lane], data_[half] + m * other_rows_, 16);
      }
    }
    __pipeline_memcpy_async(
        &piece.scales[lane],
        reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(scale_) & ~uintptr_t{3}), 4);
    __pipeline_commit();
    --left_;
    int step = kStreamWarps * kBlockK / 2;
    int scale_step = kStreamWarps * 4;
    if (is_fp8_) {  // a block's second half is 64 bytes on
      step = left_ % 2 != 0 ? 64 : (kStreamWarps - 1) * kBlockK + 64;
      scale_step = left_ % 2 != 0 ? 0 : kStreamWarps;
    }
    data_[0] += step;
    data_[1] += step;
    scale_ += scale_step;
    return true;
  }

 private:
  // The next group with pieces of the warp.
  __device__ bool Open(int tiles, bool with_down) {
    do {
      if (++group_ < end_) {
        Seek();
        continue;
      }
      if (!next_.Settle(args_, tiles, with_down)) {
        end_ = 0;
        return false;
      }
      tile_ = next_.tile;
      is_down_ = next_.is_down;
      is_fp8_ = Format::kDType == DType::kF8E4M3 || tile_ < args_.shared_tiles;
      group_ = next_.group;
      end_ = next_.End(args_);
      next_.Advance(args_);
      Seek();
    } while (left_ == 0);
    return true;
  }
  __device__ void Seek() {
    const StreamTile& tile = tiles_[tile_];
    const int warp = threadIdx.x / 32;
    const int g = threadIdx.x % 32 / 4;
    const int t = threadIdx.x % 4;
    const int cols = args_.Cols(is_down_);
    const int row_bytes = is_fp8_ ? cols : cols / 2;
    const int first = group_ * (is_down_ ? kGroupRows : kGroupRows / 2) + g;
    const int64_t skip = int64_t{first} * row_bytes + warp * (is_fp8_ ? kBlockK : kBlockK / 2) + t * 16;
    data_[0] = tile.data[is_down_ ? 2 : 0] + skip;
    data_[1] = is_down_ ? data_[0] + 8 * row_bytes : tile.data[1] + skip;
    other_rows_ = (is_down_ ? 16 : 8) * row_bytes;
    const int row = first + (is_down_ ? 8 * t : t / 2 * 8);
    scale_ = tile.scales[is_down_ ? 2 : t % 2] +
             (is_fp8_ ? Fp8Weights::ScaleIndex(row, warp * kBlockK, cols / kBlockK)
                      : Mxfp4Weights::ScaleIndex(row, warp * kBlockK, cols / 32));
    left_ = max(cols / kBlockK - warp + kStreamWarps - 1, 0) / kStreamWarps * (is_fp8_ ? 2 : 1);
  }

  const StreamArgs& args_;
  const StreamTile* tiles_;
  StreamCursor next_;  // item
  int left_ = 0;       // pieces of the group
  int group_ = 0;
  int end_ = 0;  // of the item
  int tile_ = 0;
  bool is_down_ = false;
  bool is_fp8_ = false;
  int other_rows_ = 0;      // bytes from the first sixteen rows to the others
  const uint8_t* data_[2];  // the lane's of the next piece: of the rows g and g + 8
  const uint8_t* scale_;    // of row g + 8 t
};

// kTiles: of eight columns, in an item at most.
template <int kTiles>
struct StreamShared {
  static constexpr int kSumWarps = 4 / kTiles;
  static constexpr int kThreads = (kStreamWarps + kSumWarps) * 32;

  WeightPiece ring[kStreamWarps][kStreamSlots];
  float sums[kSumWarps][kStreamWarps][kTiles * 8 * kSumStride];  // of a round's blocks
  SharedBarrier full[kSumWarps];
  SharedBarrier empty[kSumWarps];
};

// What a multiplying warp does.
template <typename Format, bool kSplit, int kTiles>
class StreamMultiplier {
 public:
  __device__ StreamMultiplier(const StreamArgs& args, StreamShared<kTiles>& shared, const StreamTile* tiles)
      : args_(args), shared_(shared), tiles_(tiles), stream_(args, tiles) {}

  // Fills the ring with what there is of the first `tiles`.
  __device__ void Fill(int tiles, bool with_down) {
    while (filled_ < kStreamSlots &&
           stream_.Copy(shared_.ring[threadIdx.x / 32][filled_], tiles, with_down)) {
      ++filled_;
    }
  }

  __device__ void Run(int tiles) {
    num_tiles_ = tiles;
    Fill(tiles, true);
    for (; filled_ < kStreamSlots; ++filled_) __pipeline_commit();
    for (StreamCursor at = StreamCursor::First(args_); at.Settle(args_, tiles, true); at.Advance(args_)) {
      int x[kTiles];
      FindColumns(at, x);
      if (at.is_down) AwaitActivation(at.tile);
      if (Format::kDType == DType::kF8E4M3 || at.tile < args_.shared_tiles) {
        Item<Fp8Weights>(at, x);
      } else {
        Item<Format>(at, x);
      }
    }
  }

 private:
  __device__ const PreparedRows& Source(const StreamCursor& at) const {
    return at.is_down ? args_.activation : at.tile < args_.shared_tiles ? args_.x_shared : args_.x_routed;
  }

  // Where the lane's columns begin in the item's source. Behind the last one it is another, whose products
  // nobody asks for.
  __device__ void FindColumns(const StreamCursor& at, int (&x)[kTiles]) const {
    const StreamTile& tile = tiles_[at.tile];
    const int32_t* rows = (at.is_down ? args_.plan.list : args_.plan.rows) + tile.begin;
    const int stride = static_cast<int>(Source(at).stride());
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      x[n] = rows[min(n * 8 + static_cast<int>(threadIdx.x) % 32 / 4, tile.count - 1)] * stride;
    }
  }

  template <typename F>
  __device__ void Item(const StreamCursor& at, const int (&x)[kTiles]) {
    const int end = at.End(args_);
    const bool is_narrow = kTiles == 1 || tiles_[at.tile].count <= 8;
    if (is_narrow) {
      for (int group = at.group; group < end; ++group) Multiply<F, 1>(at, group, x);
    } else {
      for (int group = at.group; group < end; ++group) Multiply<F, kTiles>(at, group, x);
    }
  }

  template <typename F, int kN>
  __device__ void Multiply(const StreamCursor& at, int group, const int (&x)[kTiles]) {
    constexpr bool kFp8 = F::kDType == DType::kF8E4M3;
    constexpr int kChunks = kFp8 ? 2 : 1;
    constexpr int kPairs = kBlockSteps / 2;
    // Of one column tile, a block's columns are sent for before its weights are in.
    constexpr bool kAhead = kN == 1 && !kSplit;
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const PreparedRows& source = Source(at);
    const int blocks = args_.Cols(at.is_down) / kBlockK;
    uint32_t scale_offset[2] = {};  // of block 0's, in FP8
    if constexpr (kFp8) {
      const StreamTile& tile = tiles_[at.tile];
      const int first = group * (at.is_down ? kGroupRows : kGroupRows / 2) / 128 * blocks;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        scale_offset[half] =
            static_cast<uint32_t>(reinterpret_cast<uintptr_t>(tile.scales[at.is_down ? 2 : half]) + first);
      }
    }

    for (int block = warp; block - warp < blocks; block += kStreamWarps) {
      float acc[2][kN][4] = {};
      if (block < blocks) {
        uint4 high[kPairs][kN], low[kPairs][kN];
        float column_factors[kN];
        const auto load = [&](int pair) {
#pragma unroll
          for (int n = 0; n < kN; ++n) {
            const uint16_t* from = source.data + (x[n] + block * kBlockK + lane % 4 * 8 + pair * 32);
            high[pair][n] = *reinterpret_cast<const uint4*>(from);
            if constexpr (kSplit) low[pair][n] = *reinterpret_cast<const uint4*>(from + source.padded);
          }
        };
        if constexpr (kAhead) {
#pragma unroll
          for (int pair = 0; pair < kPairs; ++pair) load(pair);
        }
        {
          const int terms = static_cast<int>(kSplit ? 2 * source.padded : source.padded);
#pragma unroll
          for (int n = 0; n < kN; ++n) {
            column_factors[n] = *reinterpret_cast<const float*>(source.data + (x[n] + terms + 2 * block));
          }
        }
        RowScale scales[2][2];
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          __pipeline_wait_prior(kStreamSlots - 1);
          __syncwarp();
          WeightPiece& piece = shared_.ring[warp][slot_];
          RowPair weights[2];
#pragma unroll
          for (int m = 0; m < 2; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) weights[m].words[half] = piece.weights[m][half][lane];
          }
          if (c == 0) FindScales<F>(piece, scale_offset, block, scales);
          __syncwarp();
          if (!stream_.Copy(piece, num_tiles_, true)) __pipeline_commit();
          slot_ = slot_ + 1 < kStreamSlots ? slot_ + 1 : 0;

          constexpr int kChunkSteps = kBlockSteps / kChunks;
#pragma unroll
          for (int step = 0; step < kChunkSteps; ++step) {
            const int pair = (c * kChunkSteps + step) / 2;
            if (!kAhead && step % 2 == 0) load(pair);
#pragma unroll
            for (int m = 0; m < 2; ++m) {
              uint32_t a[4];
              DecodePair<F>(weights[m], step, scales[m], a);
#pragma unroll
              for (int n = 0; n < kN; ++n) {
                MultiplyStep<F, kSplit>(acc[m][n], a, step, high[pair][n], low[pair][n]);
              }
            }
          }
        }
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          const float2 factors = ColumnFactors<F>(column_factors[n]);
#pragma unroll
          for (int m = 0; m < 2; ++m) ScaleSums<F>(acc[m][n], scales[m], factors);
        }
      }
      shared_.empty[buffer_].Wait(~phases_ >> buffer_ & 1);
      if (block < blocks) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int n = 0; n < kN; ++n) {
            float* to = shared_.sums[buffer_][warp] + (n * 8 + lane % 4 * 2) * kSumStride + m * 16 + lane / 4;
            to[0] = acc[m][n][0];
            to[kSumStride] = acc[m][n][1];
            to[8] = acc[m][n][2];
            to[kSumStride + 8] = acc[m][n][3];
          }
        }
      }
      __syncwarp();
      if (lane == 0) shared_.full[buffer_].Arrive();
      phases_ ^= 1u << buffer_;
    }
    buffer_ = (buffer_ + 1) % StreamShared<kTiles>::kSumWarps;
  }

  // What F::Scale() says of the lane's four rows. Every lane finds the largest of one row's four MXFP4
  // scales.
  template <typename F>
  __device__ static void FindScales(const WeightPiece& piece, const uint32_t (&fp8_offset)[2], int block,
                                    RowScale (&scales)[2][2]) {
    const int first = threadIdx.x % 32 / 4 * 4;
    const uint4 rows = *reinterpret_cast<const uint4*>(&piece.scales[first]);
    const uint32_t words[4] = {rows.x, rows.y, rows.z, rows.w};
    if constexpr (F::kDType == DType::kF8E4M3) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scales[i / 2][i % 2] =
            F::Scale(static_cast<uint8_t>(words[i] >> (fp8_offset[i % 2] + block) % 4 * 8));
      }
    } else {
      const uint32_t own = piece.scales[threadIdx.x % 32];
      uint32_t largest = __vmaxu2(own & 0x00ff00ff, own >> 8 & 0x00ff00ff);
      largest = max(largest >> 16, largest & 0xffff);
      const float of_block = E8M0(static_cast<uint8_t>(largest)) * 0x1p-8f;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int scale = static_cast<int>(words[i] >> threadIdx.x % 4 * 8 & 0xff);
        const int of_row = static_cast<int>(__shfl_sync(0xffffffff, largest, first + i));
        const float factor = __uint_as_float(static_cast<uint32_t>(max(127 + 14 + scale - of_row, 0)) << 23);
        scales[i / 2][i % 2] = {PackHalves(factor, factor), __shfl_sync(0xffffffff, of_block, first + i)};
      }
    }
  }

  __device__ void AwaitActivation(int tile) {
    if (all_ready_) return;
    const int blocks = args_.intermediate / kBlockK;
    int all = 0;
    if (threadIdx.x % 32 == 0) {
      all = LoadAcquire(args_.ready) == num_tiles_ * blocks;
      while (!all && LoadAcquire(args_.ready_blocks + tile) < blocks) {
      }
    }
    all_ready_ = __shfl_sync(0xffffffff, all, 0) != 0;
  }

  const StreamArgs& args_;
  StreamShared<kTiles>& shared_;
  const StreamTile* tiles_;
  PieceStream<Format> stream_;
  int num_tiles_ = 0;
  int filled_ = 0;
  int slot_ = 0;
  int buffer_ = 0;       // of sums
  uint32_t phases_ = 0;  // a bit per buffer: the parity of its next round
  bool all_ready_ = false;
};

// What a warp does that adds up every kSumWarps-th group.
template <typename Format, int kTiles>
class StreamFinisher {
 public:
  __device__ StreamFinisher(const StreamArgs& args, StreamShared<kTiles>& shared, const StreamTile* tiles)
      : args_(args), shared_(shared), tiles_(tiles), buffer_(threadIdx.x / 32 - kStreamWarps) {}

  __device__ void Run(int tiles) {
    int skip = buffer_;  // groups of others
    for (StreamCursor at = StreamCursor::First(args_); at.Settle(args_, tiles, true); at.Advance(args_)) {
      const int count = at.End(args_) - at.group;
      for (; skip < count; skip += StreamShared<kTiles>::kSumWarps) {
        float sums[kColumns] = {};
        Sum(at, sums);
        if (at.is_down) {
          Down(at, at.group + skip, sums, tiles);
        } else {
          Up(at, at.group + skip, sums);
        }
      }
      skip -= count;
    }
  }

 private:
  static constexpr int kColumns = kTiles * 8;  // a lane has one row of each

  __device__ void Sum(const StreamCursor& at, float (&sums)[kColumns]) {
    const int count = tiles_[at.tile].count;
    const int lane = threadIdx.x % 32;
    const int blocks = args_.Cols(at.is_down) / kBlockK;
    constexpr int kBlockStride = kColumns * kSumStride;
    for (int round = 0; round < blocks; round += kStreamWarps) {
      shared_.full[buffer_].Wait(phase_);
      const int n = min(kStreamWarps, blocks - round);
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        if (column >= count) break;
        const float* from = shared_.sums[buffer_][0] + column * kSumStride + lane;
#pragma unroll 8
        for (int b = 0; b < n; ++b) sums[column] = __fadd_rn(sums[column], from[b * kBlockStride]);
      }
      __syncwarp();
      if (lane == 0) shared_.empty[buffer_].Arrive();
      phase_ ^= 1;
    }
  }

  __device__ void Up(const StreamCursor& at, int group, const float (&sums)[kColumns]) {
    const StreamTile& tile = tiles_[at.tile];
    const int lane = threadIdx.x % 32;
    const bool is_shared = at.tile < args_.shared_tiles;
    const int output = group * (kGroupRows / 2) + lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
      if (column >= tile.count) break;
      const float y = args_.swiglu.faithful ? RoundBf16(sums[column]) : sums[column];
      const float up = __shfl_xor_sync(0xffffffff, y, 8);
      if (lane % 16 >= 8) continue;
      const int pair = args_.plan.list[tile.begin + column];
      const float weight = is_shared ? 1.0f : args_.weights[pair];
      args_.hidden[int64_t{pair} * args_.intermediate + output] = args_.swiglu(y, up, weight);
    }
    const int blocks = args_.intermediate / kBlockK;
    const int block = group * (kGroupRows / 2) / kBlockK;
    const int before = WarpCount(args_.groups_of_block + at.tile * blocks + block);
    if (before != kBlockK / (kGroupRows / 2) - 1) return;
    __threadfence();
    if (is_shared) {
      Prepare<Fp8Weights>(tile, block);
    } else {
      Prepare<Format>(tile, block);
    }
    WarpCount(args_.ready_blocks + at.tile);
    WarpCount(args_.ready);
  }

  template <typename F>
  __device__ void Prepare(const StreamTile& tile, int block) {
    constexpr int kBatch = 4;  // as many loads at once
    const auto source = [&](int64_t pair, int64_t i) {
      return __ldcg(args_.hidden + pair * args_.intermediate + i);
    };
    for (int begin = 0; begin < tile.count; begin += kBatch) {
      LaneValues values[kBatch];
      int pairs[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        pairs[i] = args_.plan.list[tile.begin + min(begin + i, tile.count - 1)];
        values[i].template Load<F>(source, pairs[i], block, args_.intermediate);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (begin + i >= tile.count) break;
        StoreBlock<F>(values[i], args_.swiglu.faithful, args_.activation, pairs[i], block);
      }
    }
  }

  __device__ void Down(const StreamCursor& at, int group, const float (&sums)[kColumns], int tiles) {
    const StreamTile& tile = tiles_[at.tile];
    const int output = group * kGroupRows + threadIdx.x % 32;
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
      if (column >= tile.count) break;
      const int pair = args_.plan.list[tile.begin + column];
      args_.y[int64_t{pair} * args_.dim + output] =
          args_.swiglu.faithful ? RoundBf16(sums[column]) : sums[column];
    }
    if (args_.out == nullptr || WarpCount(args_.outputs + group) != tiles - 1) return;
    __threadfence();
    for (int row = 0; row < args_.rows; ++row) {
      const float* from = args_.y + int64_t{row} * args_.slots * args_.dim + output;
      const float last = __ldcg(args_.y + (int64_t{args_.rows} * args_.slots + row) * args_.dim + output);
      float sum = 0;
#pragma unroll 8
      for (int k = 0; k < args_.slots; ++k) sum += __ldcg(from + int64_t{k} * args_.dim);
      sum += last;
      args_.out[int64_t{row} * args_.dim + output] = args_.swiglu.faithful ? RoundBf16(sum) : sum;
    }
  }

  const StreamArgs& args_;
  StreamShared<kTiles>& shared_;
  const StreamTile* tiles_;
  const int buffer_;
  uint32_t phase_ = 0;
};

template <typename Format, bool kSplit, int kTiles>
__global__ void __launch_bounds__(StreamShared<kTiles>::kThreads, 1)
    ExpertStreamKernel(const __grid_constant__ StreamArgs args) {
  using Shared = StreamShared<kTiles>;
  extern __shared__ __align__(16) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  StreamTile* tiles = reinterpret_cast<StreamTile*>(memory + sizeof(Shared));
  const int pairs = args.rows * args.slots;
  const bool multiplies = threadIdx.x < kStreamWarps * 32;
  for (int i = threadIdx.x; i < args.shared_tiles; i += Shared::kThreads) {
    tiles[i].Set(args.shared, pairs + i * kTiles * 8, min(kTiles * 8, args.rows - i * kTiles * 8));
  }
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shared::kSumWarps; ++i) {
      shared.full[i].Init(kStreamWarps);
      shared.empty[i].Init(1);
    }
  }
  __syncthreads();
  StreamMultiplier<Format, kSplit, kTiles> multiplier(args, shared, tiles);
  if (multiplies) multiplier.Fill(args.shared_tiles, false);
  AwaitInputs();
  const int num_tiles = args.shared_tiles + *args.plan.num_tiles;
  for (int i = args.shared_tiles + threadIdx.x; i < num_tiles; i += Shared::kThreads) {
    const ExpertTile tile = args.plan.tiles[i - args.shared_tiles];
    tiles[i].Set(args.experts[tile.expert], tile.begin, tile.count);
  }
  __syncthreads();
  if (multiplies) {
    multiplier.Run(num_tiles);
  } else {
    StreamFinisher<Format, kTiles>(args, shared, tiles).Run(num_tiles);
  }
}

}  // namespace foresight::cuda
