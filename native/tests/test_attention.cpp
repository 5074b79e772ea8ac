// Attention over pages: the reference against a naive softmax in double, the other tiers against the reference bit for
// bit, and what the rest relies on: company, masked keys and rubbish in masked places change nothing.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "tiers.h"

namespace {

using kamado::AttendQuery;
using kamado::AttentionKernels;
using kamado::kPageTokens;
using kamado::KvType;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

std::mt19937 rng(7);

float normal(float spread) {
  return std::normal_distribution<float>(0.0f, spread)(rng);
}

uint32_t bits(float x) {
  uint32_t b;
  std::memcpy(&b, &x, sizeof b);
  return b;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (bits(a[i]) != bits(b[i]) && !(std::isnan(a[i]) && std::isnan(b[i]))) {
      std::printf("  element %zu: %a and %a\n", i, static_cast<double>(a[i]), static_cast<double>(b[i]));
      return false;
    }
  }
  return a.size() == b.size();
}

// One page block whose end is the end of its allocation, so that a sanitizer build sees any read past it.
struct Page {
  int32_t head_dim, v_dim;
  KvType type;
  size_t element;
  std::unique_ptr<uint8_t[]> k, v;

  Page(KvType kv, int32_t k_width, int32_t v_width)
      : head_dim(k_width),
        v_dim(v_width),
        type(kv),
        element(kv == KvType::kF16 ? 2 : 4),
        k(new uint8_t[k_bytes()]()),
        v(new uint8_t[v_bytes()]()) {}

  size_t k_bytes() const { return static_cast<size_t>(head_dim) * kPageTokens * element; }
  size_t v_bytes() const { return static_cast<size_t>(v_dim) * kPageTokens * element; }

  double at(const uint8_t* base, size_t index) const {
    if (type == KvType::kF32) {
      float x;
      std::memcpy(&x, base + 4 * index, 4);
      return static_cast<double>(x);
    }
    uint16_t h;
    std::memcpy(&h, base + 2 * index, 2);
    float x;
    kamado::table_by_name("scalar")->vector->from_f16(&h, 1, &x);
    return static_cast<double>(x);
  }
  double key(int32_t j, int32_t d) const {
    return at(k.get(), static_cast<size_t>(d) * kPageTokens + static_cast<size_t>(j));
  }
  double value(int32_t j, int32_t d) const {
    return at(v.get(), static_cast<size_t>(j) * static_cast<size_t>(v_dim) + static_cast<size_t>(d));
  }

  void fill(const AttentionKernels& kernels, float spread) {
    std::vector<float> a(static_cast<size_t>(head_dim)), b(static_cast<size_t>(v_dim));
    for (int32_t slot = 0; slot < kPageTokens; ++slot) {
      for (float& x : a) x = normal(spread);
      for (float& x : b) x = normal(spread);
      kernels.store(type, k.get(), v.get(), head_dim, v_dim, slot, a.data(), b.data());
    }
  }
};

struct Queries {
  std::vector<std::vector<float>> q, partial;
  std::vector<AttendQuery> list;

  Queries(const Page& page, int32_t n, bool whole, float spread = 1.0f) {
    for (int32_t i = 0; i < n; ++i) {
      q.emplace_back(static_cast<size_t>(page.head_dim));
      for (float& x : q.back()) x = normal(spread);
      partial.emplace_back(static_cast<size_t>(page.v_dim + 2), kNan);
    }
    for (size_t i = 0; i < q.size(); ++i) {
      const int32_t lo = whole ? 0 : static_cast<int32_t>(rng() % kPageTokens);
      const int32_t hi =
          whole ? kPageTokens : lo + 1 + static_cast<int32_t>(rng() % static_cast<uint32_t>(kPageTokens - lo));
      list.push_back({q[i].data(), lo, hi, partial[i].data()});
    }
  }
};

