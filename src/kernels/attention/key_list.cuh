// What the attention kernels need of their arguments, and the keys of a row in their one order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "kernels/attention/attention.h"
#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/formats.cuh"
#include "kernels/cuda/sequences.cuh"

namespace foresight::cuda {

struct Attending;

constexpr int kChunkDim = 512;  // entries' values where chunks are items

// What chunks leave that are items of their own, where a row's list has several of them: sums of weighted
// values, the last maximum, and sums of weights, of each half of the blocks of keys (.y is zero where blocks
// have no halves). MergeChunks follows.
struct ChunkSums {
  int chunks = 0;           // no list has more; zero where that isn't known
  float* values = nullptr;  // [chunks, rows, heads, kChunkDim]
  float* maxima = nullptr;  // [chunks, rows, heads]
  float2* weights = nullptr;

  __device__ int64_t At(const Attending& args, int row, int head, int chunk) const;
};

struct Attending {
  const SequenceRows* sequences;
  int num_sequences;
  int rows;
  int64_t entries_max;
  int heads;
  int window;
  EntryLayout layout;
  int64_t entry_bytes;
  RawKeys raw;
  CompressedKeys compressed;
  int ratio;
  int topk;
  float scale;    // of logits, to base 2
  const void* q;  // bf16 in faithful numerics, else float32
  float query_eps;
  const std::byte* entries;
  VectorView sink;
  const int32_t* picks;
  const float* cos;
  const float* sin;
  void* out;  // the same
  ChunkSums chunk_sums = {};
};

__device__ inline int64_t ChunkSums::At(const Attending& args, int row, int head, int chunk) const {
  return (int64_t{chunk} * args.rows + row) * args.heads + head;
}

// To base 2, as all logits.
__device__ inline float SinkLogit(const Attending& args, int head) {
  return __fmul_rn(VectorValue(args.sink, head), 1.44269504f);
}

// A thread's four logits from their halves, which come one after the other: each is a chain of products with
// 256 dims, or what there is of them.
class LogitHalves {
 public:
  // Takes the first half, and leaves zeros for the other.
  __device__ void TakeFirst(float (&s)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      first_[i] = s[i];
      s[i] = 0;
    }
  }
  __device__ void Finish(float (&s)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) s[i] = __fadd_rn(first_[i], s[i]);
  }

 private:
  float first_[4] = {};
};
constexpr int kHalfSlices = 4;  // of 64 dims

constexpr float kLowest = -1e30f;  // where maxima start: finite, whatever the sink

enum class Dims { kRotary, kOthers };

// Eight neighbours of the queries, from value `at` on.
template <bool kFaithful>
__device__ inline void LoadQuery(const Attending& args, int64_t at, float (&v)[8]) {
  if constexpr (kFaithful) {
    const uint4 words = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(args.q) + at);
    *reinterpret_cast<float2*>(v) = UnpackBf16(words.x);
    *reinterpret_cast<float2*>(v + 2) = UnpackBf16(words.y);
    *reinterpret_cast<float2*>(v + 4) = UnpackBf16(words.z);
    *reinterpret_cast<float2*>(v + 6) = UnpackBf16(words.w);
  } else {
    const float4* from = reinterpret_cast<const float4*>(static_cast<const float*>(args.q) + at);
    *reinterpret_cast<float4*>(v) = from[0];
    *reinterpret_cast<float4*>(v + 4) = from[1];
  }
}

// Two neighbours of the output: sums of weighted values times 1 / the sum of weights; rotary dims are turned
// back by their angle. What stores them rounds them in faithful numerics.
template <bool kFaithful, Dims kDims>
__device__ inline float2 OutputOf(float2 v, float factor, float cos, float sin) {
  v = {__fmul_rn(v.x, factor), __fmul_rn(v.y, factor)};
  if constexpr (kDims == Dims::kRotary) {
    if constexpr (kFaithful) v = {RoundBf16(v.x), RoundBf16(v.y)};
    v = {__fmaf_rn(v.x, cos, __fmul_rn(v.y, sin)), __fmaf_rn(v.y, cos, -__fmul_rn(v.x, sin))};
  }
  return v;
}

