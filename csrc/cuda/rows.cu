// Norms, activations and what else makes a row of a row.
#include "rows.cuh"
#include "weights.cuh"

namespace glmlite::cuda {

namespace {

struct Copy {
  const float* x;
  int n;
  __device__ float operator()(int row, int column) const { return x[static_cast<int64_t>(row) * n + column]; }
};

struct Selected {
  const float* x;
  const int32_t* rows;
  int n;
  __device__ float operator()(int row, int column) const { return x[static_cast<int64_t>(rows[row]) * n + column]; }
};

struct Swiglu {
  const float* x;
  int n;
  __device__ float operator()(int row, int column) const {
    const float* gate = x + static_cast<int64_t>(row) * 2 * n + column;
    return silu_times(gate[0], gate[n]);
  }
};

// 0.5 (1 + tanh u) = 1 / (1 + e^-2u): nothing cancels. -2u = x (-2 sqrt(2 / pi) - 0.044715 * 2 sqrt(2 / pi) x^2), in a
// range where it overflows nowhere.
struct Gelu {
  const float* x;
  int n;
  __device__ float operator()(int row, int column) const {
    const float v = x[static_cast<int64_t>(row) * n + column];
    const float bounded = fminf(1e6f, fmaxf(-1e6f, v));
    return divide_by_one_plus_exp(v, bounded * fmaf(bounded * bounded, -0.0713548163f, -1.59576912f));
  }
};

// As in cpu/rows.inc.
struct GeluErf {
  const float* x;
  int n;
  __device__ float operator()(int row, int column) const {
    constexpr float p[] = {0x1.e433c2p-7f, -0x1.aecf6ap-5f, 0x1.b2d278p-6f, 0x1.04ca34p-4f, -0x1.2bbebcp-6f,
                           0x1.ab8aecp-4f, 0x1.0bfea0p-4f,  0x1.8d773cp-4f, 0x1.96b43ep-4f, 0x1.989d16p-4f};
    const float v = x[static_cast<int64_t>(row) * n + column];
    const float a = fabsf(v) < 16.0f ? fabsf(v) : 16.0f;
    const float t = 1.0f / fmaf(a, 0.25f, 1.0f);
    float h = p[0];
    for (int k = 1; k < 10; ++k) h = fmaf(h, t, p[k]);
    h *= expf(a * (a * -0.5f)) * t;
    return fmaf(-a, h, v < 0 ? 0.0f : v);
  }
};

// ---- norms ----------------------------------------------------------------------------------------------------------

constexpr int kNormThreads = 1024;
constexpr size_t kNormShared = sizeof(float) * kWarp;

// Over the block: within warps, then over the warps, both as warp_sum's tree. shared: one float for each warp.
__device__ inline float block_sum(float x, float* shared) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  x = warp_sum(x);
  __syncthreads();  // what the last sum left has been read
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  return warp_sum(shared[lane]);
}

// Has the block's warps ask for a vector of weights that is wanted later.
__device__ inline void prefetch_vector(const float* w, int n) {
  constexpr int kWarpFloats = 1024;  // 32 lines
  const int at = threadIdx.x / kWarp * kWarpFloats;
  if (at < n) prefetch_bytes(reinterpret_cast<const uint8_t*>(w + at), min(kWarpFloats, n - at) * 4);
}

__device__ inline void rms_norm_row(const float* x, const RmsNorm& norm, int n) {
  const int64_t start = static_cast<int64_t>(blockIdx.x) * n;
  const float* from = x + start;
  float squares = 0;
  for (int i = threadIdx.x; i < n; i += kNormThreads) squares = fmaf(from[i], from[i], squares);
  squares = block_sum(squares, reinterpret_cast<float*>(shared_memory()));
  const float scale = 1.0f / sqrtf(squares / static_cast<float>(n) + norm.eps);
  const Result result{norm.y, norm.blocks, n};
  const int end = static_cast<int>(supers_of(n)) * kSuperColumns;
  for (int i = threadIdx.x; i < end; i += kNormThreads) {
    float v = 0;
    if (i < n) {
      v = from[i] * scale;
      v = norm.add ? fmaf(v, norm.w[i], norm.add[start + i]) : v * norm.w[i];
    }
    result.put(blockIdx.x, i, v);
  }
}

// next.w: null where it is not wanted. Of at most 32 registers where two blocks have room, so that one has it beside a
// block of a product and starts before all of those have ended.
__global__ void __launch_bounds__(kNormThreads, 2) rms_norm_rows(const float* x, RmsNorm norm, RmsNorm next, int n) {
  start_next();
  prefetch_vector(norm.w, n);
  if (next.w) prefetch_vector(next.w, n);
  wait_for_previous();
  rms_norm_row(x, norm, n);
  if (next.w) rms_norm_row(norm.y, next, n);  // a thread reads what it has written itself
}

__global__ void __launch_bounds__(kNormThreads)
    layer_norm_rows(const float* x, const float* w, const float* b, float eps, Result result) {
  const int row = blockIdx.x, n = result.n;
  start_next();
  prefetch_vector(w, n);
  prefetch_vector(b, n);
  wait_for_previous();
  const float* from = x + static_cast<int64_t>(row) * n;
  float* shared = reinterpret_cast<float*>(shared_memory());
  float sum = 0, squares = 0;
  for (int i = threadIdx.x; i < n; i += kNormThreads) sum += from[i];
  const float mean = block_sum(sum, shared) / static_cast<float>(n);
  for (int i = threadIdx.x; i < n; i += kNormThreads) squares = fmaf(from[i] - mean, from[i] - mean, squares);
  const float scale = 1.0f / sqrtf(block_sum(squares, shared) / static_cast<float>(n) + eps);
  const int end = static_cast<int>(supers_of(n)) * kSuperColumns;
  for (int i = threadIdx.x; i < end; i += kNormThreads)
    result.put(row, i, i < n ? fmaf((from[i] - mean) * scale, w[i], b[i]) : 0.0f);
}

// ---- embedding ------------------------------------------------------------------------------------------------------

// One value of a packed matrix, exactly dequantize_row's.
struct Table {
  Format form;
  Form f;
  int64_t tile_bytes;
  const uint8_t* data;

