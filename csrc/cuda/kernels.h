// The CUDA kernels, as plain C++ sees them. All pointers are to device memory unless the name or a comment says "host".
//
// Functions only enqueue work on `stream` and return; they throw std::runtime_error if the launch itself fails and
// std::invalid_argument for shapes that have no kernel. Nothing allocates or synchronises, so everything can be
// captured into a graph. What changes from step to step with the same T (tokens, entries, positions, pages, visible)
// is read from device memory when the kernels run; counts and pointers are fixed at the launch.
//
// Pointers to f32 values and to `blocks` are 16-byte aligned.
//
// One row in, one row out: the result of a token depends on that token's inputs alone, bit for bit, whatever T and
// whatever else is in the step. See docs/cuda-kernels.md for the order of sums.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../blocks.h"
#include "../op_spec.h"
#include "../sampling.h"

struct CUstream_st;  // cudaStream_t is a pointer to it

namespace glmlite::cuda {

using Stream = CUstream_st*;

// Whether a kernel may start before the one before it has ended, where the GPU can do that; from the start it may. For
// measurements: results do not depend on it. What has been captured stays as it is.
void allow_launching_ahead(bool allow);
// On the current device, now.
bool launches_ahead();

// ---- weights --------------------------------------------------------------------------------------------------------

// An (n, k) matrix, packed. `format` is the file's; some share a packed form (pack.h).
struct Matrix {
  Format format;
  int64_t n, k;
  const uint8_t* data;  // packed_bytes(format, n, k), 256-byte aligned as cudaMalloc gives it, or a multiple of 256 in
};

size_t packed_bytes(Format format, int64_t n, int64_t k);

// On the host. Rows are packed in pieces that begin at multiples of kPackRows, so that a load can stream them through
// a pinned buffer: rows [begin, end) of the tensor, which lie at `rows` as the file stores them, become
// packed_offset(end) - packed_offset(begin) bytes at `piece`, to be copied to Matrix::data + packed_offset(begin).
// `end` is a multiple of kPackRows or n. Threads may pack different pieces at once.
constexpr int64_t kPackRows = 32;
size_t packed_offset(Format format, int64_t n, int64_t k, int64_t row);
void pack_rows(Format format, const uint8_t* rows, int64_t n, int64_t k, int64_t begin, int64_t end, uint8_t* piece);

// ---- activations ----------------------------------------------------------------------------------------------------

// Bytes of the quantized form of T rows of k values, k % 32 == 0: what linears with quantized weights read. 16-byte
// aligned. A row takes act_bytes(k, 1), so row t begins at t * act_bytes(k, 1).
constexpr size_t act_bytes(int64_t k, int64_t tokens) { return static_cast<size_t>((k + 255) / 256 * tokens * 384); }

// The functions below that take `blocks` write the quantized form of their result there, besides the f32 one; null: no.
// q and d are those of the CPU's contract (cpu/kernels.h, quantize), bit for bit.
void quantize(const float* x, int64_t tokens, int64_t k, uint8_t* blocks, Stream stream);

// ---- linear ---------------------------------------------------------------------------------------------------------

constexpr int kMaxParts = 8;

// y[t] = x[t] . W^T + bias + alpha * add[t], W several matrices of the same k, one below the other.
// Matrices with quantized formats read `blocks`, those with float formats x.
struct Linear {
  struct Part {
    Matrix w;
    const float* bias;  // (n), or null
  };
  Part parts[kMaxParts];
  int count;
  int64_t tokens;
  const float* x;         // (T, k); may be null if no matrix is F32, F16 or BF16
  const uint8_t* blocks;  // may be null if all are
  const float* add;       // (T, width), or null; may be y
  float alpha;
  float* y;  // (T, width), width = the sum of n
  // Where swiglu(y) goes, (T, width / 2), and its quantized form or null; null: it is not wanted. Where it is, y may
  // stay unwritten: a step of a few tokens does both in one kernel.
  float* gated;
  uint8_t* gated_blocks;
};
void linear(const Linear& op, Stream stream);

// ---- rows -----------------------------------------------------------------------------------------------------------

// The step's state, in device memory.
struct StepState {
  const int32_t* tokens;            // (T) ids; -1 - r: row r of `given`
  const int32_t* positions[kAxes];  // by axis: (T)
  const int32_t* entry;             // (T) where the token's key and value go in its sequence's cache
  const int32_t* visible;           // (T) it sees the entries below this
  const int32_t* run;               // (T) index of its sequence in `pages`
  const int32_t* pages;             // (runs, page_stride) entry e of run r lies in page pages[r * page_stride + e / 64]
  int64_t page_stride;
  const float* given;  // rows in place of the table's
};

// y[t] = table[tokens[t]] (+ first[positions[0][t]] (+ second[positions[1][t]])). Each of the same width.
void embed(const Matrix& table, const Matrix* first, const Matrix* second, const StepState& step, int64_t tokens,
           float* y, uint8_t* blocks, Stream stream);

// As in cpu/kernels.h, n values a row; sums in the order of docs/cuda-kernels.md. add may be null; y may be x or add.
struct RmsNorm {
  const float* w;
  const float* add;
  float eps;
  float* y;
  uint8_t* blocks;
};
// The norm `norm` of x, and the norm `next` of its y, unless that is null (host pointer).
void rms_norm(const float* x, const RmsNorm& norm, const RmsNorm* next, int64_t tokens, int64_t n, Stream stream);
void layer_norm(const float* x, const float* w, const float* b, float* y, int64_t tokens, int64_t n, float eps,
                uint8_t* blocks, Stream stream);
// x (T, 2n): gate, up; y (T, n)
void swiglu(const float* x, float* y, int64_t tokens, int64_t n, uint8_t* blocks, Stream stream);
void gelu(const float* x, float* y, int64_t tokens, int64_t n, uint8_t* blocks, Stream stream);
void gelu_erf(const float* x, float* y, int64_t tokens, int64_t n, uint8_t* blocks, Stream stream);
// y[i] = x[rows[i]], `count` rows of n values
void select(const float* x, const int32_t* rows, int64_t count, int64_t n, float* y, uint8_t* blocks, Stream stream);

// ---- attention ------------------------------------------------------------------------------------------------------

// A RopeTable in device memory.
struct Rope {
  const int32_t* first;
  const int32_t* second;
  const int32_t* axis;
  const double* freq;
  double magnitude;
  int64_t pairs;
};
// turns: (T, pairs) pairs of f32 cos and sin, scaled by the magnitude. Once per step and table. Angles in f64.
void make_turns(const Rope& rope, const StepState& step, int64_t tokens, float* turns, Stream stream);

// The KV pages of one layer: page p at pages + p * kv_page_bytes. They begin as zeros: what no query sees still takes
// part in matrix instructions, with weight 0, and so must be finite.
struct KvCache {
  KvType type;
  int kv_heads, head_dim;
  uint8_t* pages;  // 256-byte aligned
};
size_t kv_page_bytes(KvType type, int kv_heads, int head_dim);
constexpr int kMaxHeadDim = 128;  // what attention has kernels for

// For each token of qkv (T, (heads + 2 kv_heads) * head_dim): RMS norm of the heads of q and k, rotary turns, in q8 the
// Hadamard turn (cpu/kernels.h, rotate), all in place; then k and v into the page of the token's entry.
// bad[t] = 1 where a key or value is not finite (it is stored as if 0, or saturated); else untouched.
struct AppendKv {
  float* qkv;
  int64_t tokens;
  int heads;
  const float* q_norm;  // (head_dim), or null
  const float* k_norm;
  float eps;
  const Rope* rope;    // host pointer, or null
  const float* turns;  // make_turns's
  KvCache cache;
  StepState step;
  int32_t* bad;  // (T)
};
void append_kv(const AppendKv& op, Stream stream);

// Stores keys and values as they are, (count, kv_heads * head_dim) f32, to entries 0 .. count - 1 of a
// sequence with these pages: the prefix of P-Tuning. bad: one flag.
void store_prefix(const float* k, const float* v, int64_t count, const KvCache& cache, const int32_t* pages,
                  int32_t* bad, Stream stream);

// Queries are computed in tiles: tokens [begin, end) of one run, at most attention_tile_tokens of them. Any cut gives
// the same bits.
struct Tile {
  int32_t begin, end;
};
int64_t attention_tile_tokens(int heads, int kv_heads, int64_t tokens);

struct Attention {
  const float* qkv;  // after append_kv
  int64_t tokens;
  int heads;
  float scale;
  KvCache cache;
  StepState step;
  const Tile* tiles;  // (tile_count), in device memory
  int64_t tile_count;
  int64_t max_context;  // no visible[t] is above this, now or when a captured graph is replayed. It sizes the grid and
                        // the partials; a generous bound costs little
  float* partials;      // attention_partial_bytes(...), 16-byte aligned; scratch
  float* y;             // (T, heads * head_dim)
  uint8_t* blocks;
};
// 0 where the context is not split: steps of more than a few queries.
size_t attention_partial_bytes(int heads, int kv_heads, int head_dim, int64_t tokens, int64_t tiles,
                               int64_t max_context);
void attention(const Attention& op, Stream stream);

// ---- logits ---------------------------------------------------------------------------------------------------------

// bad[row_token ? row_token[r] : r] = 1 where row r of (rows, n) has a value that is not finite.
void check_finite(const float* x, int64_t rows, int64_t n, const int32_t* row_token, int32_t* bad, Stream stream);

// A token each from some of the rows of (rows, vocab) logits, the same that the CPU draws (sampler.cpp) from such a
// row, which must be finite.
struct Drawing {
  // What is drawn from a row, by Draw's arithmetic.
  struct Row {
    Draw draw;
    int32_t row;
    int32_t adjustments;
  };
  const float* logits;
  int64_t vocab;                  // at most kMaxVocab
  const Row* rows;                // (count)
  const Adjustment* adjustments;  // (count, adjustment_stride), of each row the first `adjustments`
  int64_t count;
  int64_t adjustment_stride;
  bool greedy;       // no row has another temperature than 0
  uint8_t* scratch;  // draw_bytes(vocab, count), 256-byte aligned
  int32_t* tokens;   // (count) the token, or -1 where too many were likely enough to be put in order here
};
size_t draw_bytes(int64_t vocab, int64_t count);
void draw(const Drawing& op, Stream stream);

}  // namespace glmlite::cuda
