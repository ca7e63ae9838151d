// The CPU kernel set: one table of functions per instruction set, chosen once (dispatch.cpp).
//
// All sets compute the same bits. f32 sums have a fixed order and explicit fused multiply-adds: "16 lanes" below means
// that lane l of 16 sums the elements l, l + 16, l + 32, ... in that order, and that the lanes are then added as a tree
// (l with l + 8, then l + 4, l + 2, l + 1). No kernel allocates, throws, or calls an inline function of the standard
// library: these files are compiled with -m flags, and the linker may keep their copy of such a function for all.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../blocks.h"

namespace glmlite {

constexpr int kLanes = 16;         // rows of a panel; lanes of a sum
constexpr int kActBlock = 32;      // activations that share one scale
constexpr int kChunkTokens = 256;  // positions whose scores are made at once: whole pages, and the unit of the split of
                                   // a context over threads. A constant of the results: merging goes chunk by chunk.
constexpr int kChunkPages = kChunkTokens / kPageTokens;

// Quantized activations: T rows of k values, k % 32 == 0, in superblocks of 256 columns (the last one filled up with
// zeros). All rows of a superblock lie together, in groups of so many as a kernel multiplies at once (and a last group
// of what is left), so that it reads them one after the other. A group of M rows: int8 q[8 blocks][M][32], then the
// fields below, [M][8] each. Value i of a block is q[i] * d. d has kScaleBits bits after the leading one, so that its
// product with any weights' scale is exact.
struct Activations {
  const float* x;         // (T, k) the f32 rows themselves: what kernels of float formats read
  const uint8_t* blocks;  // act_bytes(k, T), 64-byte aligned
};
constexpr int kScaleBits = 4;
constexpr int kScales = 1 << kScaleBits;
// Where integer sums start, as bits: those of a float whose last bit is worth 1. So F, the bits of kSumOrigin + s read
// as a float, is the number kSumOrigin + s for any |s| < 2^22, and fma(F, d, -kSumOrigin * d) = s * d without a
// conversion; and that is exact where |s| < 2^19.
constexpr float kSumOrigin = 0x1.8p23f;
constexpr int32_t kSumOriginBits = 0x4b400000;
enum ActField {
  kActScale,   // f32 d
  kActOffset,  // f32 -kSumOrigin * d
  kActNumber,  // int32: the bits of d after the leading one; kScales for NaN
  // int32: kSumOriginBits and the sum of q times what zero points are: -8, -16 and -128; of each half of q, -4 and -32
  kActSums8,
  kActSums16,
  kActSums128,
  kActSums4,
  kActSums32 = kActSums4 + 2,
  // f32: d times the sum of q, for minimums; of each half of q
  kActProducts = kActSums32 + 2,
  kActFields = kActProducts + 3
};
constexpr int64_t kActSuperBytes = 256 + kActFields * 8 * 4;  // of a row and superblock
constexpr int64_t act_bytes(int64_t k, int64_t tokens) { return (k + 255) / 256 * tokens * kActSuperBytes; }

struct LinearArgs {
  const uint8_t* panels;           // packed by pack.h, 64-byte aligned: panels of 16 rows, k columns
  int64_t k;                       // columns
  int64_t n;                       // rows; the last panel's rows from n on are padding and are not written
  int64_t panel_begin, panel_end;  // the panels to compute. Threads split panels; no two write the same y
  Activations act;
  int64_t tokens;  // T
  float* y;        // y[t * y_stride + row]
  int64_t y_stride;
  void* scratch;                // 64-byte aligned, linear_scratch_bytes(T) bytes, one per thread
  const float* bias = nullptr;  // (n), or null
  const float* add = nullptr;   // add[t * add_stride + row], or null
  int64_t add_stride = 0;
  float alpha = 1;
};

// The turn of the rotary pairs of one head; cos and sin already scaled by the magnitude.
struct RopePairs {
  const int32_t* first;
  const int32_t* second;
  int64_t count;
};

// A page keeps, of each KV head, keys and values of kPageTokens positions, kv_bytes(type, head_dim) bytes each, 64-byte
// aligned:
//   f16 keys    [position / 16][head_dim][16]
//   f16 values  [position][head_dim]
//   q8 keys     [position / 16][dim / 4][16][4] codes, then f32 scales [position]; dim = head_dim in whole sixteens
//   q8 values   [position / 4][dim / 16][16][4] codes, then f32 scales [position]
// Codes are as the kernel set's dot product wants them, so pages are read by the set that wrote them.
size_t kv_bytes(KvType, int64_t head_dim);

// Attention of M queries that share a KV head over the positions [begin, end) of one chunk.
struct AttendArgs {
  const float* const* q;        // M pointers to head_dim floats each
  int64_t queries;              // M
  int64_t head_dim;             // any; lanes beyond it are not read
  float scale;                  // of q . k
  const uint8_t* const* k;      // keys: one pointer per page from the page of `begin` on
  const uint8_t* const* v;      // values, likewise
  const uint8_t* const* ahead;  // as many pages of keys, which the thread will want next and are fetched meanwhile
  int64_t begin, end;           // begin % kChunkTokens == 0, end - begin <= kChunkTokens
  const int64_t* visible;       // (M) query i sees the positions below visible[i]
  float* max;                   // (M) out: largest score, -inf if it sees none
  float* sum;                   // (M) out: sum of exp(score - max), 0 if it sees none
  float* acc;                   // (M, head_dim) out: sum of exp(score - max) * v, 0 if it sees none
  void* scratch;                // 64-byte aligned, attend_scratch_bytes(M, head_dim) bytes, one per thread
  // Each so many queries have pages of their own: those of query i are at k + i / alike * kChunkPages, v likewise.
  // Neighbours that have the same page in a place, and so in all before it, share its reading.
  int64_t alike = INT64_MAX;
  bool again = false;  // whether the call before had this scratch and these queries, of another chunk
};

// The cache of latent attention: one entry per position, `latent` columns and then `rope` columns, which all query
// heads share. An entry is its own key; its value is its latent columns. latent % 16 == 0, rope % 2 == 0. A page keeps
// kPageTokens entries, latent_bytes(type, latent, rope) bytes, 64-byte aligned:
//   f16  [position / 16][latent + rope][16]
//   q8   [position / 16][dim / 4][16][4] codes, dim = latent + rope in whole sixteens; then f32 scales of the latent
//        columns [position], and of the rope columns [position]
size_t latent_bytes(KvType, int64_t latent, int64_t rope);

// Attention of M queries over the entries of the positions [begin, end) of one chunk.
struct LatentArgs {
  const float* const* q;        // M pointers to latent + rope floats each
  int64_t queries;              // M
  int64_t latent, rope;         // columns
  float scale;                  // of q . entry
  const uint8_t* const* pages;  // one pointer per page from the page of `begin` on
  const uint8_t* const* ahead;  // as many pages, which the thread will want next and are fetched meanwhile
  int64_t begin, end;           // begin % kChunkTokens == 0, end - begin <= kChunkTokens
  const int64_t* visible;       // (M) query i sees the positions below visible[i], all of which are stored
  float* max;                   // (M) out: largest score, -inf if it sees none
  float* sum;                   // (M) out: sum of exp(score - max), 0 if it sees none
  float* acc;                   // (M, latent) out: sum of exp(score - max) * value, 0 if it sees none
  void* scratch;                // 64-byte aligned, attend_latent_scratch_bytes(M, latent, rope) bytes, one per thread
};

struct CpuKernels {
  const char* name;     // what GLMLITE_ISA accepts
  bool (*supported)();  // by this CPU and operating system, now
  bool (*suits)();      // whether it is chosen where it is supported and nobody names another

