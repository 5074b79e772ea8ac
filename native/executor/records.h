// Operations that replace a record: each row's is made from the one before in its sequence.
#pragma once
#include <cstdint>

#include "executor/loaded.h"
#include "executor/memory.h"
#include "executor/plan.h"
#include "executor/step.h"
#include "executor/team.h"
#include "kamado/scan.h"
#include "kamado/state.h"
#include "kamado/vector.h"

namespace kamado {

// Of Worker::scratch, for all of a program's operations with a record.
size_t record_scratch_bytes(const Program& program);

class RecordWork {
 public:
  RecordWork(const LoadedModel& model, StateCache& cache, StepMemory& memory, Team& team, const Step& step)
      : model_(model),
        math_(*model.kernels().vector),
        scan_(*model.kernels().scan),
        cache_(cache),
        memory_(memory),
        team_(team),
        step_(step) {}

  void run(const RecordNode& node, int32_t thread);

 private:
  // What a thread has of items that threads share.
  struct Range {
    int32_t begin, end;
  };
  // The rows of one sequence in the step, and its records of one operation.
  struct Rows {
    int32_t begin, count;  // rows of the step
    int32_t sequence, record;
    int32_t num_next;  // records are left after each of so many last rows
  };

  Range share(int32_t num_items, int32_t thread) const;
  // Of the node's columns, whole cache lines of them.
  Range columns(const RecordNode& node, int32_t thread) const;
  template <class Fn>
  void each_sequence(const RecordNode& node, int32_t thread, Fn&& work);
  float* row(const Operand& operand, int32_t index, const Worker& worker) const {
    return memory_.floats_at(operand, index, worker);
  }
  // The record after the first `num_rows` of the rows, where the last rows leave theirs; others have the last one's
  // place in the meantime.
  const float* before(const Rows& rows) const;
  float* after(const Rows& rows, int32_t num_rows) const;

  void accumulate(const RecordNode& node, const AccumulateOp& op, int32_t thread);
  void conv(const RecordNode& node, const ConvOp& op, int32_t thread);
  void delta(const RecordNode& node, const DeltaScanOp& op, int32_t thread);
  // Blocks [begin, end) of one head.
  void delta_head(const RecordNode& node, const DeltaScanOp& op, const Rows& rows, int32_t head, Range blocks,
                  Worker& worker);
  // Rows [begin, end) of one head: beta and how much of S stays, into the thread's scratch, of which `block` tells.
  void delta_gates(const RecordNode& node, const DeltaScanOp& op, int32_t head, Range rows, DeltaBlock& block,
                   Worker& worker) const;

  const LoadedModel& model_;
  const VectorKernels& math_;
  const ScanKernels& scan_;
  StateCache& cache_;
  StepMemory& memory_;
  Team& team_;
  const Step& step_;
};

template <class Fn>
void RecordWork::each_sequence(const RecordNode& node, int32_t thread, Fn&& work) {
  int32_t begin = 0;
  for (size_t s = 0; s < step_.batch->num_sequences; ++s) {
    team_.check_cancel(thread);
    const int32_t sequence = step_.batch->sequences[s], count = step_.batch->counts[s];
    work(Rows{begin, count, sequence, node.record, cache_.num_next_records(sequence)});
    begin += count;
  }
}

}  // namespace kamado
