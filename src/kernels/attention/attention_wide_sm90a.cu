// Attention of one row and 64 heads by one block, for many rows (sm_90a): entries of 512 values, packed.
//
// Two warpgroups compute, each with the logits of half of a block's keys and half of the output's dims; two
// more gather and decode the blocks to come. The arithmetic is BlockAttention's.
#include "kernels/attention/attention_hopper.h"
#include "kernels/attention/key_list.cuh"
#include "kernels/attention/key_tile.cuh"
#include "kernels/attention/output_tile.cuh"
#include "kernels/attention/query_tile.cuh"
#include "kernels/cuda/barriers.cuh"
#include "kernels/cuda/exponential.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace foresight::cuda {
namespace {

constexpr int kWideHeads = 64;
constexpr int kWideThreads = 512;
constexpr int kChunkFloats = kWideHeads * 512;  // that a thread block has of a chunk's output

// What thread blocks do: items, each of them a row and 64 of its heads.
struct WideWork {
  int items;
  int head_groups;
  // The chunks of one list in turn, [gridDim.x, kChunkFloats]; not needed for lists of one chunk.
  float* merged = nullptr;
};

struct WideSpace {
  std::byte q[8][kWideHeads * kTileRowBytes];  // [slices, heads]
  std::byte keys[2][8][64 * kTileRowBytes];    // [buffers, slices, keys]
  std::byte p[2][kWideHeads * kTileRowBytes];  // of blocks in turn
  static constexpr int kListed = 20;           // blocks of keys whose places are known ahead
  const std::byte* entries[kListed][64];
  uint32_t listed[kListed][2];  // which keys are there
  uint32_t present[2][2];       // the same of the buffers' blocks
  float maxima[2][kWideHeads];  // of each half of the keys
  float sums[2][kWideHeads];
  float2 all_max[256];  // of the chunks before, of each thread's two rows
  float2 all_sum[256];
  SharedBarrier full[2];
  SharedBarrier empty[2];
};

// What absent keys are read from, so that no load depends on whether its key is there.
alignas(16) __device__ const std::byte kAbsentKey[592] = {};

// A thread's part of a key, eight values of each slice, in two halves of slices.
struct KeyPart {
  uint2 codes[7];
  uint2 rotary[2];
  uint32_t scales[2];  // of each half

  // Stores a half, decoded, where the tile's first slice has the part, and takes the next key's, which
  // arrives while the other half is worked on, and other keys.
  template <int kHalf>
  __device__ void Exchange(std::byte* to, const std::byte* next, int part) {
    if (AreSmallScales(scales[kHalf])) {
      Store<kHalf, true>(to);
    } else {
      Store<kHalf, false>(to);
    }
    Load<kHalf>(next, part);
  }
  template <int kHalf>
  __device__ void Load(const std::byte* entry, int part) {
    LoadGlobal(entry + 448 + 128 + 4 * kHalf, scales[kHalf]);
#pragma unroll
    for (int slice = 4 * kHalf; slice < (kHalf == 0 ? 4 : 7); ++slice) {
      LoadGlobal(entry + 64 * slice + 8 * part, codes[slice]);
    }
    if constexpr (kHalf == 1) {
#pragma unroll
      for (int i = 0; i < 2; ++i) LoadGlobal(entry + 448 + 16 * part + 8 * i, rotary[i]);
    }
  }

