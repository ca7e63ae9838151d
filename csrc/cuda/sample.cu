// Logits: whether they are numbers, and tokens drawn from them.
//
// A row's sums are of whole numbers, so the order in which threads add to them does not matter: sampling.h.
#include "device.cuh"

namespace glmlite::cuda {

namespace {

constexpr int kThreads = 1024, kWarps = kThreads / kWarp;
constexpr int kSlice = 4 * kThreads;  // of a row's logits: a block's
constexpr int kListed = 2048;         // tokens that a block can put in order
static_assert(kBins == 2 * kThreads && kListed == 2 * kThreads, "a thread has two bins, or two listed tokens");

// Grid: (pieces of a row, rows).
__global__ void __launch_bounds__(kThreads) find_bad(const float* x, int n, const int32_t* row_token, int32_t* bad) {
  start_next();
  wait_for_previous();
  const int row = blockIdx.y;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    if ((__float_as_uint(x[static_cast<int64_t>(row) * n + i]) & 0x7f800000) == 0x7f800000)
      bad[row_token ? row_token[row] : row] = 1;
  }
}

// The largest key of a whole warp.
__device__ inline uint64_t warp_largest(uint64_t key) {
  for (int apart = kWarp / 2; apart > 0; apart /= 2) key = max(key, __shfl_xor_sync(kAllLanes, key, apart));
  return key;
}

// ---- draws ----------------------------------------------------------------------------------------------------------

// What the kernels of a draw leave for each other, of a row. After it lie its logits as adjusted, and the largest key
// of each slice.
struct Found {
  uint64_t in_bin[kBins];  // how many with top_k, otherwise their weight
  uint64_t keys[kListed];
  uint32_t listed;  // so many belong into `keys`, even if there is no room for all
};

__host__ __device__ inline int slices_of(int64_t vocab) { return static_cast<int>((vocab + kSlice - 1) / kSlice); }
__host__ __device__ inline size_t row_bytes(int64_t vocab) {
  return sizeof(Found) + (static_cast<size_t>(slices_of(vocab)) * (kSlice * sizeof(float) + sizeof(uint64_t)));
}

struct Row {
  __device__ Row(const Drawing& op, int index)
      : draw(op.rows[index].draw),
        found(reinterpret_cast<Found*>(op.scratch + index * row_bytes(op.vocab))),
        logits(reinterpret_cast<float*>(found + 1)),
        slices(slices_of(op.vocab)),
        largest_keys(reinterpret_cast<uint64_t*>(logits + int64_t{slices} * kSlice)) {}
  // The largest key of all slices, found by a whole warp.
  __device__ uint64_t largest() const {
    uint64_t key = 0;
    for (int i = threadIdx.x % kWarp; i < slices; i += kWarp) key = max(key, largest_keys[i]);
    return warp_largest(key);
  }
  const Draw draw;
  Found* const found;
  float* const logits;
  const int slices;
  uint64_t* const largest_keys;
};

// The block's part of its row: a grid of (slices, rows).
struct Slice {
  __device__ explicit Slice(int64_t vocab)
      : begin(blockIdx.x * kSlice), end(static_cast<int>(min(int64_t{begin} + kSlice, vocab))) {}
  const int begin, end;
};

struct Sum {
  uint64_t before, all;  // of the threads before this one, and of all of them
};
// Over the threads of a block.
__device__ inline Sum sum_of_block(uint64_t mine, uint64_t (&of_warp)[kWarps]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  uint64_t sum = mine;
  for (int apart = 1; apart < kWarp; apart *= 2) {
    const uint64_t left = __shfl_up_sync(kAllLanes, sum, apart);
    if (lane >= apart) sum += left;
  }
  __syncthreads();  // the sums of an earlier call have been read
  if (lane == kWarp - 1) of_warp[warp] = sum;
  __syncthreads();
  Sum result{sum - mine, 0};
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) result.before += of_warp[w];
    result.all += of_warp[w];
  }
  return result;
}

