#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sequences.cuh"
#include "kernels/norm_rope/encode.cuh"

namespace foresight::cuda {
namespace {

// What kernels need of the arguments, by value.
struct Compression {
  const SequenceRows* sequences;
  int num_sequences;
  int ratio;
  bool for_indexer;
  bool faithful;
  EntryLayout entry;
  IndexKeyLayout index_key;
  int dim;
  int rope_dim;
  int width;  // of a row, c * dim
  const float* a;
  const float* b;
  const float* ape;
  VectorView norm;
  float eps;
  const float* frequencies;

  __device__ const RingView& Ring(const SequenceRows& sequence) const {
    return for_indexer ? sequence.cache.index_compressor_rows : sequence.cache.compressor_rows;
  }
};

// Row t of the step ends a window or has nothing to do: a block per row finds out by itself. Windows are
// pooled from the step's rows, to which ape is added here, and the ring's.
__global__ void __launch_bounds__(512) PoolKernel(Compression args) {
  AwaitInputs();
  const int row = blockIdx.x;
  const SequenceRows& sequence = SequenceOf(args.sequences, args.num_sequences, row);
  const int64_t begin = sequence.first_position;
  const int64_t position = begin + row - sequence.first_row;
  if ((position + 1) % args.ratio != 0) return;
  const int64_t s = position / args.ratio;
  const bool overlap = args.ratio == 4;
  const RingView& ring = args.Ring(sequence);

  extern __shared__ float entry[];
  __shared__ float sums[32];
  for (int i = threadIdx.x; i < args.dim; i += blockDim.x) {
    // An online softmax in the order of the window, eight items at a time so that their loads overlap. A
    // missing previous window has no items.
    constexpr int kItems = 8;
    float top = -INFINITY;
    float sum = 0;
    float weighted = 0;
    const int items = overlap ? 2 * args.ratio : args.ratio;
    for (int first = 0; first < items; first += kItems) {
      float a[kItems];
      float b[kItems];
      float group_top = top;
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        const int64_t t = position + 1 - items + first + j;
        // The previous window contributes the first half of the channels, the current one the second.
        const int channel = overlap && t >= s * args.ratio ? args.dim + i : i;
        b[j] = -INFINITY;
        a[j] = 0;
        if (t >= begin) {
          const int64_t at = (sequence.first_row + t - begin) * args.width + channel;
          a[j] = args.a[at];
          b[j] = args.b[at] + args.ape[t % args.ratio * args.width + channel];
        } else if (t >= 0) {
          const float* kept = reinterpret_cast<const float*>(ItemOf(ring, t));
          a[j] = kept[channel];
          b[j] = kept[args.width + channel];
        }
        group_top = fmaxf(group_top, b[j]);
      }
      const float kept_share = expf(top - group_top);  // 0 at first
      top = group_top;
      sum *= kept_share;
      weighted *= kept_share;
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        const float e = expf(b[j] - top);
        sum += e;
        weighted += e * a[j];
      }
    }
    const float pooled = weighted / sum;
    entry[i] = args.faithful ? RoundBf16(pooled) : pooled;
  }
  __syncthreads();
  NormShared(entry, args.dim, args.norm, args.eps, args.faithful, sums);
  float2* rotary = reinterpret_cast<float2*>(entry + args.dim - args.rope_dim);
  for (int i = threadIdx.x; i < args.rope_dim / 2; i += blockDim.x) {
    const AngleOf angle(s * args.ratio, args.frequencies[i]);
    const float2 v = Turned(rotary[i], angle.cos, angle.sin);
    rotary[i] = args.faithful ? float2{RoundBf16(v.x), RoundBf16(v.y)} : v;
  }
  __syncthreads();
  if (args.for_indexer) {
    EncodeIndexKeyShared(args.index_key, entry, ItemOf(sequence.cache.index_keys, s));
  } else {
    EncodeEntryShared(args.entry, entry, ItemOf(sequence.cache.compressed, s));
  }
}

// Keeps the rows that the ring has room for. Runs after the pooling, which reads what they replace.
__global__ void KeepRowsKernel(Compression args) {
  AwaitInputs();
  const int row = blockIdx.x;
  const SequenceRows& sequence = SequenceOf(args.sequences, args.num_sequences, row);
  const RingView& ring = args.Ring(sequence);
  const int64_t i = row - sequence.first_row;
  if (i < sequence.num_rows - ring.slots) return;
  const int64_t position = sequence.first_position + i;
  float* kept = reinterpret_cast<float*>(ItemOf(ring, position));
  const float* a = args.a + static_cast<int64_t>(row) * args.width;
  const float* b = args.b + static_cast<int64_t>(row) * args.width;
  const float* ape = args.ape + position % args.ratio * args.width;
  for (int c = threadIdx.x; c < args.width; c += blockDim.x) {
    kept[c] = a[c];
    kept[args.width + c] = b[c] + ape[c];
  }
}

}  // namespace

void Compressor(const KernelContext& ctx, const CompressorArgs& args) {
  const Compression compression = {.sequences = args.sequences.data(),
                                   .num_sequences = static_cast<int>(args.sequences.size()),
                                   .ratio = args.ratio,
                                   .for_indexer = args.for_indexer,
                                   .faithful = ctx.faithful(),
                                   .entry = args.entry,
                                   .index_key = args.index_key,
                                   .dim = args.dim,
                                   .rope_dim = args.rope_dim,
                                   .width = static_cast<int>(args.ape.cols),
                                   .a = args.a,
                                   .b = args.b,
                                   .ape = args.ape.f32(),
                                   .norm = args.norm,
                                   .eps = args.norm_eps,
                                   .frequencies = args.frequencies};
  const int threads = args.dim < 512 ? (args.dim + 31) / 32 * 32 : 512;
  Launch(ctx, PoolKernel, dim3(args.rows), threads, args.dim * sizeof(float), compression);
  Launch(ctx, KeepRowsKernel, dim3(args.rows), 256, 0, compression);
}

}  // namespace foresight::cuda
