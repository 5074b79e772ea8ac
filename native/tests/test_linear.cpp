// Every tier against the scalar reference, bit for bit, and the reference against plain double arithmetic.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "kamado/layout.h"
#include "kamado/linear.h"
#include "tiers.h"

using namespace kamado;

namespace {

struct Tier {
  const char* name;
  const LinearKernels* kernels;
};

// splitmix64: the tests must not depend on a library's random numbers.
struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  float uniform() { return static_cast<float>(static_cast<double>(next() >> 11) * 0x1p-52 - 1.0); }  // [-1, 1)
};

struct Free {
  void operator()(void* p) const { std::free(p); }
};
// 64-byte aligned, `size` bytes exactly, so that a sanitizer sees an overrun.
std::unique_ptr<uint8_t, Free> aligned(size_t size) {
  return std::unique_ptr<uint8_t, Free>(static_cast<uint8_t*>(std::aligned_alloc(64, (size + 63) / 64 * 64)));
}

enum class Fill { kRandom, kLowest, kHighest, kGarbage };

uint16_t small_f16(Random& random) {  // +-2^-7 ... 2^-4
  const uint64_t r = random.next();
  return static_cast<uint16_t>((r & 0x83ffu) | ((8u + (r >> 20) % 4u) << 10));
}

// Bytes of `rows` rows: random codes with small finite scales, or all codes and integer scales at an end of their
// range, or anything at all.
std::vector<uint8_t> make_weights(Layout layout, int rows, int cols, Fill fill, Random& random) {
  const LayoutInfo& info = *layout_info(layout);
  std::vector<uint8_t> data(static_cast<size_t>(rows) * row_bytes(layout, cols));
  for (uint8_t& byte : data) {
    byte = fill == Fill::kLowest ? 0 : fill == Fill::kHighest ? 0xff : static_cast<uint8_t>(random.next() >> 56);
  }
  if (fill == Fill::kGarbage) return data;
  for (size_t at = 0; at < data.size(); at += static_cast<size_t>(info.block_bytes)) {
    uint8_t* block = data.data() + at;
    const auto put = [&](int offset) {
      const uint16_t h = small_f16(random);
      std::memcpy(block + offset, &h, 2);
    };
    if (info.fields.d_bytes == 1) {
      block[info.fields.d] = static_cast<uint8_t>(120 + random.next() % 8);
    } else if (info.fields.d >= 0) {
      put(info.fields.d);
    } else {  // F32 and BF16, its upper half
      const float v = random.uniform();
      std::memcpy(block, reinterpret_cast<const uint8_t*>(&v) + 4 - info.block_bytes,
                  static_cast<size_t>(info.block_bytes));
    }
    if (info.has_min()) put(info.fields.dmin);
    // The largest products of Q6_K need its scales at -128 and its codes at -32.
    if (layout == Layout::Q6_K && fill == Fill::kLowest) std::memset(block + 192, 0x80, 16);
    if (layout == Layout::Q8_0 && fill == Fill::kLowest) std::memset(block + 2, 0x80, 32);
  }
  return data;
}

std::vector<float> make_activations(int n, int cols, Fill fill, Random& random) {
  std::vector<float> x(static_cast<size_t>(n) * static_cast<size_t>(cols));
  for (size_t i = 0; i < x.size(); ++i) {
    const float v = random.uniform();
    x[i] = fill == Fill::kRandom || fill == Fill::kGarbage ? v * (i % 97 == 0 ? 20.0f : 1.0f)
           : i / 64 % 3 == 0                               ? -3.0f
                                                           : 3.0f;
  }
  return x;
}

struct Product {
  Layout layout;
  int rows, cols, n;
  const std::vector<uint8_t>* weights;
  const std::vector<float>* x;
};

// Packs, quantises and multiplies with one tier; tiles in two calls to cover begin and end.
std::vector<float> run(const LinearKernels& kernels, const Product& p) {
  const ActKind kind = act_kind(p.layout);
  PackedMatrix w{p.layout, p.rows, p.cols, nullptr, packed_tile_bytes(p.layout, p.cols)};
  const auto packed = aligned(w.tile_bytes * static_cast<size_t>(w.num_tiles()));
  w.data = packed.get();
  const size_t stride = row_bytes(p.layout, p.cols);
  for (int t = 0; t < w.num_tiles(); ++t) {
    const int n_rows = p.rows - t * kTileRows < kTileRows ? p.rows - t * kTileRows : kTileRows;
    std::memset(packed.get() + static_cast<size_t>(t) * w.tile_bytes, 0xA5, w.tile_bytes);
    kernels.pack_tile(p.layout, p.weights->data() + static_cast<size_t>(t) * kTileRows * stride, stride, n_rows, p.cols,
                      packed.get() + static_cast<size_t>(t) * w.tile_bytes);
  }
  std::vector<std::unique_ptr<uint8_t, Free>> acts;
  std::vector<const uint8_t*> act_rows;
  std::vector<float> out(static_cast<size_t>(p.n) * static_cast<size_t>(p.rows) + 1, -7.0f);
  std::vector<float*> out_rows;
  for (int i = 0; i < p.n; ++i) {
    acts.push_back(aligned(act_bytes(kind, p.cols)));
    kernels.quantize(kind, p.x->data() + static_cast<size_t>(i) * static_cast<size_t>(p.cols), p.cols,
                     acts.back().get());
    act_rows.push_back(acts.back().get());
    out_rows.push_back(out.data() + static_cast<size_t>(i) * static_cast<size_t>(p.rows));
  }
  const auto scratch = aligned(linear_scratch_bytes(p.cols, p.n));
  const int half = w.num_tiles() / 2;
  kernels.multiply(w, 0, half, act_rows.data(), p.n, out_rows.data(), scratch.get());
  kernels.multiply(w, half, w.num_tiles(), act_rows.data(), p.n, out_rows.data(), scratch.get());
  CHECK_MSG(out.back() == -7.0f, "nothing is written past the last row");
  out.pop_back();
  return out;
}

