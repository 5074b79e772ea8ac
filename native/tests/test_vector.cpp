// Row kernels: the reference against double precision, the other tiers against the reference bit for bit.
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "kamado/op_rules.h"
#include "kamado/row_cases.h"
#include "tiers.h"

namespace {

using kamado::Activation;
using kamado::VectorKernels;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr double kEps = 0x1p-24;  // half a unit in the last place of 1

std::mt19937 rng(1);

std::vector<float> random_floats(int32_t n, float spread = 3.0f) {
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = normal(rng);
  return x;
}

// Every magnitude, both zeros, infinities, NaN, and the edges of exp's range.
std::vector<float> awkward_floats() {
  std::vector<float> x = {0.0f,       -0.0f,      kInf,          -kInf,         kNan,      FLT_MAX,   -FLT_MAX,
                          FLT_MIN,    -FLT_MIN,   FLT_TRUE_MIN,  -FLT_TRUE_MIN, 88.72283f, 88.72284f, 88.3763f,
                          -87.33654f, -87.33655f, -87.3f,        -103.97f,      -104.5f,   0.625f,    -0.625f,
                          1.0f,       65504.0f,   65519.9f,      65520.0f,      -65520.0f, 0x1p-14f,  0x1p-24f,
                          0x1p-25f,   0x1.8p-25f, 0x1.0002p-14f, 2049.0f,       2051.0f};
  for (int exponent = -149; exponent <= 127; ++exponent) {
    for (const float mantissa : {1.0f, 1.2345678f, 1.9999999f}) {
      x.push_back(std::ldexp(mantissa, exponent));
      x.push_back(-std::ldexp(mantissa, exponent));
    }
  }
  return x;
}

uint32_t bits(float x) {
  uint32_t b;
  std::memcpy(&b, &x, sizeof b);
  return b;
}

// The same bits; a NaN's payload is not part of the contract (x86 takes it from whichever operand comes first).
bool same(float a, float b) {
  return bits(a) == bits(b) || (std::isnan(a) && std::isnan(b));
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!same(a[i], b[i])) {
      std::fprintf(stderr, "  element %zu: %a and %a\n", i, static_cast<double>(a[i]), static_cast<double>(b[i]));
      return false;
    }
  }
  return true;
}

struct ActivationCase {
  const char* name;
  Activation act;
  double (*exact)(double);
  double (*exponent)(double);  // of the exponential inside
};

constexpr double kSqrt2OverPi = 0.7978845608028654;

const ActivationCase kActivationCases[] = {
    {"silu", Activation::kSilu, [](double x) { return x / (1.0 + std::exp(-x)); }, [](double x) { return x; }},
    {"gelu_tanh", Activation::kGeluTanh,
     [](double x) { return x / (1.0 + std::exp(-2.0 * kSqrt2OverPi * (x + 0.044715 * x * x * x))); },
     [](double x) { return 2.0 * kSqrt2OverPi * (x + 0.044715 * x * x * x); }},
    {"gelu_erf", Activation::kGeluErf, [](double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); },
     [](double x) { return x * x / 2.0; }},
    {"relu2", Activation::kRelu2, [](double x) { return x > 0 ? x * x : 0.0; }, [](double) { return 0.0; }},
    {"sigmoid", Activation::kSigmoid, [](double x) { return 1.0 / (1.0 + std::exp(-x)); }, [](double x) { return x; }},
};

void test_activations(const VectorKernels& k) {
  for (const ActivationCase& c : kActivationCases) {
    double worst = 0;
    for (int i = -200000; i <= 200000; ++i) {
      const float x = static_cast<float>(i) * 5e-4f;
      float y;
      k.gate(&x, nullptr, c.act, 0, 0, 0, 1, &y);
      const double exact = c.exact(static_cast<double>(x));
      // About eight roundings, and up to five in the exponent u, which the exponential multiplies by |u|.
      const double bound = (8 + 5 * std::abs(c.exponent(static_cast<double>(x)))) * kEps;
      // Where e^(-u) or e^u leaves the normal floats the result is 0: below 1e-35.
      const double error = std::abs(static_cast<double>(y) - exact) / (bound * std::abs(exact) + 1e-35);
      worst = std::fmax(worst, error);
    }
    CHECK_MSG(worst <= 1.0, (std::string(c.name) + " error over bound " + std::to_string(worst)).c_str());
    std::printf("%s: worst error %.2f of its bound\n", c.name, worst);
  }
}