  __device__ float half_at(const uint8_t* p) const { return half_to_float(*reinterpret_cast<const uint16_t*>(p)); }

  __device__ float operator()(int64_t row, int column) const {
    if (form == Format::kF32 || form == Format::kF16 || form == Format::kBF16) {
      const int columns = form == Format::kF32 ? 4 : 8;
      const uint8_t* p = data + row / kFloatRows * tile_bytes + column / columns * (kFloatRows * 16) +
                         row % kFloatRows * 16 + column % columns * (16 / columns);
      if (form == Format::kF32) return *reinterpret_cast<const float*>(p);
      if (form == Format::kF16) return half_at(p);
      return __uint_as_float(static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(p)) << 16);
    }
    const uint8_t* super = data + row / kTileRows * tile_bytes + column / kSuperColumns * super_bytes(f);
    const int r = static_cast<int>(row % kTileRows), block = column % kSuperColumns / kBlockColumns;
    const int code = code_at(super + f.header_bytes, r, block, column % kBlockColumns);
    const int group = column % kSuperColumns / (kBlockColumns / f.groups);
    float w, m = 0;
    if (!f.is_super) {
      w = half_at(super + 16 * r + 2 * block);
      if (f.has_min) m = half_at(super + 256 + 16 * r + 2 * block);
    } else if (form == Format::kQ2_K) {
      const uint8_t* d = super + 256 + 4 * r;
      w = half_at(d) * static_cast<float>(super[16 * r + group] & 15);
      m = -(half_at(d + 2) * static_cast<float>(super[16 * r + group] >> 4));
    } else if (form == Format::kQ6_K) {
      w = half_at(super + 256 + 2 * r) * static_cast<float>(super[16 * r + group] - f.scale_zero);
    } else if (form == Format::kIQ4_XS) {
      w = half_at(super + 128 + 2 * r) * static_cast<float>(super[8 * r + group] - f.scale_zero);
    } else {  // Q4_K, Q5_K
      const uint8_t* h = super + 16 * r;
      const int b = group % 4, high = group / 4;
      w = half_at(h) * static_cast<float>((h[4 + b] >> 4 * high & 15) | (h[12 + b] >> 2 * high & 3) << 4);
      m = -(half_at(h + 2) * static_cast<float>((h[8 + b] >> 4 * high & 15) | (h[12 + b] >> (4 + 2 * high) & 3) << 4));
    }
    const float v = w * static_cast<float>(code);
    return f.has_min ? v + m : v;
  }

