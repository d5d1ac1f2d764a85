// How the kernels that score packed keys divide the work: pairs of key tiles and rows, evenly among blocks,
// sequence by sequence, for the host knows no lengths. Some rows of a sequence share the tiles that a block
// reads.
#pragma once

#include <algorithm>

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sequences.cuh"
#include "kernels/indexer/indexing.cuh"

namespace foresight::cuda {

constexpr int kTileKeys = 64;
constexpr int kPackedKeyBytes = 68;  // 64 of codes, four scales
constexpr int kWarpKeys = 16;        // of a tile per warp
static_assert(kWarpKeys == kMaximumOf);
constexpr int kWarpTileBytes = kWarpKeys * kPackedKeyBytes;

// What a block does at a stretch: key tiles [tile, tile_end) for some rows of one sequence.
struct ScorePass {
  int sequence;
  int first_row;  // of the step
  int rows;
  int tile;
  int tile_end;
};

// The share of one block in the turn's work. The unit is about the time that a tile takes for one row; where
// rows share it, decoding a tile counts as one more.
template <int kRows>
class ScoreShare {
  static constexpr int kDecoding = kRows > 1 ? 1 : 0;

  // Of one sequence in this turn.
  struct Work {
    Work() = default;
    __device__ Work(const Indexing& args, int s) {
      const SequenceRows& sequence = args.sequences[s];
      first_row = max(sequence.first_row, args.first_row);
      const int end = min(sequence.first_row + sequence.num_rows, args.first_row + args.turn_rows);
      rows = max(end - first_row, 0);
      const int visible = rows > 0 ? args.Visible(sequence, end - 1) : 0;
      tiles = visible > args.topk ? (visible + kTileKeys - 1) / kTileKeys : 0;
    }
    __device__ int Units() const { return tiles * (rows + kDecoding * ((rows + kRows - 1) / kRows)); }
    int first_row = 0;
    int rows = 0;
    int tiles = 0;
  };

 public:
  // ends [num_sequences]: shared memory for the sequences' units, added up.
  __device__ ScoreShare(const Indexing& args, int* ends) : args_(args), ends_(ends) {
    if (args.num_sequences == 1) {
      only_ = Work(args, 0);
      all_ = only_.Units();
    } else {
      AddUp(ends);
      all_ = ends[args.num_sequences - 1];
    }
    const int block = blockIdx.x;
    const int blocks = gridDim.x;
    const int units = all_ / blocks;
    const int more = all_ % blocks;
    at_ = block * units + min(block, more);
    end_ = at_ + units + (block < more ? 1 : 0);
  }

  // The next stretch; false when there is none.
  __device__ bool Next(ScorePass& pass) {
    while (at_ < end_) {
      for (int high = args_.num_sequences - 1; sequence_ < high;) {
        const int middle = (sequence_ + high) / 2;
        if (End(middle) > at_) {
          high = middle;
        } else {
          sequence_ = middle + 1;
        }
      }
      const int begin = sequence_ == 0 ? 0 : End(sequence_ - 1);
      const Work work = args_.num_sequences == 1 ? only_ : Work(args_, sequence_);
      const int full_pass = work.tiles * (kRows + kDecoding);
      const int index = work.rows <= kRows ? 0 : (at_ - begin) / full_pass;
      const int pass_begin = begin + index * full_pass;
      const int row = index * kRows;
      const int rows = min(work.rows - row, kRows);
      const int unit = kRows == 1 ? 1 : rows + kDecoding;
      // A tile belongs to the block that has its first unit.
      pass = {.sequence = sequence_,
              .first_row = work.first_row + row,
              .rows = rows,
              .tile = (at_ - pass_begin + unit - 1) / unit,
              .tile_end = min((end_ - pass_begin + unit - 1) / unit, work.tiles)};
      at_ = pass_begin + work.tiles * unit;
      if (pass.tile < pass.tile_end) return true;
    }
    return false;
  }

  // For kernels that have no registers for it between two stretches: what Resume goes on from.
  __device__ int4 state() const { return {all_, at_, end_, sequence_}; }
  __device__ void Resume(const int4& state) {
    all_ = state.x;
    at_ = state.y;
    end_ = state.z;
    sequence_ = state.w;
    only_ = at_ < end_ && args_.num_sequences == 1 ? Work(args_, 0) : Work();
  }

 private:
  __device__ int End(int sequence) const { return args_.num_sequences == 1 ? all_ : ends_[sequence]; }

  __device__ void AddUp(int* ends) const {
    for (int s = threadIdx.x; s < args_.num_sequences; s += blockDim.x) ends[s] = Work(args_, s).Units();
    __syncthreads();
    if (threadIdx.x < 32) {
      int sum = 0;
      for (int first = 0; first < args_.num_sequences; first += 32) {
        const int s = first + static_cast<int>(threadIdx.x);
        int x = s < args_.num_sequences ? ends[s] : 0;
        for (int distance = 1; distance < 32; distance *= 2) {
          const int other = __shfl_up_sync(0xffffffff, x, distance);
          if (static_cast<int>(threadIdx.x) >= distance) x += other;
        }
        x += sum;
        if (s < args_.num_sequences) ends[s] = x;
        sum = __shfl_sync(0xffffffff, x, 31);
      }
    }
    __syncthreads();
  }

  const Indexing& args_;
  const int* ends_;
  int all_;
  int at_;
  int end_;
  int sequence_ = 0;
  Work only_;  // if there is one sequence
};

// Whether some rows of a sequence share key tiles: not on GPUs whose blocks have 99 KB of shared memory.
inline bool RowsShare(const KernelContext& ctx, const Indexing& args) {
  const int capability = DeviceOf(ctx).capability();
  return args.turn_rows > args.num_sequences && capability != 86 && capability != 89;
}

inline dim3 ScoreBlocks(const KernelContext& ctx, const Indexing& args) {
  return dim3(static_cast<unsigned>(
      std::min<int64_t>(DeviceOf(ctx).num_sms(), args.stride / kTileKeys * args.turn_rows)));
}

// Copies `count` keys from key `first` on to `to`, word by word, by a warp.
__device__ inline void CopyKeys(uint8_t* to, const PagedView& view, int first, int count, int lane) {
#pragma unroll 1
  for (int at = lane * 4; at < count * kPackedKeyBytes; at += 32 * 4) {
    const std::byte* key = ItemOf(view, first + at / kPackedKeyBytes);
    *reinterpret_cast<uint32_t*>(to + at) = *reinterpret_cast<const uint32_t*>(key + at % kPackedKeyBytes);
  }
  __syncwarp();
}

// Begins to copy `bytes`, a multiple of 16, to shared memory, by kThreads threads.
template <int kThreads>
__device__ inline void CopyToShared(void* to, const void* from, int bytes) {
#pragma unroll 1
  for (int at = threadIdx.x * 16; at < bytes; at += kThreads * 16) {
    CopyAsync<16>(static_cast<uint8_t*>(to) + at, static_cast<const uint8_t*>(from) + at, true);
  }
}

}  // namespace foresight::cuda
