// Attention of one chunk of a row's list and up to 64 heads by a cluster of blocks, for few rows (sm_90a):
// entries of 512 values, packed. The arithmetic is BlockAttention's.
//
// A panel of a chunk is a number of whole blocks of keys. In a panel, a thread block multiplies the
// queries with its share of the keys, in all dims, and the probabilities with all keys, in its slices of
// dims. In between the thread blocks send one another the largest logits of their pieces of key blocks, then
// probabilities. Two warpgroups multiply, two gather and decode.
#include "kernels/attention/attention_hopper.h"
#include "kernels/attention/key_list.cuh"
#include "kernels/attention/key_tile.cuh"
#include "kernels/attention/output_tile.cuh"
#include "kernels/attention/query_tile.cuh"
#include "kernels/cuda/barriers.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/exponential.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace foresight::cuda {
namespace {

constexpr int kPanelThreads = 512;
constexpr int kMultiplyTiles = 6;  // of a warpgroup
constexpr int kPieces = 4;         // of key blocks, in a share: two of each warpgroup

// For clusters of kCluster blocks and kHeads heads. Products are of 64 rows: rows beyond the heads' are what
// lies behind, and go nowhere.
template <int kCluster, int kHeads>
struct PanelSpace {
  static constexpr int kShareTiles = 10;  // of 8 keys, of a thread block
  static constexpr int kTiles = kCluster * kShareTiles;
  static constexpr int kKeys = 8 * kTiles;
  static constexpr int kBlocks = kTiles / 8;
  static constexpr int kSlices = 8 / kCluster;                     // of the output
  static constexpr bool kKeepsQueries = kCluster * kHeads <= 256;  // else probabilities take their place
  static constexpr int kQuerySlice = kHeads * kTileRowBytes;
  static constexpr int kQueryBytes = 8 * kQuerySlice;
  static constexpr int kProbabilityTile = 8 * kHeads * 2;  // bytes, of 8 keys
  static constexpr int kProbabilityBytes = kTiles * kProbabilityTile;

  std::byte q_and_p[kKeepsQueries ? kQueryBytes + kProbabilityBytes
                                  : (kQueryBytes > kProbabilityBytes ? kQueryBytes : kProbabilityBytes)];
  union {  // values take the place of the keys once these are multiplied
    std::byte keys[8][8 * kShareTiles * kTileRowBytes];
    std::byte values[kSlices][kKeys * kTileRowBytes];
  };
  float4 tops[2][kCluster][2][kHeads / 2];  // of panels in turn, pieces' largest logits: TopsOf
  float sums[kTiles / 2][kHeads];           // of 16 keys
  float factors[kBlocks][kHeads];
  float sinks[kHeads];
  float maxima[2][kBlocks + 1][kHeads];  // where the panel starts and up to each block, of each warpgroup
  float all_max[kHeads];
  float all_sum[2][kHeads];
  float turns[2][32];  // cosines and sines
  const std::byte* entries[kKeys];
  uint32_t present[kKeys / 32];
  TransferBarrier queries_here;
  TransferBarrier tops_here;
  TransferBarrier weights_here;

  // Where in a warpgroup's those of heads h and h + 8 lie: of its first piece, then of its second one.
  __device__ static int TopsOf(int h) { return h / 16 * 8 + h % 8; }

  __device__ std::byte* q() { return q_and_p; }
  __device__ std::byte* p() { return q_and_p + (kKeepsQueries ? kQueryBytes : 0); }
};

// What the blocks of a cluster give one another by way of memory, from where each piece goes to all of them
// at once: copies from one shared memory to each of the others take five times as long. A piece is written
// anew when the block has got its own copy, after which nothing reads it here.
template <int kCluster, int kHeads>
struct alignas(16) PanelExchange {
  using Space = PanelSpace<kCluster, kHeads>;
  std::byte q[Space::kQueryBytes];
  std::byte p[Space::kProbabilityBytes];
  float sums[Space::kTiles / 2][kHeads];
};

// A panel of a chunk, and how it is shared.
struct Panel {
  int first_block;
  int blocks;
  int end_block;  // of the chunk
  int share;      // tiles of a thread block, an even number

