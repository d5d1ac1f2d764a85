// Scores of packed keys of 128 values on the tensor cores. All products are exact in bf16.
//
// Blocks divide the pairs of key tiles and rows among themselves evenly, sequence by sequence: the host knows
// no lengths. Some rows of a sequence share the tiles that a block reads. A score is a pure function of
// its key and query: who computes it, and with what company, doesn't matter.
#pragma once

#include <algorithm>

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/barriers.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/indexer/packed_query.cuh"

namespace foresight::cuda {

constexpr int kPackedKeyBytes = 68;  // 64 of codes, four scales
constexpr int kTileKeys = 64;        // that a warpgroup scores at a time
constexpr int kWarpKeys = 16;        // of these per warp
static_assert(kWarpKeys == kMaximumOf);
constexpr int kWarpTileBytes = kWarpKeys * kPackedKeyBytes;
constexpr int kSlots = 4;  // tiles on their way per warpgroup

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
__device__ inline void DecodeKeys(const uint8_t* keys, int lane, uint32_t (&a)[8][4]) {
  const int g = lane / 4;
  const int t = lane % 4;
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

// Matrices of heads by 16 dims of a query in shared memory, as products take them: those of one row, or of
// two rows side by side.
template <int kRows>
__device__ inline uint64_t QueryStep(const uint8_t* query, int step) {
  constexpr int kBytes = kRows * kStepBytes;
  // The steps differ in the lower half alone.
  const uint32_t low = static_cast<uint32_t>(MatricesAt(query, kBytes / 2));
  return uint64_t{128 >> 4} << 32 | (low + static_cast<uint32_t>(step * (kBytes >> 4)));
}

// dots [keys of the tile, heads]: eight steps of 16 dims from zero, by all warps of a warpgroup. The same
// bits in all three; the first two are for sm_90a.
__device__ inline void DotsOfRow(const uint32_t (&a)[8][4], const uint8_t* query, float (&c)[8][4]) {
  WarpgroupFence();
  WarpgroupMmaN64<false>(c, a[0], QueryStep<1>(query, 0));
#pragma unroll
  for (int step = 1; step < 8; ++step) WarpgroupMmaN64<true>(c, a[step], QueryStep<1>(query, step));
  EndProducts();
  AwaitProducts<0>(reinterpret_cast<float(&)[32]>(c));
}
// Of two rows: the second one's behind the first one's.
__device__ inline void DotsOfRows(const uint32_t (&a)[8][4], const uint8_t* queries, float (&c)[64]) {
  WarpgroupFence();
  WarpgroupMma<false, false>(c, a[0], QueryStep<2>(queries, 0));
#pragma unroll
  for (int step = 1; step < 8; ++step) WarpgroupMma<true, false>(c, a[step], QueryStep<2>(queries, step));
  EndProducts();
  AwaitProducts<0>(c);
}
__device__ inline void DotsOfRowPortable(const uint32_t (&a)[8][4], const uint8_t* query, int lane,
                                         float (&c)[8][4]) {
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
__device__ inline float SumOfQuad(float a, float b, int lane) {
  const bool odd = lane % 2;
  const float sum = (odd ? b : a) + __shfl_xor_sync(0xffffffff, odd ? a : b, 1);
  return sum + __shfl_xor_sync(0xffffffff, sum, 2);
}

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
      const int full_pass = work.tiles * (kRows + kDecoding);
      const int index = (at_ - begin) / full_pass;
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
    __device__ int Units() const { return tiles * (rows + kDecoding * ((rows + kRows - 1) / kRows)); }
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

// A warp's keys of tiles on their way to shared memory, in the order in which they are asked for.
struct KeySlots {
  uint8_t keys[kSlots][kWarpTileBytes];
  TransferBarrier sent[kSlots];  // for kHopper

  // By the warp, first of all.
  template <bool kHopper>
  __device__ void Init() {
    if (kHopper && threadIdx.x % 32 < kSlots) sent[threadIdx.x % 32].Init();
    __syncwarp();
  }

  // The n-th keys that were asked for. For others than kHopper, kSlots - 1 groups of copies were ended since.
  template <bool kHopper>
  __device__ const uint8_t* Await(uint32_t n) {
    if constexpr (kHopper) {
      sent[n % kSlots].Wait(n / kSlots % 2);
    } else {
      AwaitCopies<kSlots - 1>();
      __syncwarp();
    }
    return keys[n % kSlots];
  }

  // Asks for the n-th keys, when the warp needs those kSlots before no more: `count` (below 1: none) from key
  // `first` on. All of them are at `from`, if that's not null.
  template <bool kHopper>
  __device__ void Ask(uint32_t n, const std::byte* from, const PagedView& view, int first, int count,
                      int lane) {
    uint8_t* to = keys[n % kSlots];
    __syncwarp();
    if (from == nullptr && count > 0) {
#pragma unroll 1
      for (int at = lane * 4; at < min(count, kWarpKeys) * kPackedKeyBytes; at += 32 * 4) {
        const std::byte* key = ItemOf(view, first + at / kPackedKeyBytes);
        *reinterpret_cast<uint32_t*>(to + at) =
            *reinterpret_cast<const uint32_t*>(key + at % kPackedKeyBytes);
      }
      __syncwarp();
    }
    const bool whole = from != nullptr && count > 0;
    if constexpr (kHopper) {
      if (lane == 0) {
        sent[n % kSlots].Expect(whole ? kWarpTileBytes : 0);
        if (whole) sent[n % kSlots].Fetch(to, from, kWarpTileBytes);
      }
    } else {
      if (whole) {
        for (int at = lane * 16; at < kWarpTileBytes; at += 32 * 16) CopyAsync<16>(to + at, from + at, true);
      }
      EndCopies();
    }
  }
};

// Shared memory of a block: queries, keys on their way, weights, and ScoreShare's.
template <int kRows, int kGroups>
struct ScoresShared {
  uint8_t queries[kRows][kQueryBytes];
  KeySlots slots[kGroups * 4];
  float2 weights[kRows][kPackedHeads / 2];
  int ends[1];  // and more

  static size_t Bytes(int num_sequences) {
    return sizeof(ScoresShared) + static_cast<size_t>(num_sequences) * sizeof(int);
  }
};

// Where 16 bytes of the queries of a pass, one row behind the other, lie in shared memory: for kHopper rows
// are side by side in pairs.
template <bool kHopper>
__device__ inline int QueryBytePlace(int i) {
  constexpr int kHalf = kStepBytes / 2;
  if (!kHopper) return i;
  const int row = i / kQueryBytes;
  const int at = i % kQueryBytes;
  return row / 2 * (2 * kQueryBytes) + at / kHalf * (2 * kHalf) + row % 2 * kHalf + at % kHalf;
}

// By kGroups warpgroups. Up to kRows rows of a sequence share the key tiles that a block reads; their queries
// are `queries`, PackQueryKernel's. A row that shares with none is packed here.
template <int kRows, int kGroups, bool kHopper>
__global__ void __launch_bounds__(128 * kGroups, 1)
    PackedScoresKernel(Indexing args, const uint16_t* queries) {
  constexpr int kThreads = 128 * kGroups;
  constexpr int kStride = kGroups * kTileKeys;  // from a warp's keys to its next ones
  extern __shared__ __align__(128) uint8_t memory[];
  auto& shared = *reinterpret_cast<ScoresShared<kRows, kGroups>*>(memory);
  const int warp = threadIdx.x / 32;
  const int group = warp / 4;
  int lane = threadIdx.x % 32;
  asm volatile("" : "+r"(lane));  // kept, for asking again takes long
  KeySlots& slots = shared.slots[warp];
  slots.Init<kHopper>();
  AwaitInputs();
  PagedView view = args.sequences->cache.index_keys;  // of the first sequence, asked for early
  asm volatile("" : "+l"(view.blocks));
  ScoreShare<kRows> share(args, shared.ends);
  uint32_t n = 0;  // tiles of this warp before
  for (ScorePass pass; share.Next(pass);) {
    const SequenceRows& sequence = args.sequences[pass.sequence];
    if (pass.sequence > 0) view = sequence.cache.index_keys;
    const uint32_t seen =  // by the first row
        static_cast<uint32_t>(sequence.first_position - sequence.first_row + 1 + pass.first_row);
    const int all_visible = static_cast<int>((seen + pass.rows - 1) / args.kRatio);
    const int turn_row = pass.first_row - args.first_row;
    const int tiles = (pass.tile_end - pass.tile + kGroups - 1 - group) / kGroups;  // of this warp
    int key = (pass.tile + group) * kTileKeys + warp % 4 * kWarpKeys;               // its first

    // In every cache of the engine a block holds a tile, and its keys begin at a multiple of 16 bytes. Others
    // are copied word by word.
    const int offset = static_cast<int>(view.offset) + warp % 4 * kWarpTileBytes;
    const auto block_of = [&](int i) -> const std::byte* {
      return view.per_block == kTileKeys && i < tiles ? view.blocks[pass.tile + group + i * kGroups]
                                                      : nullptr;
    };
    const std::byte* const first_blocks = block_of(lane);
    const bool whole = view.per_block == kTileKeys &&
                       __all_sync(0xffffffff, (reinterpret_cast<uintptr_t>(first_blocks) + offset) % 16 == 0);
    // Asks for tile i in `block`, which is `ahead` behind the one with `key`.
    const auto ask = [&](int i, int ahead, const std::byte* block) {
      if (i < tiles) {
        const int first = key + ahead * kStride;
        slots.Ask<kHopper>(n + i, whole ? block + offset : nullptr, view, first, all_visible - first, lane);
      } else if (!kHopper) {
        EndCopies();
      }
    };
    const std::byte* block;  // of the tile that is asked for next
    const auto begin = [&] {
#pragma unroll 1
      for (int i = 0; i < kSlots; ++i) {
        const uint64_t of_tile = __shfl_sync(0xffffffff, reinterpret_cast<uint64_t>(first_blocks), i);
        ask(i, i, reinterpret_cast<const std::byte*>(of_tile));
      }
      block = block_of(kSlots);
      __syncthreads();  // the last pass needs its queries no more
      if (kRows > 1) {
        const uint8_t* from = reinterpret_cast<const uint8_t*>(queries) + int64_t{turn_row} * kQueryBytes;
#pragma unroll 1
        for (int i = threadIdx.x * 16; i < pass.rows * kQueryBytes; i += kThreads * 16) {
          CopyAsync<16>(&shared.queries[0][QueryBytePlace<kHopper>(i)], from + i, true);
        }
        EndCopies();
      }
      for (int i = threadIdx.x; i < pass.rows * kPackedHeads; i += kThreads) {
        const int head = i % kPackedHeads;
        const int64_t row = pass.first_row + i / kPackedHeads;
        // Half of it, for twice the rectified dots are added up.
        reinterpret_cast<float*>(shared.weights)[i] =
            head < args.heads ? args.w[row * args.heads + head] * args.factor * (0.5f * (1ll << kKeyShift))
                              : 0.0f;
      }
    };
    if constexpr (kRows == 1) {
      PackedHeads heads(args, pass.first_row, warp % (kPackedHeads / 8) * 8);
      begin();
      if (warp < kPackedHeads / 8) heads.StoreTo(reinterpret_cast<uint16_t*>(shared.queries[0]));
    } else {
      begin();
      AwaitCopies<0>();
    }
    if constexpr (kHopper) FenceForProducts();
    __syncthreads();

    const int own = lane / 4 + lane % 2 * 8;  // of the warp's keys, that the lane stores
    float* scores = args.scores + turn_row * args.stride + key + own;
    float* maximum = args.maxima + (turn_row * args.stride + key) / kMaximumOf;
#pragma unroll 1
    for (int i = 0; i < tiles; ++i, key += kStride, scores += kStride, maximum += kStride / kMaximumOf) {
      uint32_t a[8][4];
      DecodeKeys(slots.Await<kHopper>(n + i), lane, a);
      ask(i + kSlots, kSlots, block);
      block = block_of(i + kSlots + 1);
      // `c(j, i)` is element i of the dots with heads 8 j..8 j + 7.
      const auto write = [&](const auto& c, int r) {
        float sums[2] = {};  // of a lane's keys, eight apart
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float2 weight = shared.weights[r][4 * j + lane % 4];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float x = c(j, 2 * half);
            const float y = c(j, 2 * half + 1);
            sums[half] += weight.x * (x + fabsf(x));
            sums[half] += weight.y * (y + fabsf(y));
          }
        }
        const float sum = SumOfQuad(sums[0], sums[1], lane);
        const int visible = static_cast<int>((seen + r) / args.kRatio) - key;  // of the warp's keys
        if (lane % 4 < 2 && own < visible) scores[r * args.stride] = sum;
        const float largest = LargestOfWarp(own < visible ? sum : -INFINITY);
        if (lane == 0 && visible > 0) maximum[r * (args.stride / kMaximumOf)] = largest;
      };
      if constexpr (kRows == 1 || !kHopper) {
#pragma unroll 1
        for (int r = 0; r < (kRows == 1 ? 1 : pass.rows); ++r) {
          float c[8][4];
          if constexpr (kHopper) {
            DotsOfRow(a, shared.queries[r], c);
          } else {
            DotsOfRowPortable(a, shared.queries[r], lane, c);
          }
          write([&](int j, int i) { return c[j][i]; }, r);
        }
      } else {
#pragma unroll 1
        for (int r = 0; r < pass.rows; r += 2) {
          float c[64];  // behind the last row is nothing that is looked at
          DotsOfRows(a, shared.queries[r], c);
#pragma unroll
          for (int second = 0; second < 2; ++second) {
            if (r + second < pass.rows) {
              write([&](int j, int i) { return c[second * 32 + j * 4 + i]; }, r + second);
            }
          }
        }
      }
    }
    n += tiles;
  }
  if constexpr (!kHopper) AwaitCopies<0>();
}

// Whether rows share key tiles: where sequences have several, but on GPUs whose blocks have 99 KB of shared
// memory. Then their queries come packed.
inline bool RowsShare(const KernelContext& ctx, const Indexing& args) {
  const int capability = DeviceOf(ctx).capability();
  return args.turn_rows > args.num_sequences && capability != 86 && capability != 89;
}

// `queries` as PackQueryKernel makes them, if rows share tiles.
template <bool kHopper>
void LaunchPackedScores(const KernelContext& ctx, const Indexing& args, const uint16_t* queries) {
  const int sms = DeviceOf(ctx).num_sms();
  const int64_t tiles = args.stride / kTileKeys;
  const dim3 blocks(static_cast<unsigned>(std::min<int64_t>(sms, tiles * args.turn_rows)));
  const auto launch = [&]<int kRows, int kGroups>() {
    Launch(ctx, PackedScoresKernel<kRows, kGroups, kHopper>, blocks, 128 * kGroups,
           ScoresShared<kRows, kGroups>::Bytes(args.num_sequences), args, queries);
  };
  if (RowsShare(ctx, args)) {
    // The more rows, the more queries a block waits for before it begins.
    if (kHopper && tiles > sms) {
      launch.template operator()<kHopper ? 8 : 4, 3>();
    } else {
      launch.template operator()<4, 3>();
    }
  } else {
    launch.template operator()<1, kHopper ? 4 : 3>();
  }
}

}  // namespace foresight::cuda
