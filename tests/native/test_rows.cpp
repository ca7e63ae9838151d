// Row, RoPE and attention kernels: every set that runs here against scalar, bit for bit, and what Python does not
// reach: exp itself, add, the store into pages, merging, and that nothing beyond a row is written.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/kernels.h"
#include "cpu/simd_scalar.h"
// over whose primitives this one is written
#include "cpu/exp.inc"

using namespace glmlite;

namespace {

constexpr float kGuard = 12345.0f;
constexpr float kInf = std::numeric_limits<float>::infinity(), kNaN = std::numeric_limits<float>::quiet_NaN();

using Floats = std::vector<float>;

Floats normal(size_t n, unsigned seed, float scale = 1.0f) {
  std::mt19937 random(seed);
  Floats x(n);
  // Not std::normal_distribution, whose values differ between standard libraries.
  for (float& v : x) v = scale * (static_cast<float>(random() % 20001) - 10000.0f) * 3e-4f;
  return x;
}

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<const CpuKernels*> sets() {
  int count;
  const CpuKernels* const* all = cpu_kernel_sets(&count);
  std::vector<const CpuKernels*> here;
  for (int i = 0; i < count; ++i)
    if (all[i]->supported()) here.push_back(all[i]);
  return here;
}

const CpuKernels& scalar() { return cpu_kernels("scalar"); }

// op(set, y) writes n values; all sets write scalar's bits and leave the guard behind them alone. Returns them.
template <class Op>
Floats same_in_all_sets(const char* what, size_t n, Op op) {
  Floats want;
  for (int i = 0; i < static_cast<int>(sets().size()) + 1; ++i) {
    const CpuKernels& set = i == 0 ? scalar() : *sets()[i - 1];
    Floats y(n + 16, kGuard);
    op(set, y.data());
    for (size_t j = n; j < n + 16; ++j) check(y[j] == kGuard, what, static_cast<int>(n), "writes beyond the end");
    y.resize(n);
    if (i == 0) want = y;
    check(same_bits(y, want), what, static_cast<int>(n), std::string(set.name) + " differs from scalar");
  }
  return want;
}

const int kWidths[] = {1, 7, 15, 16, 17, 31, 32, 33, 100, 1024};

// 64-byte aligned, as pages are.
struct alignas(64) Line {
  uint8_t bytes[64];
};

// Attention of m queries over one chunk of `ctx` positions, of which query i sees visible[i].
struct Chunk {
  Floats max, sum, acc;
};
Chunk attend_chunk(const CpuKernels& set, KvType type, const Floats& q, const Floats& k, const Floats& v,
                   int64_t head_dim, const std::vector<int64_t>& visible) {
  const int64_t ctx = static_cast<int64_t>(k.size()) / head_dim, pages = (ctx + kPageTokens - 1) / kPageTokens;
  const size_t m = visible.size(), lines = kv_bytes(type, head_dim) / sizeof(Line);
  std::vector<std::vector<Line>> k_pages, v_pages;  // each exactly as large as it must be
  std::vector<const uint8_t*> k_table, v_table;
  for (int64_t p = 0; p < pages; ++p) {
    k_pages.emplace_back(lines);
    std::memset(k_pages.back().data(), 0x7b, lines * sizeof(Line));  // where nothing was stored, 61216 as f16
    v_pages.push_back(k_pages.back());
  }
  for (int64_t p = 0; p < pages; ++p) {
    auto* k_page = reinterpret_cast<uint8_t*>(k_pages[p].data());
    auto* v_page = reinterpret_cast<uint8_t*>(v_pages[p].data());
    for (int64_t i = p * kPageTokens; i < ctx && i < (p + 1) * kPageTokens; ++i)
      CHECK(set.store_kv[static_cast<int>(type)](&k[i * head_dim], &v[i * head_dim], head_dim, k_page, v_page,
                                                 i % kPageTokens));
    k_table.push_back(k_page);
    v_table.push_back(v_page);
  }
  std::vector<const float*> rows;
  for (size_t i = 0; i < m; ++i) rows.push_back(&q[i * head_dim]);
  Chunk out{Floats(m), Floats(m), Floats(m * head_dim)};
  std::vector<float> scratch(attend_scratch_bytes(static_cast<int64_t>(m), head_dim) / sizeof(float) + 16);
  void* aligned = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64 / sizeof(float);
  AttendArgs args;
  args.q = rows.data();
  args.queries = static_cast<int64_t>(m);
  args.head_dim = head_dim;
  args.scale = 0.125f;
  args.k = args.ahead = k_table.data();
  args.v = v_table.data();
  args.begin = 0;
  args.end = ctx;
  args.visible = visible.data();
  args.max = out.max.data();
  args.sum = out.sum.data();
  args.acc = out.acc.data();
  args.scratch = aligned;
  set.attend[static_cast<int>(type)](args);
  return out;
}

// The same of latent attention over one chunk of entries.
Chunk attend_latent_chunk(const CpuKernels& set, KvType type, const Floats& q, const Floats& entries, int64_t latent,
                          int64_t rope, const std::vector<int64_t>& visible) {
  const int64_t columns = latent + rope, ctx = static_cast<int64_t>(entries.size()) / columns;
  const size_t m = visible.size(), lines = latent_bytes(type, latent, rope) / sizeof(Line);
  CHECK(lines * sizeof(Line) == latent_bytes(type, latent, rope));
  std::vector<std::vector<Line>> pages;
  std::vector<const uint8_t*> table;
  for (int64_t p = 0; p * kPageTokens < ctx; ++p) {
    pages.emplace_back(lines);
    auto* page = reinterpret_cast<uint8_t*>(pages.back().data());
    std::memset(page, 0xff, lines * sizeof(Line));  // where nothing was stored, NaN as f16 and as f32
    for (int64_t i = p * kPageTokens; i < ctx && i < (p + 1) * kPageTokens; ++i)
      CHECK(set.store_latent[static_cast<int>(type)](&entries[i * columns], latent, rope, page, i % kPageTokens));
    table.push_back(page);
  }
  std::vector<const float*> rows;
  for (size_t i = 0; i < m; ++i) rows.push_back(&q[i * columns]);
  Chunk out{Floats(m), Floats(m), Floats(m * latent)};
  std::vector<Line> scratch(attend_latent_scratch_bytes(static_cast<int64_t>(m), latent, rope) / sizeof(Line) + 1);
  LatentArgs args;
  args.q = rows.data();
  args.queries = static_cast<int64_t>(m);
  args.latent = latent;
  args.rope = rope;
  args.scale = 0.125f;
  args.pages = args.ahead = table.data();
  args.begin = 0;
  args.end = ctx;
  args.visible = visible.data();
  args.max = out.max.data();
  args.sum = out.sum.data();
  args.acc = out.acc.data();
  args.scratch = scratch.data();
  set.attend_latent[static_cast<int>(type)](args);
  return out;
}

}  // namespace

