// Runs steps by the plan: one step is one Team::run, in which every thread walks the same list of nodes and takes its
// share of each. What a node does is said by the class of its kind.
#pragma once
#include <cstdint>
#include <vector>

#include "executor/ahead.h"
#include "executor/attend.h"
#include "executor/experts.h"
#include "executor/linear.h"
#include "executor/loaded.h"
#include "executor/measure.h"
#include "executor/memory.h"
#include "executor/plan.h"
#include "executor/records.h"
#include "executor/rows.h"
#include "executor/sequences.h"
#include "executor/step.h"
#include "executor/team.h"
#include "kamado/executor.h"

namespace kamado {

class StepRunner {
 public:
  // All but the options must outlive the runner.
  StepRunner(const LoadedModel& model, const Plan& plan, const ExecutorOptions& options, Sequences& sequences,
             StepMemory& memory, Team& team);

  // Executor's calls of the same names.
  const float* step(const Executor::Batch& batch, const Executor::Poll& poll);
  void score(int32_t sequence, const int32_t* tokens, const int32_t* targets, size_t count, double* out,
             const Executor::Poll& poll);

  Measures& measures() { return measures_; }

 private:
  // Of the step's rows: log p of a target, into out.
  struct Scoring {
    const int32_t* targets = nullptr;  // [rows]; nullptr: no scoring
    double* out = nullptr;             // [rows]
  };

  void check_batch(const Executor::Batch& batch) const;
  void run(const Executor::Batch& batch, const Executor::Poll& poll);
  void run_thread(int32_t thread);
  void begin_segment(const Segment& segment, bool is_first);
  void run_nodes(const std::vector<Node>& nodes, const Segment& segment, int32_t thread);
  void reduce_scores(const Segment& segment, int32_t thread);

  const Plan& plan_;
  const VectorKernels& math_;
  const int32_t max_rows_, max_logit_rows_;
  const int64_t max_tokens_;
  Sequences& sequences_;
  StateCache& cache_;
  StepMemory& memory_;
  Team& team_;
  Step step_;
  Measures measures_;
  AheadControl ahead_;
  Scoring scoring_;
  std::vector<int32_t> score_rows_;  // [rows]: rows with a target
  std::vector<int32_t> identity_;    // 0, 1, ...
  const RowWork rows_;
  LinearWork linear_;
  AttendWork attend_;
  ExpertsWork experts_;
  RecordWork records_;
};

}  // namespace kamado
