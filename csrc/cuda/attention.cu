// Attention over KV pages.
//
// A chunk is a page. A query is scaled by a power of two to below 1 and split into f16 high + low: 22 bits. score =
// (high . k + low . k) * (scale * log2 e / power), each product a chain of matrix instructions over the columns in
// steps of 16, from 0; q8: k are codes, and their scale multiplies the sum first. Over what is visible of the chunk:
// max; p = 2^(score - max); w = f16(2^15 p); q8: f16(2^15 p * (scale of the value / power of two above the largest)).
// sum = a chain of f16(2^15 p) in steps of 16 positions, from 0; acc likewise of w * v.
// Chunks are merged into groups of kGroupChunks, one after the other, and groups into the result: m = max of both, sum
// = fma(sum, 2^(max - m), other sum * 2^(other max - m)), acc likewise, where q8's chunk has 2^(other max - m) * that
// power of two; a chunk of which nothing is visible changes nothing. y = acc / sum.
// Whether chunks are computed by different blocks and merged by a second kernel (few queries), or by one block in turn
// (many), is the same.
#include <algorithm>

#include "pages.cuh"
#include "rows.cuh"

namespace glmlite::cuda {

namespace {

constexpr int kQueryRows = 16;  // of the matrix instruction
constexpr int kAttendWarps = 4, kAttendThreads = kAttendWarps * kWarp;
constexpr int kWholeRows = kAttendWarps * kQueryRows;  // queries of a block that has all chunks
constexpr int kSteps = kPageTokens / 16;               // of the matrix instruction over a chunk's positions
constexpr int kGroupChunks = 8;
constexpr int64_t kFewRows = 1024;  // queries; more have enough blocks without splitting contexts
constexpr int kMostSplits = 256;
constexpr size_t kMostPartialBytes = size_t{32} << 20;  // unless one tile takes more
constexpr float kOne = 32768.0f;                        // 2^15, of a weight: far from f16's smallest, below its largest
constexpr float kLog2E = 1.44269504f;

struct AttendArgs {
  Attention op;
  float scale;       // times log2 e
  int group;         // query heads of a KV head
  int rows;          // queries of a KV head in a tile, at most
  int query_blocks;  // blocks that share them
  int max_chunks;
};

// The queries of a KV head in a tile from `first` on: (token, head) with the head running faster.
struct Queries {
  Tile tile;
  int heads, group, kv_head, first, count;

  __device__ Queries(const AttendArgs& args, const Tile& tile, int kv_head, int first, int most)
      : tile(tile), heads(args.op.heads), group(args.group), kv_head(kv_head), first(first) {
    count = min(most, (tile.end - tile.begin) * group - first);
  }
  __device__ int token(int row) const { return tile.begin + (first + row) / group; }
  __device__ int head(int row) const { return kv_head * group + (first + row) % group; }
};

// A lane's two queries, `row` and `row` + 8: their values or null, and how much of the context they see; `most`: that
// any of the warp's 16 sees.
struct LaneQueries {
  const float* rows[2];
  int visible[2], most = 0;

  __device__ LaneQueries(const Attention& op, const Queries& queries, int row) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool is = row + 8 * r < queries.count;
      const int token = is ? queries.token(row + 8 * r) : 0;
      visible[r] = is ? op.step.visible[token] : 0;
      const int64_t head = static_cast<int64_t>(token) * (op.heads + 2 * op.cache.kv_heads) + queries.head(row + 8 * r);
      rows[r] = is ? op.qkv + head * op.cache.head_dim : nullptr;
      most = max(most, visible[r]);
    }
    for (int apart = 16; apart > 2; apart /= 2) most = max(most, __shfl_xor_sync(kAllLanes, most, apart));
  }
};

// A power of two: x * down is below 1 and, but for 0 and numbers near it, at least 1/2; up undoes it. x >= 0.
__device__ inline float power_down(float x) {
  return __uint_as_float((253 - min(__float_as_uint(x) >> 23, 252u)) << 23);
}
__device__ inline float power_up(float down) { return __uint_as_float((254u << 23) - __float_as_uint(down)); }

__device__ inline float largest_of_four_lanes(float x) {
  for (int apart = 2; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, apart));
  return x;
}

