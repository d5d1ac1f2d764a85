// Attention of one row and 64 heads by a cluster of two blocks (sm_90a): entries of 512 values, packed. The
// arithmetic is BlockAttention's.
//
// A block has one half of the dims: of the queries, of the keys and, since these are the values too, of the
// output. Of each block of keys both multiply their halves and send one another the sums of half of the
// heads; each goes on from logits to probabilities for the other half, and sends these.
//
// Two warpgroups multiply. They take blocks of keys in turn up to the probabilities, so that one multiplies
// while the other weighs, and each adds all blocks' values in half of the thread block's dims. Two more
// gather and decode the blocks of keys to come.
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

constexpr int kPairHeads = 64;
constexpr int kPairThreads = 512;
constexpr int kMultiplying = 256;  // threads
constexpr int kGathering = 256;
constexpr int kLeastBlocks = 2;  // of keys, in a chunk: each warpgroup takes one, be all its keys absent

// What clusters do: items, each of them a row and 64 of its heads. Where lists have several chunks, each
// chunk is an item of its own, all rows' first ones first.
struct PairWork {
  int items;
  int lists;  // rows times head_groups
  int head_groups;
};

// What the peer sends for a block of keys it sends where that leads in here, and nothing is overwritten that
// is still needed. Let n be a block that a warpgroup takes, and the other one takes n - 1 and n + 1:
// - Logits of block n + 2 take the place of block n's. The peer sends them once it has all probabilities of
//   block n, which a thread sends after it has read its logits.
// - Probabilities and factors of block n + 4 take the place of block n's. The peer makes them when it has all
//   logits of blocks n + 3 and n + 4, which a thread sends when its products with the probabilities of block
//   n are done; this block itself when both warpgroups have come as far.
// - Squares and shares come once in an item. The peer gets there after it has this block's logits of the
//   item's last blocks, or of the item before, which a thread sends after it has read what came before.
// No phase of a barrier ends before all have seen the end of the last one: who arrives for the probabilities
// of block n has awaited those of block n - 1.
struct PairSpace {
  static constexpr int kTiles = 4;  // blocks of keys that are here

  std::byte q[kHalfSlices][kPairHeads * kTileRowBytes];
  std::byte keys[kTiles][kHalfSlices][64 * kTileRowBytes];
  std::byte p[2][2][kPairHeads * kTileRowBytes];  // of each warpgroup's blocks in turn
  uint4 logits[2][4][128];                        // the peer's sums, of each warpgroup, 16 of each thread
  alignas(8) uint8_t present[kTiles][8];          // which keys of the tiles are there, a bit for each
  float factors[2][2][kPairHeads];                // of what was before a block
  float maxima[2][kPairHeads];                    // up to each warpgroup's last block
  float sums[2][2][kPairHeads];                   // of weights up to that, of each half of blocks
  float squares[kPairHeads];                      // of the peer's half of the queries
  float shares[kPairHeads];                       // 1 / the sum of weights
  float turns[2][32];                             // cosines and sines
  SharedBarrier full[kTiles];
  SharedBarrier empty[kTiles];
  SharedBarrier maxima_here[2];  // of each warpgroup's blocks in turn
  TransferBarrier logits_here[2];
  TransferBarrier weights_here[2];
  TransferBarrier squares_here;
  TransferBarrier shares_here;
};
static_assert(sizeof(PairSpace) <= 232448);  // what a block may have

// The third and fourth warpgroup's part: this block's half of the keys of all items into the tiles in turn. A
// warp has eight keys of each block of keys, which it finds, gathers and decodes by itself, each a step
// ahead of the next one: what it asks memory for arrives while it does something else.
template <int kRank, bool kDivided>
class PairGatherer {
 public:
  __device__ PairGatherer(const Attending& args, const PairWork& work, PairSpace& space)
      : args_(args), work_(work), space_(space) {}

  __device__ void Run() {
    NextBlock();
    LoadKeys();
    Advance();
#pragma unroll 1
    for (int count = 0; present_ >= 0; ++count) {
      const int tile = count % PairSpace::kTiles;
      const int present = present_;
      NextBlock();
      space_.empty[tile].Wait(count / PairSpace::kTiles % 2 ^ 1);
      // One branch for all, so that their instructions may mix.
      if (AreSmallScales(scales_[0] | scales_[1])) {
        StoreKeys<true>(tile);
      } else {
        StoreKeys<false>(tile);
      }
      if (lane_ == 0) space_.present[tile][warp_] = static_cast<uint8_t>(present);
      FenceForProducts();  // which would wait for loads
      space_.full[tile].Arrive();
      LoadKeys();
      Advance();
    }
  }

