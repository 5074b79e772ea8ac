// The KV codec: the reference against the mathematics (orthogonal rotation, level tables, distortion, unbiased
// products, exact centring and sinks, softmax over decoded keys and values), the other tiers against the reference bit
// for bit.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "kernels/kv_codec_layout.h"
#include "tiers.h"

namespace {

using namespace kamado;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int32_t kDims[] = {64, 80, 96, 128, 192, 256, 512};
constexpr int32_t kBits[] = {1, 2, 3, 4, 8};

std::mt19937 rng(11);

float normal(float spread = 1.0f) {
  return std::normal_distribution<float>(0.0f, spread)(rng);
}

const VectorKernels& halves() {
  return *table_by_name("scalar")->vector;
}

struct Bytes {  // 64-byte aligned, and its end is the end of its allocation
  explicit Bytes(size_t n = 0) : size(n), data(new (std::align_val_t{64}) uint8_t[n]()) {}
  struct Delete {
    void operator()(uint8_t* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  size_t size;
  std::unique_ptr<uint8_t[], Delete> data;
  uint8_t* get() const { return data.get(); }
  bool operator==(const Bytes& other) const { return size == other.size && std::memcmp(get(), other.get(), size) == 0; }
};

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], 4) != 0 && !(std::isnan(a[i]) && std::isnan(b[i]))) {
      std::printf("  element %zu: %a and %a\n", i, static_cast<double>(a[i]), static_cast<double>(b[i]));
      return false;
    }
  }
  return a.size() == b.size();
}

// A page of f16 keys and values, K [head_dim][128] and V [128][v_dim], and its encoded form.
struct Page {
  KvCodec codec;
  std::vector<float> keys, values;  // [128][dim], rounded to f16
  std::vector<uint16_t> k, v;
  Bytes k_codes, v_codes, sinks;

  Page(KvCodec given, bool is_first)
      : codec(given),
        keys(static_cast<size_t>(given.head_dim) * kPageTokens),
        values(static_cast<size_t>(given.v_dim) * kPageTokens),
        k(keys.size()),
        v(values.size()),
        k_codes(encoded_k_page_bytes(given.head_dim, given.k_bits)),
        v_codes(encoded_v_page_bytes(given.v_dim, given.v_bits)),
        sinks(is_first ? encoded_sink_bytes(given) : 0) {}

  uint8_t* sink_block() const { return sinks.size ? sinks.get() : nullptr; }
  float* key(int32_t j) { return keys.data() + static_cast<size_t>(j * codec.head_dim); }
  float* value(int32_t j) { return values.data() + static_cast<size_t>(j * codec.v_dim); }

  void fill(float spread = 1.0f) {
    for (float& x : keys) x = normal(spread);
    for (float& x : values) x = normal(spread);
  }
  void encode(const KvCodecKernels& kernels) {
    const auto round = [](float x, uint16_t& h) {
      halves().to_f16(&x, 1, &h);
      halves().from_f16(&h, 1, &x);
      return x;
    };
    for (int32_t j = 0; j < kPageTokens; ++j) {
      for (int32_t d = 0; d < codec.head_dim; ++d) {
        key(j)[d] = round(key(j)[d], k[static_cast<size_t>(d * kPageTokens + j)]);
      }
      for (int32_t d = 0; d < codec.v_dim; ++d) {
        value(j)[d] = round(value(j)[d], v[static_cast<size_t>(j * codec.v_dim + d)]);
      }
    }
    Bytes scratch(encode_scratch_bytes(codec));
    std::memset(scratch.get(), 0xff, scratch.size);
    kernels.encode_page(codec, k.data(), v.data(), k_codes.get(), v_codes.get(), sink_block(), scratch.get());
  }
  void decode(std::vector<float>& decoded_k, std::vector<float>& decoded_v) const {
    decoded_k.resize(keys.size()), decoded_v.resize(values.size());
    kv_codec_kernels_ref()->decode_page(codec, k_codes.get(), v_codes.get(), sink_block(), decoded_k.data(),
                                        decoded_v.data());
  }
};

struct Queries {
  std::vector<std::vector<float>> q, partial;
  std::vector<Bytes> rotated;
  std::vector<CodeQuery> list;

