// The gated delta rule: threads share heads and blocks of their columns, never rows.
#include <algorithm>
#include <cmath>
#include <variant>

#include "executor/records.h"
#include "kamado/align.h"

namespace kamado {
namespace {

// Rows of a sequence that go through a block of S, which stays in L1, before the next block of the head.
constexpr int32_t kScanRows = 32;

bool has_channels(const Program& program, const DeltaScanOp& op) {
  return program.buffers[static_cast<size_t>(op.a)].width != op.num_v_heads;
}

// Factors that say what stays of S: one a row of the sequence, or one for each row of S.
size_t factors_of(const DeltaScanOp& op, bool by_channel) {
  return by_channel ? static_cast<size_t>(op.k_dim) : 1;
}

// Where a value head's key begins in its row.
size_t key_offset(const DeltaScanOp& op, int32_t head) {
  const int32_t key_head =
      op.heads == HeadMap::kGrouped ? head / (op.num_v_heads / op.num_k_heads) : head % op.num_k_heads;
  return static_cast<size_t>(key_head) * static_cast<size_t>(op.k_dim);
}

int32_t blocks_of(const DeltaScanOp& op) {
  return (op.v_dim - 1) / kScanColumns + 1;
}

}  // namespace

size_t record_scratch_bytes(const Program& program) {
  size_t most = 0;
  for (const Op& op : program.ops) {
    const auto* scan = std::get_if<DeltaScanOp>(&op);
    if (scan == nullptr) continue;
    most = std::max(most, (2 * factors_of(*scan, has_channels(program, *scan)) + 1) * kScanRows * sizeof(float));
  }
  return most;
}

void RecordWork::delta(const RecordNode& node, const DeltaScanOp& op, int32_t thread) {
  const int32_t per_head = blocks_of(op);
  const Range mine = share(op.num_v_heads * per_head, thread);
  each_sequence(node, thread, [&](const Rows& rows) {
    for (int32_t item = mine.begin; item < mine.end;) {
      team_.check_cancel(thread);
      const int32_t head = item / per_head, first = head * per_head;
      const Range blocks{item - first, std::min(per_head, mine.end - first)};
      delta_head(node, op, rows, head, blocks, memory_.worker(thread));
      item = first + blocks.end;
    }
  });
}

void RecordWork::delta_head(const RecordNode& node, const DeltaScanOp& op, const Rows& rows, int32_t head, Range blocks,
                            Worker& worker) {
  const size_t k_at = key_offset(op, head);
  const auto v_at = static_cast<size_t>(head) * static_cast<size_t>(op.v_dim);
  const auto floats = [](const Operand& operand) { return operand.stride / sizeof(float); };
  DeltaBlock block{};
  block.k_dim = op.k_dim;
  block.q_stride = floats(node.in_at[0]);
  block.k_stride = floats(node.in_at[1]);
  block.v_stride = floats(node.in_at[2]);
  block.out_stride = floats(node.out_at);
  block.scale = op.scale;
  for (int32_t chunk = 0; chunk < rows.count; chunk += kScanRows) {
    const Range part{chunk, std::min(rows.count, chunk + kScanRows)};
    DeltaBlock gates = block;
    delta_gates(node, op, head, {rows.begin + part.begin, rows.begin + part.end}, gates, worker);
    for (int32_t b = blocks.begin; b < blocks.end; ++b) {
      const auto column = v_at + static_cast<size_t>(b) * kScanColumns;
      const size_t s_at = column * static_cast<size_t>(op.k_dim);
      block = gates;
      block.num_columns = std::min(kScanColumns, op.v_dim - b * kScanColumns);
      // The last rows leave their S one by one.
      for (int32_t begin = part.begin, end; begin < part.end; begin = end) {
        end = std::min(part.end, std::max(begin, rows.count - rows.num_next) + 1);
        const int32_t at = rows.begin + begin;
        const auto gate = static_cast<size_t>(begin - part.begin);
        block.num_rows = end - begin;
        block.q = row(node.in_at[0], at, worker) + k_at;
        block.k = row(node.in_at[1], at, worker) + k_at;
        block.v = row(node.in_at[2], at, worker) + column;
        block.out = row(node.out_at, at, worker) + column;
        block.kept = gates.kept + gate * factors_of(op, gates.has_channels);
        block.reads = gates.reads + gate * factors_of(op, gates.has_channels);
        block.beta = gates.beta + gate;
        const float* from = (begin == 0 ? before(rows) : after(rows, begin)) + s_at;
        float* to = after(rows, end) + s_at;
        block.streams = end == rows.count && from != to;
        scan_.delta(block, from, to);
      }
      if (part.end < rows.count) continue;
      // What was not finite in S is so ever after, and what it gives too.
      memory_.note_damage(row(node.out_at, rows.begin + rows.count - 1, worker) + column, block.num_columns, "a record",
                          worker);
    }
  }
}

void RecordWork::delta_gates(const RecordNode& node, const DeltaScanOp& op, int32_t head, Range rows, DeltaBlock& block,
                             Worker& worker) const {
  const int32_t n = rows.end - rows.begin;
  block.has_channels = has_channels(model_.program(), op);
  const size_t factors = factors_of(op, block.has_channels), first = static_cast<size_t>(head) * factors;
  const auto width = static_cast<int32_t>(factors);
  auto* const kept = reinterpret_cast<float*>(worker.scratch);
  float *const reads = kept + kScanRows * factors, *const beta = reads + kScanRows * factors;
  const float stored = model_.vector(op.decay)[head], *bias = model_.vector(op.dt_bias) + first;
  const float rate = op.decay_is_log ? static_cast<float>(-std::exp(static_cast<double>(stored))) : stored;
  const float rates[] = {stored, rate};  // -exp takes -infinity to 0
  memory_.note_damage(rates, 2, "a decay", worker);
  for (int32_t i = 0; i < n; ++i) {
    const float* a = row(node.in_at[3], rows.begin + i, worker) + first;
    float* steps = kept + static_cast<size_t>(i) * factors;
    math_.add(a, bias, width, steps);
    memory_.note_damage(steps, width, "a decay", worker);
    for (size_t j = 0; j < factors; ++j) steps[j] = softplus(steps[j]);
    if (block.has_channels) {
      scan_.decay(steps, rate, width, steps);
      const float* k = row(node.in_at[1], rows.begin + i, worker) + key_offset(op, head);
      math_.gate(k, steps, Activation::kNone, 0, 0, 0, width, reads + static_cast<size_t>(i) * factors);
    }
    beta[i] = row(node.in_at[4], rows.begin + i, worker)[head];
  }
  if (!block.has_channels) scan_.decay(kept, rate, n, kept);
  memory_.note_damage(beta, n, "a gate", worker);
  math_.gate(beta, nullptr, Activation::kSigmoid, 0, 0, 0, n, beta);
  math_.scale(beta, op.beta_scale, n, beta);
  block.kept = kept;
  block.reads = reads;
  block.beta = beta;
}

}  // namespace kamado