 private:
  // Keys are found in groups of up to four blocks: a lane has key lane % 8 of the warp's in block lane / 8.
  static constexpr int kGroupBlocks = 4;
  static constexpr int kCodedSlices = kRank == 0 ? 4 : 3;  // the last one is rotary

  __device__ int Row() const {
    return (kDivided ? item_ % work_.lists : item_) / work_.head_groups;
  }
  __device__ int Key() const {
    return 64 * (next_block_ + lane_ / 8) + 8 * warp_ + lane_ % 8;
  }

  // A step towards the next group.
  __device__ void Advance() {
    if (step_ == 0) {
      BeginGroup();
    } else if (step_ == 1) {
      FindGroup();
    }
    ++step_;
  }
  // The first step: its picks are sent for.
  __device__ void BeginGroup() {
    next_block_ += next_blocks_;
    const bool fresh = next_block_ == end_;  // it is another item's
#pragma unroll 1
    while (true) {
      if (fresh) {
        item_ += static_cast<int>(gridDim.x / 2);
        next_blocks_ = 0;
        if (item_ >= work_.items) return;
        sequence_ = &WarpSequenceOf(args_, Row());
      }
      const KeyList<64> list(args_, *sequence_, Row());
      if (fresh) {
        const int chunk = item_ / work_.lists;
        next_block_ = kDivided ? list.ChunkBegin(chunk) : 0;
        end_ = kDivided ? list.ChunkBegin(chunk + 1) : list.blocks();
        if (next_block_ == end_) continue;
        end_ = max(end_, next_block_ + kLeastBlocks);
      }
      // Raw keys are found sooner than others: they are groups of their own.
      const int end = next_block_ < list.raw_blocks ? min(list.raw_blocks, end_) : end_;
      next_blocks_ = min(kGroupBlocks, end - next_block_);
      compressed_ = list.CompressedEntry(Key());
      return;
    }
  }
  // The second: items of block tables are sent for.
  __device__ void FindGroup() {
    base_ = nullptr;
    offset_ = 0;
    if (next_blocks_ == 0) return;
    const KeyList<64> list(args_, *sequence_, Row());
    if (next_block_ < list.raw_blocks) {
      base_ = list.Entry(Key(), -1);
    } else if (compressed_ >= 0) {
      const PagedView& pages = sequence_->cache.compressed;
      const uint32_t i = static_cast<uint32_t>(compressed_);
      const uint32_t per_block = static_cast<uint32_t>(pages.per_block);
      base_ = pages.blocks[i / per_block];
      offset_ = static_cast<uint32_t>(pages.offset + i % per_block * pages.item_bytes);
    }
  }

  // To the next block of all.
  __device__ void NextBlock() {
    if (at_ == blocks_) {
#pragma unroll 1
      while (step_ < 2) Advance();
      step_ = 0;
      entry_ = base_ == nullptr ? nullptr : base_ + offset_;
      blocks_ = next_blocks_;
      at_ = 0;
      if (blocks_ == 0) {
        present_ = -1;
        entries_[0] = entries_[1] = nullptr;
        return;
      }
    }
    present_ = static_cast<int>(__ballot_sync(0xffffffff, entry_ != nullptr) >> (8 * at_) & 0xff);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      entries_[i] = reinterpret_cast<const std::byte*>(
          __shfl_sync(0xffffffff, reinterpret_cast<unsigned long long>(entry_), 8 * at_ + 4 * i + lane_ / 8));
    }
    ++at_;
  }

  // Of the block, eight threads take a key, four keys at a time: a thread has eight values of each slice.
  __device__ void LoadKeys() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::byte* const entry = entries_[i];
      const bool there = entry != nullptr;
      LoadIf(there, entry + 576 + 4 * kRank, scales_[i]);
