// Attention over KV pages, and what writes them.
//
// A page has, of each KV head, keys and then values of 64 positions:
//   f16  [position][dim], dim = head_dim in whole eights, filled up with 0
//   q8   [position][dim] code + 128, dim in whole sixteens, filled up with code 0; then f32 scales [position]
//
// A chunk is a page. score = dot * scale, dot = fma over head_dim in order from 0; q8: (dot with codes * key scale) *
// scale. Over what is visible of the chunk: max; p = exp(score - max); sum of p as (position l + position l + 32) and
// then warp_sum's tree over l; acc = fma(p, v, acc) in order of position from 0, q8: fma(p * value scale, code, acc).
// Chunks are merged one after the other: m = max of both, sum = fma(sum, exp(max - m), other sum * exp(other max - m)),
// acc likewise; a chunk of which nothing is visible changes nothing. y = acc / sum.
// Whether chunks are computed by different blocks and merged by a second kernel, or by one block in turn, is the same.
#include <algorithm>

#include "rows.cuh"
#include "weights.cuh"

namespace glmlite::cuda {

namespace {

constexpr int64_t kSplitTokens = 8;  // steps of more tokens have enough blocks without splitting contexts
constexpr int kMostSplits = 256;

__host__ __device__ constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }
__host__ __device__ constexpr int kv_columns(KvType type, int head_dim) {
  return round_up(head_dim, type == KvType::kQ8 ? 16 : 8);
}
__host__ __device__ constexpr int kv_row_bytes(KvType type, int head_dim) {
  return kv_columns(type, head_dim) * (type == KvType::kQ8 ? 1 : 2);
}
// Keys or values of one head in a page.
__host__ __device__ constexpr int kv_section_bytes(KvType type, int head_dim) {
  return kPageTokens * (kv_row_bytes(type, head_dim) + (type == KvType::kQ8 ? 4 : 0));
}

__device__ inline uint8_t* kv_section(const KvCache& c, int page, int kv_head, bool values) {
  const int64_t bytes = kv_section_bytes(c.type, c.head_dim);
  return c.pages + ((static_cast<int64_t>(page) * c.kv_heads + kv_head) * 2 + values) * bytes;
}

// ---- writing pages --------------------------------------------------------------------------------------------------

constexpr int kHeadThreads = 128, kHeadWarps = kHeadThreads / kWarp;
constexpr size_t kHeadShared = sizeof(float) * kHeadWarps * kMaxHeadDim;

// A warp's row of head_dim values to position `index` of a section. True if all are finite.
__device__ inline bool store_row(const KvCache& c, const float* x, uint8_t* section, int index) {
  const int lane = threadIdx.x % kWarp, columns = kv_columns(c.type, c.head_dim);
  float largest = 0;
  int bad = 0;
  for (int i = lane; i < c.head_dim; i += kWarp) {
    bad |= !(fabsf(x[i]) <= 3.40282347e38f);
    largest = fmaxf(largest, fabsf(x[i]));
  }
  for (int apart = kWarp / 2; apart > 0; apart /= 2) bad |= __shfl_xor_sync(kAllLanes, bad, apart);
  largest = warp_max(largest);
  if (c.type == KvType::kF16) {
    uint16_t* row = reinterpret_cast<uint16_t*>(section) + index * columns;
    for (int i = lane; i < columns; i += kWarp) {
      const float v = i < c.head_dim ? x[i] : 0.0f;
      row[i] = v == v ? float_to_half(fmaxf(-65504.0f, fminf(65504.0f, v))) : static_cast<uint16_t>(0);
    }
  } else {
    const float scale = bad ? 0.0f : largest / 127.0f, whole = scale * 127.0f;
    const float factor = whole >= 0x1p-100f ? 127.0f / whole : 0.0f;
    uint8_t* row = section + index * columns;
    for (int i = lane; i < columns; i += kWarp) {
      const int code = factor > 0 && i < c.head_dim ? static_cast<int>(rintf(x[i] * factor)) : 0;
      row[i] = static_cast<uint8_t>(code + 128);
    }
    if (lane == 0) reinterpret_cast<float*>(section + kPageTokens * columns)[index] = scale;
  }
  return !bad;
}

// By a Hadamard matrix, see cpu/kernels.h. head: in shared memory, the warp's.
__device__ inline void rotate(float* head, int head_dim) {
  const int lane = threadIdx.x % kWarp, n = head_dim & -head_dim;
  for (int apart = 1; apart < n; apart *= 2) {
    for (int i = lane; i < head_dim / 2; i += kWarp) {
      float* first = head + i / apart * 2 * apart + i % apart;
      const float a = first[0], b = first[apart];
      first[0] = a + b;
      first[apart] = a - b;
    }
    __syncwarp();
  }
  const float norm = 1.0f / sqrtf(static_cast<float>(n));
  for (int i = lane; i < head_dim; i += kWarp) head[i] *= norm;
  __syncwarp();
}

struct AppendArgs {
  AppendKv op;
  const int32_t *first, *second;  // of the rope's pairs
  int pairs;
};

// Grid: (heads of q, k and v / 4, tokens): a warp has a head.
__global__ void __launch_bounds__(kHeadThreads) append_heads(AppendArgs args) {
  start_next();
  wait_for_previous();
  const AppendKv& op = args.op;
  const KvCache& c = op.cache;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, token = blockIdx.y, dim = c.head_dim;
  const int h = blockIdx.x * kHeadWarps + warp, all = op.heads + 2 * c.kv_heads;
  if (h >= all) return;
  float* from = op.qkv + (static_cast<int64_t>(token) * all + h) * dim;
  float* head = reinterpret_cast<float*>(shared_memory()) + warp * kMaxHeadDim;
  const bool is_query = h < op.heads, is_value = h >= op.heads + c.kv_heads;

  float squares = 0;
  for (int i = lane; i < dim; i += kWarp) {
    head[i] = from[i];
    squares = fmaf(head[i], head[i], squares);
  }
  if (!is_value) {
    const float* norm = is_query ? op.q_norm : op.k_norm;
    if (norm) {
      const float scale = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(dim) + op.eps);
      for (int i = lane; i < dim; i += kWarp) head[i] = head[i] * scale * norm[i];
    }
    __syncwarp();
    const float2* turns = reinterpret_cast<const float2*>(op.turns) + static_cast<int64_t>(token) * args.pairs;
    for (int i = lane; i < args.pairs; i += kWarp) {
      float &first = head[args.first[i]], &second = head[args.second[i]];
      const float a = first, b = second, cos = turns[i].x, sin = turns[i].y;
      first = fmaf(a, cos, -(b * sin));
      second = fmaf(a, sin, b * cos);
    }
    __syncwarp();
    if (c.type == KvType::kQ8) rotate(head, dim);
    for (int i = lane; i < dim; i += kWarp) from[i] = head[i];
  }
  if (is_query) return;
  __syncwarp();
  const int entry = op.step.entry[token];
  const int page = op.step.pages[op.step.run[token] * op.step.page_stride + entry / kPageTokens];
  const int kv_head = (h - op.heads) % c.kv_heads;
  if (!store_row(c, head, kv_section(c, page, kv_head, is_value), entry % kPageTokens) && lane == 0) op.bad[token] = 1;
}

