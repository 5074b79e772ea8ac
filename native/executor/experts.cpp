// Experts, expert-major: the rows that picked an expert are done together, so that its weights are read once a step. A
// row's experts are summed in ascending id whatever the order they were computed in.
#include <algorithm>
#include <cstring>

#include "executor/impl.h"

namespace kamado {
namespace {

constexpr size_t kOneItemBytes = 512 << 10;
constexpr size_t kManyItemBytes = 64 << 10;

}  // namespace

// A counting sort of all (row, pick) pairs by expert; rows stay ascending within one. Every thread makes its own copy:
// cheaper than a barrier.
void Executor::Impl::group_by_expert(const ExpertsNode& node, const Segment& segment, Worker& worker) const {
  const int32_t top_k = node.route->top_k, num_experts = node.route->num_experts;
  int32_t* begin = worker.expert_begin;
  std::memset(begin, 0, static_cast<size_t>(num_experts + 1) * sizeof(int32_t));
  for (int32_t row = 0; row < segment.num_rows; ++row) {
    const auto* ids = reinterpret_cast<const int32_t*>(at(node.routing_at, row, worker));
    for (int32_t i = 0; i < top_k; ++i) ++begin[ids[i] + 1];
  }
  for (int32_t expert = 0; expert < num_experts; ++expert) begin[expert + 1] += begin[expert];
  for (int32_t row = 0; row < segment.num_rows; ++row) {
    const auto* ids = reinterpret_cast<const int32_t*>(at(node.routing_at, row, worker));
    for (int32_t i = 0; i < top_k; ++i) {
      const int32_t place = begin[ids[i]]++;
      worker.order[place] = row * top_k + i;
      worker.place[row * top_k + i] = place;
    }
  }
  for (int32_t expert = num_experts; expert > 0; --expert) begin[expert] = begin[expert - 1];
  begin[0] = 0;
}

void Executor::Impl::run_experts(const Node& node, const Segment& segment, int32_t thread) {
  const ExpertsNode& experts = node.experts;
  const ExpertsOp& op = *experts.op;
  const VectorKernels& math = *kernels.vector;
  const LinearKernels& linear = *kernels.linear;
  Worker& worker = workers[static_cast<size_t>(thread)];
  Counter& gate_counter = counters[static_cast<size_t>(node.counter)];
  Counter& down_counter = counters[static_cast<size_t>(node.counter) + 1];
  const int32_t top_k = experts.route->top_k, num_experts = experts.route->num_experts;
  const int32_t num_assignments = segment.num_rows * top_k;
  const int32_t num_threads = pool.size();
  group_by_expert(experts, segment, worker);

  const auto matrix_of = [&](const std::vector<int32_t>& list, int32_t expert) -> const PackedMatrix& {
    return weights.matrices[static_cast<size_t>(list[static_cast<size_t>(expert)])];
  };
  // Calls work(expert, first place, places, first tile, last tile) for the items of this wave that this thread takes.
  // Items are counted along the experts that have rows in [wave_begin, wave_end).
  const auto share_out = [&](Counter& counter, int32_t wave_begin, int32_t wave_end, int32_t num_tiles, int32_t tiles,
                             const auto& work) {
    const int32_t per_expert = (num_tiles + tiles - 1) / tiles;
    int32_t expert = 0, items_before = 0;
    for (int32_t index = counter.take();; index = counter.take()) {
      int32_t begin = 0, end = 0;
      for (; expert < num_experts; ++expert) {
        begin = std::max(worker.expert_begin[expert], wave_begin);
        end = std::min(worker.expert_begin[expert + 1], wave_end);
        if (begin >= end) continue;
        if (index < items_before + per_expert) break;
        items_before += per_expert;
      }
      if (expert == num_experts) return;
      if (!segment.is_one) check_cancel(thread);
      const int32_t tile = (index - items_before) * tiles;
      work(expert, begin, end - begin, tile, std::min(tile + tiles, num_tiles));
    }
  };
  // With many rows about 64 KiB of weights an item share the work out evenly. With one row an item is a stream from memory
  // that the prefetcher must start anew: 512 KiB took 14 ms of experts a token where 64 KiB took 20 (see the lab notes).
  const auto tiles_an_item = [&](size_t tile_bytes) {
    const size_t bytes = segment.is_one ? kOneItemBytes : kManyItemBytes;
    return static_cast<int32_t>(
        std::clamp<size_t>(bytes / tile_bytes, 1, segment.is_one ? kMaxOneChunkTiles : kMaxManyChunkTiles));
  };
  const int32_t gate_tiles = (experts.expert_width + kTileRows - 1) / kTileRows;
  const int32_t down_tiles = (experts.width + kTileRows - 1) / kTileRows;
  const int32_t gate_step = tiles_an_item(2 * matrix_of(op.gate, 0).tile_bytes);
  const int32_t down_step = tiles_an_item(matrix_of(op.down, 0).tile_bytes);
  // This thread's rows of the sum; with one row every thread makes the sum for itself.
  const int32_t sum_begin = segment.is_one ? 0 : static_cast<int32_t>(int64_t{segment.num_rows} * thread / num_threads);
  const int32_t sum_end =
      segment.is_one ? 1 : static_cast<int32_t>(int64_t{segment.num_rows} * (thread + 1) / num_threads);

  for (int32_t wave = 0; wave < num_assignments; wave += max_assignments) {
    const int32_t wave_end = std::min(wave + max_assignments, num_assignments);
    share_out(gate_counter, wave, wave_end, gate_tiles, gate_step,
              [&](int32_t expert, int32_t first, int32_t count, int32_t tile, int32_t tile_end) {
                const PackedMatrix& gate = matrix_of(op.gate, expert);
                const PackedMatrix& up = matrix_of(op.up, expert);
                const int32_t begin = tile * kTileRows;
                const int32_t columns = std::min(tile_end * kTileRows, experts.expert_width) - begin;
                const auto gather = [&](Layout layout, int32_t from, int32_t rows) {
                  const Operand& act = experts.acts_at[static_cast<int32_t>(act_kind(layout))];
                  for (int32_t i = 0; i < rows; ++i) worker.acts[i] = at(act, worker.order[from + i] / top_k, worker);
                };
                for (int32_t done_rows = 0; done_rows < count; done_rows += kExpertRowBlock) {
                  const int32_t rows = std::min(kExpertRowBlock, count - done_rows), from = first + done_rows;
                  for (int32_t i = 0; i < rows; ++i) {
                    worker.outs[i] =
                        reinterpret_cast<float*>(hidden + static_cast<size_t>(from + i - wave) * hidden_stride);
                    worker.gate_outs[i] = worker.gate_values + static_cast<int64_t>(i) * columns - begin;
                  }
                  gather(gate.layout, from, rows);
                  linear.multiply(gate, tile, tile_end, worker.acts, rows, worker.outs, worker.scratch);
                  gather(up.layout, from, rows);
                  linear.multiply(up, tile, tile_end, worker.acts, rows, worker.gate_outs, worker.scratch);
                  for (int32_t i = 0; i < rows; ++i) {
                    float* out = worker.outs[i] + begin;
                    math.gate(op.activation, out, worker.gate_outs[i] + begin, columns, out);
                  }
                }
              });
    pool.barrier();

    if (thread == 0) {  // nobody takes from either until the next barrier
      gate_counter.reset();
      down_counter.reset();
    }
    const int32_t in_wave = wave_end - wave;
    const auto begin = static_cast<int32_t>(int64_t{in_wave} * thread / num_threads);
    const auto end = static_cast<int32_t>(int64_t{in_wave} * (thread + 1) / num_threads);
    int32_t expert = 0;
    for (int32_t i = begin; i < end; ++i) {
      while (worker.expert_begin[expert + 1] <= wave + i) ++expert;
      const ActKind kind = act_kind(matrix_of(op.down, expert).layout);
      if (kind == ActKind::kF32) continue;  // the product reads the floats themselves
      linear.quantize(kind, reinterpret_cast<const float*>(hidden + static_cast<size_t>(i) * hidden_stride),
                      experts.expert_width, hidden_acts + static_cast<size_t>(i) * hidden_act_stride);
    }
    pool.barrier();

    share_out(down_counter, wave, wave_end, down_tiles, down_step,
              [&](int32_t taken, int32_t first, int32_t count, int32_t tile, int32_t tile_end) {
                const PackedMatrix& down = matrix_of(op.down, taken);
                const bool is_float = act_kind(down.layout) == ActKind::kF32;
                for (int32_t done_rows = 0; done_rows < count; done_rows += kExpertRowBlock) {
                  const int32_t rows = std::min(kExpertRowBlock, count - done_rows);
                  for (int32_t i = 0; i < rows; ++i) {
                    const auto index = static_cast<size_t>(first + done_rows + i - wave);
                    worker.acts[i] =
                        is_float ? hidden + index * hidden_stride : hidden_acts + index * hidden_act_stride;
                    worker.outs[i] = reinterpret_cast<float*>(expert_outs + index * expert_out_stride);
                  }
                  linear.multiply(down, tile, tile_end, worker.acts, rows, worker.outs, worker.scratch);
                }
              });
    pool.barrier();

    for (int32_t row = sum_begin; row < sum_end; ++row) {
      float* out = floats_at(experts.out_at, row, worker);
      const uint8_t* routing = at(experts.routing_at, row, worker);
      const auto* shares = reinterpret_cast<const float*>(routing + static_cast<size_t>(top_k) * sizeof(int32_t));
      if (wave == 0) std::memset(out, 0, static_cast<size_t>(experts.width) * sizeof(float));
      for (int32_t i = 0; i < top_k; ++i) {
        const int32_t place = worker.place[row * top_k + i];
        if (place < wave || place >= wave_end) continue;
        math.axpy(shares[i],
                  reinterpret_cast<const float*>(expert_outs + static_cast<size_t>(place - wave) * expert_out_stride),
                  experts.width, out);
      }
    }
  }
}

}  // namespace kamado