TEST(exp_is_within_2_ulp) {
  double worst = 0;
  // Every 1009th float of [-104, 0], then of [0, 88.7]: all exponents, and all results that would be subnormal.
  for (float start : {-0.0f, 0.0f}) {
    uint32_t first, last;
    const float end = std::signbit(start) ? -104.0f : 88.7f;
    std::memcpy(&first, &start, 4);
    std::memcpy(&last, &end, 4);
    for (uint32_t bits = first; bits <= last; bits += 1009 * 16) {
      float x[16], y[16];
      for (uint32_t l = 0; l < 16; ++l) {
        uint32_t lane = bits + 1009 * l < last ? bits + 1009 * l : last;
        std::memcpy(&x[l], &lane, 4);
      }
      store(y, glmlite::exp(load(x)));
      for (int l = 0; l < 16; ++l) {
        const double want = x[l] < kVanishing ? 0 : std::exp(static_cast<double>(x[l]));
        if (want == 0) {
          CHECK(y[l] == 0);
          continue;
        }
        const double ulp = std::ldexp(1.0, std::ilogb(want) - 23);
        worst = std::max(worst, std::fabs(y[l] - want) / ulp);
      }
    }
  }
  std::printf("     exp: at most %.3f ulp off\n", worst);
  CHECK(worst <= 2);
}

