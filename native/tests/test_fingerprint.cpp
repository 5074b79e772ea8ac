// One hash a layout and operation, on every tier, against golden_fingerprint.txt: the same bits on every processor that
// runs Kamado, today and later. The inputs are integers of a generator below scaled by powers of two, so they are the
// same everywhere, too; no output of theirs is a NaN, whose payload is no part of the contract.
//
// A changed hash means that answers changed. Where that is meant, write the file anew (by the scalar reference):
//   python3 tools/dev.py native-tests; build/native/test_fingerprint --write native/tests/golden_fingerprint.txt
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "check.h"
#include "kamado/row_cases.h"
#include "tiers.h"
#include "tiny_program.h"

namespace {

using namespace kamado;

using Fingerprint = std::map<std::string, uint64_t>;  // by "linear Q4_K" and the like

uint64_t fnv1a(const void* data, size_t bytes, uint64_t hash = 0xcbf29ce484222325u) {
  for (size_t i = 0; i < bytes; ++i) hash = (hash ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001b3u;
  return hash;
}

struct Bytes {  // 64-byte aligned, zeroed
  explicit Bytes(size_t n) : size(n), data(new (std::align_val_t{64}) uint8_t[n]()) {}
  struct Delete {
    void operator()(uint8_t* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  size_t size;
  std::unique_ptr<uint8_t, Delete> data;
  uint8_t* get() const { return data.get(); }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data.get());
  }
  uint64_t hash() const { return fnv1a(get(), size); }
};

struct Random {
  uint32_t state;
  uint32_t next() { return (state = state * 1664525u + 1013904223u) >> 8; }  // below 2^24
  // In [-spread, spread), exact for a spread that is a power of two.
  void fill(float* out, size_t count, float spread) {
    for (size_t i = 0; i < count; ++i) out[i] = (static_cast<float>(next()) * 0x1p-23f - 1.0f) * spread;
  }
  Bytes floats(size_t count, float spread) {
    Bytes out(count * sizeof(float));
    fill(out.as<float>(), count, spread);
    return out;
  }
};

// Stored rows of a layout with finite, small scales.
Bytes stored_rows(const LayoutInfo& info, size_t rows, int64_t cols, Random& random) {
  Bytes out(rows * row_bytes(info.layout, cols));
  const auto block = static_cast<size_t>(info.block_bytes);
  for (size_t i = 0; i < out.size; ++i) out.get()[i] = static_cast<uint8_t>(random.next() >> 8);
  for (size_t at = 0; at < out.size; at += block) {
    const auto put_f16 = [&](int32_t offset) {
      const auto h = static_cast<uint16_t>((random.next() & 0x83ffu) | ((8u + random.next() % 4u) << 10));
      std::memcpy(out.get() + at + offset, &h, 2);
    };
    if (info.is_float()) {
      float value;
      random.fill(&value, 1, 1.0f);
      if (info.layout == Layout::F16) {
        put_f16(0);
      } else {  // F32 and BF16, its upper half
        std::memcpy(out.get() + at, reinterpret_cast<const uint8_t*>(&value) + 4 - block, block);
      }
    } else if (info.fields.d_bytes == 1) {
      out.get()[at + static_cast<size_t>(info.fields.d)] = static_cast<uint8_t>(120 + random.next() % 8);
    } else {
      put_f16(info.fields.d);
    }
    if (info.has_min()) put_f16(info.fields.dmin);
  }
  return out;
}

// Products of one row and of five (a vector's and a matrix' path), the last tile not full; and the codes of the
// activations.
void linear(const LinearKernels& kernels, Fingerprint& out) {
  constexpr int32_t kRows = 37, kCols = 768, kActs = 5;
  for (const LayoutInfo& info : kLayouts) {
    Random random{static_cast<uint32_t>(info.layout) + 1};
    const size_t stride = row_bytes(info.layout, kCols);
    const Bytes rows = stored_rows(info, kRows, kCols, random);
    const Bytes x = random.floats(size_t{kCols} * kActs, 4.0f);
    PackedMatrix matrix{info.layout, kRows, kCols, nullptr, packed_tile_bytes(info.layout, kCols)};
    const Bytes tiles(matrix.tile_bytes * static_cast<size_t>(matrix.num_tiles()));
    matrix.data = tiles.get();
    for (int32_t t = 0; t < matrix.num_tiles(); ++t) {
      kernels.pack_tile(info.layout, rows.get() + static_cast<size_t>(t) * kTileRows * stride, stride,
                        std::min(kTileRows, kRows - t * kTileRows), kCols,
                        tiles.get() + static_cast<size_t>(t) * matrix.tile_bytes);
    }
    const ActKind kind = act_kind(info.layout);
    const size_t act_size = act_bytes(kind, kCols);
    const Bytes acts(act_size * kActs), scratch(linear_scratch_bytes(kCols, kActs));
    const Bytes product(sizeof(float) * kRows * (kActs + 1));
    const uint8_t* act_rows[kActs];
    float* out_rows[kActs];
    for (size_t i = 0; i < kActs; ++i) {
      uint8_t* act = acts.get() + i * act_size;
      kernels.quantize(kind, x.as<float>() + i * kCols, kCols, act);
      act_rows[i] = act;
      out_rows[i] = product.as<float>() + i * kRows;
    }
    kernels.multiply(matrix, 0, matrix.num_tiles(), act_rows, kActs, out_rows, scratch.get());
    float* single = product.as<float>() + kActs * kRows;
    kernels.multiply(matrix, 0, matrix.num_tiles(), act_rows, 1, &single, scratch.get());
    const std::string name = info.name;
    out["linear " + name] = product.hash();
    out["activations of " + name] = acts.hash();
    const Bytes plain(sizeof(float) * kCols);
    dequantize_row(info.layout, rows.get(), plain.as<float>(), kCols);
    out["dequantize " + name] = plain.hash();
  }
}

void rows(const VectorKernels& v, Fingerprint& out) {
  constexpr int32_t kWidth = 83;  // no multiple of any vector length
  Random random{2};
  const Bytes a = random.floats(kWidth, 4.0f), b = random.floats(kWidth, 4.0f), c = random.floats(kWidth, 4.0f);
  const auto add = [&out](const std::string& name, const void* data, size_t bytes) {
    const auto [at, is_new] = out.try_emplace("row " + name, 0);
    at->second = is_new ? fnv1a(data, bytes) : fnv1a(data, bytes, at->second);
  };
  float row[kWidth];
  const auto run = [&](const char* name, const auto& kernel) {
    std::memcpy(row, a.get(), sizeof row);
    kernel();
    add(name, row, sizeof row);
  };
  const float *x = a.as<float>(), *y = b.as<float>(), *z = c.as<float>();
  run("rms_norm", [&] { v.rms_norm(x, y, kWidth, 0x1p-16f, row); });
  run("l2_norm", [&] { v.l2_norm(x, y, kWidth, 0x1p-16f, row); });
  run("layer_norm", [&] { v.layer_norm(x, y, z, kWidth, 0x1p-16f, row); });
  run("rope", [&] { v.rope(row, 2, 40, 36, y, z, false); });
  run("rope interleaved", [&] { v.rope(row, 2, 40, 36, y, z, true); });
  run("axpy", [&] { v.axpy(0.7f, y, kWidth, row); });
  run("accumulate", [&] { v.accumulate(x, y, 0.7f, kWidth, row); });
  run("softmax", [&] { v.softmax(x, kWidth, row); });
  const double total = v.log_sum_exp(x, kWidth);
  add("log_sum_exp", &total, sizeof total);
  uint16_t halves[kWidth];
  v.to_f16(x, kWidth, halves);
  add("to_f16", halves, sizeof halves);
  run("from_f16", [&] { v.from_f16(halves, kWidth, row); });
  // For each operation anew, so that one more changes no other's hash.
  const auto parameters = [] {
    return [numbers = Random{5}]() mutable { return static_cast<float>(numbers.next() % 1000) * 0x1p-9f; };
  };
  for_each_row_case(parameters, [&]<class T>(const T& op, const bool* is_there) {
    const float* in[kMaxRowInputs];
    for (int32_t i = 0; i < kMaxRowInputs; ++i) in[i] = !is_there[i] ? nullptr : i == 0 ? x : i == 1 ? y : z;
    run(T::kName, [&] { run_row_kernel(v, op, in, kWidth, row); });
  });
}

// Rows through a block of S and through the block that is left of 40 columns.
void scans(const ScanKernels& scan, Fingerprint& out) {
  constexpr int32_t kRows = 9, kDim = 24, kTaps = 4;
  Random random{4};
  const Bytes x = random.floats(kRows * 3 * kDim, 1.0f), w = random.floats(size_t{kDim} * kScanColumns, 1.0f);
  const auto *values = x.as<float>(), *weight = w.as<float>();
  const float* seen[kTaps] = {values, values + 1, values + 2, values + 3};
  const Bytes result(sizeof(float) * (kRows + kDim) * kScanColumns);
  scan.conv(seen, weight, kDim, kTaps, weight + kTaps * kDim, kDim, result.as<float>());
  out["scan conv"] = fnv1a(result.get(), sizeof(float) * kDim);
  const Bytes kept(sizeof(float) * kRows * kDim);
  scan.decay(values, -0.25f, kRows * kDim, kept.as<float>());
  out["scan decay"] = kept.hash();
  for (const bool has_channels : {false, true}) {
    for (const int32_t columns : {kScanColumns, 8}) {
      float* const s = result.as<float>() + kRows * kScanColumns;
      const DeltaBlock block{
          kRows,        kDim,  columns, values,       values + 7,       values + 20,   result.as<float>(),
          kDim,         kDim,  kDim,    kScanColumns, kept.as<float>(), values + kDim, kept.as<float>() + kDim,
          has_channels, false, 0.25f};
      scan.delta(block, weight, s);
      const std::string name = std::string("scan delta") + (has_channels ? " by channel" : "");
      uint64_t& hash = out.try_emplace(name, fnv1a(nullptr, 0)).first->second;
      hash = fnv1a(result.get(), result.size, hash);
    }
  }
}

// Two pages, of which a query each sees a part; merged and finished.
void attention(const AttentionKernels& kernels, Fingerprint& out) {
  constexpr int32_t kKeys = 72, kValues = 40, kQueries = 5;
  for (const KvType type : {KvType::kF16, KvType::kF32}) {
    for (const float softcap : {0.0f, 8.0f}) {
      Random random{3};
      const Bytes q = random.floats(kQueries * kKeys, 2.0f), scratch(attention_scratch_bytes(kQueries, kKeys, kValues));
      const Bytes partials(sizeof(float) * kQueries * (kValues + 2)), running(partials.size), result(partials.size);
      for (int32_t i = 0; i < kQueries; ++i) running.as<float>()[i * (kValues + 2)] = -HUGE_VALF;
      for (int32_t page = 0; page < 2; ++page) {
        const Bytes k(sizeof(float) * kKeys * kPageTokens), v(sizeof(float) * kValues * kPageTokens);
        for (int32_t slot = 0; slot < kPageTokens; ++slot) {
          const Bytes token = random.floats(kKeys + kValues, 2.0f);
          kernels.store(type, k.get(), v.get(), kKeys, kValues, slot, token.as<float>(), token.as<float>() + kKeys);
        }
        AttendQuery queries[kQueries];
        for (int32_t i = 0; i < kQueries; ++i) {
          queries[i] = {q.as<float>() + i * kKeys, i * 7, kPageTokens - i * 19,
                        partials.as<float>() + i * (kValues + 2)};
        }
        kernels.attend_page(type, k.get(), v.get(), kKeys, kValues, 0x1p-3f, softcap, queries, kQueries, scratch.get());
        for (int32_t i = 0; i < kQueries; ++i) {
          kernels.merge(running.as<float>() + i * (kValues + 2), queries[i].partial, kValues);
        }
      }
      for (int32_t i = 0; i < kQueries; ++i) {
        kernels.finish(running.as<float>() + i * (kValues + 2), kValues, result.as<float>() + i * (kValues + 2));
      }
      out[std::string("attention ") + (type == KvType::kF16 ? "f16" : "f32") + (softcap > 0 ? " capped" : "")] =
          fnv1a(result.get(), result.size, running.hash());
    }
  }
}

// A sequence's first page in codes: the codes themselves, rotated queries, and attention over them.
void kv_codes(const KvCodecKernels& kernels, Fingerprint& out) {
  constexpr int32_t kQueries = 3;
  for (const int32_t bits : {1, 2, 3, 4, 8}) {
    uint64_t codes = fnv1a(nullptr, 0), attended = codes;
    for (const int32_t dim : {64, 80, 96, 128, 192, 256, 512}) {
      const KvCodec codec{dim, dim, bits, bits};
      Random random{static_cast<uint32_t>(dim)};
      const auto values = static_cast<size_t>(dim * kPageTokens);
      const Bytes k(2 * values), v(2 * values);
      for (const Bytes* half : {&k, &v}) {
        const Bytes x = random.floats(values, 2.0f);
        vector_kernels_ref()->to_f16(x.as<float>(), static_cast<int32_t>(values), half->as<uint16_t>());
      }
      const Bytes k_codes(encoded_k_page_bytes(dim, bits)), v_codes(encoded_v_page_bytes(dim, bits));
      const Bytes sinks(encoded_sink_bytes(codec)), encode_scratch(encode_scratch_bytes(codec));
      kernels.encode_page(codec, k.as<uint16_t>(), v.as<uint16_t>(), k_codes.get(), v_codes.get(), sinks.get(),
                          encode_scratch.get());
      for (const Bytes* part : {&k_codes, &v_codes, &sinks}) codes = fnv1a(part->get(), part->size, codes);
      const auto width = static_cast<size_t>(dim);
      const Bytes q = random.floats(kQueries * width, 2.0f), partials(sizeof(float) * kQueries * (width + 2));
      const Bytes rotated(rotated_query_bytes(codec) * kQueries);
      const Bytes scratch(attend_codes_scratch_bytes(codec, kQueries));
      CodeQuery queries[kQueries];
      for (int32_t i = 0; i < kQueries; ++i) {
        const auto n = static_cast<size_t>(i);
        uint8_t* at = rotated.get() + n * rotated_query_bytes(codec);
        queries[i] = {q.as<float>() + n * width, at, i * 3, kPageTokens - i * 19,
                      partials.as<float>() + n * (width + 2)};
        kernels.rotate_query(codec, queries[i].q, at);
      }
      kernels.attend_page(codec, k_codes.get(), v_codes.get(), sinks.get(), 0x1p-3f, 0.0f, queries, kQueries,
                          scratch.get(), nullptr);
      for (const CodeQuery& query : queries) kernels.unrotate(codec, query.partial);
      attended = fnv1a(partials.get(), partials.size, fnv1a(rotated.get(), rotated.size, attended));
    }
    const std::string name = std::to_string(bits) + " bits";
    out["kv codes of " + name] = codes;
    out["attention to codes of " + name] = attended;
  }
}

// The whole executor: logits of a prompt of 150 tokens and of five more, one by one.
void executor(const char* tier, Fingerprint& out) {
  test::Weights weights;
  for (const bool is_f16 : {true, false}) {
    ExecutorOptions options;
    options.tier = tier;
    options.kv_f16 = is_f16;
    const auto executor = test::make_executor(weights, 2, 1, options);
    const int32_t sequence = test::create(*executor);
    std::vector<float> logits = test::step(*executor, sequence, test::some_tokens(150));
    uint64_t hash = fnv1a(logits.data(), logits.size() * sizeof(float));
    for (const int32_t token : {3, 1, 4, 1, 5}) {
      logits = test::step(*executor, sequence, {token});
      hash = fnv1a(logits.data(), logits.size() * sizeof(float), hash);
    }
    out[std::string("executor, cache ") + (is_f16 ? "f16" : "f32")] = hash;
  }
}

Fingerprint fingerprint_of(const KernelTable& table) {
  Fingerprint out;
  linear(*table.linear, out);
  rows(*table.vector, out);
  scans(*table.scan, out);
  attention(*table.attention, out);
  kv_codes(*table.kv_codec, out);
  executor(table.tier, out);
  return out;
}

std::string hex(uint64_t hash) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

// A line each: the hash, a space, the name. Lines that begin with # are comments.
std::map<std::string, std::string> read_golden(const std::string& path) {
  std::map<std::string, std::string> golden;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.size() > 17 && line[0] != '#') golden[line.substr(17)] = line.substr(0, 16);
  }
  return golden;
}

