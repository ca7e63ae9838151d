// What the compilers spell differently.
#pragma once

#if defined(_MSC_VER) && !defined(__clang__)
#define GLMLITE_INLINE __forceinline
#define GLMLITE_NOINLINE __declspec(noinline)
#else
#define GLMLITE_INLINE inline __attribute__((always_inline))
#define GLMLITE_NOINLINE __attribute__((noinline))
#endif