TEST(exp_of_special_values) {
  const float below = std::nextafter(kVanishing, -kInf);
  const float x[16] = {0, -0.0f, -kInf, below, -1e30f, 89, 1e30f, kInf, kNaN, kVanishing};
  float y[16];
  store(y, glmlite::exp(load(x)));
  CHECK(y[0] == 1 && y[1] == 1);
  CHECK(y[2] == 0 && y[3] == 0 && y[4] == 0);
  CHECK(y[5] == kInf && y[6] == kInf && y[7] == kInf);
  CHECK(std::isnan(y[8]));
  CHECK(y[9] > 0x1p-100f);
}

TEST(f16_of_all_values) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    const float x = f16_to_f32(half);
    if (exponent == 31) {
      CHECK(mantissa ? std::isnan(x) : std::isinf(x));
    } else {
      const double magnitude = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
      CHECK(x == static_cast<float>(half & 0x8000 ? -magnitude : magnitude));
      CHECK(f32_to_f16(x) == half);
    }
  }
}

TEST(rows_are_the_same_in_all_sets) {
  for (int n : kWidths) {
    const size_t size = static_cast<size_t>(n);
    const Floats x = normal(2 * size, 1, 3), w = normal(size, 2), b = normal(size, 3);
    for (const float* add : {static_cast<const float*>(nullptr), b.data()})
      same_in_all_sets("rms_norm", size,
                       [&](const CpuKernels& set, float* y) { set.rms_norm(x.data(), w.data(), add, y, n, 1e-5f); });
    same_in_all_sets("layer_norm", size, [&](const CpuKernels& set, float* y) {
      set.layer_norm(x.data(), w.data(), b.data(), y, n, 1e-5f);
    });
    for (float scale : {1.0f, 1e-30f, 40.0f}) {
      const Floats wide = normal(2 * size, 4, scale);
      same_in_all_sets("swiglu", size, [&](const CpuKernels& set, float* y) { set.swiglu(wide.data(), y, n); });
      same_in_all_sets("gelu", size, [&](const CpuKernels& set, float* y) { set.gelu(wide.data(), y, n); });
      same_in_all_sets("gelu_erf", size, [&](const CpuKernels& set, float* y) { set.gelu_erf(wide.data(), y, n); });
    }
  }
}

TEST(norms_work_in_place) {
  for (const CpuKernels* set : sets()) {
    const Floats x = normal(100, 1), w = normal(100, 2), b = normal(100, 3);
    Floats want(100), y = x, z = b;
    set->rms_norm(x.data(), w.data(), b.data(), want.data(), 100, 1e-5f);
    set->rms_norm(y.data(), w.data(), b.data(), y.data(), 100, 1e-5f);
    set->rms_norm(x.data(), w.data(), z.data(), z.data(), 100, 1e-5f);
    CHECK(same_bits(y, want) && same_bits(z, want));
    set->layer_norm(x.data(), w.data(), b.data(), want.data(), 100, 1e-5f);
    y = x;
    set->layer_norm(y.data(), w.data(), b.data(), y.data(), 100, 1e-5f);
    CHECK(same_bits(y, want));
    set->gelu(x.data(), want.data(), 100);
    y = x;
    set->gelu(y.data(), y.data(), 100);
    CHECK(same_bits(y, want));
  }
}

TEST(add_is_the_same_in_all_sets) {
  for (int n : kWidths) {
    const size_t size = static_cast<size_t>(n);
    const Floats x = normal(size, 1), more = normal(size, 2);
    const Floats y = same_in_all_sets("add", size, [&](const CpuKernels& set, float* out) {
      std::memcpy(out, x.data(), size * sizeof(float));
      set.add(out, more.data(), n);
    });
    for (size_t i = 0; i < size; ++i) CHECK(y[i] == x[i] + more[i]);
  }
}