// Sixteen queries as operand A. A lane has rows lane / 4 and lane / 4 + 8; operand B's lane has eight columns in 16
// bytes, which go into two steps, so column i of the lane's in step s is 32 (s / 2) + 8 (lane % 4) + 4 (s % 2) + i.
template <int kColumns>
struct QueryOperand {
  uint32_t high[kColumns / 16][4];
  float scale[2];  // of the scores of a row

  // keep_low(step, words): where the low halves go.
  template <class KeepLow>
  __device__ void load(const float* const (&rows)[2], int dim, float softmax_scale, const KeepLow& keep_low) {
    const auto value = [&](int r, int step, int i) {
      const int column = step / 2 * 32 + threadIdx.x % 4 * 8 + step % 2 * 4 + i;
      return rows[r] && column < dim ? rows[r][column] : 0.0f;
    };
    float down[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float largest = 0;
      for (int s = 0; s < kColumns / 16; ++s) {
#pragma unroll
        for (int i = 0; i < 4; ++i) largest = fmaxf(largest, fabsf(value(r, s, i)));
      }
      down[r] = power_down(largest_of_four_lanes(largest));
      scale[r] = softmax_scale * power_up(down[r]);
    }
#pragma unroll
    for (int s = 0; s < kColumns / 16; ++s) {
      uint32_t low[4];
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        const int r = word % 2, i = word / 2 * 2;
        const float a = value(r, s, i) * down[r], b = value(r, s, i + 1) * down[r];
        high[s][word] = halves_of(a, b);
        low[word] = halves_of(a - half_to_float(high[s][word] & 0xffff), b - half_to_float(high[s][word] >> 16));
      }
      keep_low(s, low);
    }
  }

  // Adds steps 2 j and 2 j + 1 to the scores of rows lane / 4, + 8 with keys lane % 4 * 2, + 1 of eight. low: of the
  // two steps; key: columns 32 j + 8 (lane % 4) .. + 7 of key lane / 4.
  __device__ void add_scores(int j, const uint32_t (&low)[2][4], const uint4& key, float (&s)[4]) const {
    mma_half(s, high[2 * j], key.x, key.y);
    mma_half(s, low[0], key.x, key.y);
    mma_half(s, high[2 * j + 1], key.z, key.w);
    mma_half(s, low[1], key.z, key.w);
  }
};

// A chunk's scores come in tiles of eight positions such that a lane's scores are, as weights, its part of operand A of
// the product with the values: of tile n the lane has positions 32 (n / 4) + 8 (lane % 4) + 2 (n % 4), + 1.
__device__ inline int position_of(int tile) { return tile / 4 * 32 + threadIdx.x % 4 * 8 + tile % 4 * 2; }
// The position whose key a lane brings as operand B.
__device__ inline int key_of(int tile) {
  const int i = threadIdx.x % kWarp / 4;
  return tile / 4 * 32 + i / 2 * 8 + tile % 4 * 2 + i % 2;
}

// q8's scales of a chunk's keys or values, two in each lane of a warp.
struct ChunkScales {
  float of[2];

  __device__ void load(const float* scales) {
    const int lane = threadIdx.x % kWarp;
    of[0] = scales[lane];
    of[1] = scales[lane + kWarp];
  }
  // The scales of a lane's two positions of a tile.
  __device__ float2 of_tile(int tile) const {
    const int lane = position_of(tile) % kWarp;
    const float mine = tile < 4 ? of[0] : of[1];
    return {__shfl_sync(kAllLanes, mine, lane), __shfl_sync(kAllLanes, mine, lane + 1)};
  }
};

// Scores of a tile to those of what rows see, the rest -inf; tops: maxima so far.
template <KvType kType>
__device__ inline void finish_scores(const float (&scale)[2], const ChunkScales& key_scales, int tile,
                                     const int (&seen)[2], float (&s)[4], float (&tops)[2]) {
  const int position = position_of(tile);
  float2 k = {1, 1};
  if constexpr (kType == KvType::kQ8) k = key_scales.of_tile(tile);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kType == KvType::kQ8) s[i] *= i % 2 ? k.y : k.x;
    s[i] = position + i % 2 < seen[i / 2] ? s[i] * scale[i / 2] : -INFINITY;
    tops[i / 2] = fmaxf(tops[i / 2], s[i]);
  }
}

// The scales of values, and for each of two rows the power of two that brings the largest that the row sees below 1.
// For f16: 1.
struct ValueScales : ChunkScales {
  float down[2] = {1, 1};

