// Scores of packed keys on Hopper: products of bytes. Keys and queries that can't be bytes are multiplied as
// bf16 values. The bits are the same.
#include "kernels/cuda/barriers.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/indexer/byte_scores.cuh"
#include "kernels/indexer/packed_scores.cuh"
#include "kernels/indexer/packed_scores_sm90a.h"

namespace foresight::cuda {
namespace {

constexpr int kTileBytes = kTileKeys * kPackedKeyBytes;

// Key tiles on their way to kGroups warpgroups, in a ring; tile i of a pass is warpgroup i % kGroups'.
template <int kGroups>
struct TileRing {
  static constexpr int kTiles = 4 * kGroups;

  uint8_t keys[kTiles][kTileBytes];
  TransferBarrier sent[kTiles];
  SharedBarrier read[kTiles];  // by the warps of a warpgroup

  // By a warp, before a barrier of the block.
  __device__ void Init(int lane) {
    if (lane < kTiles) {
      sent[lane].Init();
      read[lane].Init(4);
    }
  }
};

// A place in the ring and the parity of its use.
template <int kGroups>
struct TilePlace {
  int slot = 0;
  uint32_t parity = 0;  // the one of its use before is the other

  __device__ void Move(int tiles) {
    slot += tiles;
    while (slot >= TileRing<kGroups>::kTiles) {
      slot -= TileRing<kGroups>::kTiles;
      parity ^= 1;
    }
  }
};

// What rows that are multiplied by their values have instead: lanes 0 and 1 of each quad get the scores of
// keys g and g + 8 of a warp's.
__device__ float ScoreOfValues(const uint32_t (&keys)[8][4], const PackedQuery& query, int lane) {
  float sums[2] = {};  // of a lane's keys, eight apart
#pragma unroll 1
  for (int heads = 0; heads < kPackedHeads; heads += 8) {
    float c[4] = {};
#pragma unroll
    for (int step = 0; step < 8; ++step) {
      const uint16_t* pairs =
          query.values + QueryPlace(heads + lane / 4, 4 * (step - step % 2) + step % 2 * 2) + lane % 4 * 2;
      MmaBf16(c, keys[step], *reinterpret_cast<const uint32_t*>(pairs),
              *reinterpret_cast<const uint32_t*>(pairs + 8 * kPackedHeads));
    }
    const float2 weight = *reinterpret_cast<const float2*>(query.weights.of_values + heads + lane % 4 * 2);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sums[half] += weight.x * (c[2 * half] + fabsf(c[2 * half]));
      sums[half] += weight.y * (c[2 * half + 1] + fabsf(c[2 * half + 1]));
    }
  }
  return SumOfQuad(sums[0], sums[1], lane);
}

// Shared memory of a block: queries, keys on their way, and ScoreShare's.
template <int kRows, int kGroups>
struct ByteScoresShared {
  uint8_t bytes[kRows][kByteQueryBytes];  // in pairs, rows side by side
  QueryWeights weights[kRows];
  TileRing<kGroups> ring;
  int ends[1];  // and more