  Queries(const KvCodec& codec, int32_t n, bool is_whole, float spread = 1.0f) {
    for (int32_t i = 0; i < n; ++i) {
      q.emplace_back(static_cast<size_t>(codec.head_dim));
      for (float& x : q.back()) x = normal(spread);
      partial.emplace_back(static_cast<size_t>(codec.v_dim + 2), kNan);
      rotated.emplace_back(rotated_query_bytes(codec));
      const int32_t lo = is_whole ? 0 : static_cast<int32_t>(rng() % (i % 2 ? 5 : kPageTokens));
      const int32_t hi =
          is_whole ? kPageTokens : lo + 1 + static_cast<int32_t>(rng() % static_cast<uint32_t>(kPageTokens - lo));
      list.push_back({nullptr, nullptr, lo, hi, nullptr});
    }
    for (size_t i = 0; i < list.size(); ++i) {
      list[i].q = q[i].data(), list[i].rotated = rotated[i].get(), list[i].partial = partial[i].data();
    }
  }
  void rotate(const KvCodecKernels& kernels, const KvCodec& codec) {
    for (size_t i = 0; i < q.size(); ++i) {
      std::memset(rotated[i].get(), 0xee, rotated[i].size);
      kernels.rotate_query(codec, q[i].data(), rotated[i].get());
    }
  }
};

float score_scale(const KvCodec& codec) {
  return 1.0f / std::sqrt(static_cast<float>(codec.head_dim));
}

void attend(const KvCodecKernels& kernels, const Page& page, float cap, const std::vector<CodeQuery>& queries) {
  const auto n = static_cast<int32_t>(queries.size());
  Bytes scratch(attend_codes_scratch_bytes(page.codec, n));
  std::memset(scratch.get(), 0xff, scratch.size);
  const void* next = n % 2 ? nullptr : reinterpret_cast<const void*>(uintptr_t{64});  // a hint changes nothing
  kernels.attend_page(page.codec, page.k_codes.get(), page.v_codes.get(), page.sink_block(), score_scale(page.codec),
                      cap, queries.data(), n, scratch.get(), next);
}

// Softmax in double over given keys and values.
std::vector<double> exact(const KvCodec& codec, const std::vector<float>& keys, const std::vector<float>& values,
                          float cap, const CodeQuery& query) {
  std::vector<double> weight, out(static_cast<size_t>(codec.v_dim));
  double top = -1e300, sum = 0;
  for (int32_t j = query.lo; j < query.hi; ++j) {
    double s = 0;
    for (int32_t d = 0; d < codec.head_dim; ++d) {
      s += static_cast<double>(query.q[d]) * static_cast<double>(keys[static_cast<size_t>(j * codec.head_dim + d)]);
    }
    s *= static_cast<double>(score_scale(codec));
    if (cap > 0) s = static_cast<double>(cap) * std::tanh(s / static_cast<double>(cap));
    weight.push_back(s), top = std::fmax(top, s);
  }
  for (double& w : weight) sum += w = std::exp(w - top);
  for (int32_t j = query.lo; j < query.hi; ++j) {
    for (int32_t d = 0; d < codec.v_dim; ++d) {
      out[static_cast<size_t>(d)] += weight[static_cast<size_t>(j - query.lo)] / sum *
                                     static_cast<double>(values[static_cast<size_t>(j * codec.v_dim + d)]);
    }
  }
  return out;
}

double squared_norm(const float* x, int32_t dim) {
  double sum = 0;
  for (int32_t d = 0; d < dim; ++d) sum += static_cast<double>(x[d]) * static_cast<double>(x[d]);
  return sum;
}

// ---- tables ----

// The published levels, and how far rounding them to 6 bits moves them.
void test_levels() {
  const std::vector<std::vector<double>> published = {{},
                                                      {0.7979},
                                                      {0.453, 1.510},
                                                      {0.2451, 0.7560, 1.3439, 2.1520},
                                                      {0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326}};
  for (int32_t bits = 1; bits <= 4; ++bits) {
    const auto& levels = published[static_cast<size_t>(bits)];
    for (int32_t i = 0; i < num_magnitudes(bits); ++i) {
      const double level = kLevels[bits][i] / static_cast<double>(kLevelUnit[bits]);
      const double half_step = 0.5 / static_cast<double>(kLevelUnit[bits]);
      CHECK_MSG(std::abs(level - levels[static_cast<size_t>(i)]) <= half_step + 1e-3, "level " + std::to_string(level));
      CHECK(code_level(bits, num_magnitudes(bits) + i) == kLevels[bits][i]);
      CHECK(code_level(bits, num_magnitudes(bits) - 1 - i) == -kLevels[bits][i]);
    }
  }
  for (int32_t i = 0; i < kNumGains; ++i) {
    CHECK(std::abs(kGains[i] - 255 * std::exp2((i - 15) / 12.0)) <= 0.5);
  }
}

