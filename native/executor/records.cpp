// Operations that replace a record, and sources, which are filled before the first step.
#include <algorithm>
#include <cstring>

#include "executor/impl.h"
#include "kamado/refuse.h"

namespace kamado {
namespace {

// Threads share columns by whole cache lines.
constexpr int32_t kColumnUnit = 16;

}  // namespace

// Each row's record is made from the one before in its sequence. Columns do not meet, so threads share them; a step's
// last rows leave theirs where the cache said.
void Executor::Impl::run_record(const RecordNode& node, int32_t thread) {
  const auto& op = std::get<AccumulateOp>(*node.op);
  Worker& worker = workers[static_cast<size_t>(thread)];
  const int32_t num_units = (node.num_columns + kColumnUnit - 1) / kColumnUnit;
  const auto share = [&](int32_t t) {
    return std::min(node.num_columns, kColumnUnit * static_cast<int32_t>(int64_t{num_units} * t / options.num_threads));
  };
  const int32_t begin = share(thread), width = share(thread + 1) - begin;
  if (width == 0) return;
  const auto columns = [begin](auto* record) { return record + static_cast<size_t>(begin) * sizeof(float); };
  int32_t row = 0;
  for (size_t s = 0; s < batch->num_sequences; ++s) {
    check_cancel(thread);
    const int32_t sequence = batch->sequences[s], num_next = kv->num_next_records(sequence);
    const uint8_t* before = columns(kv->record(sequence, node.record));
    uint8_t* const last = columns(kv->next_record(sequence, node.record, 0));
    for (int32_t left = batch->counts[s]; left-- > 0; ++row) {
      kernels.vector->accumulate(reinterpret_cast<const float*>(before), floats_at(node.x_at, row, worker) + begin,
                                 op.decay, width, reinterpret_cast<float*>(last));
      std::memcpy(floats_at(node.out_at, row, worker) + begin, last, static_cast<size_t>(width) * sizeof(float));
      if (left > 0 && left < num_next) {
        std::memcpy(columns(kv->next_record(sequence, node.record, left)), last,
                    static_cast<size_t>(width) * sizeof(float));
      }
      before = last;
    }
    note_damage(reinterpret_cast<const float*>(last), width, "a record", worker);
  }
}

// The KV layer of a source.
int32_t Executor::Impl::source_layer(int32_t state) const {
  const bool is_there = state >= 0 && static_cast<size_t>(state) < program.states.size();
  if (!is_there || program.states[static_cast<size_t>(state)].kind != StateKind::kSource) {
    refuse("state ", state, " is no source");
  }
  return program.states[static_cast<size_t>(state)].index;
}

void Executor::Impl::set_source(int32_t sequence, int32_t state, const float* k, const float* v, int64_t num_tokens) {
  const int32_t layer = source_layer(state);
  const KvLayerShape& shape = kv_shapes[static_cast<size_t>(layer)];
  const int32_t k_width = shape.num_kv_heads * shape.k_dim, v_width = shape.num_kv_heads * shape.v_dim;
  for (int64_t token = 0; token < std::min<int64_t>(num_tokens, shape.source_tokens); ++token) {
    if (kernels.vector->is_finite(k + token * k_width, k_width) &&
        kernels.vector->is_finite(v + token * v_width, v_width))
      continue;
    refuse("the source's keys and values are not all finite");
  }
  kv->set_source(sequence, layer, num_tokens);
  for (int64_t token = 0; token < num_tokens; ++token) {
    for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
      kernels.attention->store(kv->type(), kv->k_block(sequence, token / kPageTokens, layer, head),
                               kv->v_block(sequence, token / kPageTokens, layer, head), shape.k_dim, shape.v_dim,
                               static_cast<int32_t>(token % kPageTokens), k + token * k_width + head * shape.k_dim,
                               v + token * v_width + head * shape.v_dim);
    }
  }
}

}  // namespace kamado
