#include "executor/measure.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "kamado/align.h"
#include "kamado/refuse.h"

namespace kamado {
namespace {

// One head's page of a cache that keeps it exactly, as floats: k [128][k_dim], v [128][v_dim].
void read_page(const VectorKernels& halves, const uint16_t* k_block, const uint16_t* v_block, int32_t k_dim,
               int32_t v_dim, float* k, float* v) {
  float lane[kPageTokens];
  for (int32_t d = 0; d < k_dim; ++d) {  // keys lie transposed
    halves.from_f16(k_block + static_cast<size_t>(d) * kPageTokens, kPageTokens, lane);
    for (int32_t j = 0; j < kPageTokens; ++j) k[j * k_dim + d] = lane[j];
  }
  halves.from_f16(v_block, kPageTokens * v_dim, v);
}

// Throws std::invalid_argument when the layer cannot be read so.
void check_readable(const Sequences& sequences, int32_t layer, int32_t k_bits, int32_t v_bits) {
  const std::string which = joined("KV layer ", layer, ": ");
  if (layer < 0 || layer >= sequences.num_layers()) refuse(which, "the program has no such layer");
  const KvLayerShape& shape = sequences.shapes()[static_cast<size_t>(layer)];
  if (shape.k_bits > 0 || shape.window > 0 || sequences.cache().type() != KvType::kF16)
    refuse(which, "only a cache that keeps all of it as f16 can be read");
  if (k_bits == 0 && v_bits == 0) return;
  require_valid_codec({shape.k_dim, shape.v_dim, k_bits, v_bits}, which);
}

}  // namespace

Measures::Measures(const Program& program, const Sequences& sequences, const Step& step)
    : queries(program, sequences, step), routing(program) {
  const auto is_experts = [](const Op& op) { return std::holds_alternative<ExpertsOp>(op); };
  resident_experts.resize(static_cast<size_t>(std::count_if(program.ops.begin(), program.ops.end(), is_experts)));
}

void QueryLog::start(int32_t stride) {
  if (stride < 0) refuse("the stride of recorded queries must be at least 0, got ", stride);
  layers_.clear();
  stride_ = stride;
  if (stride > 0) layers_.resize(num_layers_);
}

void QueryLog::begin_step() {
  size_t rows = 0;
  for (int32_t row = 0; row < static_cast<int32_t>(step_.batch->num_tokens); ++row) rows += is_recorded(row);
  for (const Op& op : program_.ops) {
    const auto* attend = std::get_if<AttendOp>(&op);
    if (attend == nullptr || !attend->stores) continue;
    RecordedQueries& queries = layers_[static_cast<size_t>(program_.states[static_cast<size_t>(attend->state)].index)];
    queries.num_heads = attend->num_heads;
    queries.head_dim = attend->head_dim;
    const auto width = static_cast<size_t>(attend->num_heads) * static_cast<size_t>(attend->head_dim);
    queries.positions.reserve(queries.positions.size() + rows);
    queries.values.reserve(queries.values.size() + rows * width);
  }
}

void QueryLog::keep(const AttendNode& node, const StepMemory& memory, const Worker& worker) {
  RecordedQueries& queries = layers_[static_cast<size_t>(node.layer)];
  const auto width = static_cast<size_t>(queries.num_heads) * static_cast<size_t>(queries.head_dim);
  for (int32_t row = 0; row < static_cast<int32_t>(step_.batch->num_tokens); ++row) {
    if (!is_recorded(row)) continue;
    const float* q = memory.floats_at(node.q_at, row, worker);
    queries.positions.push_back(step_.positions[static_cast<size_t>(row)]);
    queries.values.insert(queries.values.end(), q, q + width);
  }
}

const RecordedQueries& QueryLog::of_layer(int32_t layer) const {
  if (layer < 0 || static_cast<size_t>(layer) >= layers_.size()) refuse("no queries of layer ", layer, " are recorded");
  return layers_[static_cast<size_t>(layer)];
}

RoutingLog::RoutingLog(const Program& program) {
  for (const Op& op : program.ops) {
    if (const auto* route = std::get_if<RouteOp>(&op)) max_top_k_ = std::max(max_top_k_, route->top_k);
  }
}

void RoutingLog::add(int64_t step, int32_t layer, int32_t row, const int32_t* ids, int32_t top_k) {
  rows_.insert(rows_.end(), {static_cast<int32_t>(step), layer, row});
  rows_.insert(rows_.end(), ids, ids + top_k);
  rows_.insert(rows_.end(), static_cast<size_t>(max_top_k_ - top_k), -1);
}

Executor::KvShape kv_shape(const Sequences& sequences, int32_t sequence, int32_t layer, int32_t k_bits,
                           int32_t v_bits) {
  const int64_t length = sequences.cache().length(sequence);
  check_readable(sequences, layer, k_bits, v_bits);
  const KvLayerShape& shape = sequences.shapes()[static_cast<size_t>(layer)];
  return {shape.num_kv_heads, shape.k_dim, shape.v_dim, length};
}

void read_kv(const Sequences& sequences, const KernelTable& kernels, Pool& pool, int32_t sequence, int32_t layer,
             int32_t k_bits, int32_t v_bits, float* k, float* v) {
  check_readable(sequences, layer, k_bits, v_bits);
  const KvLayerShape& shape = sequences.shapes()[static_cast<size_t>(layer)];
  const StateCache& kv = sequences.cache();
  const KvCodec codec{shape.k_dim, shape.v_dim, k_bits, v_bits};
  const int64_t total = kv.length(sequence), pages = (total + kPageTokens - 1) / kPageTokens;
  const int64_t num_coded = k_bits > 0 ? settled_pages(total) : 0;
  const auto work = [&](int32_t thread) {
    const size_t k_page = static_cast<size_t>(shape.k_dim) * kPageTokens;
    const size_t v_page = static_cast<size_t>(shape.v_dim) * kPageTokens;
    std::vector<float> page_k(k_page), page_v(v_page);
    Memory codes;
    size_t k_bytes = 0, v_bytes = 0, sink_bytes = 0;
    if (num_coded > 0) {
      k_bytes = align_up(encoded_k_page_bytes(shape.k_dim, k_bits));
      v_bytes = align_up(encoded_v_page_bytes(shape.v_dim, v_bits));
      sink_bytes = align_up(encoded_sink_bytes(codec));
      codes = Memory(k_bytes + v_bytes + sink_bytes + encode_scratch_bytes(codec));
    }
    for (int64_t item = thread; item < pages * shape.num_kv_heads; item += pool.size()) {
      const int64_t page = item / shape.num_kv_heads;
      const auto head = static_cast<int32_t>(item % shape.num_kv_heads);
      const auto* k_block = static_cast<const uint16_t*>(kv.k_block(sequence, page, layer, head));
      const auto* v_block = static_cast<const uint16_t*>(kv.v_block(sequence, page, layer, head));
      if (page < num_coded) {
        uint8_t* k_codes = codes.data();
        uint8_t* v_codes = k_codes + k_bytes;
        uint8_t* sinks = page == 0 ? v_codes + v_bytes : nullptr;
        kernels.kv_codec->encode_page(codec, k_block, v_block, k_codes, v_codes, sinks, v_codes + v_bytes + sink_bytes);
        kernels.kv_codec->decode_page(codec, k_codes, v_codes, sinks, page_k.data(), page_v.data());
      } else {
        read_page(*kernels.vector, k_block, v_block, shape.k_dim, shape.v_dim, page_k.data(), page_v.data());
      }
      const auto rows = static_cast<size_t>(std::min<int64_t>(kPageTokens, total - page * kPageTokens));
      const auto first = static_cast<size_t>(head * total + page * kPageTokens);
      const auto k_dim = static_cast<size_t>(shape.k_dim), v_dim = static_cast<size_t>(shape.v_dim);
      std::memcpy(k + first * k_dim, page_k.data(), rows * k_dim * sizeof(float));
      std::memcpy(v + first * v_dim, page_v.data(), rows * v_dim * sizeof(float));
    }
  };
  using Work = decltype(work);
  pool.run([](void* context, int32_t thread) { (*static_cast<const Work*>(context))(thread); },
           const_cast<void*>(static_cast<const void*>(&work)));
}

}  // namespace kamado
