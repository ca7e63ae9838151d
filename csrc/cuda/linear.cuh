// Products with quantized weights. For each block of 32 columns, in order: acc = exact integer dot of (code - zero)
// with q; y = fma(ws * d, float(acc), y); where the format has minimums y = fma(wm, d * sum, y) after it; formats with
// scales for half blocks do that for each half. K is cut into kSegments segments, each a sum of its own from 0; the
// result is
// ((0 + segment 0) + segment 1) + ... Then y + bias, then fma(alpha, add, y). All of it is a function of k alone, so
// the two kernels here agree bit for bit:
//   narrow: 16 rows and up to 32 tokens a block; its eight warps have a segment each. Gated: 32 rows of gate and 32 of
//     up, one tile of 16 after the other
//   wide: 128 rows and up to 64 tokens a block; its eight warps have 16 rows each, and one segment after the other
#pragma once
#include "rows.cuh"
#include "weights.cuh"

namespace glmlite::cuda {

constexpr int kLinearThreads = 256, kLinearWarps = kLinearThreads / kWarp;
static_assert(kLinearWarps == kSegments, "a warp of the narrow kernel has a segment");

// Matrices of one packed form.
struct LinearArgs {
  struct Part {
    const uint8_t* data;
    const float* bias;
    int n, tile, column;  // rows; its first tile, counted over all parts; its first column of y
  };
  Part parts[kMaxParts];
  int count, tiles;
  int k, supers;
  int tokens;
  int width;
  const float* x;
  const uint8_t* blocks;
  const float* add;
  float alpha;
  float* y;
  Result gated;  // of linear_narrow<..., kGated>, instead of y

  __device__ Part part_of(int tile) const {
    Part p = parts[0];
    for (int i = 1; i < count; ++i) {
      if (tile >= parts[i].tile) p = parts[i];
    }
    return p;
  }
  __device__ float biased(const Part& p, int row, float v) const { return p.bias ? v + p.bias[row] : v; }
  // bias and add of row `row` of a part.
  __device__ void finish(const Part& p, int token, int row, float v) const {
    if (token >= tokens || row >= p.n) return;
    v = biased(p, row, v);
    const int64_t at = static_cast<int64_t>(token) * width + p.column + row;
    if (add) v = fmaf(alpha, add[at], v);
    y[at] = v;
  }
};

// A block's integers start at the bits of 1.5 * 2^(23 - shift): such a float's last bit is 2^-shift, so that the bits
// after the sum are those of the start + sum / 2^shift, exactly.
template <Format kFormat>
constexpr float kStart = 12582912.0f / (1 << form_of(kFormat).shift);
template <Format kFormat>
constexpr int kStartBits = 0x4b400000 - (form_of(kFormat).shift << 23);

// Blocks 2 pair and 2 pair + 1 of a superblock for kCols times eight tokens. The tokens' part comes from `act`: operand
// B, q(column, block); of two tokens scales(column, block) and products(column, block, group). kOne: only the first of
// a lane's two tokens is wanted.
template <Format kFormat, int kCols, bool kOne, class Act>
__device__ inline void add_pair(const Codes<kFormat>& codes, const Scales<kFormat>& s, int pair, const Act& act,
                                float (&y)[kCols][4]) {
  constexpr Form f = form_of(kFormat);
#pragma unroll
  for (int in = 0; in < 2; ++in) {
    const int b = 2 * pair + in;
    uint32_t a[4];
    codes.operand(in, a);
    float ws[f.groups][2], wm[f.groups][2];
#pragma unroll
    for (int g = 0; g < f.groups; ++g) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        ws[g][r] = s.scale_of(r, b * f.groups + g);
        if constexpr (f.has_min) wm[g][r] = s.minimum_of(r, b * f.groups + g);
      }
    }
#pragma unroll
    for (int c = 0; c < kCols; ++c) {
      const uint2 q = act.q(c, b);
      const float2 d = act.scales(c, b);
#pragma unroll
      for (int g = 0; g < f.groups; ++g) {
        int acc[4];
        if constexpr (f.groups == 1) mma_k32(acc, a, q.x, q.y, kStartBits<kFormat>);
        if constexpr (f.groups == 2) mma_k16(acc, a[2 * g], a[2 * g + 1], g ? q.y : q.x, kStartBits<kFormat>);
#pragma unroll
        for (int i = 0; i < 4; i += 1 + kOne) {
          const float sum = __int_as_float(acc[i]) - kStart<kFormat>;
          y[c][i] = fmaf(ws[g][i / 2] * (i % 2 ? d.y : d.x), sum, y[c][i]);
        }
        if constexpr (f.has_min) {
          const float2 p = act.products(c, b, g);
#pragma unroll
          for (int i = 0; i < 4; i += 1 + kOne) y[c][i] = fmaf(wm[g][i / 2], i % 2 ? p.y : p.x, y[c][i]);
        }
      }
    }
  }
}

