// Kernels of operations with a record: the reference against double precision, the other tiers against the reference
// bit for bit, and rows cut anywhere against rows at once.
#include <algorithm>
#include <cfloat>
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
#include "kamado/scan.h"
#include "tiers.h"

namespace {

using kamado::DeltaBlock;
using kamado::kScanColumns;
using kamado::ScanKernels;

constexpr double kEps = 0x1p-24;  // half a unit in the last place of 1

std::mt19937 rng(1);

std::vector<float> random_floats(size_t n, float spread = 1.0f) {
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> x(n);
  for (float& v : x) v = normal(rng);
  return x;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// S, as records have it: aligned.
class State {
 public:
  explicit State(const std::vector<float>& values)
      : size_(values.size()), data_(new (std::align_val_t{64}) float[size_]) {
    std::memcpy(data_.get(), values.data(), size_ * sizeof(float));
  }
  float* get() const { return data_.get(); }
  std::vector<float> values() const { return {data_.get(), data_.get() + size_}; }

 private:
  struct Delete {
    void operator()(float* pointer) const { ::operator delete[](pointer, std::align_val_t{64}); }
  };
  size_t size_;
  std::unique_ptr<float[], Delete> data_;
};

// Rows of a head of k_dim values, and one block of its columns. Keys have length 1, as they have behind their norm.
struct Case {
  Case(int32_t given_rows, int32_t given_dim, int32_t given_columns, bool has_channels)
      : rows(given_rows), k_dim(given_dim), columns(given_columns), by_channel(has_channels) {
    const auto n = static_cast<size_t>(rows), dim = static_cast<size_t>(k_dim);
    k = random_floats(n * (dim + 3));
    for (size_t i = 0; i < n; ++i) {
      double square = 0;
      for (size_t j = 0; j < dim; ++j) square += std::pow(static_cast<double>(k[i * (dim + 3) + j]), 2);
      for (size_t j = 0; j < dim; ++j) k[i * (dim + 3) + j] /= static_cast<float>(std::sqrt(square));
    }
    q = random_floats(n * (dim + 3));
    v = random_floats(n * static_cast<size_t>(columns + 5));
    std::uniform_real_distribution<float> unit(0.0f, 1.0f);
    kept.resize(n * (by_channel ? dim : 1));
    for (float& e : kept) e = 1.0f - 0.3f * unit(rng);
    beta.resize(n);
    for (float& b : beta) b = unit(rng);
    for (size_t i = 0; by_channel && i < kept.size(); ++i) reads.push_back(k[i / dim * (dim + 3) + i % dim] * kept[i]);
    s = random_floats(dim * static_cast<size_t>(columns));
  }

  DeltaBlock block(int32_t begin, int32_t end, std::vector<float>& out) const {
    const auto at = static_cast<size_t>(begin), dim = static_cast<size_t>(k_dim);
    const size_t factors = by_channel ? dim : 1, width = static_cast<size_t>(columns);
    return {end - begin,
            k_dim,
            columns,
            q.data() + at * (dim + 3),
            k.data() + at * (dim + 3),
            v.data() + at * (width + 5),
            out.data() + at * (width + 1),
            dim + 3,
            dim + 3,
            width + 5,
            width + 1,
            kept.data() + at * factors,
            by_channel ? reads.data() + at * factors : nullptr,
            beta.data() + at,
            by_channel,
            false,
            0.25f};
  }
  std::vector<float> room() const { return std::vector<float>(static_cast<size_t>(rows * (columns + 1))); }

  int32_t rows, k_dim, columns;
  bool by_channel;
  std::vector<float> q, k, v, kept, reads, beta, s;
};

// S and what was read, after all rows at once.
struct Done {
  Done(const ScanKernels& kernels, const Case& c) : out(c.room()) {
    const State before(c.s), after(random_floats(c.s.size()));
    kernels.delta(c.block(0, c.rows, out), before.get(), after.get());
    CHECK(same(before.values(), c.s));
    s = after.values();
  }
  bool operator==(const Done& other) const { return same(out, other.out) && same(s, other.s); }

  std::vector<float> out, s;
};

// A row's steps are two sums of k_dim / 2 products in a chain and six more roundings, of numbers no larger than `size`.
// Of errors in S a row leaves 0.85 on average, so that those of all rows before count less than 7 times.
void test_delta_exactly(const ScanKernels& kernels) {
  for (const bool has_channels : {false, true}) {
    for (const int32_t rows : {1, 40, 300}) {
      const Case c(rows, 128, 9, has_channels);
      const Done done(kernels, c);
      std::vector<double> s(c.s.begin(), c.s.end());
      double worst = 0, size = 0;
      const auto dim = static_cast<size_t>(c.k_dim), width = static_cast<size_t>(c.columns);
      for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
        const auto kept = [&](size_t i) { return static_cast<double>(c.kept[has_channels ? row * dim + i : row]); };
        const auto at = [&](const std::vector<float>& x, size_t i) {
          return static_cast<double>(x[row * (dim + 3) + i]);
        };
        for (size_t column = 0; column < width; ++column) {
          double m = 0, out = 0, read = 0;
          for (size_t i = 0; i < dim; ++i) m += (s[i * width + column] *= kept(i)) * at(c.k, i);
          const double v = static_cast<double>(c.v[row * (width + 5) + column]);
          const double d = static_cast<double>(c.beta[row]) * (v - m);
          for (size_t i = 0; i < dim; ++i) {
            out += (s[i * width + column] += at(c.k, i) * d) * at(c.q, i);
            read += std::abs(s[i * width + column] * at(c.q, i));
          }
          worst = std::fmax(worst, std::abs(out / 4 - static_cast<double>(done.out[row * (width + 1) + column])));
          size = std::fmax(size, read / 4);
        }
      }
      const double bound = (2 * 64 + 6) * kEps * size * (rows == 1 ? 1 : 7);
      std::printf("delta%s, %d rows: worst error %.1e, bound %.1e\n", has_channels ? " by channel" : "", rows, worst,
                  bound);
      CHECK_MSG(worst <= bound, std::to_string(worst / bound));
    }
  }
}

// The order that scan.h states, on numbers whose sums are exact in it and are not in another one.
void test_delta_order(const ScanKernels& kernels) {
  const float big = 0x1p24f;
  // Even rows of S: big, 1, -big; odd ones: 1, 1. In two chains 1 + (-big + (1 + big)) is 0 + 2.
  const std::vector<float> s = {big, 1, 1, 1, -big};
  const State before(s), after(s);
  const float ones[5] = {1, 1, 1, 1, 1}, none[5] = {}, kept = 0.5f, beta = 0.5f, v = 8;
  float out;
  DeltaBlock block{1, 5, 1, ones, none, &v, &out, 0, 0, 0, 0, &kept, nullptr, &beta, false, false, 2};
  kernels.delta(block, before.get(), after.get());  // S = S / 2; read: 2 (1 + 0)
  CHECK(out == 2.0f && after.get()[0] == big / 2 && after.get()[3] == 0.5f);
  block.k = ones;
  kernels.delta(block, before.get(), after.get());  // m = 0 + 2, d = (8 - 2 / 2) / 2
  CHECK(after.get()[1] == 0.5f + 3.5f && after.get()[0] == std::fma(1.0f, 3.5f, big / 2));
}

void test_conv(const ScanKernels& kernels) {
  for (const int32_t taps : {2, 3, 4, 64}) {
    for (const int32_t n : {1, 15, 16, 17, 40, 131}) {
      const auto count = static_cast<size_t>(taps), width = static_cast<size_t>(n);
      const std::vector<float> x = random_floats(count * (width + 3)), w = random_floats(count * (width + 1));
      const std::vector<float> bias = random_floats(width);
      std::vector<const float*> rows;
      for (size_t j = 0; j < count; ++j) rows.push_back(x.data() + j * (width + 3));
      for (const bool has_bias : {false, true}) {
        std::vector<float> out(width + 1, -7.0f);
        kernels.conv(rows.data(), w.data(), width + 1, taps, has_bias ? bias.data() : nullptr, n, out.data());
        bool is_exact = out.back() == -7.0f;
        for (size_t i = 0; i < width; ++i) {
          float sum = 0;
          for (size_t j = 0; j < count; ++j) sum = std::fma(w[j * (width + 1) + i], rows[j][i], sum);
          is_exact &= out[i] == (has_bias ? sum + bias[i] : sum);
        }
        CHECK_MSG(is_exact, "conv of " + std::to_string(taps) + " taps, " + std::to_string(n) + " columns");
      }
    }
  }
}

void test_softplus() {
  double worst = 0;
  for (int i = -100000; i <= 30000; ++i) {
    const float x = static_cast<float>(i) * 1e-3f;
    const long double exact = std::log1p(std::exp(static_cast<long double>(x)));
    const double error = static_cast<double>(std::abs(static_cast<long double>(kamado::softplus(x)) - exact) /
                                             std::max(exact, static_cast<long double>(FLT_MIN)));
    worst = std::fmax(worst, error);
  }
  std::printf("softplus: worst relative error %.3f half-units\n", worst / kEps);
  CHECK(worst <= 1.01 * kEps);  // rounded once; above 20 what is left out is less than that
  constexpr float kInf = std::numeric_limits<float>::infinity();
  CHECK(kamado::softplus(-kInf) == 0.0f && kamado::softplus(kInf) == kInf);
  CHECK(std::isnan(kamado::softplus(std::numeric_limits<float>::quiet_NaN())));
}

void test_same_bits(const ScanKernels& ref, const ScanKernels& kernels, const std::string& tier) {
  for (const int32_t k_dim : {1, 2, 3, 16, 31, 128}) {
    for (int32_t columns = 1; columns <= kScanColumns; columns += columns > 14 && columns < 31 ? 5 : 1) {
      for (const bool has_channels : {false, true}) {
        const Case c(7, k_dim, columns, has_channels);
        const std::string what =
            tier + ", " + std::to_string(k_dim) + " x " + std::to_string(columns) + (has_channels ? " by channel" : "");
        const Done wanted(ref, c);
        CHECK_MSG(wanted == Done(kernels, c), what);
        // In place, and rows cut anywhere: one row may leave S past the caches.
        std::vector<float> out = c.room();
        const State s(c.s), other(random_floats(c.s.size()));
        const float* from = s.get();
        for (int32_t begin = 0, end; begin < c.rows; begin = end) {
          end = std::min(c.rows, begin + 1 + static_cast<int32_t>(rng() % 3));
          float* to = rng() % 2 == 0 ? s.get() : other.get();
          DeltaBlock block = c.block(begin, end, out);
          block.streams = true;
          kernels.delta(block, from, to);
          from = to;
        }
        CHECK_MSG(same(out, wanted.out) && std::memcmp(from, wanted.s.data(), wanted.s.size() * sizeof(float)) == 0,
                  what + " in pieces");
      }
    }
  }
  for (int32_t n = 1; n <= 67; ++n) {
    const auto steps = random_floats(static_cast<size_t>(n), 30.0f);
    std::vector<float> wanted(steps.size()), got(steps);
    ref.decay(steps.data(), -0.7f, n, wanted.data());
    kernels.decay(got.data(), -0.7f, n, got.data());
    CHECK_MSG(same(wanted, got), tier + ", decay " + std::to_string(n));
  }
}

}  // namespace

int main() {
  test_softplus();
  const auto* ref = kamado::table_by_name("scalar");
  kamado::test::for_each_tier([ref](const kamado::KernelTable& table, bool is_reference) {
    test_conv(*table.scan);
    test_delta_order(*table.scan);
    if (is_reference) test_delta_exactly(*table.scan);
    if (!is_reference) test_same_bits(*ref->scan, *table.scan, table.tier);
  });
  return kamado::test::finish();
}