  // Rows [begin, end) of T = `tokens` rows x to their places in `blocks`. For each block of 32, d = max|x| / 127
  // rounded up to kScaleBits, q = x * (1 / d) rounded half away from zero; where all |x| < 2^-90, q = 0 and d = 1. A
  // NaN, an infinity or a value from 2^96 on gives d = NaN and q = 0, so that it stays visible downstream. Within these
  // bounds no product d * (weights' scale) leaves the normal numbers.
  void (*quantize)(const float* x, int64_t k, int64_t begin, int64_t end, int64_t tokens, uint8_t* blocks);

  // The rows rows[0..count) of the T = `tokens` rows of `from`, k columns, as the `count` rows of `to`.
  void (*gather)(const uint8_t* from, int64_t k, int64_t tokens, const int32_t* rows, int64_t count, uint8_t* to);

  // y = x . W^T for every format, by index of Format. Quantized formats, for each block of 32 (or each half of it where
  // the format's scales are per 16), in order of k: acc = exact integer dot of (code - zero) with q, y = fma(ws * d,
  // float(acc), y); then, where the format has minimums, y = fma(wm, d * float(sum), y), wm negative in the K formats.
  // ws * d and d * sum are exact. Float formats: y = fma(w, x, y) in order of k. Then y = y + bias, and y = fma(alpha,
  // add, y). The result for a token does not depend on T or on the other tokens.
  void (*linear[kFormatCount])(const LinearArgs&);

