#include <algorithm>
#include <bit>

#include "kernels/cuda/barriers.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/linear/stream_product.h"
#include "kernels/linear/stream_tiles.cuh"

namespace foresight::cuda {

namespace {

constexpr int kThreads = 32 * kTileWarps;
constexpr int kMaxSplit = kLinearParts;  // blocks of a cluster
constexpr int kOneWarpSlots = 4;         // of a block of one warp: all that it reads
constexpr int kOneWarpRows = 2;
constexpr size_t kSharedBytesOfTwo = size_t{113} << 10;  // so that two thread blocks share a multiprocessor
constexpr size_t kSharedBytesOfOne = size_t{116} << 10;  // two of which are too much for one
constexpr size_t kMostShared = size_t{200} << 10;

// Divides whole numbers below 2^16 / `by` by it, with one product instead of a division.
struct Divisor {
  explicit Divisor(int by = 1) : inverse(65536u / static_cast<uint32_t>(by) + 1) {}
  __device__ int Quotient(int n) const { return static_cast<int>(static_cast<uint32_t>(n) * inverse >> 16); }
  uint32_t inverse;
};

struct StreamArgs {
  StreamedProducts of;
  int split = 1;       // K, among the thread blocks of a cluster
  int clusters = 1;    // of a group
  int warps = 1;       // that share a tile, each with a part of the thread block's K
  int ring_bytes = 0;  // of a warp
  // What follows from these (Complete), so that no thread block divides before it sends for weights. split
  // and warps are powers of two.
  int split_shift = 0;
  int warps_shift = 0;
  int part_blocks = 0;
  int parts = 0;       // of all of K
  int tiles_each = 0;  // of a cluster, one more of the first tiles_more
  int tiles_more = 0;
  Divisor by_rows;
  Divisor by_clusters;
};

// Warps have tiles of 16 weight rows of their own, one after another, and the part of K of their thread
// block. The blocks of a cluster send the parts' sums of each tile to one of them, which counts the bytes: a
// barrier of the cluster would also empty the first-level cache and wait for all memory.
//
// kPairs: a warp has two columns to prepare, at most, and does it at once. Where others have that code too,
// they are up to 3 % slower. kSuccessors: the next kernel comes at once, for one row alone, or once the
// columns are here, so that what it reads ahead comes behind them.
template <typename Format, typename X, int kTiles, int kSlots, bool kPairs, Successors kSuccessors,
          int kWarps = kTileWarps>
__device__ __forceinline__ void StreamBlock(const StreamArgs& args, int block_index) {
  constexpr int kRoundBlocks = kRoundBytes / static_cast<int>(Format::Bytes(kBlockK));
  constexpr int kColumns = 8 * kTiles;
  static_assert(kRoundBlocks == 1 || kRoundBlocks == 2);
  extern __shared__ __align__(128) uint8_t shared[];
  const StreamedProducts& of = args.of;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;

  const int rank = block_index & (args.split - 1);
  const int cluster = block_index >> args.split_shift;
  const int group = args.by_clusters.Quotient(cluster);
  const int within = cluster - group * args.clusters;
  const bool idle = group >= of.groups;
  const int first = idle ? 0 : group * of.tiles + within * args.tiles_each + min(within, args.tiles_more);
  const int end = idle ? 0 : first + args.tiles_each + (within < args.tiles_more ? 1 : 0);
  const int slice = of.cols >> args.split_shift;
  const int k0 = rank * slice;
  const int blocks = slice / kBlockK;
  const int warp_blocks = blocks >> args.warps_shift;
  const int rounds = warp_blocks / kRoundBlocks;
  const int share = warp & (args.warps - 1);
  const int warp_first = first + (warp >> args.warps_shift);
  const int step = kWarps >> args.warps_shift;
  // Before the inputs are there; with more of them, of many warps, x would arrive late.
  constexpr int kSlotsBefore = kWarps == 1 ? kSlots : 2;
  const bool sends = args.split * args.warps > 1;
  const int parts = args.parts;
  const int columns = of.rows;

  // The warps' rings, the columns, their factors, and what the cluster sends, with a barrier that counts it.
  uint8_t* ring = shared + warp * args.ring_bytes;
  uint8_t* x = shared + kWarps * args.ring_bytes;
  float* factors = reinterpret_cast<float*>(x + blocks * kBlockUnits * columns * 16);
  TransferBarrier& all_received = *reinterpret_cast<TransferBarrier*>(factors + blocks * kColumns);
  float* received = reinterpret_cast<float*>(&all_received + 1);

  const int warp_k0 = k0 + share * warp_blocks * kBlockK;
  const int lane_read = g * 128 + (t ^ (g % 2 * 4)) * 16;
  uint32_t lane_weights = SharedAddress(ring) + lane_read;
  TileStream<Format, StridedTiles> stream(of, {of, warp_first, step, end}, warp_k0, rounds, lane_read);
#pragma unroll 1
  for (int slot = 0; slot < kSlotsBefore; ++slot) stream.Copy(lane_weights + slot * kSlotBytes);
  // A lane keeps the scales of one round of the tile.
  uint32_t scales = 0;
  const auto load_scales = [&](int tile_index) {
    if constexpr (Format::kHasScales) {
      const StreamTile tile = StreamTile::Of<Format>(of, tile_index, warp_k0);
      if (lane < rounds) scales = reinterpret_cast<const uint16_t*>(tile.scales)[lane];
    }
  };
  if (warp_first < end) load_scales(warp_first);
  const int mine = (end - first - rank + args.split - 1) >> args.split_shift;  // tiles whose sums come here
  if (args.split > 1) {
    if (threadIdx.x == 0) {
      all_received.Init();
      all_received.Expect(mine * parts * columns * kTileRows * static_cast<int>(sizeof(float)));
    }
    __syncwarp();
    ClusterArriveRelaxed();  // nothing is sent yet, only where to
  }

  // The warps of a share prepare its columns for themselves.
  const int sharer = warp_first - first;
  const int count = idle ? 0 : warp_blocks * of.rows;
  uint8_t* share_x = x + share * warp_blocks * kBlockUnits * columns * 16;
  float* share_factors = factors + share * warp_blocks * kColumns;
  const auto fill = [&] {
#pragma unroll
    for (int slot = kSlotsBefore; slot < kSlots; ++slot) stream.Copy(lane_weights + slot * kSlotBytes);
  };
  // Brings the columns to shared memory. In a rehearsal the values are weights, the first ones for all
  // blocks.
  const auto prepare = [&]<int kBatch>(bool real) {  // as many loads at once
    const int64_t stride = real ? int64_t{of.groups} * of.cols : 0;
    const int block_stride = real ? kBlockK : 0;
    const X* from = real ? static_cast<const X*>(of.x.data) + int64_t{group} * of.cols + warp_k0
                         : reinterpret_cast<const X*>(of.products[0].w.data);
#pragma unroll 1
    for (int begin = sharer; begin < count; begin += step * kBatch) {
      LaneValues values[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int at = min(begin + i * step, count - 1);
        const int block = args.by_rows.Quotient(at);
        LoadColumn<Format>(values[i], from + (at - block * columns) * stride + block * block_stride);
      }
      if (real && begin == sharer) fill();
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int at = min(begin + i * step, count - 1);  // the last one's more than once
        const int block = args.by_rows.Quotient(at);
        StoreColumn<Format>(values[i], of.quantize, share_x + block * kBlockUnits * columns * 16,
                            at - block * columns, columns, share_factors + block * kColumns);
      }
    }
  };

