// What attention.inc, compiled once per instruction set, shares with the size of its scratch.
#pragma once
#include <cstdint>

namespace glmlite {

// Queries whose scores of one chunk are kept at once: 24 KB beside a page of K or V, so that both stay near.
constexpr int64_t kQueryBlock = 24;

}  // namespace glmlite
