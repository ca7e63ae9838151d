#include "attend.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace glmlite {

namespace {

constexpr int64_t kTileQueries = 64;
constexpr int64_t kTasksPerThread = 4;  // so that threads end at about the same time

int64_t pages(int64_t context) { return (context + kPageTokens - 1) / kPageTokens; }
int64_t chunks(int64_t context) { return (context + kChunkTokens - 1) / kChunkTokens; }
int64_t max_queries(int64_t group) { return std::max(kTileQueries, group); }
// Floats that (max, sum, acc) of so many queries take: (M), (M), (M, value_dim).
size_t partial_values(int64_t value_dim, int64_t queries) {
  return align64(static_cast<size_t>(queries * (value_dim + 2)));
}

}  // namespace

Attend::Attend(const Program& program, const CpuKernels& kernels, const PackedWeights& weights,
               const StepBuffers& buffers, KvPages& pages, Products& products, Team& team)
    : program_(program),
      kernels_(kernels),
      weights_(weights),
      buffers_(buffers),
      pages_(pages),
      products_(products),
      team_(team),
      shapes_(program.ops.size()) {
  for (const Op& op : program.ops) {
    if (const auto* a = op.as<ops::Attention>())
      shapes_[op.out] = {a->cache, op.out, a->qkv, a->heads, a->head_dim, a->head_dim, a->heads / a->kv_heads,
                         a->scale, false};
    if (const auto* a = op.as<ops::LatentAttention>())
      shapes_[op.out] = {a->cache, op.out, a->q, a->heads, a->latent + a->turning, a->latent, a->heads, a->scale, true};
  }
}

void Attend::release() {
  turns_.reset();
  partials_.reset();
}

// A state, a chunk, pointers to queries with their limits, and what the kernel wants.
size_t Attend::scratch_bytes() const {
  size_t bytes = 0;
  for (const Shape& s : shapes_) {
    if (s.cache < 0) continue;
    const int64_t queries = max_queries(s.group);
    const size_t kernel = s.latent ? attend_latent_scratch_bytes(queries, s.value_dim, s.key_dim - s.value_dim)
                                   : attend_scratch_bytes(queries, s.key_dim);
    bytes = std::max(bytes, 2 * partial_values(s.value_dim, queries) * sizeof(float) + align64(queries * 16) + kernel);
  }
  return bytes;
}

void Attend::resize(int64_t tokens) {
  const auto values = [&](const RopeTable& r) { return (r.first.size() + 15) / 16 * 16 * static_cast<size_t>(tokens); };
  size_t all = 0;
  for (const RopeTable& r : program_.ropes) all += 2 * values(r);
  turns_.reset();
  turns_ = Memory(all * sizeof(float), "rotary angles");
  cos_.clear();
  sin_.clear();
  float* next = turns_.as<float>();
  for (const RopeTable& r : program_.ropes) {
    cos_.push_back(next);
    sin_.push_back(next + values(r));
    next += 2 * values(r);
  }
}

// Tokens of one run stay together. Of sequences that have one token, those that begin with the same page become
// neighbours, the more pages they share, the nearer.
void Attend::find_members(const Step& step) {
  members_.clear();
  stretches_.clear();
  std::vector<Member> single;
  for (const Run& run : step.runs) {
    const int64_t context = *std::max_element(step.visible.begin() + run.begin, step.visible.begin() + run.end);
    if (run.end - run.begin == 1) {
      single.push_back({run.begin, &run, context});
      continue;
    }
    const auto begin = static_cast<int64_t>(members_.size());
    for (int64_t t = run.begin; t < run.end; ++t) members_.push_back({t, &run, context});
    stretches_.push_back({begin, begin + run.end - run.begin});
  }
  std::sort(single.begin(), single.end(), [](const Member& a, const Member& b) {
    return std::lexicographical_compare(a.run->pages, a.run->pages + pages(a.context), b.run->pages,
                                        b.run->pages + pages(b.context));
  });
  for (const Member& member : single) {
    const auto at = static_cast<int64_t>(members_.size());
    if (&member == single.data() || member.run->pages[0] != members_.back().run->pages[0])
      stretches_.push_back({at, at});
    members_.push_back(member);
    ++stretches_.back().end;
  }
}

