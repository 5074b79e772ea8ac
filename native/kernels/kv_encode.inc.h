// Encoding of a page, over 16-lane floats: lanes are tokens, so nothing is shuffled and every lane does what the
// reference does. 16 tokens go through rotation and the search for gains at a time (32 KiB at 512 dimensions).
#pragma once
#include "kernels/kv_ints.inc.h"
#include "kernels/kv_rotate.inc.h"

namespace kamado {
namespace {

// A magnitude t = |x| / (s * gain) becomes a level by comparing it with borders. One comparison is enough once the
// border that t may be on either side of is known, and for that the cell of |x| / s is enough: a quarter of an octave,
// with everything below and above the table in the first and last cell. All borders are at least 28 % apart, so a cell
// has at most one of them inside, whatever the gain. A table gives the numbers of these borders for eight gains at a
// time, a nibble each: all even ones, all odd ones.
constexpr int kNumCells = 16, kCellShift = 21;  // the exponent's low two bits and the mantissa's high two
constexpr float kFirstCell = 1024.0f, kLastCell = 16383.0f;

template <int kBits>
struct NearBorders {
  uint32_t even[kNumCells] = {}, odd[kNumCells] = {};
  bool is_sound = true;

  constexpr NearBorders() {
    constexpr int32_t kBorders = num_magnitudes(kBits) - 1;
    constexpr float kMargin = 1e-5f;  // for the rounding of t and of the cell: some 3e-7
    for (int32_t cell = 0; cell < kNumCells; ++cell) {
      const float low = cell == 0 ? 0.0f : at(cell) * (1.0f - kMargin);
      const float high = cell + 1 == kNumCells ? 1e9f : at(cell + 1) * (1.0f + kMargin);
      const int32_t index = ((127 + 10) * 4 + cell) % kNumCells;  // as in the bits of a float: 1024 = 2^10
      for (int32_t gain = 0; gain < kNumGains; ++gain) {
        int32_t below = 0, inside = 0;
        for (int32_t i = 0; i < kBorders; ++i) {
          const float border = level_border(kBits, i) * static_cast<float>(kGains[gain]);
          below += border <= low;
          inside += border > low && border < high;
        }
        is_sound = is_sound && inside <= 1;
        const int32_t near = below < kBorders ? below : kBorders - 1;
        (gain % 2 ? odd : even)[index] |= static_cast<uint32_t>(near) << (gain / 2 * 4);
      }
    }
  }

  static constexpr float at(int32_t cell) {  // its lower end
    return kFirstCell * static_cast<float>(1 << cell / 4) * (1.0f + 0.25f * static_cast<float>(cell % 4));
  }
};

template <int kBits>
constexpr NearBorders<kBits> kNearBorders;
static_assert(kNearBorders<3>.is_sound && kNearBorders<4>.is_sound);

struct Magnitudes {
  float borders[kNumLevels] = {}, levels[kNumLevels] = {};
};
constexpr Magnitudes make_magnitudes(int32_t bits) {
  Magnitudes m{};
  for (int32_t i = 0; i < kNumLevels; ++i) {
    m.borders[i] = i + 1 < num_magnitudes(bits) ? level_border(bits, i) : 1e30f;
    m.levels[i] = kLevels[bits][i];
  }
  return m;
}
template <int kBits>
constexpr Magnitudes kMagnitudes = make_magnitudes(kBits);

struct GainBits {  // gains as floats, in words
  uint32_t of[kNumGains];
};
constexpr GainBits make_gain_bits() {
  GainBits bits{};
  for (int32_t i = 0; i < kNumGains; ++i) bits.of[i] = __builtin_bit_cast(uint32_t, static_cast<float>(kGains[i]));
  return bits;
}
constexpr GainBits kGainBits = make_gain_bits();

template <class I>
struct CodeEncoder {
  using V = typename I::Floats;
  using Words = typename I::Words;  // 16 32-bit lanes

