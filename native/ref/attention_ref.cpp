// Scalar reference of attention over a page: the contract of attention.h as plain loops.
#include "kamado/attention.h"

#include <cfloat>
#include <cmath>
#include <cstddef>
#include <limits>

#include "kernels/attention_layout.h"
#include "kernels/math.inc.h"

namespace kamado {
namespace {

float element(KvType type, const void* base, size_t index) {
  return type == KvType::kF16 ? f32_from_f16(static_cast<const uint16_t*>(base)[index])
                              : static_cast<const float*>(base)[index];
}

void set_element(KvType type, void* base, size_t index, float x) {
  if (type == KvType::kF16) {
    static_cast<uint16_t*>(base)[index] = f16_from_f32(x);
  } else {
    static_cast<float*>(base)[index] = std::isnan(x) ? 0.0f : max(min(F1{x}, F1{FLT_MAX}), F1{-FLT_MAX}).v;
  }
}

void attend_one(KvType type, const void* k, const void* v, int32_t head_dim, int32_t v_dim, float scale, float softcap,
                const AttendQuery& query) {
  float p[kPageTokens];
  float top[kVirtualLanes];
  for (float& t : top) t = -std::numeric_limits<float>::infinity();
  for (int32_t j = query.lo; j < query.hi; ++j) {
    float acc = 0.0f;
    for (int32_t d = 0; d < head_dim; ++d) {
      acc = std::fma(query.q[d], element(type, k, static_cast<size_t>(d) * kPageTokens + static_cast<size_t>(j)), acc);
    }
    p[j] = acc * scale;
    if (softcap > 0.0f) p[j] = softcap_f32(F1{p[j]}, F1{softcap}).v;
    top[j % kVirtualLanes] = max(F1{top[j % kVirtualLanes]}, F1{p[j]}).v;
  }
  for (int width = kVirtualLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) top[l] = max(F1{top[l]}, F1{top[l + width]}).v;
  }
  const float m = top[0];
  float sum[kVirtualLanes] = {};
  for (int32_t j = query.lo; j < query.hi; ++j) {
    p[j] = exp_f32(F1{p[j] - m}).v;
    sum[j % kVirtualLanes] += p[j];
  }
  for (int width = kVirtualLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) sum[l] += sum[l + width];
  }
  query.partial[0] = m;
  query.partial[1] = sum[0];
  for (int32_t d = 0; d < v_dim; ++d) {
    float acc = 0.0f;
    for (int32_t j = query.lo; j < query.hi; ++j) {
      acc = std::fma(
          p[j], element(type, v, static_cast<size_t>(j) * static_cast<size_t>(v_dim) + static_cast<size_t>(d)), acc);
    }
    query.partial[2 + d] = acc + 0.0f;  // -0 becomes +0, as it does when a masked key adds 0 * v
  }
}

void attend_page(KvType type, const void* k, const void* v, int32_t head_dim, int32_t v_dim, float scale, float softcap,
                 const AttendQuery* queries, int32_t n, uint8_t*) {
  for (int32_t i = 0; i < n; ++i) attend_one(type, k, v, head_dim, v_dim, scale, softcap, queries[i]);
}

void attend_page_then(KvType type, const void* k, const void* v, int32_t head_dim, int32_t v_dim, float scale,
                      float softcap, const AttendQuery* queries, int32_t n, uint8_t* scratch, const void*) {
  attend_page(type, k, v, head_dim, v_dim, scale, softcap, queries, n, scratch);
}

void merge(float* running, const float* next, int32_t v_dim) {
  const float m = max(F1{running[0]}, F1{next[0]}).v;
  const float fa = exp_f32(F1{running[0] - m}).v;
  const float fb = exp_f32(F1{next[0] - m}).v;
  running[0] = m;
  running[1] = std::fma(next[1], fb, running[1] * fa);
  for (int32_t d = 0; d < v_dim; ++d) running[2 + d] = std::fma(next[2 + d], fb, running[2 + d] * fa);
}

void finish(const float* running, int32_t v_dim, float* out) {
  for (int32_t d = 0; d < v_dim; ++d) out[d] = running[2 + d] / running[1];
}

void store(KvType type, void* k_block, void* v_block, int32_t head_dim, int32_t v_dim, int32_t slot, const float* k,
           const float* v) {
  const auto column = static_cast<size_t>(slot);
  for (int32_t d = 0; d < head_dim; ++d)
    set_element(type, k_block, static_cast<size_t>(d) * kPageTokens + column, k[d]);
  for (int32_t d = 0; d < v_dim; ++d) {
    set_element(type, v_block, column * static_cast<size_t>(v_dim) + static_cast<size_t>(d), v[d]);
  }
}

constexpr AttentionKernels kKernels = {attend_page, merge, finish, store, attend_page_then};

}  // namespace

size_t attention_scratch_bytes(int32_t n_queries, int32_t head_dim, int32_t v_dim) {
  const int32_t block = n_queries < kAttendBlock ? n_queries : kAttendBlock;
  return attend_scratch_floats(block < 1 ? 1 : block, head_dim, v_dim) * sizeof(float);
}

const AttentionKernels* attention_kernels_ref() {
  return &kKernels;
}

}  // namespace kamado
