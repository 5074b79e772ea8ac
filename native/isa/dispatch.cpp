// Choice of the kernel tier. Compiled with baseline flags only: it runs before anything is known of the CPU.
#ifdef KAMADO_HAS_AVX2
#include <cpuid.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "kamado/refuse.h"
#include "kamado/row_cases.h"
#include "kamado/tables.h"

namespace kamado {
namespace {

constexpr int kNumTiers = 3;
constexpr const char* kTierNames[kNumTiers] = {"scalar", "avx2", "avx512"};  // each includes those before it

const KernelTable& scalar_table() {
  static const KernelTable table = {kTierNames[0],           linear_kernels_ref(),   vector_kernels_ref(),
                                    attention_kernels_ref(), kv_codec_kernels_ref(), scan_kernels_ref()};
  return table;
}

#ifdef KAMADO_HAS_AVX2
// What the processor has and the operating system saves. Not by __builtin_cpu_supports: that asks the compiler's
// run-time library, and the one of zig, which compiles the wheels, answers no whatever the processor is.
struct X86Features {
  bool has_avx2 = false;    // with FMA and F16C
  bool has_avx512 = false;  // F, BW, VL, DQ and VNNI
};

X86Features x86_features() {
  const auto all = [](uint32_t bits, std::initializer_list<int> places) {
    return std::all_of(places.begin(), places.end(), [bits](int place) { return (bits >> place & 1) != 0; });
  };
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0, saved = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || !all(ecx, {12, 27, 28, 29})) return {};  // FMA OSXSAVE AVX F16C
  __asm__ volatile("xgetbv" : "=a"(saved), "=d"(edx) : "c"(0));
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return {};
  X86Features found;
  found.has_avx2 = all(saved, {1, 2}) && all(ebx, {5});
  found.has_avx512 = found.has_avx2 && all(saved, {5, 6, 7}) && all(ebx, {16, 17, 30, 31}) && all(ecx, {11});
  return found;
}
#endif

// The table of a tier, nullptr when this build or this CPU lacks it. Nothing of a tier's files runs before the CPU is
// known to have it.
const KernelTable* supported(int tier) {
  if (tier == 0) return &scalar_table();
#ifdef KAMADO_HAS_AVX2
  static const X86Features features = x86_features();
  if (!features.has_avx2) return nullptr;
  if (tier == 1) {
    static const KernelTable table = {kTierNames[1],           linear_kernels_avx2(),
                                      vector_kernels_avx2(),   attention_kernels_avx2(),
                                      kv_codec_kernels_avx2(), scan_kernels_avx2()};
    return &table;
  }
#endif
#ifdef KAMADO_HAS_AVX512
  if (tier == 2 && features.has_avx512) {
    static const KernelTable table = {kTierNames[2],
                                      linear_kernels_avx512(),
                                      vector_kernels_avx512(),
                                      attention_kernels_avx512(),
                                      kv_codec_kernels_avx512(),
                                      scan_kernels_avx512()};
    return &table;
  }
#endif
  return nullptr;
}

bool is_complete(const KernelTable& table) {
  return table.linear != nullptr && table.vector != nullptr && table.attention != nullptr &&
         table.kv_codec != nullptr && table.scan != nullptr;
}

// --- self-test: a tier must give the reference's bits before it is used (about 1 ms in all)
// -----------------------------

struct Bytes {  // aligned, zeroed
  explicit Bytes(size_t size) : size(size), data(new (std::align_val_t{64}) uint8_t[size]()) {}
  size_t size;
  struct Delete {
    void operator()(uint8_t* pointer) const { ::operator delete[](pointer, std::align_val_t{64}); }
  };
  std::unique_ptr<uint8_t[], Delete> data;
  float* floats() const { return reinterpret_cast<float*>(data.get()); }
  bool operator==(const Bytes& other) const { return std::memcmp(data.get(), other.data.get(), size) == 0; }
};

uint32_t next_random(uint32_t& state) {
  return (state = state * 1664525u + 1013904223u) >> 8;
}

void fill(float* out, size_t count, uint32_t& state) {
  for (size_t i = 0; i < count; ++i) out[i] = (static_cast<float>(next_random(state)) / 8388608.0f - 1.0f) * 3.0f;
}

bool linear_agrees(const LinearKernels& ref, const LinearKernels& wide) {
  constexpr int32_t kCols = 512, kActs = 3;
  constexpr int kRows = kTileRows;
  uint32_t state = 1;
  for (const LayoutInfo& info : kLayouts) {
    const Layout layout = info.layout;
    const size_t stride = row_bytes(layout, kCols);
    Bytes rows(stride * kRows),
        tiles[2] = {Bytes(packed_tile_bytes(layout, kCols)), Bytes(packed_tile_bytes(layout, kCols))};
    for (size_t i = 0; i < rows.size; ++i) {
      // High bytes of 16-bit scales lie at odd places in every layout; below 0x40 and 0xC0 they are finite and small.
      rows.data[i] = static_cast<uint8_t>(next_random(state) & (i % 2 ? 0xBFu : 0xFFu));
      if (info.fields.d_bytes == 1 && i % static_cast<size_t>(info.block_bytes) == static_cast<size_t>(info.fields.d)) {
        rows.data[i] = static_cast<uint8_t>(120 + next_random(state) % 8);
      }
    }
    const ActKind kind = act_kind(layout);
    const size_t act_size = act_bytes(kind, kCols);
    Bytes x(kCols * sizeof(float) * kActs), acts[2] = {Bytes(act_size * kActs), Bytes(act_size * kActs)};
    fill(x.floats(), static_cast<size_t>(kCols) * kActs, state);
    Bytes outs[2] = {Bytes(sizeof(float) * kActs * kRows), Bytes(sizeof(float) * kActs * kRows)};
    Bytes scratch(linear_scratch_bytes(kCols, kActs));
    const LinearKernels* kernels[2] = {&ref, &wide};
    for (int k = 0; k < 2; ++k) {
      const uint8_t* act_rows[kActs];
      float* out_rows[kActs];
      for (int i = 0; i < kActs; ++i) {
        uint8_t* act = acts[k].data.get() + static_cast<size_t>(i) * act_size;
        kernels[k]->quantize(kind, x.floats() + i * kCols, kCols, act);
        act_rows[i] = act;
        out_rows[i] = outs[k].floats() + i * kRows;
      }
      kernels[k]->pack_tile(layout, rows.data.get(), stride, kRows - 1, kCols, tiles[k].data.get());
      const PackedMatrix matrix{layout, kRows - 1, kCols, tiles[k].data.get(), tiles[k].size};
      kernels[k]->multiply(matrix, 0, 1, act_rows, kActs, out_rows, scratch.data.get());
      kernels[k]->multiply(matrix, 0, 1, act_rows, 1, out_rows, scratch.data.get());
    }
    if (!(acts[0] == acts[1]) || !(outs[0] == outs[1])) return false;
  }
  return true;
}

bool vector_agrees(const VectorKernels& ref, const VectorKernels& wide) {
  constexpr int32_t kWidth = 83;  // no multiple of any vector length
  uint32_t state = 2;
  float a[kWidth], b[kWidth], weight[kWidth];
  fill(a, kWidth, state);
  fill(b, kWidth, state);
  fill(weight, kWidth, state);
  const VectorKernels* kernels[2] = {&ref, &wide};
  std::vector<float> outs[2];
  for (int k = 0; k < 2; ++k) {
    const VectorKernels& v = *kernels[k];
    std::vector<float>& out = outs[k];
    const auto next = [&out](const float* copied = nullptr) {
      out.resize(out.size() + kWidth);
      float* rows = out.data() + out.size() - kWidth;
      if (copied != nullptr) std::memcpy(rows, copied, kWidth * sizeof(float));
      return rows;
    };
    v.rms_norm(a, weight, kWidth, 1e-5f, next());
    v.l2_norm(a, weight, kWidth, 1e-5f, next());
    v.layer_norm(a, weight, b, kWidth, 1e-5f, next());
    v.rope(next(a), 2, 40, 36, b, weight, false);
    v.rope(next(a), 2, 40, 36, b, weight, true);
    const auto randoms = [] {
      return [numbers = uint32_t{5}]() mutable { return static_cast<float>(next_random(numbers) % 1000) * 2e-3f; };
    };
    for_each_row_case(randoms, [&](const auto& op, const bool* is_there) {
      const float* in[kMaxRowInputs];
      for (int32_t i = 0; i < kMaxRowInputs; ++i) in[i] = !is_there[i] ? nullptr : i == 0 ? a : i == 1 ? b : weight;
      run_row_kernel(v, op, in, kWidth, next());
    });
    v.axpy(0.7f, b, kWidth, next(a));
    v.accumulate(a, b, 0.7f, kWidth, next());
    v.softmax(a, kWidth, next());
    const double total = v.log_sum_exp(a, kWidth);
    float* rest = next();
    std::memcpy(rest, &total, sizeof(total));
    auto* halves = reinterpret_cast<uint16_t*>(rest + 2);
    v.to_f16(a, 64, halves);
    v.from_f16(halves, 32, rest + 34);
  }
  return std::memcmp(outs[0].data(), outs[1].data(), outs[0].size() * sizeof(float)) == 0;
}

bool attention_agrees(const AttentionKernels& ref, const AttentionKernels& wide) {
  constexpr int32_t kDim = 40, kQueries = 5;
  uint32_t state = 3;
  float q[kQueries][kDim], token[2 * kDim];
  fill(q[0], kQueries * kDim, state);
  const AttentionKernels* kernels[2] = {&ref, &wide};
  for (const KvType type : {KvType::kF16, KvType::kF32}) {
    Bytes outs[2] = {Bytes(2048 * sizeof(float)), Bytes(2048 * sizeof(float))};
    const uint32_t start = state;
    for (int k = 0; k < 2; ++k) {
      state = start;
      Bytes key(kDim * kPageTokens * sizeof(float)), value(kDim * kPageTokens * sizeof(float));
      Bytes scratch(attention_scratch_bytes(kQueries, kDim, kDim));
      for (int32_t slot = 0; slot < kPageTokens; ++slot) {
        fill(token, 2 * kDim, state);
        kernels[k]->store(type, key.data.get(), value.data.get(), kDim, kDim, slot, token, token + kDim);
      }
      float* partials = outs[k].floats();
      AttendQuery queries[kQueries];
      for (int32_t i = 0; i < kQueries; ++i) queries[i] = {q[i], i * 7, 128 - i * 19, partials + i * (kDim + 2)};
      kernels[k]->attend_page(type, key.data.get(), value.data.get(), kDim, kDim, 0.2f, 0, queries, kQueries,
                              scratch.data.get());
      float* merged = partials + kQueries * (kDim + 2);
      std::memcpy(merged, partials, (kDim + 2) * sizeof(float));
      kernels[k]->merge(merged, partials + kDim + 2, kDim);
      kernels[k]->finish(merged, kDim, merged + kDim + 2);
    }
    if (!(outs[0] == outs[1])) return false;
  }
  return true;
}

bool kv_codec_agrees(const KvCodecKernels& ref, const KvCodecKernels& wide) {
  constexpr int32_t kQueries = 3;
  uint32_t state = 4;
  const KvCodecKernels* kernels[2] = {&ref, &wide};
  for (const KvCodec codec : {KvCodec{64, 80, 4, 3}, KvCodec{80, 64, 8, 2}}) {
    const size_t floats = static_cast<size_t>(kPageTokens) * 80;
    Bytes x(floats * sizeof(float)), k(floats * 2), v(floats * 2), q(kQueries * 80 * sizeof(float));
    for (Bytes* half : {&k, &v}) {
      fill(x.floats(), floats, state);
      vector_kernels_ref()->to_f16(x.floats(), static_cast<int32_t>(floats),
                                   reinterpret_cast<uint16_t*>(half->data.get()));
    }
    fill(q.floats(), kQueries * 80, state);
    const size_t k_bytes = encoded_k_page_bytes(codec.head_dim, codec.k_bits);
    const size_t v_bytes = encoded_v_page_bytes(codec.v_dim, codec.v_bits), query_bytes = rotated_query_bytes(codec);
    const size_t sink_bytes = encoded_sink_bytes(codec);
    const size_t total = k_bytes + v_bytes + sink_bytes + kQueries * (query_bytes + 512);
    Bytes outs[2] = {Bytes(total), Bytes(total)};
    Bytes scratch(encode_scratch_bytes(codec) + attend_codes_scratch_bytes(codec, kQueries));
    for (int i = 0; i < 2; ++i) {
      uint8_t* keys = outs[i].data.get();
      uint8_t *values = keys + k_bytes, *sinks = values + v_bytes, *at = sinks + sink_bytes;
      kernels[i]->encode_page(codec, reinterpret_cast<const uint16_t*>(k.data.get()),
                              reinterpret_cast<const uint16_t*>(v.data.get()), keys, values, sinks, scratch.data.get());
      CodeQuery queries[kQueries];
      for (int32_t n = 0; n < kQueries; ++n, at += query_bytes + 512) {
        queries[n] = {q.floats() + n * 80, at, n * 3, 128 - n * 19, reinterpret_cast<float*>(at + query_bytes)};
        kernels[i]->rotate_query(codec, queries[n].q, at);
      }
      kernels[i]->attend_page(codec, keys, values, sinks, 0.2f, 0.0f, queries, kQueries, scratch.data.get(), nullptr);
      kernels[i]->unrotate(codec, queries[1].partial);
    }
    if (!(outs[0] == outs[1])) return false;
  }
  return true;
}

bool scan_agrees(const ScanKernels& ref, const ScanKernels& wide) {
  constexpr int32_t kRows = 3, kDim = 5, kWidth = 83;
  uint32_t state = 5;
  float x[kRows * kWidth], weight[4 * kWidth];
  fill(x, kRows * kWidth, state);
  fill(weight, 4 * kWidth, state);
  const ScanKernels* kernels[2] = {&ref, &wide};
  constexpr size_t kBlock = size_t{kDim} * kScanColumns;
  Bytes outs[2] = {Bytes(3 * 4096), Bytes(3 * 4096)};
  for (int k = 0; k < 2; ++k) {
    float* out = outs[k].floats();
    const float* rows[kRows] = {x, x + kWidth, x + kWidth + 1};
    kernels[k]->conv(rows, weight, kWidth, kRows, weight + 3 * kWidth, kWidth - 1, out);
    kernels[k]->decay(x, -0.3f, kWidth, out += 96);
    out += 96;
    for (const bool has_channels : {false, true}) {
      for (const int32_t columns : {kScanColumns, kScanColumns - 3}) {  // out: kRows rows, then S
        DeltaBlock block{kRows,  kDim, columns, x,           x + 7,       x + 20,       out,   kWidth, kWidth,
                         kWidth, 32,   weight,  weight + 40, weight + 80, has_channels, false, 0.5f};
        kernels[k]->delta(block, weight, out + kRows * 32);
        out += kRows * 32 + kBlock;
      }
    }
    DeltaBlock block{1, kDim, kScanColumns, x, x + 7, x + 20, out, 0, 0, 0, 0, weight, nullptr, weight, false, true, 1};
    kernels[k]->delta(block, weight, out + 32);
  }
  return outs[0] == outs[1];
}

int cap_from_environment() {
  const char* name = std::getenv("KAMADO_TIER");
  if (name == nullptr || *name == '\0') return kNumTiers - 1;
  for (int tier = 0; tier < kNumTiers; ++tier) {
    if (std::strcmp(name, kTierNames[tier]) == 0) return tier;
  }
  refuse("KAMADO_TIER is \"", name, "\": it must be scalar, avx2 or avx512");
}

const KernelTable& choose() {
  for (int tier = cap_from_environment(); tier > 0; --tier) {
    const KernelTable* table = supported(tier);
    if (table == nullptr || !is_complete(*table)) continue;
    if (linear_agrees(*scalar_table().linear, *table->linear) &&
        vector_agrees(*scalar_table().vector, *table->vector) &&
        attention_agrees(*scalar_table().attention, *table->attention) &&
        kv_codec_agrees(*scalar_table().kv_codec, *table->kv_codec) &&
        scan_agrees(*scalar_table().scan, *table->scan)) {
      return *table;
    }
    std::fprintf(stderr, "kamado: the %s kernels differ from the reference on this CPU: falling back\n",
                 kTierNames[tier]);
  }
  return scalar_table();
}

}  // namespace

const KernelTable& best_table() {
  static const KernelTable& table = choose();  // a throwing choice is tried again at the next call
  return table;
}

const KernelTable* table_by_name(const char* name) {
  for (int tier = 0; tier < kNumTiers; ++tier) {
    if (std::strcmp(name, kTierNames[tier]) != 0) continue;
    const KernelTable* table = supported(tier);
    return table != nullptr && is_complete(*table) ? table : nullptr;
  }
  return nullptr;
}

}  // namespace kamado