#pragma unroll
      for (int slice = 0; slice < kCodedSlices; ++slice) {
        LoadIf(there, entry + 256 * kRank + 64 * slice + 8 * (lane_ % 8), codes_[i][slice]);
      }
      if constexpr (kRank == 1) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          LoadIf(there, entry + 448 + 16 * (lane_ % 8) + 8 * half, rotary_[i][half]);
        }
      }
    }
  }
  template <bool kSmallScales>
  __device__ void StoreKeys(int tile) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      std::byte* const to = ChunkOf(space_.keys[tile][0], 8 * warp_ + 4 * i + lane_ / 8, lane_ % 8);
#pragma unroll
      for (int slice = 0; slice < kCodedSlices; ++slice) {
        const uint32_t scale = __byte_perm(scales_[i], 0, 0x4440 + slice);
        *reinterpret_cast<uint4*>(to + slice * sizeof(space_.keys[0][0])) =
            kSmallScales ? DecodeSmallE4M3(codes_[i][slice], scale) : DecodeE4M3(codes_[i][slice], scale);
      }
      if constexpr (kRank == 1) {
        *reinterpret_cast<uint4*>(to + 3 * sizeof(space_.keys[0][0])) = {rotary_[i][0].x, rotary_[i][0].y,
                                                                         rotary_[i][1].x, rotary_[i][1].y};
      }
    }
  }

  const Attending& args_;
  const PairWork& work_;
  PairSpace& space_;
  const int lane_ = threadIdx.x % 32;
  const int warp_ = threadIdx.x / 32 % 8;

  // The block that is being gathered: which of the warp's keys are there, -1 behind the last block.
  int present_ = -1;
  const std::byte* entries_[2];
  uint2 codes_[2][kCodedSlices];
  uint2 rotary_[2][2];
  uint32_t scales_[2];

  // Its group.
  const std::byte* entry_ = nullptr;
  int blocks_ = 0;
  int at_ = 0;  // of its blocks, the next one

  // The group after it, in the list of `item_`, which ends at block end_.
  int item_ = static_cast<int>(blockIdx.x / 2) - static_cast<int>(gridDim.x / 2);
  const SequenceRows* sequence_ = nullptr;
  int end_ = 0;
  int next_block_ = 0;
  int next_blocks_ = 0;
  int compressed_ = -1;
  int step_ = 0;  // how far it is found
  const std::byte* base_ = nullptr;
  uint32_t offset_ = 0;
};

// This block's half of the queries of a row and 64 heads, by the warps that multiply; the squares of both
// halves make a head's norm. LoadQueries has the same arithmetic. `meanwhile` runs while they arrive.
template <typename Meanwhile>
__device__ inline void LoadHalfQueries(const Attending& args, int row, int first_head, int rank,
                                       uint32_t parity, PairSpace& space, const Meanwhile& meanwhile) {
  constexpr int kWarps = kMultiplying / 32;
  constexpr int kEach = kPairHeads / kWarps;
  static_assert(kEach == 8);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) space.squares_here.Expect(sizeof(space.squares));
  float x[kEach][8] = {};
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int head = first_head + warp + kWarps * i;
    if (head >= args.heads) continue;
    LoadQuery<true>(args, (int64_t{row} * args.heads + head) * 512 + 256 * rank + 8 * lane, x[i]);
  }
  const bool rotary = rank == 1 && lane >= 24;
  float cos[4] = {}, sin[4] = {};
  if (rotary) {
    const int at = row * 32 + 4 * (lane - 24);
    *reinterpret_cast<float4*>(cos) = *reinterpret_cast<const float4*>(args.cos + at);
    *reinterpret_cast<float4*>(sin) = *reinterpret_cast<const float4*>(args.sin + at);
  }
  float turn = 0;
  if (threadIdx.x < 64) turn = (threadIdx.x < 32 ? args.cos : args.sin)[int64_t{row} * 32 + lane];
  meanwhile();
  if (threadIdx.x < 64) space.turns[threadIdx.x / 32][lane] = turn;
  float squares[kEach] = {};
#pragma unroll
  for (int k = 0; k < 8; ++k) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) squares[i] = __fmaf_rn(x[i][k], x[i][k], squares[i]);
  }
  // Half of the lanes go on with half of the heads, until four lanes have one.