 private:
  template <int kHalf, bool kSmallScales>
  __device__ void Store(std::byte* to) const {
    constexpr int kSliceBytes = 64 * kTileRowBytes;
#pragma unroll
    for (int slice = 4 * kHalf; slice < (kHalf == 0 ? 4 : 7); ++slice) {
      const uint32_t scale = __byte_perm(scales[kHalf], 0, 0x4440 + slice % 4);
      *reinterpret_cast<uint4*>(to + slice * kSliceBytes) =
          kSmallScales ? DecodeSmallE4M3(codes[slice], scale) : DecodeE4M3(codes[slice], scale);
    }
    if constexpr (kHalf == 1) {
      *reinterpret_cast<uint4*>(to + 7 * kSliceBytes) = {rotary[0].x, rotary[0].y, rotary[1].x, rotary[1].y};
    }
  }
};

// The third and fourth warpgroup's part: blocks of keys of the row's list into the buffers in turn. `count`
// is of blocks filled so far.
__device__ inline void GatherKeys(const Attending& args, int row, const KeyList<64>& list, WideSpace& space,
                                  int& count) {
  using Space = WideSpace;
  constexpr int kThreads = 256;
  const int thread = threadIdx.x % kThreads;
  const int group = thread / 8;  // eight threads take a key, 32 keys at a time
  const int part = thread % 8;
  const auto find = [&]<int kAtOnce>(const KeyList<64>& list, int first_block, int num_blocks) {
    for (int begin = 0; begin < num_blocks * 64; begin += kAtOnce * kThreads) {
      int compressed[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        compressed[n] = list.CompressedEntry(first_block * 64 + begin + n * kThreads + thread);
      }
      const std::byte* entries[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        entries[n] = list.Entry(first_block * 64 + begin + n * kThreads + thread, compressed[n]);
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int i = begin + n * kThreads + thread;
        if (i >= num_blocks * 64) continue;  // whole warps
        const int slot = (first_block + i / 64) % Space::kListed;
        space.entries[slot][i % 64] = entries[n] == nullptr ? kAbsentKey : entries[n];
        const uint32_t mask = __ballot_sync(0xffffffff, entries[n] != nullptr);
        if (thread % 32 == 0) space.listed[slot][i / 32 % 2] = mask;
      }
    }
  };
  GroupBarrier<2>(kThreads);  // nobody reads the last row's list any more
  const int end_block = list.blocks();
  find.template operator()<3>(list, 0, min(end_block, Space::kListed));
  GroupBarrier<2>(kThreads);
  KeyPart keys[2];  // of the keys `group` and `group` + 32 of a block
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    keys[i].Load<0>(space.entries[0][group + 32 * i], part);
    keys[i].Load<1>(space.entries[0][group + 32 * i], part);
  }
#pragma unroll 1
  for (int block = 0; block < end_block; ++block) {
    const int buffer = count % 2;
    const int next_slot = (block + 1) % Space::kListed;
    const bool has_next = block + 1 < end_block;
    const std::byte* next[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) next[i] = has_next ? space.entries[next_slot][group + 32 * i] : kAbsentKey;
    std::byte* const to = ChunkOf(space.keys[buffer][0], group, part);
    space.empty[buffer].Wait(count / 2 % 2 ^ 1);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      keys[i].Exchange<0>(to + 32 * i * kTileRowBytes, next[i], part);
      keys[i].Exchange<1>(to + 32 * i * kTileRowBytes, next[i], part);
    }
    if (thread < 2) space.present[buffer][thread] = space.listed[block % Space::kListed][thread];
    space.full[buffer].Arrive();  // who multiplies has the fence for it: here it would wait for the loads
    ++count;
    if (block + Space::kListed < end_block) {
      GroupBarrier<2>(kThreads);
      find.template operator()<1>(KeyList<64>(args, WarpSequenceOf(args, row), row), block + Space::kListed,
                                  1);
      GroupBarrier<2>(kThreads);
    }
  }
}

// Sends for an item's queries, to the second-level cache.
__device__ inline void PrefetchQueries(const Attending& args, const WideWork& work, int item) {
  const int first_head = item % work.head_groups * kWideHeads;
  const int64_t first = int64_t{item / work.head_groups} * args.heads + first_head;
  const int heads = min(kWideHeads, args.heads - first_head);
  const auto* q = static_cast<const uint16_t*>(args.q);
  PrefetchL2(q + first * 512, heads * 512 * static_cast<int>(sizeof(*q)));
}