// ---- narrow ---------------------------------------------------------------------------------------------------------

// Activations of two blocks straight from global memory: all blocks of the grid read the same ones, so L1 has them.
template <Format kFormat, int kCols>
struct ActRegisters {
  static constexpr Form f = form_of(kFormat);
  uint4 codes[kCols];
  float2 d[kCols][2];  // of two tokens
  float2 p[kCols][2][f.groups];

  // rows: of each column of eight tokens the one whose codes the lane has, and the two whose sums. at: of the
  // superblock
  __device__ void load(const uint8_t* const (&rows)[kCols][3], int64_t at, int pair, int lane) {
#pragma unroll
    for (int c = 0; c < kCols; ++c) {
      codes[c] = *reinterpret_cast<const uint4*>(rows[c][0] + at + pair * 64 + lane % 4 * 16);
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const uint8_t* row = rows[c][1 + t] + at;
        d[c][t] = reinterpret_cast<const float2*>(row + kActScales)[pair];
        if constexpr (f.has_min) {
          const auto* from = reinterpret_cast<const float2*>(row + (f.groups == 2 ? kActHalfProducts : kActProducts));
#pragma unroll
          for (int i = 0; i < f.groups; ++i) p[c][t][i] = from[pair * f.groups + i];
        }
      }
    }
  }
  static __device__ float part(const float2& v, int i) { return i ? v.y : v.x; }
  __device__ uint2 q(int c, int b) const {
    return b % 2 ? make_uint2(codes[c].z, codes[c].w) : make_uint2(codes[c].x, codes[c].y);
  }
  __device__ float2 scales(int c, int b) const { return {part(d[c][0], b % 2), part(d[c][1], b % 2)}; }
  __device__ float2 products(int c, int b, int g) const {
    const int i = b % 2 * f.groups + g;
    return {part(p[c][0][i / 2], i % 2), part(p[c][1][i / 2], i % 2)};
  }
};

constexpr int kPrefetchSupers = 3;  // that a warp asks for ahead, besides the first, which it loads

// Blocks that should find room on a multiprocessor: two, but where their registers would not do.
template <Format kFormat, int kCols>
constexpr int kNarrowBlocks = kCols == 1 && kFormat != Format::kQ5_1 ? 2 : 1;

// Rows of y that a block makes where it is gated.
constexpr int kGatedColumns = 2 * kTileRows;
constexpr int64_t kGatedTokens = 8;