void Attend::plan(const Step& step) {
  find_members(step);
  tiles_.assign(program_.caches.size(), {});
  splits_.assign(program_.caches.size(), false);
  work_.assign(program_.caches.size(), 0);
  const int64_t longest = *std::max_element(step.visible.begin(), step.visible.end());
  size_t partials = 0;
  for (const Shape& shape : shapes_) {
    if (shape.cache < 0 || !tiles_[shape.cache].empty()) continue;  // those that share a cache are alike
    auto& tiles = tiles_[shape.cache];
    const int64_t tile_tokens = std::max<int64_t>(1, kTileQueries / shape.group);
    const int kv_heads = program_.caches[shape.cache].heads;
    // As few tiles as can be, but enough for all threads where tokens are of several sequences.
    const auto cuts = [&](const Stretch& stretch) {
      const int64_t tokens = stretch.end - stretch.begin, least = (tokens + tile_tokens - 1) / tile_tokens;
      if (members_[stretch.begin].run == members_[stretch.end - 1].run) return least;
      const int64_t tasks = kv_heads * chunks(longest);
      return std::max(least, std::min(tokens, (kTasksPerThread * team_.size() + tasks - 1) / tasks));
    };
    int64_t most = 0, groups = 0;
    for (const Stretch& stretch : stretches_) groups += cuts(stretch) * kv_heads;
    // Where a short context has fewer groups of heads than there are threads, threads share a group.
    const int64_t parts = chunks(longest) > 1 ? 1 : std::min(shape.group, (team_.size() + groups - 1) / groups);
    const auto heads = static_cast<int>((shape.group + parts - 1) / parts);
    for (const Stretch& stretch : stretches_) {
      const int64_t tokens = stretch.end - stretch.begin, count = cuts(stretch);
      for (int h = 0; h < kv_heads; ++h) {  // outside, so that what tiles share stays in the cache
        for (int64_t cut = 0; cut < count; ++cut) {
          const int64_t begin = stretch.begin + tokens * cut / count, end = stretch.begin + tokens * (cut + 1) / count;
          int64_t context = 0;
          for (int64_t m = begin; m < end; ++m) context = std::max(context, step.visible[members_[m].token]);
          const int last = static_cast<int>((h + 1) * shape.group);
          for (int first = last - static_cast<int>(shape.group); first < last; first += heads)
            tiles.push_back({begin, end, h, first, std::min(heads, last - first), context});
          most = std::max(most, (end - begin) * heads);
        }
      }
    }
    for (const Tile& tile : tiles) work_[shape.cache] += work(shape, tile.queries(), tile.context);
    // The longest first, so that no thread is left with one at the end.
    std::stable_sort(tiles.begin(), tiles.end(),
                     [](const Tile& a, const Tile& b) { return chunks(a.context) > chunks(b.context); });
    splits_[shape.cache] = team_.size() > 1 && tiles.size() < kTasksPerThread * static_cast<size_t>(team_.size()) &&
                           chunks(tiles[0].context) > 1;
    if (splits_[shape.cache])
      partials = std::max(partials,
                          tiles.size() * partial_values(shape.value_dim, most) * static_cast<size_t>(chunks(longest)));
  }
  if (partials * sizeof(float) > partials_.size()) {
    partials_.reset();
    partials_ = Memory(partials * sizeof(float), "attention over a long context");
  }
}

// cos and sin of every rotary pair at every token's position. Angles in f64, so that long positions keep their bits.
void Attend::make_turns(int thread) {
  const Step& step = buffers_.step();
  for (size_t i = 0; i < program_.ropes.size(); ++i) {
    const RopeTable& r = program_.ropes[i];
    const size_t pairs = r.first.size();
    buffers_.each_row(thread, buffers_.tokens(), [&](int64_t t) {
      for (size_t p = 0; p < pairs; ++p) {
        const double angle = r.freq[p] * step.positions[r.axis[p]][t];
        cos_[i][t * pairs + p] = static_cast<float>(std::cos(angle) * r.magnitude);
        sin_[i][t * pairs + p] = static_cast<float>(std::sin(angle) * r.magnitude);
      }
    });
  }
}