template <bool kOneChunk>
__global__ void __launch_bounds__(kWideThreads, 1) WideAttention(Attending args, WideWork work) {
  extern __shared__ __align__(1024) std::byte shared[];
  WideSpace& space = *reinterpret_cast<WideSpace*>(shared);
  const int warpgroup = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      space.full[i].Init(256);
      space.empty[i].Init(8);
    }
  }
  if (kOneChunk) Prepare(args, static_cast<int>(blockIdx.x) / work.head_groups);
  __syncthreads();
  AwaitInputs();
  int count = 0;  // of blocks
  if (warpgroup >= 2) {
    GiveUpRegisters<64>();
    for (int item = blockIdx.x; item < work.items; item += gridDim.x) {
      const int row = item / work.head_groups;
      GatherKeys(args, row, KeyList<64>(args, WarpSequenceOf(args, row), row), space, count);
      const int next = item + static_cast<int>(gridDim.x);
      if (threadIdx.x % 256 == 0 && next < work.items) PrefetchQueries(args, work, next);
    }
    return;
  }
  TakeRegisters<192>();
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32 % 4;
  const int t = lane % 4;
  const int h = 16 * warp + lane / 4;
  const uint64_t q_at = OperandAt(space.q);
  const uint64_t p_at = OperandAt(space.p);
  const uint64_t keys_at = OperandAt(&space.keys[0][0][32 * kTileRowBytes * warpgroup]);
  const uint64_t values_at = OperandAt(space.keys[0][4 * warpgroup], sizeof(space.keys[0][0]));
  float o[2][64];  // columns in two halves
  float s[16];
  float upper[16];  // logits' second halves
  const auto multiply_keys = [&](int buffer) {
    const uint64_t queries = Shared(q_at);
    const uint64_t at = Shared(Further(keys_at, buffer * static_cast<int>(sizeof(space.keys[0]))));
    FenceForProducts();  // what was gathered
    WarpgroupFence();
#pragma unroll
    for (int k = 0; k < 4 * kHalfSlices; ++k) {
      const int offset = k / 4 * static_cast<int>(sizeof(space.q[0])) + k % 4 * 32;
      const int upper_offset = offset + kHalfSlices * static_cast<int>(sizeof(space.q[0]));
      if (k == 0) {
        WarpgroupMma<false>(s, Further(queries, offset), Further(at, offset));
        WarpgroupMma<false>(upper, Further(queries, upper_offset), Further(at, upper_offset));
      } else {
        WarpgroupMma<true>(s, Further(queries, offset), Further(at, offset));
        WarpgroupMma<true>(upper, Further(queries, upper_offset), Further(at, upper_offset));
      }
    }
    EndProducts();
  };
  const auto await_keys = [&] {
    AwaitProducts<0>(s);
    AwaitProducts<0>(upper);
#pragma unroll
    for (int i = 0; i < 16; ++i) s[i] = __fadd_rn(s[i], upper[i]);
  };

#pragma unroll 1
  for (int item = blockIdx.x; item < work.items; item += gridDim.x) {
    const int row = item / work.head_groups;
    const int first_head = item % work.head_groups * kWideHeads;
    GroupBarrier<1>(256);  // nobody needs the last row's queries any more
    ListBlocks list;
    const auto find_list = [&] { list = KeyList<64>(args, WarpSequenceOf(args, row), row); };
    if (!kOneChunk) find_list();                     // with fewer registers
    constexpr int kHeadsAtOnce = kOneChunk ? 8 : 4;  // what registers allow
    LoadQueries<1, kHeadsAtOnce, true>(args, row, first_head, kWideHeads, {space.q[0], sizeof(space.q[0]), 0},
                                       threadIdx.x / 32, 8);
    FenceForProducts();
    if (kOneChunk) find_list();  // it is in a cache by now
    GroupBarrier<1>(256);

    const int blocks = list.blocks();
    const auto sink_of = [&](int half) {
      const int head = first_head + h + 8 * half;
      return head < args.heads ? SinkLogit(args, head) : 0;
    };
    float now_max[2], now_sum[2] = {};  // of rows h and h + 8
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      now_max[half] = fmaxf(sink_of(half), kLowest);
    }
    float factor[2] = {1, 1};  // of what was before the last block
    float pairs[2][4];         // sums of its probabilities, of two keys of each tile of 8
    // From logits to probabilities in shared memory.
    const auto weigh_keys = [&](int buffer) {
      // Read by the lane alone that gives the buffer back.
      const uint32_t present = __shfl_sync(0xffffffff, lane == 0 ? space.present[buffer][warpgroup] : 0, 0);
      if (present != 0xffffffff) {
#pragma unroll
        for (int i = 0; i < 16; ++i) {
          if (!(present >> (i / 4 * 8 + i % 2 + 2 * t) & 1)) s[i] = -INFINITY;
        }
      }
      float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int i = 0; i < 16; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s[i]);