// Grid: (tiles, tokens / (8 kCols)). kOne: for one token. kGated: (columns of gated / kGatedColumns); up's first tile
// is gated.n / 16. Shared: the segments' sums, [tile][segment][token][16 rows].
template <Format kFormat, int kCols, bool kOne = false, bool kGated = false>
__global__ void __launch_bounds__(kLinearThreads, kNarrowBlocks<kFormat, kCols>) linear_narrow(LinearArgs args) {
  start_next();
  constexpr int kTokens = 8 * kCols, kSums = kTokens * kTileRows, kTiles = kGated ? 2 * kGatedColumns / kTileRows : 1;
  const int lane = threadIdx.x % kWarp, segment = threadIdx.x / kWarp;
  const int first = blockIdx.y * kTokens;
  constexpr Form f = form_of(kFormat);
  constexpr int64_t kBytes = super_bytes(f);
  const int64_t begin = segment_begin(args.supers, segment), end = segment_begin(args.supers, segment + 1);
  const auto tile_of = [&](int i) {
    if constexpr (!kGated) return static_cast<int>(blockIdx.x);
    return static_cast<int>(blockIdx.x) * 2 + i % 2 + i / 2 * (args.gated.n / kTileRows);
  };
  const auto segment_of = [&](int i) {  // of the weights of the block's tile i
    const LinearArgs::Part part = args.part_of(tile_of(i));
    return part.data + (static_cast<int64_t>(tile_of(i) - part.tile) * args.supers + begin) * kBytes;
  };

  Header<kFormat> header, next_header;
  Codes<kFormat> codes[kPairs], next[kPairs];
  const auto load = [&](const uint8_t* super) {
    next_header.load(super, lane);
#pragma unroll
    for (int p = 0; p < kPairs; ++p) next[p].load(super + f.header_bytes + p * pair_bytes(f), lane);
  };
  const uint8_t* super = segment_of(0);
  if (begin < end) load(super);
  int ahead = kPrefetchSupers;
#pragma unroll 1
  for (int t = 0; t < kTiles; ++t) {
    const LinearArgs::Part part = args.part_of(tile_of(t));
    if (part.bias && threadIdx.x == 0) prefetch(part.bias + (tile_of(t) - part.tile) * kTileRows);
    const int skip = t == 0, count = min(static_cast<int>(end - begin) - skip, ahead);
    prefetch_bytes(segment_of(t) + skip * kBytes, count * static_cast<int>(kBytes));
    ahead -= max(count, 0);
  }
  wait_for_previous();

  const uint8_t* rows[kCols][3];
#pragma unroll
  for (int c = 0; c < kCols; ++c) {
    const int token = first + 8 * c, last = args.tokens - 1;  // tokens beyond the last are computed as if it
    const int of[3] = {token + lane / 4, token + lane % 4 * 2, token + lane % 4 * 2 + 1};
#pragma unroll
    for (int i = 0; i < 3; ++i)
      rows[c][i] = args.blocks + static_cast<int64_t>(of[i] < last ? of[i] : last) * args.supers * kActSuperBytes;
  }
  float* sums = reinterpret_cast<float*>(shared_memory());
#pragma unroll 1
  for (int t = 0; t < kTiles; ++t) {
    const uint8_t* next_tile = t + 1 < kTiles ? segment_of(t + 1) : nullptr;
    float y[kCols][4] = {};
    for (int64_t i = begin; i < end; ++i) {
      header = next_header;
#pragma unroll
      for (int p = 0; p < kPairs; ++p) codes[p] = next[p];
      super = i + 1 < end ? super + kBytes : next_tile;
      if (super) load(super);
      const Scales<kFormat> scales(header);
#pragma unroll
      for (int p = 0; p < kPairs; ++p) {
        ActRegisters<kFormat, kCols> act;
        act.load(rows, i * kActSuperBytes, p, lane);
        add_pair<kFormat, kCols, kOne>(codes[p], scales, p, act, y);
      }
    }
#pragma unroll
    for (int c = 0; c < kCols; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = 8 * c + lane % 4 * 2 + i % 2, row = lane / 4 + 8 * (i / 2);
        sums[(t * kSegments + segment) * kSums + token * kTileRows + row] = y[c][i];
      }
    }
  }
  __syncthreads();
  const auto total = [&](int t, int i) {
    float v = 0;
#pragma unroll
    for (int s = 0; s < kSegments; ++s) v += sums[(t * kSegments + s) * kSums + i];
    return v;
  };
  if constexpr (!kGated) {
    const LinearArgs::Part part = args.part_of(tile_of(0));
    for (int i = threadIdx.x; i < kSums; i += kLinearThreads)
      args.finish(part, first + i / kTileRows, (tile_of(0) - part.tile) * kTileRows + i % kTileRows, total(0, i));
  } else {
    // A warp has a token, a lane a column.
    static_assert(kTokens == kLinearWarps && kTokens == kGatedTokens && kGatedColumns == kWarp);
    const int token = threadIdx.x / kWarp, column = blockIdx.x * kGatedColumns + lane;
    if (token >= args.tokens) return;
    const auto value = [&](int t) {
      const LinearArgs::Part part = args.part_of(tile_of(t));
      const int row = lane % kTileRows;
      return args.biased(part, (tile_of(t) - part.tile) * kTileRows + row, total(t, token * kTileRows + row));
    };
    args.gated.put(token, column, silu_times(value(lane / kTileRows), value(2 + lane / kTileRows)));
    if (blockIdx.x + 1 < gridDim.x) return;
    // What fills the last superblock.
    for (int at = column + kGatedColumns; at < supers_of(args.gated.n) * kSuperColumns; at += kGatedColumns)
      args.gated.put(token, at, 0.0f);
  }
}

