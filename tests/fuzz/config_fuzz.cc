// config.json, and what is computed from every config that is let through: the tensor table and the cache
// layout.
#include "kv_cache/cache_layout.h"
#include "tests/fuzz/fuzz_input.h"
#include "weights/config.h"
#include "weights/layout.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace foresight;
  const Result<ModelConfig> config = ParseModelConfig({reinterpret_cast<const char*>(data), size});
  if (!config.ok()) {
    CHECK(!config.status().message().empty());
    return 0;
  }
  CHECK(std::ssize(config->layers) == config->num_hidden_layers);
  for (const CacheFormat format : {CacheFormat::kFloat32, CacheFormat::kPacked}) {
    const CacheLayout layout = MakeCacheLayout(*config, format);
    CHECK(layout.fixed_bytes > 0 && layout.block_bytes >= 0 && KvBytesPerToken(layout) >= 0);
  }
  // Tables of more than this take longer than they show.
  if (static_cast<int64_t>(config->num_hidden_layers) * config->n_routed_experts > 2000) return 0;
  ModelWeights weights;
  for (const WeightSlot& slot : LayOutWeights(*config, LayoutFromConfig(*config), &weights)) {
    CHECK(slot.bytes() > 0 && slot.bytes() < uint64_t{1} << 48, "{}", slot.tensor.name);
  }
  return 0;
}