bool write_golden(const std::string& path) {
  std::ofstream file(path);
  file << "# One FNV-1a hash a layout and operation, of outputs on fixed inputs: native/tests/test_fingerprint.cpp "
          "says\n"
          "# what they are and how to write this file anew.\n";
  for (const auto& [name, hash] : fingerprint_of(*table_by_name("scalar"))) file << hex(hash) << ' ' << name << '\n';
  return static_cast<bool>(file.flush());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && std::strcmp(argv[1], "--write") == 0) {
    if (write_golden(argv[2])) return 0;
    std::fprintf(stderr, "cannot write %s\n", argv[2]);
    return 1;
  }
  const auto golden = read_golden(KAMADO_GOLDEN);
  CHECK_MSG(!golden.empty(), "cannot read " KAMADO_GOLDEN);
  test::for_each_tier([&golden](const KernelTable& table, bool) {
    const Fingerprint found = fingerprint_of(table);
    for (const auto& [name, hash] : found) {
      const auto want = golden.find(name);
      const std::string expected = want == golden.end() ? "nothing" : want->second;
      CHECK_MSG(hex(hash) == expected, std::string(table.tier) + ", " + name + ": " + hex(hash) + ", the file has " +
                                           expected + " (in test_fingerprint.cpp: what to do)");
    }
    for (const auto& [name, hash] : golden) CHECK_MSG(found.contains(name), "only the file has " + name);
    std::printf("%s: %zu hashes\n", table.tier, found.size());
  });
  return test::finish();
}