RopePairs Attend::pairs(int rope) const {
  if (rope < 0) return {nullptr, nullptr, 0};
  const RopeTable& r = program_.ropes[rope];
  return {r.first.data(), r.second.data(), static_cast<int64_t>(r.first.size())};
}

bool Attend::run(const Op& op, const ops::Attention& kind, int thread, const Watched& watched) {
  turn_and_store(kind, thread, watched.bad);
  return attend(op, thread, watched);
}

bool Attend::run(const Op& op, const ops::LatentAttention& kind, int thread, const Watched& watched) {
  turn_and_store(kind, thread, watched.bad);
  return attend(op, thread, watched);
}

template <class Fn>
void Attend::each_token(int thread, Fn fn) const {
  const Step& step = buffers_.step();
  auto run = step.runs.begin();
  buffers_.each_row(thread, buffers_.tokens(), [&](int64_t t) {
    while (t >= run->end) ++run;
    const int64_t entry = step.entry[t];
    fn(t, run->pages[entry / kPageTokens], entry % kPageTokens);
  });
}

void Attend::turn_and_store(const ops::Attention& kind, int thread, std::vector<char>* bad) {
  float* qkv = buffers_.value(kind.qkv);
  const int64_t width = program_.values[kind.qkv].width, dim = kind.head_dim;
  const RopePairs pairs = this->pairs(kind.rope);
  const float *q_norm = weights_.vector(kind.q_norm), *k_norm = weights_.vector(kind.k_norm);
  each_token(thread, [&](int64_t t, int32_t page, int64_t index) {
    float* row = qkv + t * width;
    for (int h = 0; h < kind.heads + kind.kv_heads; ++h) {
      float* head = row + h * dim;
      if (const float* norm = h < kind.heads ? q_norm : k_norm)
        kernels_.rms_norm(head, norm, nullptr, head, dim, kind.eps);
      if (kind.rope >= 0)
        kernels_.rope(head, pairs, cos_[kind.rope] + t * pairs.count, sin_[kind.rope] + t * pairs.count);
      if (pages_.type() == KvType::kQ8 && h < kind.heads) kernels_.rotate(head, dim);
    }
    float* keys = row + kind.heads * dim;
    if (!pages_.store(kind.cache, page, index, keys, keys + kind.kv_heads * dim)) (*bad)[t] = 1;
  });
}

void Attend::turn_and_store(const ops::LatentAttention& kind, int thread, std::vector<char>* bad) {
  const int64_t latent = kind.latent, columns = latent + kind.turning;
  const RopePairs pairs = this->pairs(kind.rope);
  float *q = buffers_.value(kind.q), *kv = buffers_.value(kind.kv);
  each_token(thread, [&](int64_t t, int32_t page, int64_t index) {
    const auto turn = [&](float* part) {
      if (kind.rope >= 0)
        kernels_.rope(part, pairs, cos_[kind.rope] + t * pairs.count, sin_[kind.rope] + t * pairs.count);
    };
    for (int h = 0; h < kind.heads; ++h) {
      float* head = q + (t * kind.heads + h) * columns;
      turn(head + latent);
      if (pages_.type() == KvType::kQ8) {
        kernels_.rotate(head, latent);
        kernels_.rotate(head + latent, kind.turning);
      }
    }
    float* entry = kv + t * columns;
    kernels_.rms_norm(entry, weights_.vector(kind.w), nullptr, entry, latent, kind.eps);
    turn(entry + latent);
    if (!pages_.store_latent(kind.cache, page, index, entry)) (*bad)[t] = 1;
  });
}