  // x [dim][16 tokens] -> H x, which `hadamard_scale` makes orthogonal.
  static void hadamard_rows(float* x, int32_t dim) {
    const HadamardShape shape = hadamard_shape(dim);
    const auto row = [x](int32_t i) { return x + i * kVirtualLanes; };
    int32_t h = 1;
    for (; h * 2 < shape.power; h *= 4) {  // two steps with one walk: four rows in registers
      for (int32_t i = 0; i < dim; i += 4 * h) {
        for (int32_t j = i; j < i + h; ++j) {
          const V a = V::load(row(j)), b = V::load(row(j + h)), c = V::load(row(j + 2 * h)),
                  d = V::load(row(j + 3 * h));
          const V sum = a + b, difference = a - b, other_sum = c + d, other_difference = c - d;
          (sum + other_sum).store(row(j));
          (difference + other_difference).store(row(j + h));
          (sum - other_sum).store(row(j + 2 * h));
          (difference - other_difference).store(row(j + 3 * h));
        }
      }
    }
    for (; h < shape.power; h *= 2) {
      for (int32_t i = 0; i < dim; i += 2 * h) {
        for (int32_t j = i; j < i + h; ++j) {
          const V a = V::load(row(j)), b = V::load(row(j + h));
          (a + b).store(row(j));
          (a - b).store(row(j + h));
        }
      }
    }
    if (shape.order > 1) {
      const PaleyMatrix& m = paley_matrix(shape.order);
      for (int32_t c = 0; c < shape.power; ++c) {
        float terms[2][kMaxPaley][kVirtualLanes];  // as they are, and negated
        for (int32_t s = 0; s < shape.order; ++s) {
          const V term = V::load(row(s * shape.power + c));
          term.store(terms[0][s]);
          (V::set1(-0.0f) - term).store(terms[1][s]);
        }
        for (int32_t r = 0; r < shape.order; ++r) {
          V sum = V::set1(0.0f);
          for (int32_t s = 0; s < shape.order; ++s) sum = sum + V::load(terms[m.is_negative[r][s]][s]);
          sum.store(row(r * shape.power + c));
        }
      }
    }
  }

  static KAMADO_INLINE V with_sign(V x, int32_t d) { return kSigns.is_negative[d] ? V::set1(-0.0f) - x : x; }

