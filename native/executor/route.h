// The router: which experts a row goes to, and with which weights.
#pragma once
#include <cstdint>

#include "executor/loaded.h"
#include "executor/memory.h"
#include "kamado/executor.h"

namespace kamado {

class Router {
 public:
  Router(const LoadedModel& model, const StepMemory& memory) : model_(model), memory_(memory) {}

  // Writes int32 ids[top_k], ascending, then float weights[top_k].
  void route(const RouteOp& op, const float* logits, uint8_t* out, Worker& worker) const;
  // Reads ahead what the router of a later layer picks, by falling weight. By the thread that talks to the stream.
  void predict(const PredictOp& op, const float* logits, uint8_t* out, Worker& worker) const;

 private:
  void pick(const RouteOp& op, const float* logits, uint8_t* out, Worker& worker) const;

  const LoadedModel& model_;
  const StepMemory& memory_;
};

}  // namespace kamado