  // A rehearsal multiplies what the first slot has, sends for nothing and stores nothing. More rows take
  // longer to rehearse than is left.
  RehearseAndRun<kSuccessors>(kSuccessors == Successors::kAtOnce || of.rows == 1, [&](bool real) {
    if constexpr (kPairs) {
      prepare.template operator()<2>(real);
    } else if (count <= step) {
      prepare.template operator()<1>(real);
    } else if (count <= 4 * step) {
      prepare.template operator()<4>(real);
    } else {
      prepare.template operator()<8>(real);
    }
    if (real) {
      if (sharer >= count) fill();
    } else {
      AwaitCopies<0>();
    }
    GroupBarrier(1 + share, 32 * step);
    if (kSuccessors == Successors::kOnCall && real) CallSuccessors();
    if (real && args.split > 1) ClusterWait();

    const int unit_bytes = columns * 16;
    const uint8_t* lane_x = share_x + lane / 8 * unit_bytes + min(lane % 8, columns - 1) * 16;
    const float* lane_factors = share_factors + 2 * t;
    const int to_other = 64 - g % 2 * 128;  // from an even chunk to the next one
    const int tiles_end = real ? end : min(end, warp_first + 1);
    const int tile_rounds = real ? rounds : 1;
    const int stored_columns = real ? of.rows : 0;
    int slot = 0;
#pragma unroll 1
    for (int tile_index = warp_first; tile_index < tiles_end; tile_index += step) {
      const uint32_t tile_scales = scales;
      const uint8_t* block_x = lane_x;
      const float* block_factors = lane_factors;
      float total[kTiles][4] = {};
      float sums[kTiles][4] = {};
      int part_left = real ? args.part_blocks : kRoundBlocks;
      int part = ((rank << args.warps_shift) + share) * (parts >> args.split_shift >> args.warps_shift);
#pragma unroll 1
      for (int round = 0; round < tile_rounds; ++round) {
        AwaitCopies<kSlots - 1>();
        __syncwarp();
        // Chunk c: bytes 64 c + 16 t of the rows g and g + 8.
        uint4 weights[4][2];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const uint32_t from = lane_weights + (c % 2 == 0 ? 0 : to_other) + c / 2 * 2048;
          weights[c][0] = LoadShared4(from);
          weights[c][1] = LoadShared4(from + 1024);
        }
        __syncwarp();
        if (real) {
          stream.Copy(lane_weights);
          lane_weights += kSlotBytes;
          if (++slot == kSlots) {
            slot = 0;
            lane_weights -= kSlots * kSlotBytes;
          }
        }
        const uint32_t round_scales = __shfl_sync(0xffffffff, tile_scales, round);

        constexpr int kChunkSteps = Format::kValues / 4;
        constexpr int kBlockChunks = kBlockSteps / kChunkSteps;
        constexpr int kTogether = kTiles <= 2 ? kRoundBlocks : 1;  // blocks whose chains run side by side
#pragma unroll
        for (int b0 = 0; b0 < kRoundBlocks; b0 += kTogether) {
          float acc[kTogether][kTiles][4] = {};
#pragma unroll
          for (int pair = 0; pair < kBlockSteps / 2; ++pair) {
#pragma unroll
            for (int b = 0; b < kTogether; ++b) {
              uint32_t values[kTiles][4];
#pragma unroll
              for (int n = 0; n < kTiles; ++n) {
                LoadMatrices(values[n], block_x + ((b0 + b) * kBlockUnits + 4 * pair) * unit_bytes + n * 128);
              }
#pragma unroll
              for (int step = 2 * pair; step < 2 * pair + 2; ++step) {
                const uint4(&chunk)[2] = weights[(b0 + b) * kBlockChunks + step / kChunkSteps];
                uint32_t a[4];
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                  const uint32_t words[4] = {chunk[half].x, chunk[half].y, chunk[half].z, chunk[half].w};
                  Format::Decode(words, step % kChunkSteps, 0, a[half], a[half + 2]);
                }
#pragma unroll
                for (int n = 0; n < kTiles; ++n) {
                  Multiply<Format>(acc[b][n], a, values[n][step % 2 * 2], values[n][step % 2 * 2 + 1]);
                }
              }
            }
          }
#pragma unroll
          for (int b = 0; b < kTogether; ++b) {
            const RowScale scale = Format::Scale(static_cast<uint8_t>(round_scales >> (8 * (b0 + b))));
            const RowScale row_scales[2] = {scale, scale};
#pragma unroll
            for (int n = 0; n < kTiles; ++n) {
              const float2 f =
                  Format::kHalf
                      ? *reinterpret_cast<const float2*>(block_factors + (b0 + b) * kColumns + n * 8)
                      : float2{1, 1};
              AddScaled<Format>(sums[n], acc[b][n], row_scales, f);
            }
            if (--part_left == 0) {
              part_left = args.part_blocks;
              if (!sends) {
#pragma unroll
                for (int n = 0; n < kTiles; ++n) {
#pragma unroll
                  for (int i = 0; i < 4; ++i) {
                    total[n][i] = __fadd_rn(total[n][i], sums[n][i]);
                    sums[n][i] = 0;
                  }
                }
              } else {
                const int local = tile_index - first;
                float* to = received +
                            (((local >> args.split_shift) * parts + part) * columns + 2 * t) * kTileRows + g;
#pragma unroll
                for (int n = 0; n < kTiles; ++n) {
#pragma unroll
                  for (int i = 0; i < 4; ++i) {
                    if (n * 8 + 2 * t + i % 2 < stored_columns) {
                      float* own = to + (n * 8 + i % 2) * kTileRows + i / 2 * 8;
                      if (args.split > 1) {
                        all_received.Store(local & (args.split - 1), own, sums[n][i]);
                      } else {
                        *own = sums[n][i];
                      }
                    }
                    sums[n][i] = 0;
                  }
                }
                ++part;
              }
            }
          }
        }
        if (round == 0 && tile_index + step < tiles_end) load_scales(tile_index + step);
        block_x += kRoundBlocks * kBlockUnits * unit_bytes;
        block_factors += kRoundBlocks * kColumns;
      }
      if (!sends) {
        const StreamTile tile = StreamTile::Of<Format>(of, tile_index, warp_k0);
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int column = n * 8 + 2 * t + i % 2;
            const int row = g + i / 2 * 8;
            if (column < stored_columns) tile.Store(row, column, total[n][i]);
          }
        }
      }
    }
    if (!sends) return;
    if (!real || args.split == 1) {
      __syncthreads();
    } else {
      all_received.Wait(0);  // nobody writes to a thread block that has ended
    }
    const int part_stride = real ? columns * kTileRows : 0;
    for (int e = threadIdx.x; e < mine * of.rows * kTileRows; e += 32 * kWarps) {
      const int row = e % kTileRows;
      const int local = args.by_rows.Quotient(e / kTileRows);
      const int column = e / kTileRows - local * columns;
      const StreamTile to = StreamTile::Of<Format>(of, first + local * args.split + rank, k0);
      const float* from = real ? received + (local * parts * columns + column) * kTileRows + row
                               : reinterpret_cast<const float*>(x) + row;
      float sum = 0;
#pragma unroll 8
      for (int p = 0; p < parts; ++p) sum = __fadd_rn(sum, from[p * part_stride]);
      if (real) to.Store(row, column, sum);
    }
  });
}