// ---- wide -----------------------------------------------------------------------------------------------------------

// Activations of a superblock of the block's tokens in shared memory, of each what the format needs. The rows are
// 64 bytes off a multiple of 128 apart, so that eight lanes' 16 bytes, of two tokens, meet no bank twice.
template <Format kFormat>
struct ActShared {
  static constexpr Form f = form_of(kFormat);
  static constexpr int kFirst = f.groups == 2 && f.has_min ? 384 : 320, kBytes = f.groups == 2 && f.has_min ? 448 : 320;
  const uint8_t* at;
  int lane;

  __device__ uint2 q(int c, int b) const {
    const uint8_t* row = at + (8 * c + lane / 4) * kBytes;
    return *reinterpret_cast<const uint2*>(row + b / 2 * 64 + lane % 4 * 16 + b % 2 * 8);
  }
  __device__ float2 two(int c, int offset) const {
    const uint8_t* row = at + (8 * c + lane % 4 * 2) * kBytes + offset;
    return {*reinterpret_cast<const float*>(row), *reinterpret_cast<const float*>(row + kBytes)};
  }
  __device__ float2 scales(int c, int b) const { return two(c, kActScales + 4 * b); }
  __device__ float2 products(int c, int b, int g) const {
    return two(c, f.groups == 2 ? kActHalfProducts + 8 * b + 4 * g : kActProducts + 4 * b);
  }
};

template <Format kFormat>
constexpr int kWideCols = ActShared<kFormat>::kBytes > 384 ? 4 : 8;
template <Format kFormat>
constexpr int kWideTokens = 8 * kWideCols<kFormat>;
template <Format kFormat>
constexpr size_t kWideShared = 2 * kWideTokens<kFormat> * ActShared<kFormat>::kBytes;