  // Row of a packed tensor as f32: x[i] = w[row, i]. Exactly dequantize_row's values.
  void (*unpack_row[kFormatCount])(const uint8_t* panels, int64_t k, int64_t row, float* x);

  // y = x / sqrt(mean(x^2) + eps) * w (+ add). n any; add may be null; y may be x or add. Squares summed in 16 lanes.
  void (*rms_norm)(const float* x, const float* w, const float* add, float* y, int64_t n, float eps);
  // y = (x - mean) / sqrt(var + eps) * w + b. Mean, then squares of x - mean, summed in 16 lanes. y may be x.
  void (*layer_norm)(const float* x, const float* w, const float* b, float* y, int64_t n, float eps);
  // y = silu(x[0..n)) * x[n..2n)
  void (*swiglu)(const float* x, float* y, int64_t n);
  // y = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))). y may be x.
  void (*gelu)(const float* x, float* y, int64_t n);
  // y = 0.5 x (1 + erf(x / sqrt(2))) = max(x, 0) - |x| h, h = 0.5 erfc(|x| / sqrt(2)), 0 from |x| = 11.75 on. y may be
  // x.
  void (*gelu_erf)(const float* x, float* y, int64_t n);
  // y = 1 / (1 + exp(-x)). y may be x.
  void (*sigmoid)(const float* x, float* y, int64_t n);
  // y = y + x
  void (*add)(float* y, const float* x, int64_t n);
  // y = fma(w, x, y)
  void (*add_scaled)(float* y, const float* x, float w, int64_t n);

