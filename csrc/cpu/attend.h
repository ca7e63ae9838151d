// Attention over the pages of the KV cache: turns, tiles of queries, chunks of a context and how they are merged.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kv_pages.h"
#include "packed_weights.h"
#include "products.h"
#include "step_buffers.h"

namespace glmlite {

class Attend {
 public:
  Attend(const Program& program, const CpuKernels& kernels, const PackedWeights& weights, const StepBuffers& buffers,
         KvPages& pages, Products& products, Team& team);

  // Bytes of a thread's scratch.
  size_t scratch_bytes() const;
  // Room for the angles of so many tokens. Throws OutOfMemory.
  void resize(int64_t tokens);
  // Tiles of the step, and room for partial results where few tiles look at a long context. Throws OutOfMemory.
  void plan(const Step& step);
  size_t bytes() const { return partials_.size() + turns_.size(); }
  void release();
  // Multiplications of an attention in the step that is planned, by its cache.
  int64_t work(int cache) const { return work_[cache]; }

  // Each is run by all threads of the team.
  void make_turns(int thread);
  // What a run marks, and where it is heard.
  struct Watched {
    std::vector<char>* bad;      // tokens that have a key or a value that is not finite
    std::atomic<int64_t>* done;  // multiplications, counted on
    const CancelFlag* cancel;    // null: none
    bool cancelled() const { return cancel && cancel->is_set(); }
  };
  // False: the thread heard a cancel, and the result is garbage.
  bool run(const Op& op, const ops::Attention& kind, int thread, const Watched& watched);
  bool run(const Op& op, const ops::LatentAttention& kind, int thread, const Watched& watched);

 private:
  // A token of the step, as tiles have them.
  struct Member {
    int64_t token;
    const Run* run;
    int64_t context;  // entries that any token of its run sees
  };
  // Query heads of some tokens that share a KV head, and read its pages together: of one sequence, or of several, one
  // each, that begin alike.
  struct Tile {
    int64_t begin, end;  // members
    int kv_head;
    int first, heads;  // the query heads [first, first + heads)
    int64_t context;   // entries that any of its tokens sees
    int64_t queries() const { return (end - begin) * heads; }
  };
  // Where one attention's queries lie and how they share its cache.
  struct Shape {
    int cache = -1;
    int out = -1;   // the value it makes, and the index of its op
    int q = -1;     // the value that begins with its queries
    int heads = 0;  // of queries
    int key_dim = 0, value_dim = 0;
    int64_t group = 1;  // query heads that share a KV head
    float scale = 0;
    bool latent = false;
  };

  void turn_and_store(const ops::Attention& kind, int thread, std::vector<char>* bad);
  void turn_and_store(const ops::LatentAttention& kind, int thread, std::vector<char>* bad);
  static int64_t work(const Shape& shape, int64_t queries, int64_t entries) {
    return queries * entries * (shape.key_dim + shape.value_dim);
  }
  // Calls fn(token, its page, its place in the page) for the thread's tokens.
  template <class Fn>
  void each_token(int thread, Fn fn) const;
  bool attend(const Op& op, int thread, const Watched& watched);
  // A stretch of members whose tokens may be in one tile.
  struct Stretch {
    int64_t begin, end;
  };
  void find_members(const Step& step);
  void attend_chunk(const Shape& shape, const Tile& tile, int64_t chunk, const uint8_t* const* ahead, float* out,
                    uint8_t* scratch, bool again);
  void find_pages(const Shape& shape, const Member& member, int kv_head, int64_t chunk, const uint8_t** k,
                  const uint8_t** v) const;
  void attend_tile(const Shape& shape, const Tile& tile, uint8_t* scratch);
  void merge_tile(const Shape& shape, const Tile& tile, float* parts, size_t stride);
  void merge(const Shape& shape, int64_t queries, float* state, const float* chunk);
  void finish_tile(const Shape& shape, const Tile& tile, const float* state);

  RopePairs pairs(int rope) const;

  const Program& program_;
  const CpuKernels& kernels_;
  const PackedWeights& weights_;
  const StepBuffers& buffers_;
  KvPages& pages_;
  Products& products_;
  Team& team_;

  std::vector<Shape> shapes_;             // by op; of those that attend
  std::vector<Member> members_;           // all tokens of the step
  std::vector<Stretch> stretches_;        // of them
  std::vector<std::vector<Tile>> tiles_;  // by cache
  // Likewise: whether chunks of a context, not only tiles, are spread over the threads. The result is the same either
  // way, but it may not change in the middle of a step.
  std::vector<bool> splits_;
  std::vector<int64_t> work_;  // likewise
  Memory turns_;               // cos and sin of each rope table: (T, pairs) each
  std::vector<float*> cos_, sin_;
  Memory partials_;  // of attention split over the context
};

}  // namespace glmlite