void test_exp(const VectorKernels& k) {
  double worst = 0;
  const auto exp_of = [&k](float x) {  // x <= 0: e^x = softmax[1] / softmax[0], both divided by the same sum
    const float pair[2] = {0.0f, x};
    float out[2];
    k.softmax(pair, 2, out);
    return static_cast<double>(out[1]) / static_cast<double>(out[0]);
  };
  for (int i = 0; i <= 100000; ++i) {
    const float x = -static_cast<float>(i) * (87.3f / 100000);
    const double exact = std::exp(static_cast<double>(x));
    worst = std::fmax(worst, std::abs(exp_of(x) - exact) / exact);
  }
  std::printf("exp: worst relative error %.2f half-units\n", worst / kEps);
  CHECK_MSG(worst <= 5 * kEps,
            (std::to_string(worst / kEps)).c_str());  // 2 of exp, 2 x 1 of the two divisions, 1 of the sum
  // The last value above the smallest normal float, the first below; the last below overflow, the first above.
  CHECK(std::abs(exp_of(-0x1.5d589ep+6f) / 0x1p-126 - 1.0) < 8e-6);
  CHECK(exp_of(-0x1.5d58a0p+6f) == 0.0);
  float silu_of[2] = {-0x1.62e42ep+6f, -0x1.62e430p+6f};  // x / (1 + e^-x)
  k.gate(silu_of, nullptr, Activation::kSilu, 0, 0, 0, 2, silu_of);
  CHECK(std::abs(static_cast<double>(silu_of[0]) / (-88.72283 / static_cast<double>(FLT_MAX)) - 1.0) < 1e-5);
  CHECK(silu_of[1] == 0.0f);
  CHECK(exp_of(0.0f) == 1.0);
  CHECK(exp_of(-88.0f) == 0.0);
  CHECK(exp_of(-kInf) == 0.0);
  CHECK(exp_of(-FLT_MAX) == 0.0);
  const float all_nan[3] = {1.0f, kNan, 2.0f};
  float out[3];
  k.softmax(all_nan, 3, out);
  CHECK(std::isnan(out[0]) && std::isnan(out[1]) && std::isnan(out[2]));
}

void test_softcap(const VectorKernels& k) {
  double worst = 0;
  for (int i = -300000; i <= 300000; ++i) {
    const float x = static_cast<float>(i) * 1e-3f;
    float y;
    k.softcap(&x, 30.0f, 1, &y);
    const double exact = 30.0 * std::tanh(static_cast<double>(x) / 30.0);
    worst = std::fmax(worst, std::abs(static_cast<double>(y) - exact) / std::fmax(std::abs(exact), 1e-30));
  }
  std::printf("softcap: worst relative error %.2f half-units\n", worst / kEps);
  CHECK_MSG(worst <= 8 * kEps, (std::to_string(worst / kEps)).c_str());
  const float ends[2] = {kInf, -kInf};
  float out[2];
  k.softcap(ends, 50.0f, 2, out);
  CHECK(out[0] == 50.0f && out[1] == -50.0f);
}

