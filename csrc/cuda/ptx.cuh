// What CUDA C++ has no function for, or none that all compute capabilities have. tests/native/cuda_host/warp_host.h has
// the same for the CPU.
#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace glmlite::cuda {

// The block's dynamic shared memory, 16-byte aligned. No kernel has any other.
__device__ inline uint8_t* shared_memory() {
  extern __shared__ uint4 shared_bytes[];
  return reinterpret_cast<uint8_t*>(shared_bytes);
}

__device__ inline float half_to_float(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
__device__ inline uint16_t float_to_half(float x) { return __half_as_ushort(__float2half_rn(x)); }

// Two f32 to f16, the first in the lower half.
__device__ inline uint32_t halves_of(float low, float high) {
  const __half2 v = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}
// Two f16, each less a whole number up to 2048.
__device__ inline uint32_t half2_minus(uint32_t v, int number) {
  const __half2 r = __hsub2(*reinterpret_cast<const __half2*>(&v), __half2half2(__int2half_rn(number)));
  return *reinterpret_cast<const uint32_t*>(&r);
}

// Programmatic dependent launch, see `launch`. The next kernel of the stream may start once all blocks of this one have
// called start_next, or ended.
__device__ inline void start_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
// All kernels before this one have ended, and what they wrote is there. What a step writes is read by plain loads only:
// one for what never changes (__ldg, load_once) may be made before this.
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Asks for 128 bytes, from DRAM to L2.
__device__ inline void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// 16 bytes that are read once: past L1, so that activations stay there.
__device__ inline uint4 load_once(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// 16 bytes from global to shared memory, complete after copies_done<n>() with n later commits allowed to be under way.
__device__ inline void copy_async(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
  const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
#else
  *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
#endif
}
__device__ inline void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kUnderWay>
__device__ inline void copies_done() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kUnderWay) : "memory");
#endif
}

// d = a . b + c for a of 16 rows and b of 8 columns, int8, exact; c the same number everywhere. Lane 4 g + i has
//   a[0]: row g, k 4 i .. 4 i + 3; a[1]: row g + 8; b0: column g, the same k; for k 32: a[2], a[3], b1: k + 16
//   d: (row g, column 2 i), (g, 2 i + 1), (g + 8, 2 i), (g + 8, 2 i + 1)
__device__ inline void mma_k16(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t b, int c) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(a0), "r"(a1), "r"(b), "r"(c));
#else
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%4, %4};"
               : "=r"(d[0]), "=r"(d[1])
               : "r"(a0), "r"(b), "r"(c));
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%4, %4};"
               : "=r"(d[2]), "=r"(d[3])
               : "r"(a1), "r"(b), "r"(c));
#endif
}
__device__ inline void mma_k32(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int c) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, "
      "%10};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c));
#else
  for (int half = 0; half < 2; ++half) {
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%4, %4};"
                 : "=r"(d[2 * half]), "=r"(d[2 * half + 1])
                 : "r"(a[half]), "r"(b0), "r"(c));
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+r"(d[2 * half]), "+r"(d[2 * half + 1])
                 : "r"(a[2 + half]), "r"(b1));
  }
#endif
}

// d += a . b for a of 16 rows and b of 8 columns of f16, k 16; sums in f32, in an order and with an error of the
// hardware's, the same for all rows and columns. Lane 4 g + i has
//   a[0]: row g, k 2 i, 2 i + 1; a[1]: row g + 8; a[2], a[3]: k + 8; b0: column g, the same k; b1: k + 8
//   d: (row g, column 2 i), (g, 2 i + 1), (g + 8, 2 i), (g + 8, 2 i + 1)
__device__ inline void mma_half(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  for (int half = 0; half < 2; ++half)
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(half ? b1 : b0));
#endif
}

}  // namespace glmlite::cuda