template <typename Format, typename X, int kTiles, int kSlots, bool kPairs, Successors kSuccessors>
__global__ void __launch_bounds__(kThreads, kTiles == 1 ? 2 : 1)
    StreamProductKernel(const __grid_constant__ StreamArgs args) {
  StreamBlock<Format, X, kTiles, kSlots, kPairs, kSuccessors>(args, static_cast<int>(blockIdx.x));
}

// A block of one warp, with few registers and little shared memory.
template <typename Format, Successors kSuccessors>
__global__ void __launch_bounds__(32, 16) OneWarpStreamKernel(const __grid_constant__ StreamArgs args) {
  StreamBlock<Format, float, 1, kOneWarpSlots, false, kSuccessors, 1>(args, static_cast<int>(blockIdx.x));
}

// Products of both kinds at once: the first thread blocks have FP8 weights, the others BF16.
template <int kSlots>
__global__ void __launch_bounds__(kThreads, 2)
    StreamPairKernel(const __grid_constant__ StreamArgs fp8, const __grid_constant__ StreamArgs bf16,
                     int fp8_blocks) {
  if (static_cast<int>(blockIdx.x) < fp8_blocks) {
    StreamBlock<Fp8Weights, float, 1, kSlots, false, Successors::kOnCall>(fp8, static_cast<int>(blockIdx.x));
  } else {
    StreamBlock<Bf16Weights, float, 1, kSlots, false, Successors::kOnCall>(
        bf16, static_cast<int>(blockIdx.x) - fp8_blocks);
  }
}

