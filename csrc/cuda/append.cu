// What goes into KV pages: norms and turns of heads, and their stores.
#include "pages.cuh"

namespace glmlite::cuda {

namespace {

constexpr int kHeadThreads = 128, kHeadWarps = kHeadThreads / kWarp;
constexpr size_t kHeadShared = sizeof(float) * kHeadWarps * kMaxHeadDim;

// A warp's row of head_dim keys or values to position `index` of a section. True if all are finite.
__device__ inline bool store_row(const KvCache& c, const float* x, bool is_value, uint8_t* section, int index) {
  const int lane = threadIdx.x % kWarp, columns = kv_columns(c.head_dim);
  const int first = is_value ? index : index * columns, apart_by = is_value ? kPageTokens : 1;
  float largest = 0;
  int bad = 0;
  for (int i = lane; i < c.head_dim; i += kWarp) {
    bad |= !(fabsf(x[i]) <= 3.40282347e38f);
    largest = fmaxf(largest, fabsf(x[i]));
  }
  for (int apart = kWarp / 2; apart > 0; apart /= 2) bad |= __shfl_xor_sync(kAllLanes, bad, apart);
  largest = warp_max(largest);
  if (c.type == KvType::kF16) {
    uint16_t* row = reinterpret_cast<uint16_t*>(section) + first;
    for (int i = lane; i < columns; i += kWarp) {
      const float v = i < c.head_dim ? x[i] : 0.0f;
      row[i * apart_by] = v == v ? float_to_half(fmaxf(-65504.0f, fminf(65504.0f, v))) : static_cast<uint16_t>(0);
    }
  } else {
    const float scale = bad ? 0.0f : largest / 127.0f, whole = scale * 127.0f;
    const float factor = whole >= 0x1p-100f ? 127.0f / whole : 0.0f;
    uint8_t* row = section + first;
    for (int i = lane; i < columns; i += kWarp) {
      const int code = factor > 0 && i < c.head_dim ? static_cast<int>(rintf(x[i] * factor)) : 0;
      row[i * apart_by] = static_cast<uint8_t>(code + 128);
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
  if (!store_row(c, head, is_value, kv_section(c, page, kv_head, is_value), entry % kPageTokens) && lane == 0)
    op.bad[token] = 1;
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
  if (!store_row(c, head, is_value, section, entry % kPageTokens) && lane == 0) *bad = 1;
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

}  // namespace glmlite::cuda
