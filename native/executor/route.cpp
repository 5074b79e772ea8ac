#include "executor/route.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace kamado {

void Router::route(const RouteOp& op, const float* logits, uint8_t* out, Worker& worker) const {
  memory_.note_damage(logits, op.num_experts, "a score of a router", worker);
  if (const float* bias = model_.vector(op.bias)) {
    memory_.note_damage(bias, op.num_experts, "a router's bias", worker);
  }
  if (const float* scale = model_.vector(op.expert_scale)) {
    memory_.note_damage(scale, op.num_experts, "an expert's scale", worker);
  }
  pick(op, logits, out, worker);
}

void Router::pick(const RouteOp& op, const float* logits, uint8_t* out, Worker& worker) const {
  const VectorKernels& math = *model_.kernels().vector;
  const int32_t n = op.num_experts;
  float* scores = worker.scores;
  float* choice = worker.scores + n;  // what the picking compares; -infinity: not allowed or picked already
  float* picked = worker.scores + 2 * n;
  if (op.score == RouteScore::kSoftmax) {
    math.softmax(logits, n, scores);
  } else if (op.score == RouteScore::kSigmoid) {
    for (int32_t i = 0; i < n; ++i) {  // 1 / (1 + exp(-x)) by the one exp of the vector kernels
      const float pair[2] = {logits[i], 0};
      float shares[2];
      math.softmax(pair, 2, shares);
      scores[i] = shares[0];
    }
  } else {
    std::memcpy(scores, logits, static_cast<size_t>(n) * sizeof(float));
  }
  const float* bias = model_.vector(op.bias);
  for (int32_t i = 0; i < n; ++i) {
    choice[i] = bias == nullptr ? scores[i] : scores[i] + bias[i];
    if (!(choice[i] > -HUGE_VALF)) choice[i] = -std::numeric_limits<float>::max();  // NaN and -inf stay eligible, last
  }
  // Index of the largest, the lower one among equals.
  const auto largest = [](const float* values, int32_t count) {
    return static_cast<int32_t>(std::max_element(values, values + count) - values);
  };
  if (op.top_groups < op.num_groups) {
    const int32_t size = n / op.num_groups;
    float* ranks = picked;  // num_groups <= n
    for (int32_t group = 0; group < op.num_groups; ++group) {
      const float* begin = choice + group * size;
      const int32_t first = largest(begin, size);
      float second = -HUGE_VALF;
      for (int32_t i = 0; i < size; ++i) {
        if (i != first) second = std::max(second, begin[i]);
      }
      ranks[group] = std::max(size > 1 ? begin[first] + second : begin[first], -std::numeric_limits<float>::max());
    }
    // Ranks of the chosen groups become -infinity, which no rank is before.
    for (int32_t i = 0; i < op.top_groups; ++i) ranks[largest(ranks, op.num_groups)] = -HUGE_VALF;
    for (int32_t group = 0; group < op.num_groups; ++group) {
      if (ranks[group] > -HUGE_VALF) std::fill_n(choice + group * size, size, -HUGE_VALF);
    }
  }
  auto* ids = reinterpret_cast<int32_t*>(out);
  auto* shares = reinterpret_cast<float*>(out + static_cast<size_t>(op.top_k) * sizeof(int32_t));
  for (int32_t i = 0; i < op.top_k; ++i) {
    ids[i] = largest(choice, n);
    choice[ids[i]] = -HUGE_VALF;
  }
  std::sort(ids, ids + op.top_k);
  for (int32_t i = 0; i < op.top_k; ++i) picked[i] = scores[ids[i]];
  if (op.score == RouteScore::kTopkSoftmax) math.softmax(picked, op.top_k, picked);
  float sum = 0;
  for (int32_t i = 0; i < op.top_k; ++i) sum += picked[i];
  const float divisor = std::max(sum + op.norm_eps, op.norm_min);
  const bool divides = op.normalize && op.score != RouteScore::kTopkSoftmax && divisor > 0;
  for (int32_t i = 0; i < op.top_k; ++i) shares[i] = (divides ? picked[i] / divisor : picked[i]) * op.scale;
  if (const float* scale = model_.vector(op.expert_scale)) {
    for (int32_t i = 0; i < op.top_k; ++i) shares[i] *= scale[ids[i]];
  }
}

void Router::predict(const PredictOp& op, const float* logits, uint8_t* out, Worker& worker) const {
  pick(op.route, logits, out, worker);
  auto* ids = reinterpret_cast<int32_t*>(out);
  auto* shares = reinterpret_cast<float*>(out + static_cast<size_t>(op.route.top_k) * sizeof(int32_t));
  for (int32_t i = 0; i < op.route.top_k; ++i) {
    const auto best = static_cast<int32_t>(std::max_element(shares + i, shares + op.route.top_k) - shares);
    std::swap(ids[i], ids[best]);
    std::swap(shares[i], shares[best]);
  }
  model_.stream()->look_ahead(op.layer, ids, op.route.top_k);
}

}  // namespace kamado
