#include "executor/records.h"

#include <algorithm>
#include <cstring>
#include <variant>

namespace kamado {
namespace {

// Threads share columns by whole cache lines.
constexpr int32_t kColumnUnit = 16;
constexpr int32_t kMaxTaps = 64;  // ConvOp's rule

}  // namespace

RecordWork::Range RecordWork::share(int32_t num_items, int32_t thread) const {
  const auto begin_of = [&](int32_t t) { return static_cast<int32_t>(int64_t{num_items} * t / team_.size()); };
  return {begin_of(thread), begin_of(thread + 1)};
}

RecordWork::Range RecordWork::columns(const RecordNode& node, int32_t thread) const {
  const Range units = share((node.num_columns + kColumnUnit - 1) / kColumnUnit, thread);
  return {units.begin * kColumnUnit, std::min(node.num_columns, units.end * kColumnUnit)};
}

const float* RecordWork::before(const Rows& rows) const {
  return reinterpret_cast<const float*>(cache_.record(rows.sequence, rows.record));
}

float* RecordWork::after(const Rows& rows, int32_t num_rows) const {
  const int32_t left = rows.count - num_rows;
  uint8_t* record = cache_.next_record(rows.sequence, rows.record, left < rows.num_next ? left : 0);
  return reinterpret_cast<float*>(record);
}

void RecordWork::run(const RecordNode& node, int32_t thread) {
  const auto work = [&]<class T>(const T& op) {
    if constexpr (std::is_same_v<T, AccumulateOp>) accumulate(node, op, thread);
    if constexpr (std::is_same_v<T, ConvOp>) conv(node, op, thread);
    if constexpr (std::is_same_v<T, DeltaScanOp>) delta(node, op, thread);
  };
  std::visit(work, *node.op);
}

// Columns do not meet, so threads share them.
void RecordWork::accumulate(const RecordNode& node, const AccumulateOp& op, int32_t thread) {
  Worker& worker = memory_.worker(thread);
  const Range mine = columns(node, thread);
  const int32_t begin = mine.begin, width = mine.end - begin;
  if (width <= 0) return;
  each_sequence(node, thread, [&](const Rows& rows) {
    const float* sum = before(rows) + begin;
    for (int32_t i = 0; i < rows.count; ++i) {
      float* const next = after(rows, i + 1) + begin;
      math_.accumulate(sum, row(node.in_at[0], rows.begin + i, worker) + begin, op.decay, width, next);
      std::memcpy(row(node.out_at, rows.begin + i, worker) + begin, next, static_cast<size_t>(width) * sizeof(float));
      sum = next;
    }
    memory_.note_damage(sum, width, "a record", worker);
  });
}

// The record is the last rows of x, the oldest first.
void RecordWork::conv(const RecordNode& node, const ConvOp& op, int32_t thread) {
  Worker& worker = memory_.worker(thread);
  const Range mine = columns(node, thread);
  const int32_t begin = mine.begin, width = mine.end - begin;
  if (width <= 0) return;
  const LoadedModel::Taps taps = model_.taps(op.weight);
  const float* bias = model_.vector(op.bias);
  const int32_t num_kept = taps.count - 1;
  each_sequence(node, thread, [&](const Rows& rows) {
    const float* kept = before(rows);
    const auto x = [&](int32_t i) {
      return (i >= 0 ? row(node.in_at[0], rows.begin + i, worker)
                     : kept + static_cast<size_t>(num_kept + i) * static_cast<size_t>(node.num_columns)) +
             begin;
    };
    const float* seen[kMaxTaps];
    for (int32_t i = 0; i < rows.count; ++i) {
      for (int32_t j = 0; j < taps.count; ++j) seen[j] = x(i - num_kept + j);
      float* out = row(node.out_at, rows.begin + i, worker) + begin;
      scan_.conv(seen, taps.values + begin, taps.stride, taps.count, bias == nullptr ? nullptr : bias + begin, width,
                 out);
      memory_.note_damage(out, width, "a convolution", worker);  // what is not finite in x is not finite here
      if (op.activation != Activation::kNone) math_.gate(out, nullptr, op.activation, 0, 0, 0, width, out);
    }
    for (int32_t left = 0; left < rows.num_next; ++left) {
      float* record = after(rows, rows.count - left) + begin;
      for (int32_t j = 0; j < num_kept; ++j, record += node.num_columns) {
        std::memcpy(record, x(rows.count - left - num_kept + j), static_cast<size_t>(width) * sizeof(float));
      }
    }
  });
}

}  // namespace kamado