void test_sizes() {
  // 128 values of 4, 3 and 2 bits: 68, 52 and 36 bytes, keys 2 more for the mean.
  for (const auto& [bits, bytes] : {std::pair{4, 68}, {3, 52}, {2, 36}, {8, 132}}) {
    CHECK(encoded_v_page_bytes(128, bits) == static_cast<size_t>(bytes) * kPageTokens);
    CHECK(encoded_k_page_bytes(128, bits) == static_cast<size_t>(bytes + 2) * kPageTokens);
  }
  for (const int32_t dim : kDims) {
    for (const int32_t bits : kBits) {
      CHECK(encoded_k_page_bytes(dim, bits) % 64 == 0 && encoded_v_page_bytes(dim, bits) % 64 == 0);
    }
  }
  CHECK(encoded_sink_bytes({128, 128, 4, 4}) == 2048);
  CHECK(is_valid_codec({64, 256, 2, 8}) && is_valid_codec({512, 512, 8, 4}) && !is_valid_codec({72, 64, 4, 4}) &&
        !is_valid_codec({64, 64, 5, 4}) && !is_valid_codec({64, 64, 4, 0}));
}

// Every code has its own place.
void test_places() {
  for (const int32_t dim : kDims) {
    for (const int32_t bits : kBits) {
      std::vector<int> seen(static_cast<size_t>(dim) * kPageTokens * 2);
      for (int32_t j = 0; j < kPageTokens; ++j) {
        for (int32_t d = 0; d < dim; ++d) {
          const CodePlace k = key_place(dim, bits, j, d), v = value_place(dim, j, d);
          ++seen.at(static_cast<size_t>(k.reg * 64 + k.byte));
          ++seen.at(static_cast<size_t>(dim * kPageTokens + v.reg * 64 + v.byte));
        }
      }
      CHECK(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }));
    }
  }
}

void test_packing() {
  uint8_t regs[512], chunk[512];
  for (const int32_t bits : kBits) {
    for (uint8_t& code : regs) code = static_cast<uint8_t>(rng() & ((1u << bits) - 1));
    pack_chunk(bits, regs, chunk);
    bool ok = true;
    for (int32_t i = 0; i < 512; ++i) ok &= unpack_code(bits, chunk, {i / 64, i % 64}) == regs[i];
    CHECK_MSG(ok, "bits " + std::to_string(bits));
  }
}

// Lengths and products survive; the way back is the inverse.
void test_rotation(const KvCodecKernels& kernels, const std::string& tier) {
  for (const int32_t dim : kDims) {
    const KvCodec codec{dim, dim, 4, 4};
    std::vector<float> a(static_cast<size_t>(dim)), basis(a.size());
    for (float& x : a) x = normal();
    Bytes blob(rotated_query_bytes(codec));
    kernels.rotate_query(codec, a.data(), blob.get());
    const RotatedQuery view = view_query(blob.get(), dim);
    CHECK_MSG(std::abs(squared_norm(view.rotated, dim) / squared_norm(a.data(), dim) - 1) < 1e-5, tier);
    std::vector<float> running(static_cast<size_t>(dim + 2), 3.0f);
    std::copy(view.rotated, view.rotated + dim, running.begin() + 2);
    kernels.unrotate(codec, running.data());
    double worst = 0;
    for (size_t d = 0; d < a.size(); ++d)
      worst = std::fmax(worst, std::abs(static_cast<double>(running[d + 2] - a[d])));
    CHECK_MSG(worst < 1e-5, tier + " way back " + std::to_string(worst));
    CHECK(running[0] == 3.0f && running[1] == 3.0f);
    for (int32_t d = 0; d < dim; d += 7) {  // a basis vector spreads evenly
      std::fill(basis.begin(), basis.end(), 0.0f);
      basis[static_cast<size_t>(d)] = 1.0f;
      kernels.rotate_query(codec, basis.data(), blob.get());
      for (int32_t i = 0; i < dim; ++i) {
        CHECK(std::abs(std::abs(static_cast<double>(view.rotated[i])) * std::sqrt(dim) - 1) < 1e-5);
      }
    }
  }
}