bool Attend::attend(const Op& op, int thread, const Watched& watched) {
  products_.wait_after(op.out, thread);
  const Shape& shape = shapes_[op.out];
  const auto& tiles = tiles_[shape.cache];
  uint8_t* scratch = buffers_.scratch(thread);
  const auto count_on = [&](int64_t queries, int64_t entries) {
    watched.done->fetch_add(work(shape, queries, entries), std::memory_order_relaxed);
  };
  int64_t task;
  if (!splits_[shape.cache]) {
    while (team_.take(static_cast<int64_t>(tiles.size()), &task)) {
      if (watched.cancelled()) return false;
      attend_tile(shape, tiles[task], scratch);
      count_on(tiles[task].queries(), tiles[task].context);
    }
    return true;
  }
  int64_t most = 0;
  for (const Tile& t : tiles) most = std::max(most, t.queries());
  const int64_t longest = chunks(tiles[0].context);
  const size_t stride = partial_values(shape.value_dim, most);
  const auto count = static_cast<int64_t>(tiles.size());
  // A thread takes its next task before it does one, so that it knows which keys to fetch meanwhile.
  for (bool more = team_.take(count * longest, &task); more && !watched.cancelled();) {
    const Tile& tile = tiles[task / longest];
    const int64_t chunk = task % longest;
    int64_t next;
    more = team_.take(count * longest, &next);
    const uint8_t* ahead[kChunkPages];
    const Tile& then = more ? tiles[next / longest] : tile;
    find_pages(shape, members_[then.begin], then.kv_head, more ? next % longest : chunk, ahead, nullptr);
    if (chunk < chunks(tile.context))
      attend_chunk(shape, tile, chunk, ahead, partials_.as<float>() + task * stride, scratch, false);
    task = next;
  }
  products_.wait_after(shape.out, thread);
  if (watched.cancelled()) return false;  // and who heard it before has no results to merge
  while (team_.take(count, &task)) {
    merge_tile(shape, tiles[task], partials_.as<float>() + task * longest * stride, stride);
    count_on(tiles[task].queries(), tiles[task].context);
  }
  return true;
}

// The pages of a chunk; beyond the context, the last again. v may be null.
void Attend::find_pages(const Shape& shape, const Member& member, int kv_head, int64_t chunk, const uint8_t** k,
                        const uint8_t** v) const {
  const int64_t last = pages(member.context) - 1;
  for (int64_t i = 0; i < kChunkPages; ++i) {
    const int32_t page = member.run->pages[std::min(chunk * kChunkPages + i, last)];
    k[i] = pages_.keys(shape.cache, page, kv_head);
    if (v) v[i] = pages_.values(shape.cache, page, kv_head);
  }
}

