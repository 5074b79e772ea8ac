// Speed of the gated delta rule: `bench_scan [tier]`. One thread's processor time, medians of five, beside the read
// bandwidth and the float peak taken in the same run, so that figures from a busy machine can still be compared.
//
//   prefill   512 rows through all heads of a layer, each block of S in the first-level cache
//   decode    one row through the heads of many layers, whose S come from memory: each is read and written once
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "bench/bench.h"
#include "kamado/tables.h"

namespace {

using namespace kamado;

constexpr int32_t kDim = 128, kColumns = 128, kHeads = 32, kKeyHeads = 16, kRows = 32, kMaxRows = 512,
                  kBlocks = kColumns / kScanColumns;
constexpr int32_t kLayers = 24;  // 48 MiB of S, twice
constexpr size_t kHeadFloats = size_t{kDim} * kColumns, kLayerFloats = kHeads * kHeadFloats;

struct Floats {
  explicit Floats(size_t count) : data(new (std::align_val_t{4096}) float[count]) {
    for (size_t i = 0; i < count; ++i) data[i] = static_cast<float>(i * 31 % 97) * 1e-3f;
  }
  struct Delete {
    void operator()(float* pointer) const { ::operator delete[](pointer, std::align_val_t{4096}); }
  };
  std::unique_ptr<float[], Delete> data;
};

// `rows` rows of one layer's heads, as the executor walks them: head by head, some rows of it through each block.
void layer(const ScanKernels& scan, int32_t rows, bool has_channels, const Floats& x, const float* before, float* after,
           Floats& out) {
  DeltaBlock block{};
  block.k_dim = kDim;
  block.num_columns = kScanColumns;
  block.q_stride = block.k_stride = size_t{kKeyHeads} * kDim;
  block.v_stride = block.out_stride = size_t{kHeads} * kColumns;
  block.kept = block.reads = block.beta = x.data.get();
  block.has_channels = has_channels;
  block.streams = rows == 1;
  block.scale = 0.1f;
  const float *q = x.data.get(), *k = q + size_t{kMaxRows} * block.q_stride, *v = k + size_t{kMaxRows} * block.k_stride;
  for (size_t head = 0; head < kHeads; ++head) {
    for (int32_t row = 0; row < rows; row += block.num_rows) {
      block.num_rows = std::min(kRows, rows - row);
      const auto at = static_cast<size_t>(row);
      block.q = q + at * block.q_stride + head % kKeyHeads * kDim;
      block.k = k + at * block.k_stride + head % kKeyHeads * kDim;
      for (size_t b = 0; b < kBlocks; ++b) {
        const size_t column = head * kColumns + b * kScanColumns;
        block.v = v + at * block.v_stride + column;
        block.out = out.data.get() + at * block.out_stride + column;
        scan.delta(block, (row == 0 ? before : after) + column * kDim, after + column * kDim);
      }
    }
  }
}

void measure(const KernelTable& table) {
  const LimitKernels& limits = *limits_of(table.tier);
  const size_t row_floats = size_t{kHeads} * kColumns;
  const Floats x(2 * size_t{kMaxRows} * row_floats + kDim), first(kLayers * kLayerFloats);
  Floats second(kLayers * kLayerFloats), out(size_t{kMaxRows} * row_floats);
  const size_t state_bytes = kLayers * kLayerFloats * sizeof(float);
  double flops_peak = 0, read_peak = 0;
  for (int i = 0; i < 5; ++i) {
    double start = now();
    (void)limits.multiply_add(2000);
    flops_peak = std::max(flops_peak, 2.0 * kFmaPerRound * 2000 / (now() - start));
    start = now();
    (void)limits.read(reinterpret_cast<const uint8_t*>(first.data.get()), state_bytes);
    read_peak = std::max(read_peak, static_cast<double>(state_bytes) / (now() - start));
  }
  std::printf("tier %s: reads %.1f GB/s, %.0f GFLOPS\n", table.tier, read_peak / 1e9, flops_peak / 1e9);
  for (const bool has_channels : {false, true}) {
    const char* kind = has_channels ? "a decay a channel" : "a decay a head";
    const double prefill = median_seconds([&] {
                             layer(*table.scan, kMaxRows, has_channels, x, first.data.get(), second.data.get(), out);
                           }) /
                           kMaxRows;
    const double flops = 7.0 * kHeads * kDim * kColumns;
    std::printf("  prefill, %-17s %7.1f us a row and layer (%5.0f ns a head), %5.1f GFLOPS (%.0f %%)\n", kind,
                prefill * 1e6, prefill / kHeads * 1e9, flops / prefill / 1e9, 100 * flops / prefill / flops_peak);
    const double decode = median_seconds([&] {
      for (size_t l = 0; l < kLayers; ++l) {
        layer(*table.scan, 1, has_channels, x, first.data.get() + l * kLayerFloats,
              second.data.get() + l * kLayerFloats, out);
      }
    });
    const double bytes = 2.0 * static_cast<double>(state_bytes);
    std::printf("  decode,  %-17s %7.1f us a layer, %5.1f GB/s read and written (%.0f %% of reading)\n", kind,
                decode / kLayers * 1e6, bytes / decode / 1e9, 100 * bytes / decode / read_peak);
  }
}

}  // namespace

int main(int argc, char** argv) {
  for (const char* tier : {"scalar", "avx2", "avx512"}) {
    const KernelTable* table = table_by_name(tier);
    if (table != nullptr && (argc < 2 || std::strcmp(argv[1], tier) == 0)) measure(*table);
  }
  return 0;
}
