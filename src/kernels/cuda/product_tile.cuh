// What the kernels of a matrix product share: the piece of work of a thread block, and one step of it.
#pragma once

#include "kernels/cuda/activations.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/weight_formats.cuh"
#include "kernels/linear/product.h"

namespace foresight::cuda {

constexpr int kProductThreads = 256;

// Bytes of one column's block in shared memory: eight lanes' 16 bytes never meet in a bank.
constexpr int kStagedColumnBytes = 2 * kBlockK + 64;

// Sums over long K may be made of parts: tasks with `kParts` have the sums of up to so many parts, of equally
// many blocks but for the last and of four at least, added in order. Blocks of a part:
__host__ __device__ constexpr int PartBlocks(int blocks, int parts) {
  const int least = 4;
  if (parts == 1 || blocks <= least) return blocks;
  const int each = (blocks + parts - 1) / parts;
  return each < least ? least : each;
}
template <typename Tasks>
__host__ __device__ constexpr int PartsOf() {
  if constexpr (requires { Tasks::kParts; }) return Tasks::kParts;
  return 1;
}

__device__ inline void StoreOutput(void* out, int64_t at, OutputType type, float y) {
  if (type == OutputType::kBf16) {
    static_cast<uint16_t*>(out)[at] = Bf16Bits(y);
  } else {
    static_cast<float*>(out)[at] = type == OutputType::kRounded ? RoundBf16(y) : y;
  }
}

// What one thread block multiplies. "Rows" are the weight's, "columns" are rows of x.
struct ProductTile {
  const uint8_t* weights;
  const uint8_t* scales;
  int64_t scale_cols;
  int64_t row;        // first of the tile
  int64_t row_end;    // of the weight
  const uint16_t* x;  // prepared; column id's lies at x + id / id_divisor * x_stride
  int64_t x_stride;
  int id_divisor;
  const int32_t* ids;  // of the tile's columns; null: first_id, first_id + 1, ...
  int first_id;
  int columns;
  void* out;  // [id][row]
  int64_t out_stride;
  OutputType output;
  // Unless null, what x would be prepared from, for the skinny kernel to prepare by itself: without ids,
  // column id's at plain_x + id * plain_stride.
  const void* plain_x;
  bool plain_is_bf16;
  int64_t plain_stride;
  bool quantize;

  __device__ int Id(int column) const { return ids != nullptr ? ids[column] : first_id + column; }
  __device__ const uint16_t* Column(int column) const {
    return column < columns ? x + Id(column) / id_divisor * x_stride : nullptr;
  }
  // A row's product with a column, unless it lies outside of the weight or of the columns.
  __device__ void Store(int64_t at_row, int column, float y) const {
    if (at_row < row_end && column < columns) StoreOutput(out, Id(column) * out_stride + at_row, output, y);
  }
};

// Sixteen bytes of two rows, eight apart: half an operand A.
struct RowPair {
  uint4 words[2];
};

// `decode` of the rows' scales.
template <typename Format>
__device__ inline void DecodePair(const RowPair& pair, int step, const RowScale (&scales)[2],
                                  uint32_t (&a)[4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t words[4] = {pair.words[half].x, pair.words[half].y, pair.words[half].z,
                               pair.words[half].w};
    Format::Decode(words, step, scales[half].decode, a[half], a[half + 2]);
  }
}

template <typename Format>
__device__ inline void Multiply(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (Format::kHalf) {
    MmaF16(acc, a, b0, b1);
  } else {
    MmaBf16(acc, a, b0, b1);
  }
}

// acc += A B for a step of the two whose columns' values are b.
template <typename Format>
__device__ inline void MultiplyStep(float (&acc)[4], const uint32_t (&a)[4], int step, const uint4& b) {
  Multiply<Format>(acc, a, step % 2 == 0 ? b.x : b.z, step % 2 == 0 ? b.y : b.w);
}

// The factor of column g in every lane of g, as those of the lane's columns of an accumulator: 2t, 2t+1.
template <typename Format>
__device__ inline float2 ColumnFactors(float of_g) {
  if constexpr (!Format::kHalf) return {1, 1};
  const int from = threadIdx.x % 4 * 8;
  return {__shfl_sync(0xffffffff, of_g, from), __shfl_sync(0xffffffff, of_g, from + 4)};
}

// Products of one block count times the block's scales, the column's and the row's. These are powers of two,
// so whether a sum gets the exact product in one operation or in two makes no difference.
__device__ inline float AddScaled(float sum, float products, float of_column, float of_row) {
  return __fmaf_rn(products, __fmul_rn(of_column, of_row), sum);
}

// The same of a lane's sums, (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1).
template <typename Format>
__device__ inline void AddScaled(float (&sums)[4], const float (&products)[4], const RowScale (&scales)[2],
                                 float2 factors) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float of_column = i % 2 == 0 ? factors.x : factors.y;
    sums[i] = Format::kHalf ? AddScaled(sums[i], products[i], of_column, scales[i / 2].block)
                            : __fadd_rn(sums[i], products[i]);
  }
}

}  // namespace foresight::cuda
