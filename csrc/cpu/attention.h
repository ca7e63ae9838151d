// What attention.inc, compiled once per instruction set, shares with the size of its scratch.
#pragma once
#include <cstdint>

namespace glmlite {

// Queries whose scores of one chunk are kept at once: 24 KB beside a page of K or V, so that both stay near.
constexpr int64_t kQueryBlock = 24;

// Columns of a row of q8 pages. static: each file, whatever flags it is compiled with, keeps its own copy.
static constexpr int64_t padded(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

// Bytes of what a call makes of its queries before all else, in whole lines of the cache: see RoundedQueries.
static constexpr int64_t rounded_query_bytes(int64_t queries, int64_t head_dim) {
  return (queries * (padded(head_dim) + 8) + 63) / 64 * 64;
}

// Columns of an entry of q8 latent pages.
static constexpr int64_t latent_columns(int64_t latent, int64_t rope) { return latent + padded(rope); }

}  // namespace glmlite