  __device__ float up(int row) const { return power_up(down[row]); }
  __device__ void load(const float* scales, const int (&seen)[2]) {
    ChunkScales::load(scales);
    const int lane = threadIdx.x % kWarp;
    float first = of[0], second = of[1];  // become the largest up to and with a position
    for (int apart = 1; apart < kWarp; apart *= 2) {
      const float a = __shfl_sync(kAllLanes, first, lane - apart), b = __shfl_sync(kAllLanes, second, lane - apart);
      if (lane >= apart) {
        first = fmaxf(first, a);
        second = fmaxf(second, b);
      }
    }
    second = fmaxf(second, __shfl_sync(kAllLanes, first, kWarp - 1));
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int last = min(seen[r], kPageTokens) - 1;
      const float a = __shfl_sync(kAllLanes, first, last), b = __shfl_sync(kAllLanes, second, last);
      down[r] = power_down(last < 0 ? 0.0f : last < kWarp ? a : b);
    }
  }
};

// Softmax weights of two tiles as operand A of one step: for the product with the values, and for the sum.
template <KvType kType>
struct WeightWords {
  uint32_t values[4];
  __device__ const uint32_t (&plain() const)[4] { return values; }
};
template <>
struct WeightWords<KvType::kQ8> {
  uint32_t values[4], ones[4];
  __device__ const uint32_t (&plain() const)[4] { return ones; }
};
template <KvType kType>
struct WeightOperand : WeightWords<kType> {
  __device__ void set(int tile, const float (&s)[4], const float (&tops)[2], const ValueScales& scales) {
    float2 v = {1, 1};
    if constexpr (kType == KvType::kQ8) v = scales.of_tile(tile);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int word = tile % 2 * 2 + r;
      const float top = tops[r] == -INFINITY ? 0.0f : tops[r];
      const float a = kOne * exp2f(s[2 * r] - top), b = kOne * exp2f(s[2 * r + 1] - top);
      this->values[word] = halves_of(a, b);
      if constexpr (kType == KvType::kQ8) {
        this->ones[word] = this->values[word];
        this->values[word] = halves_of(a * (v.x * scales.down[r]), b * (v.y * scales.down[r]));
      }
    }
  }
  __device__ void add_sum(float (&sum)[4]) const {
    constexpr uint32_t kHalfOnes = 0x3c003c00;
    mma_half(sum, this->plain(), kHalfOnes, kHalfOnes);
  }
};

// Adds a chunk's weighted values to two rows with eight columns. value(i): positions 32 i + 8 (lane % 4) .. + 7 of
// column lane / 4.
template <KvType kType, class Value>
__device__ inline void weigh(const WeightOperand<kType> (&weights)[kSteps], const Value& value, float (&acc)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) acc[i] = 0;
#pragma unroll
  for (int i = 0; i < kSteps / 2; ++i) {
    const uint4 v = value(i);
    mma_half(acc, weights[2 * i].values, v.x, v.y);
    mma_half(acc, weights[2 * i + 1].values, v.z, v.w);
  }
}

// Maximum and sum of a softmax in progress.
struct Running {
  float max = -INFINITY, sum = 0;

  struct Factors {
    float mine, other;
    __device__ float merged(float acc, float other_acc) const { return fmaf(acc, mine, other_acc * other); }
  };
  // Takes another's in; the factors are for what goes with them. power: of the other's values.
  __device__ Factors merge(const Running& o, float power = 1) {
    if (o.sum == 0.0f) return {1, 0};
    const float top = fmaxf(max, o.max);
    const Factors f{exp2f(max - top), exp2f(o.max - top)};
    sum = f.merged(sum, o.sum);
    max = top;
    return {f.mine, f.other * power};
  }
};

// Heads of whole blocks in rows of whole superblocks are rounded by the kernels that compute them.
__host__ __device__ inline bool rounds_itself(const Attention& op) {
  return op.cache.head_dim % kBlockColumns == 0 && op.heads * op.cache.head_dim % kSuperColumns == 0;
}
__device__ inline float* result_of(const Attention& op, int token, int head) {
  return op.y + (static_cast<int64_t>(token) * op.heads + head) * op.cache.head_dim;
}
// A warp's 32 columns of a head's result.
__device__ inline void put_head(const Attention& op, int token, int head, int column, float v) {
  const int dim = op.cache.head_dim;
  if (op.blocks && rounds_itself(op)) {
    Result{op.y, op.blocks, op.heads * dim}.put(token, head * dim + column, v);
  } else if (column < dim) {
    result_of(op, token, head)[column] = v;
  }
}

