// How each stored layout yields code words, scales and corrections: decoding only, no arithmetic on activations.
//
// A layout's `step(planes, p, i, c)` gives `kLanes` code words of 16 rows; lane l of step i of phase p holds the values
// 4 * group(p, l, i) ... + 3 of the block. Shifts that cross byte borders are masked afterwards.
#pragma once
#include "kernels/linear_prims.inc.h"
#include "kernels/linear_tile.h"

namespace kamado {
namespace {

constexpr int kSignedOffset =
    kHasVnni ? 128 : 0;  // VNNI multiplies unsigned codes; AVX2 moves the sign to the activation

INLINE Bytes signed_codes(Bytes v) {
  if constexpr (kHasVnni) return flip_bytes(v, 0x80);
  return v;
}
INLINE Bytes low_nibbles(Bytes v) {
  return and_bytes(v, 15);
}
INLINE Bytes high_nibbles(Bytes v) {
  return and_bytes(shift_words<4>(v), 15);
}

// ---- 32-value blocks ------------------------------------------------------------------------------------------------

template <Layout kLayout, CodeKind kCodeKind, int kCodeOffset>
struct Block32 {
  static constexpr const LayoutInfo& kInfo = *layout_info(kLayout);
  static constexpr int kBlockValues = 32;
  static constexpr CodeKind kKind = kCodeKind;
  static constexpr int kOffset = kCodeOffset;  // codes are stored with this added
  static constexpr bool kHasMin = kInfo.has_min();

  INLINE F32 d(const uint8_t* header, int in_group) const { return load_f16(header + in_group * 32); }
  INLINE F32 m(const uint8_t* header, int) const { return load_f16(header + 32); }
};

template <Layout kLayout, CodeKind kCodeKind, int kCodeOffset>
struct Nibbles32 : Block32<kLayout, kCodeKind, kCodeOffset> {
  static constexpr int kLanes = 2, kSteps = 4;
  static constexpr int group(int lane, int i) { return lane * 4 + i; }
  template <class I>
  INLINE void step(const uint8_t* planes, I i, Bytes* c) const {
    const Bytes v = load_bytes(planes + i * kPlaneBytes);
    c[0] = low_nibbles(v);
    c[1] = high_nibbles(v);
  }
};

using LayoutQ4_0 = Nibbles32<Layout::Q4_0, CodeKind::kU4, 8>;
using LayoutQ4_1 = Nibbles32<Layout::Q4_1, CodeKind::kU4, 0>;

template <Layout kLayout, int kCodeOffset>
struct FiveBits32 : Block32<kLayout, CodeKind::kU5, kCodeOffset> {
  static constexpr int kLanes = 2, kSteps = 4;
  static constexpr int group(int lane, int i) { return lane * 4 + i; }
  template <class I>
  INLINE void step(const uint8_t* planes, I i, Bytes* c) const {
    const Bytes high = load_bytes(planes);  // bit g of a byte belongs to group g
    const Bytes v = load_bytes(planes + (i + 1) * kPlaneBytes);
    c[0] = or_and(low_nibbles(v), shift_words<I::value - 4>(high), 16);
    c[1] = or_and(high_nibbles(v), shift_words<I::value>(high), 16);
  }
};

using LayoutQ5_0 = FiveBits32<Layout::Q5_0, 16>;
using LayoutQ5_1 = FiveBits32<Layout::Q5_1, 0>;

struct LayoutQ8_0 : Block32<Layout::Q8_0, CodeKind::kSigned, kSignedOffset> {
  static constexpr int kLanes = 1, kSteps = 8;
  static constexpr int group(int, int i) { return i; }
  template <class I>
  INLINE void step(const uint8_t* planes, I i, Bytes* c) const {
    c[0] = signed_codes(load_bytes(planes + i * kPlaneBytes));
  }
};

// Codes name values of a table, which are stored there with the offset added.
template <Layout kLayout, CodeKind kCodeKind, int kCodeOffset, const int8_t* kValues>
struct TableNibbles32 : Nibbles32<kLayout, kCodeKind, kCodeOffset> {
  Table table = load_table(kValues, kCodeOffset);
  template <class I>
  INLINE void step(const uint8_t* planes, I i, Bytes* c) const {
    const Bytes v = load_bytes(planes + i * kPlaneBytes);
    c[0] = lookup(table, low_nibbles(v));
    c[1] = lookup(table, high_nibbles(v));
  }
};

using LayoutIQ4_NL = TableNibbles32<Layout::IQ4_NL, CodeKind::kSigned, kSignedOffset, kIq4Values>;

struct LayoutMXFP4 : TableNibbles32<Layout::MXFP4, CodeKind::kU5, 12, kMxfp4Values> {
  INLINE F32 d(const uint8_t* header, int in_group) const { return load_e8m0_half(header + in_group * 16); }
};

// ---- 256-value blocks -----------------------------------------------------------------------------------------------

template <Layout kLayout, CodeKind kCodeKind, int kCodeOffset>
struct Block256 {
  static constexpr bool kUnrollPhases = false;
  static constexpr const LayoutInfo& kInfo = *layout_info(kLayout);
  static constexpr int kBlockValues = 256;
  static constexpr CodeKind kKind = kCodeKind;
  static constexpr int kSubs = kInfo.fields.sub_blocks;
  static constexpr int kOffset = kCodeOffset;
  static constexpr bool kHasMin = kInfo.has_min();