// Grid: (2 kv_heads / 4, entries).
__global__ void __launch_bounds__(kHeadThreads)
    store_heads(const float* k, const float* v, KvCache c, const int32_t* pages, int32_t* bad) {
  start_next();
  wait_for_previous();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, entry = blockIdx.y;
  const int h = blockIdx.x * kHeadWarps + warp;
  if (h >= 2 * c.kv_heads) return;
  const bool is_value = h >= c.kv_heads;
  const float* from = (is_value ? v : k) + (static_cast<int64_t>(entry) * c.kv_heads + h % c.kv_heads) * c.head_dim;
  float* head = reinterpret_cast<float*>(shared_memory()) + warp * kMaxHeadDim;
  for (int i = lane; i < c.head_dim; i += kWarp) head[i] = from[i];
  __syncwarp();
  if (c.type == KvType::kQ8 && !is_value) rotate(head, c.head_dim);
  uint8_t* section = kv_section(c, pages[entry / kPageTokens], h % c.kv_heads, is_value);
  if (!store_row(c, head, section, entry % kPageTokens) && lane == 0) *bad = 1;
}

__global__ void turn_table(Rope rope, StepState step, int tokens, float* turns) {
  start_next();
  wait_for_previous();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= tokens * rope.pairs) return;
  const int token = static_cast<int>(i / rope.pairs), pair = static_cast<int>(i % rope.pairs);
  const double angle = rope.freq[pair] * step.positions[rope.axis[pair]][token];
  turns[2 * i] = static_cast<float>(cos(angle) * rope.magnitude);
  turns[2 * i + 1] = static_cast<float>(sin(angle) * rope.magnitude);
}