  __device__ int tiles() const { return 8 * blocks; }
  __device__ int Begin(int rank) const { return min(share * rank, tiles()); }
  __device__ int Count(int rank) const { return min(share, tiles() - Begin(rank)); }
  // The block of keys that a piece belongs to; pieces with nothing in them have a neighbour's.
  __device__ int BlockOf(int rank, int piece) const {
    const int last_tile = max(Begin(rank) + Count(rank), 1) - 1;
    const int first = Begin(rank) + piece / 2 * kMultiplyTiles;
    return min(piece % 2 == 0 ? first : first + kMultiplyTiles - 1, last_tile) / 8;
  }
};

template <int kCluster>
__device__ inline Panel PanelAt(int block, int end_block) {
  const int blocks = min(end_block - block, PanelSpace<kCluster, 64>::kBlocks);
  return {block, blocks, end_block, 2 * ((4 * blocks + kCluster - 1) / kCluster)};
}

// A chunk's first panel; one without blocks if the list has fewer chunks.
template <int kCluster>
__device__ inline Panel FirstPanel(const ListBlocks& list, int chunk) {
  return PanelAt<kCluster>(list.ChunkBegin(chunk), list.ChunkBegin(chunk + 1));
}

// To the panel behind `panel`. False: there is none.
template <int kCluster>
__device__ inline bool Advance(Panel& panel) {
  const int block = panel.first_block + panel.blocks;
  if (block == panel.end_block) return false;
  panel = PanelAt<kCluster>(block, panel.end_block);
  return true;
}

// The third and fourth warpgroup's part.
template <int kCluster, int kHeads>
class PanelGatherer {
 public:
  using Space = PanelSpace<kCluster, kHeads>;
  static constexpr int kThreads = 256;
  static constexpr int kGroups = kThreads / 8;  // eight threads take a key
  static constexpr int kFinds = (Space::kKeys + kThreads - 1) / kThreads;
  static constexpr int kOwn = (8 * Space::kShareTiles + kGroups - 1) / kGroups;
  static constexpr int kValueKeys = Space::kKeys / kGroups;

  __device__ PanelGatherer(int rank, Space& space) : space_(space), rank_(rank) {}

  // Sends for picks before it is known where they belong.
  __device__ void FetchPicks(const Attending& args, int row) {
    if (args.compressed != CompressedKeys::kPicked) return;
    const int32_t* picks = args.picks + static_cast<int64_t>(row) * args.topk;
#pragma unroll
    for (int n = 0; n < kFinds; ++n) {
      picks_[n] = picks[min(n * kThreads + static_cast<int>(threadIdx.x) % kThreads, args.topk - 1)];
    }
  }

  // Finds the panel's keys and sends for this block's share of them.
  __device__ void FetchKeys(const KeyList<64>& list, const Panel& panel) {
    const bool first = panel.first_block == 0;
    const int raw = 64 * list.raw_blocks;
    int places[kFinds], finds[kFinds], compressed[kFinds];
    const std::byte* entries[kFinds];
#pragma unroll
    for (int n = 0; n < kFinds; ++n) {
      int i = n * kThreads + static_cast<int>(threadIdx.x) % kThreads;
      compressed[n] = -1;
      if (first && list.args.compressed == CompressedKeys::kPicked) {
        // Thread i has pick i: the list is walked from the first compressed key, then from its beginning.
        if (i < list.num_compressed) compressed[n] = picks_[n];
        if (i < Space::kKeys) i = (i + raw) % Space::kKeys;
      } else {
        compressed[n] = list.CompressedEntry(panel.first_block * 64 + i);
      }
      places[n] = i;
      finds[n] = panel.first_block * 64 + i;
    }
    list.Find(finds, compressed, entries);
    const std::byte* const some = list.Entry(0);  // absent keys' weights are zero
#pragma unroll
    for (int n = 0; n < kFinds; ++n) {
      const int i = places[n];
      if (i >= 64 * panel.blocks) continue;  // whole warps
      space_.entries[i] = entries[n] != nullptr ? entries[n] : some;
      const uint32_t mask = __ballot_sync(0xffffffff, entries[n] != nullptr);
      if (i % 32 == 0) space_.present[i / 32] = mask;
    }
    GroupBarrier<2>(kThreads);
    const int keys = 8 * panel.Count(rank_);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int key = group_ + kGroups * i;
      // What isn't loaded is set, or else the panel before would seem to be needed.
      const bool has_key = key < keys;
      const std::byte* entry = space_.entries[has_key ? 8 * panel.Begin(rank_) + key : 0];
      LoadIf(has_key, entry + 448 + 128, scales_[i]);
#pragma unroll
      for (int slice = 0; slice < 7; ++slice) {
        LoadIf(has_key, entry + 64 * slice + 8 * part_, codes_[i][slice]);
      }
      LoadIf(has_key, entry + 448 + 16 * part_, rotary_[i][0]);
      LoadIf(has_key, entry + 448 + 16 * part_ + 8, rotary_[i][1]);
    }
  }

