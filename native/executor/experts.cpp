#include "executor/experts.h"

#include <algorithm>
#include <cstring>
#include <functional>

namespace kamado {
namespace {

constexpr size_t kOneItemBytes = 512 << 10;
constexpr size_t kManyItemBytes = 64 << 10;

}  // namespace

ExpertsWork::ExpertsWork(const LoadedModel& model, StepMemory& memory, Team& team, const Step& step, Measures& measures)
    : model_(model),
      kernels_(model.kernels()),
      stream_(model.stream()),
      memory_(memory),
      room_(memory.experts()),
      team_(team),
      step_(step),
      routing_(measures.routing),
      ledger_(measures.resident_experts) {}

void ExpertsWork::abandon() {
  if (stream_ != nullptr) stream_->abandon();
}

// A counting sort of all (row, pick) pairs by expert; rows stay ascending within one. Every thread makes its own copy:
// cheaper than a barrier.
void ExpertsWork::group_by_expert(const ExpertsNode& node, const Segment& segment, Worker& worker) const {
  const int32_t top_k = node.route->top_k, num_experts = node.route->num_experts;
  int32_t* begin = worker.expert_begin;
  std::memset(begin, 0, static_cast<size_t>(num_experts + 1) * sizeof(int32_t));
  for (int32_t row = 0; row < segment.num_rows; ++row) {
    const auto* ids = reinterpret_cast<const int32_t*>(memory_.at(node.routing_at, row, worker));
    for (int32_t i = 0; i < top_k; ++i) ++begin[ids[i] + 1];
  }
  worker.num_picked = 0;
  for (int32_t expert = 0; expert < num_experts; ++expert) {
    if (begin[expert + 1] > 0) worker.picked[worker.num_picked++] = expert;
    begin[expert + 1] += begin[expert];
  }
  for (int32_t row = 0; row < segment.num_rows; ++row) {
    const auto* ids = reinterpret_cast<const int32_t*>(memory_.at(node.routing_at, row, worker));
    for (int32_t i = 0; i < top_k; ++i) {
      const int32_t place = begin[ids[i]]++;
      worker.order[place] = row * top_k + i;
      worker.place[row * top_k + i] = place;
    }
  }
  for (int32_t expert = num_experts; expert > 0; --expert) begin[expert] = begin[expert - 1];
  begin[0] = 0;
}

void ExpertsWork::run(const Node& node, const Segment& segment, int32_t thread) {
  const ExpertsNode& experts = node.experts;
  Worker& worker = memory_.worker(thread);
  const int32_t num_assignments = segment.num_rows * experts.route->top_k;
  group_by_expert(experts, segment, worker);
  if (thread == 0 && routing_.is_on()) record_picks(experts, segment, worker);
  if (thread == 0 && stream_ != nullptr) stream_->begin(experts.layer, worker.expert_begin);
  const std::function<void()> check = [this] { team_.check_cancel(0); };
  const auto begun = std::chrono::steady_clock::now();

  int32_t first = 0, last = 0;  // of the picked experts, those of a wave
  for (int32_t wave = 0; wave < num_assignments; wave += room_.max_assignments) {
    const int32_t wave_end = std::min(wave + room_.max_assignments, num_assignments);
    if (stream_ == nullptr) {
      while (worker.expert_begin[worker.picked[first] + 1] <= wave) ++first;
      while (last < worker.num_picked && worker.expert_begin[worker.picked[last]] < wave_end) ++last;
      compute(node, segment, thread, {wave, wave_end, worker.picked + first, last - first, 0});
    } else {
      if (thread == 0) stream_->begin_wave(wave, wave_end);
      for (bool is_last = false; !is_last;) {
        if (thread == 0) {
          batch_ = &stream_->next(check);
          team_.counter(node.counter).reset();
          team_.counter(node.counter + 1).reset();
        }
        team_.barrier();
        const ExpertStream::Batch& ready = *batch_;
        is_last = ready.is_last;
        compute(
            node, segment, thread,
            {wave, wave_end, ready.experts.data(), static_cast<int32_t>(ready.experts.size()), ready.num_pack_items});
        if (thread == 0) stream_->end_batch();  // the others wait for the next one, or sum
      }
    }
    sum(experts, segment, thread, wave, wave_end);
  }
  if (thread != 0) return;
  if (stream_ != nullptr) {
    stream_->end();
  } else {
    LayerLedger& entry = ledger_[static_cast<size_t>(experts.layer)];
    entry.hits += worker.num_picked;
    entry.compute_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  }
}

// Ends with a barrier.
void ExpertsWork::compute(const Node& node, const Segment& segment, int32_t thread, const Share& work) {
  const ExpertsNode& experts = node.experts;
  const ExpertsOp& op = *experts.op;
  const VectorKernels& math = *kernels_.vector;
  const LinearKernels& linear = *kernels_.linear;
  Worker& worker = memory_.worker(thread);
  Counter& gate_counter = team_.counter(node.counter);
  Counter& down_counter = team_.counter(node.counter + 1);
  const int32_t top_k = experts.route->top_k, num_threads = team_.size(), wave = work.wave;
  const auto begin_of = [&](int32_t expert) { return std::max(worker.expert_begin[expert], wave); };
  const auto bias_of = [&](const std::vector<int32_t>& biases, int32_t expert) {
    return biases.empty() ? nullptr : model_.vector(biases[static_cast<size_t>(expert)]);
  };
  const auto end_of = [&](int32_t expert) { return std::min(worker.expert_begin[expert + 1], work.wave_end); };

  // Calls run(expert, first place, places, first tile, last tile) for the items that this thread takes.
  const auto share_out = [&](Counter& counter, int32_t skipped, int32_t num_tiles, int32_t tiles, const auto& run) {
    const int32_t per_expert = (num_tiles + tiles - 1) / tiles;
    const int32_t num_items = per_expert * work.num_experts;
    for (int32_t index; (index = counter.take()) < skipped + num_items;) {
      if (!segment.is_one) team_.check_cancel(thread);
      if (index < skipped) {
        stream_->pack(index);
        continue;
      }
      const int32_t item = index - skipped, expert = work.experts[item / per_expert];
      const int32_t tile = item % per_expert * tiles;
      run(expert, begin_of(expert), end_of(expert) - begin_of(expert), tile, std::min(tile + tiles, num_tiles));
    }
  };
  // With many rows about 64 KiB of weights an item share the work out evenly. With one row an item is a stream from
  // memory that the prefetcher must start anew: 512 KiB took 14 ms of experts a token where 64 KiB took 20 (see the lab
  // notes).
  const auto tiles_an_item = [&](size_t tile_bytes) {
    const size_t bytes = segment.is_one ? kOneItemBytes : kManyItemBytes;
    return static_cast<int32_t>(
        std::clamp<size_t>(bytes / tile_bytes, 1, segment.is_one ? kMaxOneChunkTiles : kMaxManyChunkTiles));
  };
  const int32_t gate_tiles = (experts.expert_width + kTileRows - 1) / kTileRows;
  const int32_t down_tiles = (experts.width + kTileRows - 1) / kTileRows;
  const int32_t gate_step = tiles_an_item(2 * model_.expert_matrix(experts, 0, 0).tile_bytes);
  const int32_t down_step = tiles_an_item(model_.expert_matrix(experts, 0, 2).tile_bytes);

  share_out(gate_counter, work.num_pack_items, gate_tiles, gate_step,
            [&](int32_t expert, int32_t first, int32_t count, int32_t tile, int32_t tile_end) {
              const PackedMatrix& gate = model_.expert_matrix(experts, expert, 0);
              const PackedMatrix& up = model_.expert_matrix(experts, expert, 1);
              const float* gate_bias = bias_of(op.gate_biases, expert);
              const float* up_bias = bias_of(op.up_biases, expert);
              const int32_t begin = tile * kTileRows;
              const int32_t columns = std::min(tile_end * kTileRows, experts.expert_width) - begin;
              const auto gather = [&](Layout layout, int32_t from, int32_t rows) {
                const Operand& act = experts.acts_at[static_cast<int32_t>(act_kind(layout))];
                for (int32_t i = 0; i < rows; ++i)
                  worker.acts[i] = memory_.at(act, worker.order[from + i] / top_k, worker);
              };
              for (int32_t done_rows = 0; done_rows < count; done_rows += kExpertRowBlock) {
                const int32_t rows = std::min(kExpertRowBlock, count - done_rows), from = first + done_rows;
                for (int32_t i = 0; i < rows; ++i) {
                  worker.outs[i] = reinterpret_cast<float*>(room_.hidden +
                                                            static_cast<size_t>(from + i - wave) * room_.hidden_stride);
                  worker.gate_outs[i] = worker.gate_values + static_cast<int64_t>(i) * columns - begin;
                }
                gather(gate.layout, from, rows);
                linear.multiply(gate, tile, tile_end, worker.acts, rows, worker.outs, worker.scratch);
                gather(up.layout, from, rows);
                linear.multiply(up, tile, tile_end, worker.acts, rows, worker.gate_outs, worker.scratch);
                for (int32_t i = 0; i < rows; ++i) {
                  float* out = worker.outs[i] + begin;
                  float* up_values = worker.gate_outs[i] + begin;
                  const float limit = op.limit;
                  if (gate_bias != nullptr) math.add(out, gate_bias + begin, columns, out);
                  if (up_bias != nullptr) math.add(up_values, up_bias + begin, columns, up_values);
                  memory_.note_damage(out, columns, "a gate of an expert", worker);
                  if (limit > 0) memory_.note_damage(up_values, columns, "a gate of an expert", worker);
                  math.gate(out, up_values, op.activation, limit, 0, op.alpha, columns, out);
                }
              }
            });
  team_.barrier();
  if (work.num_experts == 0) return;

  if (thread == 0) {  // nobody takes from either until the next barrier
    gate_counter.reset();
    down_counter.reset();
  }
  int32_t num_places = 0;
  for (int32_t i = 0; i < work.num_experts; ++i) num_places += end_of(work.experts[i]) - begin_of(work.experts[i]);
  const auto share_begin = static_cast<int32_t>(int64_t{num_places} * thread / num_threads);
  const auto share_end = static_cast<int32_t>(int64_t{num_places} * (thread + 1) / num_threads);
  for (int32_t i = 0, before = 0; i < work.num_experts && before < share_end; ++i) {
    const int32_t expert = work.experts[i], first = begin_of(expert), count = end_of(expert) - first;
    const ActKind kind = act_kind(model_.expert_matrix(experts, expert, 2).layout);
    if (kind != ActKind::kF32) {  // else the product reads the floats themselves
      for (int32_t j = std::max(0, share_begin - before); j < std::min(count, share_end - before); ++j) {
        const auto index = static_cast<size_t>(first + j - wave);
        const auto* values = reinterpret_cast<const float*>(room_.hidden + index * room_.hidden_stride);
        memory_.note_damage(values, experts.expert_width, "an activation of an expert", worker);
        linear.quantize(kind, values, experts.expert_width, room_.hidden_acts + index * room_.hidden_act_stride);
      }
    }
    before += count;
  }
  team_.barrier();

  share_out(down_counter, 0, down_tiles, down_step,
            [&](int32_t expert, int32_t first, int32_t count, int32_t tile, int32_t tile_end) {
              const PackedMatrix& down = model_.expert_matrix(experts, expert, 2);
              const bool is_float = act_kind(down.layout) == ActKind::kF32;
              const float* bias = bias_of(op.down_biases, expert);
              const int32_t begin = tile * kTileRows;
              const int32_t columns = std::min(tile_end * kTileRows, experts.width) - begin;
              for (int32_t done_rows = 0; done_rows < count; done_rows += kExpertRowBlock) {
                const int32_t rows = std::min(kExpertRowBlock, count - done_rows);
                for (int32_t i = 0; i < rows; ++i) {
                  const auto index = static_cast<size_t>(first + done_rows + i - wave);
                  worker.acts[i] = is_float ? room_.hidden + index * room_.hidden_stride
                                            : room_.hidden_acts + index * room_.hidden_act_stride;
                  worker.outs[i] = reinterpret_cast<float*>(room_.expert_outs + index * room_.expert_out_stride);
                }
                linear.multiply(down, tile, tile_end, worker.acts, rows, worker.outs, worker.scratch);
                for (int32_t i = 0; bias != nullptr && i < rows; ++i)
                  math.add(worker.outs[i] + begin, bias + begin, columns, worker.outs[i] + begin);
              }
            });
  team_.barrier();
}

// Adds the wave's outputs to this thread's rows; with one row every thread makes the sum for itself.
void ExpertsWork::sum(const ExpertsNode& experts, const Segment& segment, int32_t thread, int32_t wave,
                      int32_t wave_end) {
  Worker& worker = memory_.worker(thread);
  const int32_t top_k = experts.route->top_k, num_threads = team_.size();
  const int32_t begin = segment.is_one ? 0 : static_cast<int32_t>(int64_t{segment.num_rows} * thread / num_threads);
  const int32_t end = segment.is_one ? 1 : static_cast<int32_t>(int64_t{segment.num_rows} * (thread + 1) / num_threads);
  for (int32_t row = begin; row < end; ++row) {
    float* out = memory_.floats_at(experts.out_at, row, worker);
    const uint8_t* routing_row = memory_.at(experts.routing_at, row, worker);
    const auto* shares = reinterpret_cast<const float*>(routing_row + static_cast<size_t>(top_k) * sizeof(int32_t));
    if (wave == 0) std::memset(out, 0, static_cast<size_t>(experts.width) * sizeof(float));
    for (int32_t i = 0; i < top_k; ++i) {
      const int32_t place = worker.place[row * top_k + i];
      if (place < wave || place >= wave_end) continue;
      kernels_.vector->axpy(shares[i],
                            reinterpret_cast<const float*>(room_.expert_outs +
                                                           static_cast<size_t>(place - wave) * room_.expert_out_stride),
                            experts.width, out);
    }
  }
}

void ExpertsWork::record_picks(const ExpertsNode& experts, const Segment& segment, const Worker& worker) {
  for (int32_t row = 0; row < segment.num_rows; ++row) {
    const auto* ids = reinterpret_cast<const int32_t*>(memory_.at(experts.routing_at, row, worker));
    routing_.add(step_.number, experts.layer, segment.source[row], ids, experts.route->top_k);
  }
}

}  // namespace kamado
