#include "executor/linear.h"

#include <algorithm>

namespace kamado {

void LinearWork::run(const Node& node, const Segment& segment, int32_t thread) {
  const LinearNode& linear = node.linear;
  const VectorKernels& math = *model_.kernels().vector;
  const LinearKernels& products = *model_.kernels().linear;
  Worker& worker = memory_.worker(thread);
  Counter& counter = team_.counter(node.counter);
  const auto num_chunks = static_cast<int32_t>(linear.chunks.size());
  for (int32_t index; (index = counter.take()) < num_chunks;) {
    if (!segment.is_one) team_.check_cancel(thread);  // one row's nodes are short
    const Chunk& chunk = linear.chunks[static_cast<size_t>(index)];
    const LinearPart& part = linear.parts[static_cast<size_t>(chunk.part)];
    const PackedMatrix& matrix = model_.matrix(part.matrix);
    const int32_t begin = chunk.begin * kTileRows;
    const int32_t count = std::min(chunk.end * kTileRows, matrix.rows) - begin;
    const bool is_gated = linear.is_gated && chunk.part == 0;
    const float* bias = model_.vector(part.bias);
    for (int32_t row = 0; row < segment.num_rows; row += linear.row_block) {
      const int32_t rows = std::min(linear.row_block, segment.num_rows - row);
      for (int32_t i = 0; i < rows; ++i) {
        worker.acts[i] = memory_.at(part.act_at, row + i, worker);
        worker.outs[i] = memory_.floats_at(part.out_at, row + i, worker);
      }
      products.multiply(matrix, chunk.begin, chunk.end, worker.acts, rows, worker.outs, worker.scratch);
      const float* gate_bias = nullptr;
      if (is_gated && linear.has_gate_b) {
        const LinearPart& second = linear.parts[1];
        gate_bias = model_.vector(second.bias);
        for (int32_t i = 0; i < rows; ++i) {
          worker.acts[i] = memory_.at(second.act_at, row + i, worker);
          // multiply() writes at the row's index in the whole matrix; these are only this run's columns.
          worker.gate_outs[i] = worker.gate_values + static_cast<int64_t>(i) * count - begin;
        }
        products.multiply(model_.matrix(second.matrix), chunk.begin, chunk.end, worker.acts, rows, worker.gate_outs,
                          worker.scratch);
      }
      for (int32_t i = 0; i < rows; ++i) {
        float* out = worker.outs[i] + begin;
        if (linear.is_head && linear.scale != 1) math.scale(out, linear.scale, count, out);
        if (bias != nullptr) math.add(out, bias + begin, count, out);
        if (is_gated) {
          memory_.note_damage(out, count, "a gate", worker);  // activations take -infinity to 0
          float* other = linear.has_gate_b ? worker.gate_outs[i] + begin : nullptr;
          if (gate_bias != nullptr) math.add(other, gate_bias + begin, count, other);
          // Without a limit the product of both would show it.
          if (other != nullptr && linear.limit > 0) memory_.note_damage(other, count, "a gate", worker);
          math.gate(out, other, linear.activation, linear.limit, 0, linear.alpha, count, out);
        }
        if (linear.is_head) memory_.note_damage(out, count, "a logit", worker);
        if (linear.is_head && linear.softcap > 0) math.softcap(out, linear.softcap, count, out);
      }
    }
  }
}

}  // namespace kamado
