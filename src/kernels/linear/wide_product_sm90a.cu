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
constexpr int kBand = 16;     // units of weights that are multiplied with all columns before the next ones

// Prepared columns in global memory: for each group and each tile of kColumns columns all blocks one after
// another, a block's units (stream_tiles.cuh) and behind them its factors of the columns.
__host__ __device__ constexpr int ImageBlockBytes(int columns) {
  return columns * (2 * kBlockK + 4);
}

// Quotients of numbers below 2^16 by such a number.
struct Quotients {
  explicit Quotients(int by = 1)
      : inverse(by == 1 ? 0 : 0xffffffffu / static_cast<uint32_t>(by) + 1), same(by == 1 ? ~0u : 0) {}
  __device__ int Of(int n) const {
    return static_cast<int>(__umulhi(static_cast<uint32_t>(n), inverse) + (static_cast<uint32_t>(n) & same));
  }
  uint32_t inverse;
  uint32_t same;
};

struct WideArgs {
  StreamedProducts of;
  int split = 1;  // K, among the thread blocks of a cluster
  int column_tiles = 1;
  const uint8_t* image = nullptr;
  // What follows from these.
  int units = 0;  // of weights, in a group: kGroupTiles each
  int items = 0;
  Quotients by_group, by_band, by_width, by_last_width;
};

// What a cluster works on at a time: a tile of columns and a unit of weights.
struct WideItem {
  int group;
  int column_tile;
  int tile;  // the first one

  // Clusters take them in order, so that those of one time have columns and weights in common: bands of
  // `band` neighbours in weights, with all columns one after another.
  __device__ static WideItem Of(const WideArgs& args, int index) {
    WideItem item;
    item.group = args.by_group.Of(index);
    index -= item.group * args.units * args.column_tiles;
    const int first = args.by_band.Of(index) * kBand;
    index -= first * args.column_tiles;
    const bool whole = first + kBand <= args.units;
    item.column_tile = (whole ? args.by_width : args.by_last_width).Of(index);
    const int unit = first + index - item.column_tile * (whole ? kBand : args.units - first);
    item.tile = item.group * args.of.tiles + unit * kGroupTiles;
    return item;
  }
};

// A warp's tiles, one of each of its cluster's items.
struct ItemTiles {
  const WideArgs& args;
  int item;
  int step;
  int within;  // the item's tiles

  __device__ bool Done() const { return item >= args.items; }
  template <typename Format>
  __device__ StreamTile Now(int k0) const {
    return TileOf<Format>(args, WideItem::Of(args, item), within, k0);
  }
  __device__ void Advance() { item += step; }

  template <typename Format>
  __device__ static StreamTile TileOf(const WideArgs& args, const WideItem& item, int within, int k0) {
    return StreamTile::Of<Format>(args.of, item.tile + within, k0,
                                  args.of.groups > 1 ? item.group : args.of.count - 1);
  }
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
  // With K split, what the cluster sends: [tile][part][column][row of products]; without, the threads' sums
  // of the parts before.
  static size_t ExtraBytes(int split) {
    const size_t sums = size_t{kGroupTiles} * kTileRows * kColumns * sizeof(float);
    if (split > 1) return sums * kLinearParts / split;
    return kColumns > 64 ? sums : 0;
  }
};

// The row of a tile that is row i of a warp's products: where i has a thread's first row, i + 8 has the next
// but one, so that four lanes that have exchanged columns for rows have 16 neighbours.
__device__ inline int RowOf(int i) {
  return i % 8 / 2 * 4 + i / 8 * 2 + i % 2;
}

