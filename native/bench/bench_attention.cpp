// Speed of attention over cached pages: `bench_attention [tier [f16|f32]]`. Times are processor time of one thread,
// medians of five, and each line stands beside the float peak and the read bandwidth taken the same way in the same
// run, so that figures from a busy machine can still be compared.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kamado/kv.h"
#include "kamado/limits.h"
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

double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

template <class Fn>
double median_seconds(Fn fn) {
  std::vector<double> times;
  for (int i = 0; i < 5; ++i) {
    const double start = now();
    fn();
    times.push_back(now() - start);
  }
  std::sort(times.begin(), times.end());
  return times[2];
}

const LimitKernels* limits_of(const char* tier) {
  if (std::strcmp(tier, "avx512") == 0) return limit_kernels_avx512();
  return std::strcmp(tier, "avx2") == 0 ? limit_kernels_avx2() : limit_kernels_ref();
}

void measure(const KernelTable& table, const Shape& shape, KvType type, int64_t depth, int32_t rows) {
  const LimitKernels& limits = *limits_of(table.tier);
  const std::vector<KvLayerShape> layers(static_cast<size_t>(shape.layers),
                                         {shape.kv_heads, shape.head_dim, shape.head_dim});
  KvCache cache(layers, type, depth / kPageTokens, 1);
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

}  // namespace

int main(int argc, char** argv) {
  const KernelTable* table = argc > 1 ? table_by_name(argv[1]) : &best_table();
  if (!table) {
    std::fprintf(stderr, "no tier %s here\n", argv[1]);
    return 2;
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