#pragma unroll
  for (int count = kEach / 2; count > 0; count /= 2) {
    const int other = 4 * count;
    const bool upper = (lane & other) != 0;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const float given = upper ? squares[i] : squares[count + i];
      squares[i] = (upper ? squares[count + i] : squares[i]) + __shfl_xor_sync(0xffffffff, given, other);
    }
  }
  float sum = squares[0];  // of the head whose number is the upper bits of the lane's
  sum += __shfl_xor_sync(0xffffffff, sum, 2);
  sum += __shfl_xor_sync(0xffffffff, sum, 1);
  float* const of_peer = &space.squares[warp + kWarps * (lane / 4)];
  if (lane % 4 == 0) space.squares_here.Store(rank ^ 1, of_peer, sum);
  space.squares_here.Wait(parity);
  const float own_rinv = rsqrtf(__fmaf_rn(sum + *of_peer, 1.0f / 512, args.query_eps));
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const float rinv = __shfl_sync(0xffffffff, own_rinv, 4 * i);
    float* v = x[i];
#pragma unroll
    for (int k = 0; k < 8; ++k) v[k] = __fmul_rn(v[k], rinv);
    if (rotary) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float2 turned = Turned({v[2 * k], v[2 * k + 1]}, cos[k], sin[k]);
        v[2 * k] = turned.x;
        v[2 * k + 1] = turned.y;
      }
    }
    *reinterpret_cast<uint4*>(ChunkOf(space.q[lane / 8], warp + kWarps * i, lane % 8)) = {
        PackBf16(v[0], v[1]), PackBf16(v[2], v[3]), PackBf16(v[4], v[5]), PackBf16(v[6], v[7])};
  }
}

template <bool kDivided>
__global__ void __launch_bounds__(kPairThreads, 1) PairAttention(Attending args, PairWork work) {
  extern __shared__ __align__(1024) std::byte shared[];
  PairSpace& space = *reinterpret_cast<PairSpace*>(shared);
  constexpr int kTiles = PairSpace::kTiles;
  const int rank = ClusterRank();
  const int peer = rank ^ 1;
  const int first_item = blockIdx.x / 2;
  const int clusters = gridDim.x / 2;
  // The compiler must know that products don't lie on paths of some lanes alone.
  const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kTiles; ++i) {
      space.full[i].Init(kGathering);
      space.empty[i].Init(kMultiplying / 32);
    }
    for (int i = 0; i < 2; ++i) {
      space.maxima_here[i].Init(kMultiplying / 2);
      space.logits_here[i].Init();
      space.weights_here[i].Init(kMultiplying / 2);
    }
    space.squares_here.Init();
    space.shares_here.Init(kMultiplying / 2);
  }
  __syncwarp();
  ClusterArrive();
  Prepare(args, (kDivided ? first_item % work.lists : first_item) / work.head_groups);
  ClusterWait();  // the barriers are there

  if (warpgroup >= 2) {
    GiveUpRegisters<80>();
    AwaitInputs();
    if (rank == 0) {
      PairGatherer<0, kDivided>(args, work, space).Run();
    } else {
      PairGatherer<1, kDivided>(args, work, space).Run();
    }
    ClusterArriveRelaxed();
    ClusterWait();
    return;
  }

  TakeRegisters<176>();
  AwaitInputs();
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32 % 4;
  const int t = lane % 4;
  const int h = 16 * warp + lane / 4;  // of products' rows the thread has h and h + 8
  const int own_row = h + 8 * rank;    // the head whose logits come to it
  const uint64_t q_at = OperandAt(space.q);
  const uint64_t p_at = OperandAt(space.p);
  const uint64_t keys_at = OperandAt(space.keys[0][0]);
  const uint64_t values_at = OperandAt(space.keys[0][2 * warpgroup], sizeof(space.keys[0][0]));
  float o[64];
  // Blocks of keys that each warpgroup took in the items before. In an item warpgroup k % 2 takes block k.
  int even_taken = 0, odd_taken = 0;
  const auto tile_of = [&](int k) { return (even_taken + odd_taken + k) % kTiles; };
  const auto turn_of = [&](int k) { return ((k % 2 == 0 ? even_taken : odd_taken) + k / 2) % 2; };
  const auto release = [&](int k) {
    if (lane == 0) space.empty[tile_of(k)].Arrive();
  };
  float s[32];  // this block's halves of logits
  const auto multiply_keys = [&](int k) {
    const uint64_t queries = Shared(q_at);
    const uint64_t at = Shared(Further(keys_at, tile_of(k) * static_cast<int>(sizeof(space.keys[0]))));
    space.full[tile_of(k)].Wait((even_taken + odd_taken + k) / kTiles % 2);
    WarpgroupFence();
#pragma unroll
    for (int step = 0; step < 4 * kHalfSlices; ++step) {
      const int offset = step / 4 * static_cast<int>(sizeof(space.q[0])) + step % 4 * 32;
      if (step == 0) {
        WarpgroupMma<false>(s, Further(queries, offset), Further(at, offset));
      } else {
        WarpgroupMma<true>(s, Further(queries, offset), Further(at, offset));
      }
    }
    EndProducts();
  };
  float own[16];  // those of the own row
  // Those of the other row to the peer.
  const auto send_logits = [&](int k) {
    if (k >= 2) space.weights_here[warpgroup].Wait(turn_of(k - 2));  // the peer has read block k - 2's
    float other[16];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        own[2 * j + i] = rank == 0 ? s[4 * j + i] : s[4 * j + 2 + i];
        other[2 * j + i] = rank == 0 ? s[4 * j + 2 + i] : s[4 * j + i];
      }
    }
    TransferBarrier& here = space.logits_here[warpgroup];
    if (threadIdx.x % 128 == 0) here.Expect(sizeof(space.logits[0]));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      here.Store(peer, &space.logits[warpgroup][i][threadIdx.x % 128],
                 {__float_as_uint(other[4 * i]), __float_as_uint(other[4 * i + 1]),
                  __float_as_uint(other[4 * i + 2]), __float_as_uint(other[4 * i + 3])});
    }
  };

  uint32_t item_parity = 0;
  uint32_t share_parity = 0;