  // Turns pairs in place: (a, b) -> (a cos - b sin, a sin + b cos), each as fma(a, cos, -(b * sin)), fma(a, sin, b *
  // cos).
  void (*rope)(float* head, const RopePairs&, const float* cos, const float* sin);
  // Writes one position of one KV head into its page. Returns false if a value was NaN or infinite.
  // f16: to nearest even; beyond +-65504 saturates, NaN becomes 0.
  // q8: a row of keys or values is scale * code, scale = max|x| / 127, code = x * (127 / max|x|) to nearest even; all 0
  // where max|x| < 2^-100, or where a value is not finite.
  bool (*store_kv[kKvTypeCount])(const float* k, const float* v, int64_t head_dim, uint8_t* k_page, uint8_t* v_page,
                                 int64_t index);
  // f16: score = scale * dot, dot = fma over head_dim in order from 0. max over what is visible. p = exp(score - max),
  // or 0 where that is below exp(-69), summed in 16 lanes by position. acc = fma(p, v, acc) in order of position over
  // visible ones.
  // q8: the query is rounded as a key is. score = (float(exact dot of codes) * key scale) * (query scale * scale). max,
  // p and sum as in f16. w = p * value scale, top = the largest of them; weight = w * (16256 / top) to nearest even,
  // all 0 where top < 2^-100; acc = float(exact sum of weight * code) * (top / 16256).
  void (*attend[kKvTypeCount])(const AttendArgs&);
  // Turns a key or a query by a Hadamard matrix, in place: outliers spread over all columns, so that one scale serves a
  // row, and q . k stays. Blocks of n columns, n the largest power of two that divides head_dim; (a, b) -> (a + b, a -
  // b) for columns 1, 2, 4, ... apart, then * float(1 / sqrt(n)). Keys of q8 pages and their queries are turned so.
  void (*rotate)(float* head, int64_t head_dim);
  // Writes one entry of latent + rope columns into its page. Returns false if a value was NaN or infinite. f16 as in
  // store_kv. q8: latent and rope columns each as a row of store_kv, with scales of their own; where a value is not
  // finite, all of both 0.
  bool (*store_latent[kKvTypeCount])(const float* entry, int64_t latent, int64_t rope, uint8_t* page, int64_t index);
  // f16: score = scale * dot, dot = fma over latent + rope columns in order from 0. max, p and sum as in attend. acc in
  // 16 lanes by position: lane l = fma(p, value, lane l) over the visible ones of the positions l, l + 16, ..., and
  // then the lanes as a tree. q8: the query's latent and rope columns are rounded apart, as an entry's are. score =
  // fma(float(dot of rope codes) * entry's rope scale, query's rope scale * scale, (float(dot of latent codes) *
  // entry's latent scale) * (query's latent scale * scale)). max, p, sum and acc as in attend, with the entry's latent
  // scale and codes as the value's. The caller turns what goes in and comes out of q8: rotate() of the latent and of
  // the rope columns, apart, of entries and queries, and, since values are turned latents, of what attend_finish makes
  // of acc: the turn is its own inverse.
  void (*attend_latent[kKvTypeCount])(const LatentArgs&);
  // Adds a later chunk's (max, sum, acc) to a state; a chunk with sum = 0 leaves the state untouched, a state with
  // sum = 0 becomes the chunk. new max m; s = exp(max - m): sum = fma(sum, s, other.sum * s'), acc likewise.
  void (*attend_merge)(float* max, float* sum, float* acc, float other_max, float other_sum, const float* other_acc,
                       int64_t head_dim);
  // y = acc / sum, for one query. sum is not 0.
  void (*attend_finish)(const float* acc, float sum, float* y, int64_t head_dim);

  // For measuring the machine: `rounds` rounds of independent integer dot products on registers. Returns the number of
  // 8-bit operations done, two per multiply-add; *result depends on all of them.
  int64_t (*dot_rounds)(int64_t rounds, int32_t* result);
  // For measuring, too: f32 fused multiply-adds on registers, two operations each.
  int64_t (*fma_rounds)(int64_t rounds, int32_t* result);
};

// Room for the sums of the rows of two panels.
size_t linear_scratch_bytes(int64_t tokens);
size_t attend_scratch_bytes(int64_t queries, int64_t head_dim);
size_t attend_latent_scratch_bytes(int64_t queries, int64_t latent, int64_t rope);

// All sets built into this module, best first; the last, `scalar`, runs anywhere.
const CpuKernels* const* cpu_kernel_sets(int* count);
// The set called `name`, or for an empty name the best that this CPU supports. Throws std::invalid_argument, with the
// names that are built in, if it is unknown or not supported here.
const CpuKernels& cpu_kernels(const char* name);

}  // namespace glmlite
