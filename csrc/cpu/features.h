// What this CPU and operating system run, one predicate for each kernel set, and whose CPU it is. Defined in
// dispatch.cpp.
#pragma once

namespace glmlite {

bool cpu_has_scalar();      // true
bool cpu_has_avx2();        // AVX2, FMA, F16C
bool cpu_has_avxvnni();     // and AVX-VNNI
bool cpu_has_avx512vnni();  // AVX-512 F, BW, VL, DQ, VNNI
bool cpu_has_neon();        // and its dot product

bool cpu_is_amd();

}  // namespace glmlite