__device__ inline float quotient(float acc, float sum) { return acc / sum + 0.0f; }  // never -0

// Eight codes + 128 as f16.
__device__ inline uint4 codes_to_halves(uint2 codes) {
  const auto two = [](uint32_t word, uint32_t picks) {
    constexpr uint32_t kStart = 0x64646464;                      // the upper byte of 1024 .. 1279 in f16
    return half2_minus(__byte_perm(word, kStart, picks), 1152);  // 1024 + 128
  };
  return make_uint4(two(codes.x, 0x4140), two(codes.x, 0x4342), two(codes.y, 0x4140), two(codes.y, 0x4342));
}

// Keys or values in global memory. Rows (of keys) or columns (of values) have `length` values; piece i of one has 8.
template <KvType kType>
struct Section {
  const uint8_t* at;

  __device__ uint4 piece(int row, int length, int i) const {
    const int from = row * length + 8 * i;
    if constexpr (kType == KvType::kQ8) return codes_to_halves(*reinterpret_cast<const uint2*>(at + from));
    return *reinterpret_cast<const uint4*>(at + 2 * from);
  }
  __device__ const float* scales(int columns) const {
    return reinterpret_cast<const float*>(at + kPageTokens * columns);
  }
};

__device__ inline int chunks_of(int context) { return (context + kPageTokens - 1) / kPageTokens; }

// ---- few queries: a block has one chunk at a time -------------------------------------------------------------------

// (max, sum, power of the values, unused, acc).
__host__ __device__ constexpr int partial_floats(int columns) { return 4 + columns; }

// Where the partial result of a chunk of row `row` of the tile's queries stands.
__device__ inline float* partial_of(const AttendArgs& args, int columns, int tile, int kv_head, int row, int chunk) {
  const int64_t query = (static_cast<int64_t>(tile) * args.op.cache.kv_heads + kv_head) * args.rows + row;
  return args.op.partials + (query * args.max_chunks + chunk) * partial_floats(columns);
}

template <KvType kType>
constexpr size_t kSplitShared =
    kSteps * kWarp * sizeof(WeightOperand<kType>) + kAttendWarps * kQueryRows * sizeof(float);

// Grid: (tiles, KV heads * query_blocks, chunks). A block has up to 16 queries and chunks z, z + gridDim.z, ...; its
// warps share the positions of a chunk among them for the scores, and the columns for the values, so that keys and
// values go straight into registers, each once.
// Shared: a chunk's weights [step][lane], maxima [warp][row].
template <KvType kType, int kColumns>
__global__ void __launch_bounds__(kAttendThreads) attend_split(AttendArgs args) {
  start_next();
  wait_for_previous();
  constexpr int kMine = kColumns / 8 / kAttendWarps;  // eights of columns
  const Attention& op = args.op;
  const KvCache& cache = op.cache;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, row = lane / 4;
  const int kv_head = blockIdx.y % cache.kv_heads, first = blockIdx.y / cache.kv_heads * kQueryRows;
  const Queries queries(args, op.tiles[blockIdx.x], kv_head, first, kQueryRows);
  if (queries.count <= 0) return;

  const LaneQueries mine(op, queries, row);
  const int chunks = chunks_of(mine.most);
  if (static_cast<int>(blockIdx.z) >= chunks) return;
  const int32_t* pages = op.step.pages + op.step.run[queries.tile.begin] * op.step.page_stride;

  auto* shared_weights = reinterpret_cast<WeightOperand<kType>*>(shared_memory());
  auto* shared_tops = reinterpret_cast<float*>(shared_weights + kSteps * kWarp);
  QueryOperand<kColumns> query;
  uint32_t low[kColumns / 32][2][4];
  query.load(mine.rows, cache.head_dim, args.scale, [&](int step, const uint32_t (&words)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) low[step / 2][step % 2][i] = words[i];
  });

  for (int chunk = blockIdx.z; chunk < chunks; chunk += gridDim.z) {
    const Section<kType> keys{kv_section(cache, pages[chunk], kv_head, false)};
    const Section<kType> values{kv_section(cache, pages[chunk], kv_head, true)};
    const int seen[2] = {mine.visible[0] - chunk * kPageTokens, mine.visible[1] - chunk * kPageTokens};
    ChunkScales key_scales;
    ValueScales value_scales;
    if constexpr (kType == KvType::kQ8) {
      key_scales.load(keys.scales(kColumns));
      value_scales.load(values.scales(kColumns), seen);
    }
    uint4 k[2][kColumns / 32], v[kMine][kSteps / 2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int j = 0; j < kColumns / 32; ++j) k[n][j] = keys.piece(key_of(2 * warp + n), kColumns, 4 * j + lane % 4);
    }
