// Products: work items are runs of tiles; bias, gate, scale and softcap are applied to a run while it is in L1.
#pragma once
#include <cstdint>

#include "executor/loaded.h"
#include "executor/memory.h"
#include "executor/plan.h"
#include "executor/step.h"
#include "executor/team.h"

namespace kamado {

class LinearWork {
 public:
  LinearWork(const LoadedModel& model, StepMemory& memory, Team& team) : model_(model), memory_(memory), team_(team) {}

  void run(const Node& node, const Segment& segment, int32_t thread);

 private:
  const LoadedModel& model_;
  StepMemory& memory_;
  Team& team_;
};

}  // namespace kamado