template <typename Format, int kTiles, int kSlots, Successors kSuccessors>
auto* StreamKernel(const StreamArgs& args) {
  const int columns = args.of.cols / args.split / kBlockK * args.of.rows;  // of a thread block
  auto* kernel = StreamProductKernel<Format, float, kTiles, kSlots, false, kSuccessors>;
  if constexpr (kTiles == 1 && kSlots == 2) {  // small products
    if (columns > kTileWarps && columns <= 2 * kTileWarps)
      kernel = StreamProductKernel<Format, float, kTiles, kSlots, true, kSuccessors>;
  }
  if constexpr (kTiles == 1) {
    if (args.of.x.dtype == DType::kBF16)
      kernel = StreamProductKernel<Format, bf16, kTiles, kSlots, false, kSuccessors>;
  }
  return kernel;
}

template <typename Format, int kTiles, int kSlots>
void LaunchStream(const KernelContext& ctx, const StreamArgs& args, int clusters, size_t shared_bytes) {
  auto* kernel = StreamKernel<Format, kTiles, kSlots, Successors::kOnCall>(args);
  if constexpr (kTiles == 1) {
    if (args.of.rows == 1) kernel = StreamKernel<Format, kTiles, kSlots, Successors::kAtOnce>(args);
  }
  LaunchClusters(ctx, kernel, static_cast<unsigned>(args.split),
                 dim3(static_cast<unsigned>(clusters * args.split)), kThreads, shared_bytes, args);
}