// ---- attention ------------------------------------------------------------------------------------------------------

struct AttendArgs {
  Attention op;
  int group;         // query heads of a KV head
  int query_blocks;  // blocks that share the queries of a tile
  int max_chunks;    // of a partial's row
};

// (max, sum, unused, unused, acc in whole fours).
__host__ __device__ constexpr int partial_floats(int head_dim) { return 4 + round_up(head_dim, 4); }

// The state of a query in a warp: lane l has columns 4 l .. 4 l + 3.
struct State {
  float max = -INFINITY, sum = 0, acc[4] = {};

  __device__ void merge(float other_max, float other_sum, const float (&other)[4]) {
    if (other_sum == 0.0f) return;
    const float top = fmaxf(max, other_max), s = expf(max - top), other_s = expf(other_max - top);
    sum = fmaf(sum, s, other_sum * other_s);
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[i] = fmaf(acc[i], s, other[i] * other_s);
    max = top;
  }
  __device__ void finish(float* y, int head_dim) const {
    const int column = threadIdx.x % kWarp * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (column + i < head_dim) y[column + i] = acc[i] / sum + 0.0f;  // never -0
    }
  }
};

// Keys or values of a page in shared memory. Rows are 16 bytes further apart than they are long, against conflicts.
template <KvType kType>
struct Section {
  static constexpr bool kCodes = kType == KvType::kQ8;
  uint8_t* rows;
  int row_bytes;

  __device__ int stride() const { return row_bytes + 16; }
  __device__ float* scales() const { return reinterpret_cast<float*>(rows + kPageTokens * stride()); }
  static constexpr __host__ __device__ int bytes(int head_dim) {
    return kPageTokens * (kv_row_bytes(kType, head_dim) + 16 + (kCodes ? 4 : 0));
  }
  // The first `count` positions; the others become zero.
  __device__ void fetch(const uint8_t* from, int count) const {
    const int pieces = row_bytes / 16;
    for (int i = threadIdx.x; i < kPageTokens * pieces; i += blockDim.x) {
      const int row = i / pieces, at = i % pieces * 16;
      if (row < count) {
        copy_async(rows + row * stride() + at, from + row * row_bytes + at);
      } else {
        *reinterpret_cast<uint4*>(rows + row * stride() + at) = make_uint4(0, 0, 0, 0);
      }
    }
    if constexpr (kCodes) {
      for (int i = threadIdx.x; i < kPageTokens; i += blockDim.x)
        scales()[i] = i < count ? reinterpret_cast<const float*>(from + kPageTokens * row_bytes)[i] : 0.0f;
    }
    commit_copies();
  }
  // Columns 8 i .. 8 i + 7 of a row; 4 i .. 4 i + 3.
  __device__ void eight(int row, int i, float (&v)[8]) const {
    if constexpr (kCodes) {
      const uint2 c = *reinterpret_cast<const uint2*>(rows + row * stride() + 8 * i);
#pragma unroll
      for (int j = 0; j < 8; ++j) v[j] = byte_to_float(j < 4 ? c.x : c.y, j % 4, 128);
    } else {
      const uint4 c = *reinterpret_cast<const uint4*>(rows + row * stride() + 16 * i);
#pragma unroll
      for (int j = 0; j < 8; ++j) v[j] = half_of(c, j);
    }
  }
  __device__ void four(int row, int i, float (&v)[4]) const {
    if constexpr (kCodes) {
      const uint32_t c = *reinterpret_cast<const uint32_t*>(rows + row * stride() + 4 * i);
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = byte_to_float(c, j, 128);
    } else {
      const uint2 c = *reinterpret_cast<const uint2*>(rows + row * stride() + 8 * i);
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = half_to_float((j < 2 ? c.x : c.y) >> 16 * (j % 2) & 0xffff);
    }
  }
};

__host__ __device__ constexpr int query_floats(int head_dim) { return round_up(head_dim, 16); }

template <KvType kType>
size_t attend_shared(int head_dim, int queries) {
  return 2 * Section<kType>::bytes(head_dim) + sizeof(float) * queries * (query_floats(head_dim) + kPageTokens);
}