#pragma unroll 1
  for (int item = first_item; item < work.items; item += clusters) {
    const int row = (kDivided ? item % work.lists : item) / work.head_groups;
    const int first_head = item % work.head_groups * kPairHeads;
    const int chunk = kDivided ? item / work.lists : 0;
    if (kDivided && chunk >= KeyList<64>(args, WarpSequenceOf(args, row), row).chunks()) continue;
    GroupBarrier<1>(kMultiplying);  // nobody needs the last item's queries any more
    ListBlocks list;
    float sink = 0;
    LoadHalfQueries(args, row, first_head, rank, item_parity, space, [&] {
      list = KeyList<64>(args, WarpSequenceOf(args, row), row);
      if (first_head + own_row < args.heads) sink = SinkLogit(args, first_head + own_row);
    });
    item_parity ^= 1;
    FenceForProducts();
    GroupBarrier<1>(kMultiplying);

    float now_max = 0;  // up to the warpgroup's last block
    float now_sum = 0;  // the same, of the half of each block that is lane t % 2's
    float factor = 1;   // of what was before that block
    float pairs[8];     // sums of its probabilities, of two keys of each tile of 8
    // From logits to probabilities here and in the peer. `start` is the chunk's first maximum.
    const auto weigh_keys = [&](int k, float start) {
      const int turn = turn_of(k);
      const uint2 present = *reinterpret_cast<const uint2*>(space.present[tile_of(k)]);
      space.logits_here[warpgroup].Wait(turn);
      float x[16];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint4 theirs = space.logits[warpgroup][i][threadIdx.x % 128];
        x[4 * i] = __fadd_rn(own[4 * i], __uint_as_float(theirs.x));
        x[4 * i + 1] = __fadd_rn(own[4 * i + 1], __uint_as_float(theirs.y));
        x[4 * i + 2] = __fadd_rn(own[4 * i + 2], __uint_as_float(theirs.z));
        x[4 * i + 3] = __fadd_rn(own[4 * i + 3], __uint_as_float(theirs.w));
      }
      if ((present.x & present.y) != 0xffffffff) {
#pragma unroll
        for (int i = 0; i < 16; ++i) {
          if (!((i < 8 ? present.x : present.y) >> (i / 2 % 4 * 8 + i % 2 + 2 * t) & 1)) x[i] = -INFINITY;
        }
      }
      float tops[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) tops[i] = fmaxf(fmaxf(x[i], x[i + 4]), fmaxf(x[i + 8], x[i + 12]));
      float top = fmaxf(fmaxf(tops[0], tops[1]), fmaxf(tops[2], tops[3]));
      top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
      top = __fmul_rn(fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2)), args.scale);
      float before = start;
      if (k > 0) {
        space.maxima_here[warpgroup ^ 1].Wait(turn_of(k - 1));
        before = space.maxima[warpgroup ^ 1][own_row];
      }
      now_max = fmaxf(before, top);
      if (t == 0) space.maxima[warpgroup][own_row] = now_max;
      space.maxima_here[warpgroup].Arrive();
      factor = Exp2(before - now_max);
      uint32_t words[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float p[2] = {Exp2(__fmaf_rn(x[2 * j], args.scale, -now_max)),
                            Exp2(__fmaf_rn(x[2 * j + 1], args.scale, -now_max))};
        words[j] = PackBf16(p[0], p[1]);
        pairs[j] = __fadd_rn(p[0], p[1]);
      }
      // Of each half lane t gets tile t's eight keys.
      const bool odd = t % 2 != 0;
      const bool upper = t / 2 != 0;
      uint4 keys[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t* w = words + 4 * half;
        const uint32_t low = __shfl_xor_sync(0xffffffff, odd ? w[0] : w[1], 1);
        const uint32_t high = __shfl_xor_sync(0xffffffff, odd ? w[2] : w[3], 1);
        const uint2 lower_tile = {odd ? low : w[0], odd ? w[1] : low};
        const uint2 upper_tile = {odd ? high : w[2], odd ? w[3] : high};
        const uint2 kept = upper ? upper_tile : lower_tile;
        const uint2 given = upper ? lower_tile : upper_tile;
        const uint2 taken = {__shfl_xor_sync(0xffffffff, given.x, 2),
                             __shfl_xor_sync(0xffffffff, given.y, 2)};
        keys[half] =
            upper ? uint4{taken.x, taken.y, kept.x, kept.y} : uint4{kept.x, kept.y, taken.x, taken.y};
      }
      TransferBarrier& here = space.weights_here[warpgroup];
      std::byte* const to = space.p[warpgroup][turn];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        *reinterpret_cast<uint4*>(ChunkOf(to, own_row, 4 * half + t)) = keys[half];
      }
      float* const to_factor = &space.factors[warpgroup][turn][own_row];
      if (t == 0) *to_factor = factor;
      FenceForProducts();  // which would wait for what is sent to the peer