// A warp's sums of a tile with the columns from `first` on, `columns` in all, in a product's order: element i
// of columns 8 j, ..., 8 j + 7 in sums[4 j + i]. Whole tiles' values are exchanged among lanes, so that whole
// sectors are written.
template <int kColumns>
__device__ inline void StoreSums(const StreamTile& tile, int first, int columns,
                                 const float (&sums)[kColumns / 2]) {
  const int g = static_cast<int>(threadIdx.x) % 32 / 4;
  const int t = static_cast<int>(threadIdx.x) % 4;
  const bool whole = tile.rows >= kTileRows && tile.out_stride % kTileRows == 0 && IsAligned(tile.out, 16);
  if (whole && tile.output != OutputType::kFloat32) {
    const bool packed = tile.output == OutputType::kBf16;
    const int size = packed ? 2 : 4;
    std::byte* to =
        static_cast<std::byte*>(tile.out) + ((first + g) * tile.out_stride + tile.row + 4 * t) * size;
    const int64_t step = 8 * tile.out_stride * size;
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j, to += step) {
      const uint32_t low = TransposeMatrix(PackBf16(sums[4 * j], sums[4 * j + 1]));
      const uint32_t high = TransposeMatrix(PackBf16(sums[4 * j + 2], sums[4 * j + 3]));
      if (first + 8 * j + g >= columns) continue;
      if (packed) {
        *reinterpret_cast<uint2*>(to) = {low, high};
      } else {
        const float2 a = UnpackBf16(low), b = UnpackBf16(high);
        *reinterpret_cast<float4*>(to) = {a.x, a.y, b.x, b.y};
      }
    }
    return;
  }
  const int row = RowOf(g);
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) {
    const int column = first + i / 4 * 8 + 2 * t + i % 2;
    if (column < columns) tile.Store(row + i % 4 / 2 * 2, column, sums[i]);
  }
}

// Begins a block's products.
template <bool kHalf, int kSums>
__device__ inline void MultiplyBlock(float (&acc)[kSums], const uint32_t (&a)[kBlockSteps][4],
                                     const uint8_t* columns) {
  constexpr int kUnitBytes = 2 * kSums * 16;
  const uint64_t operand = MatricesAt(columns, kUnitBytes);
  WarpgroupFence();
  WarpgroupMma<false, kHalf>(acc, a[0], operand);
#pragma unroll
  for (int step = 1; step < kBlockSteps; ++step) {
    WarpgroupMma<true, kHalf>(acc, a[step], Further(operand, step * 2 * kUnitBytes));
  }
  EndProducts();
}