// How K may be cut: into rounds and parts.
bool IsCut(int cols, int pieces) {
  const int blocks = cols / kBlockK;
  return cols % (pieces * 256) == 0 && blocks % (pieces * PartBlocks(blocks, kLinearParts)) == 0;
}

// Bytes of the values of K.
int64_t RowBytes(const StreamedProducts& of) {
  return of.products[0].w.dtype == DType::kBF16 ? 2 * of.cols : of.cols;
}

// Tiles of the cluster that has the most.
int TilesOf(const StreamArgs& args) {
  return static_cast<int>(CeilDiv(args.of.tiles, args.clusters));
}

void ChooseWarps(StreamArgs& args) {
  args.warps = 1;
  while (args.warps * TilesOf(args) < 6 && IsCut(args.of.cols, 2 * args.warps * args.split)) args.warps *= 2;
}

// What a warp reads of one tile.
int Rounds(const StreamArgs& args) {
  return static_cast<int>(RowBytes(args.of) / args.split / args.warps / kRoundBytes);
}
int Slots(const StreamArgs& args) {
  return Rounds(args) * static_cast<int>(CeilDiv(TilesOf(args), kTileWarps / args.warps)) < 3 ? 2 : 3;
}
size_t SharedBytes(const StreamArgs& args, int slots, int block_warps = kTileWarps) {
  const StreamedProducts& of = args.of;
  const int slice = of.cols / args.split;
  const size_t sums = size_t{CeilDiv(TilesOf(args), args.split)} * kLinearParts * of.rows * kTileRows;
  const size_t received = args.split * args.warps == 1 ? 0 : sizeof(TransferBarrier) + sums * sizeof(float);
  return size_t{kSlotBytes} * block_warps * slots + size_t{2} * slice * of.rows +
         slice / kBlockK * (of.rows <= 8 ? 8 : 16) * sizeof(float) + received;
}
// Once all choices are made.
void Complete(StreamArgs& args) {
  const StreamedProducts& of = args.of;
  args.split_shift = std::countr_zero(static_cast<unsigned>(args.split));
  args.warps_shift = std::countr_zero(static_cast<unsigned>(args.warps));
  args.part_blocks = PartBlocks(of.cols / kBlockK, kLinearParts);
  args.parts = of.cols / kBlockK / args.part_blocks;
  args.tiles_each = of.tiles / args.clusters;
  args.tiles_more = of.tiles % args.clusters;
  args.by_rows = Divisor(of.rows);
  args.by_clusters = Divisor(args.clusters);
}
// A lane keeps the scales of one round.
bool HasLaneForScales(const StreamArgs& args) {
  return args.of.products[0].w.dtype == DType::kBF16 || Rounds(args) <= 32;
}

// Thread blocks that share a tile: with long K and few tiles; many of them where the columns are many too,
// whose preparation takes its time.
int Split(const StreamedProducts& of, int sms) {
  const int tiles = of.tiles * of.groups;
  if (of.cols <= 2048 || tiles >= 8 * sms) return 1;
  int split = of.rows > 4 && tiles < 2 * sms ? kMaxSplit : 2;
  while (!IsCut(of.cols, split)) split /= 2;
  return split;
}

// A product whose tiles, each cut into all parts of K, are no more than there are multiprocessors (a router's
// of few rows): a warp for each such piece, on a multiprocessor of its own, that sends for all it needs
// before the inputs are there.
template <typename Format>
bool StreamByOneWarp(const KernelContext& ctx, StreamArgs args) {
  const StreamedProducts& of = args.of;
  args.split = kMaxSplit;
  args.clusters = of.tiles;
  args.warps = 1;
  if (of.rows > kOneWarpRows || of.x.dtype != DType::kF32 || !IsCut(of.cols, args.split) ||
      of.tiles * of.groups * args.split > DeviceOf(ctx).num_sms() || Rounds(args) > kOneWarpSlots) {
    return false;
  }
  args.ring_bytes = kOneWarpSlots * kSlotBytes;
  Complete(args);
  auto* kernel = of.rows == 1 ? OneWarpStreamKernel<Format, Successors::kAtOnce>
                              : OneWarpStreamKernel<Format, Successors::kOnCall>;
  LaunchClusters(ctx, kernel, static_cast<unsigned>(args.split),
                 dim3(static_cast<unsigned>(of.tiles * of.groups * args.split)), 32,
                 SharedBytes(args, kOneWarpSlots, 1), args);
  return true;
}