  INLINE F32 d(const uint8_t* header) const { return load_f16(header); }
  INLINE F32 dmin(const uint8_t* header) const { return load_f16(header + 32); }
  INLINE Pair scale_pair(const uint8_t* header, int j) const {
    const uint8_t* at = header + 64 + j * 32;
    if constexpr (!kHasMin) return load_pairs_s8(at);
    if constexpr (has_shared_mins(kInfo)) return and_pairs(load_pairs_u8(at), 15);
    return load_pairs_u8(at);
  }
  INLINE Pair min_pair(const uint8_t* header, int j) const {
    const uint8_t* at = header + 64 + j * 32;
    if constexpr (has_shared_mins(kInfo)) return shift_pairs<4>(load_pairs_u8(at));
    return load_pairs_u8(at + kTileRows * kSubs);
  }
};

// Sub-blocks of 32 by pairs: even ones in low nibbles, odd ones in high nibbles.
template <Layout kLayout, CodeKind kCodeKind>
struct NibblePairs256 : Block256<kLayout, kCodeKind, 0> {
  static constexpr int kPhases = 4, kLanes = 2, kSteps = 8;
  static constexpr int group(int p, int lane, int i) { return p * 16 + lane * 8 + i; }
  template <class P, class L, class I>
  INLINE Scale scale(const uint8_t* header, P p, L, I) const {
    const Pair pair = this->scale_pair(header, p);
    return L::value == 0 ? even_scale(pair) : odd_scale(pair);
  }
};

struct LayoutQ4_K : NibblePairs256<Layout::Q4_K, CodeKind::kU4> {
  template <class P, class I>
  INLINE void step(const uint8_t* planes, P p, I i, Bytes* c) const {
    const Bytes v = load_bytes(planes + (p * 8 + i) * kPlaneBytes);
    c[0] = low_nibbles(v);
    c[1] = high_nibbles(v);
  }
};

struct LayoutQ5_K : NibblePairs256<Layout::Q5_K, CodeKind::kU5> {
  static constexpr bool kUnrollPhases = true;
  template <class P, class I>
  INLINE void step(const uint8_t* planes, P p, I i, Bytes* c) const {
    const Bytes high = load_bytes(planes + high_plane(kInfo, i) * kPlaneBytes);  // bit s: sub-block s
    const Bytes v = load_bytes(planes + low_plane(kInfo, p * 8 + i) * kPlaneBytes);
    c[0] = or_and(low_nibbles(v), shift_words<2 * P::value - 4>(high), 16);
    c[1] = or_and(high_nibbles(v), shift_words<2 * P::value - 3>(high), 16);
  }
};

struct LayoutIQ4_XS : Block256<Layout::IQ4_XS, CodeKind::kSigned, kSignedOffset> {
  static constexpr bool kUnrollPhases = true;
  static constexpr int kPhases = 8, kLanes = 2, kSteps = 4;
  static constexpr int group(int p, int lane, int i) { return p * 8 + lane * 4 + i; }
  Table table = load_table(kIq4Values, kSignedOffset);
  template <class P, class L, class I>
  INLINE Scale scale(const uint8_t* header, P p, L, I) const {
    const Pair pair = scale_pair(header, p / 2);
    return P::value % 2 == 0 ? even_scale(pair) : odd_scale(pair);
  }
  template <class P, class I>
  INLINE void step(const uint8_t* planes, P p, I i, Bytes* c) const {
    const Bytes v = load_bytes(planes + (p * 4 + i) * kPlaneBytes);
    c[0] = lookup(table, low_nibbles(v));
    c[1] = lookup(table, high_nibbles(v));
  }
};

// Halves of 128 values in four quarters of 32 (lanes), sub-blocks of 16.
template <Layout kLayout, CodeKind kCodeKind, int kCodeOffset>
struct Quarters256 : Block256<kLayout, kCodeKind, kCodeOffset> {
  static constexpr int kPhases = 2, kLanes = 4, kSteps = 8;
  static constexpr int group(int p, int lane, int i) { return p * 32 + lane * 8 + i; }
  template <class P, class L, class I>
  INLINE Scale scale(const uint8_t* header, P p, L lane, I) const {
    const Pair pair = this->scale_pair(header, p * 4 + lane);
    return I::value < 4 ? even_scale(pair) : odd_scale(pair);
  }
};

struct LayoutQ2_K : Quarters256<Layout::Q2_K, CodeKind::kU4, 0> {
  template <class P, class I>
  INLINE void step(const uint8_t* planes, P p, I i, Bytes* c) const {
    const Bytes v = load_bytes(planes + (p * 8 + i) * kPlaneBytes);
    c[0] = and_bytes(v, 3);
    c[1] = and_bytes(shift_words<2>(v), 3);
    c[2] = and_bytes(shift_words<4>(v), 3);
    c[3] = and_bytes(shift_words<6>(v), 3);
  }
};

struct LayoutQ3_K : Quarters256<Layout::Q3_K, CodeKind::kU4, 4> {
  static constexpr bool kUnrollPhases = true;
  template <class P, class I>
  INLINE void step(const uint8_t* planes, P p, I i, Bytes* c) const {
    const Bytes high = load_bytes(planes + high_plane(kInfo, i) * kPlaneBytes);  // bit 4 * half + quarter
    const Bytes v = load_bytes(planes + low_plane(kInfo, p * 8 + i) * kPlaneBytes);
    c[0] = or_and(and_bytes(v, 3), shift_words<4 * P::value - 2>(high), 4);
    c[1] = or_and(and_bytes(shift_words<2>(v), 3), shift_words<4 * P::value - 1>(high), 4);
    c[2] = or_and(and_bytes(shift_words<4>(v), 3), shift_words<4 * P::value>(high), 4);
    c[3] = or_and(and_bytes(shift_words<6>(v), 3), shift_words<4 * P::value + 1>(high), 4);
  }
};

struct LayoutQ6_K : Quarters256<Layout::Q6_K, CodeKind::kU6, 32> {
  template <class P, class I>
  INLINE void step(const uint8_t* planes, P p, I i, Bytes* c) const {
    const Bytes high = load_bytes(planes + high_plane(kInfo, p * 8 + i) * kPlaneBytes);  // two bits a quarter
    const Bytes v = load_bytes(planes + low_plane(kInfo, p * 16 + i) * kPlaneBytes);
    const Bytes w = load_bytes(planes + low_plane(kInfo, p * 16 + i + 8) * kPlaneBytes);
    c[0] = or_and(low_nibbles(v), shift_words<-4>(high), 0x30);
    c[1] = or_and(low_nibbles(w), shift_words<-2>(high), 0x30);
    c[2] = or_and(high_nibbles(v), high, 0x30);
    c[3] = or_and(high_nibbles(w), shift_words<2>(high), 0x30);
  }
};

}  // namespace
}  // namespace kamado
