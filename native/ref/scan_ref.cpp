// Scalar reference of the kernels with a record: the contract of scan.h as plain loops. The oracle of the other tiers.
#include "kamado/scan.h"

#include <cmath>

#include "kernels/math.inc.h"

namespace kamado {
namespace {

void conv(const float* const* rows, const float* weight, size_t weight_stride, int32_t num_taps, const float* bias,
          int32_t n, float* out) {
  for (int32_t i = 0; i < n; ++i) {
    float sum = 0;
    for (int32_t j = 0; j < num_taps; ++j) {
      sum = std::fma(weight[static_cast<size_t>(j) * weight_stride + static_cast<size_t>(i)], rows[j][i], sum);
    }
    if (bias != nullptr) sum += bias[i];
    out[i] = sum;
  }
}

void decay(const float* steps, float rate, int32_t n, float* out) {
  for (int32_t i = 0; i < n; ++i) out[i] = exp_f32(F1{rate * steps[i]}).v;
}

void delta(const DeltaBlock& block, const float* before, float* after) {
  const int32_t k_dim = block.k_dim, width = block.num_columns;
  for (int32_t row = 0; row < block.num_rows; ++row) {
    const auto at = static_cast<size_t>(row);
    const size_t channels = at * static_cast<size_t>(block.has_channels ? k_dim : 1);
    const float *q = block.q + at * block.q_stride, *k = block.k + at * block.k_stride;
    const float *kept = block.kept + channels, *reads = block.has_channels ? block.reads + channels : k;
    const float* s = row == 0 ? before : after;
    for (int32_t c = 0; c < width; ++c) {
      float sums[2] = {}, outs[2] = {};
      for (int32_t i = 0; i < k_dim; ++i) sums[i % 2] = std::fma(s[i * width + c], reads[i], sums[i % 2]);
      const float m = sums[0] + sums[1], v = block.v[at * block.v_stride + static_cast<size_t>(c)];
      const float d = block.beta[row] * (block.has_channels ? v - m : std::fma(m, -kept[0], v));
      for (int32_t i = 0; i < k_dim; ++i) {
        const float next = std::fma(k[i], d, s[i * width + c] * kept[block.has_channels ? i : 0]);
        after[i * width + c] = next;
        outs[i % 2] = std::fma(next, q[i], outs[i % 2]);
      }
      block.out[at * block.out_stride + static_cast<size_t>(c)] = block.scale * (outs[0] + outs[1]);
    }
  }
}

constexpr ScanKernels kKernels = {conv, decay, delta};

}  // namespace

float softplus(float x) {
  return x > 20.0f ? x : static_cast<float>(std::log1p(std::exp(static_cast<double>(x))));
}

const ScanKernels* scan_kernels_ref() {
  return &kKernels;
}

}  // namespace kamado
