// Row-wise operations and the router.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "executor/impl.h"

namespace kamado {

void Executor::Impl::run_row(const RowOp& op, int32_t row, const Segment& segment, Worker& worker) {
  const VectorKernels& math = *kernels.vector;
  float* out = floats_at(op.out_at, row, worker);
  const float* a = op.in[0] == -1 || op.kind == RowKind::kGather ? nullptr : floats_at(op.in_at[0], row, worker);
  switch (op.kind) {
    case RowKind::kEmbed: {
      const auto& embed = std::get<EmbedOp>(*op.op);
      const MatrixSpec& table = program.matrices[static_cast<size_t>(embed.table)];
      const size_t stored = row_bytes(table.layout, table.cols);
      const auto source = static_cast<size_t>(segment.source[row]);
      const int32_t index = embed.index == EmbedIndex::kToken      ? batch->tokens[source]
                            : embed.index == EmbedIndex::kPosition ? positions[source]
                                                                   : 0;
      table.file->read(table.offset + static_cast<uint64_t>(index) * stored, worker.table_row, stored);
      dequantize_row(table.layout, worker.table_row, out, table.cols);
      if (embed.scale != 1) math.scale(out, embed.scale, op.width, out);
      break;
    }
    case RowKind::kNorm: {
      const auto& norm = std::get<NormOp>(*op.op);
      const int32_t group = norm.group > 0 ? norm.group : op.width;
      for (int32_t begin = 0; begin < op.width; begin += group) {
        if (norm.kind == NormKind::kLayer) {
          math.layer_norm(a + begin, vector(norm.weight), vector(norm.bias), group, norm.eps, out + begin);
        } else {
          math.rms_norm(a + begin, vector(norm.weight), group, norm.eps, out + begin);
        }
      }
      break;
    }
    case RowKind::kRopeTable: {
      const auto& rope = std::get<RopeOp>(*op.op);
      const double* inv_freq = program.constants[static_cast<size_t>(rope.inv_freq)].data();
      const double position = positions[static_cast<size_t>(segment.source[row])];
      for (int32_t i = 0; i < op.width; ++i) {
        const double angle = position * inv_freq[i];
        out[i] = static_cast<float>(std::cos(angle) * rope.attention_factor);
        out[op.width + i] = static_cast<float>(std::sin(angle) * rope.attention_factor);
      }
      break;
    }
    case RowKind::kRope: {
      const auto& rope = std::get<RopeOp>(*op.op);
      const auto half = static_cast<int32_t>(program.constants[static_cast<size_t>(rope.inv_freq)].size());
      if (out != a) std::memcpy(out, a, static_cast<size_t>(op.width) * sizeof(float));
      const float* table = floats_at(op.in_at[1], row, worker);
      math.rope(out, op.width / rope.head_dim, rope.head_dim, 2 * half, table, table + half, rope.interleaved);
      break;
    }
    case RowKind::kTemper: {
      const auto& temper = std::get<TemperOp>(*op.op);
      const int64_t position = positions[static_cast<size_t>(segment.source[row])];
      const auto begun = static_cast<double>((position + temper.offset) / temper.length);
      math.scale(a, static_cast<float>(1 + temper.beta * std::log(1 + begun)), op.width, out);
      break;
    }
    case RowKind::kKernel: {
      const float* in[kMaxRowInputs] = {};
      for (int32_t i = 0; i < kMaxRowInputs; ++i) {
        if (op.in[i] == -1) continue;
        in[i] = floats_at(op.in_at[i], row, worker);
        if (op.guards != nullptr) note_damage(in[i], op.in_width[i], op.guards, worker);
      }
      op.kernel(math, *op.op, in, op.width, out);
      break;
    }
    case RowKind::kRoute: {
      const auto& route_op = std::get<RouteOp>(*op.op);
      note_damage(a, route_op.num_experts, "a score of a router", worker);
      if (const float* bias = vector(route_op.bias)) note_damage(bias, route_op.num_experts, "a router's bias", worker);
      route(route_op, a, reinterpret_cast<uint8_t*>(out), worker);
      break;
    }
    case RowKind::kPredict:
      // One row only (see run): all threads are here, the one that talks to the stream does it.
      if (&worker == workers.data()) predict(std::get<PredictOp>(*op.op), a, reinterpret_cast<uint8_t*>(out));
      break;
    case RowKind::kOutput:
      // One row is in every thread's own memory; one of them hands it out.
      note_damage(a, op.width, "a row of the result", worker);
      if (batch->wants_hidden && (!segment.is_one || &worker == workers.data())) {
        std::memcpy(floats_at(plan.hidden, row, worker), a, plan.hidden.stride);
      }
      break;
    case RowKind::kQuantize:
      if (op.act != ActKind::kF32) note_damage(a, op.width, "an activation", worker);  // NaN would become 0
      kernels.linear->quantize(op.act, a, op.width, reinterpret_cast<uint8_t*>(out));
      break;
    case RowKind::kGather:
      std::memcpy(out, at(op.in_at[0], segment.source[row], worker), static_cast<size_t>(op.width));
      break;
  }
}

// Writes int32 ids[top_k], ascending, then float weights[top_k].
void Executor::Impl::route(const RouteOp& op, const float* logits, uint8_t* out, Worker& worker) const {
  const VectorKernels& math = *kernels.vector;
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
  const float* bias = vector(op.bias);
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
}

// Reads ahead what the router of a later layer picks, by falling weight.
void Executor::Impl::predict(const PredictOp& op, const float* logits, uint8_t* out) {
  route(op.route, logits, out, workers.front());
  auto* ids = reinterpret_cast<int32_t*>(out);
  auto* shares = reinterpret_cast<float*>(out + static_cast<size_t>(op.route.top_k) * sizeof(int32_t));
  for (int32_t i = 0; i < op.route.top_k; ++i) {
    const auto best = static_cast<int32_t>(std::max_element(shares + i, shares + op.route.top_k) - shares);
    std::swap(ids[i], ids[best]);
    std::swap(shares[i], shares[best]);
  }
  stream->look_ahead(op.layer, ids, op.route.top_k);
}

}  // namespace kamado