  __device__ void StoreKeys(const Panel& panel) {
    uint32_t scales = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) scales |= scales_[i].x | scales_[i].y;
    if (AreSmallScales(scales)) {
      StoreKeys<true>(panel);
    } else {
      StoreKeys<false>(panel);
    }
  }

  // Sends for the values of all keys in this block's slices, and stores them. Of rotary ones, which are twice
  // as large, half are sent for ahead.
  __device__ void FetchValues(const Panel& panel) {
    const int keys = 64 * panel.blocks;
#pragma unroll
    for (int i = 0; i < (kValueKeys + 7) / 8; ++i) {  // a thread has the scales of every eighth key
      const int key = group_ + kGroups * (8 * i + part_);
      value_scales_[i] = 0;
      if (key >= keys) continue;
      const std::byte* from = space_.entries[key] + 576 + Space::kSlices * rank_;
      value_scales_[i] = Space::kSlices == 1 ? *reinterpret_cast<const uint8_t*>(from)
                                             : *reinterpret_cast<const uint16_t*>(from);
    }
#pragma unroll
    for (int s = 0; s < Space::kSlices; ++s) {
      const int slice = Space::kSlices * rank_ + s;
      if (slice < 7) {
#pragma unroll
        for (int i = 0; i < kValueKeys; ++i) {
          const int key = group_ + kGroups * i;
          LoadIf(key < keys, space_.entries[key] + 64 * slice + 8 * part_, values_[i][s]);
        }
      } else {
        FetchRotary<0>(keys, s);
      }
    }
  }
  __device__ void StoreValues(const Panel& panel) {
    const int keys = 64 * panel.blocks;
#pragma unroll
    for (int s = 0; s < Space::kSlices; ++s) {
      const int slice = Space::kSlices * rank_ + s;
      if (slice < 7) {
        uint32_t scales = 0;
        for (const uint32_t scale : value_scales_) scales |= scale;
        if (!__any_sync(0xffffffff, !AreSmallScales(scales))) {
          StoreCoded<true>(keys, s);
        } else {
          StoreCoded<false>(keys, s);
        }
      } else {
        StoreRotary<0>(keys, s);
        FetchRotary<kValueKeys / 2>(keys, s);
        StoreRotary<kValueKeys / 2>(keys, s);
      }
    }
  }

 private:
  template <bool kSmallScales>
  __device__ static uint4 Decode(uint2 codes, uint32_t scale) {
    return kSmallScales ? DecodeSmallE4M3(codes, scale) : DecodeE4M3(codes, scale);
  }

  template <bool kSmallScales>
  __device__ void StoreKeys(const Panel& panel) {
    const int keys = 8 * panel.Count(rank_);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int key = group_ + kGroups * i;
      if (key >= keys) continue;
#pragma unroll
      for (int slice = 0; slice < 7; ++slice) {
        const uint32_t scale = (slice < 4 ? scales_[i].x : scales_[i].y) >> (8 * (slice % 4)) & 0xff;
        *reinterpret_cast<uint4*>(ChunkOf(space_.keys[slice], key, part_)) =
            Decode<kSmallScales>(codes_[i][slice], scale);
      }
      *reinterpret_cast<uint4*>(ChunkOf(space_.keys[7], key, part_)) = {rotary_[i][0].x, rotary_[i][0].y,
                                                                        rotary_[i][1].x, rotary_[i][1].y};
    }
  }

  template <bool kSmallScales>
  __device__ void StoreCoded(int keys, int s) {
#pragma unroll
    for (int i = 0; i < kValueKeys; ++i) {
      const int key = group_ + kGroups * i;
      if (key >= keys) continue;  // whole warps
      const uint32_t word = __shfl_sync(0xffffffff, value_scales_[i / 8], i % 8, 8);
      *reinterpret_cast<uint4*>(ChunkOf(space_.values[s], key, part_)) =
          Decode<kSmallScales>(values_[i][s], word >> (8 * s) & 0xff);
    }
  }

  // Rotary values of half of the keys, from the thread's key kFirst on.
  template <int kFirst>
  __device__ void FetchRotary(int keys, int s) {
#pragma unroll
    for (int i = 0; i < kValueKeys / 2; ++i) {
      const int key = group_ + kGroups * (kFirst + i);
      const std::byte* from = space_.entries[key] + 448 + 16 * part_;
      LoadIf(key < keys, from, values_[2 * i][s]);
      LoadIf(key < keys, from + 8, values_[2 * i + 1][s]);
    }
  }
  template <int kFirst>
  __device__ void StoreRotary(int keys, int s) {
#pragma unroll
    for (int i = 0; i < kValueKeys / 2; ++i) {
      const int key = group_ + kGroups * (kFirst + i);
      if (key >= keys) continue;
      const uint2 a = values_[2 * i][s], b = values_[2 * i + 1][s];
      *reinterpret_cast<uint4*>(ChunkOf(space_.values[s], key, part_)) = {a.x, a.y, b.x, b.y};
    }
  }

  Space& space_;
  const int rank_;
  const int group_ = threadIdx.x % kThreads / 8;
  const int part_ = threadIdx.x % 8;
  uint2 codes_[kOwn][7];
  uint2 rotary_[kOwn][2];
  uint2 scales_[kOwn];
  uint2 values_[kValueKeys][Space::kSlices];
  uint32_t value_scales_[(kValueKeys + 7) / 8];
  int32_t picks_[kFinds];
};

