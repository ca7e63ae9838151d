// What this machine can do at best, measured now: the yardsticks of a benchmark.
#pragma once
#include <string>

namespace glmlite {

// GB/s that `threads` threads together read from memory: the best of several passes over half a gigabyte.
double machine_bandwidth(int threads);

// 8-bit integer operations (two per multiply-add), in 1e9 a second, that `threads` threads reach with the dot products
// of the kernel set `isa` ("" = the default) on registers.
double machine_int8_peak(int threads, const char* isa);

// f32 operations, in 1e9 a second, of `threads` threads with the fused multiply-adds of the kernel set `isa`.
double machine_f32_peak(int threads, const char* isa);

// GHz of the core that this thread runs on: of a chain of multiplications, three cycles each on x86-64 and most others.
double machine_clock();

// Bytes a second that ReadThreads take from a file past the system's cache, of 64 MB from all over it, or of as many as
// come in so many seconds; 0 where it is too small to tell. Throws FileError.
double read_speed(const std::string& path, double seconds);

}  // namespace glmlite
