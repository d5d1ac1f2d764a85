// Scores of packed keys of 128 values on the tensor cores. All products are exact in bf16.
//
// Blocks divide the pairs of key tiles and rows among themselves evenly, sequence by sequence: the host knows
// no lengths. Some rows of a sequence share the tiles that a block reads. A score is a pure function of
// its key and query: who computes it, and with what company, doesn't matter.
#pragma once

#include <cuda_pipeline.h>

#include <algorithm>

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/indexer/packed_query.cuh"

namespace foresight::cuda {

constexpr int kPackedKeyBytes = 68;  // 64 of codes, four scales
constexpr int kTileKeys = 64;        // that a warpgroup scores at a time
constexpr int kWarpKeys = 16;        // of these per warp
static_assert(kWarpKeys == kMaximumOf);
constexpr int kWarpTileBytes = kWarpKeys * kPackedKeyBytes;
constexpr int kScoreGroups = 4;  // warpgroups of a block
constexpr int kScoreThreads = 128 * kScoreGroups;
constexpr int kStages = 4;  // tiles on their way per warpgroup

// Keys are decoded to 2^-32 of their values, so that the factor that also moves an E2M1's bias is a bf16.
// Exact for scales from 2^-100 to 2^33.
constexpr uint32_t kKeyShift = 32;

// Eight E2M1 codes times a power of two as bf16 pairs: values (0, 4), (1, 5), (2, 6), (3, 7).
__device__ inline void DecodeE2M1(uint32_t codes, __nv_bfloat162 factor, uint32_t (&pairs)[4]) {
  // Exponent and mantissa moved to a bf16's place are 2^-126 of the value, subnormals included. A product
  // moves two copies of a code at once, one for the sign.
  const uint32_t upper = codes >> 8;
  const uint32_t raw[4] = {(codes & 0x000f000f) * 0x1040, (codes & 0x00f000f0) * 0x104,
                           (upper & 0x000f000f) * 0x1040, (upper & 0x00f000f0) * 0x104};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t bits = raw[i] & 0x81c081c0;
    const __nv_bfloat162 value = __hmul2(reinterpret_cast<const __nv_bfloat162&>(bits), factor);
    pairs[i] = reinterpret_cast<const uint32_t&>(value);
  }
}

// What turns raw E2M1s into 2^-kKeyShift of a block's values.
__device__ inline __nv_bfloat162 DecodeFactor(uint32_t scale_byte) {
  const uint32_t exponent = min(scale_byte + (126 - kKeyShift), 254u);
  return __bfloat162bfloat162(__ushort_as_bfloat16(static_cast<uint16_t>(exponent << 7)));
}

// A warp's keys of a tile as operand A, by step of 16 dims.
__device__ inline void DecodeKeys(const uint8_t* keys, uint32_t (&a)[8][4]) {
  const int g = threadIdx.x % 32 / 4;
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint8_t* key = keys + (g + 8 * half) * kPackedKeyBytes;
    const __nv_bfloat162 factor = DecodeFactor(key[kPackedDim / 2 + t]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t pairs[4];
      DecodeE2M1(reinterpret_cast<const uint32_t*>(key)[4 * t + i], factor, pairs);
      a[2 * i][half] = pairs[0];
      a[2 * i][half + 2] = pairs[1];
      a[2 * i + 1][half] = pairs[2];
      a[2 * i + 1][half + 2] = pairs[3];
    }
  }
}

// dots [keys of the tile, heads]: eight steps of 16 dims from zero, by all warps of a warpgroup. The same
// bits either way; kHopper in code for sm_90a.
template <bool kHopper>
__device__ inline void Dots(const uint32_t (&a)[8][4], const uint8_t* query, float (&c)[8][4]) {
  if constexpr (kHopper) {
    WarpgroupFence();
    WarpgroupMmaN64<false>(c, a[0], MatricesAt(query, kStepBytes / 2));
#pragma unroll
    for (int step = 1; step < 8; ++step) {
      WarpgroupMmaN64<true>(c, a[step], MatricesAt(query + step * kStepBytes, kStepBytes / 2));
    }
    EndProducts();
    AwaitProducts<0>(reinterpret_cast<float(&)[32]>(c));
    return;
  }
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int heads = 0; heads < 8; ++heads) {
    for (float& x : c[heads]) x = 0;
#pragma unroll
    for (int step = 0; step < 8; step += 2) {
      uint32_t b[4];
      LoadMatrices(b, query + step * kStepBytes + lane / 8 * (kStepBytes / 2) + heads * 128 + lane % 8 * 16);
      MmaBf16(c[heads], a[step], b[0], b[1]);
      MmaBf16(c[heads], a[step + 1], b[2], b[3]);
    }
  }
}