#pragma unroll
    for (int n = 0; n < kMine; ++n) {
#pragma unroll
      for (int i = 0; i < kSteps / 2; ++i)
        v[n][i] = values.piece((warp * kMine + n) * 8 + lane / 4, kPageTokens, 4 * i + lane % 4);
    }

    float s[2][4] = {}, tops[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int j = 0; j < kColumns / 32; ++j) query.add_scores(j, low[j], k[n][j], s[n]);
      finish_scores<kType>(query.scale, key_scales, 2 * warp + n, seen, s[n], tops);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      tops[r] = largest_of_four_lanes(tops[r]);
      if (lane % 4 == 0) shared_tops[warp * kQueryRows + row + 8 * r] = tops[r];
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int w = 0; w < kAttendWarps; ++w) tops[r] = fmaxf(tops[r], shared_tops[w * kQueryRows + row + 8 * r]);
    }
    WeightOperand<kType> weights[kSteps];
#pragma unroll
    for (int n = 0; n < 2; ++n) weights[0].set(2 * warp + n, s[n], tops, value_scales);
    shared_weights[warp * kWarp + lane] = weights[0];
    __syncthreads();
    float sum[4] = {};
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      weights[i] = shared_weights[i * kWarp + lane];
      weights[i].add_sum(sum);
    }
    float* to[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      to[r] = partial_of(args, kColumns, blockIdx.x, kv_head, first + row + 8 * r, chunk);
      if (mine.rows[r] && warp == 0 && lane % 4 == 0)
        *reinterpret_cast<float4*>(to[r]) = make_float4(tops[r], sum[2 * r], value_scales.up(r), 0);
    }
#pragma unroll
    for (int n = 0; n < kMine; ++n) {
      float acc[4];
      weigh(weights, [&](int i) { return v[n][i]; }, acc);
      const int column = (warp * kMine + n) * 8 + lane % 4 * 2;
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (mine.rows[r]) *reinterpret_cast<float2*>(to[r] + 4 + column) = make_float2(acc[2 * r], acc[2 * r + 1]);
    }
  }
}

// Grid: (queries of a KV head in a tile * KV heads, tiles). A warp merges every 16th group of a query's chunks, then a
// thread of the first warps has a column. Shared: groups of a round, (max, sum, .., acc) each.
constexpr int kMergeWarps = 16, kMergeThreads = kMergeWarps * kWarp;
template <int kColumns>
__global__ void __launch_bounds__(kMergeThreads) merge_chunks(AttendArgs args) {
  start_next();
  wait_for_previous();
  constexpr int kEach = kColumns / kWarp;
  const Attention& op = args.op;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int kv_head = blockIdx.x % op.cache.kv_heads, row = blockIdx.x / op.cache.kv_heads;
  const Queries queries(args, op.tiles[blockIdx.y], kv_head, 0, args.rows);
  if (row >= queries.count) return;
  const int token = queries.token(row), head = queries.head(row), dim = op.cache.head_dim;
  const int chunks = chunks_of(op.step.visible[token]);
  const float* partials = partial_of(args, kColumns, blockIdx.y, kv_head, row, 0);
  float* shared = reinterpret_cast<float*>(shared_memory());

  Running total;
  float y = 0;
  for (int begin = 0; begin < chunks; begin += kMergeWarps * kGroupChunks) {
    Running group;
    float acc[kEach] = {}, other[kGroupChunks][kEach];
    Running heads[kGroupChunks];
    float powers[kGroupChunks];
    const int from = begin + warp * kGroupChunks;
#pragma unroll
    for (int c = 0; c < kGroupChunks; ++c) {
      if (from + c >= chunks) continue;
      const float* p = partials + static_cast<int64_t>(from + c) * partial_floats(kColumns);
      heads[c] = {p[0], p[1]};
      powers[c] = p[2];
#pragma unroll
      for (int i = 0; i < kEach; ++i) other[c][i] = p[4 + kWarp * i + lane];
    }
#pragma unroll
    for (int c = 0; c < kGroupChunks; ++c) {
      if (from + c >= chunks) continue;
      const Running::Factors f = group.merge(heads[c], powers[c]);
#pragma unroll
      for (int i = 0; i < kEach; ++i) acc[i] = f.merged(acc[i], other[c][i]);
    }
    float* mine = shared + warp * partial_floats(kColumns);
    if (lane == 0) *reinterpret_cast<float2*>(mine) = make_float2(group.max, group.sum);
#pragma unroll
    for (int i = 0; i < kEach; ++i) mine[4 + kWarp * i + lane] = acc[i];
    __syncthreads();
    if (warp < kEach) {
      for (int w = 0; w < kMergeWarps && begin + w * kGroupChunks < chunks; ++w) {
        const float* of = shared + w * partial_floats(kColumns);
        y = total.merge({of[0], of[1]}).merged(y, of[4 + threadIdx.x]);
      }
    }
    __syncthreads();  // what the next round overwrites has been read
  }
  if (warp < kEach && warp * kWarp < dim) put_head(op, token, head, warp * kWarp + lane, quotient(y, total.sum));
}