// Bins first to last are those whose tokens matter; sums of in_bin before the first and of all.
struct Range {
  int first, last;
  uint64_t before, total;
};
struct RangeShared {
  uint64_t of_warp[kWarps];
  Range range;
};
__device__ inline Range range_of(const Row& row, RangeShared& shared) {
  const int bin = 2 * threadIdx.x;
  const uint64_t in_bin[2] = {row.found->in_bin[bin], row.found->in_bin[bin + 1]};
  if (threadIdx.x == 0) shared.range = {0, row.draw.last_bin, 0, 0};
  const Sum sum = sum_of_block(in_bin[0] + in_bin[1], shared.of_warp);
  const uint64_t reach = row.draw.reach(sum.all);
  uint64_t before = sum.before;
  for (int i = 0; i < 2; ++i) {
    if (before < reach && reach <= before + in_bin[i] && bin + i < row.draw.last_bin)
      shared.range = row.draw.filters() ? Range{0, bin + i, 0, 0} : Range{bin + i, bin + i, before, 0};
    before += in_bin[i];
  }
  __syncthreads();
  Range range = shared.range;
  range.total = sum.all;
  return range;
}

__device__ inline void add(uint64_t* to, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}

// Leaves the row's logits as adjusted, the slice's largest key, and nothing in the bins and in the list.
__global__ void __launch_bounds__(kThreads) adjust_logits(Drawing op) {
  start_next();
  wait_for_previous();
  auto& of_warp = *reinterpret_cast<uint64_t (*)[kWarps]>(shared_memory());
  const Row row(op, blockIdx.y);
  const Slice slice(op.vocab);
  const float* logits = op.logits + op.rows[blockIdx.y].row * op.vocab;
  for (int i = slice.begin + threadIdx.x; i < slice.end; i += kThreads) row.logits[i] = logits[i];
  if (blockIdx.x == 0) {
    for (int b = threadIdx.x; b < kBins; b += kThreads) row.found->in_bin[b] = 0;
    if (threadIdx.x == 0) row.found->listed = 0;
  }
  __syncthreads();
  for (int a = threadIdx.x; a < op.rows[blockIdx.y].adjustments; a += kThreads) {
    const Adjustment& change = op.adjustments[blockIdx.y * op.adjustment_stride + a];
    if (change.token >= slice.begin && change.token < slice.end)
      row.logits[change.token] = row.draw.adjusted(logits[change.token], change);
  }
  __syncthreads();
  uint64_t key = 0;
  for (int i = slice.begin + threadIdx.x; i < slice.end; i += kThreads) key = max(key, key_of(row.logits[i], i));
  key = warp_largest(key);
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = key;
  __syncthreads();
  key = warp_largest(of_warp[threadIdx.x % kWarp]);
  if (threadIdx.x == 0) row.largest_keys[blockIdx.x] = key;
}

__global__ void __launch_bounds__(kThreads) fill_bins(Drawing op) {
  start_next();
  wait_for_previous();
  auto* in_bin = reinterpret_cast<uint64_t*>(shared_memory());
  const Row row(op, blockIdx.y);
  if (row.draw.sharpness == 0) return;
  const float most = logit_of(row.largest());
  for (int b = threadIdx.x; b < kBins; b += kThreads) in_bin[b] = 0;
  __syncthreads();
  const Slice slice(op.vocab);
  for (int i = slice.begin + threadIdx.x; i < slice.end; i += kThreads) {
    const float logit = row.logits[i];
    const int bin = row.draw.bin(logit, most);
    if (bin < kBins - 1) add(in_bin + bin, row.draw.top_k > 0 ? 1 : row.draw.weight(logit, most));
  }
  __syncthreads();
  for (int b = threadIdx.x; b < kBins; b += kThreads)
    if (in_bin[b]) add(row.found->in_bin + b, in_bin[b]);
}

// Grid: (slices, rows).
__global__ void __launch_bounds__(kThreads) list_tokens(Drawing op) {
  start_next();
  wait_for_previous();
  const Row row(op, blockIdx.y);
  if (row.draw.sharpness == 0) return;
  const Range range = range_of(row, *reinterpret_cast<RangeShared*>(shared_memory()));
  const float most = logit_of(row.largest());
  const Slice slice(op.vocab);
  for (int i = slice.begin + threadIdx.x; i < slice.end; i += kThreads) {
    const int bin = row.draw.bin(row.logits[i], most);
    if (bin < range.first || bin > range.last) continue;
    const uint32_t place = atomicAdd(&row.found->listed, 1u);
    if (place < kListed) row.found->keys[place] = key_of(row.logits[i], i);
  }
}

