// What may be recorded of steps, for measurements. Nothing here changes what a step computes.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "executor/memory.h"
#include "executor/plan.h"
#include "executor/sequences.h"
#include "executor/step.h"
#include "executor/times.h"
#include "kamado/executor.h"
#include "kamado/pool.h"
#include "kamado/tables.h"

namespace kamado {

// The queries of attention as a step computes them, of rows whose logits are wanted.
class QueryLog {
 public:
  QueryLog(const Program& program, const Sequences& sequences, const Step& step)
      : program_(program), num_layers_(static_cast<size_t>(sequences.num_layers())), step_(step) {}

  void start(int32_t stride);  // of positions; 0: no more
  bool is_on() const { return stride_ > 0; }
  // Makes room for what the step will record, so that its threads allocate nothing.
  void begin_step();
  // One thread's work: a copy of few rows.
  void keep(const AttendNode& node, const StepMemory& memory, const Worker& worker);
  const RecordedQueries& of_layer(int32_t layer) const;

 private:
  bool is_recorded(int32_t row) const {
    return step_.is_wanted[static_cast<size_t>(row)] != 0 && step_.positions[static_cast<size_t>(row)] % stride_ == 0;
  }

  const Program& program_;
  const size_t num_layers_;
  const Step& step_;
  int32_t stride_ = 0;
  std::vector<RecordedQueries> layers_;
};

// Which experts each row picked.
class RoutingLog {
 public:
  explicit RoutingLog(const Program& program);

  void enable(bool is_enabled) { is_on_ = is_enabled; }
  bool is_on() const { return is_on_; }
  int32_t columns() const { return 3 + max_top_k_; }
  // One row: the step's number, the layer, the step's row and its experts.
  void add(int64_t step, int32_t layer, int32_t row, const int32_t* ids, int32_t top_k);
  std::vector<int32_t> take() { return std::exchange(rows_, {}); }

 private:
  bool is_on_ = false;
  int32_t max_top_k_ = 0;
  std::vector<int32_t> rows_;  // of `columns`
};

// All that is measured of an executor's steps.
struct Measures {
  Measures(const Program& program, const Sequences& sequences, const Step& step);

  StepTimes times;
  QueryLog queries;
  RoutingLog routing;
  std::vector<LayerLedger> resident_experts;  // by Experts operation, while no expert is streamed
};

// What a query right after the sequence reads of one KV layer: Executor's calls of the same names.
Executor::KvShape kv_shape(const Sequences& sequences, int32_t sequence, int32_t layer, int32_t k_bits, int32_t v_bits);
void read_kv(const Sequences& sequences, const KernelTable& kernels, Pool& pool, int32_t sequence, int32_t layer,
             int32_t k_bits, int32_t v_bits, float* k, float* v);

}  // namespace kamado
