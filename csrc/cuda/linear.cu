// Products with float weights, and which kernel does which product.
#include <algorithm>
#include <stdexcept>

#include "linear.cuh"

namespace glmlite::cuda {

extern template void launch_quantized<Format::kQ8_0>(const LinearArgs&, Stream);
extern template void launch_quantized<Format::kQ4_0>(const LinearArgs&, Stream);
extern template void launch_quantized<Format::kQ5_1>(const LinearArgs&, Stream);
extern template void launch_quantized<Format::kQ2_K>(const LinearArgs&, Stream);
extern template void launch_quantized<Format::kQ4_K>(const LinearArgs&, Stream);
extern template void launch_quantized<Format::kQ5_K>(const LinearArgs&, Stream);
extern template void launch_quantized<Format::kQ6_K>(const LinearArgs&, Stream);
extern template void launch_quantized<Format::kIQ4_NL>(const LinearArgs&, Stream);
extern template void launch_quantized<Format::kIQ4_XS>(const LinearArgs&, Stream);

namespace {

constexpr int kFloatThreads = kWarp * kSegments;

template <Format kFormat>
constexpr int kColumns = kFormat == Format::kF32 ? 4 : 8;  // of 16 bytes of a row

template <Format kFormat>
__device__ inline float float_weight(const uint4& v, int i) {
  if constexpr (kFormat == Format::kF32) return __uint_as_float(word_of(v, i));
  if constexpr (kFormat == Format::kF16) return half_of(v, i);
  const uint32_t two = word_of(v, i / 2);
  return __uint_as_float(i % 2 ? two & 0xffff0000 : two << 16);
}

// Grid: (tiles of 32 rows, tokens / kTokens). A thread has one row and one segment: y = fma(w, x, y) in order of k. The
// segments are added as those of quantized weights are. Shared: [segment][token][32 rows].
template <Format kFormat, int kTokens>
__global__ void __launch_bounds__(kFloatThreads) linear_float(LinearArgs args) {
  start_next();
  constexpr int kStep = kColumns<kFormat>, kUnroll = 4;
  const int lane = threadIdx.x % kWarp, segment = threadIdx.x / kWarp;
  const int tile = blockIdx.x, first = blockIdx.y * kTokens;
  const LinearArgs::Part part = args.part_of(tile);
  const int units = (args.k + kStep - 1) / kStep;
  const uint8_t* w = part.data + (static_cast<int64_t>(tile - part.tile) * units * kFloatRows + lane) * 16;
  const float* x[kTokens];
#pragma unroll
  for (int t = 0; t < kTokens; ++t) x[t] = args.x + static_cast<int64_t>(min(first + t, args.tokens - 1)) * args.k;

  float y[kTokens] = {};
  const int begin = static_cast<int>(segment_begin(units, segment));
  const int end = static_cast<int>(segment_begin(units, segment + 1));
  const bool whole = args.k % kStep == 0;
  prefetch_bytes(w - lane * 16 + int64_t{begin} * (kFloatRows * 16), min(end - begin, kUnroll) * (kFloatRows * 16));
  wait_for_previous();
#pragma unroll kUnroll
  for (int unit = begin; unit < end; ++unit) {
    const uint4 v = load_once(w + static_cast<int64_t>(unit) * (kFloatRows * 16));
    const int column = unit * kStep;
    if (whole) {
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
#pragma unroll
        for (int i = 0; i < kStep; i += 4) {
          const float4 four = *reinterpret_cast<const float4*>(x[t] + column + i);
          y[t] = fmaf(float_weight<kFormat>(v, i), four.x, y[t]);
          y[t] = fmaf(float_weight<kFormat>(v, i + 1), four.y, y[t]);
          y[t] = fmaf(float_weight<kFormat>(v, i + 2), four.z, y[t]);
          y[t] = fmaf(float_weight<kFormat>(v, i + 3), four.w, y[t]);
        }
      }
    } else {
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
#pragma unroll
        for (int i = 0; i < kStep; ++i) {
          if (column + i < args.k) y[t] = fmaf(float_weight<kFormat>(v, i), x[t][column + i], y[t]);
        }
      }
    }
  }

