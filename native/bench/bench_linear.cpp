// Speed of the linear kernels: GB/s of packed weights at n = 1 (from a working set larger than the caches, and from a
// small one) and GOPS (2 per weight and row) at larger n, by layout and tier.
//
//   bench_linear [tier,... | all] [layout,... | all] [n,...] [threads,...] [cols] [rows]
//
// Every figure is the median of several short runs, the best one behind it; compare runs of one session only.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "kamado/align.h"
#include "kamado/layout.h"
#include "kamado/linear.h"
#include "kamado/tables.h"
#include "os/os_memory.h"

using namespace kamado;

namespace {

// Advised to use huge pages, as the executor's weights should be.
uint8_t* allocate(size_t bytes) {
  bytes = align_up(bytes, os::kHugePageBytes);
  void* p = std::aligned_alloc(os::kHugePageBytes, bytes);
  if (p == nullptr) std::exit(1);
  os::advise_huge_pages(p, bytes, true);
  std::memset(p, 0, bytes);
  return static_cast<uint8_t*>(p);
}

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Bench {
  PackedMatrix w;
  std::vector<const uint8_t*> acts;
  std::vector<float*> outs;
};

// One pass over all tiles, shared out in chunks of tiles as an executor would.
void pass(const LinearKernels& k, const Bench& b, int n, std::atomic<int>& next, uint8_t* scratch) {
  const int chunk = n <= 16 ? 16 : 4;
  for (;;) {
    const int begin = next.fetch_add(chunk);
    if (begin >= b.w.num_tiles()) return;
    k.multiply(b.w, begin, std::min(begin + chunk, b.w.num_tiles()), b.acts.data(), n, b.outs.data(), scratch);
  }
}

struct Times {
  double median, best;
};

Times measure(const LinearKernels& k, const Bench& b, int n, int threads) {
  std::vector<uint8_t*> scratch;
  for (int t = 0; t < threads; ++t) scratch.push_back(allocate(linear_scratch_bytes(b.w.cols, n)));
  std::vector<double> times;
  const double begin = seconds();
  while (times.size() < 3 || (seconds() - begin < 0.4 && times.size() < 200)) {
    std::atomic<int> next{0}, ready{0};
    std::atomic<bool> go{false};
    std::vector<std::thread> helpers;
    for (int t = 1; t < threads; ++t) {
      helpers.emplace_back([&, t] {
        ++ready;
        while (!go) {
        }
        pass(k, b, n, next, scratch[static_cast<size_t>(t)]);
      });
    }
    while (ready < threads - 1) std::this_thread::yield();
    const double start = seconds();
    go = true;
    pass(k, b, n, next, scratch[0]);
    for (std::thread& h : helpers) h.join();
    times.push_back(seconds() - start);
  }
  for (uint8_t* p : scratch) std::free(p);
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times[0]};
}

std::vector<std::string> split(const char* text) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

bool has(const std::vector<std::string>& list, const char* name) {
  return std::find(list.begin(), list.end(), name) != list.end() ||
         std::find(list.begin(), list.end(), "all") != list.end();
}

}  // namespace

int main(int argc, char** argv) {
  const auto tiers = split(argc > 1 ? argv[1] : "avx2,avx512");
  const auto layouts = split(argc > 2 ? argv[2] : "all");
  const auto sizes = split(argc > 3 ? argv[3] : "1,512");
  const auto thread_counts = split(argc > 4 ? argv[4] : "1,2");
  const int cols = argc > 5 ? std::atoi(argv[5]) : 1536;
  const int fixed_rows = argc > 6 ? std::atoi(argv[6]) : 0;
  for (const LayoutInfo& info : kLayouts) {
    const Layout layout = info.layout;
    if (!has(layouts, info.name)) continue;
    for (const char* name : {"scalar", "avx2", "avx512"}) {
      const KernelTable* tier = table_by_name(name);
      if (!has(tiers, name) || tier == nullptr) continue;
      std::printf("%-7s %-7s", info.name, name);
      for (const std::string& size : sizes) {
        const int n = std::atoi(size.c_str());
        // n <= 16 reads about 256 MB so that weights come from memory, unless rows are given.
        const size_t tile_bytes = packed_tile_bytes(layout, cols);
        const int rows = fixed_rows > 0 ? fixed_rows
                         : n <= 16      ? static_cast<int>((size_t{256} << 20) / tile_bytes) * kTileRows
                                        : 1536;
        Bench b{{layout, rows, cols, nullptr, tile_bytes}, {}, {}};
        uint8_t* packed = allocate(tile_bytes * static_cast<size_t>(b.w.num_tiles()));
        std::vector<uint8_t> file(row_bytes(layout, cols) * kTileRows);
        // 0x40 keeps exponents (MXFP4's) away from subnormal products, which no real file has.
        const int bits = info.fields.d_bytes == 1 ? 0x40 : 0;
        for (size_t i = 0; i < file.size(); ++i) {
          file[i] = static_cast<uint8_t>((((i * 2654435761u) >> 13) & 0x37) | static_cast<unsigned>(bits));
        }
        for (int t = 0; t < b.w.num_tiles(); ++t) {
          uint8_t* tile = packed + static_cast<size_t>(t) * tile_bytes;
          if (t == 0) {
            tier->linear->pack_tile(layout, file.data(), row_bytes(layout, cols), kTileRows, cols, tile);
          } else {
            std::memcpy(tile, packed, tile_bytes);
          }
        }
        b.w.data = packed;
        const size_t row = act_bytes(act_kind(layout), cols);
        uint8_t* acts = allocate(row * static_cast<size_t>(n));
        float* outs = reinterpret_cast<float*>(allocate(static_cast<size_t>(rows) * static_cast<size_t>(n) * 4));
        std::vector<float> x(static_cast<size_t>(cols));
        for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(static_cast<int>(i * 37 % 255) - 127);
        for (int i = 0; i < n; ++i) {
          tier->linear->quantize(act_kind(layout), x.data(), cols, acts + row * static_cast<size_t>(i));
          b.acts.push_back(acts + row * static_cast<size_t>(i));
          b.outs.push_back(outs + static_cast<size_t>(rows) * static_cast<size_t>(i));
        }
        for (const std::string& count : thread_counts) {
          const Times s = measure(*tier->linear, b, n, std::atoi(count.c_str()));
          if (n <= 16) {
            const double giga = static_cast<double>(tile_bytes) * b.w.num_tiles() * 1e-9;
            std::printf("  n%d/%s: %5.1f (%5.1f) GB/s", n, count.c_str(), giga / s.median, giga / s.best);
          } else {
            const double giga = 2e-9 * rows * cols * n;
            std::printf("  n%d/%s: %5.1f (%5.1f) GOPS", n, count.c_str(), giga / s.median, giga / s.best);
          }
          std::fflush(stdout);
        }
        std::free(packed), std::free(acts), std::free(outs);
      }
      std::printf("\n");
    }
  }
  return 0;
}