// The queries of a row and its heads from `first_head` on, by two warpgroups.
template <int kHeads>
__device__ inline void StoreQueries(const Attending& args, int row, int first_head, std::byte* q) {
  LoadQueries<1, 1, true>(args, row, first_head, kHeads, {q, kHeads * kTileRowBytes, 0}, threadIdx.x / 32, 8);
  FenceForProducts();
}

// The same by all blocks of a cluster, each of which has some heads.
template <int kCluster, int kHeads>
__device__ inline void ShareQueries(const Attending& args, int row, int first_head, int rank,
                                    PanelExchange<kCluster, kHeads>& exchange,
                                    PanelSpace<kCluster, kHeads>& space) {
  using Space = PanelSpace<kCluster, kHeads>;
  constexpr int kOwn = kHeads / kCluster;
  constexpr int kAtOnce = kOwn < 8 ? 1 : kOwn / 8;
  const int warp = threadIdx.x / 32;
  if (threadIdx.x == 0) space.queries_here.Expect(Space::kQueryBytes);
  LoadQueries<1, kAtOnce, true>(args, row, first_head, kOwn * (rank + 1), {exchange.q, Space::kQuerySlice, 0},
                                kOwn * rank + warp, 8);
  FenceForFetches();
  GroupBarrier<1>(256);
  ClusterWait();
  if (threadIdx.x % 32 == 0) {
    const int at = warp * Space::kQuerySlice + kOwn * rank * kTileRowBytes;
    space.queries_here.FetchForAll(space.q() + at, exchange.q + at, kOwn * kTileRowBytes, kCluster);
  }
  __syncwarp();
}