// ---- many queries: a block has all chunks ---------------------------------------------------------------------------

// Keys or values of a chunk as f16 in shared memory: rows of kLength values in pieces of eight. Odd rows have their
// pieces in another order, so that eight lanes' 16 bytes, of two rows, meet no bank twice.
template <KvType kType, int kRows, int kLength>
struct SharedSection {
  static constexpr int kPieces = kLength / 8;
  uint8_t* at;

  __device__ uint4* place(int row, int piece) const {
    return reinterpret_cast<uint4*>(at) + row * kPieces + (piece ^ (row % 2 * 4));
  }
  // A thread's pieces are an even number of rows apart, so all in the same order.
  __device__ void fetch(const uint8_t* from) const {
    constexpr int kAtOnce = kType == KvType::kQ8 ? 2 : 1;  // pieces that 16 bytes make
    static_assert(kAttendThreads * kAtOnce % (2 * kPieces) == 0);
    const int first = threadIdx.x * kAtOnce;
    uint4* to = place(first / kPieces, first % kPieces);
    from += 16 * threadIdx.x;
#pragma unroll 2
    for (int i = 0; i < kRows * kPieces; i += kAttendThreads * kAtOnce) {
      if constexpr (kType == KvType::kQ8) {
        const uint4 codes = *reinterpret_cast<const uint4*>(from);
        to[0] = codes_to_halves(make_uint2(codes.x, codes.y));
        to[1] = codes_to_halves(make_uint2(codes.z, codes.w));
      } else {
        copy_async(to, from);
      }
      to += kAttendThreads * kAtOnce;
      from += 16 * kAttendThreads;
    }
    commit_copies();
  }
};

template <int kColumns>
constexpr size_t kSectionShared = 2 * kPageTokens * kColumns;
template <int kColumns>
constexpr size_t kWholeShared = 2 * kSectionShared<kColumns> + 2 * kWholeRows * kColumns;

