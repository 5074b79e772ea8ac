// Row-wise float kernels. All tiers give the same bits: sums use 16 virtual lanes (element i goes to lane i % 16, each
// lane adds in ascending order), then a fixed tree (lane l += lane l + 8, then + 4, + 2, + 1); every exp is exp_f32
// below.
#pragma once
#include <cstdint>

#include "kamado/row_ops.h"

namespace kamado {

// Row-wise operations are what src/kamado/program/ops.py says of them: inputs and parameters in the order of the
// fields, an input that a program may leave out is nullptr, out may be any input that is as wide.
struct VectorKernels : RowKernels {
  // out = x / sqrt(mean(x^2) + eps) * weight (nullptr: 1). out may be x.
  void (*rms_norm)(const float* x, const float* weight, int32_t n, float eps, float* out);
  // out = x / sqrt(sum of x^2 + eps) * weight, as rms_norm.
  void (*l2_norm)(const float* x, const float* weight, int32_t n, float eps, float* out);
  // out = (x - mean) / sqrt(var + eps) * weight + bias (either nullptr).
  void (*layer_norm)(const float* x, const float* weight, const float* bias, int32_t n, float eps, float* out);
  // In place on n_heads heads; cos/sin hold rot_dim/2 values each. interleaved: pairs (2i, 2i+1), else (i, i+rot/2).
  void (*rope)(float* x, int32_t n_heads, int32_t head_dim, int32_t rot_dim, const float* cos, const float* sin,
               bool interleaved);
  void (*axpy)(float factor, const float* x, int32_t n, float* inout);  // inout = fma(factor, x, inout)
  // after = before * decay + x, the product rounded before the sum.
  void (*accumulate)(const float* before, const float* x, float decay, int32_t n, float* after);
  void (*softmax)(const float* x, int32_t n, float* out);
  // sum over i of log-sum-exp pieces for perplexity: returns log(sum(exp(x - max))) + max, fixed order, in double.
  double (*log_sum_exp)(const float* x, int32_t n);
  // f32 <-> f16, round to nearest even, clamped to +-65504 so that a cache never holds an infinity.
  void (*to_f16)(const float* x, int32_t n, uint16_t* out);
  void (*from_f16)(const uint16_t* x, int32_t n, float* out);
  bool (*is_finite)(const float* x, int32_t n);  // no NaN and no infinity among them
};

// The table of a tier, whose kernels have these names.
template <class Tier, double (*kLogSumExp)(const float*, int32_t)>
constexpr VectorKernels vector_kernels() {
  return {row_kernels<Tier>(), Tier::rms_norm, Tier::l2_norm, Tier::layer_norm, Tier::rope,     Tier::axpy,
          Tier::accumulate,    Tier::softmax,  kLogSumExp,    Tier::to_f16,     Tier::from_f16, Tier::is_finite};
}

const VectorKernels* vector_kernels_ref();
const VectorKernels* vector_kernels_avx2();
const VectorKernels* vector_kernels_avx512();

}  // namespace kamado
