#include <algorithm>

#include "kernels/cuda/barriers.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/linear/stream_tiles.cuh"
#include "kernels/linear/wide_product.h"

namespace foresight::cuda {

namespace {

constexpr int kThreads = 32 * (kTileWarps + 4);  // a warp behind those that multiply fetches columns
constexpr int kGroupTiles = kTileWarps;  // tiles that a thread block works on at once: 128 weight rows
constexpr int kSlots = 2;
constexpr int kMaxSplit = 8;  // blocks of a cluster

// Prepared columns in global memory: for each group and each tile of kColumns columns all blocks one after
// another, a block's units (stream_tiles.cuh) and behind them its factors of the columns.
__host__ __device__ constexpr int ImageBlockBytes(int columns) {
  return columns * (2 * kBlockK + 4);
}

struct WideArgs {
  StreamedProducts of;
  int split = 1;     // K, among the thread blocks of a cluster
  int clusters = 1;  // of a group and a tile of columns
  int column_tiles = 1;
  const uint8_t* image = nullptr;
};

// Eight columns, a warp each, in two blocks of 128: whole lines of the image. Zeros in columns behind the
// last one.
constexpr int kImageColumns = 8;
constexpr int kImageBlocks = 2;

template <typename Format, int kColumns, typename X>
__global__ void __launch_bounds__(32 * kImageColumns)
    ColumnImageKernel(const X* x, int rows, int groups, int cols, bool quantize, uint8_t* image) {
  constexpr int kPlaces = kImageColumns + 1;  // of which one is empty, for fewer conflicts of banks
  __shared__ alignas(16) uint8_t units[kImageBlocks][kBlockUnits * kPlaces * 16];
  __shared__ float factors[kImageBlocks][kImageColumns];
  AwaitInputs();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int first = static_cast<int>(blockIdx.x) * kImageColumns;
  const int column = first + warp;
  const int group = static_cast<int>(blockIdx.z);
  const int block = static_cast<int>(blockIdx.y) * kImageBlocks;
  LaneValues values[kImageBlocks] = {};
  if (column < rows) {
#pragma unroll
    for (int i = 0; i < kImageBlocks; ++i) {
      LoadColumn<Format>(values[i], x + (int64_t{column} * groups + group) * cols + (block + i) * kBlockK);
    }
  }
#pragma unroll
  for (int i = 0; i < kImageBlocks; ++i) {
    StoreColumn<Format>(values[i], quantize, units[i], warp, kPlaces, factors[i]);
  }
  __syncthreads();
  const int column_tiles = static_cast<int>(gridDim.x) * kImageColumns / kColumns;
  uint8_t* to = image + ((int64_t{group} * column_tiles + first / kColumns) * (cols / kBlockK) + block) *
                            ImageBlockBytes(kColumns);
  const int i = static_cast<int>(threadIdx.x) / (kImageColumns * kBlockUnits);
  const int unit = static_cast<int>(threadIdx.x) / kImageColumns % kBlockUnits;
  const int place = static_cast<int>(threadIdx.x) % kImageColumns;
  to += i * ImageBlockBytes(kColumns);
  *reinterpret_cast<uint4*>(to + (unit * kColumns + first % kColumns + place) * 16) =
      *reinterpret_cast<const uint4*>(units[i] + (unit * kPlaces + place) * 16);
  if (unit == 0) {
    reinterpret_cast<float*>(to + 2 * kBlockK * kColumns)[first % kColumns + place] = factors[i][place];
  }
}

template <int kColumns>
struct WideSpace {
  static constexpr int kStages = kColumns == 32 ? 8 : kColumns == 64 ? 6 : 3;
  uint8_t rings[kTileWarps][kSlots * kSlotBytes];
  alignas(128) uint8_t columns[kStages][ImageBlockBytes(kColumns)];
  TransferBarrier full[kStages];
  SharedBarrier empty[kStages];
  // With a cluster, what it sends: [tile][part][column][row]; without, the threads' sums of the parts before.
  static size_t ExtraBytes(int split) {
    const size_t sums = size_t{kGroupTiles} * kTileRows * kColumns * sizeof(float);
    if (split > 1) return sums * kLinearParts / split;
    return kColumns > 64 ? sums : 0;
  }
};

template <typename Format, int kColumns>
__global__ void __launch_bounds__(kThreads, 1) WideProductKernel(const __grid_constant__ WideArgs args) {
  using Space = WideSpace<kColumns>;
  constexpr int kRoundBlocks = kRoundBytes / static_cast<int>(Format::Bytes(kBlockK));
  constexpr bool kTotalsAside = kColumns > 64;
  constexpr int kSums = kColumns / 2;
  extern __shared__ __align__(128) uint8_t shared[];
  Space& space = *reinterpret_cast<Space*>(shared);
  float* extra = reinterpret_cast<float*>(shared + sizeof(Space));
  const StreamedProducts& of = args.of;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;

  const int rank = static_cast<int>(blockIdx.x) % args.split;
  const int cluster = static_cast<int>(blockIdx.x) / args.split;
  const int within = cluster % args.clusters;
  const int column_tile = cluster / args.clusters % args.column_tiles;
  const int group = cluster / args.clusters / args.column_tiles;
  const int group_tiles = of.tiles / kGroupTiles;
  const int first = group * of.tiles + group_tiles * within / args.clusters * kGroupTiles;
  const int end = group * of.tiles + group_tiles * (within + 1) / args.clusters * kGroupTiles;
  const int slice = of.cols / args.split;
  const int k0 = rank * slice;
  const int blocks = slice / kBlockK;
  const int rounds = blocks / kRoundBlocks;
  const int part_blocks = PartBlocks(of.cols / kBlockK, of.parts);
  const int parts = of.cols / kBlockK / part_blocks;
  const int columns = min(of.rows - column_tile * kColumns, kColumns);

  if (threadIdx.x == 0) {
    for (int i = 0; i < Space::kStages; ++i) {
      space.empty[i].Init(kTileWarps);
      space.full[i].Init();
    }
  }
  const auto finish = [&](int tile) {  // of a cluster: everybody has sent its parts of tiles `tile`, ...
    ClusterArrive();
    ClusterWait();
    for (int e = threadIdx.x; e < kGroupTiles / args.split * columns * kTileRows; e += kThreads) {
      const int row = e % kTileRows;
      const int column = e / kTileRows % columns;
      const int local = e / kTileRows / columns;
      const StreamTile to = StreamTile::Of<Format>(of, tile + local * args.split + rank, 0);
      const float* from = extra + (local * parts * kColumns + column) * kTileRows + row;
      float sum = 0;
#pragma unroll 8
      for (int p = 0; p < parts; ++p) sum = __fadd_rn(sum, from[p * kColumns * kTileRows]);
      to.Store(row, column_tile * kColumns + column, sum);
    }
    ClusterArrive();  // to be sent the next ones
  };

  if (warp >= kTileWarps) {
    GiveUpRegisters<40>();
    __syncthreads();
    if (args.split > 1) ClusterArrive();
    AwaitInputs();
    const uint8_t* image =
        args.image +
        ((int64_t{group} * args.column_tiles + column_tile) * (of.cols / kBlockK) + k0 / kBlockK) *
            ImageBlockBytes(kColumns);
    int stage = 0;
    uint32_t parity = 1;
    for (int tile = first; tile < end; tile += kGroupTiles) {
      if (args.split > 1) ClusterWait();
      if (threadIdx.x == 32 * kTileWarps) {
#pragma unroll 1
        for (int block = 0; block < blocks; ++block) {
          space.empty[stage].Wait(parity);
          space.full[stage].Expect(ImageBlockBytes(kColumns));
          space.full[stage].Fetch(space.columns[stage], image + int64_t{block} * ImageBlockBytes(kColumns),
                                  ImageBlockBytes(kColumns));
          if (++stage == Space::kStages) {
            stage = 0;
            parity ^= 1;
          }
        }
      }
      stage = __shfl_sync(0xffffffff, stage, 0);
      parity = __shfl_sync(0xffffffff, parity, 0);
      if (args.split > 1) finish(tile);
    }
    if (args.split > 1) ClusterWait();
    return;
  }

  TakeRegisters<232>();
  uint8_t* ring = space.rings[warp];
  TileStream<Format> stream(of, first + warp, kGroupTiles, end, k0, rounds);
#pragma unroll 1
  for (int slot = 0; slot < kSlots; ++slot) stream.Copy(ring + slot * kSlotBytes);
  int tile_index = first + warp;
  uint32_t scales = 0;
  const auto load_scales = [&](const StreamTile& tile) {
    if constexpr (Format::kHasScales) {
      if (lane < rounds) scales = reinterpret_cast<const uint16_t*>(tile.scales)[lane];
    }
  };
  StreamTile tile = {};
  if (tile_index < end) {
    tile = StreamTile::Of<Format>(of, tile_index, k0);
    load_scales(tile);
  }
  __syncthreads();
  if (args.split > 1) ClusterArrive();
  AwaitInputs();

  const uint8_t* lane_weights = ring + g * 128 + (t ^ (g % 2 * 4)) * 16;
  const uint8_t* lane_weights_other = ring + g * 128 + ((4 + t) ^ (g % 2 * 4)) * 16;
  int slot = 0;
  int stage = 0;
  uint32_t parity = 0;
#pragma unroll 1
  for (; tile_index < end; tile_index += kGroupTiles) {
    const uint32_t tile_scales = scales;
    StreamTile next = {};
    if (tile_index + kGroupTiles < end) {
      next = StreamTile::Of<Format>(of, tile_index + kGroupTiles, k0);
      load_scales(next);
    }
    if (args.split > 1) ClusterWait();
    float totals[kTotalsAside ? 1 : kSums];
    float* aside = extra + threadIdx.x;
    float sums[kSums];
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      sums[i] = 0;
      if constexpr (kTotalsAside) {
        aside[i * (32 * kTileWarps)] = 0;
      } else {
        totals[i] = 0;
      }
    }
    int part_left = part_blocks;
    int part = rank * (parts / args.split);
#pragma unroll 1
    for (int round = 0; round < rounds; ++round) {
      AwaitCopies<kSlots - 1>();
      __syncwarp();
      const uint32_t round_scales = __shfl_sync(0xffffffff, tile_scales, round);
      constexpr int kChunkSteps = Format::kValues / 4;
      constexpr int kBlockChunks = kBlockSteps / kChunkSteps;
#pragma unroll
      for (int b = 0; b < kRoundBlocks; ++b) {
        uint32_t a[kBlockSteps][4];
        float acc[kSums];
        const uint64_t operand = MatricesAt(space.columns[stage], kColumns * 16);
#pragma unroll
        for (int c = 0; c < kBlockChunks; ++c) {
          const int chunk = b * kBlockChunks + c;
          const uint8_t* from =
              (chunk % 2 == 0 ? lane_weights : lane_weights_other) + slot + chunk / 2 * 2048;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const uint4 w = *reinterpret_cast<const uint4*>(from + half * 1024);
            const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
            for (int step = 0; step < kChunkSteps; ++step) {
              Format::Decode(words, step, 0, a[c * kChunkSteps + step][half],
                             a[c * kChunkSteps + step][half + 2]);
            }
          }
          if (c == 0) space.full[stage].Wait(parity);
          WarpgroupFence();
#pragma unroll
          for (int step = c * kChunkSteps; step < (c + 1) * kChunkSteps; ++step) {
            if (step == 0) {
              WarpgroupMma<false, Format::kHalf>(acc, a[0], operand);
            } else {
              WarpgroupMma<true, Format::kHalf>(acc, a[step], Further(operand, step * 2 * kColumns * 16));
            }
          }
        }
        EndProducts();
        if (b == kRoundBlocks - 1) {
          __syncwarp();
          stream.Copy(ring + slot);
          slot = slot + kSlotBytes < kSlots * kSlotBytes ? slot + kSlotBytes : 0;
        }
        const float scale = Format::Scale(static_cast<uint8_t>(round_scales >> (8 * b))).block;
        const float* factors =
            reinterpret_cast<const float*>(space.columns[stage] + 2 * kBlockK * kColumns) + 2 * t;
        AwaitProducts<0>(acc);
#pragma unroll
        for (int n = 0; n < kColumns / 8; ++n) {
          const float2 f = Format::kHalf ? *reinterpret_cast<const float2*>(factors + n * 8) : float2{1, 1};
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float y = acc[4 * n + i];
            if constexpr (Format::kHalf) y = __fmul_rn(__fmul_rn(y, i % 2 == 0 ? f.x : f.y), scale);
            sums[4 * n + i] = __fadd_rn(sums[4 * n + i], y);
          }
        }
        __syncwarp();
        if (lane == 0) space.empty[stage].Arrive();
        if (++stage == Space::kStages) {
          stage = 0;
          parity ^= 1;
        }
        if (--part_left == 0) {
          part_left = part_blocks;
          if (args.split == 1) {
#pragma unroll
            for (int i = 0; i < kSums; ++i) {
              if constexpr (kTotalsAside) {
                float& total = aside[i * (32 * kTileWarps)];
                total = __fadd_rn(total, sums[i]);
              } else {
                totals[i] = __fadd_rn(totals[i], sums[i]);
              }
              sums[i] = 0;
            }
          } else {
            float* to = extra + ((warp / args.split * parts + part) * kColumns + 2 * t) * kTileRows + g;
#pragma unroll
            for (int i = 0; i < kSums; ++i) {
              if (i / 4 * 8 + 2 * t + i % 2 < columns) {
                StoreToBlock(to + (i / 4 * 8 + i % 2) * kTileRows + i % 4 / 2 * 8, warp % args.split,
                             sums[i]);
              }
              sums[i] = 0;
            }
            ++part;
          }
        }
      }
    }
    if (args.split > 1) {
      finish(tile_index - warp);
    } else {
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        const int column = i / 4 * 8 + 2 * t + i % 2;
        const int row = g + i % 4 / 2 * 8;
        float y;
        if constexpr (kTotalsAside) {
          y = aside[i * (32 * kTileWarps)];
        } else {
          y = totals[i];
        }
        if (column < columns) tile.Store(row, column_tile * kColumns + column, y);
      }
    }
    tile = next;
  }
  if (args.split > 1) ClusterWait();
}