// Grid: (tiles, KV heads * query_blocks, chunks or 1). A block has kQueries queries for each of its warps, all of one
// KV head, so it reads a page once for all of them. kSplit: block z computes chunks z, z + gridDim.z, ... and leaves
// them as partials; else it merges all chunks itself.
// Shared: keys, values, queries [query][columns], softmax weights [query][64].
template <KvType kType, int kQueries, bool kSplit>
__global__ void __launch_bounds__(256) attend(AttendArgs args) {
  start_next();
  wait_for_previous();
  const Attention& op = args.op;
  const KvCache& cache = op.cache;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, block_queries = blockDim.x / kWarp * kQueries;
  const int dim = cache.head_dim, columns = query_floats(dim);
  const int kv_head = blockIdx.y % cache.kv_heads, first = blockIdx.y / cache.kv_heads * block_queries;
  const Tile tile = op.tiles[blockIdx.x];
  const int count = min(block_queries, (tile.end - tile.begin) * args.group - first);  // of queries
  if (count <= 0) return;

  const int row_bytes = kv_row_bytes(kType, dim);
  const Section<kType> keys{shared_memory(), row_bytes}, values{keys.rows + Section<kType>::bytes(dim), row_bytes};
  float* queries = reinterpret_cast<float*>(values.rows + Section<kType>::bytes(dim));
  float* weights = queries + block_queries * columns + warp * kQueries * kPageTokens;

  const auto token_of = [&](int query) { return tile.begin + (first + query) / args.group; };
  const auto head_of = [&](int query) { return kv_head * args.group + (first + query) % args.group; };
  const int64_t qkv_columns = static_cast<int64_t>(op.heads + 2 * cache.kv_heads) * dim;

  int context = 0;  // that any of the block's queries sees
  for (int t = token_of(0); t <= token_of(count - 1); ++t) context = max(context, op.step.visible[t]);
  const int chunks = (context + kPageTokens - 1) / kPageTokens;
  const int begin = kSplit ? blockIdx.z : 0, step = kSplit ? gridDim.z : 1;
  if (begin >= chunks) return;

  const int32_t* pages = op.step.pages + op.step.run[tile.begin] * op.step.page_stride;
  const auto fetch = [&](const Section<kType>& to, int chunk, bool is_values) {
    if (chunk < chunks)
      to.fetch(kv_section(cache, pages[chunk], kv_head, is_values), min(kPageTokens, context - chunk * kPageTokens));
  };
  fetch(keys, begin, false);
  fetch(values, begin, true);
  for (int i = threadIdx.x; i < count * columns; i += blockDim.x) {
    const int q = i / columns, column = i % columns;
    queries[i] = column < dim ? op.qkv[token_of(q) * qkv_columns + head_of(q) * dim + column] : 0.0f;
  }

  const int mine = warp * kQueries;  // the warp's first query
  int visible[kQueries];
#pragma unroll
  for (int q = 0; q < kQueries; ++q) visible[q] = mine + q < count ? op.step.visible[token_of(mine + q)] : 0;
  State state[kSplit ? 1 : kQueries];

  for (int chunk = begin; chunk < chunks; chunk += step) {
    copies_done<1>();
    __syncthreads();
    float score[kQueries][2] = {};
    if (mine < count) {
      const float* row = queries + mine * columns;
      for (int i = 0; i < (dim + 7) / 8; ++i) {
        float k[2][8];
        keys.eight(lane, i, k[0]);
        keys.eight(lane + kWarp, i, k[1]);
#pragma unroll
        for (int q = 0; q < kQueries; ++q) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float4 x = *reinterpret_cast<const float4*>(row + q * columns + 8 * i + 4 * half);
#pragma unroll
            for (int p = 0; p < 2; ++p) {
              score[q][p] = fmaf(x.x, k[p][4 * half], score[q][p]);
              score[q][p] = fmaf(x.y, k[p][4 * half + 1], score[q][p]);
              score[q][p] = fmaf(x.z, k[p][4 * half + 2], score[q][p]);
              score[q][p] = fmaf(x.w, k[p][4 * half + 3], score[q][p]);
            }
          }
        }
      }
      if constexpr (kType == KvType::kQ8) {
#pragma unroll
        for (int q = 0; q < kQueries; ++q) {
#pragma unroll
          for (int p = 0; p < 2; ++p) score[q][p] *= keys.scales()[lane + p * kWarp];
        }
      }
    }
    __syncthreads();  // the keys have been read
    fetch(keys, chunk + step, false);

    float top[kQueries], sum[kQueries];
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      const int seen = visible[q] - chunk * kPageTokens;
      top[q] = -INFINITY;
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        score[q][p] = lane + p * kWarp < seen ? score[q][p] * op.scale : -INFINITY;
        top[q] = fmaxf(top[q], score[q][p]);
      }
      top[q] = warp_max(top[q]);
