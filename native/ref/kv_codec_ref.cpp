// Scalar reference of the KV codec: the contract of kv_codec.h as plain loops, and the sizes of its blocks.
#include "kamado/kv_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/kv_codec_layout.h"
#include "kernels/math.inc.h"

namespace kamado {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

float read_f16(const uint8_t* base, size_t index) {
  uint16_t h;
  std::memcpy(&h, base + 2 * index, 2);
  return f32_from_f16(h);
}

void write_f16(uint8_t* base, size_t index, float x) {
  const uint16_t h = f16_from_f32(x);
  std::memcpy(base + 2 * index, &h, 2);
}

// ---- rotation ----

void hadamard(float* x, int32_t dim, bool is_inverse) {
  const HadamardShape shape = hadamard_shape(dim);
  for (int32_t h = 1; h < shape.power; h *= 2) {
    for (int32_t i = 0; i < dim; ++i) {
      if (i & h) continue;
      const float a = x[i], b = x[i + h];
      x[i] = a + b;
      x[i + h] = a - b;
    }
  }
  if (shape.order > 1) {
    const PaleyMatrix& m = paley_matrix(shape.order);
    float in[kMaxDim];
    std::copy(x, x + dim, in);
    for (int32_t r = 0; r < shape.order; ++r) {
      for (int32_t c = 0; c < shape.power; ++c) {
        float sum = 0.0f;
        for (int32_t s = 0; s < shape.order; ++s) {
          const float term = in[s * shape.power + c];
          const bool is_negative = is_inverse ? m.is_negative[s][r] : m.is_negative[r][s];
          sum = is_negative ? sum - term : sum + term;
        }
        x[r * shape.power + c] = sum;
      }
    }
  }
  const float scale = hadamard_scale(dim);
  for (int32_t i = 0; i < dim; ++i) x[i] *= scale;
}

void flip_signs(float* x, int32_t dim) {
  for (int32_t i = 0; i < dim; ++i) x[i] = kSigns.is_negative[i] ? -x[i] : x[i];
}

void rotate(float* x, int32_t dim) {
  flip_signs(x, dim);
  hadamard(x, dim, false);
}

void rotate_back(float* x, int32_t dim) {
  hadamard(x, dim, true);
  flip_signs(x, dim);
}

float tree_sum(float* lanes) {
  for (int width = kVirtualLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  }
  return lanes[0];
}

float tree_max(float* lanes) {
  for (int width = kVirtualLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lanes[l] = max(F1{lanes[l]}, F1{lanes[l + width]}).v;
  }
  return lanes[0];
}

// ---- encoding ----

struct EncodedVector {
  float scale;
  uint8_t gains[kMaxGroups];
  uint8_t codes[kMaxDim];
};

int32_t magnitude_of(int32_t bits, float t) {
  int32_t magnitude = 0;
  for (int32_t i = 0; i + 1 < num_magnitudes(bits); ++i) magnitude += t >= level_border(bits, i);
  return magnitude;
}

struct Fit {
  float error, product;  // squared error less |x|^2, and x . levels
};

Fit fit_group(int32_t bits, const float* x, int32_t width, float a) {
  const float inverse = 1.0f / a;
  float product = 0.0f, squares = 0.0f;
  for (int32_t i = 0; i < width; ++i) {
    const float size = std::fabs(x[i]);
    const auto level = static_cast<float>(kLevels[bits][magnitude_of(bits, size * inverse)]);
    product = std::fma(size, level, product);
    squares = std::fma(level, level, squares);
  }
  return {a * std::fma(a, squares, -2.0f * product), product};
}

// Levels of the normal law: the best of the even gains, then of its neighbours.
float encode_levels(int32_t bits, const float* x, int32_t dim, float s, EncodedVector& out) {
  float dot = 0.0f;
  for (int32_t g = 0; g < num_groups(dim); ++g) {
    const float* group = x + g * kGroupDims;
    const int32_t width = group_width(dim, g);
    int32_t best = 0;
    Fit fit{std::numeric_limits<float>::infinity(), 0.0f};
    const auto attempt = [&](int32_t gain) {
      const Fit other = fit_group(bits, group, width, s * static_cast<float>(kGains[gain]));
      if (other.error < fit.error) fit = other, best = gain;
    };
    for (int32_t gain = 0; gain < kNumGains; gain += 2) attempt(gain);
    const int32_t centre = best;
    attempt(std::max(centre - 1, 0));
    attempt(centre + 1);
    out.gains[g] = static_cast<uint8_t>(best);
    dot = std::fma(static_cast<float>(kGains[best]), fit.product, dot);
    const float inverse = 1.0f / (s * static_cast<float>(kGains[best]));
    for (int32_t i = 0; i < width; ++i) {
      const int32_t magnitude = magnitude_of(bits, std::fabs(group[i]) * inverse), half = num_magnitudes(bits);
      out.codes[g * kGroupDims + i] = static_cast<uint8_t>(group[i] < 0.0f ? half - 1 - magnitude : half + magnitude);
    }
  }
  return dot;
}

// Uniform steps: the smallest gain that reaches the group's largest value.
float encode_uniform(const float* x, int32_t dim, const float* tops, float s, EncodedVector& out) {
  float dot = 0.0f;
  for (int32_t g = 0; g < num_groups(dim); ++g) {
    int32_t best = 0;
    for (int32_t i = 0; i + 1 < kNumGains; ++i) best += s * static_cast<float>(kGains[i] * kUniformTop) < tops[g];
    out.gains[g] = static_cast<uint8_t>(best);
    const auto gain = static_cast<float>(kGains[best]);
    const float inverse = 1.0f / (s * gain);
    float product = 0.0f;
    for (int32_t i = g * kGroupDims; i < g * kGroupDims + group_width(dim, g); ++i) {
      const float limit = static_cast<float>(kUniformTop);
      const float level = std::nearbyint(max(min(F1{x[i] * inverse}, F1{limit}), F1{-limit}).v);
      product = std::fma(x[i], level, product);
      out.codes[i] = static_cast<uint8_t>(static_cast<int8_t>(level));
    }
    dot = std::fma(gain, product, dot);
  }
  return dot;
}

void encode_vector(int32_t bits, const float* x, int32_t dim, EncodedVector& out) {
  float squares = 0.0f, top = 0.0f, tops[kMaxGroups];
  for (int32_t g = 0; g < num_groups(dim); ++g) {
    float sum = 0.0f, largest = 0.0f;
    const int32_t width = group_width(dim, g);
    for (int32_t i = g * kGroupDims; i < g * kGroupDims + width; ++i) {
      sum = std::fma(x[i], x[i], sum);
      largest = max(F1{std::fabs(x[i])}, F1{largest}).v;
    }
    squares += sum;
    tops[g] = bits == 8 ? largest : std::sqrt(sum * (1.0f / static_cast<float>(width)));
    top = max(F1{tops[g]}, F1{top}).v;
  }
  const bool is_zero = !(top > kTinyRms);
  const float step = bits == 8 ? 1.0f / (kUniformTop * 255.0f) : 1.0f / (kLevelUnit[bits] * kGains[kTopGain]);
  const float s = is_zero ? 1.0f : top * step;
  const float dot = bits == 8 ? encode_uniform(x, dim, tops, s, out) : encode_levels(bits, x, dim, s, out);
  out.scale = is_zero ? 0.0f : squares / dot * kScaleUnit;
}

// Encodes x [128][dim] (rotated, centred).
void write_block(int32_t bits, const float* x, int32_t dim, bool is_key, uint8_t* block, uint8_t* registers) {
  const BlockView<uint8_t> out = view_block(block, dim, is_key);
  std::memset(out.gains, 0, gains_bytes(dim));
  for (int32_t token = 0; token < kPageTokens; ++token) {
    EncodedVector encoded;
    encode_vector(bits, x + static_cast<size_t>(token) * static_cast<size_t>(dim), dim, encoded);
    write_f16(out.scales, static_cast<size_t>(token), encoded.scale);
    for (int32_t g = 0; g < num_groups(dim); ++g) {
      out.gains[static_cast<size_t>(g) * kGainBytes + gain_index(token)] |=
          static_cast<uint8_t>(encoded.gains[g] << (token < 64 ? 0 : 4));
    }
    for (int32_t d = 0; d < dim; ++d) {
      const CodePlace at = is_key ? key_place(dim, bits, token, d) : value_place(dim, token, d);
      registers[at.reg * 64 + at.byte] = encoded.codes[d];
    }
  }
  for (int32_t chunk = 0; chunk < dim * kPageTokens / 512; ++chunk) {
    pack_chunk(bits, registers + chunk * 512, out.codes + static_cast<size_t>(chunk) * 64 * static_cast<size_t>(bits));
  }
}

void encode_page(const KvCodec& codec, const uint16_t* k, const uint16_t* v, uint8_t* k_codes, uint8_t* v_codes,
                 uint8_t* sinks, uint8_t* scratch) {
  const auto k_dim = static_cast<size_t>(codec.head_dim), v_dim = static_cast<size_t>(codec.v_dim);
  const int32_t first = sinks ? kSinkTokens : 0;
  if (sinks) {  // keys [head_dim][4], then values [4][v_dim]
    for (size_t d = 0; d < k_dim; ++d) std::memcpy(sinks + d * kSinkTokens * 2, k + d * kPageTokens, kSinkTokens * 2);
    std::memcpy(sinks + k_dim * kSinkTokens * 2, v, kSinkTokens * v_dim * 2);
  }
  auto* x = reinterpret_cast<float*>(scratch);
  uint8_t* registers = scratch + std::max(k_dim, v_dim) * kPageTokens * sizeof(float);

  float mean[kMaxDim];
  for (size_t d = 0; d < k_dim; ++d) {
    float lanes[kVirtualLanes] = {};
    for (int32_t token = first; token < kPageTokens; ++token) {
      lanes[token % kVirtualLanes] += f32_from_f16(k[d * kPageTokens + static_cast<size_t>(token)]);
    }
    mean[d] = tree_sum(lanes) * (1.0f / static_cast<float>(kPageTokens - first));
  }
  rotate(mean, codec.head_dim);
  std::memset(k_codes, 0, mean_bytes(codec.head_dim));
  for (size_t d = 0; d < k_dim; ++d) {
    write_f16(k_codes, d, mean[d]);
    mean[d] = read_f16(k_codes, d);
  }
  for (size_t token = 0; token < kPageTokens; ++token) {
    float* row = x + token * k_dim;
    for (size_t d = 0; d < k_dim; ++d) row[d] = f32_from_f16(k[d * kPageTokens + token]);
    rotate(row, codec.head_dim);
    for (size_t d = 0; d < k_dim; ++d) row[d] = token < static_cast<size_t>(first) ? 0.0f : row[d] - mean[d];
  }
  write_block(codec.k_bits, x, codec.head_dim, true, k_codes, registers);

  for (size_t token = 0; token < kPageTokens; ++token) {
    float* row = x + token * v_dim;
    for (size_t d = 0; d < v_dim; ++d) row[d] = f32_from_f16(v[token * v_dim + d]);
    rotate(row, codec.v_dim);
    if (token < static_cast<size_t>(first)) std::fill(row, row + v_dim, 0.0f);
  }
  write_block(codec.v_bits, x, codec.v_dim, false, v_codes, registers);
}

// ---- queries ----

void rotate_query(const KvCodec& codec, const float* q, uint8_t* rotated) {
  std::memset(rotated, 0, rotated_query_bytes(codec));
  const int32_t dim = codec.head_dim, passes = num_passes(codec.k_bits);
  const RotatedQuery out = view_query(rotated, dim);
  std::copy(q, q + dim, out.rotated);
  rotate(out.rotated, dim);
  float top = 0.0f;
  bool is_finite = true;
  for (int32_t d = 0; d < dim; ++d) {
    is_finite &= std::isfinite(out.rotated[d]);
    top = std::max(top, std::fabs(out.rotated[d]));
  }
  if (!is_finite) {  // a NaN score for every key
    *out.scale = kNan;
    return;
  }
  if (top < kTinyWeight) return;
  const float inverse = kQueryTop[passes - 1] / top;
  *out.scale = top / kQueryTop[passes - 1];
  for (int32_t d = 0; d < dim; ++d) {
    const auto code = static_cast<int32_t>(std::nearbyint(out.rotated[d] * inverse));
    const int32_t high = passes == 2 ? (code + 64) >> 7 : code, low = code - high * 128;
    out.codes[d] = static_cast<int8_t>(high);
    out.sums[d / kGroupDims] += high;
    if (passes == 1) continue;
    out.codes[dim + d] = static_cast<int8_t>(low);
    out.sums[kMaxGroups + d / kGroupDims] += low;
  }
}

// ---- attention ----

int32_t gain_of(const uint8_t* gains, int32_t group, int32_t token) {
  const uint8_t pair = gains[static_cast<size_t>(group) * kGainBytes + gain_index(token)];
  return kGains[token < 64 ? pair & 15 : pair >> 4];
}

void attend_one(const KvCodec& codec, const uint8_t* k_codes, const uint8_t* v_codes, const uint8_t* sinks, float scale,
                float softcap, const CodeQuery& query) {
  const int32_t k_dim = codec.head_dim, v_dim = codec.v_dim;
  const BlockView<const uint8_t> k = view_block(k_codes, k_dim, true), v = view_block(v_codes, v_dim, false);
  const RotatedQuery q = view_query(const_cast<uint8_t*>(query.rotated), k_dim);

  float lanes[kVirtualLanes] = {};
  for (int32_t d = 0; d < k_dim; ++d) {
    float& lane = lanes[d % kVirtualLanes];
    lane = std::fma(q.rotated[d], read_f16(k.mean, static_cast<size_t>(d)), lane);
  }
  const float with_mean = tree_sum(lanes);

  float p[kPageTokens] = {};
  for (float& lane : lanes) lane = -std::numeric_limits<float>::infinity();
  for (int32_t j = query.lo; j < query.hi; ++j) {
    float s = 0.0f;
    if (sinks && j < kSinkTokens) {
      for (int32_t d = 0; d < k_dim; ++d) {
        s = std::fma(query.q[d], read_f16(sinks, static_cast<size_t>(d * kSinkTokens + j)), s);
      }
    } else {
      int32_t totals[2] = {};
      for (int32_t pass = 0; pass < num_passes(codec.k_bits); ++pass) {
        for (int32_t d = 0; d < k_dim; ++d) {
          const int32_t level =
              code_level(codec.k_bits, unpack_code(codec.k_bits, k.codes, key_place(k_dim, codec.k_bits, j, d)));
          totals[pass] += gain_of(k.gains, d / kGroupDims, j) * level * q.codes[pass * k_dim + d];
        }
      }
      const auto high = static_cast<float>(totals[0]);
      const float dot = num_passes(codec.k_bits) == 2 ? std::fma(high, 128.0f, static_cast<float>(totals[1])) : high;
      const float key_scale = read_f16(k.scales, static_cast<size_t>(j)) * (1.0f / kScaleUnit);
      s = std::fma(dot, key_scale * *q.scale, with_mean);
    }
    s *= scale;
    if (softcap > 0.0f) s = softcap_f32(F1{s}, F1{softcap}).v;
    p[j] = s;
    lanes[j % kVirtualLanes] = max(F1{lanes[j % kVirtualLanes]}, F1{s}).v;
  }
  const float m = tree_max(lanes);
  for (float& lane : lanes) lane = 0.0f;
  for (int32_t j = query.lo; j < query.hi; ++j) lanes[j % kVirtualLanes] += p[j] = exp_f32(F1{p[j] - m}).v;
  const float l = tree_sum(lanes);
  query.partial[0] = m;
  query.partial[1] = l;

  // Weights: p * scale * gain in whole steps of 1 / weight_top of the largest; what is rounded off goes on to the token
  // 16 later.
  float weighted[kPageTokens], largest = 0.0f;
  for (int32_t j = 0; j < kPageTokens; ++j) {
    weighted[j] = p[j] * (read_f16(v.scales, static_cast<size_t>(j)) * (1.0f / kScaleUnit));
    int32_t top_gain = 0;
    for (int32_t g = 0; g < num_groups(v_dim); ++g) top_gain = std::max(top_gain, gain_of(v.gains, g, j));
    largest = max(F1{weighted[j] * static_cast<float>(top_gain)}, F1{largest}).v;
  }
  const bool is_nan = l != l, has_weight = !is_nan && largest > kTinyWeight;
  const float weight_top = kWeightTop[num_passes(codec.v_bits) - 1];
  const float inverse = has_weight ? weight_top / largest : 0.0f, step = has_weight ? largest / weight_top : 0.0f;
  float* o = query.partial + 2;
  for (int32_t g = 0; g < num_groups(v_dim); ++g) {
    int32_t weights[kPageTokens] = {};
    std::copy(kDither, kDither + kVirtualLanes, lanes);
    for (int32_t j = 0; has_weight && j < kPageTokens; ++j) {
      float& carry = lanes[j % kVirtualLanes];
      const float exact = std::fma(weighted[j] * inverse, static_cast<float>(gain_of(v.gains, g, j)), carry);
      const float rounded = std::nearbyint(exact);
      carry = exact - rounded;
      weights[j] = static_cast<int32_t>(rounded);
    }
    for (int32_t d = g * kGroupDims; d < g * kGroupDims + group_width(v_dim, g); ++d) {
      int32_t high = 0, low = 0;  // 7 bits each with two passes: their sums are rounded apart
      for (int32_t j = 0; j < kPageTokens; ++j) {
        const int32_t level = code_level(codec.v_bits, unpack_code(codec.v_bits, v.codes, value_place(v_dim, j, d)));
        high += level * (num_passes(codec.v_bits) == 2 ? weights[j] >> 7 : weights[j]);
        low += level * (num_passes(codec.v_bits) == 2 ? weights[j] & 127 : 0);
      }
      const auto sum = static_cast<float>(high);
      o[d] = (num_passes(codec.v_bits) == 2 ? std::fma(sum, 128.0f, static_cast<float>(low)) : sum) * step;
      if (is_nan) o[d] = kNan;
    }
  }
  if (!sinks || query.lo >= kSinkTokens) return;
  float exact[kMaxDim] = {};
  for (int32_t j = query.lo; j < std::min(query.hi, kSinkTokens); ++j) {
    for (int32_t d = 0; d < v_dim; ++d) {
      exact[d] = std::fma(p[j], read_f16(sinks, static_cast<size_t>(k_dim * kSinkTokens + j * v_dim + d)), exact[d]);
    }
  }
  rotate(exact, v_dim);
  for (int32_t d = 0; d < v_dim; ++d) o[d] += exact[d];
}

void attend_page(const KvCodec& codec, const uint8_t* k_codes, const uint8_t* v_codes, const uint8_t* sinks,
                 float scale, float softcap, const CodeQuery* queries, int32_t n, uint8_t*, const void*) {
  for (int32_t i = 0; i < n; ++i) attend_one(codec, k_codes, v_codes, sinks, scale, softcap, queries[i]);
}

void unrotate(const KvCodec& codec, float* running) {
  rotate_back(running + 2, codec.v_dim);
}

void decode_page(const KvCodec& codec, const uint8_t* k_codes, const uint8_t* v_codes, const uint8_t* sinks, float* k,
                 float* v) {
  for (const bool is_key : {true, false}) {
    const int32_t dim = is_key ? codec.head_dim : codec.v_dim, bits = is_key ? codec.k_bits : codec.v_bits;
    const BlockView<const uint8_t> block = view_block(is_key ? k_codes : v_codes, dim, is_key);
    for (int32_t j = 0; j < kPageTokens; ++j) {
      float* row = (is_key ? k : v) + static_cast<size_t>(j) * static_cast<size_t>(dim);
      if (sinks && j < kSinkTokens) {
        for (int32_t d = 0; d < dim; ++d) {
          const int32_t at = is_key ? d * kSinkTokens + j : codec.head_dim * kSinkTokens + j * dim + d;
          row[d] = read_f16(sinks, static_cast<size_t>(at));
        }
        continue;
      }
      const float scale = read_f16(block.scales, static_cast<size_t>(j)) * (1.0f / kScaleUnit);
      for (int32_t d = 0; d < dim; ++d) {
        const CodePlace at = is_key ? key_place(dim, bits, j, d) : value_place(dim, j, d);
        const int32_t level = code_level(bits, unpack_code(bits, block.codes, at));
        row[d] = scale * static_cast<float>(gain_of(block.gains, d / kGroupDims, j) * level);
        if (is_key) row[d] += read_f16(block.mean, static_cast<size_t>(d));
      }
      rotate_back(row, dim);
    }
  }
}

constexpr KvCodecKernels kKernels = {encode_page, rotate_query, attend_page, unrotate, decode_page};

}  // namespace

