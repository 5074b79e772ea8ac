// Encoding of a page, over 16-lane floats: lanes are tokens, so nothing is shuffled and every lane does what the
// reference does. 16 tokens go through rotation and the search for gains at a time (16 KiB at 256 dimensions).
#pragma once
#include "kernels/kv_ints.inc.h"
#include "kernels/kv_rotate.inc.h"

namespace kamado {
namespace {

template <class I>
struct CodeEncoder {
  using V = typename I::Floats;

  // x [dim][16 tokens] -> H x / sqrt(dim)
  static void hadamard_rows(float* x, int32_t dim) {
    const HadamardShape shape = hadamard_shape(dim);
    const auto row = [x](int32_t i) { return x + i * kVirtualLanes; };
    for (int32_t h = 1; h < shape.power; h *= 2) {
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
    const V scale = V::set1(hadamard_scale(dim));
    for (int32_t i = 0; i < dim; ++i) (V::load(row(i)) * scale).store(row(i));
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

  // What a magnitude t becomes: the level nearest to it, or the level's number.
  struct Magnitudes {
    float borders[kNumLevels], levels[kNumLevels], numbers[kNumLevels];
  };

  static constexpr Magnitudes make_magnitudes(int32_t bits) {
    Magnitudes m{};
    for (int32_t i = 0; i < num_magnitudes(bits); ++i) {
      if (i + 1 < num_magnitudes(bits)) m.borders[i] = level_border(bits, i);
      m.levels[i] = kLevels[bits][i];
      m.numbers[i] = static_cast<float>(i);
    }
    return m;
  }

  template <int kBits>
  static KAMADO_INLINE V pick(V t, const Magnitudes& m, const float* outcomes) {
    if constexpr (kBits == 4) {
      return I::pick8(t, m.borders, outcomes);
    } else {
      V sum = V::set1(outcomes[0]);
      for (int i = 0; i + 1 < num_magnitudes(kBits); ++i) {
        sum = I::add_from(sum, t, V::set1(m.borders[i]), V::set1(outcomes[i + 1] - outcomes[i]));
      }
      return sum;
    }
  }

  struct Fit {
    V error, product, gain, number;
  };

  template <int kBits>
  static KAMADO_INLINE void attempt(const float* x, int32_t width, V s, V gain, V number, Fit& best) {
    const V a = s * gain, inverse = V::set1(1.0f) / a;
    constexpr Magnitudes kMagnitudes = make_magnitudes(kBits);
    V product = V::set1(0.0f), squares = product;
    for (int32_t i = 0; i < width; ++i) {
      const V size = abs(V::load(x + i * kVirtualLanes));
      const V level = pick<kBits>(size * inverse, kMagnitudes, kMagnitudes.levels);
      product = fma(size, level, product);
      squares = fma(level, level, squares);
    }
    const V error = a * fma(a, squares, V::set1(-2.0f) * product);
    const auto is_better = less(error, best.error);
    best.error = select(is_better, error, best.error);
    best.product = select(is_better, product, best.product);
    best.gain = select(is_better, gain, best.gain);
    best.number = select(is_better, number, best.number);
  }

  // The gain with the least error; codes go to out [width][128], at this block's tokens.
  template <int kBits>
  static Fit encode_levels(const float* x, int32_t width, V s, uint8_t* out) {
    Fit best{V::set1(__builtin_inff()), V::set1(0.0f), V::set1(0.0f), V::set1(0.0f)};
    V below = V::set1(0.0f), above = below, below_number = below, above_number = below;  // neighbours of the best
    for (int32_t i = 0; i < kNumGains; i += 2) {
      const V number = V::set1(static_cast<float>(i));
      attempt<kBits>(x, width, s, V::set1(kGains[i]), number, best);
      const auto is_other = less(best.number, number);  // else it has just become the best
      const int32_t before = i > 0 ? i - 1 : 0;
      below = select(is_other, below, V::set1(kGains[before]));
      above = select(is_other, above, V::set1(kGains[i + 1]));
      below_number = select(is_other, below_number, V::set1(static_cast<float>(before)));
      above_number = select(is_other, above_number, V::set1(static_cast<float>(i + 1)));
    }
    attempt<kBits>(x, width, s, below, below_number, best);
    attempt<kBits>(x, width, s, above, above_number, best);
    const V inverse = V::set1(1.0f) / (s * best.gain), zero = V::set1(0.0f), magic = V::set1(kRoundingMagic);
    constexpr float kHalf = num_magnitudes(kBits);
    constexpr Magnitudes kMagnitudes = make_magnitudes(kBits);
    for (int32_t i = 0; i < width; ++i) {
      const V value = V::load(x + i * kVirtualLanes);
      const V magnitude = pick<kBits>(abs(value) * inverse, kMagnitudes, kMagnitudes.numbers);
      const V code = select(less(value, zero), V::set1(kHalf - 1.0f) - magnitude, V::set1(kHalf) + magnitude);
      I::store_bytes(code + magic, 0, 8, out + i * kPageTokens);
    }
    return best;
  }

  // Uniform steps: the smallest gain that reaches the largest value.
  static Fit encode_uniform(const float* x, int32_t width, V s, V top, uint8_t* out) {
    const V one = V::set1(1.0f), limit = V::set1(kUniformTop), low = V::set1(-kUniformTop),
            magic = V::set1(kRoundingMagic);
    Fit best{top, V::set1(0.0f), V::set1(kGains[0]), V::set1(0.0f)};
    for (int32_t i = 0; i + 1 < kNumGains; ++i) {
      const auto is_short = less(s * V::set1(static_cast<float>(kGains[i] * kUniformTop)), top);
      best.gain = select(is_short, V::set1(kGains[i + 1]), best.gain);
      best.number = select(is_short, V::set1(static_cast<float>(i + 1)), best.number);
    }
    const V inverse = one / (s * best.gain);
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
      dot = fma(fit.gain, fit.product, dot);
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

  // 16 dimensions x 4 tokens, byte = dimension * 4 + token.
  static KAMADO_INLINE void value_register(const uint8_t* rows, uint8_t* out) {
    for (int i = 0; i < 16; ++i) memcpy(out + 4 * i, rows + i * kPageTokens, 4);
  }

  static void pack(int32_t bits, int32_t dim, bool is_key, const uint8_t* codes, uint8_t* out) {
    uint8_t registers[kChunkRegisters * 64];
    const int32_t quads = dim / 4, blocks = strip_blocks(bits);
    const size_t chunk_bytes = 64 * static_cast<size_t>(bits);
    for (int32_t reg = 0; reg < dim * kPageTokens / 64; ++reg) {
      uint8_t* to = registers + reg % kChunkRegisters * 64;
      if (is_key) {
        const int32_t token = reg / (quads * blocks) * 16 * blocks + reg % blocks * 16, quad = reg / blocks % quads;
        key_register(codes + 4 * quad * kPageTokens + token, to);
      } else {
        const int32_t group = reg / 64, halves = group_width(dim, group) / 16, within = reg - group * 64;
        const int32_t d = group * kGroupDims + within % halves * 16, token = within / halves * 4;
        value_register(codes + d * kPageTokens + token, to);
      }
      if (reg % kChunkRegisters == kChunkRegisters - 1) {
        pack_chunk(bits, registers, out);
        out += chunk_bytes;
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
    pack(bits, dim, is_key, codes, out.codes);
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
    for (int32_t token = 0; token < kPageTokens; token += kVirtualLanes) {
      for (int32_t d = 0; d < k_dim; ++d) with_sign(V::load(k_row(d) + token), d).store(x + d * kVirtualLanes);
      hadamard_rows(x, k_dim);
      for (int32_t d = 0; d < k_dim; ++d) {
        const V centred = V::load(x + d * kVirtualLanes) - V::set1(mean[d]);
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
      encode_block_of(codec.v_bits, x, v_dim, codes + token, gains + token, scales + token);
    }
    finish_block(codec.v_bits, v_dim, false, codes, gains, v_codes);
  }
};

}  // namespace
}  // namespace kamado