// Sums of four neighbours' values: lane 0 and lane 2 of each quad get that of `a`, 1 and 3 that of `b`.
__device__ inline float SumOfQuad(float a, float b) {
  const bool odd = threadIdx.x % 2;
  const float sum = (odd ? b : a) + __shfl_xor_sync(0xffffffff, odd ? a : b, 1);
  return sum + __shfl_xor_sync(0xffffffff, sum, 2);
}

// A warp's keys of a tile on their way to shared memory. In every cache of the engine a block holds a tile,
// and its keys begin at a multiple of 16 bytes; others are copied key by key.
struct KeyTiles {
  PagedView keys;
  int visible;
  bool whole;

  __device__ KeyTiles(const PagedView& keys, int visible) : keys(keys), visible(visible) {
    whole =
        keys.per_block == kTileKeys && (reinterpret_cast<uintptr_t>(keys.blocks[0]) + keys.offset) % 16 == 0;
  }
  __device__ static int WarpKey(int tile) {
    return tile * kTileKeys + static_cast<int>(threadIdx.x) / 32 % 4 * kWarpKeys;
  }
  // Of a tile whose keys are visible to some row.
  __device__ const std::byte* Block(int tile) const {
    return whole && WarpKey(tile) < visible ? keys.blocks[tile] : nullptr;
  }
  __device__ void Fetch(const std::byte* block, int tile, uint8_t* to) const {
    const int lane = threadIdx.x % 32;
    if (block != nullptr) {
      const std::byte* from = block + keys.offset + static_cast<int>(threadIdx.x) / 32 % 4 * kWarpTileBytes;
#pragma unroll
      for (int i = 0; i < kWarpTileBytes; i += 32 * 16) {
        const int at = i + lane * 16;
        if (at < kWarpTileBytes) __pipeline_memcpy_async(to + at, from + at, 16);
      }
    } else if (!whole) {
      for (int i = lane; i < kWarpTileBytes / 4; i += 32) {
        const int key = WarpKey(tile) + i * 4 / kPackedKeyBytes;
        if (key >= visible) break;
        __pipeline_memcpy_async(to + i * 4, ItemOf(keys, key) + i * 4 % kPackedKeyBytes, 4);
      }
    }
  }
};

// What a block does at a stretch: key tiles [tile, tile_end) for some rows of one sequence.
struct ScorePass {
  int sequence;
  int first_row;  // of the step
  int rows;
  int tile;
  int tile_end;
};