// ---- the code's quality ----

struct Quality {
  double distortion = 0;       // E|x - x'|^2 / |x|^2 of what is stored
  double best_distortion = 0;  // the same with the best factor on x'
  double product = 0;          // mean of <x, x'> / |x|^2
};

// Of values, so without a mean.
Quality quality_of(int32_t dim, int32_t bits, int32_t pages, const auto& fill) {
  Quality sum;
  std::vector<float> k, v;
  for (int32_t p = 0; p < pages; ++p) {
    Page page({64, dim, 1, bits}, false);
    fill(page);
    page.encode(*kv_codec_kernels_ref());
    page.decode(k, v);
    for (int32_t j = 0; j < kPageTokens; ++j) {
      const float *x = page.value(j), *y = v.data() + static_cast<size_t>(j * dim);
      double product = 0, error = 0;
      for (int32_t d = 0; d < dim; ++d) {
        product += static_cast<double>(x[d]) * static_cast<double>(y[d]);
        error += std::pow(static_cast<double>(x[d]) - static_cast<double>(y[d]), 2);
      }
      const double norm = squared_norm(x, dim);
      sum.distortion += error / norm;
      sum.product += product / norm;
      sum.best_distortion += 1 - product * product / norm / squared_norm(y, dim);
    }
  }
  const double count = pages * kPageTokens;
  return {sum.distortion / count, sum.best_distortion / count, sum.product / count};
}

void test_distortion() {
  const auto random = [](Page& page) { page.fill(); };
  const struct {
    int32_t bits;
    double limit;
  } limits[] = {{4, 0.0062}, {3, 0.0262}, {2, 0.107}, {8, 0.00006}};
  for (const auto& [bits, limit] : limits) {
    const Quality q = quality_of(128, bits, 24, random);
    std::printf("  128 values, %d bits: distortion %.5f, with the best factor %.5f, <x, x'> / |x|^2 %.5f\n", bits,
                q.distortion, q.best_distortion, q.product);
    CHECK_MSG(q.best_distortion <= limit, std::to_string(q.best_distortion));
    // An unbiased scale costs a factor 1 / (1 - D): the price of products without shrinkage.
    CHECK_MSG(q.distortion <= limit / (1 - limit) + 1e-4, std::to_string(q.distortion));
    CHECK_MSG(std::abs(q.product - 1) < 3e-4, std::to_string(q.product));  // f16's half step is 2.4e-4 at most
  }
  for (const int32_t dim : kDims) {
    for (const auto& [bits, limit] : limits) {
      const Quality q = quality_of(dim, bits, 2, random);
      CHECK_MSG(q.best_distortion <= limit * 1.06, std::to_string(dim) + " " + std::to_string(q.best_distortion));
    }
  }
  // Inputs that a codec without rotation would fail on.
  const auto one_hot = [](Page& page) {
    for (int32_t j = 0; j < kPageTokens; ++j) page.value(j)[rng() % static_cast<uint32_t>(page.codec.v_dim)] = 7.0f;
  };
  const auto constant = [](Page& page) { std::fill(page.values.begin(), page.values.end(), 0.3f); };
  const auto two_spikes = [](Page& page) {
    page.fill(0.01f);
    for (int32_t j = 0; j < kPageTokens; ++j) page.value(j)[3] += 100.0f, page.value(j)[67] -= 90.0f;
  };
  for (const auto& [bits, limit] : limits) {
    if (bits == 8) continue;
    CHECK(quality_of(128, bits, 1, one_hot).best_distortion <= limit * 1.1);
    CHECK(quality_of(128, bits, 1, constant).best_distortion <= limit * 1.1);
    const double spikes = quality_of(128, bits, 1, two_spikes).best_distortion;
    CHECK_MSG(spikes <= limit * 1.1, "two spikes " + std::to_string(spikes));
  }
}