#pragma unroll
      for (float& x : top) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        top[half] = __fmul_rn(fmaxf(top[half], __shfl_xor_sync(0xffffffff, top[half], 2)), args.scale);
        if (t == 0) space.maxima[warpgroup][h + 8 * half] = top[half];
      }
      GroupBarrier(3 + warp, 64);  // the two warps that have a head's keys
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        top[half] = fmaxf(now_max[half], fmaxf(top[half], space.maxima[warpgroup ^ 1][h + 8 * half]));
        factor[half] = Exp2(now_max[half] - top[half]);
        now_max[half] = top[half];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float* own = &s[4 * j + 2 * half];
          const float p[2] = {Exp2(__fmaf_rn(own[0], args.scale, -top[half])),
                              Exp2(__fmaf_rn(own[1], args.scale, -top[half]))};
          reinterpret_cast<uint32_t*>(ChunkOf(space.p[buffer], h + 8 * half, 4 * warpgroup + j))[t] =
              PackBf16(p[0], p[1]);
          pairs[half][j] = __fadd_rn(p[0], p[1]);
        }
      }
      if (__any_sync(0xffffffff, factor[0] != 1 || factor[1] != 1)) {
#pragma unroll
        for (int i = 0; i < 128; ++i) o[i / 64][i % 64] *= factor[i / 2 % 2];
      }
      FenceForProducts();
      GroupBarrier<1>(256);
    };
    // The weights of the last block, while its values are added: lane t gets tile t's sum, then all lanes
    // their sum.
    const auto add_weights = [&] {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* own = pairs[half];
        const bool odd = t % 2 != 0;
        const float low = (odd ? own[1] : own[0]) + __shfl_xor_sync(0xffffffff, odd ? own[0] : own[1], 1);
        const float high = (odd ? own[3] : own[2]) + __shfl_xor_sync(0xffffffff, odd ? own[2] : own[3], 1);
        const bool upper = t / 2 != 0;
        float sum = (upper ? high : low) + __shfl_xor_sync(0xffffffff, upper ? low : high, 2);
        sum += __shfl_xor_sync(0xffffffff, sum, 1);
        sum += __shfl_xor_sync(0xffffffff, sum, 2);
        now_sum[half] = __fmaf_rn(now_sum[half], factor[half], sum);
      }
    };
    const auto add_values = [&](int buffer) {
      const uint64_t probabilities = Shared(Further(p_at, buffer * static_cast<int>(sizeof(space.p[0]))));
      const uint64_t at = Shared(Further(values_at, buffer * static_cast<int>(sizeof(space.keys[0]))));
      WarpgroupFence();
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          WarpgroupAddValues(
              o[half], Further(probabilities, 32 * k),
              Further(at, 16 * kTileRowBytes * k + half * 2 * static_cast<int>(sizeof(space.keys[0][0]))));
        }
      }
      EndProducts();
    };

    int block = 0;
    int chunk = 0;
