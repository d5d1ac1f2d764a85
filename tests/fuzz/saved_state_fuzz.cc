// Restoring saved states: a valid one, damaged as the input says, with the hash made to fit or not; and the
// input itself.
#include <xxhash.h>

#include "kv_cache/pattern_writer.h"
#include "kv_cache/sequence_state.h"
#include "tests/fuzz/fuzz_input.h"

namespace foresight {
namespace {

struct Caches {
  CacheLayout layout = MakeCacheLayout(PatternConfig(), CacheFormat::kFloat32, 24);
  std::unique_ptr<KvCache> cache = *KvCache::Create(
      layout,
      {.budget_bytes = 1 << 24, .max_sequences = 2, .max_sequence_tokens = 1000, .model_identity = 42});
  SequenceState source = *cache->NewSequence();
  SequenceState target = *cache->NewSequence();
};

void RestoreAndCheck(SequenceState& target, std::span<const std::byte> bytes) {
  if (!target.Restore(bytes).ok()) return;
  const Snapshot again = target.Save();
  CHECK(std::equal(again.bytes.begin(), again.bytes.end(), bytes.begin(), bytes.end()));
  CHECK(target.Truncate(target.truncatable_to()).ok());
}

}  // namespace
}  // namespace foresight

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace foresight;
  static Caches& c = *new Caches;
  FuzzInput input(data, size);
  RestoreAndCheck(c.target, std::as_bytes(std::span(data, size)));

  // [length] [bytes kept] [whether the hash fits] then places and what they become, counted from the end,
  // where the record is.
  c.source.Reset();
  PatternWriter writer(c.layout);
  CHECK(writer.Step(c.source, input.Take<uint16_t>() % 600, 1).ok());
  Snapshot snapshot = c.source.Save();
  const uint16_t cut = input.Take<uint16_t>();
  const bool fits = input.Take<uint8_t>() % 2 == 0;
  while (!input.empty()) {
    const uint16_t place = input.Take<uint16_t>();
    const uint8_t value = input.Take<uint8_t>();
    snapshot.bytes[snapshot.bytes.size() - 1 - place % snapshot.bytes.size()] = std::byte{value};
  }
  // Pieces at the front are left out, so that the record stays.
  snapshot.bytes.erase(
      snapshot.bytes.begin(),
      snapshot.bytes.begin() + static_cast<ptrdiff_t>(cut % (snapshot.bytes.size() + 1)) / 8 * 8);
  if (fits && snapshot.bytes.size() >= 8) {
    const size_t end = snapshot.bytes.size() - 8;
    const uint64_t hash = XXH3_64bits(snapshot.bytes.data(), end);
    std::memcpy(snapshot.bytes.data() + end, &hash, 8);
  }
  RestoreAndCheck(c.target, snapshot.bytes);
  return 0;
}