template <bool kFaithful>
__device__ inline void StorePair(const Attending& args, int64_t at, float2 v) {
  if constexpr (kFaithful) {
    *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(args.out) + at) = PackBf16(v.x, v.y);
  } else {
    *reinterpret_cast<float2*>(static_cast<float*>(args.out) + at) = v;
  }
}

// Dims d and d + 1 of a row.
template <bool kFaithful>
__device__ inline float2 OutputAt(const Attending& args, int row, int d, float2 v, float factor) {
  const int nope = args.layout.dim - args.layout.rope_dim;
  if (d < nope) return OutputOf<kFaithful, Dims::kOthers>(v, factor, 0, 0);
  const int64_t turn = static_cast<int64_t>(row) * (args.layout.rope_dim / 2) + (d - nope) / 2;
  return OutputOf<kFaithful, Dims::kRotary>(v, factor, args.cos[turn], args.sin[turn]);
}
template <bool kFaithful>
__device__ inline void StoreOutput(const Attending& args, int row, int head, int d, float2 v, float factor) {
  const int64_t at = (static_cast<int64_t>(row) * args.heads + head) * args.layout.dim + d;
  StorePair<kFaithful>(args, at, OutputAt<kFaithful>(args, row, d, v, factor));
}

// One dim that isn't rotary.
template <bool kFaithful>
__device__ inline void StoreOutput(const Attending& args, int row, int head, int d, float v, float factor) {
  v = __fmul_rn(v, factor);
  const int64_t at = (static_cast<int64_t>(row) * args.heads + head) * args.layout.dim + d;
  if constexpr (kFaithful) {
    static_cast<uint16_t*>(args.out)[at] = Bf16Bits(v);
  } else {
    static_cast<float*>(args.out)[at] = v;
  }
}

// SequenceOf by a whole warp: looks at 128 sequences in the time of one.
__device__ inline const SequenceRows& WarpSequenceOf(const Attending& args, int row) {
  // Its members arrive meanwhile if it is the one that it is where each has one row.
  const SequenceRows* guess = args.sequences + min(row, args.num_sequences - 1);
#pragma unroll
  for (size_t i = 0; i < sizeof(SequenceRows); i += 32) Touch(reinterpret_cast<const std::byte*>(guess) + i);
  int count = 0;  // of sequences that begin at `row` or before
#pragma unroll 4
  for (int i = 0; i < args.num_sequences; i += 32) {
    const int at = i + static_cast<int>(threadIdx.x) % 32;
    const bool begins = at < args.num_sequences && args.sequences[at].first_row <= row;
    count += __popc(__ballot_sync(0xffffffff, begins));
  }
  return args.sequences[count - 1];
}

// Copies from global memory, in words of 8 bytes, which are sent for here: left to itself the compiler first
// waits for what a branch asks for.
template <int kBytes>
__device__ inline void LoadHere(const void* from, void* to) {
#pragma unroll
  for (int i = 0; i < kBytes; i += 8) {
    uint64_t word;
    asm volatile("ld.global.b64 %0, [%1];" : "=l"(word) : "l"(static_cast<const std::byte*>(from) + i));
    std::memcpy(static_cast<std::byte*>(to) + i, &word, 8);
  }
}

// The same sequence by value, as far as attention asks for it: where each one has one row, it comes in one
// round trip.
__device__ inline SequenceRows SequenceAtOnce(const Attending& args, int row) {
  const SequenceRows* from = args.sequences + min(row, args.num_sequences - 1);
  SequenceRows guess = {};
  LoadHere<offsetof(SequenceRows, cache)>(from, &guess);
  LoadHere<sizeof(RingView)>(&from->cache.window, &guess.cache.window);
  LoadHere<sizeof(PagedView)>(&from->cache.compressed, &guess.cache.compressed);
  if (row < guess.first_row || row >= guess.first_row + guess.num_rows) guess = WarpSequenceOf(args, row);
  return guess;
}

