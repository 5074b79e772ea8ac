#include "executor/records.h"

#include <algorithm>
#include <cstring>
#include <variant>

namespace kamado {
namespace {

// Threads share columns by whole cache lines.
constexpr int32_t kColumnUnit = 16;

}  // namespace

// Columns do not meet, so threads share them; a step's
// last rows leave theirs where the cache said.
void RecordWork::run(const RecordNode& node, int32_t thread) {
  const auto& op = std::get<AccumulateOp>(*node.op);
  Worker& worker = memory_.worker(thread);
  const int32_t num_units = (node.num_columns + kColumnUnit - 1) / kColumnUnit;
  const auto share = [&](int32_t t) {
    return std::min(node.num_columns, kColumnUnit * static_cast<int32_t>(int64_t{num_units} * t / team_.size()));
  };
  const int32_t begin = share(thread), width = share(thread + 1) - begin;
  if (width == 0) return;
  const auto columns = [begin](auto* record) { return record + static_cast<size_t>(begin) * sizeof(float); };
  int32_t row = 0;
  for (size_t s = 0; s < step_.batch->num_sequences; ++s) {
    team_.check_cancel(thread);
    const int32_t sequence = step_.batch->sequences[s], num_next = cache_.num_next_records(sequence);
    const uint8_t* before = columns(cache_.record(sequence, node.record));
    uint8_t* const last = columns(cache_.next_record(sequence, node.record, 0));
    for (int32_t left = step_.batch->counts[s]; left-- > 0; ++row) {
      math_.accumulate(reinterpret_cast<const float*>(before), memory_.floats_at(node.x_at, row, worker) + begin,
                       op.decay, width, reinterpret_cast<float*>(last));
      std::memcpy(memory_.floats_at(node.out_at, row, worker) + begin, last,
                  static_cast<size_t>(width) * sizeof(float));
      if (left > 0 && left < num_next) {
        std::memcpy(columns(cache_.next_record(sequence, node.record, left)), last,
                    static_cast<size_t>(width) * sizeof(float));
      }
      before = last;
    }
    memory_.note_damage(reinterpret_cast<const float*>(last), width, "a record", worker);
  }
}

}  // namespace kamado