// The share of one block in the turn's work. The unit is about the time that a tile takes for one row;
// decoding a tile counts as one more row.
template <int kRows>
class ScoreShare {
 public:
  // ends [num_sequences]: shared memory for the sequences' units, added up.
  __device__ ScoreShare(const Indexing& args, int* ends) : args_(args), ends_(ends) {
    if (args.num_sequences == 1) {
      all_ = Work(args, 0).Units();
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
      const Work work(args_, sequence_);
      const int full_pass = work.tiles * (kRows + 1);
      const int index = (at_ - begin) / full_pass;
      const int pass_begin = begin + index * full_pass;
      const int row = index * kRows;
      const int rows = min(work.rows - row, kRows);
      const int unit = rows + 1;
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

 private:
  // Of one sequence in this turn.
  struct Work {
    __device__ Work(const Indexing& args, int s) {
      const SequenceRows& sequence = args.sequences[s];
      first_row = max(sequence.first_row, args.first_row);
      const int end = min(sequence.first_row + sequence.num_rows, args.first_row + args.turn_rows);
      rows = max(end - first_row, 0);
      const int visible = rows > 0 ? args.Visible(sequence, end - 1) : 0;
      tiles = visible > args.topk ? (visible + kTileKeys - 1) / kTileKeys : 0;
    }
    __device__ int Units() const { return tiles * (rows + (rows + kRows - 1) / kRows); }
    int first_row;
    int rows;
    int tiles;
  };

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
};

// Shared memory of a block: queries, keys on their way, weights, and ScoreShare's.
template <int kRows>
struct ScoresShared {
  uint8_t queries[kRows][kQueryBytes];
  uint8_t keys[kScoreGroups * 4][kStages][kWarpTileBytes];
  float2 weights[kRows][kPackedHeads / 2];
  int ends[1];  // and more

  static size_t Bytes(int num_sequences) {
    return sizeof(ScoresShared) + static_cast<size_t>(num_sequences) * sizeof(int);
  }
};

// `queries` are PackQueryKernel's. Up to kRows rows of a sequence share the key tiles that a block reads.
template <int kRows, bool kHopper>
__global__ void __launch_bounds__(kScoreThreads, 1)
    PackedScoresKernel(Indexing args, const uint16_t* queries) {
  AwaitInputs();
  extern __shared__ __align__(128) uint8_t memory[];
  ScoresShared<kRows>& shared = *reinterpret_cast<ScoresShared<kRows>*>(memory);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  ScoreShare<kRows> share(args, shared.ends);
  for (ScorePass pass; share.Next(pass);) {
    const SequenceRows sequence = args.sequences[pass.sequence];
    const int64_t seen_before = sequence.first_position - sequence.first_row + 1;
    const int visible = static_cast<int>((seen_before + pass.first_row + pass.rows - 1) / args.kRatio);
    const KeyTiles tiles(sequence.cache.index_keys, visible);
    const auto block = [&](int tile) { return tile < pass.tile_end ? tiles.Block(tile) : nullptr; };
    const auto fetch = [&](const std::byte* block, int tile, int stage) {
      if (tile < pass.tile_end) tiles.Fetch(block, tile, shared.keys[warp][stage]);
      __pipeline_commit();
    };
    __syncthreads();  // the last pass needs its queries no more
    const uint8_t* from =
        reinterpret_cast<const uint8_t*>(queries) + int64_t{pass.first_row - args.first_row} * kQueryBytes;
    for (int i = threadIdx.x * 16; i < pass.rows * kQueryBytes; i += kScoreThreads * 16) {
      __pipeline_memcpy_async(&shared.queries[0][i], from + i, 16);
    }
    int tile = pass.tile + warp / 4;
#pragma unroll
    for (int stage = 0; stage < kStages; ++stage) {
      fetch(block(tile + stage * kScoreGroups), tile + stage * kScoreGroups, stage);
    }
    const std::byte* upcoming = block(tile + kStages * kScoreGroups);  // known a tile ahead
    for (int i = threadIdx.x; i < pass.rows * kPackedHeads; i += kScoreThreads) {
      const int head = i % kPackedHeads;
      const int64_t row = pass.first_row + i / kPackedHeads;
      // Half of it, for twice the rectified dots are added up.
      reinterpret_cast<float*>(shared.weights)[i] =
          head < args.heads ? args.w[row * args.heads + head] * args.factor * (0.5f * (1ll << kKeyShift))
                            : 0.0f;
    }
    __pipeline_wait_prior(kStages - 1);
    if constexpr (kHopper) FenceForProducts();
    __syncthreads();

    for (int stage = 0; tile < pass.tile_end; tile += kScoreGroups, stage = (stage + 1) % kStages) {
      __pipeline_wait_prior(kStages - 1);
      __syncwarp();
      uint32_t a[8][4];
      DecodeKeys(shared.keys[warp][stage], a);
      __syncwarp();
      fetch(upcoming, tile + kStages * kScoreGroups, stage);
      upcoming = block(tile + (kStages + 1) * kScoreGroups);
      const int key = KeyTiles::WarpKey(tile) + lane / 4 + lane % 2 * 8;  // that the lane stores
      float* scores = args.scores + int64_t{pass.first_row - args.first_row} * args.stride + key;
      float* maxima = args.maxima + (scores - args.scores) / kMaximumOf;  // lane 0's key is the warp's first
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r >= pass.rows) break;
        float c[8][4];
        Dots<kHopper>(a, shared.queries[r], c);
        float sums[2] = {};  // of a lane's keys, eight apart
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float2 weight = shared.weights[r][4 * i + lane % 4];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float x = c[i][2 * half];
            const float y = c[i][2 * half + 1];
            sums[half] += weight.x * (x + fabsf(x));
            sums[half] += weight.y * (y + fabsf(y));
          }
        }
        const float sum = SumOfQuad(sums[0], sums[1]);
        const int row_visible = static_cast<int>((seen_before + pass.first_row + r) / args.kRatio);
        if (lane % 4 < 2 && key < row_visible) scores[r * args.stride] = sum;
        const float largest = LargestOfWarp(key < row_visible ? sum : -INFINITY);
        if (lane == 0 && key < row_visible) maxima[r * (args.stride / kMaximumOf)] = largest;
      }
    }
    __pipeline_wait_prior(0);
  }
}

// Rows share key tiles where sequences have several, but on GPUs whose blocks have 99 KB of shared memory.
template <bool kHopper>
void LaunchPackedScores(const KernelContext& ctx, const Indexing& args, const uint16_t* queries) {
  constexpr int kSharing = 4;
  const int capability = DeviceOf(ctx).capability();
  const int64_t tiles = args.stride / kTileKeys * args.turn_rows;
  const dim3 blocks(static_cast<unsigned>(std::min<int64_t>(DeviceOf(ctx).num_sms(), tiles)));
  if (args.turn_rows > args.num_sequences && capability != 86 && capability != 89) {
    Launch(ctx, PackedScoresKernel<kSharing, kHopper>, blocks, kScoreThreads,
           ScoresShared<kSharing>::Bytes(args.num_sequences), args, queries);
  } else {
    Launch(ctx, PackedScoresKernel<1, kHopper>, blocks, kScoreThreads,
           ScoresShared<1>::Bytes(args.num_sequences), args, queries);
  }
}

}  // namespace foresight::cuda