  static size_t Bytes(int num_sequences) {
    return sizeof(ByteScoresShared) + static_cast<size_t>(num_sequences) * sizeof(int);
  }
};

// What the fetching warp does at a pass: `place` is that of its first tile.
template <int kGroups>
__device__ void FetchTiles(const ScorePass& pass, const PagedView& view, int visible,
                           TilePlace<kGroups> place, TileRing<kGroups>& ring, int lane) {
  const std::byte* blocks = nullptr;  // of 32 tiles
#pragma unroll 1
  for (int tile = pass.tile; tile < pass.tile_end; ++tile, place.Move(1)) {
    // In every cache of the engine a block holds a tile, and its keys begin at a multiple of 16 bytes. Others
    // are copied word by word.
    const std::byte* from = nullptr;
    if (view.per_block == kTileKeys) {
      const int i = (tile - pass.tile) % 32;
      if (i == 0 && tile + lane < pass.tile_end) blocks = view.blocks[tile + lane] + view.offset;
      from =
          reinterpret_cast<const std::byte*>(__shfl_sync(0xffffffff, reinterpret_cast<uint64_t>(blocks), i));
      if (reinterpret_cast<uintptr_t>(from) % 16 != 0) from = nullptr;
    }
    ring.read[place.slot].Wait(place.parity ^ 1);
    if (from == nullptr) {
      const int first = tile * kTileKeys;
      CopyKeys(ring.keys[place.slot], view, first, min(visible - first, kTileKeys), lane);
    }
    if (lane == 0) {
      ring.sent[place.slot].Expect(from != nullptr ? kTileBytes : 0);
      if (from != nullptr) ring.sent[place.slot].Fetch(ring.keys[place.slot], from, kTileBytes);
    }
    __syncwarp();
  }
}

// By kGroups warpgroups and a warp. Up to kRows rows of a sequence share the key tiles that a block reads;
// their queries are `queries`, PackQueryKernel's.
template <int kRows, int kGroups>
__global__ void __launch_bounds__(128 * kGroups + 32, 1)
    ByteScoresKernel(Indexing args, const PackedQuery* queries) {
  constexpr int kThreads = 128 * kGroups;
  extern __shared__ __align__(128) uint8_t memory[];
  auto& shared = *reinterpret_cast<ByteScoresShared<kRows, kGroups>*>(memory);
  const int warp = threadIdx.x / 32;
  int lane = threadIdx.x % 32;
  asm volatile("" : "+r"(lane));  // kept, for asking again takes long
  if (warp == 4 * kGroups) shared.ring.Init(lane);
  __syncthreads();
  AwaitInputs();
  ScoreShare<kRows> share(args, shared.ends);
  TilePlace<kGroups> place;  // of the pass's first tile
  for (ScorePass pass; share.Next(pass);) {
    const SequenceRows& sequence = args.sequences[pass.sequence];
    const uint32_t seen =  // by the first row
        static_cast<uint32_t>(sequence.first_position - sequence.first_row + 1 + pass.first_row);
    const int tiles = pass.tile_end - pass.tile;
    if (warp == 4 * kGroups) {
      FetchTiles<kGroups>(pass, sequence.cache.index_keys,
                          static_cast<int>((seen + pass.rows - 1) / args.kRatio), place, shared.ring, lane);
      place.Move(tiles);
      continue;
    }
    const int turn_row = pass.first_row - args.first_row;
    GroupBarrier<1>(kThreads);  // the last pass needs its queries no more
    uint32_t wide_rows = 0;     // bits: those that can't be bytes
#pragma unroll 1
    for (int r = 0; r < pass.rows; ++r) {
      const PackedQuery& from = queries[turn_row + r];
      uint8_t* bytes = shared.bytes[r / 2 * 2] + r % 2 * kByteStepBytes / 2;
#pragma unroll 1
      for (int at = threadIdx.x * 16; at < kByteQueryBytes; at += kThreads * 16) {
        CopyAsync<16>(bytes + PlaceInPair(at), from.bytes + at, true);
      }
      CopyToShared<kThreads>(&shared.weights[r], &from.weights, sizeof(from.weights));
    }
    EndCopies();
    AwaitCopies<0>();
    FenceForProducts();
    GroupBarrier<1>(kThreads);
    for (int r = 0; r < pass.rows; ++r) {  // those that need no scores have no query
      const bool is_scored = static_cast<int>((seen + r) / args.kRatio) > args.topk;
      wide_rows |= static_cast<uint32_t>(is_scored && shared.weights[r].IsWide()) << r;
    }

    const int own = lane / 4 + lane % 2 * 8;  // of the warp's keys, that the lane stores
    TilePlace<kGroups> at = place;
    at.Move(warp / 4);
#pragma unroll 1
    for (int tile = pass.tile + warp / 4; tile < pass.tile_end; tile += kGroups, at.Move(kGroups)) {
      const int key = tile * kTileKeys + warp % 4 * kWarpKeys;
      // Of row r + t / 2, of keys g and g + 8.
      const auto write = [&](int r, float score) {
        const int own_row = r + lane % 4 / 2;
        const int visible = static_cast<int>((seen + own_row) / args.kRatio) - key;  // of the warp's keys
        const bool stores = own < visible && own_row < pass.rows;
        const int64_t to = (turn_row + own_row) * args.stride + key;
        if (stores) args.scores[to + own] = score;
        const float largest = LargestOfHalves(stores ? score : -INFINITY);
        if (own == 0 && stores) args.maxima[to / kMaximumOf] = largest;
      };
      shared.ring.sent[at.slot].Wait(at.parity);
      const uint8_t* keys = shared.ring.keys[at.slot] + warp % 4 * kWarpTileBytes;
      const KeyScales scales(
          *reinterpret_cast<const uint32_t*>(keys + lane % kWarpKeys * kPackedKeyBytes + kPackedDim / 2));
      const bool wide = __any_sync(0xffffffff, scales.wide);
      const float scale = ScaleOfSums(__shfl_sync(0xffffffff, scales.top, lane / 4 + lane % 2 * 8));
      const ByteKeys bytes(keys + lane / 4 * kPackedKeyBytes + lane % 4 * 16, scales.shifts, 0, lane);
      const bool keeps = wide || wide_rows != 0;  // the keys, until values are multiplied
      const auto give_back = [&] {
        __syncwarp();
        if (lane == 0) shared.ring.read[at.slot].Arrive();
      };
      if (!keeps) give_back();
#pragma unroll 1
      for (int r = 0; r < pass.rows; r += 2) {
        uint32_t c[64];  // behind the last row is nothing that is looked at
        bytes.Multiply(MatricesAt(shared.bytes[r], kByteStepBytes), c);
        float2 weights[8];
        float sums[2][2];
        LoadWeights(weights, shared.weights[r], lane);
        SumOfHeads<0>(c, weights, sums[0]);
        LoadWeights(weights, shared.weights[r + 1], lane);
        SumOfHeads<32>(c, weights, sums[1]);
        write(r, scale * SumsOfQuad(sums, lane));
      }
      if (!keeps) continue;
      uint32_t values[8][4];
      DecodeKeys(keys, lane, values);
#pragma unroll 1
      for (int r = 0; r < pass.rows; r += 2) {
        if (!wide && (wide_rows >> r & 3) == 0) continue;
        float own_score = 0;
#pragma unroll 1
        for (int i = 0; i < min(pass.rows - r, 2); ++i) {
          const float score = ScoreOfValues(values, queries[turn_row + r + i], lane);
          if (i == lane % 4 / 2) own_score = score;
        }
        write(r, own_score);
      }
      give_back();
    }
    place.Move(tiles);
  }
}

constexpr int kRowGroups = 4;  // warpgroups that score a single row
constexpr int kUnitTiles = 2;  // the most that one of them takes at a time

// Shared memory of a block that scores single rows: a query, keys on their way, and ScoreShare's.
struct RowScoresShared {
  static constexpr int kUnits = 16;