// Same bits; any two NaN are the same (their payload depends on the order of an instruction's operands).
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0 && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
  }
  return true;
}

std::string describe(const char* tier, const Product& p, const char* what) {
  return std::string(tier) + " " + layout_info(p.layout)->name + " rows " + std::to_string(p.rows) + " cols " +
         std::to_string(p.cols) + " n " + std::to_string(p.n) + ": " + what;
}

// The reference against double arithmetic on the dequantised weights and the dequantised codes. The codes' own error is
// not in question here, so what remains is rounding: each of the (at most 2 a block, or 1 a value) fma's, and each
// product of scales, adds at most half an ulp of a partial sum bounded by the sum of magnitudes M. Steps * 2^-24 * 2 *
// M.
void check_reference(Layout layout, Random& random) {
  const int cols = layout_info(layout)->block_values == 256 ? 1024 : 320, rows = 21, n = 3;
  const auto weights = make_weights(layout, rows, cols, Fill::kRandom, random);
  const auto x = make_activations(n, cols, Fill::kRandom, random);
  const Product p{layout, rows, cols, n, &weights, &x};
  const std::vector<float> got = run(*linear_kernels_ref(), p);
  const int block = layout_info(layout)->block_values;
  std::vector<float> w(static_cast<size_t>(cols));
  for (int r = 0; r < rows; ++r) {
    dequantize_row(layout, weights.data() + static_cast<size_t>(r) * row_bytes(layout, cols), w.data(), cols);
    for (int i = 0; i < n; ++i) {
      double sum = 0, magnitude = 0;
      for (int k = 0; k < cols; ++k) {
        const float* row = x.data() + static_cast<size_t>(i) * static_cast<size_t>(cols);
        double v = row[k];
        if (block > 1) {
          const float* first = row + k / block * block;
          float amax = 0;
          for (int j = 0; j < block; ++j) amax = std::fmax(amax, std::fabs(first[j]));
          v = static_cast<double>(amax / 127.0f) * static_cast<double>(std::nearbyint(row[k] * (127.0f / amax)));
        }
        sum += static_cast<double>(w[static_cast<size_t>(k)]) * v;
        magnitude += std::fabs(static_cast<double>(w[static_cast<size_t>(k)]) * v);
      }
      // Weights with minimums: q*d and the minimum cancel, so the magnitude is that of the parts, at most 32 times
      // larger.
      const bool has_min = layout_info(layout)->has_min();
      const double steps = block > 1 ? 4.0 * cols / block + 4.0 : cols;
      const double bound = steps * 0x1p-23 * magnitude * (has_min ? 32.0 : 1.0);
      const double error = std::fabs(sum - static_cast<double>(got[static_cast<size_t>(i * rows + r)]));
      CHECK_MSG(error <= bound, describe("ref", p, "near the double product"));
    }
  }
}

void check_quantize(const Tier& tier, Random& random) {
  for (const ActKind kind : {ActKind::kF32, ActKind::kQ8x32, ActKind::kQ8x256}) {
    for (int round = 0; round < 12; ++round) {
      const int cols = 768;
      std::vector<float> x = make_activations(1, cols, Fill::kRandom, random);
      const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
      if (round == 1) std::fill(x.begin(), x.end(), 0.0f);
      if (round == 2) x[5] = nan, x[300] = inf, x[301] = -inf, x[700] = -nan;
      if (round == 3) std::fill(x.begin(), x.end(), nan);
      if (round == 4) {
        for (float& v : x) v *= 1e-41f;  // the inverse overflows
      }
      if (round == 5) {
        for (float& v : x) v *= 1e37f;
      }
      if (round == 6) {
        for (size_t i = 0; i < x.size(); ++i)
          x[i] = static_cast<float>(static_cast<int>(i % 255) - 127) + 0.5f;  // ties
        for (size_t i = 0; i < x.size(); i += 32) x[i] = 127.0f;
      }
      const auto a = aligned(act_bytes(kind, cols)), b = aligned(act_bytes(kind, cols));
      linear_kernels_ref()->quantize(kind, x.data(), cols, a.get());
      tier.kernels->quantize(kind, x.data(), cols, b.get());
      CHECK_MSG(std::memcmp(a.get(), b.get(), act_bytes(kind, cols)) == 0,
                std::string(tier.name) + " quantize round " + std::to_string(round));
    }
  }
}

