// How fast a GPU is, to set results in relation to.
#pragma once

namespace glmlite::cuda {

// GB/s of a copy within the GPU's memory, bytes read and bytes written both counted: the best of several.
double measure_bandwidth(int device);
// GFLOPS of bf16 matrix instructions with f32 sums on registers, two operations per multiply-add; 0 before sm_80.
// mma.sync, which sm_90's wgmma exceeds.
double measure_bf16(int device);

}  // namespace glmlite::cuda
