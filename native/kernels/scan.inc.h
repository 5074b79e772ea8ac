// The kernels of operations with a record over a 16-lane vector type V (F8x2 or F16); the same operations in the same
// order as ref/scan_ref.cpp. A lane is a column.
#pragma once
#include "kamado/scan.h"
#include "kernels/math.inc.h"

namespace kamado {
namespace {

// kVectors: of 16 columns of S that one pass over its rows works on; as many as leave registers for the sums.
template <class V, int kVectors>
struct ScanTier {
  static_assert(V::kLanes == kVirtualLanes && kScanColumns % (kVectors * kVirtualLanes) == 0);
  static constexpr int32_t kColumns = kVectors * kVirtualLanes;

  static void conv(const float* const* rows, const float* weight, size_t weight_stride, int32_t num_taps,
                   const float* bias, int32_t n, float* out) {
    int32_t i = 0;
    for (; i + kVirtualLanes <= n; i += kVirtualLanes) {
      V sum = V::set1(0.0f);
      for (int32_t j = 0; j < num_taps; ++j) {
        sum = fma(V::load(weight + static_cast<size_t>(j) * weight_stride + i), V::load(rows[j] + i), sum);
      }
      if (bias) sum = sum + V::load(bias + i);
      sum.store(out + i);
    }
    if (i == n) return;
    V sum = V::set1(0.0f);
    for (int32_t j = 0; j < num_taps; ++j) {
      const float* taps = weight + static_cast<size_t>(j) * weight_stride + i;
      sum = fma(V::load_first(taps, n - i), V::load_first(rows[j] + i, n - i), sum);
    }
    if (bias) sum = sum + V::load_first(bias + i, n - i);
    sum.store_first(out + i, n - i);
  }

  static void decay(const float* steps, float rate, int32_t n, float* out) {
    const V r = V::set1(rate);
    int32_t i = 0;
    for (; i + kVirtualLanes <= n; i += kVirtualLanes) exp_f32(r * V::load(steps + i)).store(out + i);
    if (i < n) exp_f32(r * V::load_first(steps + i, n - i)).store_first(out + i, n - i);
  }

  // kN vectors of columns; when they are not whole, the (only) one has `count` of them.
  template <int kN, bool kIsWhole>
  struct Columns {
    static_assert(kIsWhole || kN == 1);
    V v[kN];

    static KAMADO_INLINE Columns set1(float x) {
      Columns c;
      for (V& vector : c.v) vector = V::set1(x);
      return c;
    }
    static KAMADO_INLINE Columns load(const float* x, int32_t count) {
      Columns c;
      for (int n = 0; n < kN; ++n) c.v[n] = kIsWhole ? V::load(x + n * kVirtualLanes) : V::load_first(x, count);
      return c;
    }
    template <bool kStreams>
    KAMADO_INLINE void store(float* x, int32_t count) const {
      for (int n = 0; n < kN; ++n) {
        if constexpr (kStreams) {
          v[n].stream(x + n * kVirtualLanes);
        } else if constexpr (kIsWhole) {
          v[n].store(x + n * kVirtualLanes);
        } else {
          v[n].store_first(x, count);
        }
      }
    }
    // f of each of its vectors and the same one of `other`
    template <class Fn>
    KAMADO_INLINE Columns with(const Columns& other, Fn f) const {
      Columns c;
      for (int n = 0; n < kN; ++n) c.v[n] = f(v[n], other.v[n]);
      return c;
    }
  };

  // A sum over the rows of S in two chains, of even and of odd rows.
  template <class C>
  struct Sum {
    C chains[2] = {C::set1(0.0f), C::set1(0.0f)};

    KAMADO_INLINE void add(const C& s, float factor, int chain) {
      const V x = V::set1(factor);
      chains[chain] = chains[chain].with(s, [x](V sum, V value) { return fma(value, x, sum); });
    }
    KAMADO_INLINE C total() const {
      return chains[0].with(chains[1], [](V even, V odd) { return even + odd; });
    }
  };