TEST(rope_is_the_same_in_all_sets) {
  const Floats x = normal(70, 1), angle = normal(33, 2, 30);
  Floats cos(33), sin(33);
  std::vector<int32_t> first(33), second(33);
  for (int i = 0; i < 33; ++i) {
    cos[i] = std::cos(angle[i]), sin[i] = std::sin(angle[i]);
    first[i] = i, second[i] = i + 33;
  }
  const Floats y = same_in_all_sets("rope", 70, [&](const CpuKernels& set, float* out) {
    std::memcpy(out, x.data(), 70 * sizeof(float));
    set.rope(out, {first.data(), second.data(), 33}, cos.data(), sin.data());
  });
  for (int i = 0; i < 33; ++i) {
    CHECK(y[i] == std::fma(x[i], cos[i], -(x[i + 33] * sin[i])));
    CHECK(y[i + 33] == std::fma(x[i], sin[i], x[i + 33] * cos[i]));
  }
}

TEST(store_kv_rounds_saturates_and_reports) {
  const Floats good = {0,       -0.0f,  1,       -2.5f,   65504,   65519,   65520,   -70000, 3e38f, 6e-8f,
                       2.9e-8f, 1e-40f, 0.3333f, 1.0005f, 1.0015f, 2049.0f, 2051.0f, -6e-5f, 1e-7f};
  for (float bad : {0.0f, kNaN, kInf, -kInf}) {
    for (int64_t index : {0, 17, 63}) {
      Floats k = good, v = good;
      if (bad != 0.0f) k[16] = v[18] = bad;
      const int64_t dim = static_cast<int64_t>(k.size());
      std::vector<uint16_t> want_k, want_v;
      for (int i = 0; i < static_cast<int>(sets().size()) + 1; ++i) {
        const CpuKernels& set = i == 0 ? scalar() : *sets()[i - 1];
        std::vector<uint16_t> k_page(kPageTokens * dim, 0x1234), v_page = k_page;
        CHECK(set.store_kv[static_cast<int>(KvType::kF16)](
                  k.data(), v.data(), dim, reinterpret_cast<uint8_t*>(k_page.data()),
                  reinterpret_cast<uint8_t*>(v_page.data()), index) == (bad == 0.0f));
        if (i == 0) want_k = k_page, want_v = v_page;
        CHECK(k_page == want_k && v_page == want_v);
      }
      size_t written = 0;
      for (int64_t at = 0; at < kPageTokens; ++at) {
        for (int64_t d = 0; d < dim; ++d) {
          const uint16_t in_k = want_k[(at / 16 * dim + d) * 16 + at % 16], in_v = want_v[at * dim + d];
          if (at != index) {
            CHECK(in_k == 0x1234 && in_v == 0x1234);
            continue;
          }
          written += 2;
          auto kept = [](float x) {
            return x != x ? uint16_t{0} : f32_to_f16(std::fmin(std::fmax(x, -65504.0f), 65504.0f));
          };
          CHECK(in_k == kept(k[d]) && in_v == kept(v[d]));
        }
      }
      CHECK(written == 2 * k.size());
    }
  }
}

TEST(rotate_is_the_same_in_all_sets) {
  for (int n : {1, 2, 7, 20, 40, 48, 64, 80, 128, 192, 512}) {
    const Floats x = normal(static_cast<size_t>(n), 1);
    const Floats y = same_in_all_sets("rotate", x.size(), [&](const CpuKernels& set, float* out) {
      std::memcpy(out, x.data(), x.size() * sizeof(float));
      set.rotate(out, n);
    });
    Floats want = x;
    const int block = n & -n;
    for (int apart = 1; apart < block; apart *= 2) {
      for (int i = 0; i < n; ++i) {
        if (i & apart) continue;
        const float a = want[i], b = want[i + apart];
        want[i] = a + b, want[i + apart] = a - b;
      }
    }
    for (float& v : want) v *= 1 / std::sqrt(static_cast<float>(block));
    CHECK(same_bits(y, want));
  }
}