template <int kCluster, int kHeads>
__global__ void __launch_bounds__(kPanelThreads, 1)
    PanelAttention(Attending args, PanelExchange<kCluster, kHeads>* exchanges) {
  using Space = PanelSpace<kCluster, kHeads>;
  extern __shared__ __align__(1024) std::byte shared[];
  Space& space = *reinterpret_cast<Space*>(shared);
  if (threadIdx.x == 0) {
    space.queries_here.Init();
    space.tops_here.Init();
    space.weights_here.Init();
  }
  __syncwarp();
  ClusterArrive();  // awaited before the first transfer to another block
  Prepare(args, blockIdx.y);
  LoadArgument(exchanges);
  LoadArgument(args.chunk_sums.values);
  AwaitInputs();
  constexpr int kAll = kPanelThreads;
  constexpr int kMultiplying = 256;
  constexpr int kGatherRegisters = kCluster == 4 ? 136 : 144;  // that neither side spills
  const int rank = ClusterRank();
  const int row = blockIdx.y;
  const int chunk = blockIdx.z;
  const int first_head = blockIdx.x / kCluster * kHeads;
  const int warpgroup = threadIdx.x / 128;
  if (warpgroup >= 2) {
    TakeRegisters<kGatherRegisters>();  // which waits for those that the others give up
    PanelGatherer<kCluster, kHeads> gatherer(rank, space);
    gatherer.FetchPicks(args, row);
    const SequenceRows sequence = SequenceAtOnce(args, row);
    const KeyList<64> list(args, sequence, row);
    Panel panel = FirstPanel<kCluster>(list, chunk);
    if (panel.blocks == 0) {
      ClusterWait();
      return;
    }
    const int thread = threadIdx.x % 256;
    // Threads of the third warpgroup add up a head's weights, of one half of each block of keys.
    const int half = thread / kHeads;
    const int head = thread % kHeads;
    float now_sum = 0;
    gatherer.FetchKeys(list, panel);
    if (thread < 64) {
      space.turns[thread / 32][thread % 32] = (thread < 32 ? args.cos : args.sin)[row * 32 + thread % 32];
    }
    ClusterWait();  // where the other warps do: racecheck takes it for a barrier
#pragma unroll 1
    while (true) {
      gatherer.StoreKeys(panel);
      FenceForProducts();
      GroupBarrier<3>(kAll);  // the keys are there
      gatherer.FetchValues(panel);
      GroupBarrier<4>(kAll);  // the keys are multiplied
      gatherer.StoreValues(panel);
      FenceForProducts();
      GroupBarrier<5>(kAll);  // values and weights are there
      const int blocks = panel.blocks;
      const bool more = Advance<kCluster>(panel);
      if (more) gatherer.FetchKeys(KeyList<64>(args, WarpSequenceOf(args, row), row), panel);
      if (half < 2) {
#pragma unroll 2
        for (int b = 0; b < blocks; ++b) {
          const float own =
              __fadd_rn(space.sums[4 * b + 2 * half][head], space.sums[4 * b + 2 * half + 1][head]);
          now_sum = __fmaf_rn(now_sum, space.factors[b][head], own);
        }
        if (!more) space.all_sum[half][head] = now_sum;
        FenceForRefill();  // of sums
      }
      if (!more) ClusterArriveRelaxed();
      GroupBarrier<6>(kAll);  // the panel is done
      if (!more) break;
    }
    ClusterWait();
    return;
  }

  GiveUpRegisters<256 - kGatherRegisters>();
  PanelExchange<kCluster, kHeads>& exchange =
      exchanges[((chunk * gridDim.y + row) * gridDim.x + blockIdx.x) / kCluster];
  ShareQueries<kCluster, kHeads>(args, row, first_head, rank, exchange, space);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int t = lane % 4;
  const int h = 16 * (warp % 4) + lane / 4;
  Panel panel;
  bool is_whole;
  {
    const SequenceRows sequence = SequenceAtOnce(args, row);
    const KeyList<64> list(args, sequence, row);
    panel = FirstPanel<kCluster>(list, chunk);
    is_whole = list.chunks() == 1;
  }
  if (panel.blocks == 0) {
    space.queries_here.Wait(0);  // which are on their way
    return;
  }
  constexpr int kColumns = 256 / kCluster;  // of a warpgroup's output
  const uint64_t q_at = OperandAt(space.q());
  const uint64_t keys_at = OperandAt(&space.keys[0][8 * kMultiplyTiles * kTileRowBytes * warpgroup]);
  const uint64_t p_at = MatricesAt(space.p(), Space::kProbabilityTile);
  const bool has_heads = h < kHeads;  // else the thread's rows of products are nothing
  const int h_or_other = h % kHeads;
  const uint64_t values_at =
      OperandAt(&space.values[Space::kSlices == 1 ? 0 : warpgroup][Space::kSlices == 1 ? warpgroup * 64 : 0]);
  if (has_heads && lane < 16) {  // 16 heads a warp, in both warpgroups
    const int r = 16 * (warp % 4) + lane;
    const float sink = first_head + r < args.heads ? SinkLogit(args, first_head + r) : 0;
    if (warpgroup == 0) space.sinks[r] = sink;
    space.maxima[warpgroup][0][r] = chunk == 0 ? fmaxf(sink, kLowest) : kLowest;
  }
  float o[kColumns / 2] = {};
  bool first = true;  // panel
  uint32_t parity = 0;
#pragma unroll 1
  while (true) {
    const int own_begin = panel.Begin(rank);
    const int own_tiles = panel.Count(rank);
    if (threadIdx.x == 0) {
      space.tops_here.Expect(sizeof(space.tops[0]));
      space.weights_here.Expect(panel.tiles() * (Space::kProbabilityTile + kHeads * 2));
    }
    if (!Space::kKeepsQueries && !first) {
      StoreQueries<kHeads>(args, row, first_head, space.q());
    }
    if (first) {
      space.queries_here.Wait(0);
    } else {
      GroupBarrier<1>(kMultiplying);  // as many barriers as those that gather (barriers.cuh)
    }
    first = false;
    GroupBarrier<3>(kAll);  // the keys are there

    float s[4 * kMultiplyTiles];
    {
      const uint64_t queries = Shared(q_at);
      const uint64_t keys = Shared(keys_at);
      float halves[2][4 * kMultiplyTiles];
      WarpgroupFence();
#pragma unroll
      for (int k = 0; k < 4 * kHalfSlices; ++k) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int slice = kHalfSlices * half + k / 4;
          const uint64_t a = Further(queries, slice * Space::kQuerySlice + k % 4 * 32);
          const uint64_t b = Further(keys, slice * static_cast<int>(sizeof(space.keys[0])) + k % 4 * 32);
          if (k == 0) {
            WarpgroupMma<false>(halves[half], a, b);
          } else {
            WarpgroupMma<true>(halves[half], a, b);
          }
        }
      }
      EndProducts();
      AwaitProducts<0>(halves[0]);
      AwaitProducts<0>(halves[1]);
      GroupArrive<4>(kAll);  // the keys are multiplied
#pragma unroll
      for (int i = 0; i < 4 * kMultiplyTiles; ++i) s[i] = __fadd_rn(halves[0][i], halves[1][i]);
    }
    const int tile = own_begin + kMultiplyTiles * warpgroup;  // the first of this warpgroup's
    const int own = min(max(own_tiles - kMultiplyTiles * warpgroup, 0), kMultiplyTiles);
    // Shares and pieces are pairs of tiles. Those in the block of keys that the first one is in:
    const int in_first = 8 - tile % 8;
    // Which keys are there, those of tile j in byte j.
    uint64_t present = 0;
    const uint64_t all_present = own > 0 ? ~uint64_t{0} >> (64 - 8 * own) : 0;
    if (own > 0) {
      const uint32_t* words = &space.present[tile / 4];
      const int last = (tile + own - 1) / 4 - tile / 4;
      present = (uint64_t{words[min(1, last)]} << 32 | words[0]) >> (8 * (tile % 4));
      if (tile % 4 != 0 && last == 2) present |= uint64_t{words[2]} << (64 - 8 * (tile % 4));
      present &= all_present;
    }
    if (present != all_present) {
      present >>= 2 * t;
#pragma unroll
      for (int i = 0; i < 4 * kMultiplyTiles; ++i) {
        if (!(present >> (i / 4 * 8 + i % 2) & 1)) s[i] = -INFINITY;
      }
    }
    float top[2][2] = {{-INFINITY, -INFINITY}, {-INFINITY, -INFINITY}};  // [pieces, rows]