  // Eight rows of eight, `in_stride` apart, to columns.
  static KAMADO_INLINE void transpose8(const uint16_t* in, size_t in_stride, float* out) {
    __m256 r[8], t[8];
    for (size_t i = 0; i < 8; ++i) r[i] = F8::load(in + i * in_stride).v;
    for (int i = 0; i < 4; ++i) {
      t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
      r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      _mm256_storeu_ps(out + i * kVirtualLanes, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
      _mm256_storeu_ps(out + (i + 4) * kVirtualLanes, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
  }

  // ---- codes ----

  struct Fit {
    V error, product, number;
  };

  // One group, and per value the numbers of the borders that may lie near it (NearBorders).
  struct Group {
    int32_t width;
    alignas(64) float sizes[kGroupDims][kVirtualLanes];
    alignas(64) uint32_t even[kGroupDims][kVirtualLanes], odd[kGroupDims][kVirtualLanes];
  };

  template <int kBits>
  static KAMADO_INLINE void prepare(const float* x, int32_t width, V s, Group& group) {
    const V per_unit = V::set1(1.0f) / s, low = V::set1(kFirstCell), high = V::set1(kLastCell);
    group.width = width;
    for (int32_t i = 0; i < width; ++i) {
      const V size = abs(V::load(x + i * kVirtualLanes));
      size.store(group.sizes[i]);
      if constexpr (kBits > 2) {
        const Words cell = I::template right<kCellShift>(I::as_words(max(min(size * per_unit, high), low)));
        I::store(group.even[i], I::look_up(kNearBorders<kBits>.even, cell));
        I::store(group.odd[i], I::look_up(kNearBorders<kBits>.odd, cell));
      }
    }
  }

  // The number of borders at or below t, given in the low nibble the border that it may be on either side of.
  template <int kBits>
  static KAMADO_INLINE Words magnitude(V t, Words near) {
    return I::add_one_if(near, I::at_least(t, I::pick(kMagnitudes<kBits>.borders, near)));
  }

  // near(i): borders near the values of dimension i, for this gain.
  template <int kBits>
  static KAMADO_INLINE void attempt(const Group& group, const auto& near, V s, V gain, V number, Fit& best) {
    const V a = s * gain, inverse = V::set1(1.0f) / a;
    V product = V::set1(0.0f), squares = product;
    for (int32_t i = 0; i < group.width; ++i) {
      const V size = V::load(group.sizes[i]);
      const V level = I::pick(kMagnitudes<kBits>.levels, magnitude<kBits>(size * inverse, near(i)));
      product = fma(size, level, product);
      squares = fma(level, level, squares);
    }
    const V error = a * fma(a, squares, V::set1(-2.0f) * product);
    const auto is_better = less(error, best.error);
    best.error = select(is_better, error, best.error);
    best.product = select(is_better, product, best.product);
    best.number = select(is_better, number, best.number);
  }

  template <int kBits, int kNumber>
  static KAMADO_INLINE void attempt_even(const Group& group, V s, Fit& best) {
    const auto near = [&group](int32_t i) {
      return kBits > 2 ? I::template right<2 * kNumber>(I::load_words(group.even[i])) : I::zero_words();
    };
    const V number = V::set1(static_cast<float>(kNumber));
    attempt<kBits>(group, near, s, V::set1(kGains[kNumber]), number, best);
    if constexpr (kNumber + 2 < kNumGains) attempt_even<kBits, kNumber + 2>(group, s, best);
  }

  // Another gain in every lane.
  template <int kBits>
  static KAMADO_INLINE void attempt_odd(const Group& group, V s, V number, Fit& best) {
    const Words shift = nibble_shift(I::whole(number));
    const auto near = [&group, shift](int32_t i) {
      return kBits > 2 ? I::right_by(I::load_words(group.odd[i]), shift) : I::zero_words();
    };
    attempt<kBits>(group, near, s, gain_of(number), number, best);
  }

  static KAMADO_INLINE V gain_of(V number) { return I::as_floats(I::look_up(kGainBits.of, I::whole(number))); }
  static KAMADO_INLINE Words nibble_shift(Words gain_number) {
    return I::template left<2>(I::template right<1>(gain_number));
  }

  // The gain with the least error; codes go to out [width][128], at this block's tokens.
  template <int kBits>
  static Fit encode_levels(const float* x, int32_t width, V s, uint8_t* out) {
    Group group;
    prepare<kBits>(x, width, s, group);
    Fit best{V::set1(__builtin_inff()), V::set1(0.0f), V::set1(0.0f)};
    attempt_even<kBits, 0>(group, s, best);
    const V one = V::set1(1.0f), centre = best.number;
    // 0 has no neighbour below: the one above then has two attempts, the second without effect.
    attempt_odd<kBits>(group, s, select(less(centre, one), one, centre - one), best);
    attempt_odd<kBits>(group, s, centre + one, best);

    const Words which = I::whole(best.number), shift = nibble_shift(which);
    const V inverse = one / (s * gain_of(best.number)), zero = V::set1(0.0f);
    const auto is_odd = I::is_odd(which);
    for (int32_t i = 0; i < width; ++i) {
      Words near = I::zero_words();
      if constexpr (kBits > 2) {
        near = I::right_by(I::choose(is_odd, I::load_words(group.odd[i]), I::load_words(group.even[i])), shift);
      }
      const Words number = magnitude<kBits>(V::load(group.sizes[i]) * inverse, near);
      const auto is_negative = less(V::load(x + i * kVirtualLanes), zero);
      I::store_codes(number, is_negative, num_magnitudes(kBits), out + i * kPageTokens);
    }
    return best;
  }

  // Uniform steps: the smallest gain that reaches the largest value.
  static Fit encode_uniform(const float* x, int32_t width, V s, V top, uint8_t* out) {
    const V one = V::set1(1.0f), limit = V::set1(kUniformTop), low = V::set1(-kUniformTop),
            magic = V::set1(kRoundingMagic);
    Fit best{top, V::set1(0.0f), V::set1(0.0f)};
    for (int32_t i = 0; i + 1 < kNumGains; ++i) {
      const auto is_short = less(s * V::set1(static_cast<float>(kGains[i] * kUniformTop)), top);
      best.number = select(is_short, V::set1(static_cast<float>(i + 1)), best.number);
    }
    const V inverse = one / (s * gain_of(best.number));
    for (int32_t i = 0; i < width; ++i) {
      const V value = V::load(x + i * kVirtualLanes);
      const V shifted = max(min(value * inverse, limit), low) + magic;
      best.product = fma(value, shifted - magic, best.product);
      I::store_bytes(shifted, 0, 8, out + i * kPageTokens);
    }
    return best;
  }

  // 16 rotated tokens x [dim][16] -> codes [dim][128], gain numbers [groups][128] and scales, at these tokens.
  template <int kBits>
  static void encode_block(const float* x, int32_t dim, uint8_t* codes, uint8_t* gains, uint16_t* scales) {
    V squares = V::set1(0.0f), top = squares;
    float tops[kMaxGroups][kVirtualLanes];
    for (int32_t g = 0; g < num_groups(dim); ++g) {
      const int32_t width = group_width(dim, g);
      V sum = V::set1(0.0f), largest = sum;
      for (int32_t i = g * kGroupDims; i < g * kGroupDims + width; ++i) {
        const V value = V::load(x + i * kVirtualLanes);
        sum = fma(value, value, sum);
        largest = max(abs(value), largest);
      }
      squares = squares + sum;
      const V size = kBits == 8 ? largest : I::sqrt(sum * V::set1(1.0f / static_cast<float>(width)));
      size.store(tops[g]);
      top = max(size, top);
    }
    constexpr float kStep =
        kBits == 8 ? 1.0f / (kUniformTop * 255.0f) : 1.0f / (kLevelUnit[kBits % 8] * kGains[kTopGain]);
    const auto is_real = less(V::set1(kTinyRms), top);
    const V s = select(is_real, top * V::set1(kStep), V::set1(1.0f)), magic = V::set1(kRoundingMagic);
    V dot = V::set1(0.0f);
    for (int32_t g = 0; g < num_groups(dim); ++g) {
      const float* group = x + g * kGroupDims * kVirtualLanes;
      uint8_t* out = codes + g * kGroupDims * kPageTokens;
      Fit fit;
      if constexpr (kBits == 8) {
        fit = encode_uniform(group, group_width(dim, g), s, V::load(tops[g]), out);
      } else {
        fit = encode_levels<kBits>(group, group_width(dim, g), s, out);
      }
      dot = fma(gain_of(fit.number), fit.product, dot);
      I::store_bytes(fit.number + magic, 0, 8, gains + g * kPageTokens);
    }
    const V scale = squares / dot * V::set1(kScaleUnit);
    min(select(is_real, scale, V::set1(0.0f)), V::set1(65504.0f)).store_f16(scales);
  }

  static void encode_block_of(int32_t bits, const float* x, int32_t dim, uint8_t* codes, uint8_t* gains,
                              uint16_t* scales) {
    with_bits(bits, [&](auto width) { encode_block<width()>(x, dim, codes, gains, scales); });
  }

  // ---- packing: codes [dim][128] -> registers -> chunks ----

  static KAMADO_INLINE void load_rows(const uint8_t* rows, __m128i* r) {  // four dimensions of 16 tokens
    for (int i = 0; i < 4; ++i) r[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + i * kPageTokens));
  }

  // 16 keys x 4 dimensions, byte = key * 4 + dimension.
  static KAMADO_INLINE void key_register(const uint8_t* rows, uint8_t* out) {
    __m128i r[4];
    load_rows(rows, r);
    const __m128i a[2] = {_mm_unpacklo_epi8(r[0], r[1]), _mm_unpackhi_epi8(r[0], r[1])};
    const __m128i b[2] = {_mm_unpacklo_epi8(r[2], r[3]), _mm_unpackhi_epi8(r[2], r[3])};
    auto* to = reinterpret_cast<__m128i*>(out);
    for (int i = 0; i < 2; ++i) {
      _mm_storeu_si128(to + 2 * i, _mm_unpacklo_epi16(a[i], b[i]));
      _mm_storeu_si128(to + 2 * i + 1, _mm_unpackhi_epi16(a[i], b[i]));
    }
  }

  // 16 dimensions of 16 tokens as four registers `stride` apart, each of 4 tokens, byte = dimension * 4 + token.
  static KAMADO_INLINE void value_registers(const uint8_t* rows, uint8_t* out, size_t stride) {
    for (int i = 0; i < 16; i += 4) {  // four rows of four words to columns
      __m128i r[4];
      load_rows(rows + i * kPageTokens, r);
      const __m128i a[2] = {_mm_unpacklo_epi32(r[0], r[1]), _mm_unpackhi_epi32(r[0], r[1])};
      const __m128i b[2] = {_mm_unpacklo_epi32(r[2], r[3]), _mm_unpackhi_epi32(r[2], r[3])};
      uint8_t* to = out + 4 * i;
      for (int pair = 0; pair < 2; ++pair, to += 2 * stride) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_unpacklo_epi64(a[pair], b[pair]));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + stride), _mm_unpackhi_epi64(a[pair], b[pair]));
      }
    }
  }