// One value of the gate for a group of the other input's, and limits, which come after the activation.
void test_gate(const VectorKernels& k) {
  const float a[3] = {-2.0f, 3.0f, 0.5f};
  float b[40], out[40];
  for (int i = 0; i < 40; ++i) b[i] = static_cast<float>(i) - 20.0f;
  bool ok = true;
  k.gate(a, b, Activation::kRelu2, 0, 17, 0, 40, out);  // groups that end in a vector's middle; the last is short
  for (int i = 0; i < 40; ++i) ok &= out[i] == (i < 17 ? 0.0f : i < 34 ? 9.0f : 0.25f) * b[i];
  k.gate(a, nullptr, Activation::kRelu2, 4, 17, 0, 40, out);
  for (int i = 0; i < 40; ++i) ok &= out[i] == (i < 17 ? 0.0f : i < 34 ? 4.0f : 0.25f);
  CHECK(ok);
  // The activation's result is clamped from above only, its input not at all.
  const float gates[5] = {-2.0f, 3.0f, 100.0f, 7.0f, kNan}, ups[5] = {9.0f, -8.0f, 0.5f, kNan, 1.0f};
  k.gate(gates, ups, Activation::kNone, 7, 0, 0, 5, out);
  CHECK(out[0] == -14.0f && out[1] == -21.0f && out[2] == 3.5f && std::isnan(out[3]) && std::isnan(out[4]));
  k.gate(gates, nullptr, Activation::kSilu, 7, 0, 0, 3, out);
  CHECK(std::abs(out[0] + 0.238405844f) < 1e-7f && std::abs(out[1] - 2.85772238f) < 1e-6f && out[2] == 7.0f);
  // With alpha the inputs are clamped, and the second counts one more: x / (1 + e^(-alpha x)) * (y + 1).
  const float swish[6] = {-2.0f, 3.0f, 100.0f, 1.0f, kNan, 1.0f}, more[6] = {9.0f, -8.0f, 0.5f, -1.0f, 1.0f, kNan};
  k.gate(swish, more, Activation::kSilu, 7, 0, 1.702f, 6, out);
  const auto gate = [](double x, double y) { return static_cast<float>(x / (1 + std::exp(-1.702 * x)) * (y + 1)); };
  CHECK(std::abs(out[0] - gate(-2, 7)) < 1e-6f && std::abs(out[1] - gate(3, -7)) < 1e-5f);
  CHECK(std::abs(out[2] - gate(7, 0.5)) < 1e-5f && out[3] == 0.0f && std::isnan(out[4]) && std::isnan(out[5]));
  k.gate(swish, more, Activation::kSilu, 0, 0, 1.702f, 3, out);  // without a limit
  CHECK(std::abs(out[0] - gate(-2, 9)) < 1e-6f && std::abs(out[2] - 150.0f) < 1e-4f);
}

void test_norms(const VectorKernels& k) {
  for (const int32_t n : {1, 3, 64, 577, 2048}) {
    const auto x = random_floats(n), w = random_floats(n), b = random_floats(n);
    std::vector<float> out(x.size());
    k.rms_norm(x.data(), w.data(), n, 1e-6f, out.data());
    double mean_square = 0, mean = 0, variance = 0;
    for (const float v : x)
      mean_square += static_cast<double>(v) * static_cast<double>(v) / n, mean += static_cast<double>(v) / n;
    for (const float v : x) variance += (static_cast<double>(v) - mean) * (static_cast<double>(v) - mean) / n;
    // A sum of n/16 terms a lane plus the tree: (n/16 + 4) roundings, all of one sign; then five more.
    const double bound = (n / 16.0 + 10) * kEps;
    bool ok = true;
    for (size_t i = 0; i < x.size(); ++i) {
      const double exact = static_cast<double>(x[i]) / std::sqrt(mean_square + 1e-6) * static_cast<double>(w[i]);
      ok &= std::abs(static_cast<double>(out[i]) - exact) <= bound * std::abs(exact);
    }
    CHECK_MSG(ok, ("rms_norm " + std::to_string(n)).c_str());
    k.l2_norm(x.data(), w.data(), n, 1e-6f, out.data());
    ok = true;
    for (size_t i = 0; i < x.size(); ++i) {
      const double exact = static_cast<double>(x[i]) / std::sqrt(mean_square * n + 1e-6) * static_cast<double>(w[i]);
      ok &= std::abs(static_cast<double>(out[i]) - exact) <= bound * std::abs(exact);
    }
    CHECK_MSG(ok, ("l2_norm " + std::to_string(n)).c_str());
    if (n == 1) continue;  // its variance is nothing but eps
    k.layer_norm(x.data(), w.data(), b.data(), n, 1e-5f, out.data());
    ok = true;
    for (size_t i = 0; i < x.size(); ++i) {
      const double y = (static_cast<double>(x[i]) - mean) / std::sqrt(variance + 1e-5) * static_cast<double>(w[i]);
      const double scale =
          (std::abs(static_cast<double>(x[i])) + 3.0) / std::sqrt(variance) * std::abs(static_cast<double>(w[i]));
      ok &= std::abs(static_cast<double>(out[i]) - y - static_cast<double>(b[i])) <=
            bound * (scale + std::abs(static_cast<double>(b[i])));
    }
    CHECK_MSG(ok, ("layer_norm " + std::to_string(n)).c_str());
  }
}