#pragma unroll
      for (int p = 0; p < 2; ++p) score[q][p] = lane + p * kWarp < seen ? expf(score[q][p] - top[q]) : 0.0f;
      sum[q] = warp_sum(score[q][0] + score[q][1]);
    }
    if (chunk + step < chunks) {
      copies_done<1>();
    } else {
      copies_done<0>();
    }
    __syncthreads();
    float acc[kQueries][4] = {};
    if (mine < count) {
#pragma unroll
      for (int q = 0; q < kQueries; ++q) {
#pragma unroll
        for (int p = 0; p < 2; ++p) {
          const int position = lane + p * kWarp;
          weights[q * kPageTokens + position] =
              kType == KvType::kQ8 ? score[q][p] * values.scales()[position] : score[q][p];
        }
      }
      __syncwarp();
      const int column = 4 * lane < row_bytes / (kType == KvType::kQ8 ? 1 : 2) ? lane : 0;
      for (int position = 0; position < kPageTokens; position += 4) {
        float v[4][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) values.four(position + i, column, v[i]);
#pragma unroll
        for (int q = 0; q < kQueries; ++q) {
          const float4 p = *reinterpret_cast<const float4*>(weights + q * kPageTokens + position);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            acc[q][i] = fmaf(p.x, v[0][i], acc[q][i]);
            acc[q][i] = fmaf(p.y, v[1][i], acc[q][i]);
            acc[q][i] = fmaf(p.z, v[2][i], acc[q][i]);
            acc[q][i] = fmaf(p.w, v[3][i], acc[q][i]);
          }
        }
      }
    }
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      if constexpr (kSplit) {
        if (mine + q >= count) continue;
        const int64_t at = (token_of(mine + q) * op.heads + head_of(mine + q)) * int64_t{args.max_chunks} + chunk;
        float* to = op.partials + at * partial_floats(dim);
        if (lane == 0) *reinterpret_cast<float2*>(to) = make_float2(top[q], sum[q]);
        if (4 * lane < dim)
          *reinterpret_cast<float4*>(to + 4 + 4 * lane) = {acc[q][0], acc[q][1], acc[q][2], acc[q][3]};
      } else {
        state[q].merge(top[q], sum[q], acc[q]);
      }
    }
    __syncthreads();  // the values have been read
    fetch(values, chunk + step, true);
  }
  if constexpr (!kSplit) {
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      if (mine + q < count)
        state[q].finish(op.y + (int64_t{token_of(mine + q)} * op.heads + head_of(mine + q)) * dim, dim);
    }
  }
}

// Grid: (heads / 4, tokens): a warp has a query.
__global__ void __launch_bounds__(kHeadThreads) merge_chunks(AttendArgs args) {
  start_next();
  wait_for_previous();
  const Attention& op = args.op;
  const int lane = threadIdx.x % kWarp, dim = op.cache.head_dim, token = blockIdx.y;
  const int head = blockIdx.x * kHeadWarps + threadIdx.x / kWarp;
  if (head >= op.heads) return;
  const int64_t query = static_cast<int64_t>(token) * op.heads + head;
  const float* from = op.partials + query * args.max_chunks * partial_floats(dim);
  const int chunks = (op.step.visible[token] + kPageTokens - 1) / kPageTokens;
  const int column = 4 * lane < dim ? 4 * lane : 0;
  State state;
  constexpr int kAhead = 8;
  for (int begin = 0; begin < chunks; begin += kAhead) {
    float2 head_of[kAhead];
    float4 acc[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const float* p = from + min(begin + i, chunks - 1) * partial_floats(dim);
      head_of[i] = *reinterpret_cast<const float2*>(p);
      acc[i] = *reinterpret_cast<const float4*>(p + 4 + column);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const float other[4] = {acc[i].x, acc[i].y, acc[i].z, acc[i].w};
      if (begin + i < chunks) state.merge(head_of[i].x, head_of[i].y, other);
    }
  }
  state.finish(op.y + query * dim, dim);
}