TEST(attend_is_the_same_in_all_sets) {
  for (KvType type : {KvType::kF16, KvType::kQ8}) {
    for (int64_t dim : {1, 20, 64, 80, 128}) {
      for (int64_t ctx : {1, 33, 64, 200, 256}) {
        for (size_t m : {1, 4, 7, 25}) {
          const Floats q = normal(m * dim, 1), k = normal(ctx * dim, 2), v = normal(ctx * dim, 3);
          std::vector<int64_t> visible(m);
          for (size_t i = 0; i < m; ++i) visible[i] = static_cast<int64_t>(i * 37) % (ctx + 1) + (i % 3 == 0 ? 300 : 0);
          const Chunk want = attend_chunk(scalar(), type, q, k, v, dim, visible);
          for (const CpuKernels* set : sets()) {
            const Chunk got = attend_chunk(*set, type, q, k, v, dim, visible);
            CHECK(same_bits(got.max, want.max) && same_bits(got.sum, want.sum) && same_bits(got.acc, want.acc));
          }
          for (size_t i = 0; i < m; ++i) {
            if (visible[i] == 0) {
              CHECK(want.max[i] == -kInf && want.sum[i] == 0);
              for (int64_t d = 0; d < dim; ++d) CHECK(want.acc[i * dim + d] == 0);
            } else {
              CHECK(want.sum[i] >= 1 && std::isfinite(want.max[i]));  // the largest score counts 1
            }
          }
        }
      }
    }
  }
}

// Sequences that share the first shared[i] pages of one beginning, with some queries each, at once and one by one.
TEST(attend_reads_shared_pages_once_and_changes_no_bit) {
  const std::vector<int64_t> shared = {0, 4, 4, 4, 3, 3, 2, 2, 2, 2, 2, 1, 1};
  const std::vector<int64_t> visible = {1, 256, 256, 230, 193, 240, 256, 129, 180, 192, 250, 65, 128};
  for (KvType type : {KvType::kF16, KvType::kQ8}) {
    for (int64_t dim : {20, 64}) {
      for (size_t heads : {1, 3, 5}) {
        const Floats q = normal(shared.size() * heads * dim, 1), k = normal(64 * 256 * dim, 2), v = normal(k.size(), 3);
        for (const CpuKernels* set : sets()) {
          std::vector<std::vector<Line>> pages;  // keys and values by turns
          for (size_t page = 0; page < 4 * (shared.size() + 1); ++page) {
            pages.resize(pages.size() + 2, std::vector<Line>(kv_bytes(type, dim) / sizeof(Line)));
            for (int64_t i = 0; i < kPageTokens; ++i) {
              const auto at = static_cast<size_t>((static_cast<int64_t>(page) * kPageTokens + i) * dim);
              CHECK(set->store_kv[static_cast<int>(type)](&k[at], &v[at], dim,
                                                          reinterpret_cast<uint8_t*>(pages[2 * page].data()),
                                                          reinterpret_cast<uint8_t*>(pages[2 * page + 1].data()), i));
            }
          }
          std::vector<const uint8_t*> k_table, v_table;
          std::vector<int64_t> sees;
          std::vector<const float*> rows;
          for (size_t i = 0; i < shared.size(); ++i) {
            for (int64_t page = 0; page < 4; ++page) {
              const size_t at = 2 * (static_cast<size_t>(page) + (page < shared[i] ? 0 : 4 * (i + 1)));
              k_table.push_back(reinterpret_cast<const uint8_t*>(pages[at].data()));
              v_table.push_back(reinterpret_cast<const uint8_t*>(pages[at + 1].data()));
            }
            for (size_t h = 0; h < heads; ++h) {
              sees.push_back(visible[i]);
              rows.push_back(&q[(i * heads + h) * static_cast<size_t>(dim)]);
            }
          }
          const auto attend = [&](size_t first, size_t count, Chunk* out) {
            std::vector<Line> scratch(attend_scratch_bytes(static_cast<int64_t>(count), dim) / sizeof(Line) + 1);
            const size_t table = first / heads * 4;
            set->attend[static_cast<int>(type)](
                {&rows[first], static_cast<int64_t>(count), dim, 0.125f, &k_table[table], &v_table[table],
                 &k_table[table], 0, *std::max_element(&sees[first], &sees[first] + count), &sees[first],
                 &out->max[first], &out->sum[first], &out->acc[first * static_cast<size_t>(dim)], scratch.data(),
                 static_cast<int64_t>(heads)});
          };
          const size_t m = rows.size();
          Chunk together{Floats(m), Floats(m), Floats(m * static_cast<size_t>(dim))}, alone = together;
          attend(0, m, &together);
          for (size_t i = 0; i < m; i += heads) attend(i, heads, &alone);
          CHECK(same_bits(together.max, alone.max) && same_bits(together.sum, alone.sum) &&
                same_bits(together.acc, alone.acc));
        }
      }
    }
  }
}