void test_rope(const VectorKernels& k) {
  const float cos[2] = {0.5f, 0.25f}, sin[2] = {2.0f, 4.0f};
  float halves[5] = {1, 2, 3, 4, 9}, pairs[5] = {1, 2, 3, 4, 9};
  k.rope(halves, 1, 5, 4, cos, sin, false);  // (1, 3) and (2, 4); the fifth is past rot_dim
  CHECK(halves[0] == 0.5f - 6 && halves[2] == 1.5f + 2 && halves[1] == 0.5f - 16 && halves[3] == 1 + 8 &&
        halves[4] == 9);
  k.rope(pairs, 1, 5, 4, cos, sin, true);  // (1, 2) and (3, 4)
  CHECK(pairs[0] == 0.5f - 4 && pairs[1] == 1 + 2 && pairs[2] == 0.75f - 16 && pairs[3] == 1 + 12 && pairs[4] == 9);
}

void test_half(const VectorKernels& k) {
  bool ok = true;
  for (uint32_t h = 0; h < 65536; ++h) {
    const auto half = static_cast<uint16_t>(h);
    const uint32_t exponent = (h >> 10) & 31, mantissa = h & 1023;
    float x;
    k.from_f16(&half, 1, &x);
    if (exponent == 31) {
      ok &= mantissa ? std::isnan(x) : std::isinf(x) && std::signbit(x) == (h >= 0x8000);
      continue;
    }
    const double exact =
        exponent ? std::ldexp(1024.0 + mantissa, static_cast<int>(exponent) - 25) : std::ldexp(mantissa, -24);
    ok &= static_cast<double>(x) == (h >= 0x8000 ? -exact : exact) && std::signbit(x) == (h >= 0x8000);
    uint16_t back;
    k.to_f16(&x, 1, &back);
    ok &= back == half;
  }
  CHECK(ok);
  const float in[] = {kNan, kInf, -kInf, 1e9f, 65519.0f, 0x1p-25f, 0x1.000002p-25f, 0x1.8p-24f, 2049.0f, 2051.0f};
  const uint16_t expected[] = {0, 0x7bff, 0xfbff, 0x7bff, 0x7bff, 0, 1, 2, 0x6800, 0x6802};
  uint16_t out[10];
  k.to_f16(in, 10, out);
  CHECK(std::memcmp(out, expected, sizeof out) == 0);
}

// A NaN or an infinity at any place of any length is seen, and nothing else is taken for one.
void test_is_finite(const VectorKernels& k) {
  bool ok = true;
  for (int32_t n = 1; n <= 67; ++n) {
    std::vector<float> x(static_cast<size_t>(n) + 1, kNan);  // what lies behind does not count
    for (int32_t i = 0; i < n; ++i) x[static_cast<size_t>(i)] = i % 3 == 0 ? FLT_MAX : i % 3 == 1 ? -FLT_MAX : 1e-45f;
    ok &= k.is_finite(x.data(), n);
    for (int32_t i = 0; i < n; ++i) {
      const float good = x[static_cast<size_t>(i)];
      for (const float bad : {kNan, -kNan, kInf, -kInf}) {
        x[static_cast<size_t>(i)] = bad;
        ok &= !k.is_finite(x.data(), n);
      }
      x[static_cast<size_t>(i)] = good;
    }
  }
  CHECK(ok);
}