void check_head_dim(int head_dim) {
  if (head_dim > kMaxHeadDim)
    throw std::invalid_argument("attention on CUDA: head_dim is " + std::to_string(head_dim) + ", expected at most " +
                                std::to_string(kMaxHeadDim));
}

template <KvType kType>
void launch_attention(const Attention& op, Stream stream) {
  AttendArgs args{op, op.heads / op.cache.kv_heads, 1, static_cast<int>(blocks_of(op.max_context, kPageTokens))};
  const bool split = op.tokens <= kSplitTokens;
  const auto most = static_cast<int>(op.tile_tokens * args.group);
  const int warps = most <= 16 ? 4 : 8, of_warp = most <= 4 ? 1 : 4, queries = warps * of_warp;
  args.query_blocks = static_cast<int>(blocks_of(most, queries));
  const dim3 grid(static_cast<unsigned>(op.tile_count), static_cast<unsigned>(op.cache.kv_heads * args.query_blocks),
                  split ? std::min(args.max_chunks, kMostSplits) : 1);
  const auto run = [&](auto kernel) {
    launch(kernel, grid, dim3(warps * kWarp), attend_shared<kType>(op.cache.head_dim, queries), stream, args);
  };
  if (split) {
    of_warp == 1 ? run(attend<kType, 1, true>) : run(attend<kType, 4, true>);
    launch(merge_chunks, dim3(blocks_of(op.heads, kHeadWarps), static_cast<unsigned>(op.tokens)), kHeadThreads, 0,
           stream, args);
  } else {
    of_warp == 1 ? run(attend<kType, 1, false>) : run(attend<kType, 4, false>);
  }
}

}  // namespace

size_t kv_page_bytes(KvType type, int kv_heads, int head_dim) {
  return static_cast<size_t>(2 * kv_heads) * static_cast<size_t>(kv_section_bytes(type, head_dim));
}

void make_turns(const Rope& rope, const StepState& step, int64_t tokens, float* turns, Stream stream) {
  if (tokens * rope.pairs > 0)
    launch(turn_table, blocks_of(tokens * rope.pairs, 128), 128, 0, stream, rope, step, static_cast<int>(tokens),
           turns);
}

void append_kv(const AppendKv& op, Stream stream) {
  check_head_dim(op.cache.head_dim);
  if (op.tokens < 1) return;
  AppendArgs args{op, nullptr, nullptr, 0};
  if (op.rope) {
    args.first = op.rope->first;
    args.second = op.rope->second;
    args.pairs = static_cast<int>(op.rope->pairs);
  }
  launch(append_heads, dim3(blocks_of(op.heads + 2 * op.cache.kv_heads, kHeadWarps), static_cast<unsigned>(op.tokens)),
         kHeadThreads, kHeadShared, stream, args);
}

void store_prefix(const float* k, const float* v, int64_t count, const KvCache& cache, const int32_t* pages,
                  int32_t* bad, Stream stream) {
  check_head_dim(cache.head_dim);
  if (count > 0)
    launch(store_heads, dim3(blocks_of(2 * cache.kv_heads, kHeadWarps), static_cast<unsigned>(count)), kHeadThreads,
           kHeadShared, stream, k, v, cache, pages, bad);
}

int64_t attention_tile_tokens(int heads, int kv_heads, int64_t tokens) {
  return std::max(1, (tokens <= kSplitTokens ? 16 : 32) / (heads / kv_heads));
}

size_t attention_partial_bytes(int heads, int head_dim, int64_t tokens, int64_t max_context) {
  if (tokens > kSplitTokens) return 0;
  return sizeof(float) * static_cast<size_t>(tokens * heads * int64_t{blocks_of(max_context, kPageTokens)}) *
         static_cast<size_t>(partial_floats(head_dim));
}

void attention(const Attention& op, Stream stream) {
  check_head_dim(op.cache.head_dim);
  if (op.tokens < 1) return;
  if (op.cache.type == KvType::kF16) {
    launch_attention<KvType::kF16>(op, stream);
  } else {
    launch_attention<KvType::kQ8>(op, stream);
  }
  if (op.blocks) quantize(op.y, op.tokens, int64_t{op.heads} * op.cache.head_dim, op.blocks, stream);
}

}  // namespace glmlite::cuda