// Any magnitude that f16 holds works; zero stays zero.
void test_range() {
  for (const float spread : {1e-3f, 0.03f, 30.0f, 2e4f}) {
    const Quality q = quality_of(128, 4, 1, [&](Page& page) { page.fill(spread); });
    CHECK_MSG(q.distortion < 0.0075, std::to_string(static_cast<double>(spread)) + ": " + std::to_string(q.distortion));
  }
  Page page({64, 64, 4, 2}, false);
  page.encode(*kv_codec_kernels_ref());
  std::vector<float> k, v;
  page.decode(k, v);
  CHECK(std::all_of(k.begin(), k.end(), [](float x) { return x == 0.0f; }) &&
        std::all_of(v.begin(), v.end(), [](float x) { return x == 0.0f; }));
  std::fill(page.keys.begin(), page.keys.end(), 65504.0f);
  std::fill(page.values.begin(), page.values.end(), -65504.0f);
  page.encode(*kv_codec_kernels_ref());
  page.decode(k, v);
  CHECK(std::all_of(k.begin(), k.end(), [](float x) { return std::isfinite(x); }) &&
        std::all_of(v.begin(), v.end(), [](float x) { return std::isfinite(x); }));
}

// What is common to a page's keys costs nothing: errors do not grow with it. Page 0 keeps its first tokens exactly and
// out of the mean.
void test_centring_and_sinks() {
  std::vector<float> k, v;
  double errors[2] = {};
  for (const int variant : {0, 1}) {
    rng.seed(5);
    Page page({128, 128, 3, 3}, false);
    page.fill();
    for (int32_t j = 0; variant == 1 && j < kPageTokens; ++j) page.key(j)[5] += 60.0f, page.key(j)[77] -= 45.0f;
    page.encode(*kv_codec_kernels_ref());
    page.decode(k, v);
    for (size_t i = 0; i < k.size(); ++i) errors[variant] += std::pow(static_cast<double>(k[i] - page.keys[i]), 2);
  }
  CHECK_MSG(errors[1] < 1.02 * errors[0] + 0.5, std::to_string(errors[0]) + " " + std::to_string(errors[1]));

  Page page({128, 96, 4, 2}, true);
  page.fill();
  for (int32_t j = 0; j < kPageTokens; ++j) page.key(j)[9] += j < kSinkTokens ? -500.0f : 20.0f;
  page.encode(*kv_codec_kernels_ref());
  page.decode(k, v);
  bool exact_sinks = true;
  for (int32_t j = 0; j < kSinkTokens; ++j) {
    for (int32_t d = 0; d < 128; ++d) exact_sinks &= k[static_cast<size_t>(j * 128 + d)] == page.key(j)[d];
    for (int32_t d = 0; d < 96; ++d) exact_sinks &= v[static_cast<size_t>(j * 96 + d)] == page.value(j)[d];
  }
  CHECK(exact_sinks);
  double error = 0, norm = 0;
  for (int32_t j = kSinkTokens; j < kPageTokens; ++j) {
    for (int32_t d = 0; d < 128; ++d) {
      error += std::pow(static_cast<double>(k[static_cast<size_t>(j * 128 + d)] - page.key(j)[d]), 2);
    }
    norm += 128;
  }
  CHECK_MSG(error / norm < 0.0066, std::to_string(error / norm));
}

// Attention on codes is softmax over the decoded page, up to the rounding of queries and weights.
void test_accuracy(const KvCodecKernels& kernels, const std::string& tier) {
  const struct {
    KvCodec codec;
    double limit;  // of |o - exact| / |exact|, root mean square
  } cases[] = {{{128, 128, 4, 4}, 0.02}, {{64, 96, 3, 3}, 0.02},   {{192, 80, 2, 2}, 0.02},  {{80, 64, 4, 2}, 0.02},
               {{96, 256, 8, 8}, 3e-4},  {{256, 192, 8, 4}, 0.02}, {{512, 512, 4, 4}, 0.02}, {{512, 512, 8, 8}, 3e-4}};
  for (const auto& [codec, limit] : cases) {
    for (const bool is_first : {false, true}) {
      for (const float cap : {0.0f, 3.0f}) {
        Page page(codec, is_first);
        page.fill();
        for (int32_t j = 0; j < kPageTokens; ++j) page.key(j)[11] += 8.0f;
        page.encode(*kv_codec_kernels_ref());
        std::vector<float> k, v;
        page.decode(k, v);
        Queries queries(codec, 6, false, 1.5f);
        queries.rotate(kernels, codec);
        attend(kernels, page, cap, queries.list);
        double error = 0, norm = 0;
        for (size_t i = 0; i < queries.list.size(); ++i) {
          const auto expected = exact(codec, k, v, cap, queries.list[i]);
          auto& partial = queries.partial[i];
          kernels.unrotate(codec, partial.data());
          for (size_t d = 0; d < expected.size(); ++d) {
            error += std::pow(static_cast<double>(partial[d + 2] / partial[1]) - expected[d], 2);
            norm += expected[d] * expected[d];
          }
        }
        const double relative = std::sqrt(error / norm);
        CHECK_MSG(relative < limit, tier + " accuracy " + std::to_string(codec.head_dim) + " bits " +
                                        std::to_string(codec.k_bits) + ": " + std::to_string(relative));
      }
    }
  }
}

