// What the tiers of the KV codec agree on besides the contract: tables, the order of bytes in an encoded page, the
// rotation's matrices. docs/kv-codec.md draws the layout.
//
// A block is   [K only: mean f16[dim], padded to 64 bytes] [scales f16[128]] [gains: 64 bytes a group] [codes]
// with groups of 32 dimensions (the last of 80 has 16); byte i of a group's gains holds token i (low nibble), 64 + i.
//
// Codes come in registers of 64 codes, and 8 registers make a chunk of 64 * bits bytes. Codes of 4 bits: packed
// register i of a chunk holds register 2i in the low nibbles and 2i + 1 in the high ones; 2 bits: 4i .. 4i + 3 from the
// low bits upwards; 1 bit: all 8; 3 bits: the low two bits as above, then the third; 8 bits: as they are.
//   keys:   16 keys x 4 dimensions (byte = key * 4 + dimension), ordered [strip of keys][dimensions / 4][16 keys]
//   values: 16 dimensions x 4 tokens (byte = dimension * 4 + token), ordered [group][tokens / 4][16 dimensions]
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kamado/kv_codec.h"

namespace kamado {
namespace {

constexpr int32_t kGroupDims = 32;
constexpr int32_t kMaxGroups = 16;
constexpr int32_t kMaxDim = 512;
constexpr int32_t kChunkRegisters = 8;
constexpr size_t kGainBytes = 64;  // of one group
constexpr size_t kScaleBytes = 2 * kPageTokens;

// Queries whose scores and weights are in scratch at once.
constexpr int32_t kCodeBlock = 16;

// ---- levels ----

// Magnitudes of the Lloyd-Max levels of the normal law in units of 1 / kLevelUnit standard deviations: 6 bits beside
// the sign, so that a product with an int8 query fits 16 bits twice. Rounding costs less than 0.5 % of the distortion.
constexpr int32_t kNumLevels = 8;
constexpr int8_t kLevels[5][kNumLevels] = {{}, {63}, {19, 63}, {7, 22, 39, 63}, {3, 9, 15, 22, 29, 37, 48, 63}};
constexpr float kLevelUnit[5] = {0.0f, 63.0f / 0.7979f, 63.0f / 1.5104f, 63.0f / 2.1520f, 63.0f / 2.7326f};
constexpr int32_t kUniformTop = 127;  // 8 bits

constexpr int32_t num_magnitudes(int32_t bits) {
  return 1 << (bits - 1);
}
// The border between magnitude i and i + 1.
constexpr float level_border(int32_t bits, int32_t i) {
  return 0.5f * static_cast<float>(kLevels[bits][i] + kLevels[bits][i + 1]);
}
// The signed level of a code: ascending with the code.
constexpr int32_t code_level(int32_t bits, int32_t code) {
  if (bits == 8) return code < 128 ? code : code - 256;
  const int32_t half = num_magnitudes(bits);
  return code >= half ? kLevels[bits][code - half] : -kLevels[bits][half - 1 - code];
}

// 255 * 2^((i - 15) / 12), rounded: they fit a byte, and the sum of all groups' dot products times gains fits 32 bits:
// 512 values of 8 bits make at most 512 * 127 * 127 * 255 = 2.1e9 < 2^31.
constexpr int32_t kNumGains = 16;
constexpr uint8_t kGains[kNumGains] = {107, 114, 120, 127, 135, 143, 152, 161, 170, 180, 191, 202, 214, 227, 241, 255};
// The gain of the group with the largest root mean square when nothing else speaks: room for its search above.
constexpr int32_t kTopGain = 11;

// Scales are stored times this: in the normal range of f16 for vectors of root mean square 0.0003 to 280,000.
constexpr float kScaleUnit = 1024.0f;
// Below, a vector counts as zero.
constexpr float kTinyRms = 1e-20f;
// Below, a page's weighted scales count as zero.
constexpr float kTinyWeight = 1e-30f;

// Queries and weights are one 8-bit number, or for codes of 8 bits two of 7 bits and a sign.
constexpr int32_t num_passes(int32_t bits) {
  return bits == 8 ? 2 : 1;
}
constexpr float kQueryTop[2] = {127.0f, 127.0f * 128.0f};
constexpr float kWeightTop[2] = {254.0f, 127.0f * 128.0f};

// Rounding of weights carries its error on to the token 16 later; the 16 chains start at these offsets, so that what is
// far below a step still adds up to the right sum.
constexpr float kDither[16] = {-15 / 32.0f, 1 / 32.0f,  -7 / 32.0f,  9 / 32.0f, -11 / 32.0f, 5 / 32.0f,
                               -3 / 32.0f,  13 / 32.0f, -13 / 32.0f, 3 / 32.0f, -5 / 32.0f,  11 / 32.0f,
                               -9 / 32.0f,  7 / 32.0f,  -1 / 32.0f,  15 / 32.0f};

// Calls with the width of the codes as a constant of the type: `with_bits(3, [](auto bits) { f<bits()>(); })`.
template <class Call>
inline void with_bits(int32_t bits, const Call& call) {
  switch (bits) {
    case 1:
      return call(std::integral_constant<int32_t, 1>());
    case 2:
      return call(std::integral_constant<int32_t, 2>());
    case 3:
      return call(std::integral_constant<int32_t, 3>());
    case 4:
      return call(std::integral_constant<int32_t, 4>());
    default:
      return call(std::integral_constant<int32_t, 8>());
  }
}

// ---- layout ----

constexpr int32_t num_groups(int32_t dim) {
  return (dim + kGroupDims - 1) / kGroupDims;
}
constexpr int32_t group_width(int32_t dim, int32_t group) {
  return dim - group * kGroupDims < kGroupDims ? dim - group * kGroupDims : kGroupDims;
}
constexpr size_t round_up64(size_t n) {
  return (n + 63) / 64 * 64;
}
constexpr size_t code_bytes(int32_t dim, int32_t bits) {
  return static_cast<size_t>(dim) * kPageTokens / 8 * static_cast<size_t>(bits);
}
constexpr size_t mean_bytes(int32_t dim) {
  return round_up64(static_cast<size_t>(dim) * 2);
}
constexpr size_t gains_bytes(int32_t dim) {
  return static_cast<size_t>(num_groups(dim)) * kGainBytes;
}

template <class Byte>
struct BlockView {  // Byte: uint8_t or const uint8_t
  Byte* mean;       // f16, keys only
  Byte* scales;     // f16
  Byte* gains;
  Byte* codes;
};

template <class Byte>
constexpr BlockView<Byte> view_block(Byte* block, int32_t dim, bool is_key) {
  Byte* scales = block + (is_key ? mean_bytes(dim) : 0);
  return {block, scales, scales + kScaleBytes, scales + kScaleBytes + gains_bytes(dim)};
}

// Blocks of 16 keys that lie side by side, so that a packed register never mixes strips.
constexpr int32_t strip_blocks(int32_t bits) {
  return bits >= 4 ? 2 : 4;
}
constexpr int32_t strip_keys(int32_t bits) {
  return 16 * strip_blocks(bits);
}

// Byte of one group's gain of a token, and whether it is the high nibble.
constexpr size_t gain_index(int32_t token) {
  return static_cast<size_t>(token % 64);
}

struct CodePlace {  // register and byte in it
  int32_t reg, byte;
};

constexpr CodePlace key_place(int32_t dim, int32_t bits, int32_t token, int32_t d) {
  const int32_t strip = token / strip_keys(bits), block = token % strip_keys(bits) / 16;
  return {(strip * (dim / 4) + d / 4) * strip_blocks(bits) + block, token % 16 * 4 + d % 4};
}
constexpr CodePlace value_place(int32_t dim, int32_t token, int32_t d) {
  const int32_t group = d / kGroupDims, halves = group_width(dim, group) / 16;
  return {group * (kGroupDims / 16) * (kPageTokens / 4) + token / 4 * halves + d % kGroupDims / 16,
          d % 16 * 4 + token % 4};
}

// `kWidth` bits from `kShift` on of the codes of 8 registers, side by side. Plain loops over bytes: with constants for
// shifts and counts compilers turn them into vector code.
template <int kWidth, int kShift>
inline void pack_plane(const uint8_t* regs, uint8_t* out) {
  constexpr int kPerByte = 8 / kWidth, kMask = (1 << kWidth) - 1;
  for (int r = 0; r < kChunkRegisters / kPerByte; ++r, regs += 64 * kPerByte, out += 64) {
    for (int i = 0; i < 64; ++i) {
      int packed = 0;
      for (int k = 0; k < kPerByte; ++k) packed |= (regs[k * 64 + i] >> kShift & kMask) << (k * kWidth);
      out[i] = static_cast<uint8_t>(packed);
    }
  }
}

// Packs 8 registers of 64 codes into a chunk.
template <int kBits>
inline void pack_chunk(const uint8_t* regs, uint8_t* chunk) {
  if constexpr (kBits == 3) {
    pack_plane<2, 0>(regs, chunk);
    pack_plane<1, 2>(regs, chunk + 128);
  } else {
    pack_plane<kBits, 0>(regs, chunk);
  }
}
inline void pack_chunk(int32_t bits, const uint8_t* regs, uint8_t* chunk) {
  with_bits(bits, [&](auto width) { pack_chunk<width()>(regs, chunk); });
}

// The code at a place.
inline int32_t unpack_code(int32_t bits, const uint8_t* codes, CodePlace at) {
  const uint8_t* chunk = codes + static_cast<size_t>(at.reg / kChunkRegisters) * 64 * static_cast<size_t>(bits);
  const int32_t r = at.reg % kChunkRegisters;
  const auto plane = [&](int32_t width, const uint8_t* in) {
    const int32_t a_byte = 8 / width;
    return in[r / a_byte * 64 + at.byte] >> (r % a_byte * width) & ((1 << width) - 1);
  };
  return bits == 3 ? plane(2, chunk) | plane(1, chunk + 128) << 2 : plane(bits, chunk);
}

// ---- a rotated query ----

struct RotatedQuery {
  float* scale;    // q = scale * code (two passes: * (128 * high + low))
  float* rotated;  // [head_dim]
  int32_t* sums;   // [passes][kMaxGroups] of the codes of a group
  int8_t* codes;   // [passes][head_dim]
};

constexpr size_t kQuerySumsBytes = 2 * kMaxGroups * sizeof(int32_t);

constexpr size_t query_bytes(int32_t head_dim) {
  return 64 + kQuerySumsBytes + round_up64(static_cast<size_t>(head_dim) * 6);
}
inline RotatedQuery view_query(uint8_t* blob, int32_t head_dim) {
  uint8_t* rotated = blob + 64 + kQuerySumsBytes;
  return {reinterpret_cast<float*>(blob), reinterpret_cast<float*>(rotated), reinterpret_cast<int32_t*>(blob + 64),
          reinterpret_cast<int8_t*>(rotated + static_cast<size_t>(head_dim) * 4)};
}

// ---- scratch of attention ----

// Of one query: scores [passes][128] (32-bit; weights as floats later), weights [passes][groups][128] (8-bit), sums
// [passes][v_dim] (32-bit).
constexpr size_t code_query_scratch(const KvCodec& codec) {
  const auto k_passes = static_cast<size_t>(num_passes(codec.k_bits));
  const auto v_passes = static_cast<size_t>(num_passes(codec.v_bits));
  return k_passes * kPageTokens * 4 +
         v_passes * (gains_bytes(codec.v_dim) * 2 + round_up64(static_cast<size_t>(codec.v_dim) * 4));
}
// Of the page: scales of keys and values, the largest gain of a value, its gains by group; all floats.
constexpr size_t code_page_scratch(const KvCodec& codec) {
  return (3 + static_cast<size_t>(num_groups(codec.v_dim))) * kPageTokens * sizeof(float);
}

// ---- rotation ----

// dim = order * power: a Paley matrix of order 12 or 20 (1: none) times a Walsh-Hadamard matrix.
struct HadamardShape {
  int32_t order, power;
};
constexpr HadamardShape hadamard_shape(int32_t dim) {
  switch (dim) {
    case 80:
      return {20, 4};
    case 96:
      return {12, 8};
    case 192:
      return {12, 16};
    default:
      return {1, dim};
  }
}

constexpr int32_t kMaxPaley = 20;
struct PaleyMatrix {
  bool is_negative[kMaxPaley][kMaxPaley];
};

// Paley's first construction for a prime q = 3 mod 4: I + S, S skew-symmetric with the quadratic character inside.
constexpr PaleyMatrix paley(int32_t order) {
  PaleyMatrix m{};
  const int32_t q = order - 1;
  for (int32_t i = 0; i < order; ++i) {
    for (int32_t j = 0; j < order; ++j) {
      bool positive = true;
      if (i == 0 || j == 0 || i == j) {
        positive = i == 0 || i == j;
      } else {
        const int32_t difference = ((i - j) % q + q) % q;
        positive = false;
        for (int32_t x = 1; x < q; ++x) positive |= x * x % q == difference;
      }
      m.is_negative[i][j] = !positive;
    }
  }
  return m;
}

constexpr bool is_orthogonal(const PaleyMatrix& m, int32_t order) {
  for (int32_t i = 0; i < order; ++i) {
    for (int32_t j = 0; j < i; ++j) {
      int32_t sum = 0;
      for (int32_t k = 0; k < order; ++k) sum += m.is_negative[i][k] == m.is_negative[j][k] ? 1 : -1;
      if (sum != 0) return false;
    }
  }
  return true;
}

constexpr PaleyMatrix kPaley12 = paley(12), kPaley20 = paley(20);
static_assert(is_orthogonal(kPaley12, 12) && is_orthogonal(kPaley20, 20));

constexpr const PaleyMatrix& paley_matrix(int32_t order) {
  return order == 12 ? kPaley12 : kPaley20;
}

// 1 / sqrt(dim), rounded to nearest.
constexpr float hadamard_scale(int32_t dim) {
  switch (dim) {
    case 64:
      return 0.125f;
    case 80:
      return 0.11180339887498949f;
    case 96:
      return 0.10206207261596575f;
    case 128:
      return 0.08838834764831845f;
    case 192:
      return 0.07216878364870323f;
    case 256:
      return 0.0625f;
    default:
      return 0.04419417382415922f;
  }
}

struct SignTable {
  bool is_negative[kMaxDim];
};

// One bit of splitmix64 a dimension. Part of the format of stored pages: never to be changed.
constexpr SignTable make_signs() {
  SignTable table{};
  uint64_t state = 0x6b616d61646f;
  for (bool& is_negative : table.is_negative) {
    state += 0x9e3779b97f4a7c15u;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    is_negative = ((z ^ (z >> 31)) & 1) != 0;
  }
  return table;
}
constexpr SignTable kSigns = make_signs();

}  // namespace
}  // namespace kamado