// Loads a kernel's argument, which comes from far, before it is needed.
__device__ inline void LoadArgument(const void* argument) {
  asm volatile("" ::"l"(argument));
}

// Before the wait for inputs, of which nothing is read here: loads the kernel's arguments, which come from
// far, and sends for what is read first, to the second-level cache.
__device__ inline void Prepare(const Attending& args, int row) {
  asm volatile("" ::"l"(args.sequences), "r"(args.num_sequences), "r"(args.window), "r"(args.ratio),
               "r"(args.topk), "l"(args.q), "l"(args.entries), "l"(args.picks), "l"(args.cos), "l"(args.out));
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  if (warp == 0 && lane < 2) {
    const SequenceRows* guess = args.sequences + min(row, args.num_sequences - 1);
    PrefetchL2(reinterpret_cast<const std::byte*>(guess) + lane * (sizeof(SequenceRows) - 1));
  }
  if (warp == 1 && args.compressed == CompressedKeys::kPicked && 32 * lane < args.topk) {
    PrefetchL2(args.picks + int64_t{row} * args.topk + 32 * lane);
  }
}

// Chunks are softmaxes of their own, merged in order, so that long lists can be worked on in parallel. This
// is how many keys a chunk has; very long lists have larger chunks, not more of them. 640 keys are one panel
// of a cluster of eight. Lists of 1024 picks stay whole: many rows pay more for chunks than few rows gain.
__host__ __device__ constexpr int ChunkKeys(CompressedKeys compressed) {
  return compressed == CompressedKeys::kPicked ? 1152 : 640;
}
constexpr int kMaxChunks = 16;

// No list has more keys, raw and compressed ones padded to whole blocks; zero where that isn't known.
inline int64_t MaxKeys(const Attending& args) {
  const auto padded = [](int64_t keys) { return (keys + 63) / 64 * 64; };
  const int64_t raw = padded(args.window + (args.raw == RawKeys::kBlock ? args.rows : 0));
  if (args.compressed == CompressedKeys::kNone) return raw;
  if (args.compressed == CompressedKeys::kPicked) return raw + padded(args.topk);
  return args.entries_max == 0 ? 0 : raw + padded(args.entries_max);
}

// No list has more chunks; zero where that isn't known.
inline int MaxChunks(const Attending& args) {
  const int64_t each = ChunkKeys(args.compressed);
  return static_cast<int>(std::min<int64_t>((MaxKeys(args) + each - 1) / each, kMaxChunks));
}

// No chunk has more keys, where the number of a list's chunks is known.
inline int64_t MaxChunkKeys(const Attending& args) {
  const int64_t most = (MaxKeys(args) / 64 + kMaxChunks - 1) / kMaxChunks * 64;
  return std::min(MaxKeys(args), std::max<int64_t>(ChunkKeys(args.compressed), most));
}

// The blocks of a row's key list.
struct ListBlocks {
  int raw_blocks;
  int compressed_blocks;
  int chunk_blocks;

  __device__ int blocks() const { return raw_blocks + compressed_blocks; }
  __device__ int chunks() const { return (blocks() + chunk_blocks - 1) / chunk_blocks; }
  // Chunk c has blocks [ChunkBegin(c), ChunkBegin(c + 1)).
  __device__ int ChunkBegin(int chunk) const { return min(blocks(), chunk * chunk_blocks); }
};

// The keys of one row in their one order, in blocks of kBlock: raw ones by position, padded to whole blocks
// with absent ones, then compressed ones by index.
template <int kBlock>
struct KeyList : ListBlocks {
  const Attending& args;
  const SequenceRows& sequence;
  const int32_t* picks;
  int64_t first_raw;
  int num_raw;
  int num_compressed;

