// What a warp of the experts' streaming kernel does with its units: their products with the tile's columns,
// and what follows from these.
#pragma once

#include "kernels/moe/stream_units.cuh"

namespace foresight::cuda {

struct StreamShared : StreamStep {
  alignas(kRoundBytes) uint8_t rounds[kStreamWarps][kRingRounds * kRoundSize];
  BlockFactors factors[kStreamWarps];
  StepUnits units;
  int ready_tiles;  // so many first tiles' activations are there
  int watched;      // 1 while a warp looks for further ones
  int done_warps;
};

// A lane's number is 4 g + t, its sums those of its fragments' rows g and g + 8 with columns 2 t and 2 t + 1.
template <typename Format>
class UnitMultiplier {
 public:
  // The warp's ring has kRingRounds rounds of `rounds` already, or as many as there are.
  __device__ UnitMultiplier(const StreamArgs& args, StreamShared& shared, const StreamTile* tiles,
                            WeightRounds<Format>& rounds, uint32_t ring, BlockFactors& factors)
      : args_(args),
        shared_(shared),
        factors_(factors),
        tiles_(tiles),
        units_(shared.units),
        rounds_(rounds),
        sent_place_(Kept(ring + rounds.Place())),
        weights_place_(Kept(ring + g() * kRoundBytes + (g() % 2 * 4 + t()) * 16)),
        to_other_half_(Kept(64 - g() % 2 * 128)),
        rows_place_(Kept(SharedAddress(&factors.of_rows[0][g()]))),
        columns_place_(Kept(SharedAddress(&factors.of_columns[0][2 * t()]))),
        zero_(Kept(static_cast<uint32_t>(args.dim) % kBlockK)) {}

  __device__ void Run() {
    UnitScales<Format> scales(args_, tiles_, units_, static_cast<int>(threadIdx.x / 32));
    for (Unit at = {}; scales.Get(at);) {
      if (at.is_down) AwaitActivation(at.tile);
      float total[kM][4] = {};
      if (IsFp8<Format>(args_, at.tile)) {
        Multiply<Fp8Weights>(at, scales, total);
      } else {
        Multiply<Format>(at, scales, total);
      }
      for (auto& of_fragment : total) {
        for (float& y : of_fragment) y = RoundBf16(y);
      }
      if (at.is_down) {
        Down(at, total);
      } else {
        Up(at, total);
      }
    }
  }

  // The last thread block that knows of all activations leaves the counters at zero.
  __device__ void Leave() {
    if (args_.watchers == nullptr) return;
    int before = 0;
    if (lane() == 0) before = atomicAdd_block(&shared_.done_warps, 1);
    if (__shfl_sync(0xffffffff, before, 0) != 0) return;  // another warp does
    AwaitActivation(units_.tiles - 1);
    LeaveCounters(args_);
  }

 private:
  static constexpr int kPairs = kBlockSteps / 2;  // of steps, whose values of a column lie together

  __device__ static uint32_t SharedAddress(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
  }

  __device__ static int lane() { return static_cast<int>(threadIdx.x % 32); }
  __device__ static int g() { return static_cast<int>(threadIdx.x % 32 / 4); }
  __device__ static int t() { return static_cast<int>(threadIdx.x % 4); }

  // One of the warps that wait watches, and tells the others.
  __device__ void AwaitActivation(int tile) {
    while (ready_tiles_ <= tile) {
      int watches = 0;
      if (lane() == 0) {
        ready_tiles_ = atomicOr_block(&shared_.ready_tiles, 0);
        watches = ready_tiles_ <= tile && atomicExch_block(&shared_.watched, 1) == 0;
      }
      ready_tiles_ = __shfl_sync(0xffffffff, ready_tiles_, 0);
      if (__shfl_sync(0xffffffff, watches, 0) == 0) {
        __nanosleep(20);
        continue;
      }
      Watch();
      if (lane() == 0) atomicExch_block(&shared_.watched, 0);
    }
    __threadfence_block();
    __syncwarp();
  }
  __device__ void Watch() {
    // No acquiring load: it would empty the first-level cache again and again.
    const int next = __shfl_sync(0xffffffff, atomicOr_block(&shared_.ready_tiles, 0), 0) + lane();
    const bool is_ready =
        next < units_.tiles && LoadRelaxed(args_.ready_blocks + next) == args_.intermediate / kBlockK;
    const int more = __clz(__brev(~__ballot_sync(0xffffffff, is_ready)));
    if (more == 0) {
      __nanosleep(20);
      return;
    }
    Fence();
    __syncwarp();
    if (lane() == 0) atomicAdd_block(&shared_.ready_tiles, more);
  }