template <typename Format>
bool Stream(const KernelContext& ctx, StreamArgs& args) {
  if (StreamByOneWarp<Format>(ctx, args)) return true;
  StreamedProducts& of = args.of;
  const int sms = DeviceOf(ctx).num_sms();
  args.split = Split(of, sms);
  args.clusters = std::min(std::max(sms / args.split / of.groups, 1), of.tiles);
  ChooseWarps(args);
  if (!HasLaneForScales(args)) return false;
  int slots = Slots(args);
  if (slots == 3 && SharedBytes(args, 3) > kSharedBytesOfTwo && of.rows <= 8) slots = 2;
  args.ring_bytes = slots * kSlotBytes;
  Complete(args);
  if (SharedBytes(args, slots) > kMostShared) return false;
  auto* launch = of.rows <= 8 ? LaunchStream<Format, 1, 3> : LaunchStream<Format, 2, 3>;
  if (slots == 2) launch = of.rows <= 8 ? LaunchStream<Format, 1, 2> : LaunchStream<Format, 2, 2>;
  // One on every multiprocessor, even with nothing to do: else some get two of the next launch, which are
  // late.
  size_t shared_bytes = SharedBytes(args, slots);
  // Groups come behind attention, of which half of the multiprocessors are free before the others.
  if (of.groups > 1 && of.rows > 1) shared_bytes = std::max(shared_bytes, kSharedBytesOfOne);
  launch(ctx, args, std::max(of.groups * args.clusters, sms / args.split), shared_bytes);
  return true;
}

}  // namespace

bool StreamProducts(const KernelContext& ctx, StreamedProducts products) {
  const int most_rows = products.x.dtype == DType::kBF16 ? 8 : 16;
  if (DeviceOf(ctx).capability() < 90 || products.rows > most_rows) return false;
  if (!PlaceTiles(products, 1)) return false;
  // Columns that take long to prepare pay where every thread block has many tiles for them.
  const bool many_tiles = products.tiles * products.groups >= 8 * DeviceOf(ctx).num_sms();
  if (products.rows > 8 && (products.cols > 1024 || !many_tiles)) return false;
  StreamArgs args;
  args.of = products;
  return products.products[0].w.dtype == DType::kBF16 ? Stream<Bf16Weights>(ctx, args)
                                                      : Stream<Fp8Weights>(ctx, args);
}

bool StreamProducts(const KernelContext& ctx, StreamedProducts fp8, StreamedProducts bf16) {
  if (DeviceOf(ctx).capability() < 90 || fp8.rows > 8) return false;
  if (!PlaceTiles(fp8, 1) || !PlaceTiles(bf16, 1)) return false;
  const int sms = DeviceOf(ctx).num_sms();
  StreamArgs args[2];
  int split = kMaxSplit;
  while (!IsCut(fp8.cols, split)) split /= 2;
  // As many clusters for either that none has much more to read than the others.
  const int clusters = sms / split;
  int64_t least = 0;
  for (int i = 1; i < clusters; ++i) {
    const int64_t most =
        std::max(CeilDiv(fp8.tiles, i) * RowBytes(fp8), CeilDiv(bf16.tiles, clusters - i) * RowBytes(bf16));
    if (i > 1 && most >= least) continue;
    least = most;
    args[0].clusters = i;
    args[1].clusters = clusters - i;
  }
  args[0].of = fp8;
  args[1].of = bf16;
  constexpr int kSlots = 2;
  size_t shared_bytes = 0;
  for (StreamArgs& a : args) {
    a.split = split;
    a.clusters = std::min(a.clusters, a.of.tiles);
    a.ring_bytes = kSlots * kSlotBytes;
    ChooseWarps(a);
    if (!HasLaneForScales(a)) return false;
    Complete(a);
    shared_bytes = std::max(shared_bytes, SharedBytes(a, kSlots));
  }
  if (shared_bytes > kMostShared) return false;
  LaunchClusters(ctx, StreamPairKernel<kSlots>, static_cast<unsigned>(split),
                 dim3(static_cast<unsigned>(clusters * split)), kThreads, shared_bytes, args[0], args[1],
                 args[0].clusters * split);
  return true;
}

}  // namespace foresight::cuda
