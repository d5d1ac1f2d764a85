// The product for more rows of x than the streaming kernel takes, on sm_90a; code of its own, since no later
// GPU runs it.
#pragma once

#include "kernels/linear/stream_product.h"

namespace foresight::cuda {

// As StreamProducts.
bool WideProducts(const KernelContext& ctx, StreamedProducts products);

}  // namespace foresight::cuda
