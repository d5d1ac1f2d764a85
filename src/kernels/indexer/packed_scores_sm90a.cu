// Scores of packed keys on Hopper: products of bytes. Keys and queries that can't be bytes are multiplied as
// bf16 values, and so are those of caches whose tiles can't be fetched whole. The bits are the same.
#include "kernels/cuda/barriers.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/indexer/byte_scores.cuh"
#include "kernels/indexer/packed_scores.cuh"
#include "kernels/indexer/packed_scores_sm90a.h"

namespace foresight::cuda {
namespace {

constexpr int kTileBytes = kTileKeys * kPackedKeyBytes;

// In every cache of the engine a block holds a tile, and its keys begin at a multiple of 16 bytes. Only such
// tiles are fetched.
__device__ inline bool HoldsTiles(const PagedView& view) {
  return view.per_block == kTileKeys;
}
__device__ inline bool CanBeFetched(const std::byte* tile) {
  return reinterpret_cast<uintptr_t>(tile) % 16 == 0;
}

// Lanes 0 and 1 of each quad get the scores of keys g and g + 8 of a warp's, from their values.
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

// What the loops over tiles leave: scores of a warp's keys, from `key` on and before `end`, by their values,
// for a row of the turn. It reads keys where the cache has them, so it needs no more registers than the
// loops.
__device__ void ScoreByValues(const Indexing& args, const PagedView& view, const PackedQuery& query,
                              int turn_row, int key, int end, int lane) {
  if (key >= end) return;
  uint32_t values[8][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::byte* of_lane = ItemOf(view, min(key + lane / 4 + 8 * half, end - 1));
    DecodeKey(reinterpret_cast<const uint8_t*>(of_lane), half, lane, values);
  }
  const float score = ScoreOfValues(values, query, lane);
  const int own = key + lane / 4 + lane % 2 * 8;
  const bool stores = own < end && lane % 4 < 2;
  const int64_t row_at = turn_row * args.stride;
  if (stores) args.scores[row_at + own] = score;
  const float largest = LargestOfHalves(stores ? score : -INFINITY);
  if (lane == 0) args.maxima[(row_at + key) / kMaximumOf] = largest;
}

// Key tiles on their way to kGroups warpgroups, in a ring; tile i of a pass is warpgroup i % kGroups'.
template <int kGroups>
struct TileRing {
  static constexpr int kTiles = 4 * kGroups;

  uint8_t keys[kTiles][kTileBytes];
  TransferBarrier sent[kTiles];
  SharedBarrier read[kTiles];  // by the warps of a warpgroup
  bool unfetched;              // some tile that was waited for

