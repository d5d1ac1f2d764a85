// The product for few rows of x, as fast as weights can be read (sm_90).
#pragma once

#include "kernels/cuda/activations.cuh"
#include "kernels/linear/product.h"

namespace foresight::cuda {

constexpr int kLinearParts = 8;  // of K

// Products of one dtype and K. With groups, product j is group j's, all of them equally large.
struct StreamedProducts {
  Product products[kMaxProducts] = {};
  int first_tile[kMaxProducts] = {};  // tiles of 16 weight rows before this product's
  int count = 0;
  int tiles = 0;  // of a group
  int groups = 1;
  int rows = 0;
  int cols = 0;
  int parts = kLinearParts;  // of a sum, at most; WideProducts alone takes another number
  ActivationView x;          // [rows, groups, cols]; bf16 of groups alone
  bool quantize = false;
};

// False, and nothing is launched, unless this is made for the device, the shapes and the number of rows.
// first_tile and tiles need not be set.
bool StreamProducts(const KernelContext& ctx, StreamedProducts products);

// The same of FP8 and BF16 products of one x in one launch.
bool StreamProducts(const KernelContext& ctx, StreamedProducts fp8, StreamedProducts bf16);

}  // namespace foresight::cuda