#pragma unroll
      for (int half = 0; half < 2; ++half) here.Store(peer, ChunkOf(to, own_row, 4 * half + t), keys[half]);
      if (t == 0) here.Store(peer, to_factor, factor);
    };
    // The weights of the warpgroup's last block: lane t gets tile t's sum of each half, then those with even
    // t the first half's sum.
    const auto add_weights = [&](int k, bool last) {
      const bool odd = t % 2 != 0;
      const bool upper = t / 2 != 0;
      float sums[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* p = pairs + 4 * half;
        const float low = (odd ? p[1] : p[0]) + __shfl_xor_sync(0xffffffff, odd ? p[0] : p[1], 1);
        const float high = (odd ? p[3] : p[2]) + __shfl_xor_sync(0xffffffff, odd ? p[2] : p[3], 1);
        sums[half] = (upper ? high : low) + __shfl_xor_sync(0xffffffff, upper ? low : high, 2);
      }
      float sum = (odd ? sums[1] : sums[0]) + __shfl_xor_sync(0xffffffff, odd ? sums[0] : sums[1], 1);
      sum += __shfl_xor_sync(0xffffffff, sum, 2);
      const float before = k > 0 ? space.sums[warpgroup ^ 1][t % 2][own_row] : 0;
      now_sum = __fmaf_rn(before, factor, sum);
      if (!last && t < 2) space.sums[warpgroup][t][own_row] = now_sum;
      TransferBarrier& here = space.weights_here[warpgroup];
      if (threadIdx.x % 128 == 0) {
        here.Expect(sizeof(space.p[0][0]) / 2 + sizeof(space.factors[0][0]) / 2);
      } else {
        here.Arrive();
      }
    };
    // When the products with the values before are done.
    const auto add_values = [&](int k) {
      const int of = k % 2;
      const int turn = turn_of(k);
      const uint64_t probabilities =
          Shared(Further(p_at, (2 * of + turn) * static_cast<int>(sizeof(space.p[0][0]))));
      const uint64_t at = Shared(Further(values_at, tile_of(k) * static_cast<int>(sizeof(space.keys[0]))));
      space.weights_here[of].Wait(turn);
      FenceForProducts();  // what the peer sent
      const float factors[2] = {space.factors[of][turn][h], space.factors[of][turn][h + 8]};
      if (__any_sync(0xffffffff, factors[0] != 1 || factors[1] != 1)) {
#pragma unroll
        for (int i = 0; i < 64; ++i) o[i] *= factors[i / 2 % 2];
      }
      WarpgroupFence();
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        WarpgroupAddValues(o, Further(probabilities, 32 * step), Further(at, 16 * kTileRowBytes * step));
      }
      EndProducts();
    };

    const int begin = kDivided ? list.ChunkBegin(chunk) : 0;
    const int end = kDivided ? list.ChunkBegin(chunk + 1) : list.blocks();
    const int blocks = __shfl_sync(0xffffffff, max(end - begin, kLeastBlocks), 0);
    const float start = chunk > 0 ? kLowest : fmaxf(sink, kLowest);