  PackedQuery query;
  uint8_t keys[kUnits][kUnitTiles * kTileBytes];
  TransferBarrier sent[kUnits];
  int ends[1];  // and more

  static size_t Bytes(int num_sequences) {
    return sizeof(RowScoresShared) + static_cast<size_t>(num_sequences) * sizeof(int);
  }
};

// Each warpgroup takes a unit of one tile or, where there are enough, two tiles at a time; all units of a
// pass that fit are asked for before the first.
__global__ void __launch_bounds__(128 * kRowGroups, 1) RowScoresKernel(Indexing args) {
  constexpr int kGroups = kRowGroups;
  constexpr int kUnits = RowScoresShared::kUnits;
  static_assert(4 * kGroups * kHeadsOfWarp == kPackedHeads && 4 * kGroups == kUnits);
  extern __shared__ __align__(128) uint8_t memory[];
  auto& shared = *reinterpret_cast<RowScoresShared*>(memory);
  const int warp = threadIdx.x / 32;
  int lane = threadIdx.x % 32;
  asm volatile("" : "+r"(lane));  // kept, for asking again takes long
  if (warp == 0 && lane < kUnits) shared.sent[lane].Init();
  AwaitInputs();
  ScoreShare<1> share(args, shared.ends);
  uint32_t before = 0;  // units of the passes before
  for (ScorePass pass; share.Next(pass);) {
    const SequenceRows& sequence = args.sequences[pass.sequence];
    const PagedView view = sequence.cache.index_keys;
    const int visible = args.Visible(sequence, pass.first_row);
    const int tiles = pass.tile_end - pass.tile;
    const int unit_tiles = tiles > kGroups ? kUnitTiles : 1;
    const int units = (tiles + unit_tiles - 1) / unit_tiles;
    // Asks for the n-th unit of all, which begins with `tile`, by a warp.
    const auto ask = [&](uint32_t n, int tile) {
      const uint32_t slot = n % kUnits;
      const int count = min(unit_tiles, pass.tile_end - tile);
      // In every cache of the engine a block holds a tile, and its keys begin at a multiple of 16 bytes.
      // Others are copied word by word.
      const std::byte* from = nullptr;
      if (lane < count && view.per_block == kTileKeys) from = view.blocks[tile + lane] + view.offset;
      const bool whole =
          view.per_block == kTileKeys && __all_sync(0xffffffff, reinterpret_cast<uintptr_t>(from) % 16 == 0);
      if (!whole) {
        const int first = tile * kTileKeys;
        CopyKeys(shared.keys[slot], view, first, min(visible - first, count * kTileKeys), lane);
      }
      if (lane == 0) shared.sent[slot].Expect(whole ? count * kTileBytes : 0);
      __syncwarp();
      if (whole && lane < count) {
        shared.sent[slot].Fetch(shared.keys[slot] + lane * kTileBytes, from, kTileBytes);
      }
    };
    PackedHeads heads(args);
    heads.Load(pass.first_row, warp * kHeadsOfWarp);
    __syncthreads();  // the last pass needs its query and keys no more
    if (warp < units) ask(before + warp, pass.tile + warp * unit_tiles);
    heads.Pack();
    heads.StoreTo(shared.query);
    FenceForProducts();
    __syncthreads();
    const bool wide_query = shared.query.weights.IsWide();
    float2 weights[8];
    LoadWeights(weights, shared.query.weights, lane);
    const uint64_t query = MatricesAt(shared.query.bytes, kByteStepBytes / 2);
    const int turn_row = pass.first_row - args.first_row;
    float* scores = args.scores + turn_row * args.stride;
    float* maxima = args.maxima + turn_row * (args.stride / kMaximumOf);
    const int end = min(visible, pass.tile_end * kTileKeys);
    // Of the warp's keys of two tiles a lane looks at the scales of one, unpacks a block of two of each tile,
    // and stores the score of one.
    const int of_warp = warp % 4 * kWarpTileBytes;
    int scales_at = of_warp + lane / 16 * kTileBytes + lane % 16 * kPackedKeyBytes + kPackedDim / 2;
    int codes_at = of_warp + lane / 4 * kPackedKeyBytes + lane % 4 * 16;
    int own_scales = lane / 4 + lane % 2 * 8 + lane % 4 / 2 * 16;  // the lane that knows those of its score
    asm volatile("" : "+r"(scales_at), "+r"(codes_at), "+r"(own_scales), "+l"(scores), "+l"(maxima));
    int tile = pass.tile + warp / 4 * unit_tiles;
    int own = (tile + lane % 4 / 2) * kTileKeys + warp % 4 * kWarpKeys + lane / 4 + lane % 2 * 8;
    const int last_of_two = unit_tiles == 2 ? pass.tile_end - 1 : 0;
#pragma unroll 1
    for (uint32_t n = before + warp / 4; tile < pass.tile_end; n += kGroups) {
      const uint8_t* keys = shared.keys[n % kUnits];
      const bool two = tile < last_of_two;
      shared.sent[n % kUnits].Wait(n / kUnits % 2);
      const KeyScales scales(*reinterpret_cast<const uint32_t*>(keys + scales_at));
      const bool wide = wide_query || __any_sync(0xffffffff, scales.wide && (two || lane < 16));
      float sums[2][2] = {};
      const auto add_up = [&](int i) {
        uint32_t c[32];
        const ByteKeys bytes(keys + codes_at + i * kTileBytes, scales.shifts, i * 16, lane);
        bytes.Multiply(query, c);
        SumOfHeads<0>(c, weights, sums[i]);
      };
      add_up(0);
      if (two) add_up(1);
      const uint32_t own_top = __shfl_sync(0xffffffff, scales.top, own_scales);
      float score = ScaleOfSums(own_top) * SumsOfQuad(sums, lane);
      if (wide) {
#pragma unroll 1
        for (int i = 0; i < (two ? 2 : 1); ++i) {
          uint32_t values[8][4];
          DecodeKeys(keys + of_warp + i * kTileBytes, lane, values);
          const float of_values = ScoreOfValues(values, shared.query, lane);
          if (i == lane % 4 / 2) score = of_values;
        }
      }
      if (tile + kUnits * unit_tiles < pass.tile_end) {  // asked for when the warpgroup has read these
        GroupBarrier(1 + warp / 4, 128);
        if (warp % 4 == n / kGroups % 4) ask(n + kUnits, tile + kUnits * unit_tiles);
      }
      const bool stores = own < end && (two || lane % 4 < 2);
      if (stores) scores[own] = score;
      const float largest = LargestOfHalves(stores ? score : -INFINITY);
      if (lane % 2 == 0 && lane < 4 && stores) maxima[own / kMaximumOf] = largest;
      tile += kGroups * unit_tiles;
      own += kGroups * unit_tiles * kTileKeys;
    }
    before += units;
  }
}

}  // namespace

void LaunchPackedScoresSm90a(const KernelContext& ctx, const Indexing& args, const PackedQuery* queries) {
  const dim3 blocks = ScoreBlocks(ctx, args);
  if (!RowsShare(ctx, args)) {
    return Launch(ctx, RowScoresKernel, blocks, 128 * kRowGroups, RowScoresShared::Bytes(args.num_sequences),
                  args);
  }
  const auto launch = [&]<int kRows, int kGroups>() {
    Launch(ctx, ByteScoresKernel<kRows, kGroups>, blocks, 128 * kGroups + 32,
           ByteScoresShared<kRows, kGroups>::Bytes(args.num_sequences), args, queries);
  };
  // The more rows, the more queries a block waits for before it begins.
  if (args.stride / kTileKeys > DeviceOf(ctx).num_sms()) {
    launch.template operator()<8, 3>();
  } else {
    launch.template operator()<4, 3>();
  }
}

}  // namespace foresight::cuda