void attend(const AttentionKernels& kernels, const Page& page, float cap, const std::vector<AttendQuery>& queries) {
  const auto n = static_cast<int32_t>(queries.size());
  const size_t bytes = kamado::attention_scratch_bytes(n, page.head_dim, page.v_dim);
  const std::unique_ptr<uint8_t[]> raw(new uint8_t[bytes + 64]);
  uint8_t* scratch = raw.get() + (64 - reinterpret_cast<uintptr_t>(raw.get()) % 64);
  std::memset(scratch, 0xff, bytes);  // NaNs: what was left by others must not matter
  const float scale = 1.0f / std::sqrt(static_cast<float>(page.head_dim));
  if (n % 2) {
    kernels.attend_page(page.type, page.k.get(), page.v.get(), page.head_dim, page.v_dim, scale, cap, queries.data(), n,
                        scratch);
  } else {  // a hint changes nothing, wherever it points
    const void* next = reinterpret_cast<const void*>(uintptr_t{64});
    kernels.attend_page_then(page.type, page.k.get(), page.v.get(), page.head_dim, page.v_dim, scale, cap,
                             queries.data(), n, scratch, next);
  }
}

// {l, o / l} of one query in double: softmax(q K / sqrt d) V over its visible keys.
std::vector<double> exact(const Page& page, float cap, const AttendQuery& query) {
  std::vector<double> weight, out(static_cast<size_t>(page.v_dim));
  double top = -1e300, sum = 0;
  for (int32_t j = query.lo; j < query.hi; ++j) {
    double s = 0;
    for (int32_t d = 0; d < page.head_dim; ++d) s += static_cast<double>(query.q[d]) * page.key(j, d);
    s /= std::sqrt(static_cast<double>(page.head_dim));
    if (cap > 0) s = static_cast<double>(cap) * std::tanh(s / static_cast<double>(cap));
    weight.push_back(s);
    top = std::fmax(top, s);
  }
  for (double& w : weight) sum += w = std::exp(w - top);
  for (int32_t j = query.lo; j < query.hi; ++j) {
    for (int32_t d = 0; d < page.v_dim; ++d) {
      out[static_cast<size_t>(d)] += weight[static_cast<size_t>(j - query.lo)] / sum * page.value(j, d);
    }
  }
  return out;
}

void test_accuracy(const AttentionKernels& kernels) {
  for (const KvType type : {KvType::kF16, KvType::kF32}) {
    for (const float cap : {0.0f, 5.0f}) {
      Page page(type, 64, 48);
      page.fill(kernels, 1.0f);
      Queries queries(page, 5, false);
      attend(kernels, page, cap, queries.list);
      for (const AttendQuery& query : queries.list) {
        const auto expected = exact(page, cap, query);
        std::vector<float> out(48);
        kernels.finish(query.partial, 48, out.data());
        // Scores: a chain of 64 roundings of partial sums below |q||k| ~ 100, times 1/8: at most 64 * 12.5 * 2^-24 =
        // 5e-5 (their random walk: 6e-6). A weight is off by that factor, an output (a mean of values below 5) by 5
        // times it.
        double worst = 0;
        for (size_t d = 0; d < 48; ++d) worst = std::fmax(worst, std::abs(static_cast<double>(out[d]) - expected[d]));
        CHECK_MSG(worst < 5 * 5e-5, ("accuracy " + std::to_string(worst)).c_str());
      }
    }
  }
}

void test_by_hand(const AttentionKernels& kernels) {
  // Two visible keys with equal scores: weights 1 and 1, the mean of their values; the third is masked.
  Page page(KvType::kF16, 2, 3);
  const float k0[2] = {1, 0}, k2[2] = {9, 9}, v0[3] = {1, 2, 3}, v1[3] = {3, 2, -3}, v2[3] = {100, 100, 100};
  kernels.store(page.type, page.k.get(), page.v.get(), 2, 3, 10, k0, v0);
  kernels.store(page.type, page.k.get(), page.v.get(), 2, 3, 11, k0, v1);
  kernels.store(page.type, page.k.get(), page.v.get(), 2, 3, 12, k2, v2);
  const float q[2] = {2, 1};
  std::vector<float> partial(5, kNan), out(3);
  attend(kernels, page, 0.0f, {{q, 10, 12, partial.data()}});
  CHECK(partial[1] == 2.0f && partial[2] == 4.0f && partial[3] == 4.0f && partial[4] == 0.0f);
  kernels.finish(partial.data(), 3, out.data());
  CHECK(out[0] == 2.0f && out[1] == 2.0f && out[2] == 0.0f);
}