  template <int kBits>
  static void pack_keys(int32_t dim, const uint8_t* codes, uint8_t* out) {
    constexpr int kBlocks = strip_blocks(kBits);
    uint8_t registers[kChunkRegisters * 64];
    int32_t filled = 0;
    for (int32_t strip = 0; strip < kPageTokens; strip += strip_keys(kBits)) {
      for (int32_t d = 0; d < dim; d += 4) {
        const uint8_t* rows = codes + d * kPageTokens + strip;
        for (int b = 0; b < kBlocks; ++b) key_register(rows + 16 * b, registers + (filled + b) * 64);
        filled = (filled + kBlocks) % kChunkRegisters;
        if (filled > 0) continue;
        pack_chunk<kBits>(registers, out);
        out += 64 * kBits;
      }
    }
  }

  template <int kBits>
  static void pack_values(int32_t dim, const uint8_t* codes, uint8_t* out) {
    constexpr int32_t kMaxHalves = kGroupDims / 16;
    uint8_t registers[kPageTokens / 4 * kMaxHalves * 64];  // a group's
    for (int32_t g = 0; g < num_groups(dim); ++g, codes += kGroupDims * kPageTokens) {
      const int32_t halves = group_width(dim, g) / 16;
      for (int32_t half = 0; half < halves; ++half) {
        for (int32_t token = 0; token < kPageTokens; token += 16) {
          value_registers(codes + half * 16 * kPageTokens + token, registers + (token / 4 * halves + half) * 64,
                          static_cast<size_t>(halves) * 64);
        }
      }
      for (int32_t chunk = 0; chunk < kPageTokens / 4 * halves / kChunkRegisters; ++chunk, out += 64 * kBits) {
        pack_chunk<kBits>(registers + chunk * kChunkRegisters * 64, out);
      }
    }
  }