#pragma unroll
    for (int j = 0; j < kMultiplyTiles; j += 2) {
      if (j >= own) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* x = &s[4 * j + 2 * half];
        const float most = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[4], x[5]));
        top[0][half] = fmaxf(top[0][half], j < in_first ? most : -INFINITY);
        top[1][half] = fmaxf(top[1][half], j < in_first ? -INFINITY : most);
      }
    }
#pragma unroll
    for (int piece = 0; piece < 2; ++piece) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& x = top[piece][half];
        x = __fmul_rn(x, args.scale);
        x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
        x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
      }
    }
    if (has_heads) {
      const float4 four = {top[0][0], top[0][1], top[1][0], top[1][1]};
#pragma unroll
      for (int to = 0; to < kCluster; to += 4) {
        space.tops_here.Store(to + t, &space.tops[parity][rank][warpgroup][Space::TopsOf(h)],
                              reinterpret_cast<const uint4&>(four));
      }
    }
    space.tops_here.Wait(parity);

    // The maxima up to all blocks of keys, then probabilities and 16 keys' sums of them.
    float(&maxima)[Space::kBlocks + 1][kHeads] = space.maxima[warpgroup];
    if (has_heads) {
      // A lane has a quarter of the pieces, of the heads h and h + 8.
      constexpr int kOfLane = kCluster * kPieces / 4;
      int block_of[kOfLane];
      float most[kOfLane][2];
#pragma unroll
      for (int i = 0; i < kOfLane; i += 2) {
        const int of = kCluster / 4 * t + i / kPieces;
        block_of[i] = panel.BlockOf(of, i % kPieces);
        block_of[i + 1] = panel.BlockOf(of, i % kPieces + 1);
        const float4 four = space.tops[parity][of][i % kPieces / 2][Space::TopsOf(h)];
        most[i][0] = four.x;
        most[i][1] = four.y;
        most[i + 1][0] = four.z;
        most[i + 1][1] = four.w;
      }
#pragma unroll
      for (int i = 1; i < kOfLane; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) most[i][half] = fmaxf(most[i][half], most[i - 1][half]);
      }
      float before[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float up_to = most[kOfLane - 1][half];
        const float one = __shfl_up_sync(0xffffffff, up_to, 1, 4);
        if (t >= 1) up_to = fmaxf(up_to, one);
        const float two = __shfl_up_sync(0xffffffff, up_to, 2, 4);
        if (t >= 2) up_to = fmaxf(up_to, two);
        const float start = maxima[0][h + 8 * half];
        before[half] = __shfl_up_sync(0xffffffff, up_to, 1, 4);
        before[half] = t == 0 ? start : fmaxf(before[half], start);
      }
      const int next_block = __shfl_down_sync(0xffffffff, block_of[0], 1, 4);