void test_store(const AttentionKernels& kernels) {
  for (const KvType type : {KvType::kF16, KvType::kF32}) {
    Page page(type, 37, 19);
    std::vector<float> k(37, 1.5f), v(19, -2.5f);
    k[3] = kNan, k[4] = kInf, k[36] = -kInf, v[18] = kNan, v[0] = kInf;
    kernels.store(type, page.k.get(), page.v.get(), 37, 19, 127, k.data(), v.data());
    bool finite = true;
    for (int32_t d = 0; d < 37; ++d) finite &= std::isfinite(page.key(127, d));
    for (int32_t d = 0; d < 19; ++d) finite &= std::isfinite(page.value(127, d));
    CHECK(finite);
    CHECK(page.key(127, 3) == 0.0 && page.value(127, 18) == 0.0 && page.key(127, 5) == 1.5 &&
          page.value(127, 17) == -2.5);
    CHECK(page.key(127, 4) ==
          (type == KvType::kF16 ? 65504.0 : static_cast<double>(std::numeric_limits<float>::max())));
    CHECK(page.key(126, 5) == 0.0 && page.value(126, 17) == 0.0);
  }
}

// Pages in ascending order give what one softmax over all keys gives, and masked pages' absence does not matter.
void test_merge(const AttentionKernels& kernels) {
  Page first(KvType::kF32, 16, 8), second(KvType::kF32, 16, 8);
  first.fill(kernels, 2.0f), second.fill(kernels, 2.0f);
  Queries queries(first, 1, true, 2.0f);
  std::vector<float> running(10, 0.0f), out(8);
  running[0] = -kInf;
  attend(kernels, first, 0.0f, queries.list);
  const std::vector<float> alone = queries.partial[0];
  kernels.merge(running.data(), alone.data(), 8);
  CHECK(same(running, alone));
  AttendQuery query = queries.list[0];
  attend(kernels, second, 0.0f, {query});
  const std::vector<float> next = queries.partial[0];
  kernels.merge(running.data(), next.data(), 8);
  kernels.finish(running.data(), 8, out.data());
  const auto a = exact(first, 0.0f, query), b = exact(second, 0.0f, query);
  const double wa = static_cast<double>(alone[1]) * std::exp(static_cast<double>(alone[0] - running[0]));
  const double wb = static_cast<double>(next[1]) * std::exp(static_cast<double>(next[0] - running[0]));
  double worst = 0;
  for (size_t d = 0; d < 8; ++d)
    worst = std::fmax(worst, std::abs(static_cast<double>(out[d]) - (wa * a[d] + wb * b[d]) / (wa + wb)));
  CHECK_MSG(worst < 1e-4, std::to_string(worst).c_str());
}

// What a query gives does not depend on its company, on masked keys' contents, or on how it is masked elsewhere.
void test_company(const AttentionKernels& kernels, const std::string& tier) {
  for (const KvType type : {KvType::kF16, KvType::kF32}) {
    for (const int32_t width : {64, 80}) {
      Page page(type, width, width);
      page.fill(kernels, 1.0f);
      for (const int32_t n : {2, 7, 13, 32, 75}) {
        Queries together(page, n, false);
        attend(kernels, page, 0.0f, together.list);
        for (size_t i = 0; i < together.list.size(); i += 1 + static_cast<size_t>(n) / 8) {
          const std::vector<float> before = together.partial[i];
          attend(kernels, page, 0.0f, {together.list[i]});
          CHECK_MSG(same(before, together.partial[i]), (tier + " company of " + std::to_string(n)).c_str());
        }
      }
    }
  }
  // p = 2^-126 of the last visible key times v = -2^-30 rounds to -0; a masked neighbour must not turn it into +0.
  Page page(KvType::kF32, 1, 1);
  const float big = 1.0f, none = -0x1.5d589ep+6f, tiny = -0x1p-30f, one = 1.0f, zero = 0.0f;
  kernels.store(page.type, page.k.get(), page.v.get(), 1, 1, 1, &none, &tiny);
  kernels.store(page.type, page.k.get(), page.v.get(), 1, 1, 0, &zero, &zero);
  kernels.store(page.type, page.k.get(), page.v.get(), 1, 1, 2, &zero, &one);
  std::vector<float> alone(3), wide(3), other(3);
  attend(kernels, page, 0.0f, {{&big, 0, 2, alone.data()}});
  attend(kernels, page, 0.0f, {{&big, 0, 2, wide.data()}, {&big, 0, 3, other.data()}});
  CHECK(same(alone, wide) && bits(alone[2]) == 0);
}