template <typename Format, int kColumns>
void Launch(const KernelContext& ctx, WideArgs args) {
  const StreamedProducts& of = args.of;
  const int blocks = of.cols / kBlockK;
  const int column_tiles = static_cast<int>(CeilDiv(of.rows, kColumns));
  ArenaScope scope(*ctx.scratch);
  uint8_t* image =
      ctx.scratch->Allocate<uint8_t>(int64_t{of.groups} * column_tiles * blocks * ImageBlockBytes(kColumns));
  const auto prepare = [&](const auto* x) {
    using X = std::remove_cvref_t<decltype(*x)>;
    cuda::Launch(ctx, ColumnImageKernel<Format, kColumns, X>,
                 dim3(static_cast<unsigned>(column_tiles * kColumns / kImageColumns),
                      static_cast<unsigned>(blocks / kImageBlocks), static_cast<unsigned>(of.groups)),
                 32 * kImageColumns, 0, x, of.rows, of.groups, of.cols, of.quantize, image);
  };
  if (of.x.dtype == DType::kBF16) {
    prepare(of.x.b16());
  } else {
    prepare(of.x.f32());
  }
  args.image = image;
  args.column_tiles = column_tiles;
  LaunchClusters(ctx, WideProductKernel<Format, kColumns>, static_cast<unsigned>(args.split),
                 dim3(static_cast<unsigned>(of.groups * column_tiles * args.clusters * args.split)), kThreads,
                 sizeof(WideSpace<kColumns>) + WideSpace<kColumns>::ExtraBytes(args.split), args);
}

