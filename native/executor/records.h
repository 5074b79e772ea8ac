// Operations that replace a record: each row's is made from the one before in its sequence.
#pragma once
#include <cstdint>

#include "executor/memory.h"
#include "executor/plan.h"
#include "executor/step.h"
#include "executor/team.h"
#include "kamado/state.h"
#include "kamado/vector.h"

namespace kamado {

class RecordWork {
 public:
  RecordWork(const VectorKernels& math, StateCache& cache, StepMemory& memory, Team& team, const Step& step)
      : math_(math), cache_(cache), memory_(memory), team_(team), step_(step) {}

  void run(const RecordNode& node, int32_t thread);

 private:
  const VectorKernels& math_;
  StateCache& cache_;
  StepMemory& memory_;
  Team& team_;
  const Step& step_;
};

}  // namespace kamado