  // The code of a row of a tile, less its zero point.
  __device__ int code_at(const uint8_t* codes, int row, int block, int column) const {
    const uint8_t *low = codes + block / 2 * pair_bytes(f), *high = low + pair_low_bytes(f);
    const int lane = row % 8 * 4 + column % 16 / 4, half = column / 16, byte = column % 4, in = block % 2;
    const int j = row / 8 + 2 * half;
    if (f.low_bits == 8) return static_cast<int8_t>(low[(in * 32 + lane) * 16 + 4 * j + byte]);
    int code;
    if (f.low_bits == 4) {
      const uint8_t* word = low + lane * 16 + in * 8 + row / 8 * 4;
      if (f.has_table) {
        const int nibble = word[half * 2 + byte / 2] >> byte % 2 * 4 & 15;
        return static_cast<int8_t>(table_word(nibble / 4) >> nibble % 4 * 8);
      }
      code = word[byte] >> 4 * half & 15;
    } else {
      code = low[lane * 8 + in * 4 + byte] >> 2 * j & 3;
    }
    if (f.high_bits == 1) code |= (high[lane * 4 + byte] >> (in * 4 + j) & 1) << 4;
    if (f.high_bits == 2) code |= (high[lane * 8 + in * 4 + byte] >> 2 * j & 3) << 4;
    return (code ^ f.flip) - f.flip;
  }
};

Table table_of(const Matrix& m) {
  const Format form = packed_form(m.format);
  const int64_t rows = is_float(form) ? kFloatRows : kTileRows;
  return {form, form_of(form), static_cast<int64_t>(packed_offset(m.format, m.n, m.k, std::min(rows, m.n))), m.data};
}

struct Embedding {
  Table table, added[2];
  int axes;
  const int32_t* tokens;
  const int32_t* positions[2];
  const float* given;
  int n;
  __device__ float operator()(int row, int column) const {
    const int id = tokens[row];
    float v = id < 0 ? given[static_cast<int64_t>(-1 - id) * n + column] : table(id, column);
    for (int a = 0; a < axes; ++a) v += added[a](positions[a][row], column);
    return v;
  }
};

}  // namespace

void quantize(const float* x, int64_t tokens, int64_t k, uint8_t* blocks, Stream stream) {
  launch_each(Copy{x, static_cast<int>(k)}, tokens, {nullptr, blocks, static_cast<int>(k)}, stream);
}

void embed(const Matrix& table, const Matrix* first, const Matrix* second, const StepState& step, int64_t tokens,
           float* y, uint8_t* blocks, Stream stream) {
  const auto n = static_cast<int>(table.k);
  Embedding e{table_of(table), {}, 0, step.tokens, {step.positions[0], step.positions[1]}, step.given, n};
  for (const Matrix* m : {first, second}) {
    if (m) e.added[e.axes++] = table_of(*m);
  }
  launch_each(e, tokens, {y, blocks, n}, stream);
}

void rms_norm(const float* x, const RmsNorm& norm, const RmsNorm* next, int64_t tokens, int64_t n, Stream stream) {
  if (tokens > 0)
    launch(rms_norm_rows, static_cast<unsigned>(tokens), kNormThreads, kNormShared, stream, x, norm,
           next ? *next : RmsNorm{}, static_cast<int>(n));
}

void layer_norm(const float* x, const float* w, const float* b, float* y, int64_t tokens, int64_t n, float eps,
                uint8_t* blocks, Stream stream) {
  if (tokens > 0)
    launch(layer_norm_rows, static_cast<unsigned>(tokens), kNormThreads, kNormShared, stream, x, w, b, eps,
           Result{y, blocks, static_cast<int>(n)});
}

void swiglu(const float* x, float* y, int64_t tokens, int64_t n, uint8_t* blocks, Stream stream) {
  launch_each(Swiglu{x, static_cast<int>(n)}, tokens, {y, blocks, static_cast<int>(n)}, stream);
}

void gelu(const float* x, float* y, int64_t tokens, int64_t n, uint8_t* blocks, Stream stream) {
  launch_each(Gelu{x, static_cast<int>(n)}, tokens, {y, blocks, static_cast<int>(n)}, stream);
}

void gelu_erf(const float* x, float* y, int64_t tokens, int64_t n, uint8_t* blocks, Stream stream) {
  launch_each(GeluErf{x, static_cast<int>(n)}, tokens, {y, blocks, static_cast<int>(n)}, stream);
}

void select(const float* x, const int32_t* rows, int64_t count, int64_t n, float* y, uint8_t* blocks, Stream stream) {
  launch_each(Selected{x, rows, static_cast<int>(n)}, count, {y, blocks, static_cast<int>(n)}, stream);
}

}  // namespace glmlite::cuda