  static void finish_block(int32_t bits, int32_t dim, bool is_key, const uint8_t* codes, const uint8_t* gains,
                           uint8_t* block) {
    const BlockView<uint8_t> out = view_block(block, dim, is_key);
    for (int32_t g = 0; g < num_groups(dim); ++g) {
      const uint8_t* in = gains + g * kPageTokens;
      for (int32_t i = 0; i < 64; ++i) {
        out.gains[static_cast<size_t>(g) * kGainBytes + static_cast<size_t>(i)] =
            static_cast<uint8_t>(in[i] | in[64 + i] << 4);
      }
    }
    with_bits(bits, [&](auto width) {
      is_key ? pack_keys<width()>(dim, codes, out.codes) : pack_values<width()>(dim, codes, out.codes);
    });
  }

  static void encode_page(const KvCodec& codec, const uint16_t* k, const uint16_t* v, uint8_t* k_codes,
                          uint8_t* v_codes, uint8_t* sinks, uint8_t* scratch) {
    const int32_t k_dim = codec.head_dim, v_dim = codec.v_dim, first = sinks ? kSinkTokens : 0;
    const auto k_row = [k](int32_t d) { return k + d * kPageTokens; };
    if (sinks) {  // keys [head_dim][4], then values [4][v_dim]
      for (int32_t d = 0; d < k_dim; ++d) memcpy(sinks + d * kSinkTokens * 2, k_row(d), kSinkTokens * 2);
      memcpy(sinks + k_dim * kSinkTokens * 2, v, static_cast<size_t>(kSinkTokens * v_dim * 2));
    }
    const auto sink_lanes = V::lanes_between(0, first);
    const V zero = V::set1(0.0f);
    auto* x = reinterpret_cast<float*>(scratch);
    uint8_t* codes = scratch + kMaxDim * kVirtualLanes * sizeof(float);
    uint8_t gains[kMaxGroups * kPageTokens];

    float mean[kMaxDim];
    for (int32_t d = 0; d < k_dim; ++d) {
      V sum = zero;
      for (int32_t token = 0; token < kPageTokens; token += kVirtualLanes) {
        const V value = V::load(k_row(d) + token);
        sum = sum + (token == 0 ? select(sink_lanes, zero, value) : value);
      }
      mean[d] = reduce_sum(sum) * (1.0f / static_cast<float>(kPageTokens - first));
    }
    rotate(mean, k_dim);
    memset(k_codes, 0, mean_bytes(k_dim));
    auto* stored_mean = reinterpret_cast<uint16_t*>(k_codes);
    for (int32_t d = 0; d < k_dim; d += kVirtualLanes) {
      const V limit = V::set1(65504.0f);
      max(min(V::load(mean + d), limit), zero - limit).store_f16(stored_mean + d);
      V::load(stored_mean + d).store(mean + d);
    }
    auto* scales = reinterpret_cast<uint16_t*>(view_block(k_codes, k_dim, true).scales);
    const V k_scale = V::set1(hadamard_scale(k_dim)), v_scale = V::set1(hadamard_scale(v_dim));
    for (int32_t token = 0; token < kPageTokens; token += kVirtualLanes) {
      for (int32_t d = 0; d < k_dim; ++d) with_sign(V::load(k_row(d) + token), d).store(x + d * kVirtualLanes);
      hadamard_rows(x, k_dim);
      for (int32_t d = 0; d < k_dim; ++d) {
        const V centred = V::load(x + d * kVirtualLanes) * k_scale - V::set1(mean[d]);
        (token == 0 ? select(sink_lanes, zero, centred) : centred).store(x + d * kVirtualLanes);
      }
      encode_block_of(codec.k_bits, x, k_dim, codes + token, gains + token, scales + token);
    }
    finish_block(codec.k_bits, k_dim, true, codes, gains, k_codes);

    scales = reinterpret_cast<uint16_t*>(view_block(v_codes, v_dim, false).scales);
    for (int32_t token = 0; token < kPageTokens; token += kVirtualLanes) {
      for (int32_t d = 0; d < v_dim; d += 8) {
        for (int32_t part = 0; part < kVirtualLanes; part += 8) {
          transpose8(v + (token + part) * v_dim + d, static_cast<size_t>(v_dim), x + d * kVirtualLanes + part);
        }
      }
      for (int32_t d = 0; d < v_dim; ++d) {
        const V value = with_sign(V::load(x + d * kVirtualLanes), d);
        (token == 0 ? select(sink_lanes, zero, value) : value).store(x + d * kVirtualLanes);
      }
      hadamard_rows(x, v_dim);
      for (int32_t d = 0; d < v_dim; ++d) (V::load(x + d * kVirtualLanes) * v_scale).store(x + d * kVirtualLanes);
      encode_block_of(codec.v_bits, x, v_dim, codes + token, gains + token, scales + token);
    }
    finish_block(codec.v_bits, v_dim, false, codes, gains, v_codes);
  }
};

}  // namespace
}  // namespace kamado