  __device__ PreparedRows Source(const Unit& at) const {
    if (at.is_down) return args_.activation;
    return {shared_.x[at.tile < args_.shared_tiles], args_.dim, false, true};
  }

  template <typename F>
  __device__ void Multiply(const Unit& at, UnitScales<Format>& scales, float (&total)[kM][4]) {
    constexpr bool kFp8 = F::kDType == DType::kF8E4M3;
    const StreamTile& tile = tiles_[at.tile];
    const PreparedRows source = Source(at);
    const int cols = args_.Cols(at.is_down);
    const int blocks = cols / kBlockK;
    const int64_t row = (at.is_down ? tile.pairs : tile.rows)[g()];
    const uint16_t* x = source.data + row * source.stride() + t() * 8;
    const float* x_factors = source.Factors(row);

    LaneColumn column;
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) column.Load(x, pair);
    float of_column[2];
    const auto load_factors = [&](int block) {
#pragma unroll
      for (int i = 0; i < 2; ++i) of_column[i] = x_factors[min(block + 2 * t() + i, blocks - 1)];
    };
    const auto send_factors = [&](int block) {
      scales.Send();
      load_factors(block);
    };
    load_factors(0);
#pragma unroll 1
    for (int block = 0; block < blocks; block += 2) {
      const bool has_second = block + 1 < blocks;
      const int in_factors = block % kFactorBlocks;
      if (in_factors == 0) {
        __syncwarp();  // all have read the blocks' before
        scales.template Take<F>(factors_);
#pragma unroll
        for (int i = 0; i < 2; ++i) factors_.of_columns[2 * t() + i][g()] = of_column[i];
        __syncwarp();
      }
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        if (kFp8 && b == 1 && !has_second) break;
        if (kFp8 || b == 0) AwaitRound();
        constexpr int kChunks = kFp8 ? 2 : 1;
        RowPair weights[kM][kChunks];
        RowScale row_scales[kM][2];
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
          for (int c = 0; c < kChunks; ++c) weights[m][c] = Chunk(m, kFp8 ? c : b);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const uint2 of_row = LoadShared2(rows_place_ + (in_factors + b) * sizeof(factors_.of_rows[0]) +
                                             (m * 16 + half * 8) * sizeof(uint2));
            row_scales[m][half] = {kFp8 ? 0 : Mxfp4Weights::FactorOf(of_row.x, t()),
                                   __uint_as_float(of_row.y)};
          }
        }
        if (kFp8 || b == 1) LeaveRound();
        const uint2 of_columns =
            LoadShared2(columns_place_ + (in_factors + b) * sizeof(factors_.of_columns[0]));
        const float2 f = {__uint_as_float(of_columns.x), __uint_as_float(of_columns.y)};
        if (block + b + 1 < blocks) x += kBlockK;
        const uint16_t* next = x + Zero(column);
        if (b == 0 && in_factors == 0) send_factors(block + kFactorBlocks);
        float acc[kM][4] = {};
#pragma unroll
        for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
          for (int step = 2 * pair; step < 2 * pair + 2; ++step) {
#pragma unroll
            for (int m = 0; m < kM; ++m) Step<F>(weights[m], step, row_scales[m], column, acc[m]);
          }
          column.Load(next, pair);  // the next block's, while this one is multiplied
        }
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          if (b == 0 || has_second) AddScaled<F>(total[m], acc[m], row_scales[m], f);
        }
      }
    }
  }

  // Nothing, but not before the column is there. The warp's loads share a scoreboard, and who waits for one
  // of them waits for all: so further ones are sent for behind those that are waited for.
  __device__ int Zero(const LaneColumn& column) const {
    uint32_t all = 0;
#pragma unroll
    for (const uint4& values : column.values) all |= values.x;
    int zero;
    asm volatile("and.b32 %0, %1, %2;" : "=r"(zero) : "r"(all), "r"(zero_));
    return zero;
  }

  template <typename F, int kChunks>
  __device__ static void Step(const RowPair (&weights)[kChunks], int step, const RowScale (&scales)[2],
                              const LaneColumn& column, float (&acc)[4]) {
    constexpr int kChunkSteps = F::kValues / 4;
    uint32_t a[4];
    DecodePair<F>(weights[step / kChunkSteps], step % kChunkSteps, scales, a);
    MultiplyStep<F>(acc, a, step, column.values[step / 2]);
  }

  __device__ void AwaitRound() const {
    AwaitCopies<kRingRounds - 1>();
    __syncwarp();
  }
  // Sixteen bytes of rows g and g + 8 of a fragment, in half `half` of the round.
  __device__ RowPair Chunk(int m, int half) const {
    const uint32_t from = weights_place_ + slot_ + half * to_other_half_ + m * 16 * kRoundBytes;
    return {LoadShared4(from), LoadShared4(from + 8 * kRoundBytes)};
  }
  // Sends for another round in place of this one, which the warp has read.
  __device__ void LeaveRound() {
    __syncwarp();
    if (rounds_.HasNext(units_)) {
      rounds_.Copy(sent_place_ + slot_);
    } else {
      EndCopies();
    }
    slot_ = slot_ + kRoundSize < kRingRounds * kRoundSize ? slot_ + kRoundSize : 0;
  }

  // Of w1 in rows g, of w3 in rows g + 8.
  __device__ void Up(const Unit& at, const float (&y)[kM][4]) {
    const StreamTile& tile = tiles_[at.tile];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = 2 * t() + i;
      if (column >= tile.count) break;
      const int64_t pair = tile.pairs[column];
      const float weight = tile.weights[column];
      float* to = args_.hidden + pair * args_.intermediate + at.row + g();
#pragma unroll
      for (int m = 0; m < kM; ++m) to[8 * m] = args_.swiglu(y[m][i], y[m][2 + i], weight);
    }
    const int blocks = args_.intermediate / kBlockK;
    const int block = at.row / kBlockK;
    const int before = WarpCount(args_.units_of_block + at.tile * blocks + block);
    if (before != kBlockK / (kUnitRows / 2) - 1) return;
    Fence();
    const auto pair_of = [&](int column) { return int{tile.pairs[column]}; };
    if (at.tile < args_.shared_tiles) {
      PrepareActivation<Fp8Weights>(args_, tile.count, block, pair_of);
    } else {
      PrepareActivation<Format>(args_, tile.count, block, pair_of);
    }
    WarpCount(args_.ready_blocks + at.tile);
  }

  __device__ void Down(const Unit& at, const float (&y)[kM][4]) {
    const StreamTile& tile = tiles_[at.tile];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = 2 * t() + i;
      if (column >= tile.count) break;
      const int64_t pair = tile.pairs[column];
      float* to = args_.y + pair * args_.dim + at.row + g();
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        to[16 * m] = y[m][i];
        to[16 * m + 8] = y[m][2 + i];
      }
    }
    if (args_.out == nullptr || WarpCount(args_.outputs + at.row / kUnitRows) != units_.tiles - 1) return;
    Fence();
    if (args_.watchers != nullptr && lane() == 0) args_.outputs[at.row / kUnitRows] = 0;
    CombineUnit(args_, at.row);
  }

  const StreamArgs& args_;
  StreamShared& shared_;
  BlockFactors& factors_;
  const StreamTile* tiles_;
  const StepUnits& units_;
  WeightRounds<Format>& rounds_;
  const uint32_t sent_place_;     // of the lane's bytes in the first slot, where they are sent to
  const uint32_t weights_place_;  // and where it takes them
  const int to_other_half_;       // of the round
  const uint32_t rows_place_;     // of the factors of row g in the first block
  const uint32_t columns_place_;  // and of columns 2 t and 2 t + 1
  const uint32_t zero_;           // which the compiler doesn't know
  int slot_ = 0;                  // in bytes
  int ready_tiles_ = 0;           // known to be
};

}  // namespace foresight::cuda
