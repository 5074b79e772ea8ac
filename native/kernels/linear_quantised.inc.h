// Products with quantised weights. One arithmetic routine a block family (multiply_block32, multiply_block256) serves
// both ways of reading weights: decoded in registers for a few activation rows, or decoded once into an L1 buffer for
// many.
#pragma once
#include "kernels/linear_layouts.inc.h"

namespace kamado {
namespace {

constexpr int fold_steps(CodeKind kind) {
  if (kHasVnni) return 64;  // int32 from the start: never before the sub-block ends
  return kind == CodeKind::kU4 ? 8 : kind == CodeKind::kU5 ? 4 : kind == CodeKind::kU6 ? 2 : 1;
}

// Blocks decoded into a buffer: code words in ascending k, then what the headers held, widened.
constexpr int kBufferHeader = 4096;

template <CodeKind kCodeKind, int kCodeOffset, bool kWithMin>
struct Buffer32 {
  static constexpr int kBlockValues = 32;
  static constexpr CodeKind kKind = kCodeKind;
  static constexpr int kOffset = kCodeOffset;
  static constexpr bool kHasMin = kWithMin;
  static constexpr int kLanes = 1, kSteps = 8;
  static constexpr int group(int, int i) { return i; }
  template <class I>
  INLINE void step(const uint8_t* planes, I i, Bytes* c) const {
    c[0] = load_bytes(planes + i * kPlaneBytes);
  }
  INLINE F32 d(const uint8_t* header, int b) const { return load_f32(header + b * 64); }
  INLINE F32 m(const uint8_t* header, int b) const { return load_f32(header + 512 + b * 64); }
};

template <CodeKind kCodeKind, int kSubBlocks, int kCodeOffset, bool kWithMin>
struct Buffer256 {
  static constexpr int kBlockValues = 256;
  static constexpr CodeKind kKind = kCodeKind;
  static constexpr int kSubs = kSubBlocks;
  static constexpr int kOffset = kCodeOffset;
  static constexpr bool kHasMin = kWithMin;
  static constexpr int kPhases = kSubs, kLanes = 1, kSteps = 64 / kSubs;
  static constexpr bool kUnrollPhases = false;
  static constexpr int group(int p, int, int i) { return p * kSteps + i; }
  template <class P, class I>
  INLINE void step(const uint8_t* planes, P p, I i, Bytes* c) const {
    c[0] = load_bytes(planes + (p * kSteps + i) * kPlaneBytes);
  }
  template <class P, class Lane, class I>
  INLINE Scale scale(const uint8_t* header, P p, Lane, I) const {
    return load_bytes(header + p * 64);
  }
  INLINE Pair scale_pair(const uint8_t* header, int j) const { return load_bytes(header + 1024 + j * 64); }
  INLINE Pair min_pair(const uint8_t* header, int j) const { return load_bytes(header + 1024 + j * 64); }
  INLINE F32 d(const uint8_t* header) const { return load_f32(header + 1536); }
  INLINE F32 dmin(const uint8_t* header) const { return load_f32(header + 1600); }
};

// The buffer a layout is decoded into. Layouts that look alike there share its kernels; VNNI needs no code kind.
template <class L>
constexpr auto buffer_of() {
  constexpr CodeKind kKind = kHasVnni ? CodeKind::kSigned : L::kKind;
  if constexpr (L::kBlockValues == 256) {
    return Buffer256<kKind, L::kSubs, L::kOffset, L::kHasMin>{};
  } else {
    return Buffer32<kKind, L::kOffset, L::kHasMin>{};
  }
}

// Phases are unrolled where decoding needs their number as a constant.
template <class L, class F>
INLINE void for_phases(F&& phase) {
  if constexpr (L::kUnrollPhases) {
    unroll<L::kPhases>(phase);
  } else {
    for (int p = 0; p < L::kPhases; ++p) phase(p);
  }
}

// One or two activation rows take all that the hardware's own stream prefetch brings; asking for lines as well made
// them up to 30 % slower. From three rows on, arithmetic leaves it too little look-ahead, and asking for lines into L2
// (into L1 gains less, and loses for Q6_K) brings up to 80 % more: Q4_K from memory, 8 rows, AVX-512: 6.9 to 12.5 GB/s.
template <class L, int T>
constexpr bool has_prefetch() {
  if constexpr (requires { L::kInfo; }) return T >= 3;
  return false;
}

template <int kFirst, int kLast>
INLINE void prefetch_lines(const uint8_t* p) {
  constexpr int kAheadBytes = 6144;  // 3072 is too late, 12288 no better
  unroll<kLast - kFirst>([&](auto i) INLINE_LAMBDA {
    _mm_prefetch(reinterpret_cast<const char*>(p + kAheadBytes + (kFirst + i) * 64), _MM_HINT_T1);
  });
}

// acc[t] += block * x[t] for one 32-value block of 16 rows.
template <int T, class L>
INLINE void multiply_block32(const L& layout, const uint8_t* header, int in_group, const uint8_t* planes,
                             const uint8_t* const* x, F32* acc) {
  constexpr int kFold = fold_steps(L::kKind);
  I32 sum[T];
  Acc dot[T];
  unroll<T>([&](auto t) INLINE_LAMBDA { dot[t] = acc_zero(), sum[t] = i32_zero(); });
  unroll<L::kSteps>([&](auto i) INLINE_LAMBDA {
    Bytes codes[L::kLanes];
    layout.step(planes, i, codes);
    if constexpr (has_prefetch<L, T>()) {
      constexpr int kLines = L::kInfo.tile.planes + 1;
      constexpr int kStep = value_of<decltype(i)>;
      prefetch_lines<kStep * kLines / L::kSteps, (kStep + 1) * kLines / L::kSteps>(planes);
    }
    unroll<L::kLanes>([&](auto lane) INLINE_LAMBDA {
      constexpr int kDone = decltype(i)::value * L::kLanes + decltype(lane)::value + 1;
      unroll<T>([&](auto t) INLINE_LAMBDA {
        const int8_t* q = reinterpret_cast<const int8_t*>(x[t]) + 4 * L::group(lane, i);
        dot[t] = dot_step<L::kKind>(dot[t], codes[lane], q);
        if constexpr (kDone % kFold == 0 || kDone == L::kSteps * L::kLanes) {
          sum[t] = fold(sum[t], dot[t]);
          dot[t] = acc_zero();
        }
      });
    });
  });
  const F32 d = layout.d(header, in_group);
  unroll<T>([&](auto t) INLINE_LAMBDA {
    const ActBlock32* a = reinterpret_cast<const ActBlock32*>(x[t]);
    if constexpr (L::kOffset != 0) sum[t] = subtract_word<L::kOffset>(sum[t], &a->sum);
    const F32 dx = f32_set1(a->scale);
    acc[t] = fma(mul(d, dx), to_f32(sum[t]), acc[t]);
    if constexpr (L::kHasMin) acc[t] = fma(mul(layout.m(header, in_group), dx), broadcast_int(&a->sum), acc[t]);
  });
}

// acc[t] += block * x[t] for one 256-value block of 16 rows. With code offsets the integers stay below 2^31 for any
// bytes: Q6_K 256 * 63 * 127 * 128 = 262 M, IQ4_XS (VNNI) 256 * 241 * 127 * 32 = 251 M, their corrections at most 133
// M.
template <int T, class L>
INLINE void multiply_block256(const L& layout, const uint8_t* header, const uint8_t* planes, const uint8_t* const* x,
                              F32* acc) {
  constexpr int kFold = fold_steps(L::kKind);
  constexpr int kSubSteps = 64 / L::kSubs;
  I32 sum[T];
  unroll<T>([&](auto t) INLINE_LAMBDA { sum[t] = i32_zero(); });
  const auto phase = [&](auto p) INLINE_LAMBDA {
    Acc dot[L::kLanes][T];
    unroll<L::kLanes * T>([&](auto j) INLINE_LAMBDA { dot[j / T][j % T] = acc_zero(); });
    unroll<L::kSteps>([&](auto i) INLINE_LAMBDA {
      constexpr int kDone = decltype(i)::value + 1;
      Bytes codes[L::kLanes];
      layout.step(planes, p, i, codes);
      if constexpr (has_prefetch<L, T>()) {
        constexpr int kLines = (L::kInfo.tile.planes + L::kInfo.tile.header_bytes / 64 + L::kPhases - 1) / L::kPhases;
        constexpr int kStep = value_of<decltype(i)>;
        prefetch_lines<kStep * kLines / L::kSteps, (kStep + 1) * kLines / L::kSteps>(header + p * kLines * 64);
      }
      unroll<L::kLanes>([&](auto lane) INLINE_LAMBDA {
        unroll<T>([&](auto t) INLINE_LAMBDA {
          const int8_t* q = reinterpret_cast<const int8_t*>(x[t]) + 4 * L::group(p, lane, i);
          dot[lane][t] = dot_step<L::kKind>(dot[lane][t], codes[lane], q);
        });
        if constexpr (kDone % kFold == 0 || kDone % kSubSteps == 0 || kDone == L::kSteps) {
          const Scale s = layout.scale(header, p, lane, i);
          unroll<T>([&](auto t) INLINE_LAMBDA {
            sum[t] = fold(sum[t], dot[lane][t], s);
            dot[lane][t] = acc_zero();
          });
        }
      });
    });
  };
  for_phases<L>(phase);

  constexpr int kPairs = L::kSubs / 2;
  const auto sums = [&](auto t) INLINE_LAMBDA {
    const ActBlock256* a = reinterpret_cast<const ActBlock256*>(x[t]);
    return kPairs == 8 ? a->sums16 : a->sums32;
  };
  if constexpr (L::kOffset != 0) {
    I32 correction[T];
    unroll<T>([&](auto t) INLINE_LAMBDA { correction[t] = i32_zero(); });
    unroll<kPairs>([&](auto j) INLINE_LAMBDA {
      const Pair pair = layout.scale_pair(header, j);
      unroll<T>([&](auto t) INLINE_LAMBDA { correction[t] = pair_dot(correction[t], pair, sums(t) + 2 * j); });
    });
    unroll<T>([&](auto t) INLINE_LAMBDA { sum[t] = subtract_times<L::kOffset>(sum[t], correction[t]); });
  }
  const F32 d = layout.d(header);
  unroll<T>([&](auto t) INLINE_LAMBDA {
    const ActBlock256* a = reinterpret_cast<const ActBlock256*>(x[t]);
    acc[t] = fma(mul(d, f32_set1(a->scale)), to_f32(sum[t]), acc[t]);
  });
  if constexpr (L::kHasMin) {
    unroll<T>([&](auto t) INLINE_LAMBDA { sum[t] = i32_zero(); });
    unroll<kPairs>([&](auto j) INLINE_LAMBDA {
      const Pair pair = layout.min_pair(header, j);
      unroll<T>([&](auto t) INLINE_LAMBDA { sum[t] = pair_dot(sum[t], pair, sums(t) + 2 * j); });
    });
    const F32 dmin = layout.dmin(header);
    unroll<T>([&](auto t) INLINE_LAMBDA {
      const ActBlock256* a = reinterpret_cast<const ActBlock256*>(x[t]);
      acc[t] = fnma(mul(dmin, f32_set1(a->scale)), to_f32(sum[t]), acc[t]);
    });
  }
}

// ---- a few activation rows ------------------------------------------------------------------------------------------

template <class L>
constexpr bool kIs256 = L::kBlockValues == 256;

template <class L, int T>
void multiply_fused(const Job& job) {
  const L layout;
  constexpr TileGeometry g = L::kInfo.tile;
  const int64_t blocks = job.w->cols / L::kBlockValues;
  for (int32_t tile_index = job.tile_begin; tile_index < job.tile_end; ++tile_index) {
    const uint8_t* tile = job.w->data + static_cast<size_t>(tile_index) * job.w->tile_bytes;
    const uint8_t* x[T];
    F32 acc[T];
    unroll<T>([&](auto t) INLINE_LAMBDA { x[t] = job.act_rows[t], acc[t] = f32_zero(); });
    for (int64_t b = 0; b < blocks; ++b) {
      const uint8_t* header = tile + tile_header_offset(g, b);
      const uint8_t* planes = tile + tile_planes_offset(g, b);
      if constexpr (kIs256<L>) {
        multiply_block256<T>(layout, header, planes, x, acc);
        unroll<T>([&](auto t) INLINE_LAMBDA { x[t] += sizeof(ActBlock256); });
      } else {
        multiply_block32<T>(layout, header, static_cast<int>(b % g.group_blocks), planes, x, acc);
        unroll<T>([&](auto t) INLINE_LAMBDA { x[t] += sizeof(ActBlock32); });
      }
    }
    const int32_t row = tile_index * kTileRows;
    unroll<T>([&](auto t) INLINE_LAMBDA { store_rows(job.out_rows[t] + row, acc[t], job.w->rows - row); });
  }
}

// ---- many activation rows -------------------------------------------------------------------------------------------

// Decodes up to 256 columns of a tile.
template <class L>
void unpack(const L& layout, const uint8_t* tile, int64_t first_block, int blocks, uint8_t* buffer) {
  constexpr TileGeometry g = L::kInfo.tile;
  uint8_t* out = buffer + kBufferHeader;
  if constexpr (kIs256<L>) {
    const uint8_t* header = tile + tile_header_offset(g, first_block);
    const uint8_t* planes = tile + tile_planes_offset(g, first_block);
    const auto phase = [&](auto p) INLINE_LAMBDA {
      unroll<L::kSteps>([&](auto i) INLINE_LAMBDA {
        Bytes codes[L::kLanes];
        layout.step(planes, p, i, codes);
        unroll<L::kLanes>([&](auto lane)
                              INLINE_LAMBDA { store_bytes(buffer + L::group(p, lane, i) * kPlaneBytes, codes[lane]); });
      });
    };
    for_phases<L>(phase);
    for (int j = 0; j < L::kSubs / 2; ++j) {
      const Pair pair = layout.scale_pair(header, j);
      store_bytes(out + 2 * j * 64, even_scale(pair));
      store_bytes(out + (2 * j + 1) * 64, odd_scale(pair));
      if constexpr (L::kHasMin) {
        store_bytes(out + 1024 + j * 64, layout.min_pair(header, j));
      } else if constexpr (L::kOffset != 0) {
        store_bytes(out + 1024 + j * 64, pair);
      }
    }
    store_f32(out + 1536, layout.d(header));
    if constexpr (L::kHasMin) store_f32(out + 1600, layout.dmin(header));
  } else {
    for (int j = 0; j < blocks; ++j) {
      const int64_t b = first_block + j;
      const uint8_t* header = tile + tile_header_offset(g, b);
      const uint8_t* planes = tile + tile_planes_offset(g, b);
      const int in_group = static_cast<int>(b % g.group_blocks);
      uint8_t* codes_out = buffer + j * 8 * kPlaneBytes;
      unroll<L::kSteps>([&](auto i) INLINE_LAMBDA {
        Bytes codes[L::kLanes];
        layout.step(planes, i, codes);
        unroll<L::kLanes>([&](auto lane)
                              INLINE_LAMBDA { store_bytes(codes_out + L::group(lane, i) * kPlaneBytes, codes[lane]); });
      });
      store_f32(out + j * 64, layout.d(header, in_group));
      if constexpr (L::kHasMin) store_f32(out + 512 + j * 64, layout.m(header, in_group));
    }
  }
}

// acc float[T][16] += decoded columns * T rows of activations, which begin `offset` bytes into each row.
template <class Buffer, int T>
void multiply_buffer(const uint8_t* buffer, int blocks, const uint8_t* const* rows, size_t offset, float* acc) {
  const uint8_t* x[T];
  F32 a[T];
  unroll<T>([&](auto t) INLINE_LAMBDA { x[t] = rows[t] + offset, a[t] = load_f32(acc + t * kTileRows); });
  if constexpr (Buffer::kBlockValues == 256) {
    multiply_block256<T>(Buffer{}, buffer + kBufferHeader, buffer, x, a);
  } else {
    for (int b = 0; b < blocks; ++b) {
      multiply_block32<T>(Buffer{}, buffer + kBufferHeader, b, buffer + b * 8 * kPlaneBytes, x, a);
      unroll<T>([&](auto t) INLINE_LAMBDA { x[t] += sizeof(ActBlock32); });
    }
  }
  unroll<T>([&](auto t) INLINE_LAMBDA { store_f32(acc + t * kTileRows, a[t]); });
}

template <class L>
void multiply_chunk(const Job& job) {
  using Kernel = void (*)(const uint8_t*, int, const uint8_t* const*, size_t, float*);
  static constexpr auto kKernels = []<int... kT>(std::integer_sequence<int, kT...>) {
    struct {
      Kernel at[sizeof...(kT)];
    } table{{multiply_buffer<decltype(buffer_of<L>()), kT + 1>...}};
    return table;
  }(std::make_integer_sequence<int, kMaxTokens>{});

  const L layout;
  constexpr TileGeometry g = L::kInfo.tile;
  constexpr int kStepBlocks = 256 / L::kBlockValues;
  constexpr size_t kStepTileBytes = tile_header_offset(g, kStepBlocks);
  constexpr size_t kStepActBytes = 320;  // of 256 activations, both kinds
  static_assert(sizeof(ActBlock256) == kStepActBytes && 8 * sizeof(ActBlock32) == kStepActBytes);
  const int64_t blocks = job.w->cols / L::kBlockValues;
  uint8_t* buffer = job.scratch;
  float* acc = reinterpret_cast<float*>(job.scratch + kUnpackedBytes);
  const int32_t groups = (job.n + kMaxTokens - 1) / kMaxTokens;
  for (int32_t tile_index = job.tile_begin; tile_index < job.tile_end; ++tile_index) {
    const uint8_t* tile = job.w->data + static_cast<size_t>(tile_index) * job.w->tile_bytes;
    for (int32_t i = 0; i < job.n; ++i) store_f32(acc + i * kTileRows, f32_zero());
    size_t offset = 0;
    for (int64_t b = 0; b < blocks; b += kStepBlocks, offset += kStepActBytes) {
      const int count = blocks - b < kStepBlocks ? static_cast<int>(blocks - b) : kStepBlocks;
      unpack(layout, tile, b, count, buffer);
      // Into L2 while this part is multiplied: 25 to 50 % faster from memory at 8 to 24 rows. Into L1 it gains nothing.
      const uint8_t* next = tile + tile_planes_offset(g, b + count);
      for (size_t at = 0; at < kStepTileBytes; at += 64)
        _mm_prefetch(reinterpret_cast<const char*>(next + at), _MM_HINT_T1);
      for (int32_t group = 0; group < groups; ++group) {  // groups of nearly equal size
        const int32_t begin = job.n * group / groups, end = job.n * (group + 1) / groups;
        kKernels.at[end - begin - 1](buffer, count, job.act_rows + begin, offset, acc + begin * kTileRows);
      }
    }
    const int32_t row = tile_index * kTileRows;
    for (int32_t i = 0; i < job.n; ++i)
      store_rows(job.out_rows[i] + row, load_f32(acc + i * kTileRows), job.w->rows - row);
  }
}

template <class L, int kMaxFused>
void multiply_quantised(const Job& job) {
  if (job.n <= kMaxFused) {
    using Kernel = void (*)(const Job&);
    static constexpr auto kKernels = []<int... kT>(std::integer_sequence<int, kT...>) {
      struct {
        Kernel at[sizeof...(kT)];
      } table{{multiply_fused<L, kT + 1>...}};
      return table;
    }(std::make_integer_sequence<int, kMaxFused>{});
    return kKernels.at[job.n - 1](job);
  }
  const int32_t rows = chunk_rows(act_bytes(act_kind(job.w->layout), job.w->cols), job.n);
  for (int32_t first = 0; first < job.n; first += rows) {
    Job part = job;
    part.act_rows += first;
    part.out_rows += first;
    part.n = job.n - first < rows ? job.n - first : rows;
    multiply_chunk<L>(part);
  }
}

}  // namespace
}  // namespace kamado
