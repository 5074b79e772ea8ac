// Experts, expert-major: the rows that picked an expert are done together, so that its weights are read once a step. A
// row's experts are summed in ascending id whatever the order they were computed in, so that experts that come from the
// disk may be computed as they arrive.
#pragma once
#include <cstdint>

#include "executor/loaded.h"
#include "executor/measure.h"
#include "executor/memory.h"
#include "executor/plan.h"
#include "executor/step.h"
#include "executor/team.h"
#include "kamado/experts.h"

namespace kamado {

class ExpertsWork {
 public:
  ExpertsWork(const LoadedModel& model, StepMemory& memory, Team& team, const Step& step, Measures& measures);

  void run(const Node& node, const Segment& segment, int32_t thread);
  void abandon();  // after a step that failed

 private:
  // What `compute` does: pack items of the stream's batch, then the products of `experts`, of whose places those in
  // [wave, wave_end) are meant.
  struct Share {
    int32_t wave, wave_end;
    const int32_t* experts;
    int32_t num_experts, num_pack_items;
  };

  void group_by_expert(const ExpertsNode& node, const Segment& segment, Worker& worker) const;
  void compute(const Node& node, const Segment& segment, int32_t thread, const Share& work);
  void sum(const ExpertsNode& node, const Segment& segment, int32_t thread, int32_t wave, int32_t wave_end);
  void record_picks(const ExpertsNode& node, const Segment& segment, const Worker& worker);

  const LoadedModel& model_;
  const KernelTable& kernels_;
  ExpertStream* const stream_;  // nullptr: all experts are resident
  StepMemory& memory_;
  const ExpertRoom room_;
  Team& team_;
  const Step& step_;
  RoutingLog& routing_;
  std::vector<LayerLedger>& ledger_;            // of resident experts
  const ExpertStream::Batch* batch_ = nullptr;  // that all threads compute
};

}  // namespace kamado