  // By a warp, before a barrier of the block.
  __device__ void Init(int lane) {
    if (lane == 0) unfetched = false;
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

// What the fetching warp does at a pass: `place` is that of its first tile. Nobody waits for a tile that
// can't be fetched.
template <int kGroups>
__device__ void FetchTiles(const ScorePass& pass, const PagedView& view, TilePlace<kGroups> place,
                           TileRing<kGroups>& ring, int lane) {
  const std::byte* blocks = nullptr;  // of 32 tiles
#pragma unroll 1
  for (int tile = pass.tile; tile < pass.tile_end; ++tile, place.Move(1)) {
    const int i = (tile - pass.tile) % 32;
    if (i == 0 && tile + lane < pass.tile_end) blocks = view.blocks[tile + lane] + view.offset;
    const auto* from =
        reinterpret_cast<const std::byte*>(__shfl_sync(0xffffffff, reinterpret_cast<uint64_t>(blocks), i));
    ring.read[place.slot].Wait(place.parity ^ 1);
    if (lane == 0) {
      const bool fetches = CanBeFetched(from);
      if (!fetches) ring.unfetched = true;
      ring.sent[place.slot].Expect(fetches ? kTileBytes : 0);
      if (fetches) ring.sent[place.slot].Fetch(ring.keys[place.slot], from, kTileBytes);
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
    const PagedView view = sequence.cache.index_keys;
    const uint32_t seen =  // by the first row
        static_cast<uint32_t>(sequence.first_position - sequence.first_row + 1 + pass.first_row);
    const int tiles = HoldsTiles(view) ? pass.tile_end - pass.tile : 0;  // that are fetched
    if (warp == 4 * kGroups) {
      if (tiles > 0) FetchTiles(pass, view, place, shared.ring, lane);
      place.Move(tiles);
      continue;
    }
    const int turn_row = pass.first_row - args.first_row;
    GroupBarrier<1>(kThreads);  // the last pass needs its queries no more
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
    uint32_t wide_rows = 0;  // bits: those that can't be bytes
#pragma unroll 1
    for (int r = 0; r < pass.rows; ++r) {  // those that need no scores have no query
      const bool is_scored = static_cast<int>((seen + r) / args.kRatio) > args.topk;
      wide_rows |= static_cast<uint32_t>(is_scored && shared.weights[r].IsWide()) << r;
    }

    const int own = lane / 4 + lane % 2 * 8;  // of the warp's keys, that the lane stores
    uint32_t wide_turns = 0;                  // bits: those of 32 of the loop that had wide keys
    uint32_t turn = 1;
    TilePlace<kGroups> at = place;
    at.Move(warp / 4);
#pragma unroll 1
    for (int i = warp / 4; i < tiles; i += kGroups, at.Move(kGroups), turn = turn << 1 | turn >> 31) {
      const int key = (pass.tile + i) * kTileKeys + warp % 4 * kWarpKeys;
      shared.ring.sent[at.slot].Wait(at.parity);
      const uint8_t* keys = shared.ring.keys[at.slot] + warp % 4 * kWarpTileBytes;
      const KeyScales scales(
          *reinterpret_cast<const uint32_t*>(keys + lane % kWarpKeys * kPackedKeyBytes + kPackedDim / 2));
      if (__any_sync(0xffffffff, scales.wide)) wide_turns |= turn;
      const float scale = ScaleOfSums(__shfl_sync(0xffffffff, scales.top, lane / 4 + lane % 2 * 8));
      const ByteKeys bytes(SharedAddress(keys + lane / 4 * kPackedKeyBytes + lane % 4 * 16),
                           8 * kPackedKeyBytes, scales.shifts, 0, lane);
      FenceForRefill();
      __syncwarp();
      if (lane == 0) shared.ring.read[at.slot].Arrive();
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
        const float score = scale * SumsOfQuad(sums, lane);
        const int own_row = r + lane % 4 / 2;
        const int visible = static_cast<int>((seen + own_row) / args.kRatio) - key;  // of the warp's keys
        const bool stores = own < visible && own_row < pass.rows;
        const int64_t to = (turn_row + own_row) * args.stride + key;
        if (stores) args.scores[to + own] = score;
        const float largest = LargestOfHalves(stores ? score : -INFINITY);
        if (own == 0 && stores) args.maxima[to / kMaximumOf] = largest;
      }
    }
    place.Move(tiles);

    if (tiles == 0 || shared.ring.unfetched) wide_turns = ~0u;
    if ((wide_turns | wide_rows) == 0) continue;
    __syncwarp();  // scores are written once more, by other lanes
#pragma unroll 1
    for (int r = 0; r < pass.rows; ++r) {
      const uint32_t turns = (wide_rows >> r & 1) != 0 ? ~0u : wide_turns;
      const int visible = static_cast<int>((seen + r) / args.kRatio);
      int turn_of_tile = 0;
#pragma unroll 1
      for (int i = warp / 4; i < pass.tile_end - pass.tile; i += kGroups, ++turn_of_tile) {
        if ((turns >> turn_of_tile % 32 & 1) == 0) continue;
        ScoreByValues(args, view, queries[turn_row + r], turn_row + r,
                      (pass.tile + i) * kTileKeys + warp % 4 * kWarpKeys, visible, lane);
      }
    }
  }
}

constexpr int kRowGroups = 4;  // warpgroups that score a single row
constexpr int kRowTiles = 6;   // of a warp on their way: three turns of two

// A warp's keys of a tile, in fours with a gap, so that the lanes that read eight keys read other banks.
constexpr int kFourKeysBytes = 320;
constexpr int kSpacedBytes = kWarpKeys / 4 * kFourKeysBytes;

// Where what is at `at` of a warp's keys lies then. Copies of 16 bytes don't reach from one four to another.
__device__ inline int SpacedPlace(int at) {
  constexpr int kBytes = 4 * kPackedKeyBytes;
  return at + at / kBytes * (kFourKeysBytes - kBytes);
}

// Shared memory of a block that scores single rows: a query, keys on their way, ScoreShare's, and what the
// loop over tiles has no registers for.
struct RowScoresShared {
  PackedQuery query;
  uint8_t keys[4 * kRowGroups][kRowTiles][kSpacedBytes];  // of a warp, which copies them for itself
  int4 share;
  ScorePass pass;
  PagedView view;
  uint32_t by_values[4 * kRowGroups];  // bits of a warp: of 32 of its tiles those that bytes don't do for
  int ends[1];                         // and more

  static size_t Bytes(int num_sequences) {
    return sizeof(RowScoresShared) + static_cast<size_t>(num_sequences) * sizeof(int);
  }
};

// Tile i of a pass is warpgroup i % kRowGroups', which takes two at a turn.
__global__ void __launch_bounds__(128 * kRowGroups, 1) RowScoresKernel(Indexing args) {
  constexpr int kGroups = kRowGroups;
  constexpr int kPackers = kPackedHeads / kHeadsOfWarp;  // warps that pack
  extern __shared__ __align__(128) uint8_t memory[];
  auto& shared = *reinterpret_cast<RowScoresShared*>(memory);
  const int warp = threadIdx.x / 32;
  int lane = threadIdx.x % 32;
  asm volatile("" : "+r"(lane));  // kept, for asking again takes long
  AwaitInputs();
  Touch(args.sequences);
  PackedHeads heads(args);
  // The only row of the only sequence is known before the sequence is.
  const bool alone = args.num_sequences == 1 && args.turn_rows == 1;
  if (alone) heads.Load(args.first_row, warp * kHeadsOfWarp);
  PagedView view = args.sequences->cache.index_keys;  // of the first sequence, asked for early
  asm volatile("" : "+l"(view.blocks));
  ScoreShare<1> share(args, shared.ends);
  ScorePass pass;
  if (!share.Next(pass)) return;
  if (!alone) heads.Load(pass.first_row, warp * kHeadsOfWarp);
  if (pass.sequence > 0) view = args.sequences[pass.sequence].cache.index_keys;
  for (;;) {
    const int visible = args.Visible(args.sequences[pass.sequence], pass.first_row);
    // The warp's tiles, if bytes do for any.
    int tiles = HoldsTiles(view) ? (pass.tile_end - pass.tile + kGroups - 1 - warp / 4) / kGroups : 0;
    // The warp's keys of its tile `lane`; later of one that comes next.
    const std::byte* from = nullptr;
    if (lane < min(tiles, kRowTiles)) from = view.blocks[pass.tile + warp / 4 + lane * kGroups];
    if (warp < kPackers) heads.Transform();  // while that comes
    if (from != nullptr) from += view.offset + warp % 4 * kWarpTileBytes;
    if (__any_sync(0xffffffff, !CanBeFetched(from))) tiles = 0;
    uint8_t* const keys = shared.keys[warp][0];
    uint32_t lane_to[3];
#pragma unroll
    for (int j = 0; j < 3; ++j) lane_to[j] = SharedAddress(keys) + SpacedPlace((lane + 32 * j) * 16);
    // Begins to copy to `place` what is at lane l's `from`.
    const auto copy = [&](int place, int l) {
      const auto* of_lane =
          reinterpret_cast<const std::byte*>(__shfl_sync(0xffffffff, reinterpret_cast<uint64_t>(from), l)) +
          lane * 16;
      StreamAsync(lane_to[0] + place, of_lane);
      StreamAsync(lane_to[1] + place, of_lane + 32 * 16);
      if (lane < kWarpTileBytes / 16 - 64) StreamAsync(lane_to[2] + place, of_lane + 64 * 16);
    };
    // Tiles of turns [first, end). Who copies waits while memory has enough to do, so those of the first turn
    // alone are asked for before the query is packed.
    const auto copy_turns = [&](int first, int end) {
#pragma unroll
      for (int i = 2 * first; i < 2 * end; ++i) {
        if (i < tiles) copy(i * kSpacedBytes, i);
        if (i % 2 == 1) EndCopies();
      }
    };
    copy_turns(0, 1);
    if (lane == 0) shared.by_values[warp] = 0;
    if (threadIdx.x == 0) {
      shared.share = share.state();
      shared.pass = pass;
      shared.view = view;
    }
    if (warp < kPackers) {
      heads.Round();
      heads.StoreTo(shared.query);
    }
    FenceForProducts();
    __syncthreads();
    copy_turns(1, kRowTiles / 2);
    float2 weights[8];
    LoadWeights(weights, shared.query.weights, lane);
    const uint64_t query = MatricesAt(shared.query.bytes, kByteStepBytes / 2);
    // Of the warp's keys of two tiles a lane looks at the scales of one, unpacks a block of two of each tile,
    // and stores the score of one.
    uint32_t scales_at = SharedAddress(keys) + lane / 16 * kSpacedBytes +
                         SpacedPlace(lane % 16 * kPackedKeyBytes) + kPackedDim / 2;
    uint32_t codes_at = SharedAddress(keys) + SpacedPlace(lane / 4 * kPackedKeyBytes) + lane % 4 * 16;
    uint32_t own_scales = lane / 4 + lane % 2 * 8 + lane % 4 / 2 * 16;  // the lane that knows its score's
    asm volatile("" : "+r"(scales_at), "+r"(codes_at), "+r"(own_scales));
    const uint32_t row_at = (pass.first_row - args.first_row) * static_cast<uint32_t>(args.stride);
    uint32_t own = row_at + (pass.tile + warp / 4 + lane % 4 / 2 * kGroups) * kTileKeys +
                   warp % 4 * kWarpKeys + lane / 4 + lane % 2 * 8;
    const uint32_t own_end = row_at + min(visible, pass.tile_end * kTileKeys);
    int place = 0;  // of the first of two tiles
#pragma unroll 1
    for (int i = 0; i < tiles; i += 2, own += 2 * kGroups * kTileKeys) {
      const bool two = i + 1 < tiles;
      AwaitCopies<kRowTiles / 2 - 1>();
      __syncwarp();
      const KeyScales scales(LoadShared1(scales_at + place));
      if (__any_sync(0xffffffff, scales.wide && (two || lane < 16)) && lane == 0) {
        shared.by_values[warp] |= 3u << i % 32;
      }
      // Lanes 0 and 1 ask where the tiles lie that come next in the places of these.
      const int next = i + kRowTiles;
      from = nullptr;
      if (lane < min(tiles - next, 2)) {
        from = shared.view.blocks[shared.pass.tile + warp / 4 + (next + lane) * kGroups];
      }
      float sums[2][2] = {};
      const auto add_up = [&](int second) {
        const ByteKeys bytes(codes_at + place + second * kSpacedBytes, 2 * kFourKeysBytes, scales.shifts,
                             second * 16, lane);
        uint32_t c[32];
        uint32_t low = static_cast<uint32_t>(query);
        asm volatile("" : "+r"(low));  // else it is kept for each step in registers that products can't use
        bytes.Multiply(Shared(query >> 32 << 32 | low), c);
        SumOfHeads<0>(c, weights, sums[second]);
      };
      add_up(0);
      if (two) add_up(1);
      if (next < tiles) {
        if (from != nullptr) from += shared.view.offset + warp % 4 * kWarpTileBytes;
        __syncwarp();  // these were read
        if (__any_sync(0xffffffff, !CanBeFetched(from))) {
          if (lane == 0) shared.by_values[warp] |= 3u << next % 32;
        } else {
          copy(place, 0);
          if (next + 1 < tiles) copy(place + kSpacedBytes, 1);
        }
      }
      EndCopies();
      place = place == (kRowTiles - 2) * kSpacedBytes ? 0 : place + 2 * kSpacedBytes;
      const uint32_t own_top = __shfl_sync(0xffffffff, scales.top, own_scales);
      const float score = ScaleOfSums(own_top) * SumsOfQuad(sums, lane);
      const bool stores = own < own_end && (two || lane % 4 < 2);
      if (stores) args.scores[own] = score;
      const float largest = LargestOfHalves(stores ? score : -INFINITY);
      if (lane % 2 == 0 && lane < 4 && stores) args.maxima[own / kMaximumOf] = largest;
    }

    __syncwarp();  // scores may be written once more, by other lanes
    pass = shared.pass;
    const uint32_t by_values = tiles == 0 || shared.query.weights.IsWide() ? ~0u : shared.by_values[warp];
    if (by_values != 0) {
      const int end = args.Visible(args.sequences[pass.sequence], pass.first_row);
      int i = 0;
#pragma unroll 1
      for (int tile = pass.tile + warp / 4; tile < pass.tile_end; tile += kGroups, ++i) {
        if ((by_values >> i % 32 & 1) == 0) continue;
        ScoreByValues(args, shared.view, shared.query, pass.first_row - args.first_row,
                      tile * kTileKeys + warp % 4 * kWarpKeys, end, lane);
      }
    }
    share.Resume(shared.share);
    if (!share.Next(pass)) break;
    heads.Load(pass.first_row, warp * kHeadsOfWarp);
    view = args.sequences[pass.sequence].cache.index_keys;
    __syncthreads();  // the pass before needs its query no more
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
