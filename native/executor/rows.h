// Row-wise nodes: what is done for one row at a time, by the thread that has the row.
#pragma once
#include <cstdint>

#include "executor/loaded.h"
#include "executor/memory.h"
#include "executor/plan.h"
#include "executor/route.h"
#include "executor/step.h"

namespace kamado {

class RowWork {
 public:
  // `hidden`: where rows of the result go when the batch wants them.
  RowWork(const LoadedModel& model, const StepMemory& memory, const Step& step, const Operand& hidden)
      : model_(model), memory_(memory), step_(step), hidden_(hidden), router_(model, memory) {}

  void run(const RowOp& op, int32_t row, const Segment& segment, Worker& worker) const;

 private:
  void read_row(const EmbedOp& embed, int32_t source, uint8_t* out) const;

  const LoadedModel& model_;
  const StepMemory& memory_;
  const Step& step_;
  const Operand hidden_;
  const Router router_;
};

}  // namespace kamado