// Grid: (tiles, KV heads * query_blocks). A warp has 16 queries; a block's warps have the same KV head, so a page is
// read once for all of them. Sums over groups are kept where the result goes. Shared: keys, values, the low halves of
// the queries [warp][step][lane].
template <KvType kType, int kColumns>
__global__ void __launch_bounds__(kAttendThreads, 2) attend_whole(AttendArgs args) {
  start_next();
  wait_for_previous();
  const Attention& op = args.op;
  const KvCache& cache = op.cache;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, row = warp * kQueryRows + lane / 4;
  const int kv_head = blockIdx.y % cache.kv_heads, first = blockIdx.y / cache.kv_heads * kWholeRows;
  const Queries queries(args, op.tiles[blockIdx.x], kv_head, first, kWholeRows);
  if (queries.count <= 0) return;

  int context = 0;  // that any of the block's queries sees
  for (int t = queries.token(0); t <= queries.token(queries.count - 1); ++t) context = max(context, op.step.visible[t]);
  const int chunks = chunks_of(context);
  const int32_t* pages = op.step.pages + op.step.run[queries.tile.begin] * op.step.page_stride;
  const SharedSection<kType, kPageTokens, kColumns> keys{shared_memory()};
  const SharedSection<kType, kColumns, kPageTokens> values{shared_memory() + kSectionShared<kColumns>};
  const auto section = [&](int chunk, bool is_values) { return kv_section(cache, pages[chunk], kv_head, is_values); };
  if (chunks > 0) {
    keys.fetch(section(0, false));
    values.fetch(section(0, true));
  }

  const LaneQueries mine(op, queries, row);
  QueryOperand<kColumns> query;
  uint4* low =
      reinterpret_cast<uint4*>(shared_memory() + 2 * kSectionShared<kColumns>) + warp * (kColumns / 16) * kWarp + lane;
  query.load(mine.rows, cache.head_dim, args.scale, [&](int step, const uint32_t (&words)[4]) {
    low[step * kWarp] = make_uint4(words[0], words[1], words[2], words[3]);
  });

  Running group[2], total[2];
  float acc[kColumns / 8][4] = {};
  for (int chunk = 0; chunk < chunks; ++chunk) {
    copies_done<1>();
    __syncthreads();
    const int seen[2] = {mine.visible[0] - chunk * kPageTokens, mine.visible[1] - chunk * kPageTokens};
    float s[2 * kSteps][4] = {};
    float tops[2] = {-INFINITY, -INFINITY};
    ChunkScales key_scales;
    if constexpr (kType == KvType::kQ8) key_scales.load(Section<kType>{section(chunk, false)}.scales(kColumns));
#pragma unroll
    for (int j = 0; j < kColumns / 32; ++j) {
      const uint4 a = low[2 * j * kWarp], b = low[(2 * j + 1) * kWarp];
      const uint32_t both[2][4] = {{a.x, a.y, a.z, a.w}, {b.x, b.y, b.z, b.w}};
#pragma unroll
      for (int n = 0; n < 2 * kSteps; ++n) query.add_scores(j, both, *keys.place(key_of(n), 4 * j + lane % 4), s[n]);
    }
#pragma unroll
    for (int n = 0; n < 2 * kSteps; ++n) finish_scores<kType>(query.scale, key_scales, n, seen, s[n], tops);
    __syncthreads();  // the keys have been read
    if (chunk + 1 < chunks) {
      keys.fetch(section(chunk + 1, false));
      copies_done<1>();
    } else {
      copies_done<0>();
    }
    WeightOperand<kType> weights[kSteps];
    ValueScales value_scales;
    if constexpr (kType == KvType::kQ8) value_scales.load(Section<kType>{section(chunk, true)}.scales(kColumns), seen);
    float sum[4] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) tops[r] = largest_of_four_lanes(tops[r]);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
#pragma unroll
      for (int n = 2 * i; n < 2 * i + 2; ++n) weights[i].set(n, s[n], tops, value_scales);
      weights[i].add_sum(sum);
    }
    __syncthreads();  // the values are there
    const Running::Factors f[2] = {group[0].merge({tops[0], sum[0]}, value_scales.up(0)),
                                   group[1].merge({tops[1], sum[2]}, value_scales.up(1))};
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
      float part[4];
      weigh(weights, [&](int i) { return *values.place(8 * n + lane / 4, 4 * i + lane % 4); }, part);
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[n][i] = f[i / 2].merged(acc[n][i], part[i]);
    }
    if (chunk % kGroupChunks == kGroupChunks - 1 || chunk + 1 == chunks) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const Running::Factors f = total[r].merge(group[r]);
        group[r] = {};
        const bool is = row + 8 * r < queries.count;
        float* y = is ? result_of(op, queries.token(row + 8 * r), queries.head(row + 8 * r)) : nullptr;
#pragma unroll
        for (int i = 0; i < kColumns / 4; ++i) {
          float& of_group = acc[i / 2][2 * r + i % 2];
          const int column = i / 2 * 8 + lane % 4 * 2 + i % 2;
          if (is && column < cache.head_dim) y[column] = f.merged(chunk < kGroupChunks ? 0.0f : y[column], of_group);
          of_group = 0;
        }
      }
    }
    __syncthreads();  // the values have been read, and a finished result written
    if (chunk + 1 < chunks) values.fetch(section(chunk + 1, true));
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    for (int r = 0; r < 8; ++r) {
      const float sum = __shfl_sync(kAllLanes, total[half].sum, 4 * r);
      const int query_row = warp * kQueryRows + 8 * half + r;
      if (query_row >= queries.count) continue;
      const int token = queries.token(query_row), head = queries.head(query_row);
      const float* from = result_of(op, token, head);
      for (int column = lane; column - lane < cache.head_dim; column += kWarp)
        put_head(op, token, head, column, column < cache.head_dim ? quotient(from[column], sum) : 0.0f);
    }
  }
}

