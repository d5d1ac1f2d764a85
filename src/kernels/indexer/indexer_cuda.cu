#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/indexer/indexer_parts.h"
#include "kernels/indexer/packed_scores.cuh"
#include "kernels/indexer/packed_scores_sm90a.h"
#include "kernels/indexer/top_k.cuh"

namespace foresight::cuda {
namespace {

// Scores of a step that exist at a time; more rows come in turn.
constexpr int64_t kScoreBytes = int64_t{64} << 20;
constexpr int64_t kTurnRows = 1024;
// Rows of scores are padded to a power of two of at least this many, so that launches are the same for
// contexts of about the same length.
constexpr int64_t kLeastStride = 512;
constexpr int kPlainKeys = 32;  // of a tile of the plain kernel
constexpr int kHeadGroups = 4;  // of the plain kernel

// A head's query as the keys are stored: rotated and, for packed keys, transformed and rounded like them. One
// block of one warp per head and row; a row that needs no scores is left alone.
__global__ void PrepareQueryKernel(Indexing args) {
  AwaitInputs();
  const int head = blockIdx.x;
  const int row = blockIdx.y;
  const SequenceRows& sequence = SequenceOf(args.sequences, args.num_sequences, row);
  if (args.Visible(sequence, row) <= args.topk) return;
  extern __shared__ float x[];
  const int dim = args.key.dim;
  const int pairs = args.rope_dim / 2;
  const int first = dim / 2 - pairs;
  float2* values = reinterpret_cast<float2*>(args.iq + (static_cast<int64_t>(row) * args.heads + head) * dim);
  for (int i = threadIdx.x; i < dim / 2; i += 32) {
    float2 v = values[i];
    if (i >= first) {
      const int64_t at = static_cast<int64_t>(row) * pairs + i - first;
      v = Turned(v, args.cos[at], args.sin[at]);
    }
    if (args.faithful) v = {RoundBf16(v.x), RoundBf16(v.y)};
    reinterpret_cast<float2*>(x)[i] = v;
  }
  __syncthreads();
  if (args.key.format == CacheFormat::kPacked) {
    HadamardShared(x, dim, 32);
    for (int i = threadIdx.x; i < dim; i += 32) {
      const float v = RoundBf16(x[i]);
      const float scale = E8M0(Fp4ScaleOfWarp(v));
      x[i] = E2M1(ToE2M1(v / scale)) * scale;
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < dim / 2; i += 32) values[i] = reinterpret_cast<float2*>(x)[i];
}

// The queries [turn_rows] of this turn's rows. One warp per four heads; a row that needs no
// scores is left alone.
__global__ void __launch_bounds__(128) PackQueryKernel(Indexing args, PackedQuery* queries) {
  AwaitInputs();
  const int row = args.first_row + blockIdx.y;
  const SequenceRows& sequence = SequenceOf(args.sequences, args.num_sequences, row);
  if (args.Visible(sequence, row) <= args.topk) return;
  PackedHeads heads(args);
  heads.Load(row, (blockIdx.x * 4 + threadIdx.x / 32) * kHeadsOfWarp);
  heads.Pack();
  heads.StoreTo(queries[blockIdx.y]);
}

// Value i of an index key.
__device__ inline float IndexKeyValue(const IndexKeyLayout& layout, const std::byte* item, int i) {
  if (layout.format == CacheFormat::kFloat32) return reinterpret_cast<const float*>(item)[i];
  const uint8_t* codes = reinterpret_cast<const uint8_t*>(item);
  return E2M1(codes[i / 2] >> i % 2 * 4 & 15) * E8M0(codes[layout.dim / 2 + i / 32]);
}

// Scores of keys of any kind in float32: a thread has one key and every fourth head.
__global__ void __launch_bounds__(kPlainKeys* kHeadGroups) PlainScoresKernel(Indexing args) {
  AwaitInputs();
  extern __shared__ float4 space[];
  __shared__ float partial[kHeadGroups][kPlainKeys];
  const int row = args.first_row + blockIdx.y;
  const SequenceRows& sequence = SequenceOf(args.sequences, args.num_sequences, row);
  const int visible = args.Visible(sequence, row);
  if (visible <= args.topk || blockIdx.x * kPlainKeys >= visible) return;

  const int dim = args.key.dim;
  const int quads = dim / 4;
  float4* q = space;                      // [heads, quads]
  float4* keys = q + args.heads * quads;  // [kPlainKeys, quads + 1]: keys begin in other banks
  const float4* from =
      reinterpret_cast<const float4*>(args.iq + static_cast<int64_t>(row) * args.heads * dim);
  for (int i = threadIdx.x; i < args.heads * quads; i += blockDim.x) q[i] = from[i];

  const int key = threadIdx.x % kPlainKeys;
  const int group = threadIdx.x / kPlainKeys;
  for (int first = blockIdx.x * kPlainKeys; first < visible; first += gridDim.x * kPlainKeys) {
    for (int i = threadIdx.x; i < kPlainKeys * dim; i += blockDim.x) {
      const int s = first + i / dim;
      reinterpret_cast<float*>(keys + i / dim * (quads + 1))[i % dim] =
          s < visible ? IndexKeyValue(args.key, ItemOf(sequence.cache.index_keys, s), i % dim) : 0.0f;
    }
    __syncthreads();
    float sum = 0;
    for (int h = group; h < args.heads; h += kHeadGroups) {
      float4 dot = {};
      for (int i = 0; i < quads; ++i) {
        const float4 x = q[h * quads + i];
        const float4 y = keys[key * (quads + 1) + i];
        dot.x += x.x * y.x;
        dot.y += x.y * y.y;
        dot.z += x.z * y.z;
        dot.w += x.w * y.w;
      }
      const float w = args.w[static_cast<int64_t>(row) * args.heads + h] * args.factor;
      sum += w * fmaxf((dot.x + dot.y) + (dot.z + dot.w), 0.0f);
    }
    partial[group][key] = sum;
    __syncthreads();
    if (group == 0) {
      static_assert(kPlainKeys == 2 * kMaximumOf);
      const float score = (partial[0][key] + partial[1][key]) + (partial[2][key] + partial[3][key]);
      if (first + key < visible) args.scores[blockIdx.y * args.stride + first + key] = score;
      const float known = first + key < visible ? score : -INFINITY;
      const float lower = LargestOfWarp(key < kMaximumOf ? known : -INFINITY);
      const float upper = LargestOfWarp(key < kMaximumOf ? -INFINITY : known);
      if (key % kMaximumOf == 0) {
        args.maxima[(blockIdx.y * args.stride + first + key) / kMaximumOf] = key == 0 ? lower : upper;
      }
    }
  }
}

// The picks of a row by one block. Padding behind the last sequence picks what the last row does, for no
// scores are made of it; none, if that row was in another turn.
template <int kThreads>
__global__ void __launch_bounds__(kThreads, 1024 / kThreads) PickKernel(Indexing args) {
  __shared__ TopKShared<kThreads> shared;
  shared.Clear();
  AwaitInputs();
  const int row = args.first_row + static_cast<int>(blockIdx.x);
  const SequenceRows& sequence = SequenceOf(args.sequences, args.num_sequences, row);
  const int turn_row = min(row, sequence.first_row + sequence.num_rows - 1) - args.first_row;
  const int visible = turn_row < 0 ? 0 : args.Visible(sequence, row);
  int32_t* picks = args.picks + static_cast<int64_t>(row) * args.topk;
  if (visible <= args.topk) {
    for (int i = threadIdx.x; i < args.topk; i += kThreads) picks[i] = i < visible ? i : -1;
    return;
  }
  TopK(args.scores + turn_row * args.stride, args.maxima + turn_row * (args.stride / kMaximumOf), visible,
       args.topk, shared, picks);
}

// While there are SMs for all rows, large blocks are faster; with more rows two small ones per SM are, if
// they can hold as many runs as are listed.
void Pick(const KernelContext& ctx, const Indexing& args) {
  if (args.turn_rows <= DeviceOf(ctx).num_sms() || args.topk > 512) {
    Launch(ctx, PickKernel<1024>, dim3(args.turn_rows), 1024, 0, args);
  } else {
    Launch(ctx, PickKernel<512>, dim3(args.turn_rows), 512, 0, args);
  }
}

// `queries` as PackQueryKernel makes them, if rows share tiles.
void LaunchPackedScores(const KernelContext& ctx, const Indexing& args, const PackedQuery* queries) {
  const dim3 blocks = ScoreBlocks(ctx, args);
  const auto launch = [&]<int kRows>() {
    constexpr int kGroups = 3;
    Launch(ctx, PackedScoresKernel<kRows, kGroups>, blocks, 128 * kGroups,
           ScoresShared<kRows, kGroups>::Bytes(args.num_sequences), args, queries);
  };
  if (RowsShare(ctx, args)) {
    launch.template operator()<4>();
  } else {
    launch.template operator()<1>();
  }
}

void PackedScores(const KernelContext& ctx, const Indexing& args) {
  ArenaScope scope(*ctx.scratch);
  PackedQuery* queries = nullptr;
  if (RowsShare(ctx, args)) {
    queries = ctx.scratch->Allocate<PackedQuery>(args.turn_rows);
    Launch(ctx, PackQueryKernel, dim3(kPackedHeads / 16, args.turn_rows), 128, 0, args, queries);
  }
  if (DeviceOf(ctx).capability() == 90) {
    LaunchPackedScoresSm90a(ctx, args, queries);
  } else {
    LaunchPackedScores(ctx, args, queries);
  }
}

void PlainScores(const KernelContext& ctx, const Indexing& args) {
  // Enough blocks to fill the device twice over; each goes through the keys in strides.
  const int64_t blocks =
      std::clamp<int64_t>(CeilDiv(8 * DeviceOf(ctx).num_sms(), args.turn_rows), 1, args.stride / kPlainKeys);
  const int64_t floats = int64_t{args.heads} * args.key.dim + kPlainKeys * (args.key.dim + 4);
  Launch(ctx, PlainScoresKernel, dim3(static_cast<unsigned>(blocks), args.turn_rows),
         kPlainKeys * kHeadGroups, floats * sizeof(float), args);
}

// Of all rows of the step.
Indexing MakeIndexing(const KernelContext& ctx, const IndexerArgs& args, const IndexScores& scores) {
  return {.sequences = args.sequences.data(),
          .num_sequences = static_cast<int>(args.sequences.size()),
          .heads = args.heads,
          .rope_dim = args.rope_dim,
          .topk = args.topk,
          .faithful = ctx.faithful(),
          .key = args.key,
          .factor = static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.key.dim) * args.heads)),
          .iq = args.iq,
          .w = args.w,
          .cos = args.cos,
          .sin = args.sin,
          .picks = args.picks,
          .first_row = 0,
          .turn_rows = args.rows,
          .scores = scores.scores,
          .maxima = scores.maxima,
          .stride = scores.stride};
}