  // f(i, chain) for each row of S, ascending.
  template <class Fn>
  static KAMADO_INLINE void each_row(int32_t k_dim, Fn f) {
    int32_t i = 0;
    for (; i + 2 <= k_dim; i += 2) {
      f(i, 0);
      f(i + 1, 1);
    }
    if (i < k_dim) f(i, 0);
  }

  // Columns from `first` on, as many as C has, through all rows. A row's update, what is read then, and the sum that
  // the next row begins with are one pass over S.
  template <bool kHasChannels, bool kStreams, class C>
  static void run(const DeltaBlock& block, const float* before, float* after, int32_t first, int32_t count) {
    const int32_t k_dim = block.k_dim;
    const auto width = static_cast<size_t>(block.num_columns);
    const float *q = block.q, *k = block.k, *v = block.v + first, *kept = block.kept;
    const float* reads = kHasChannels ? block.reads : k;
    const size_t reads_stride = kHasChannels ? static_cast<size_t>(k_dim) : block.k_stride;
    const float* s = before + first;
    float *const written = after + first, *out = block.out + first;
    const auto row_of_s = [&](int32_t i) { return C::load(s + static_cast<size_t>(i) * width, count); };
    Sum<C> next;
    each_row(k_dim, [&](int32_t i, int chain) { next.add(row_of_s(i), reads[i], chain); });
    for (int32_t row = 0; row < block.num_rows; ++row) {
      const V beta = V::set1(block.beta[row]), e = V::set1(kept[0]), minus_e = V::set1(-kept[0]);
      const C d = C::load(v, count).with(
          next.total(), [&](V value, V m) { return beta * (kHasChannels ? value - m : fma(m, minus_e, value)); });
      const auto update = [&](int32_t i) {
        const V factor = V::set1(k[i]), stays = kHasChannels ? V::set1(kept[i]) : e;
        const C c = row_of_s(i).with(d, [&](V old, V change) { return fma(factor, change, old * stays); });
        c.template store<kStreams>(written + static_cast<size_t>(i) * width, count);
        return c;
      };
      Sum<C> read;
      if (row + 1 < block.num_rows) {
        reads += reads_stride;
        next = {};
        each_row(k_dim, [&](int32_t i, int chain) {
          const C c = update(i);
          read.add(c, q[i], chain);
          next.add(c, reads[i], chain);
        });
      } else {
        each_row(k_dim, [&](int32_t i, int chain) { read.add(update(i), q[i], chain); });
      }
      const C scale = C::set1(block.scale);
      read.total().with(scale, [](V sum, V factor) { return factor * sum; }).template store<false>(out, count);
      s = written;
      q += block.q_stride, k += block.k_stride, v += block.v_stride, out += block.out_stride;
      kept += kHasChannels ? k_dim : 1;
    }
  }

  template <bool kHasChannels>
  static void delta_with(const DeltaBlock& block, const float* before, float* after) {
    const int32_t width = block.num_columns;
    const bool streams =
        block.streams && block.num_rows == 1 && width == kScanColumns && reinterpret_cast<uintptr_t>(after) % 64 == 0;
    int32_t first = 0;
    for (; first + kColumns <= width; first += kColumns) {
      using Whole = Columns<kVectors, true>;
      if (streams) {
        run<kHasChannels, true, Whole>(block, before, after, first, kColumns);
      } else {
        run<kHasChannels, false, Whole>(block, before, after, first, kColumns);
      }
    }
    for (; first < width; first += kVirtualLanes) {
      const int32_t count = width - first;
      if (count >= kVirtualLanes) {
        run<kHasChannels, false, Columns<1, true>>(block, before, after, first, kVirtualLanes);
      } else {
        run<kHasChannels, false, Columns<1, false>>(block, before, after, first, count);
      }
    }
    if (streams) stream_fence();
  }

  static void delta(const DeltaBlock& block, const float* before, float* after) {
    block.has_channels ? delta_with<true>(block, before, after) : delta_with<false>(block, before, after);
  }
};

// The table of a tier.
template <class V, int kVectors>
const ScanKernels* scan_table() {
  using Tier = ScanTier<V, kVectors>;
  static constexpr ScanKernels kTable = {Tier::conv, Tier::decay, Tier::delta};
  return &kTable;
}

}  // namespace
}  // namespace kamado
