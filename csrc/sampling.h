// The arithmetic of drawing a token, one and the same on the CPU and on GPUs: a row's weights are whole numbers, so
// their sums do not depend on an order, and what makes them is multiplied and added in f64, without contraction. So
// both draw the same token from the same logits.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __CUDACC__
#define GLMLITE_BOTH __host__ __device__
#else
#define GLMLITE_BOTH
#endif

namespace glmlite {

constexpr int kWeightBits = 44;                        // the largest logit weighs 2^44
constexpr int64_t kMaxVocab = (int64_t{1} << 19) - 1;  // so that sums of weights stay below 2^63
// Candidates are counted in bins of 1/64 of (largest logit - logit) / temperature. What is in the last weighs nothing:
// exp(-2047 / 64) 2^44 < 0.5.
constexpr int kBins = 2048;
constexpr float kBinsPerUnit = 64;

// A change of one token's logit, made before it is drawn from.
struct Adjustment {
  int32_t token;
  int32_t count;  // of it in the window of the penalties
  double bias;
};

// How a token is drawn from a row of logits.
struct Draw {
  double sharpness;      // 1 / temperature; 0: the token of the largest logit
  double top_p;          // 1: off
  double u;              // [0, 1)
  uint64_t min_weight;   // of what is kept; 1: of all that weighs anything
  int64_t top_k;         // 0: off
  int32_t last_bin;      // none that is kept lies in a later one
  float bins_per_logit;  // kBinsPerUnit * sharpness
  double repetition, presence, frequency;

  GLMLITE_BOTH bool filters() const { return top_k > 0 || top_p < 1 || min_weight > 1; }

  // Finite, whatever is asked for.
  GLMLITE_BOTH float adjusted(float logit, const Adjustment& change) const {
    const float biased = finite(logit + change.bias);
    if (change.count == 0) return biased;
    const double l = biased > 0 ? biased / repetition : biased * repetition;
    return finite(l - (presence + static_cast<double>(change.count) * frequency));
  }

  // 0 is that of the largest logit, `max`.
  GLMLITE_BOTH int bin(float logit, float max) const {
    constexpr float kLast = kBins - 1;
    const float place = (max - logit) * bins_per_logit;
    return static_cast<int>(place < kLast ? place : kLast);
  }

  // 2^44 exp((logit - max) sharpness), to the nearest whole number but for an error of 2^-46 of it. Of what is in the
  // last bin, which weighs nothing, it makes garbage: without branches, so that compilers vectorise a row of them.
  GLMLITE_BOTH uint64_t weight(float logit, float max) const {
    const double x = (static_cast<double>(logit) - max) * sharpness;
    // exp(x) = 2^k exp(r), |r| <= log(2) / 2. Added to kRound, a number is rounded, and stands in the last bits.
    constexpr double kRound = 0x1.8p52;
    const double shifted = x * 0x1.71547652b82fep+0 + kRound;
    const double k = shifted - kRound;
    const double r = (x - k * 0x1.62e42feep-1) - k * 0x1.a39ef35793c76p-33;
    double y = 1.0 / 39916800;  // Taylor's series: the next term is below 2^-47
    y = y * r + 1.0 / 3628800;
    y = y * r + 1.0 / 362880;
    y = y * r + 1.0 / 40320;
    y = y * r + 1.0 / 5040;
    y = y * r + 1.0 / 720;
    y = y * r + 1.0 / 120;
    y = y * r + 1.0 / 24;
    y = y * r + 1.0 / 6;
    y = y * r + 0.5;
    y = y * r + 1.0;
    y = y * r + 1.0;
    const double power = from_bits(bits(y) + (bits(shifted) << 52) + (uint64_t{kWeightBits} << 52));
    return bits(power + 0x1p52) - bits(0x1p52);
  }

  // What a sum of weights must reach for top_p of a total.
  GLMLITE_BOTH uint64_t limit(uint64_t total) const {
    if (top_p == 1) return total;
    const double least = top_p * real(total);
    const auto whole = static_cast<uint64_t>(least);
    return smaller(real(whole) < least ? whole + 1 : whole, total);
  }
  // The token drawn is the first whose sum of weights, its own and those of likelier ones, is above this.
  GLMLITE_BOTH uint64_t target(uint64_t total) const {
    return smaller(static_cast<uint64_t>(u * real(total)), total - 1);
  }
  // Where a sum over the bins, of how many tokens they have with top_k, otherwise of what these weigh, reaches this, is
  // the last bin whose tokens matter. Without filters those of the bins before it matter as a sum alone.
  GLMLITE_BOTH uint64_t reach(uint64_t total) const {
    if (top_k > 0) return static_cast<uint64_t>(top_k);
    return filters() ? limit(total) : target(total) + 1;
  }

 private:
  GLMLITE_BOTH static float finite(double x) {
    constexpr double kMost = 3.4028234663852886e38;  // FLT_MAX
    return static_cast<float>(x > kMost ? kMost : x < -kMost ? -kMost : x);
  }
  GLMLITE_BOTH static uint64_t bits(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
  }
  GLMLITE_BOTH static double from_bits(uint64_t bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
  }
  GLMLITE_BOTH static double real(uint64_t sum) { return static_cast<double>(static_cast<int64_t>(sum)); }
  GLMLITE_BOTH static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }
};

// A number whose order is that of the logit, then of the lower token. NaN, which no sane row has, is below all numbers.
GLMLITE_BOTH inline uint64_t key_of(float logit, int32_t token) {
  const float whole = logit == 0 ? 0.0f : logit;  // -0 equals 0
  uint32_t bits;
  memcpy(&bits, &whole, sizeof bits);
  const uint32_t ascending = logit == logit ? (bits >> 31 ? ~bits : bits | 0x80000000u) : 0;
  return static_cast<uint64_t>(ascending) << 32 | (0xffffffffu - static_cast<uint32_t>(token));
}
GLMLITE_BOTH inline int32_t token_of(uint64_t key) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key));
}
GLMLITE_BOTH inline float logit_of(uint64_t key) {
  const auto ascending = static_cast<uint32_t>(key >> 32);
  const uint32_t bits = ascending >> 31 ? ascending & 0x7fffffffu : ~ascending;
  float logit;
  memcpy(&logit, &bits, sizeof logit);
  return logit;
}

// A draw with the changes that come before it, at most one of a token.
struct DrawRequest {
  Draw draw;
  std::vector<Adjustment> adjustments;
};

}  // namespace glmlite
