// What the compilers and processors spell differently.
#pragma once

// GLMLITE_MEMORY_BARRIER: the compiler keeps nothing in registers across it that memory could hold; no instruction.
// GLMLITE_PIN: the integer exists at this point.
// GLMLITE_PIN_XMM, GLMLITE_PIN_ZMM: the vector exists at this point, so that sums are not reassociated into trees that
// spill, nor dot products reordered.
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#define GLMLITE_INLINE __forceinline
#define GLMLITE_NOINLINE __declspec(noinline)
#define GLMLITE_MEMORY_BARRIER() _ReadWriteBarrier()
#define GLMLITE_PIN(v) (void)(v)
#define GLMLITE_PIN_XMM(v) (void)(v)
#define GLMLITE_PIN_ZMM(v) (void)(v)
#else
#define GLMLITE_INLINE inline __attribute__((always_inline))
#define GLMLITE_NOINLINE __attribute__((noinline))
#define GLMLITE_MEMORY_BARRIER() __asm__ volatile("" ::: "memory")
#define GLMLITE_PIN(v) __asm__("" : "+r"(v))
#define GLMLITE_PIN_XMM(v) __asm__("" : "+x"(v))
#define GLMLITE_PIN_ZMM(v) __asm__("" : "+v"(v))
#endif

// GLMLITE_PREFETCH to the first-level cache, GLMLITE_PREFETCH_FAR to the second. Macros: GCC takes a function that only
// prefetches for one without effect, and drops its calls.
#if defined(__GNUC__) || defined(__clang__)
#define GLMLITE_PREFETCH(p) __builtin_prefetch(p)
#define GLMLITE_PREFETCH_FAR(p) __builtin_prefetch(p, 0, 2)
#elif defined(_M_ARM64)
#define GLMLITE_PREFETCH(p) __prefetch(p)
#define GLMLITE_PREFETCH_FAR(p) __prefetch2(p, 2)
#else
#define GLMLITE_PREFETCH(p) _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0)
#define GLMLITE_PREFETCH_FAR(p) _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1)
#endif

// Tiles live in registers only if their loops are unrolled early; without this GCC keeps them in memory.
#if defined(__clang__)
#define GLMLITE_UNROLL_TILE _Pragma("unroll")
#elif defined(__GNUC__)
#define GLMLITE_UNROLL_TILE _Pragma("GCC unroll 16")
#else
#define GLMLITE_UNROLL_TILE
#endif