  float* sums = reinterpret_cast<float*>(shared_memory());
#pragma unroll
  for (int t = 0; t < kTokens; ++t) sums[(segment * kTokens + t) * kFloatRows + lane] = y[t];
  __syncthreads();
  for (int i = threadIdx.x; i < kTokens * kFloatRows; i += kFloatThreads) {
    float v = 0;
#pragma unroll
    for (int s = 0; s < kSegments; ++s) v += sums[s * kTokens * kFloatRows + i];
    args.finish(part, first + i / kFloatRows, (tile - part.tile) * kFloatRows + i % kFloatRows, v);
  }
}

template <Format kFormat>
void launch_float(const LinearArgs& args, Stream stream) {
  const auto run = [&](auto kernel, int tokens) {
    launch(kernel, dim3(args.tiles, blocks_of(args.tokens, tokens)), kFloatThreads,
           sizeof(float) * kSegments * tokens * kFloatRows, stream, args);
  };
  if (args.tokens == 1) return run(linear_float<kFormat, 1>, 1);
  if (args.tokens <= 4) return run(linear_float<kFormat, 4>, 4);
  run(linear_float<kFormat, 8>, 8);
}

template <Format kFormat>
void launch_if(Format form, const LinearArgs& args, Stream stream) {
  if constexpr (packed_form(kFormat) == kFormat) {  // the others are packed as one of these
    if (form != kFormat) return;
    if constexpr (is_float(kFormat)) {
      launch_float<kFormat>(args, stream);
    } else {
      launch_quantized<kFormat>(args, stream);
    }
  }
}

template <int... kFormat>
void launch_form(Format form, const LinearArgs& args, Stream stream, FormatNumbers<kFormat...>) {
  (launch_if<static_cast<Format>(kFormat)>(form, args, stream), ...);
}

// Whether one kernel does the product and swiglu: where gate and up are of one form and a block has all of a column.
bool is_gated_at_once(const Linear& op, int64_t columns) {
  const Format form = packed_form(op.parts[0].w.format);
  const bool halves = op.count == 2 && op.parts[0].w.n == columns && packed_form(op.parts[1].w.format) == form;
  return op.gated && op.tokens <= kGatedTokens && !op.add && !is_float(form) && columns % kGatedColumns == 0 &&
         (op.count == 1 || halves);
}

}  // namespace

void linear(const Linear& op, Stream stream) {
  if (op.count < 1 || op.count > kMaxParts)
    throw std::invalid_argument("linear: " + std::to_string(op.count) + " matrices, expected 1 to " +
                                std::to_string(kMaxParts));
  if (op.tokens < 1) return;
  LinearArgs all{};
  all.k = static_cast<int>(op.parts[0].w.k);
  all.supers = static_cast<int>(supers_of(all.k));
  all.tokens = static_cast<int>(op.tokens);
  all.x = op.x;
  all.blocks = op.blocks;
  all.add = op.add;
  all.alpha = op.alpha;
  all.y = op.y;
  for (int i = 0; i < op.count; ++i) all.width += static_cast<int>(op.parts[i].w.n);

  const int columns = all.width / 2;
  const bool at_once = is_gated_at_once(op, columns);
  if (at_once) all.gated = {op.gated, op.gated_blocks, columns};

  // One launch for all matrices of a form.
  bool done[kMaxParts] = {};
  for (int first = 0; first < op.count; ++first) {
    if (done[first]) continue;
    const Format form = packed_form(op.parts[first].w.format);
    const int rows = is_float(form) ? kFloatRows : kTileRows;
    LinearArgs args = all;
    int column = 0;
    for (int i = 0; i < op.count; ++i) {
      const Linear::Part& p = op.parts[i];
      if (p.w.k != all.k) throw std::invalid_argument("linear: matrices of different widths");
      if (packed_form(p.w.format) == form) {
        done[i] = true;
        args.parts[args.count++] = {p.w.data, p.bias, static_cast<int>(p.w.n), args.tiles, column};
        args.tiles += static_cast<int>((p.w.n + rows - 1) / rows);
      }
      column += static_cast<int>(p.w.n);
    }
    launch_form(form, args, stream, AllFormats());
  }
  if (op.gated && !at_once) swiglu(op.y, op.gated, op.tokens, columns, op.gated_blocks, stream);
}

}  // namespace glmlite::cuda
