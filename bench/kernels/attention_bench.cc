// Times of the attention kernels at the released shapes: attention_bench [threads]. Prints the median of some
// runs, the spread, and the rate of multiply-adds for each CPU table and both numerics.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cache_fixture.h"

namespace foresight {
namespace {

void Report(const std::string& what, double flops, const std::function<void()>& run) {
  std::vector<double> ms;
  run();
  for (int i = 0; i < 7; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(ms.begin(), ms.end());
  fmt::print("{:58} {:9.3f} ms ({:.3f} .. {:.3f}) {:8.1f} GFLOP/s\n", what, ms[3], ms.front(), ms.back(),
             flops / ms[3] * 1e-6);
}

// `rows` rows from `position` on: Flash's heads over a window of 128 and `picks` compressed entries.
void Attention(const KernelTable& table, const KernelContext& ctx, int heads, int rows, int64_t position,
               int picks) {
  const EntryLayout layout{ctx.faithful() ? CacheFormat::kPacked : CacheFormat::kFloat32, 512, 64};
  RandomFloats random(1);
  FakeCache cache({.entry = layout, .window_slots = 160, .num_entries = std::max(picks, 1)});
  const std::vector<float> x = random.Vector(512);
  for (int p = 0; p < 160; ++p) EncodeEntry(layout, x.data(), cache.view().window[p]);
  for (int s = 0; s < picks; ++s) EncodeEntry(layout, x.data(), cache.view().compressed[s]);
  std::vector<std::byte> entries(rows * layout.bytes());
  for (int t = 0; t < rows; ++t) EncodeEntry(layout, x.data(), &entries[t * layout.bytes()]);
  std::vector<int32_t> ids(int64_t{rows} * std::max(picks, 1), -1);
  for (int t = 0; t < rows; ++t) {
    for (int i = 0; i < picks; ++i) ids[int64_t{t} * picks + i] = i;
  }
  std::vector<float> q(int64_t{rows} * heads * 512, 0.5f), out(q.size());
  const std::vector<float> cos(rows * 32, 1.f), sin(rows * 32, 0.f), sink(heads, 0.f);
  const std::vector<SequenceRows> sequences = {{0, rows, position, cache.view()}};
  const AttentionArgs args{.sequences = sequences,
                           .rows = rows,
                           .heads = heads,
                           .window = 128,
                           .layout = layout,
                           .compressed = picks > 0 ? CompressedKeys::kPicked : CompressedKeys::kNone,
                           .ratio = 4,
                           .topk = std::max(picks, 1),
                           .q = q.data(),
                           .query_eps = 1e-6f,
                           .entries = entries.data(),
                           .sink = {DType::kF32, heads, reinterpret_cast<const std::byte*>(sink.data())},
                           .picks = ids.data(),
                           .cos = cos.data(),
                           .sin = sin.data(),
                           .out = out.data()};
  Report(fmt::format("{} {} attention, {} heads, {} rows, {} keys", table.name,
                     ctx.faithful() ? "faithful" : "clean", heads, rows, 128 + picks),
         4.0 * rows * heads * 512 * (128 + picks), [&] { table.attention(ctx, args); });
}

// One row at `context` tokens: Flash's lightning indexer.
void Indexer(const KernelTable& table, const KernelContext& ctx, int64_t context) {
  const IndexKeyLayout layout{ctx.faithful() ? CacheFormat::kPacked : CacheFormat::kFloat32, 128};
  const int64_t entries = context / 4;
  RandomFloats random(1);
  FakeCache cache({.entry = {.dim = 64}, .index_key = layout, .num_entries = entries});
  for (int64_t s = 0; s < entries; ++s) {
    EncodeIndexKey(layout, random.Vector(128).data(), cache.view().index_keys[s]);
  }
  std::vector<float> q = random.Vector(64 * 128);
  const std::vector<float> w = random.Vector(64), cos(32, 1.f), sin(32, 0.f);
  std::vector<int32_t> picks(512);
  const std::vector<SequenceRows> sequences = {{0, 1, context - 1, cache.view()}};
  Report(fmt::format("{} {} indexer, 1 row, context {}", table.name, ctx.faithful() ? "faithful" : "clean",
                     context),
         2.0 * 64 * 128 * static_cast<double>(entries), [&] {
           table.indexer(ctx, {.sequences = sequences,
                               .rows = 1,
                               .entries_max = entries,
                               .heads = 64,
                               .rope_dim = 64,
                               .topk = 512,
                               .key = layout,
                               .iq = q.data(),
                               .w = w.data(),
                               .cos = cos.data(),
                               .sin = sin.data(),
                               .picks = picks.data()});
         });
}

void RunAll(int threads) {
  KernelHost host(threads);
  for (const KernelTable* table : CpuTables()) {
    for (Numerics numerics : {Numerics::kFaithful, Numerics::kClean}) {
      const KernelContext ctx = host.context(numerics);
      Attention(*table, ctx, 64, 128, 512, 0);
      Attention(*table, ctx, 64, 128, 512, 128);
      Attention(*table, ctx, 64, 1, 4096, 512);
      Attention(*table, ctx, 8, 1, 4096, 128);
      Indexer(*table, ctx, 32768);
    }
  }
}

}  // namespace
}  // namespace foresight

int main(int argc, char** argv) {
  foresight::RunAll(argc > 1 ? std::max(1, std::atoi(argv[1])) : foresight::NumProcessors());
}