bool IsPacked(const IndexerArgs& args) {
  return args.key.format == CacheFormat::kPacked && args.key.dim == kPackedDim &&
         args.heads <= kPackedHeads && args.rope_dim % kPackedRopeStep == 0;
}

// Of the rows of a turn.
void Scores(const KernelContext& ctx, const Indexing& args, bool packed) {
  if (packed) {
    PackedScores(ctx, args);
  } else {
    PlainScores(ctx, args);
  }
}

void PrepareQueries(const KernelContext& ctx, const Indexing& args) {
  Launch(ctx, PrepareQueryKernel, dim3(args.heads, args.turn_rows), 32, args.key.dim * sizeof(float), args);
}

}  // namespace

void Indexer(const KernelContext& ctx, const IndexerArgs& args) {
  const int64_t stride = std::max<int64_t>(
      kLeastStride, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(args.entries_max))));
  Indexing indexing = MakeIndexing(ctx, args, {.stride = stride});
  if (stride <= args.topk) {  // no row has more entries than it may pick
    Pick(ctx, indexing);
    return;
  }
  const bool packed = IsPacked(args);
  if (!packed) PrepareQueries(ctx, indexing);
  ArenaScope scope(*ctx.scratch);
  const int64_t turn_rows = std::clamp<int64_t>(kScoreBytes / (stride * int64_t{sizeof(float)}), 1,
                                                std::clamp<int64_t>(args.rows, 1, kTurnRows));
  indexing.scores = ctx.scratch->Allocate<float>(turn_rows * stride);
  indexing.maxima = ctx.scratch->Allocate<float>(turn_rows * stride / IndexScores::kMaximumOf);
  for (int first = 0; first < args.rows; first += turn_rows) {
    indexing.first_row = first;
    indexing.turn_rows = static_cast<int>(std::min<int64_t>(turn_rows, args.rows - first));
    Scores(ctx, indexing, packed);
    Pick(ctx, indexing);
  }
}

namespace {

void IndexerScores(const KernelContext& ctx, const IndexerArgs& args, const IndexScores& scores) {
  const Indexing indexing = MakeIndexing(ctx, args, scores);
  if (!IsPacked(args)) PrepareQueries(ctx, indexing);
  Scores(ctx, indexing, IsPacked(args));
}

void IndexerPicks(const KernelContext& ctx, const IndexerArgs& args, const IndexScores& scores) {
  Pick(ctx, MakeIndexing(ctx, args, scores));
}

}  // namespace
}  // namespace foresight::cuda

namespace foresight {

Result<IndexerParts> CudaIndexerParts() {
  return IndexerParts{.scores = cuda::IndexerScores, .picks = cuda::IndexerPicks};
}

}  // namespace foresight
