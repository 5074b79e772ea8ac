// Speed of attention over cached pages: `bench_attention [tier [f16|f32|codes]]`. Times are processor time of one
// thread, medians of five, and each line stands beside the float peak and the read bandwidth taken the same way in the
// same run, so that figures from a busy machine can still be compared. `codes` puts encoded pages beside f16 ones: the
// two take turns.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench/bench.h"
#include "kamado/state.h"
#include "kamado/tables.h"

namespace {

using namespace kamado;

struct Shape {
  const char* name;
  int32_t layers, kv_heads, head_dim, group;
};

constexpr Shape kShapes[] = {
    {"qwen2.5 1.5b", 28, 2, 128, 6}, {"smollm2 135m", 30, 3, 64, 3}, {"llama3 8b", 8, 8, 128, 4},
    {"gemma3 270m", 18, 1, 256, 4},  {"qwen3 moe", 16, 4, 128, 8},   {"head 80", 16, 4, 80, 5},
    {"one to one", 12, 12, 64, 1},   {"head 96", 12, 4, 96, 2},
};

void measure(const KernelTable& table, const Shape& shape, KvType type, int64_t depth, int32_t rows) {
  const LimitKernels& limits = *limits_of(table.tier);
  const std::vector<KvLayerShape> layers(static_cast<size_t>(shape.layers),
                                         {shape.kv_heads, shape.head_dim, shape.head_dim});
  StateCache cache(layers, type, depth / kPageTokens, 1);
  const int32_t seq = cache.create();
  cache.reserve(seq, depth);
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  const auto head = static_cast<size_t>(shape.head_dim);
  std::vector<float> k(head), v(head);
  const size_t block_bytes = head * kPageTokens * (type == KvType::kF16 ? 2 : 4);
  for (int32_t slot = 0; slot < kPageTokens; ++slot) {
    for (size_t d = 0; d < head; ++d) k[d] = normal(rng), v[d] = normal(rng);
    table.attention->store(type, cache.k_block(seq, 0, 0, 0), cache.v_block(seq, 0, 0, 0), shape.head_dim,
                           shape.head_dim, slot, k.data(), v.data());
  }
  for (int64_t p = 0; p < depth / kPageTokens; ++p) {
    for (int32_t l = 0; l < shape.layers; ++l) {
      for (int32_t h = 0; h < shape.kv_heads; ++h) {
        if (p + l + h == 0) continue;
        std::memcpy(cache.k_block(seq, p, l, h), cache.k_block(seq, 0, 0, 0), block_bytes);
        std::memcpy(cache.v_block(seq, p, l, h), cache.v_block(seq, 0, 0, 0), block_bytes);
      }
    }
  }
  const int32_t n = rows * shape.group;
  std::vector<float> q(static_cast<size_t>(n) * head, 0.1f), partial(static_cast<size_t>(n) * (head + 2)),
      running(partial.size());
  std::vector<AttendQuery> queries;
  for (int32_t i = 0; i < n; ++i) {
    queries.push_back(
        {&q[static_cast<size_t>(i) * head], 0, kPageTokens, &partial[static_cast<size_t>(i) * (head + 2)]});
  }
  const std::unique_ptr<uint8_t[]> raw(new uint8_t[attention_scratch_bytes(n, shape.head_dim, shape.head_dim) + 64]);
  uint8_t* scratch = raw.get() + (64 - reinterpret_cast<uintptr_t>(raw.get()) % 64) % 64;
  const auto walk = [&] {
    for (int32_t l = 0; l < shape.layers; ++l) {
      for (int32_t h = 0; h < shape.kv_heads; ++h) {
        for (int64_t p = 0; p < depth / kPageTokens; ++p) {
          const bool is_last = (p + 1) * kPageTokens == depth;
          const void* next = !is_last                 ? cache.k_block(seq, p + 1, l, h)
                             : h + 1 < shape.kv_heads ? cache.k_block(seq, 0, l, h + 1)
                                                      : nullptr;
          table.attention->attend_page_then(type, cache.k_block(seq, p, l, h), cache.v_block(seq, p, l, h),
                                            shape.head_dim, shape.head_dim, 0.088f, 0.0f, queries.data(), n, scratch,
                                            next);
          for (const AttendQuery& query : queries) {
            table.attention->merge(&running[static_cast<size_t>(query.partial - partial.data())], query.partial,
                                   shape.head_dim);
          }
        }
      }
    }
  };
  double flops_peak = 0, read_peak = 0;
  for (int i = 0; i < 5; ++i) {
    const double start = now();
    (void)limits.multiply_add(2000);
    flops_peak = std::max(flops_peak, 2.0 * kFmaPerRound * 2000 / (now() - start));
    const double read_start = now();
    (void)limits.read(static_cast<const uint8_t*>(cache.k_block(seq, 0, 0, 0)), cache.bytes_used() / 1024 * 1024);
    read_peak = std::max(read_peak, static_cast<double>(cache.bytes_used()) / (now() - read_start));
  }
  walk();
  const int repeats = depth > kPageTokens ? 1 : 2000;
  const double time = median_seconds([&] {
                        for (int i = 0; i < repeats; ++i) walk();
                      }) /
                      repeats;
  const double bytes = static_cast<double>(cache.bytes_used());
  const double flops = 4.0 * static_cast<double>(depth) * shape.layers * shape.kv_heads * n * shape.head_dim;
  std::printf(
      "%-13s head %3d group %d rows %3d depth %5lld %4.0f MB: %6.2f ms %6.2f GB/s (%3.0f %% of %.1f)  %6.1f GFLOPS "
      "(%3.0f %% of %.0f)\n",
      shape.name, shape.head_dim, shape.group, rows, static_cast<long long>(depth), bytes / 1e6, time * 1e3,
      bytes / time / 1e9, 100 * bytes / time / read_peak, read_peak / 1e9, flops / time / 1e9,
      100 * flops / time / flops_peak, flops_peak / 1e9);
}

// Blocks of one kind: [page][layer and head], as a cache has them.
class Blocks {
 public:
  Blocks(size_t block_bytes, int64_t pages, int32_t heads, const std::vector<uint8_t>& content)
      : block_bytes_(block_bytes), heads_(heads), bytes_(block_bytes * static_cast<size_t>(pages * heads) + 64) {
    data_.reset(new uint8_t[bytes_]);
    base_ = data_.get() + (64 - reinterpret_cast<uintptr_t>(data_.get()) % 64) % 64;
    for (int64_t i = 0; i < pages * heads; ++i) {
      std::memcpy(base_ + static_cast<size_t>(i) * block_bytes, content.data(), block_bytes);
    }
  }
  uint8_t* at(int64_t page, int32_t head) const {
    return base_ + static_cast<size_t>(page * heads_ + head) * block_bytes_;
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t block_bytes_;
  int32_t heads_;
  size_t bytes_;
  std::unique_ptr<uint8_t[]> data_;
  uint8_t* base_;
};

struct Aligned {
  explicit Aligned(size_t n) : raw(new uint8_t[n + 64]) {
    data = raw.get() + (64 - reinterpret_cast<uintptr_t>(raw.get()) % 64) % 64;
  }
  std::unique_ptr<uint8_t[]> raw;
  uint8_t* data;
};

// One row's queries over `heads` layers-and-heads of `depth` tokens: f16 and codes in turns, and the cost of encoding.
void compare(const KernelTable& table, int32_t dim, int32_t k_bits, int32_t v_bits, int32_t group, int64_t depth,
             int32_t heads) {
  const KvCodec codec{dim, dim, k_bits, v_bits};
  const auto width = static_cast<size_t>(dim);
  const int64_t pages = depth / kPageTokens;
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  std::vector<uint8_t> exact(width * kPageTokens * 4);  // K, then V
  uint8_t* exact_v = exact.data() + width * kPageTokens * 2;
  std::vector<float> k(width), v(width);
  for (int32_t slot = 0; slot < kPageTokens; ++slot) {
    for (size_t d = 0; d < width; ++d) k[d] = normal(rng), v[d] = normal(rng);
    table.attention->store(KvType::kF16, exact.data(), exact_v, dim, dim, slot, k.data(), v.data());
  }
  const size_t k_bytes = encoded_k_page_bytes(dim, k_bits), v_bytes = encoded_v_page_bytes(dim, v_bits);
  std::vector<uint8_t> encoded(k_bytes + v_bytes);
  const Aligned encode_scratch(encode_scratch_bytes(codec)), blocks(k_bytes + v_bytes);
  const double encode_time = median_seconds([&] {
    table.kv_codec->encode_page(codec, reinterpret_cast<const uint16_t*>(exact.data()),
                                reinterpret_cast<const uint16_t*>(exact_v), blocks.data, blocks.data + k_bytes, nullptr,
                                encode_scratch.data);
  });
  std::memcpy(encoded.data(), blocks.data, encoded.size());
  const Blocks exact_pages(exact.size(), pages, heads, exact), code_pages(encoded.size(), pages, heads, encoded);

  const size_t partial_floats = width + 2;
  std::vector<float> q(width * static_cast<size_t>(group)), partials(partial_floats * static_cast<size_t>(group)),
      running(partials.size());
  for (float& x : q) x = normal(rng);
  const Aligned rotated(rotated_query_bytes(codec) * static_cast<size_t>(group));
  const Aligned scratch(attention_scratch_bytes(group, dim, dim) + attend_codes_scratch_bytes(codec, group));
  std::vector<AttendQuery> queries;
  std::vector<CodeQuery> code_queries;
  for (int32_t i = 0; i < group; ++i) {
    const auto at = static_cast<size_t>(i);
    uint8_t* blob = rotated.data + at * rotated_query_bytes(codec);
    float* partial = partials.data() + at * partial_floats;
    table.kv_codec->rotate_query(codec, &q[at * width], blob);
    queries.push_back({&q[at * width], 0, kPageTokens, partial});
    code_queries.push_back({&q[at * width], blob, 0, kPageTokens, partial});
  }
  const auto merge = [&] {
    for (int32_t i = 0; i < group; ++i) {
      const size_t at = static_cast<size_t>(i) * partial_floats;
      table.attention->merge(&running[at], &partials[at], dim);
    }
  };
  const auto walk = [&](bool is_encoded) {
    const Blocks& given = is_encoded ? code_pages : exact_pages;
    for (int32_t h = 0; h < heads; ++h) {
      for (int64_t p = 0; p < pages; ++p) {
        const uint8_t* block = given.at(p, h);
        const uint8_t* next = p + 1 < pages ? given.at(p + 1, h) : nullptr;
        if (is_encoded) {
          table.kv_codec->attend_page(codec, block, block + k_bytes, nullptr, 0.088f, 0.0f, code_queries.data(), group,
                                      scratch.data, next);
        } else {
          table.attention->attend_page_then(KvType::kF16, block, block + width * kPageTokens * 2, dim, dim, 0.088f,
                                            0.0f, queries.data(), group, scratch.data, next);
        }
        merge();
      }
      if (is_encoded) table.kv_codec->unrotate(codec, running.data());
    }
  };
  const int repeats = depth > kPageTokens ? 1 : 3000;
  std::vector<double> exact_times, code_times;
  for (int i = 0; i < 8; ++i) {  // the first round warms up
    for (const bool is_encoded : {false, true}) {
      const double start = now();
      for (int r = 0; r < repeats; ++r) walk(is_encoded);
      if (i > 0) (is_encoded ? code_times : exact_times).push_back((now() - start) / repeats);
    }
  }
  std::sort(exact_times.begin(), exact_times.end()), std::sort(code_times.begin(), code_times.end());
  const double exact_time = exact_times[3], code_time = code_times[3];
  const double count = static_cast<double>(pages * heads);
  std::printf(
      "head %3d bits %d/%d group %d depth %5lld: f16 %7.3f us a page (%5.1f GB/s), codes %7.3f us (%5.1f GB/s): "
      "%4.2fx; encoding %.1f us\n",
      dim, k_bits, v_bits, group, static_cast<long long>(depth), exact_time / count * 1e6,
      static_cast<double>(exact_pages.bytes()) / exact_time / 1e9, code_time / count * 1e6,
      static_cast<double>(code_pages.bytes()) / code_time / 1e9, exact_time / code_time, encode_time * 1e6);
}

void compare_all(const KernelTable& table) {
  for (const int32_t group : {1, 4, 8}) {
    compare(table, 128, 4, 4, group, kPageTokens, 1);
    for (const int64_t depth : {8192, 32768}) compare(table, 128, 4, 4, group, depth, 16);
  }
  for (const int32_t bits : {8, 3, 2}) compare(table, 128, bits, bits == 8 ? 4 : bits, 6, 16384, 16);
  for (const int32_t dim : {64, 80, 96, 192, 256}) compare(table, dim, 4, 4, 3, 16384, 8);
}

}  // namespace

int main(int argc, char** argv) {
  const KernelTable* table = argc > 1 ? table_by_name(argv[1]) : &best_table();
  if (!table) {
    std::fprintf(stderr, "no tier %s here\n", argv[1]);
    return 2;
  }
  if (argc > 2 && std::strcmp(argv[2], "codes") == 0) {
    std::printf("tier %s, codes beside f16\n", table->tier);
    compare_all(*table);
    return 0;
  }
  const KvType type = argc > 2 && std::strcmp(argv[2], "f32") == 0 ? KvType::kF32 : KvType::kF16;
  std::printf("tier %s, %s\n", table->tier, type == KvType::kF32 ? "f32" : "f16");
  for (const Shape& shape : kShapes) {  // one page of one layer and head: all in the cache
    measure(*table, {shape.name, 1, 1, shape.head_dim, shape.group}, type, kPageTokens, 1);
  }
  for (const Shape& shape : kShapes) measure(*table, shape, type, 4096, 1);
  for (const int64_t depth : {16384, 32768}) {
    for (int i = 0; i < 2; ++i) measure(*table, kShapes[i], type, depth, 1);
  }
  for (const int32_t rows : {8, 32}) {
    for (const Shape& shape : kShapes) measure(*table, shape, type, 512, rows);
  }
  return 0;
}
