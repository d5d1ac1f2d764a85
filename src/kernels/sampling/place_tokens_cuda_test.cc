#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "kernels/cuda/device_fixture.h"
#include "kernels/sampling/place_tokens.h"
#include "kernels/sampling/sampling.h"

namespace foresight::place_tokens_cuda_test {
namespace {

class PlaceTokensCuda : public OnDevice<> {};

// Into a row of tokens, and into a field of structs; of more tokens than a thread block has threads.
TEST_F(PlaceTokensCuda, EqualsTheDefinition) {
  std::mt19937_64 rng(7);
  for (const int count : {1, 5, 128, 129, 600}) {
    const int rows = 2 * count + 3;
    std::vector<TokenId> drawn(count);
    for (TokenId& token : drawn) token = static_cast<TokenId>(rng() % 129280);
    std::vector<int32_t> order(rows);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), rng);
    std::vector<TokenId> tokens(rows);
    std::vector<SampleRow> samples(rows);
    for (int r = 0; r < rows; ++r) tokens[r] = samples[r].draft = -r - 1;
    const auto placed = [&](const TokenId* from) {
      std::vector<PlacedToken> all(count);
      for (int i = 0; i < count; ++i) all[i] = {.token = from + i, .row = order[i]};
      return all;
    };

    device_->Clear();
    TokenId* const device_tokens = device_->Upload(tokens);
    SampleRow* const device_samples = device_->Upload(samples);
    const std::vector<PlacedToken> on_device = placed(device_->Upload(drawn));
    const std::span<const PlacedToken> uploaded(device_->Upload(on_device), on_device.size());
    const KernelContext ctx = device_->context(Numerics::kFaithful);
    table_->place_tokens(ctx, {.tokens = uploaded, .to = device_tokens});
    table_->place_tokens(ctx,
                         {.tokens = uploaded, .to = &device_samples->draft, .stride = sizeof(SampleRow)});

    const std::vector<PlacedToken> on_host = placed(drawn.data());
    PlaceTokensRef({}, {.tokens = on_host, .to = tokens.data()});
    PlaceTokensRef({}, {.tokens = on_host, .to = &samples[0].draft, .stride = sizeof(SampleRow)});
    EXPECT_EQ(device_->Download(device_tokens, rows), tokens);
    const std::vector<SampleRow> got = device_->Download(device_samples, rows);
    for (int r = 0; r < rows; ++r) EXPECT_EQ(got[r].draft, samples[r].draft) << r;
  }
}

}  // namespace
}  // namespace foresight::place_tokens_cuda_test