#pragma unroll
      for (int i = 0; i < kOfLane; ++i) {
        const bool ends =
            i + 1 < kOfLane ? block_of[i + 1] != block_of[i] : t == 3 || next_block != block_of[i];
        if (!ends) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          maxima[block_of[i] + 1][h + 8 * half] = fmaxf(most[i][half], before[half]);
        }
      }
      __syncwarp();
      float tops[2][2];
#pragma unroll
      for (int piece = 0; piece < 2; ++piece) {
        const int block = panel.BlockOf(rank, 2 * warpgroup + piece);
#pragma unroll
        for (int half = 0; half < 2; ++half) tops[piece][half] = maxima[block + 1][h + 8 * half];
      }
#pragma unroll
      for (int j = 0; j < kMultiplyTiles; j += 2) {
        const bool inside = j < own;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float top = j < in_first ? tops[0][half] : tops[1][half];
          float sums[2];
#pragma unroll
          for (int odd = 0; odd < 2; ++odd) {
            const int at = tile + j + odd;
            const float* x = &s[4 * (j + odd) + 2 * half];
            const float p[2] = {Exp2(__fmaf_rn(x[0], args.scale, -top)),
                                Exp2(__fmaf_rn(x[1], args.scale, -top))};
            std::byte* to = exchange.p + at * Space::kProbabilityTile + (h + 8 * half) * 16;
            if (inside) reinterpret_cast<uint32_t*>(to)[t] = PackBf16(p[0], p[1]);
            sums[odd] = __fadd_rn(p[0], p[1]);
            sums[odd] += __shfl_xor_sync(0xffffffff, sums[odd], 1);
            sums[odd] += __shfl_xor_sync(0xffffffff, sums[odd], 2);
          }
          if (t == 0 && inside) exchange.sums[(tile + j) / 2][h + 8 * half] = __fadd_rn(sums[0], sums[1]);
        }
      }
    }
    FenceForFetches();
    GroupBarrier(1 + 6 * warpgroup, kMultiplying / 2);
    if (threadIdx.x % 128 == 0 && own > 0) {
      const int at = tile * Space::kProbabilityTile;
      space.weights_here.FetchForAll(space.p() + at, exchange.p + at, own * Space::kProbabilityTile,
                                     kCluster);
      space.weights_here.FetchForAll(space.sums[tile / 2], exchange.sums[tile / 2],
                                     own / 2 * static_cast<int>(sizeof(space.sums[0])), kCluster);
    }
    __syncwarp();
    if (has_heads) {  // 16 heads a warp, half of the blocks a warpgroup
      const int r = 16 * (warp % 4) + lane % 16;
      for (int b = 2 * warpgroup + lane / 16; b < panel.blocks; b += 4) {
        space.factors[b][r] = Exp2(maxima[b][r] - maxima[b + 1][r]);
      }
      const float now_max = maxima[panel.blocks][r];
      __syncwarp();
      if (lane < 16) {
        maxima[0][r] = now_max;
        if (threadIdx.x < 128) space.all_max[r] = now_max;
      }
    }
    space.weights_here.Wait(parity);
    parity ^= 1;
    GroupBarrier<5>(kAll);  // values and weights are there