// `size` keys, a power of two, the largest first.
__device__ inline void sort_keys(uint64_t* keys, int size) {
  const int t = threadIdx.x;
  for (int width = 2; width <= size; width *= 2) {
    for (int apart = width / 2; apart > 0; apart /= 2) {
      __syncthreads();
      const int a = 2 * t - t % apart, b = a + apart;
      if (b >= size) continue;
      const bool falling = (a & width) == 0;
      const uint64_t x = keys[a], y = keys[b];
      if ((x < y) == falling) {
        keys[a] = y;
        keys[b] = x;
      }
    }
  }
  __syncthreads();
}

struct DrawShared {
  RangeShared range;
  uint64_t kept;
  uint64_t keys[kListed];
};
// Grid: rows.
__global__ void __launch_bounds__(kThreads) draw_tokens(Drawing op) {
  start_next();
  wait_for_previous();
  auto& shared = *reinterpret_cast<DrawShared*>(shared_memory());
  const Row row(op, blockIdx.x);
  const Draw& draw = row.draw;
  const uint64_t largest = row.largest();
  if (draw.sharpness == 0) {
    if (threadIdx.x == 0) op.tokens[blockIdx.x] = token_of(largest);
    return;
  }
  if (threadIdx.x == 0) op.tokens[blockIdx.x] = -1;
  const int64_t listed = row.found->listed;
  if (listed > kListed) return;
  const Range range = range_of(row, shared.range);
  int size = 2;
  while (size < listed) size *= 2;
  for (int i = threadIdx.x; i < size; i += kThreads) shared.keys[i] = i < listed ? row.found->keys[i] : 0;
  sort_keys(shared.keys, size);

  const int64_t count = draw.top_k > 0 ? min(listed, draw.top_k) : listed;
  const int index = 2 * threadIdx.x;
  uint64_t weights[2], total = range.total;
  for (int i = 0; i < 2; ++i)
    weights[i] = index + i < count ? draw.weight(logit_of(shared.keys[index + i]), logit_of(largest)) : 0;
  if (draw.top_k > 0) total = sum_of_block(weights[0] + weights[1], shared.range.of_warp).all;
  for (uint64_t& w : weights)
    if (w < draw.min_weight) w = 0;
  const Sum sum = sum_of_block(weights[0] + weights[1], shared.range.of_warp);
  const uint64_t ends[3] = {sum.before, sum.before + weights[0], sum.before + weights[0] + weights[1]};
  if (draw.filters()) {  // what is kept ends where the sum reaches top_p's limit, if it does
    const uint64_t limit = draw.limit(total);
    if (threadIdx.x == 0) shared.kept = sum.all;
    __syncthreads();
    for (int i = 0; i < 2; ++i)
      if (ends[i] < limit && limit <= ends[i + 1]) shared.kept = ends[i + 1];
    __syncthreads();
    total = shared.kept;
  }
  const uint64_t target = draw.target(total) - range.before;
  for (int i = 0; i < 2; ++i)
    if (ends[i] <= target && target < ends[i + 1]) op.tokens[blockIdx.x] = token_of(shared.keys[index + i]);
}

}  // namespace

void check_finite(const float* x, int64_t rows, int64_t n, const int32_t* row_token, int32_t* bad, Stream stream) {
  if (rows > 0)
    launch(find_bad, dim3(blocks_of(n, 8 * kThreads), static_cast<unsigned>(rows)), kThreads, 0, stream, x,
           static_cast<int>(n), row_token, bad);
}

size_t draw_bytes(int64_t vocab, int64_t rows) { return static_cast<size_t>(rows) * row_bytes(vocab); }

void draw(const Drawing& op, Stream stream) {
  if (op.count == 0) return;
  const auto rows = static_cast<unsigned>(op.count);
  const dim3 slices(static_cast<unsigned>(slices_of(op.vocab)), rows);
  launch(adjust_logits, slices, kThreads, kWarps * sizeof(uint64_t), stream, op);
  if (!op.greedy) {
    launch(fill_bins, slices, kThreads, kBins * sizeof(uint64_t), stream, op);
    launch(list_tokens, slices, kThreads, sizeof(RangeShared), stream, op);
  }
  launch(draw_tokens, rows, kThreads, sizeof(DrawShared), stream, op);
}

}  // namespace glmlite::cuda