// ---- which ----------------------------------------------------------------------------------------------------------

bool is_split(int heads, int64_t tokens) { return tokens * heads <= kFewRows; }

// Bytes of the partials of a tile.
size_t tile_partial_bytes(int heads, int kv_heads, int head_dim, int64_t tokens, int64_t max_context) {
  const int64_t tile_tokens = std::min(tokens, attention_tile_tokens(heads, kv_heads, tokens));
  return sizeof(float) * static_cast<size_t>(tile_tokens * heads * int64_t{blocks_of(max_context, kPageTokens)}) *
         static_cast<size_t>(partial_floats(kv_columns(head_dim)));
}
// Tiles whose partials there is room for at once.
int64_t tiles_of_round(size_t tile_bytes) {
  return std::max<int64_t>(1, static_cast<int64_t>(kMostPartialBytes / tile_bytes));
}

template <KvType kType, int kColumns>
void launch_attention(const Attention& op, Stream stream) {
  const int kv_heads = op.cache.kv_heads;
  AttendArgs args{};
  args.op = op;
  args.scale = op.scale * kLog2E;
  args.group = op.heads / kv_heads;
  const bool split = is_split(op.heads, op.tokens);
  const int64_t tile_tokens = std::min(op.tokens, attention_tile_tokens(op.heads, kv_heads, op.tokens));
  args.rows = static_cast<int>(tile_tokens * args.group);
  args.query_blocks = static_cast<int>(blocks_of(args.rows, split ? kQueryRows : kWholeRows));
  args.max_chunks = static_cast<int>(blocks_of(op.max_context, kPageTokens));
  const auto heads_grid = static_cast<unsigned>(kv_heads * args.query_blocks);
  if (!split) {
    launch(attend_whole<kType, kColumns>, dim3(static_cast<unsigned>(op.tile_count), heads_grid), kAttendThreads,
           kWholeShared<kColumns>, stream, args);
    return;
  }
  const int64_t round =
      tiles_of_round(tile_partial_bytes(op.heads, kv_heads, op.cache.head_dim, op.tokens, op.max_context));
  for (int64_t begin = 0; begin < op.tile_count; begin += round) {
    const auto tiles = static_cast<unsigned>(std::min(round, op.tile_count - begin));
    args.op.tiles = op.tiles + begin;
    launch(attend_split<kType, kColumns>,
           dim3(tiles, heads_grid, static_cast<unsigned>(std::min(args.max_chunks, kMostSplits))), kAttendThreads,
           kSplitShared<kType>, stream, args);
    launch(merge_chunks<kColumns>, dim3(static_cast<unsigned>(args.rows * kv_heads), tiles), kMergeThreads,
           sizeof(float) * kMergeWarps * partial_floats(kColumns), stream, args);
  }
}

}  // namespace

int64_t attention_tile_tokens(int heads, int kv_heads, int64_t tokens) {
  return std::max(1, (is_split(heads, tokens) ? kQueryRows : kWholeRows) / (heads / kv_heads));
}

size_t attention_partial_bytes(int heads, int kv_heads, int head_dim, int64_t tokens, int64_t tiles,
                               int64_t max_context) {
  if (!is_split(heads, tokens)) return 0;
  const size_t of_tile = tile_partial_bytes(heads, kv_heads, head_dim, tokens, max_context);
  return of_tile * static_cast<size_t>(std::min(tiles, tiles_of_round(of_tile)));
}

void attention(const Attention& op, Stream stream) {
  check_head_dim(op.cache.head_dim);
  if (op.tokens < 1) return;
  const auto run = [&](auto columns) {
    if (op.cache.type == KvType::kF16) {
      launch_attention<KvType::kF16, columns>(op, stream);
    } else {
      launch_attention<KvType::kQ8, columns>(op, stream);
    }
  };
  if (kv_columns(op.cache.head_dim) == 64) {
    run(std::integral_constant<int, 64>());
  } else {
    run(std::integral_constant<int, 128>());
  }
  if (op.blocks && !rounds_itself(op))
    quantize(op.y, op.tokens, int64_t{op.heads} * op.cache.head_dim, op.blocks, stream);
}

}  // namespace glmlite::cuda