// One key far ahead of many: what lies below a rounding step is still summed, not lost.
void test_small_weights(const KvCodecKernels& kernels, const std::string& tier) {
  const KvCodec codec{64, 64, 8, 4};
  Page page(codec, false);
  for (int32_t j = 0; j < kPageTokens; ++j) {
    page.key(j)[0] = j == 70 ? 8.0f : 0.0f;
    for (int32_t d = 0; d < 64; ++d) page.value(j)[d] = j == 70 ? normal() : 1.0f;
  }
  page.encode(*kv_codec_kernels_ref());
  std::vector<float> k, v;
  page.decode(k, v);
  Queries queries(codec, 1, true);
  std::fill(queries.q[0].begin(), queries.q[0].end(), 0.0f);
  queries.q[0][0] = 6.3f;  // weights of e^-6.3 = 1 / 545 beside one of 1: half a rounding step
  queries.rotate(kernels, codec);
  attend(kernels, page, 0.0f, queries.list);
  auto& partial = queries.partial[0];
  kernels.unrotate(codec, partial.data());
  const auto expected = exact(codec, k, v, 0.0f, queries.list[0]);
  double bias = 0;
  for (size_t d = 0; d < 64; ++d) bias += static_cast<double>(partial[d + 2] / partial[1]) - expected[d];
  // 127 such values add up to 127 / 545 = 0.23; what is left of that as an error is a few steps of 1 / 254.
  CHECK_MSG(std::abs(bias) / 64 < 0.02, tier + " bias " + std::to_string(bias / 64));
}

// What a query gives depends on nothing but itself and the page.
void test_company(const KvCodecKernels& kernels, const std::string& tier) {
  for (const KvCodec codec : {KvCodec{64, 64, 4, 4}, {80, 80, 3, 2}, {128, 96, 8, 8}}) {
    Page page(codec, true);
    page.fill();
    page.encode(*kv_codec_kernels_ref());
    for (const int32_t n : {2, 7, 16, 37}) {
      Queries together(codec, n, false);
      together.rotate(kernels, codec);
      attend(kernels, page, 0.0f, together.list);
      for (size_t i = 0; i < together.list.size(); i += 1 + static_cast<size_t>(n) / 8) {
        const std::vector<float> before = together.partial[i];
        attend(kernels, page, 0.0f, {together.list[i]});
        CHECK_MSG(same(before, together.partial[i]), tier + " company of " + std::to_string(n));
      }
    }
  }
}