#pragma unroll 1
    for (int b = 0; b < panel.blocks; ++b) {
      const float factors[2] = {space.factors[b][h_or_other], space.factors[b][h_or_other + 8]};
      AwaitProducts<0>(o);
#pragma unroll
      for (int i = 0; i < kColumns / 2; ++i) o[i] *= factors[i / 2 % 2];
      WarpgroupFence();
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        WarpgroupAddValues(o, Further(p_at, (8 * b + 2 * k) * Space::kProbabilityTile),
                           Further(values_at, (64 * b + 16 * k) * kTileRowBytes));
      }
      EndProducts();
    }
    AwaitProducts<0>(o);
    const bool more = Advance<kCluster>(panel);
    if (!more) ClusterArriveRelaxed();  // what this block sends has been awaited once all are here
    GroupBarrier<6>(kAll);              // the panel is done
    if (!more) break;
  }

  const int first_dim = 512 / kCluster * rank + kColumns * warpgroup;
  if (!is_whole) {
    if (has_heads) {
      StoreChunkValues(args, row, first_head + h, chunk, first_dim, o);
      if (rank == 0 && warpgroup == 0 && lane < 16) {
        const int r = 16 * (warp % 4) + lane;
        if (first_head + r < args.heads) {
          const int64_t at = args.chunk_sums.At(args, row, first_head + r, chunk);
          args.chunk_sums.maxima[at] = space.all_max[r];
          args.chunk_sums.weights[at] = {space.all_sum[0][r], space.all_sum[1][r]};
        }
      }
    }
    ClusterWait();
    return;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = h + 8 * half;
    if (!has_heads) continue;
    const float of_sink = Exp2(space.sinks[r] - space.all_max[r]);
    const float share = 1 / (space.all_sum[0][r] + space.all_sum[1][r] + of_sink);
    const int64_t at = (static_cast<int64_t>(row) * args.heads + first_head + r) * 512 + first_dim;
#pragma unroll
    for (int of_four = 0; of_four < kColumns / 8; of_four += 4) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = of_four + i;
        float2 v = {o[4 * n + 2 * half], o[4 * n + 2 * half + 1]};
        const int turn = (first_dim + 8 * n - 448) / 2 + t;
        if (turn >= 0) {
          v = OutputOf<true, Dims::kRotary>(v, share, space.turns[0][turn], space.turns[1][turn]);
        } else {
          v = OutputOf<true, Dims::kOthers>(v, share, 0, 0);
        }
        words[i] = PackBf16(v.x, v.y);
      }
      StoreWords(args, at + 8 * of_four, words, first_head + r < args.heads);
    }
  }
  ClusterWait();
}

template <int kCluster, int kHeads>
void LaunchPanels(const KernelContext& ctx, const Attending& attending) {
  const unsigned clusters = CeilDiv(attending.heads, kHeads);
  const unsigned chunks = attending.chunk_sums.chunks;
  ArenaScope scope(*ctx.scratch);
  auto* exchanges =
      ctx.scratch->Allocate<PanelExchange<kCluster, kHeads>>(int64_t{clusters} * attending.rows * chunks);
  LaunchClusters(ctx, PanelAttention<kCluster, kHeads>, kCluster,
                 dim3(clusters * kCluster, attending.rows, chunks), kPanelThreads,
                 sizeof(PanelSpace<kCluster, kHeads>), attending, exchanges);
}

}  // namespace

void LaunchPanelAttention(const KernelContext& ctx, const Attending& attending, int cluster, int heads) {
  if (cluster == 4) {
    LaunchPanels<4, 64>(ctx, attending);
  } else if (heads == 64) {
    LaunchPanels<8, 64>(ctx, attending);
  } else {
    LaunchPanels<8, 32>(ctx, attending);
  }
}

}  // namespace foresight::cuda