template <typename Format, int kColumns>
__global__ void __launch_bounds__(kThreads, 1) WideProductKernel(const __grid_constant__ WideArgs args) {
  using Space = WideSpace<kColumns>;
  constexpr int kRoundBlocks = kRoundBytes / static_cast<int>(Format::Bytes(kBlockK));
  constexpr bool kTotalsAside = kColumns > 64;
  constexpr bool kSplits = kColumns <= 64;  // else what a cluster sends would not fit
  constexpr int kSums = kColumns / 2;
  extern __shared__ __align__(128) uint8_t shared[];
  Space& space = *reinterpret_cast<Space*>(shared);
  float* extra = reinterpret_cast<float*>(shared + sizeof(Space));
  const StreamedProducts& of = args.of;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;

  const int split = kSplits ? args.split : 1;
  const int rank = static_cast<int>(blockIdx.x) % split;
  const int cluster = static_cast<int>(blockIdx.x) / split;
  const int clusters = static_cast<int>(gridDim.x) / split;
  const int slice = of.cols / split;
  const int k0 = rank * slice;
  const int blocks = slice / kBlockK;
  const int rounds = blocks / kRoundBlocks;
  const int part_blocks = PartBlocks(of.cols / kBlockK, of.parts);
  const int parts = of.cols / kBlockK / part_blocks;

  if (threadIdx.x == 0) {
    for (int i = 0; i < Space::kStages; ++i) {
      space.empty[i].Init(kTileWarps);
      space.full[i].Init();
    }
  }
  // By all warps, at the one place or the other, which __syncthreads doesn't allow.
  const auto await_barriers = [&] { GroupBarrier<1>(kThreads); };
  const auto finish = [&](const WideItem& item) {  // with K split: everybody has sent its parts
    const int columns = min(of.rows - item.column_tile * kColumns, kColumns);
    ClusterArrive();
    ClusterWait();
    for (int e = threadIdx.x; e < kGroupTiles / split * columns * kTileRows; e += kThreads) {
      const int place = e % kTileRows;
      const int column = e / kTileRows % columns;
      const int local = e / kTileRows / columns;
      const StreamTile to = ItemTiles::TileOf<Format>(args, item, local * split + rank, 0);
      const float* from = extra + (local * parts * kColumns + column) * kTileRows + place;
      float sum = 0;
#pragma unroll 8
      for (int p = 0; p < parts; ++p) sum = __fadd_rn(sum, from[p * kColumns * kTileRows]);
      to.Store(RowOf(place), item.column_tile * kColumns + column, sum);
    }
    ClusterArrive();  // to be sent the next ones
  };

  if (warp >= kTileWarps) {
    GiveUpRegisters<kSplits ? 40 : 24>();
    await_barriers();
    if (split > 1) ClusterArriveRelaxed();
    AwaitInputs();
    int stage = 0;
    uint32_t parity = 1;
    for (int index = cluster; index < args.items; index += clusters) {
      if (split > 1) ClusterWait();
      const WideItem item = WideItem::Of(args, index);
      if (threadIdx.x == 32 * kTileWarps) {
        const uint8_t* image =
            args.image + ((int64_t{item.group} * args.column_tiles + item.column_tile) * (of.cols / kBlockK) +
                          k0 / kBlockK) *
                             ImageBlockBytes(kColumns);
#pragma unroll 1
        for (int block = 0; block < blocks; ++block) {
          space.empty[stage].Wait(parity);
          TransferBarrier& full = space.full[stage];
          full.Expect(ImageBlockBytes(kColumns));
          full.Fetch(space.columns[stage], image, ImageBlockBytes(kColumns));
          image += ImageBlockBytes(kColumns);
          if (++stage == Space::kStages) {
            stage = 0;
            parity ^= 1;
          }
        }
      }
      stage = __shfl_sync(0xffffffff, stage, 0);
      parity = __shfl_sync(0xffffffff, parity, 0);
      if (split > 1) finish(item);
    }
    if (split > 1) ClusterWait();
    return;
  }

  TakeRegisters<kSplits ? 232 : 240>();
  const int row = RowOf(g);  // and the second one that the thread has is two further
  const int lane_read = row * 128 + (t ^ (g % 2 * 4)) * 16;
  uint32_t lane_weights = SharedAddress(space.rings[warp]) + lane_read;
  TileStream<Format, ItemTiles> stream(of, {args, cluster, clusters, warp}, k0, rounds, lane_read);
#pragma unroll 1
  for (int slot = 0; slot < kSlots; ++slot) stream.Copy(lane_weights + slot * kSlotBytes);
  // An item's, of which a lane keeps two rounds'.
  const auto load_scales = [&](int index) {
    uint32_t scales = 0;
    if constexpr (Format::kHasScales) {
      if (index < args.items) {
        const StreamTile tile = ItemTiles::TileOf<Format>(args, WideItem::Of(args, index), warp, k0);
        const uint16_t* from = reinterpret_cast<const uint16_t*>(tile.scales) + 2 * lane;
        if (2 * lane < rounds) scales = from[0];
        if (2 * lane + 1 < rounds) scales |= static_cast<uint32_t>(from[1]) << 16;
      }
    }
    return scales;
  };
  uint32_t scales = load_scales(cluster);
  await_barriers();
  if (split > 1) ClusterArriveRelaxed();
  AwaitInputs();

  const int to_other = 64 - g % 2 * 128;  // from an even chunk to the next one
  int slot = 0;
  // The next block's weights, the first or the second one of a pair.
  const auto decode = [&](uint32_t(&a)[kBlockSteps][4], int of_pair) {
    constexpr int kChunkSteps = Format::kValues / 4;
    constexpr int kBlockChunks = kBlockSteps / kChunkSteps;
    const int b = of_pair % kRoundBlocks;
    if (b == 0) {
      AwaitCopies<kSlots - 1>();
      __syncwarp();
    }
#pragma unroll
    for (int c = 0; c < kBlockChunks; ++c) {
      const int chunk = b * kBlockChunks + c;
      const uint32_t from = lane_weights + (chunk % 2 == 0 ? 0 : to_other) + chunk / 2 * 2048;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 w = LoadShared4(from + half * 256);
        const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int step = 0; step < kChunkSteps; ++step) {
          Format::Decode(words, step, 0, a[c * kChunkSteps + step][half],
                         a[c * kChunkSteps + step][half + 2]);
        }
      }
    }
    if (b == kRoundBlocks - 1) {
      __syncwarp();
      stream.Copy(lane_weights);
      lane_weights += kSlotBytes;
      if (++slot == kSlots) {
        slot = 0;
        lane_weights -= kSlots * kSlotBytes;
      }
    }
  };

  int stage = 0;  // the next one to be left
  int full_stage = 0;
  uint32_t parity = 0;
  const auto take_columns = [&] {
    space.full[full_stage].Wait(parity);
    const uint8_t* columns = space.columns[full_stage];
    if (++full_stage == Space::kStages) {
      full_stage = 0;
      parity ^= 1;
    }
    return columns;
  };
  // A block's sums are added while the next one's products run, where registers suffice: products of fewer
  // columns at a time take longer.
  constexpr bool kTakeTurns = kColumns <= 64;
  uint32_t a[2][kBlockSteps][4];
  decode(a[0], 0);