void check_tier(const Tier& tier, Layout layout, Random& random) {
  const int block = layout_info(layout)->block_values;
  const int wide = block == 256 ? 768 : block == 32 ? 576 : 131, narrow = block == 1 ? 7 : block;
  const struct {
    int rows, cols, n;
    Fill fill;
  } cases[] = {
      {1, narrow, 1, Fill::kRandom},      {16, wide, 1, Fill::kRandom},     {83, wide, 1, Fill::kRandom},
      {37, wide, 2, Fill::kRandom},       {33, wide, 3, Fill::kRandom},     {17, 3 * narrow, 4, Fill::kRandom},
      {48, wide, 5, Fill::kRandom},       {18, wide, 6, Fill::kRandom},     {49, wide, 7, Fill::kRandom},
      {31, 5 * narrow, 8, Fill::kRandom}, {35, wide, 17, Fill::kRandom},    {16, wide, 64, Fill::kRandom},
      {19, wide, 130, Fill::kRandom},     {20, narrow, 300, Fill::kRandom}, {40, wide, 1, Fill::kLowest},
      {40, wide, 9, Fill::kLowest},       {40, wide, 1, Fill::kHighest},    {40, wide, 9, Fill::kHighest},
      {40, wide, 1, Fill::kGarbage},      {40, wide, 3, Fill::kGarbage},    {40, wide, 9, Fill::kGarbage},
  };
  for (const auto& c : cases) {
    const auto weights = make_weights(layout, c.rows, c.cols, c.fill, random);
    const auto x = make_activations(c.n, c.cols, c.fill, random);
    const Product p{layout, c.rows, c.cols, c.n, &weights, &x};
    const std::vector<float> want = run(*linear_kernels_ref(), p), got = run(*tier.kernels, p);
    CHECK_MSG(same_bits(want, got), describe(tier.name, p, "same bits as the reference"));
    if (c.n == 17) {  // a row alone gives what it gives in company
      for (int i = 0; i < c.n; ++i) {
        const std::vector<float> one(x.begin() + static_cast<ptrdiff_t>(i) * c.cols,
                                     x.begin() + static_cast<ptrdiff_t>(i + 1) * c.cols);
        const Product single{layout, c.rows, c.cols, 1, &weights, &one};
        const std::vector<float> company(got.begin() + static_cast<ptrdiff_t>(i) * c.rows,
                                         got.begin() + static_cast<ptrdiff_t>(i + 1) * c.rows);
        CHECK_MSG(same_bits(company, run(*tier.kernels, single)), describe(tier.name, p, "row alone"));
      }
    }
  }
}

void check_sizes() {
  CHECK(layout_info(static_cast<Layout>(4)) == nullptr);
  for (const LayoutInfo& info : kLayouts) {
    const Layout layout = info.layout;
    CHECK(layout_info(layout) == &info);
    for (const int blocks : {1, 3, 6, 8}) {
      const int64_t cols = static_cast<int64_t>(info.block_values) * blocks;
      CHECK(row_bytes(layout, cols) == static_cast<size_t>(info.block_bytes * blocks));
      CHECK(packed_tile_bytes(layout, cols) % 64 == 0);
      CHECK(act_bytes(act_kind(layout), cols) % 64 == 0);
    }
    // The fast layouts grow by at most 4 % when packed.
    const bool is_fast = layout != Layout::Q3_K;
    const double growth =
        static_cast<double>(packed_tile_bytes(layout, 2048)) / static_cast<double>(16 * row_bytes(layout, 2048));
    CHECK(growth >= 1.0 && growth <= (is_fast ? 1.04 : 1.06));
  }
}

void check_known_values() {
  // One Q8_0 block by hand: d = 0.5, codes k - 16.
  uint8_t block[34];
  const uint16_t half = 0x3800;
  std::memcpy(block, &half, 2);
  for (int k = 0; k < 32; ++k) block[2 + k] = static_cast<uint8_t>(k - 16);
  float values[32];
  dequantize_row(Layout::Q8_0, block, values, 32);
  for (int k = 0; k < 32; ++k) CHECK(values[k] == 0.5f * static_cast<float>(k - 16));
  // x = 127 everywhere: scale 1, codes 127, so the product is 127 * 0.5 * sum(k - 16) = 127 * 0.5 * -16.
  const std::vector<uint8_t> weights(block, block + 34);
  const std::vector<float> x(32, 127.0f);
  CHECK(run(*linear_kernels_ref(), {Layout::Q8_0, 1, 32, 1, &weights, &x})[0] == -1016.0f);
}

}  // namespace

int main() {
  check_sizes();
  check_known_values();
  Random random{12345};
  for (const LayoutInfo& info : kLayouts) check_reference(info.layout, random);

  test::for_each_tier([&random](const KernelTable& table, bool is_reference) {
    if (is_reference) return;
    const Tier tier{table.tier, table.linear};
    check_quantize(tier, random);
    for (const LayoutInfo& info : kLayouts) check_tier(tier, info.layout, random);
  });
  return test::finish();
}