// Grid: (tokens / kWideTokens, tiles / 8): blocks that run together share weights in L2.
template <Format kFormat>
__global__ void __launch_bounds__(kLinearThreads) linear_wide(LinearArgs args) {
  start_next();
  using Act = ActShared<kFormat>;
  constexpr int kCols = kWideCols<kFormat>, kTokens = kWideTokens<kFormat>;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int first = blockIdx.x * kTokens, tile = blockIdx.y * kLinearWarps + warp;
  const LinearArgs::Part part = args.part_of(tile);
  constexpr Form f = form_of(kFormat);
  constexpr int64_t kBytes = super_bytes(f);
  // A warp beyond the last tile computes it too, and stores nothing.
  const int row_tile = (tile < args.tiles ? tile : args.tiles - 1) - part.tile;
  const uint8_t* super = part.data + static_cast<int64_t>(row_tile) * args.supers * kBytes;
  uint8_t* shared = shared_memory();

  const auto fetch = [&](int i) {
    uint8_t* to = shared + i % 2 * (kTokens * Act::kBytes);
    for (int at = threadIdx.x; at < kTokens * (Act::kFirst / 16); at += kLinearThreads) {
      const int t = at / (Act::kFirst / 16), piece = at % (Act::kFirst / 16) * 16;
      const int token = first + t < args.tokens ? first + t : args.tokens - 1;
      copy_async(to + t * Act::kBytes + piece,
                 args.blocks + (static_cast<int64_t>(token) * args.supers + i) * kActSuperBytes + piece);
    }
    commit_copies();
  };

  float sum[kCols][4] = {};
  float y[4 * kCols];  // over the segments. Indexed by variables, to stay in local memory: it is touched eight times
#pragma unroll 1
  for (int i = 0; i < 4 * kCols; ++i) y[i] = 0;
  // Weights are loaded ahead: headers by a superblock, codes by a pair of blocks.
  Header<kFormat> next_header;
  Codes<kFormat> next;
  next_header.load(super, lane);
  next.load(super + f.header_bytes, lane);
  wait_for_previous();
  fetch(0);
  int segment = 0;
#pragma unroll 1
  for (int i = 0; i < args.supers; ++i, super += kBytes) {
    const Scales<kFormat> scales(next_header);
    const bool more = i + 1 < args.supers;
    if (more) {
      fetch(i + 1);
      next_header.load(super + kBytes, lane);
      copies_done<1>();
    } else {
      copies_done<0>();
    }
    __syncthreads();
    const Act act{shared + i % 2 * (kTokens * Act::kBytes), lane};
#pragma unroll 1
    for (int p = 0; p < kPairs; ++p) {
      const Codes<kFormat> codes = next;
      if (p + 1 < kPairs || more) {
        const int at = p + 1 < kPairs ? (p + 1) * pair_bytes(f) : static_cast<int>(kBytes);
        next.load(super + f.header_bytes + at, lane);
      }
      add_pair<kFormat, kCols, false>(codes, scales, p, act, sum);
    }
    while (segment < kSegments && segment_begin(args.supers, segment + 1) <= i + 1) {
      float* to = y;
#pragma unroll
      for (int c = 0; c < kCols; ++c) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          to[4 * c + j] += sum[c][j];
          sum[c][j] = 0;
        }
      }
      ++segment;
    }
    __syncthreads();  // what the next fetch overwrites has been read
  }
  if (tile >= args.tiles) return;
#pragma unroll 1
  for (int i = 0; i < 4 * kCols; ++i)
    args.finish(part, first + i / 4 * 8 + lane % 4 * 2 + i % 2, row_tile * kTileRows + lane / 4 + i % 4 / 2 * 8, y[i]);
}

// The kernels of one packed form, for `linear`. Each form is compiled in a file of its own.
template <Format kFormat>
void launch_quantized(const LinearArgs& args, Stream stream) {
  if (args.gated.n > 0) {
    const auto gated = [&](auto kernel) {
      launch(kernel, dim3(args.gated.n / kGatedColumns), kLinearThreads,
             sizeof(float) * 4 * kSegments * kGatedTokens * kTileRows, stream, args);
    };
    return args.tokens == 1 ? gated(linear_narrow<kFormat, 1, true, true>)
                            : gated(linear_narrow<kFormat, 1, false, true>);
  }
  const auto narrow = [&](auto kernel, int tokens) {
    launch(kernel, dim3(args.tiles, blocks_of(args.tokens, tokens)), kLinearThreads,
           sizeof(float) * kSegments * tokens * kTileRows, stream, args);
  };
  if (args.tokens == 1) return narrow(linear_narrow<kFormat, 1, true>, 8);
  if (args.tokens <= 8) return narrow(linear_narrow<kFormat, 1>, 8);
  if (args.tokens <= 16) return narrow(linear_narrow<kFormat, 2>, 16);
  if (args.tokens <= 64) return narrow(linear_narrow<kFormat, 4>, 32);
  launch(linear_wide<kFormat>, dim3(blocks_of(args.tokens, kWideTokens<kFormat>), blocks_of(args.tiles, kLinearWarps)),
         kLinearThreads, kWideShared<kFormat>, stream, args);
}

}  // namespace glmlite::cuda
