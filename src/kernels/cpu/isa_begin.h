// Opens the part of a *_cpu.cc that is compiled for the instruction set FORESIGHT_ISA (avx2 or avx512).
//
// No file is compiled with AVX flags. Only what stands between isa_begin.h and isa_end.h may use the wider
// instructions, so the inline functions of other headers (the standard library's, Arena's) stay code that
// every processor runs, whichever copy the linker keeps. Include it after all other headers, except simd.h
// and its like, which belong inside:
//
//   #include <other headers>
//
//   #include "kernels/cpu/isa_begin.h"
//   #include "kernels/cpu/simd.h"
//   namespace foresight::FORESIGHT_ISA {
//   namespace { helpers }
//   void Op(const KernelContext& ctx, const OpArgs& args) {...}
//   }
//   #include "kernels/cpu/isa_end.h"
//
// No #pragma once: it is a bracket, not a header.
#ifndef FORESIGHT_ISA
#error "*_cpu.cc files are compiled once per instruction set, see kernels/CMakeLists.txt"
#endif

#include <immintrin.h>

#include "kernels/cpu/cpu_kernels.h"

#if defined(__clang__) && defined(FORESIGHT_AVX512)
#pragma clang attribute push(                                                                          \
    __attribute__((                                                                                    \
        target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bf16"))), \
    apply_to = function)
#elif defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#elif defined(FORESIGHT_AVX512)
#pragma GCC push_options
#pragma GCC target( \
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bf16,prefer-vector-width=512")
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