#pragma unroll 1
    do {
      const int end = list.ChunkBegin(chunk + 1);
#pragma unroll
      for (int i = 0; i < 128; ++i) o[i / 64][i % 64] = 0;
      space.full[count % 2].Wait(count / 2 % 2);
      multiply_keys(count % 2);
      await_keys();
      weigh_keys(count % 2);
#pragma unroll 1
      for (++block; block < end; ++block) {
        const int buffer = count++ % 2;
        add_values(buffer);
        add_weights();
        space.full[buffer ^ 1].Wait(count / 2 % 2);
        multiply_keys(buffer ^ 1);  // while the values of the block before are added
        AwaitProducts<1>(o[0]);
        AwaitProducts<1>(o[1]);
        if (lane == 0) space.empty[buffer].Arrive();
        await_keys();
        weigh_keys(buffer ^ 1);
      }
      add_values(count % 2);
      add_weights();
      AwaitProducts<0>(o[0]);
      AwaitProducts<0>(o[1]);
      if (lane == 0) space.empty[count % 2].Arrive();
      ++count;

      // The chunk joins those before it, which wait in memory.
      const bool first = kOneChunk || chunk == 0;
      const bool last = kOneChunk || end == blocks;
      float factors[2], now_factors[2];
      float2& max_before = space.all_max[threadIdx.x];  // registers are short
      float2& sum_before = space.all_sum[threadIdx.x];
      float all_max[2] = {max_before.x, max_before.y};
      float all_sum[2] = {sum_before.x, sum_before.y};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float most = first ? now_max[half] : fmaxf(all_max[half], now_max[half]);
        factors[half] = first ? 0 : Exp2(all_max[half] - most);
        now_factors[half] = Exp2(now_max[half] - most);
        all_sum[half] =
            __fmaf_rn(first ? 0 : all_sum[half], factors[half], __fmul_rn(now_sum[half], now_factors[half]));
        all_max[half] = most;
        now_max[half] = kLowest;
        now_sum[half] = 0;
      }
      max_before = {all_max[0], all_max[1]};
      sum_before = {all_sum[0], all_sum[1]};
      if (!first || !last) {
        float* all = work.merged + static_cast<int64_t>(blockIdx.x) * kChunkFloats + threadIdx.x;
        if (!first) {
#pragma unroll
          for (int i = 0; i < 128; ++i) {
            float& x = o[i / 64][i % 64];
            x = __fmaf_rn(all[256 * i], factors[i / 2 % 2], __fmul_rn(x, now_factors[i / 2 % 2]));
          }
        }
        if (!last) {
#pragma unroll
          for (int i = 0; i < 128; ++i) all[256 * i] = o[i / 64][i % 64];
        }
      }
      ++chunk;
    } while (!kOneChunk && block < blocks);
    const float all_max[2] = {space.all_max[threadIdx.x].x, space.all_max[threadIdx.x].y};
    const float all_sum[2] = {space.all_sum[threadIdx.x].x, space.all_sum[threadIdx.x].y};

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (t == 0) space.sums[warpgroup][h + 8 * half] = all_sum[half];
    }
    GroupBarrier<1>(256);
    float shares[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      shares[half] = 1 / (space.sums[0][h + 8 * half] + space.sums[1][h + 8 * half] +
                          Exp2(sink_of(half) - all_max[half]));
    }
    const int64_t turns = int64_t{row} * 32;
    StoreOutputs<false>(args, row, first_head + h, 256 * warpgroup, o[0], shares, nullptr, nullptr);
    if (warpgroup == 0) {
      StoreOutputs<false>(args, row, first_head + h, 128, o[1], shares, nullptr, nullptr);
    } else {
      StoreOutputs<true>(args, row, first_head + h, 384, o[1], shares, args.cos + turns, args.sin + turns);
    }
  }
}

}  // namespace

void LaunchWideAttention(const KernelContext& ctx, const Attending& attending) {
  const int head_groups = static_cast<int>(CeilDiv(attending.heads, kWideHeads));
  WideWork work = {.items = attending.rows * head_groups, .head_groups = head_groups};
  const int blocks = std::min(work.items, DeviceOf(ctx).num_sms());
  ArenaScope scope(*ctx.scratch);
  const bool one_chunk = MaxChunks(attending) == 1;
  if (!one_chunk) work.merged = ctx.scratch->Allocate<float>(int64_t{blocks} * kChunkFloats);
  Launch(ctx, one_chunk ? WideAttention<true> : WideAttention<false>, dim3(blocks), kWideThreads,
         sizeof(WideSpace), attending, work);
}

}  // namespace foresight::cuda