bool is_codec_dim(int32_t dim) {
  return dim == 64 || dim == 80 || dim == 96 || dim == 128 || dim == 192 || dim == 256 || dim == 512;
}

bool is_valid_codec(const KvCodec& codec) {
  const auto is_width = [](int32_t bits) { return (bits >= 1 && bits <= 4) || bits == 8; };
  return is_codec_dim(codec.head_dim) && is_codec_dim(codec.v_dim) && is_width(codec.k_bits) && is_width(codec.v_bits);
}

size_t encoded_k_page_bytes(int32_t head_dim, int32_t bits) {
  return mean_bytes(head_dim) + encoded_v_page_bytes(head_dim, bits);
}

size_t encoded_v_page_bytes(int32_t v_dim, int32_t bits) {
  return kScaleBytes + gains_bytes(v_dim) + code_bytes(v_dim, bits);
}

size_t encoded_sink_bytes(const KvCodec& codec) {
  return round_up64(static_cast<size_t>(codec.head_dim + codec.v_dim) * kSinkTokens * 2);
}

size_t rotated_query_bytes(const KvCodec& codec) {
  return query_bytes(codec.head_dim);
}

size_t attend_codes_scratch_bytes(const KvCodec& codec, int32_t n_queries) {
  const auto block = static_cast<size_t>(std::clamp(n_queries, 1, kCodeBlock));
  return code_page_scratch(codec) + block * code_query_scratch(codec);
}

size_t encode_scratch_bytes(const KvCodec& codec) {
  return static_cast<size_t>(std::max(codec.head_dim, codec.v_dim)) * kPageTokens * (sizeof(float) + 1);
}

const KvCodecKernels* kv_codec_kernels_ref() {
  return &kKernels;
}

}  // namespace kamado