#pragma unroll
    for (float& x : o) x = 0;
    // A warpgroup adds the values of the blocks before its own one by one, some behind it: so none waits for
    // what is on its way from the peer.
    int k = warpgroup;
    multiply_keys(k);
    AwaitProducts<0>(s);
    send_logits(k);
    weigh_keys(k, start);
    if (k == 1) {
      add_values(0);
      AwaitProducts<0>(o);
      release(0);
    }
    add_weights(k, k + 1 == blocks);
#pragma unroll 1
    for (k += 2; k < blocks; k += 2) {
      multiply_keys(k);
      AwaitProducts<0>(s);
      send_logits(k);
      add_values(k - 2);
      weigh_keys(k, start);
      AwaitProducts<0>(o);
      release(k - 2);
      add_values(k - 1);
      add_weights(k, k + 1 == blocks);
      AwaitProducts<0>(o);
      release(k - 1);
    }

    const bool is_whole = !kDivided || list.chunks() == 1;
    if (warpgroup == (blocks - 1) % 2) {
      if (is_whole) {
        const float sum = now_sum + __shfl_xor_sync(0xffffffff, now_sum, 1) + Exp2(sink - now_max);
        const float share = 1 / sum;
        if (t == 0) {
          space.shares[own_row] = share;
          space.shares_here.Store(peer, &space.shares[own_row], share);
        }
        if (threadIdx.x % 128 == 0) {
          space.shares_here.Expect(sizeof(space.shares) / 2);
        } else {
          space.shares_here.Arrive();
        }
      } else if (t < 2) {
        const int head = first_head + own_row;
        const int64_t at = args.chunk_sums.At(args, row, head, chunk);
        if (head < args.heads) {
          reinterpret_cast<float*>(args.chunk_sums.weights + at)[t] = now_sum;
          if (t == 0) args.chunk_sums.maxima[at] = now_max;
        }
      }
    }
#pragma unroll 1
    for (k -= 2; k < blocks; ++k) {
      add_values(k);
      AwaitProducts<0>(o);
      release(k);
    }
    even_taken += (blocks + 1) / 2;
    odd_taken += blocks / 2;

    if (!is_whole) {
      StoreChunkValues(args, row, first_head + h, chunk, 256 * rank + 128 * warpgroup, o);
      continue;
    }
    space.shares_here.Wait(share_parity);
    share_parity ^= 1;
    const float shares[2] = {space.shares[h], space.shares[h + 8]};
    if (rank == 1 && warpgroup == 1) {
      StoreOutputs<true>(args, row, first_head + h, 384, o, shares, space.turns[0], space.turns[1]);
    } else {
      StoreOutputs<false>(args, row, first_head + h, 256 * rank + 128 * warpgroup, o, shares, nullptr,
                          nullptr);
    }
  }
  // The peer is done with what it sends here, and no longer looks at its own barriers here.
  ClusterArriveRelaxed();
  ClusterWait();
}

}  // namespace

void LaunchPairAttention(const KernelContext& ctx, const Attending& attending) {
  const int clusters = DeviceOf(ctx).num_sms() / 2;
  const int head_groups = static_cast<int>(CeilDiv(attending.heads, kPairHeads));
  PairWork work = {.items = 0, .lists = attending.rows * head_groups, .head_groups = head_groups};
  const int chunks = attending.chunk_sums.chunks;
  work.items = work.lists * chunks;
  const int blocks = 2 * std::min(work.items, clusters);
  LaunchClusters(ctx, chunks > 1 ? PairAttention<true> : PairAttention<false>, 2, dim3(blocks), kPairThreads,
                 sizeof(PairSpace), attending, work);
}

}  // namespace foresight::cuda