  __device__ KeyList(const Attending& args, const SequenceRows& sequence, int row)
      : args(args), sequence(sequence), picks(args.picks + static_cast<int64_t>(row) * args.topk) {
    // Padding is as the last row.
    const int64_t position = sequence.first_position + min(row - sequence.first_row, sequence.num_rows - 1);
    const bool block = args.raw == RawKeys::kBlock;
    const int64_t end = block ? sequence.first_position + sequence.num_rows : position + 1;
    const int64_t first = (block ? sequence.first_position : position + 1) - args.window;
    first_raw = first > 0 ? first : 0;
    num_raw = static_cast<int>(end - first_raw);
    raw_blocks = (num_raw + kBlock - 1) / kBlock;
    num_compressed = 0;
    if (args.compressed != CompressedKeys::kNone) {
      num_compressed =
          static_cast<int>(static_cast<uint32_t>(position + 1) / static_cast<uint32_t>(args.ratio));
      if (args.compressed == CompressedKeys::kPicked) num_compressed = min(num_compressed, args.topk);
    }
    compressed_blocks = (num_compressed + kBlock - 1) / kBlock;
    chunk_blocks = max(ChunkKeys(args.compressed) / kBlock, (blocks() + kMaxChunks - 1) / kMaxChunks);
  }

  // The compressed entry that a key of the padded list is; -1 for raw and absent keys.
  __device__ int CompressedEntry(int key) const {
    const int at = key - raw_blocks * kBlock;
    if (at < 0 || at >= num_compressed) return -1;
    return args.compressed == CompressedKeys::kPicked ? picks[at] : at;
  }
  // Where keys lie whose CompressedEntry is given; null for absent ones. Everything is computed for every
  // key, so that the block tables' items come at once.
  template <int kCount>
  __device__ void Find(const int (&keys)[kCount], const int (&compressed)[kCount],
                       const std::byte* (&entries)[kCount]) const {
    const PagedView& pages = sequence.cache.compressed;
    const RingView& window = sequence.cache.window;
    const uint32_t per_block = static_cast<uint32_t>(pages.per_block);
    const std::byte* blocks[kCount] = {};
    uint32_t within[kCount] = {};
    if (num_compressed > 0) {
#pragma unroll
      for (int n = 0; n < kCount; ++n) {
        const uint32_t i = static_cast<uint32_t>(max(compressed[n], 0));
        blocks[n] = pages.blocks[i / per_block];
        within[n] = i % per_block;
      }
    }
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      const int64_t step_row = first_raw + keys[n] - sequence.first_position;
      const std::byte* own = args.entries + (sequence.first_row + step_row) * args.entry_bytes;
      const std::byte* before = Item(window, static_cast<uint32_t>(first_raw) + keys[n]);
      const std::byte* raw = step_row >= 0 ? own : before;
      const std::byte* picked = blocks[n] + pages.offset + within[n] * pages.item_bytes;
      const bool is_raw = keys[n] < raw_blocks * kBlock;
      const bool absent = is_raw ? keys[n] >= num_raw : compressed[n] < 0;
      const std::byte* entry = is_raw ? raw : picked;
      entries[n] = absent ? nullptr : entry;
    }
  }
  // The same of one, with fewer registers.
  __device__ const std::byte* Entry(int key, int compressed) const {
    if (key >= raw_blocks * kBlock) {
      return compressed < 0 ? nullptr : Item(sequence.cache.compressed, static_cast<uint32_t>(compressed));
    }
    if (key >= num_raw) return nullptr;
    const int64_t step_row = first_raw + key - sequence.first_position;
    if (step_row >= 0) return args.entries + (sequence.first_row + step_row) * args.entry_bytes;
    return Item(sequence.cache.window, static_cast<uint32_t>(first_raw) + key);
  }
  __device__ const std::byte* Entry(int key) const {
    return Entry(key, CompressedEntry(key));
  }

  // ItemOf for numbers of 32 bits, whose divisions are fast: contexts end long before.
  __device__ static const std::byte* Item(const RingView& view, uint32_t position) {
    return view.data + position % static_cast<uint32_t>(view.slots) * view.item_bytes;
  }
  __device__ static const std::byte* Item(const PagedView& view, uint32_t i) {
    const uint32_t per_block = static_cast<uint32_t>(view.per_block);
    return view.blocks[i / per_block] + view.offset + i % per_block * view.item_bytes;
  }
};

}  // namespace foresight::cuda