TEST(sum_rows_is_a_tree_of_each_row) {
  const Floats x = normal(256, 1);
  float sums[16];
  store(sums, sum_rows(x.data()));
  for (int i = 0; i < 16; ++i) CHECK(sums[i] == sum_lanes(load(&x[i * 16])));
}

TEST(store_latent_keeps_columns_and_two_scales) {
  const int64_t latent = 16, rope = 6;
  Floats entry = normal(22, 1);
  entry[3] = 12.7f, entry[20] = -1270.0f;  // the largest of both parts: scales of 0.1 and 10
  for (int64_t index : {0, 17, 63}) {
    for (float bad : {0.0f, kNaN, kInf, -kInf}) {
      for (int64_t at : {5, 19}) {
        Floats x = entry;
        if (bad != 0.0f) x[at] = bad;
        for (const CpuKernels* set : sets()) {
          std::vector<uint16_t> page(latent_bytes(KvType::kF16, latent, rope) / 2, 0x1234);
          CHECK(set->store_latent[static_cast<int>(KvType::kF16)](
                    x.data(), latent, rope, reinterpret_cast<uint8_t*>(page.data()), index) == (bad == 0.0f));
          for (int64_t i = 0; i < kPageTokens * 22; ++i) {
            const int64_t position = i / (22 * 16) * 16 + i % 16, column = i / 16 % 22;
            if (position != index) {
              CHECK(page[i] == 0x1234);
            } else if (x[column] == entry[column]) {
              CHECK(page[i] == f32_to_f16(x[column]));
            }
          }
          std::vector<uint8_t> codes(latent_bytes(KvType::kQ8, latent, rope), 0x12);
          CHECK(codes.size() == kPageTokens * (32 + 8));
          CHECK(set->store_latent[static_cast<int>(KvType::kQ8)](x.data(), latent, rope, codes.data(), index) ==
                (bad == 0.0f));
          Floats scales(2 * kPageTokens);
          std::memcpy(scales.data(), &codes[kPageTokens * 32], scales.size() * sizeof(float));
          const uint8_t zero = codes[(index / 16 * 8 + 7) * 64 + index % 16 * 4 + 3];  // of padding
          CHECK(zero == 0 || zero == 128);
          for (int64_t i = 0; i < kPageTokens * 32; ++i) {
            const int64_t position = i / (32 * 16) * 16 + i / 4 % 16, column = i / 64 % 8 * 4 + i % 4;
            if (position != index) {
              CHECK(codes[i] == 0x12);
              continue;
            }
            const int code = static_cast<int8_t>(codes[i] ^ zero);
            if (bad != 0.0f || column >= 22) {
              CHECK(code == 0);
            } else {
              CHECK(std::fabs(code * scales[(column < 16 ? 0 : kPageTokens) + index] - x[column]) <=
                    (column < 16 ? 0.0501f : 5.01f));
            }
          }
          for (int64_t i = 0; i < 2 * kPageTokens; ++i) {
            if (i % kPageTokens != index) continue;
            CHECK(bad != 0.0f ? scales[i] == 0.0f
                              : std::fabs(scales[i] / (i < kPageTokens ? 0.1f : 10.0f) - 1) < 1e-6f);
          }
        }
      }
    }
  }
}

