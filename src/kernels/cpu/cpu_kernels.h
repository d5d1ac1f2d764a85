// The CPU implementation of every table entry, once per instruction set: foresight::avx2 and
// foresight::avx512.
#pragma once

#include "kernels/kernel_table.h"

#define FORESIGHT_DECLARE_CPU_KERNELS(isa)                                                 \
  namespace foresight::isa {                                                               \
  void Embed(const KernelContext& ctx, const EmbedArgs& args);                             \
  void HyperConnectionPre(const KernelContext& ctx, const HyperConnectionPreArgs& args);   \
  void HyperConnectionPost(const KernelContext& ctx, const HyperConnectionPostArgs& args); \
  void HyperHead(const KernelContext& ctx, const HyperHeadArgs& args);                     \
  void Linear(const KernelContext& ctx, const LinearArgs& args);                           \
  void GroupedLinear(const KernelContext& ctx, const GroupedLinearArgs& args);             \
  void RmsNorm(const KernelContext& ctx, const RmsNormArgs& args);                         \
  void RopeTable(const KernelContext& ctx, const RopeTableArgs& args);                     \
  void Query(const KernelContext& ctx, const QueryArgs& args);                             \
  void Key(const KernelContext& ctx, const KeyArgs& args);                                 \
  void AttentionInputs(const KernelContext& ctx, const AttentionInputsArgs& args);         \
  void StoreKeys(const KernelContext& ctx, const StoreKeysArgs& args);                     \
  void Compressor(const KernelContext& ctx, const CompressorArgs& args);                   \
  void Indexer(const KernelContext& ctx, const IndexerArgs& args);                         \
  void Attention(const KernelContext& ctx, const AttentionArgs& args);                     \
  void Router(const KernelContext& ctx, const RouterArgs& args);                           \
  void Moe(const KernelContext& ctx, const MoeArgs& args);                                 \
  void StoreTap(const KernelContext& ctx, const StoreTapArgs& args);                       \
  void LoadTaps(const KernelContext& ctx, const LoadTapsArgs& args);                       \
  void SequentialHead(const KernelContext& ctx, const SequentialHeadArgs& args);           \
  }

FORESIGHT_DECLARE_CPU_KERNELS(avx2)
FORESIGHT_DECLARE_CPU_KERNELS(avx512)

#undef FORESIGHT_DECLARE_CPU_KERNELS