#pragma unroll 1
  for (int index = cluster; index < args.items; index += clusters) {
    const uint32_t tile_scales = scales;
    scales = load_scales(index + clusters);
    if (split > 1) ClusterWait();
    float totals[kTotalsAside ? 1 : kSums];
    float* aside = extra + threadIdx.x;
    float sums[kSums];
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      sums[i] = 0;
      if constexpr (!kTotalsAside) totals[i] = 0;
    }
    int columns = 0;  // where others are sent to
    if (split > 1) columns = min(of.rows - WideItem::Of(args, index).column_tile * kColumns, kColumns);
    int part_left = part_blocks;
    int part = rank * (parts / split);
    const auto add = [&](const float(&acc)[kSums], const uint8_t* block_columns, uint32_t scale_byte) {
      if constexpr (!Format::kHalf) {
#pragma unroll
        for (int i = 0; i < kSums; ++i) sums[i] = __fadd_rn(sums[i], acc[i]);
      } else {
        const float scale = Format::Scale(static_cast<uint8_t>(scale_byte)).block;
        const float* factors = reinterpret_cast<const float*>(block_columns + 2 * kBlockK * kColumns) + 2 * t;
#pragma unroll
        for (int n = 0; n < kColumns / 8; ++n) {
          const float2 f = *reinterpret_cast<const float2*>(factors + n * 8);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float& sum = sums[4 * n + i];
            sum = AddScaled(sum, acc[4 * n + i], i % 2 == 0 ? f.x : f.y, scale);
          }
        }
      }
    };
    const auto end_block = [&] {
      FenceForRefill();
      __syncwarp();
      if (lane == 0) space.empty[stage].Arrive();
      if (++stage == Space::kStages) stage = 0;
      if (--part_left == 0) {
        part_left = part_blocks;
        if (split > 1) {
          float* to = extra + ((warp / split * parts + part) * kColumns + 2 * t) * kTileRows + g;
#pragma unroll
          for (int i = 0; i < kSums; ++i) {
            if (i / 4 * 8 + 2 * t + i % 2 < columns) {
              StoreToBlock(to + (i / 4 * 8 + i % 2) * kTileRows + i % 4 / 2 * 8, warp % split, sums[i]);
            }
            sums[i] = 0;
          }
        } else if constexpr (kTotalsAside) {
          // A sum from zero is never -0, so the first part's is the total as it is.
          if (part > 0) {
#pragma unroll
            for (int i = 0; i < kSums; ++i) {
              sums[i] = __fadd_rn(aside[i * (32 * kTileWarps)], sums[i]);
            }
          }
          if (part < parts - 1) {
#pragma unroll
            for (int i = 0; i < kSums; ++i) {
              aside[i * (32 * kTileWarps)] = sums[i];
              sums[i] = 0;
            }
          }
        } else {
#pragma unroll
          for (int i = 0; i < kSums; ++i) {
            totals[i] = __fadd_rn(totals[i], sums[i]);
            sums[i] = 0;
          }
        }
        ++part;
      }
    };