TEST(attend_latent_is_the_same_in_all_sets) {
  const struct {
    int64_t latent, rope;
  } shapes[] = {{16, 2}, {48, 30}, {512, 64}};
  for (KvType type : {KvType::kF16, KvType::kQ8}) {
    for (const auto& shape : shapes) {
      const int64_t columns = shape.latent + shape.rope;
      for (int64_t ctx : {1, 33, 64, 200, 256}) {
        for (size_t m : {1, 4, 20, 25}) {
          const Floats q = normal(m * columns, 1), entries = normal(ctx * columns, 2);
          std::vector<int64_t> visible(m);
          for (size_t i = 0; i < m; ++i)
            visible[i] = m == 1 ? ctx : static_cast<int64_t>(i * 37) % (ctx + 1) + (i % 3 == 0 ? 300 : 0);
          const Chunk want = attend_latent_chunk(scalar(), type, q, entries, shape.latent, shape.rope, visible);
          for (const CpuKernels* set : sets()) {
            const Chunk got = attend_latent_chunk(*set, type, q, entries, shape.latent, shape.rope, visible);
            CHECK(same_bits(got.max, want.max) && same_bits(got.sum, want.sum) && same_bits(got.acc, want.acc));
          }
          for (size_t i = 0; i < m; ++i) {
            if (visible[i] == 0) {
              CHECK(want.max[i] == -kInf && want.sum[i] == 0);
              for (int64_t d = 0; d < shape.latent; ++d) CHECK(want.acc[i * shape.latent + d] == 0);
            } else {
              CHECK(want.sum[i] >= 1 && std::isfinite(want.max[i]));
              for (int64_t d = 0; d < shape.latent; ++d) CHECK(std::isfinite(want.acc[i * shape.latent + d]));
            }
          }
        }
      }
    }
  }
}

TEST(attend_latent_sees_nothing) {
  for (KvType type : {KvType::kF16, KvType::kQ8}) {
    for (const CpuKernels* set : sets()) {
      const Chunk got = attend_latent_chunk(*set, type, normal(2 * 40, 1), normal(70 * 40, 2), 32, 8, {0, 0});
      CHECK(got.max[1] == -kInf && got.sum[1] == 0 && same_bits(got.acc, Floats(64)));
    }
  }
}

TEST(attend_merge_of_nothing_is_identity) {
  Floats acc = normal(20, 1), other = normal(20, 2);
  acc[3] = -0.0f;  // adding 0 would change it
  for (const CpuKernels* set : sets()) {
    float max = 1.5f, sum = 2.5f;
    Floats state = acc;
    set->attend_merge(&max, &sum, state.data(), -kInf, 0, other.data(), 20);
    CHECK(max == 1.5f && sum == 2.5f && same_bits(state, acc));
    max = -kInf, sum = 0, state.assign(20, 0.0f);
    set->attend_merge(&max, &sum, state.data(), 1.5f, 2.5f, acc.data(), 20);
    CHECK(max == 1.5f && sum == 2.5f && same_bits(state, acc));
  }
}

TEST(attend_merge_rescales_to_the_larger_maximum) {
  const Floats acc = normal(20, 1), other = normal(20, 2);
  for (float other_max : {-3.0f, 1.5f, 4.0f, 300.0f}) {
    float max = 0, sum = 0;
    const Floats y = same_in_all_sets("attend_merge", 20, [&](const CpuKernels& set, float* out) {
      std::memcpy(out, acc.data(), 20 * sizeof(float));
      max = 1.5f, sum = 2.5f;
      set.attend_merge(&max, &sum, out, other_max, 7, other.data(), 20);
    });
    const double top = std::fmax(1.5, other_max), s = std::exp(1.5 - top), t = std::exp(other_max - top);
    CHECK(max == top);
    // exp within 2 ulp = 2^-22, a product and a fused sum: 2^-24 each
    const double off = std::ldexp(1.0, -22) + std::ldexp(1.0, -23);
    CHECK(std::fabs(sum - (2.5 * s + 7 * t)) <= (2.5 * s + 7 * t) * off);
    for (int i = 0; i < 20; ++i)
      CHECK(std::fabs(y[i] - (acc[i] * s + other[i] * t)) <= (std::fabs(acc[i]) * s + std::fabs(other[i]) * t) * off);
  }
}

TEST(attend_finish_divides) {
  for (int n : kWidths) {
    const Floats acc = normal(static_cast<size_t>(n), 1);
    const Floats y = same_in_all_sets("attend_finish", acc.size(), [&](const CpuKernels& set, float* out) {
      set.attend_finish(acc.data(), 3.7f, out, n);
    });
    for (size_t i = 0; i < acc.size(); ++i) CHECK(y[i] == acc[i] / 3.7f);
  }
}

RUN_TESTS()