void test_same_bits(const KvCodecKernels& ref, const KvCodecKernels& kernels, const std::string& tier) {
  int variant = 0;
  for (const int32_t k_dim : kDims) {
    for (const int32_t bits : kBits) {
      ++variant;
      const KvCodec codec{k_dim, kDims[(variant * 5 + 1) % 7], bits, kBits[(variant * 2 + variant / 5) % 5]};
      const std::string what = tier + " head " + std::to_string(k_dim) + "/" + std::to_string(codec.v_dim) + " bits " +
                               std::to_string(bits) + "/" + std::to_string(codec.v_bits);
      const bool is_first = variant % 2 == 0;
      Page page(codec, is_first), copy(codec, is_first);
      page.fill(variant % 3 ? 1.0f : 30.0f);
      for (int32_t j = 0; j < kPageTokens; ++j) page.key(j)[j % k_dim] += 40.0f, page.key(j)[2] += 15.0f;
      for (int32_t d = 0; d < codec.v_dim; ++d) page.value(33)[d] = 0.0f, page.value(34)[d] = d == 4 ? 3.0f : 0.0f;
      copy.keys = page.keys, copy.values = page.values;
      page.encode(ref), copy.encode(kernels);
      CHECK_MSG(page.k_codes == copy.k_codes && page.v_codes == copy.v_codes && page.sinks == copy.sinks,
                what + " encode");
      for (const int32_t n : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 17}) {
        if (n > 8 && k_dim > 128) continue;
        Queries queries(codec, n, n % 2 == 0, n == 5 ? 1e30f : 1.0f);
        if (n == 4) queries.q[2][1] = kNan, queries.q[3][7] = kInf;
        if (n == 3) std::fill(queries.q[1].begin(), queries.q[1].end(), 0.0f);
        queries.rotate(kernels, codec);
        std::vector<Bytes> blobs;
        for (size_t i = 0; i < queries.q.size(); ++i) {
          blobs.emplace_back(rotated_query_bytes(codec));
          std::memcpy(blobs.back().get(), queries.rotated[i].get(), blobs.back().size);
        }
        queries.rotate(ref, codec);
        bool ok = true;
        for (size_t i = 0; i < blobs.size(); ++i) ok &= n == 4 || n == 5 || blobs[i] == queries.rotated[i];
        CHECK_MSG(ok, what + " rotate_query");
        const float cap = n % 3 == 0 ? 20.0f : 0.0f;
        attend(ref, page, cap, queries.list);
        const auto expected = queries.partial;
        for (auto& partial : queries.partial) partial.assign(partial.size(), -7.0f);
        attend(kernels, page, cap, queries.list);
        for (size_t i = 0; i < expected.size(); ++i) ok &= same(expected[i], queries.partial[i]);
        CHECK_MSG(ok, what + " n " + std::to_string(n));
        std::vector<float> a = expected[0], b = expected[0];
        ref.unrotate(codec, a.data()), kernels.unrotate(codec, b.data());
        CHECK_MSG(same(a, b), what + " unrotate");
      }
    }
  }
}

// Tiers look the likely border up and compare once where the reference compares with all: the same codes for tails,
// ties, equal magnitudes, sparse and tiny values too.
void test_same_codes(const KvCodecKernels& ref, const KvCodecKernels& kernels, const std::string& tier) {
  const std::pair<const char*, float (*)()> kinds[] = {
      {"tails", [] { return normal() * std::exp(2.5f * normal()); }},
      {"whole numbers", [] { return std::round(2.0f * normal()); }},
      {"signs", [] { return std::copysign(0.7f, normal()); }},
      {"sparse", [] { return rng() % 9 ? 0.0f : normal(); }},
      {"tiny", [] { return normal(3e-7f); }},
  };
  for (const int32_t bits : {2, 3, 4}) {
    for (const int32_t dim : {64, 80, 192}) {
      for (const auto& [name, draw] : kinds) {
        Page page({dim, dim, bits, bits}, false), copy(page.codec, false);
        for (float& x : page.keys) x = std::clamp(draw(), -6e4f, 6e4f);
        for (float& x : page.values) x = std::clamp(draw(), -6e4f, 6e4f);
        copy.keys = page.keys, copy.values = page.values;
        page.encode(ref), copy.encode(kernels);
        CHECK_MSG(page.k_codes == copy.k_codes && page.v_codes == copy.v_codes,
                  tier + " " + name + ", head " + std::to_string(dim) + ", bits " + std::to_string(bits));
      }
    }
  }
}

}  // namespace

int main() {
  test_levels();
  test_sizes();
  test_places();
  test_packing();
  test_distortion();
  test_range();
  test_centring_and_sinks();
  const KvCodecKernels& ref = *kv_codec_kernels_ref();
  test::for_each_tier([&ref](const KernelTable& table, bool is_reference) {
    const KvCodecKernels& kernels = *table.kv_codec;
    test_rotation(kernels, table.tier);
    test_accuracy(kernels, table.tier);
    test_small_weights(kernels, table.tier);
    test_company(kernels, table.tier);
    if (is_reference) return;
    test_same_bits(ref, kernels, table.tier);
    test_same_codes(ref, kernels, table.tier);
  });
  return test::finish();
}