template <typename Format>
bool Run(const KernelContext& ctx, WideArgs& args) {
  const StreamedProducts& of = args.of;
  const int sms = DeviceOf(ctx).num_sms();
  const int blocks = of.cols / kBlockK;
  const int group_tiles = of.tiles / kGroupTiles;
  // The cheapest of what fits, in tenths of a microsecond.
  int columns = 0;
  double least = 0;
  const int parts = blocks / PartBlocks(blocks, of.parts);
  for (int wide = 32; wide <= (of.rows > 64 ? 128 : of.rows > 32 ? 64 : 32); wide *= 2) {
    for (int split = 1; split <= (wide == 128 ? 1 : kMaxSplit); split *= 2) {
      if (wide == 64 && split == 2) continue;                          // what a cluster sends must fit
      if (Format::kHasScales && of.cols / split > 32 * 256) continue;  // a lane keeps the scales of a round
      if (of.cols % (split * 256) != 0 || blocks % (split * PartBlocks(blocks, of.parts)) != 0) break;
      const int items = of.groups * group_tiles * static_cast<int>(CeilDiv(of.rows, wide));
      // Larger clusters don't fill every multiprocessor.
      const int tiles =
          static_cast<int>(CeilDiv(items, std::max(sms * (split > 2 ? 9 : 10) / 10 / split, 1)));
      double cost = tiles * (blocks / split) * (wide == 32 ? 3.5 : wide == 64 ? 5 : 8);
      if (split > 1) cost += tiles * (10 + parts / split * wide / 8);
      if (columns == 0 || cost < least) {
        columns = wide;
        args.split = split;
        least = cost;
      }
    }
  }
  if (columns == 0) return false;
  const int per_tile =
      std::max(sms / args.split / of.groups / static_cast<int>(CeilDiv(of.rows, columns)), 1);
  args.clusters = static_cast<int>(CeilDiv(group_tiles, CeilDiv(group_tiles, per_tile)));
  switch (columns) {
    case 32:
      Launch<Format, 32>(ctx, args);
      break;
    case 64:
      Launch<Format, 64>(ctx, args);
      break;
    default:
      Launch<Format, 128>(ctx, args);
  }
  return true;
}

}  // namespace

bool WideProducts(const KernelContext& ctx, StreamedProducts products) {
  if (DeviceOf(ctx).capability() != 90) return false;
  if (products.rows <= 16 && products.cols >= 8192) return false;  // others are faster
  if (!PlaceTiles(products, kGroupTiles)) return false;
  WideArgs args;
  args.of = products;
  return products.products[0].w.dtype == DType::kBF16 ? Run<Bf16Weights>(ctx, args)
                                                      : Run<Fp8Weights>(ctx, args);
}

}  // namespace foresight::cuda