#pragma unroll 1
    for (int pair = 0; pair < blocks / 2; ++pair) {
      const uint32_t pair_scales = __shfl_sync(0xffffffff, tile_scales, pair / 2) >> (pair % 2 * 16);
      float acc[kTakeTurns ? 2 : 1][kSums];
      const uint8_t* const first = take_columns();
      MultiplyBlock<Format::kHalf>(acc[0], a[0], first);
      decode(a[1], 1);
      const uint8_t* second;
      if constexpr (kTakeTurns) {
        second = take_columns();
        MultiplyBlock<Format::kHalf>(acc[1], a[1], second);
        AwaitProducts<1>(acc[0]);
      } else {
        AwaitProducts<0>(acc[0]);
      }
      add(acc[0], first, pair_scales);
      end_block();
      if constexpr (!kTakeTurns) {
        second = take_columns();
        MultiplyBlock<Format::kHalf>(acc[0], a[1], second);
      }
      decode(a[0], 0);  // behind the last pair, nothing
      float(&others)[kSums] = acc[kTakeTurns ? 1 : 0];
      AwaitProducts<0>(others);
      add(others, second, pair_scales >> 8);
      end_block();
    }
    const WideItem item = WideItem::Of(args, index);
    if (split > 1) {
      finish(item);
    } else {
      const StreamTile tile = ItemTiles::TileOf<Format>(args, item, warp, k0);
      if constexpr (kTotalsAside) {
        StoreSums<kColumns>(tile, item.column_tile * kColumns, of.rows, sums);
      } else {
        StoreSums<kColumns>(tile, item.column_tile * kColumns, of.rows, totals);
      }
    }
  }
  if (split > 1) ClusterWait();
}

// That run at one time: larger ones don't fill every multiprocessor.
int Clusters(int sms, int split) {
  return std::max((split > 2 ? sms * 9 / 10 : sms) / split, 1);
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
  args.units = of.tiles / kGroupTiles;
  args.items = of.groups * column_tiles * args.units;
  args.by_group = Quotients(args.units * column_tiles);
  args.by_band = Quotients(kBand * column_tiles);
  args.by_width = Quotients(kBand);
  args.by_last_width = Quotients(std::max(args.units % kBand, 1));
  const int clusters = std::min(args.items, Clusters(DeviceOf(ctx).num_sms(), args.split));
  LaunchClusters(ctx, WideProductKernel<Format, kColumns>, static_cast<unsigned>(args.split),
                 dim3(static_cast<unsigned>(clusters * args.split)), kThreads,
                 sizeof(WideSpace<kColumns>) + WideSpace<kColumns>::ExtraBytes(args.split), args);
}

// Microseconds on an H200.
struct WideCosts {
  int columns;
  double launch;
  double item;
  double block;
};
constexpr WideCosts kCosts[] = {{32, 2.7, 1.4, 0.52}, {64, 4, 1.5, 0.65}, {128, 6, 1.2, 1.1}};

template <typename Format>
bool Run(const KernelContext& ctx, WideArgs& args) {
  const StreamedProducts& of = args.of;
  const int sms = DeviceOf(ctx).num_sms();
  const int blocks = of.cols / kBlockK;
  const int group_tiles = of.tiles / kGroupTiles;
  const int parts = blocks / PartBlocks(blocks, of.parts);
  // The cheapest of what fits.
  int columns = 0;
  double least = 0;
  for (const WideCosts& costs : kCosts) {
    const int wide = costs.columns;
    if (wide > 32 && of.rows <= wide / 2) break;
    const int items = of.groups * group_tiles * static_cast<int>(CeilDiv(of.rows, wide));
    if (items >= 1 << 16) continue;  // Quotients
    for (int split = 1; split <= (wide == 128 ? 1 : kMaxSplit); split *= 2) {
      if (wide == 64 && split == 2) continue;                          // what a cluster sends must fit
      if (Format::kHasScales && of.cols / split > 64 * 256) continue;  // a lane keeps two rounds' scales
      if (of.cols % (split * 256) != 0 || blocks % (split * PartBlocks(blocks, of.parts)) != 0) break;
      const int each = static_cast<int>(CeilDiv(items, Clusters(sms, split)));
      double item = blocks / split * costs.block + costs.item;
      if (split > 1) item += 1.3 + 0.22 * (parts / split * wide / 8);
      const double cost = costs.launch + each * item;
      if (columns == 0 || cost < least) {
        columns = wide;
        args.split = split;
        least = cost;
      }
    }
  }
  if (columns == 0) return false;
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