void test_log_sum_exp(const VectorKernels& k) {
  const auto x = random_floats(50001, 5.0f);
  double sum = 0;
  for (const float v : x) sum += std::exp(static_cast<double>(v));
  CHECK(std::abs(k.log_sum_exp(x.data(), 50001) - std::log(sum)) < 4 * kEps);  // exp's error only: the sum is in double
  const float huge[2] = {1e30f, 1e30f};
  CHECK(k.log_sum_exp(huge, 2) == static_cast<double>(1e30f) + std::log(2.0));
}

// What an operation's rules say of its inputs' widths when `out` has `n` values. Kernels take any parameters, so what
// else the rules refuse does not matter here.
struct Widths {
  int64_t n;
  int64_t* of;  // [kMaxRowInputs]

  int64_t width(int32_t) const { return n; }
  void expect_buffer(int32_t input, int64_t wanted) const {
    if (input >= 0) of[input] = wanted;
  }
  template <class Value>
  std::string text(Value) const {
    return "";
  }
  void refuse(const std::string&) const {}
};

// Every row-wise operation that is defined, into a place of its own and over each input as wide as the output.
void test_row_ops(const VectorKernels& ref, const VectorKernels& k, const std::vector<const float*>& inputs, int32_t n,
                  const std::string& what) {
  const auto randoms = [] { return [] { return static_cast<float>(rng() % 30000) * 1e-3f; }; };
  kamado::for_each_row_case(randoms, [&]<class T>(const T& op, const bool* is_there) {
    const float* in[kamado::kMaxRowInputs];
    for (size_t i = 0; i < kamado::kMaxRowInputs; ++i) in[i] = is_there[i] ? inputs[i % inputs.size()] : nullptr;
    std::vector<float> expect(static_cast<size_t>(n)), got(expect.size());
    run_row_kernel(ref, op, in, n, expect.data());
    run_row_kernel(k, op, in, n, got.data());
    CHECK_MSG(same(expect, got), (T::kName + (" " + what)).c_str());
    int64_t widths[kamado::kMaxRowInputs] = {};
    check_rules(op, Widths{n, widths});
    for (size_t i = 0; i < kamado::kMaxRowInputs; ++i) {
      if (widths[i] != n || !is_there[i]) continue;
      const float* kept = in[i];
      got.assign(kept, kept + n);
      in[i] = got.data();
      run_row_kernel(k, op, in, n, got.data());
      CHECK_MSG(same(expect, got), (T::kName + (" in place " + what)).c_str());
      in[i] = kept;
    }
  });
}

