// Attention, and what it keeps of a token.
#pragma once
#include "slots.h"

namespace glmlite {

// What an attention keeps of a token: keys and values of so many KV heads.
struct CacheShape {
  int heads = 0;
  int key_dim = 0, value_dim = 0;  // columns of a head
  bool latent = false;             // the values are the first value_dim columns of the keys, and not kept apart
  int queries = 0;                 // heads that read it
  bool operator==(const CacheShape& o) const {
    return heads == o.heads && key_dim == o.key_dim && value_dim == o.value_dim && latent == o.latent &&
           queries == o.queries;
  }
};

namespace ops {

// Turns queries and keys where they lie, so nothing else may read them; appends keys and values to the cache; attends.
// One that keeps nothing (no attribute "layer") has its cache for the step alone, and shares it with those like it.
struct Attention {
  static constexpr const char* kName = "attention";
  static constexpr bool kChangesInputs = true;
  int qkv = -1;
  int q_norm = -1, k_norm = -1;
  std::vector<int> prefix;  // keys and values, or nothing
  float eps = 0;
  float scale = 0;
  int heads = 0, kv_heads = 0, head_dim = 0;
  int cache = -1;  // index into Program::caches
  int rope = -1;   // index into Program::ropes

  static auto inputs() { return std::make_tuple(&Attention::qkv); }
  static auto weights() { return std::make_tuple(&Attention::q_norm, &Attention::k_norm, &Attention::prefix); }
  static Attention read(Slots& s) {
    Attention op;
    op.qkv = s.input("qkv");
    op.heads = s.count("heads", 1, 1 << 16);
    op.kv_heads = s.count("kv_heads", 1, op.heads);
    op.head_dim = s.count("head_dim", 1, 1 << 16);
    if (op.heads % op.kv_heads) s.bad("query heads do not divide among key heads");
    if (s.columns(op.qkv) != int64_t{op.heads + 2 * op.kv_heads} * op.head_dim) s.bad("qkv has another width");
    s.width(int64_t{op.heads} * op.head_dim);
    op.scale = static_cast<float>(s.number("scale", 0, 1e6));
    op.eps = static_cast<float>(s.number("norm_eps", 0, 1));
    op.q_norm = s.optional_vector("q_norm", op.head_dim);
    op.k_norm = s.optional_vector("k_norm", op.head_dim);
    op.prefix = s.prefix(int64_t{op.kv_heads} * op.head_dim);
    op.rope = s.rope(op.head_dim);
    op.cache = s.cache({op.kv_heads, op.head_dim, op.head_dim, false, op.heads});
    return op;
  }
};

// Multi-head latent attention (DeepSeek-V2, 2024), absorbed: all heads share one key of `latent` columns, normed, and
// `rope` columns, turned; the values are the latent columns.
struct LatentAttention {
  static constexpr const char* kName = "latent_attention";
  static constexpr bool kChangesInputs = true;
  int q = -1, kv = -1;
  int w = -1;
  float eps = 0;
  float scale = 0;
  int heads = 0, latent = 0, turning = 0;  // columns of a query are latent, then turning ones
  int cache = -1;
  int rope = -1;

  static auto inputs() { return std::make_tuple(&LatentAttention::q, &LatentAttention::kv); }
  static auto weights() { return std::make_tuple(&LatentAttention::w); }
  static LatentAttention read(Slots& s) {
    LatentAttention op;
    op.q = s.input("q");
    op.kv = s.input("kv");
    op.heads = s.count("heads", 1, 1 << 16);
    op.latent = s.count("latent", 1, 1 << 16);
    const int64_t turning = s.columns(op.kv) - op.latent;
    if (turning < 1 || turning > 1 << 16) s.bad("kv has another width");
    op.turning = static_cast<int>(turning);
    if (s.columns(op.q) != int64_t{op.heads} * (op.latent + op.turning)) s.bad("q has another width");
    s.width(int64_t{op.heads} * op.latent);
    op.scale = static_cast<float>(s.number("scale", 0, 1e6));
    op.eps = static_cast<float>(s.number("eps", 0, 1));
    op.w = s.vector("w", op.latent);
    if (op.latent % 16 || op.turning % 2)
      s.damaged(op.w, "belongs to entries of " + std::to_string(op.latent) + " and " + std::to_string(op.turning) +
                          " columns, expected a multiple of 16 and an even number");
    s.prefix(op.latent);  // has none, as then nor have the others
    op.rope = s.rope(op.turning);
    op.cache = s.cache({1, op.latent + op.turning, op.latent, true, op.heads});
    return op;
  }
};

}  // namespace ops
}  // namespace glmlite