// (max, sum, acc) of the tile's queries over one chunk, into out; meanwhile the keys `ahead` are fetched. again:
// whether what was last done with this scratch is another chunk of the same tile.
void Attend::attend_chunk(const Shape& shape, const Tile& tile, int64_t chunk, const uint8_t* const* ahead, float* out,
                          uint8_t* scratch, bool again) {
  const int64_t queries = tile.queries(), width = program_.values[shape.q].width, heads = tile.heads;
  auto** q = reinterpret_cast<const float**>(scratch);
  auto* visible = reinterpret_cast<int64_t*>(scratch + queries * sizeof *q);
  int64_t i = 0;
  for (int64_t m = tile.begin; m < tile.end; ++m) {
    const int64_t t = members_[m].token;
    for (int h = tile.first; h < tile.first + tile.heads; ++h, ++i) {
      q[i] = buffers_.value(shape.q) + t * width + int64_t{h} * shape.key_dim;
      visible[i] = buffers_.step().visible[t];
    }
  }
  scratch += align64(max_queries(shape.group) * 16);
  const int type = static_cast<int>(pages_.type());
  const int64_t begin = chunk * kChunkTokens;
  const bool one = members_[tile.begin].run == members_[tile.end - 1].run;
  const uint8_t *k[kTileQueries][kChunkPages], *v[kTileQueries][kChunkPages];  // by member, or of them all
  for (int64_t m = 0; m < (one ? 1 : tile.end - tile.begin); ++m)
    find_pages(shape, members_[tile.begin + m], tile.kv_head, chunk, k[m], shape.latent ? nullptr : v[m]);
  // The kernel takes those that share the first page; of latents, those that share all of them.
  const auto alike = [&](int64_t a, int64_t b) {
    return shape.latent ? std::equal(k[a], k[a] + kChunkPages, k[b]) : k[a][0] == k[b][0];
  };
  for (int64_t from = 0, to; from < tile.end - tile.begin; from = to) {
    to = one ? tile.end - tile.begin : from + 1;
    while (to < tile.end - tile.begin && alike(from, to)) ++to;
    const int64_t first = from * heads, count = (to - from) * heads;
    float *max = out + first, *sum = out + queries + first, *acc = out + 2 * queries + first * shape.value_dim;
    const int64_t end = std::min(begin + kChunkTokens, *std::max_element(visible + first, visible + first + count));
    if (end <= begin) {
      std::fill_n(max, count, -std::numeric_limits<float>::infinity());
      std::fill_n(sum, count, 0.0f);
    } else if (shape.latent) {
      kernels_.attend_latent[type]({q + first, count, shape.value_dim, shape.key_dim - shape.value_dim, shape.scale,
                                    k[from], ahead, begin, end, visible + first, max, sum, acc, scratch});
    } else {
      kernels_.attend[type]({q + first, count, shape.key_dim, shape.scale, k[from], v[from], ahead, begin, end,
                             visible + first, max, sum, acc, scratch, one ? count : heads, again && count == queries});
    }
  }
}

void Attend::attend_tile(const Shape& shape, const Tile& tile, uint8_t* scratch) {
  const int64_t queries = tile.queries();
  auto* state = reinterpret_cast<float*>(scratch);
  float* chunk = state + partial_values(shape.value_dim, max_queries(shape.group));
  scratch = reinterpret_cast<uint8_t*>(chunk + partial_values(shape.value_dim, max_queries(shape.group)));
  const uint8_t* ahead[kChunkPages];
  for (int64_t c = 0; c < chunks(tile.context); ++c) {
    find_pages(shape, members_[tile.begin], tile.kv_head, c + 1, ahead, nullptr);
    attend_chunk(shape, tile, c, ahead, c == 0 ? state : chunk, scratch, c > 0);
    if (c > 0) merge(shape, queries, state, chunk);
  }
  finish_tile(shape, tile, state);
}

// Finishes a tile from chunks that were computed before, chunk c's partial result at parts + c * stride.
void Attend::merge_tile(const Shape& shape, const Tile& tile, float* parts, size_t stride) {
  const int64_t queries = tile.queries();
  for (int64_t c = 1; c < chunks(tile.context); ++c) merge(shape, queries, parts, parts + c * stride);
  finish_tile(shape, tile, parts);
}

void Attend::merge(const Shape& shape, int64_t queries, float* state, const float* chunk) {
  for (int64_t i = 0; i < queries; ++i)
    kernels_.attend_merge(state + i, state + queries + i, state + 2 * queries + i * shape.value_dim, chunk[i],
                          chunk[queries + i], chunk + 2 * queries + i * shape.value_dim, shape.value_dim);
}

void Attend::finish_tile(const Shape& shape, const Tile& tile, const float* state) {
  const int64_t queries = tile.queries(), width = program_.values[shape.out].width;
  int64_t i = 0;
  for (int64_t m = tile.begin; m < tile.end; ++m) {
    for (int h = tile.first; h < tile.first + tile.heads; ++h, ++i) {
      float* head = buffers_.value(shape.out) + members_[m].token * width + int64_t{h} * shape.value_dim;
      kernels_.attend_finish(state + 2 * queries + i * shape.value_dim, state[queries + i], head, shape.value_dim);
      // The values were turned latents.
      if (shape.latent && pages_.type() == KvType::kQ8) kernels_.rotate(head, shape.value_dim);
    }
  }
}

}  // namespace glmlite