// Every kernel on every length around the vector width, unaligned, in place where the contract allows it.
void test_same_bits(const VectorKernels& ref, const VectorKernels& k, const std::string& tier) {
  const auto awkward = awkward_floats();
  std::vector<int32_t> lengths;
  for (int32_t n = 1; n <= 67; ++n) lengths.push_back(n);
  for (const int32_t n : {127, 576, 640, 1000, 1536}) lengths.push_back(n);
  for (const bool is_awkward : {false, true}) {
    for (const int32_t n : lengths) {
      const auto size = static_cast<size_t>(n);
      const auto draw = [&](int32_t count) {
        auto x = random_floats(count + 1);
        if (is_awkward) {
          for (size_t i = 0; i < x.size(); i += 1 + rng() % 9) x[i] = awkward[rng() % awkward.size()];
        }
        return x;
      };
      const auto xs = draw(n), ws = draw(n), bs = draw(n);
      const float *x = xs.data() + 1, *w = ws.data() + 1, *b = bs.data() + 1;  // 4 bytes off any alignment
      const std::string what = tier + (is_awkward ? " awkward " : " ") + std::to_string(n);
      std::vector<float> expect(size), got(size);
      ref.rms_norm(x, w, n, 1e-6f, expect.data());
      k.rms_norm(x, w, n, 1e-6f, got.data());
      CHECK_MSG(same(expect, got), ("rms_norm " + what).c_str());
      ref.rms_norm(x, nullptr, n, 1e-6f, expect.data());
      got.assign(x, x + n);
      k.rms_norm(got.data(), nullptr, n, 1e-6f, got.data());
      CHECK_MSG(same(expect, got), ("rms_norm in place " + what).c_str());
      ref.l2_norm(x, w, n, 1e-6f, expect.data());
      k.l2_norm(x, w, n, 1e-6f, got.data());
      CHECK_MSG(same(expect, got), ("l2_norm " + what).c_str());
      for (int mask = 0; mask < 4; ++mask) {
        ref.layer_norm(x, mask & 1 ? w : nullptr, mask & 2 ? b : nullptr, n, 1e-5f, expect.data());
        k.layer_norm(x, mask & 1 ? w : nullptr, mask & 2 ? b : nullptr, n, 1e-5f, got.data());
        CHECK_MSG(same(expect, got), ("layer_norm " + what).c_str());
      }
      test_row_ops(ref, k, {x, w, b}, n, what);
      expect.assign(w, w + n), got = expect;
      ref.axpy(0.3f, x, n, expect.data()), k.axpy(0.3f, x, n, got.data());
      CHECK_MSG(same(expect, got), ("axpy " + what).c_str());
      ref.accumulate(w, x, 0.7f, n, expect.data()), k.accumulate(w, x, 0.7f, n, got.data());
      CHECK_MSG(same(expect, got), ("accumulate " + what).c_str());
      got.assign(w, w + n), k.accumulate(got.data(), x, 0.7f, n, got.data());
      CHECK_MSG(same(expect, got), ("accumulate in place " + what).c_str());
      ref.softmax(x, n, expect.data()), k.softmax(x, n, got.data());
      CHECK_MSG(same(expect, got), ("softmax " + what).c_str());
      const double l1 = ref.log_sum_exp(x, n), l2 = k.log_sum_exp(x, n);
      CHECK_MSG(std::memcmp(&l1, &l2, sizeof l1) == 0 || (std::isnan(l1) && std::isnan(l2)),
                ("log_sum_exp " + what).c_str());
      std::vector<uint16_t> h1(size), h2(size);
      ref.to_f16(x, n, h1.data()), k.to_f16(x, n, h2.data());
      CHECK_MSG(h1 == h2, ("to_f16 " + what).c_str());
      for (uint16_t& h : h1) h = static_cast<uint16_t>(is_awkward ? rng() : h);
      ref.from_f16(h1.data(), n, expect.data()), k.from_f16(h1.data(), n, got.data());
      CHECK_MSG(same(expect, got), ("from_f16 " + what).c_str());
      for (const bool interleaved : {false, true}) {
        auto e = draw(3 * (2 * n + 3)), g = e;
        ref.rope(e.data(), 3, 2 * n + 3, 2 * n, x, w, interleaved),
            k.rope(g.data(), 3, 2 * n + 3, 2 * n, x, w, interleaved);
        CHECK_MSG(same(e, g), ("rope " + what).c_str());
      }
    }
  }
  std::vector<float> expect(awkward.size()), got(awkward.size());
  for (const auto act : {Activation::kSilu, Activation::kGeluTanh, Activation::kGeluErf, Activation::kSigmoid}) {
    ref.gate(awkward.data(), nullptr, act, 0, 0, 0, static_cast<int32_t>(awkward.size()), expect.data());
    k.gate(awkward.data(), nullptr, act, 0, 0, 0, static_cast<int32_t>(awkward.size()), got.data());
    CHECK_MSG(same(expect, got), ("all awkward values " + tier).c_str());
  }
}

}  // namespace

int main() {
  const auto* ref = kamado::table_by_name("scalar");
  test_exp(*ref->vector);
  test_activations(*ref->vector);
  test_softcap(*ref->vector);
  kamado::test::for_each_tier([ref](const kamado::KernelTable& table, bool is_reference) {
    test_gate(*table.vector);
    test_norms(*table.vector);
    test_rope(*table.vector);
    test_half(*table.vector);
    test_log_sum_exp(*table.vector);
    test_is_finite(*table.vector);
    if (!is_reference) test_same_bits(*ref->vector, *table.vector, table.tier);
  });
  return kamado::test::finish();
}
