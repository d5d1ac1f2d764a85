#include <cpuid.h>
#include <immintrin.h>

#include "kernels/cpu/cpu_kernels.h"

namespace foresight {
namespace {

#define FORESIGHT_CPU_TABLE(isa, table_name, text)       \
  constexpr KernelTable table_name = {                   \
      .name = "cpu-" #isa,                               \
      .description = text,                               \
      .embed = isa::Embed,                               \
      .hyper_connection_pre = isa::HyperConnectionPre,   \
      .hyper_connection_post = isa::HyperConnectionPost, \
      .hyper_head = isa::HyperHead,                      \
      .linear = isa::Linear,                             \
      .grouped_linear = isa::GroupedLinear,              \
      .rms_norm = isa::RmsNorm,                          \
      .rope_table = isa::RopeTable,                      \
      .attention_inputs = isa::AttentionInputs,          \
      .store_keys = isa::StoreKeys,                      \
      .indexer = isa::Indexer,                           \
      .attention = isa::Attention,                       \
      .router = isa::Router,                             \
      .moe = isa::Moe,                                   \
      .store_tap = isa::StoreTap,                        \
      .load_taps = isa::LoadTaps,                        \
      .sequential_head = isa::SequentialHead,            \
      .sample = SampleRef,                               \
      .logit_margins = LogitMarginsRef,                  \
      .place_tokens = PlaceTokensRef,                    \
      .plan_drafts = PlanDraftsRef,                      \
      .place_draws = PlaceDrawsRef,                      \
  };

FORESIGHT_CPU_TABLE(avx2, kAvx2, "AVX2 and FMA: float32 products")
FORESIGHT_CPU_TABLE(avx512, kAvx512, "AVX-512 with BF16 dot products")
#undef FORESIGHT_CPU_TABLE

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers Leaf(unsigned leaf, unsigned subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);  // zeros beyond the highest leaf
  return r;
}

bool Has(unsigned reg, unsigned bits) {
  return (reg & bits) == bits;
}

// The register state that the operating system saves, XCR0.
__attribute__((target("xsave"))) uint64_t SavedState() {
  return _xgetbv(0);
}

bool HasAvx2() {
  const Registers one = Leaf(1, 0);
  if (!Has(one.ecx, bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C)) return false;
  constexpr uint64_t kSseAvx = 0x6;
  return (SavedState() & kSseAvx) == kSseAvx && Has(Leaf(7, 0).ebx, bit_AVX2);
}

bool HasAvx512() {
  if (!HasAvx2()) return false;
  constexpr uint64_t kOpmaskZmm = 0xe0;
  const Registers seven = Leaf(7, 0);
  return (SavedState() & kOpmaskZmm) == kOpmaskZmm &&
         Has(seven.ebx, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL) &&
         Has(seven.ecx, bit_AVX512VBMI | bit_AVX512VNNI) && Has(Leaf(7, 1).eax, bit_AVX512BF16);
}

}  // namespace

Result<const KernelTable*> CpuKernels(std::string_view isa) {
  if (isa == "avx2") {
    if (HasAvx2()) return &kAvx2;
    return Unimplemented("this processor lacks AVX2, FMA or F16C");
  }
  if (isa == "avx512") {
    if (HasAvx512()) return &kAvx512;
    return Unimplemented("this processor lacks AVX-512 F, BW, DQ, VL, VBMI, VNNI or BF16");
  }
  return InvalidArgument("CPU kernels: want avx2 or avx512, got \"{}\"", isa);
}

Result<const KernelTable*> BestCpuKernels() {
  if (HasAvx512()) return &kAvx512;
  return CpuKernels("avx2");
}

Result<const KernelTable*> FindKernels(std::string_view name) {
  if (name == "ref") return &RefKernels();
  if (name == "cpu") return BestCpuKernels();
  if (name.starts_with("cpu-")) return CpuKernels(name.substr(4));
  if (name == "cuda") return CudaKernels();
  if (name == "cuda-sm80") return PortableCudaKernels();
  return InvalidArgument(
      "kernel table: want auto, ref, cpu, cpu-avx2, cpu-avx512, cuda or cuda-sm80, got \"{}\"", name);
}

}  // namespace foresight