void test_same_bits(const AttentionKernels& ref, const AttentionKernels& kernels, const std::string& tier) {
  const struct {
    int32_t k, v;
  } shapes[] = {{64, 64}, {80, 80}, {96, 96},  {128, 128}, {192, 128}, {256, 256},
                {1, 1},   {3, 5},   {36, 100}, {20, 12},   {33, 17},   {8, 31}};
  for (const KvType type : {KvType::kF16, KvType::kF32}) {
    for (const auto& shape : shapes) {
      Page page(type, shape.k, shape.v), copy(type, shape.k, shape.v);
      std::vector<float> k(static_cast<size_t>(shape.k)), v(static_cast<size_t>(shape.v));
      for (int32_t slot = 0; slot < kPageTokens; ++slot) {
        for (float& x : k) x = normal(1.0f);
        for (float& x : v) x = normal(1.0f);
        if (slot % 29 == 5) k[rng() % k.size()] = kInf, v[rng() % v.size()] = -kInf, v[rng() % v.size()] = kNan;
        ref.store(type, page.k.get(), page.v.get(), shape.k, shape.v, slot, k.data(), v.data());
        kernels.store(type, copy.k.get(), copy.v.get(), shape.k, shape.v, slot, k.data(), v.data());
      }
      CHECK(std::memcmp(page.k.get(), copy.k.get(), page.k_bytes()) == 0);
      CHECK(std::memcmp(page.v.get(), copy.v.get(), page.v_bytes()) == 0);
      const std::string what = tier + " head " + std::to_string(shape.k) + "/" + std::to_string(shape.v);
      for (const int32_t n : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 17, 33}) {
        if (n > 8 && shape.k > 128) continue;
        const float cap = n % 3 == 0 ? 20.0f : 0.0f;
        Queries queries(page, n, n % 2 == 0, n == 5 ? 1e30f : 1.0f);
        if (n == 4) queries.q[2][0] = kNan;
        attend(ref, page, cap, queries.list);
        const auto expected = queries.partial;
        for (auto& partial : queries.partial) partial.assign(partial.size(), kNan);
        attend(kernels, page, cap, queries.list);
        bool ok = true;
        for (size_t i = 0; i < expected.size(); ++i) ok &= same(expected[i], queries.partial[i]);
        CHECK_MSG(ok, (what + " n " + std::to_string(n)).c_str());
        std::vector<float> a = expected[0], b = expected[0], out_a(v.size()), out_b(v.size());
        ref.merge(a.data(), expected.back().data(), shape.v), kernels.merge(b.data(), expected.back().data(), shape.v);
        CHECK_MSG(same(a, b), (what + " merge").c_str());
        ref.finish(a.data(), shape.v, out_a.data()), kernels.finish(a.data(), shape.v, out_b.data());
        CHECK_MSG(same(out_a, out_b), (what + " finish").c_str());
      }
    }
  }
}

}  // namespace

int main() {
  const auto& ref = *kamado::table_by_name("scalar")->attention;
  kamado::test::for_each_tier([&ref](const kamado::KernelTable& table, bool is_reference) {
    test_accuracy(*table.attention);
    test_by_hand(*table.attention);
    test_store(*table.attention);
    test_merge(*table.attention);
    test_company(*table.attention, table.tier);
    if (!is_reference) test_same_bits(ref, *table.attention, table.tier);
  });
  return kamado::test::finish();
}
