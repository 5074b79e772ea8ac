// Attention nodes: threads take the step's units of work, store keys and values, encode pages, and attend.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "executor/loaded.h"
#include "executor/measure.h"
#include "executor/memory.h"
#include "executor/plan.h"
#include "executor/sequences.h"
#include "executor/step.h"
#include "executor/team.h"
#include "executor/times.h"
#include "executor/units.h"
#include "kamado/tables.h"

namespace kamado {

// The items of a split row's head (split.cpp). Words begin with the epoch of the node that runs, so nothing is ever
// reset: a word of another epoch stands for 0.
struct alignas(64) SplitHead {
  std::atomic<uint64_t> taken{0};   // items taken from the front, and from the back
  std::atomic<uint64_t> merged{0};  // items merged, in order; whether a thread is merging
};

class AttendWork {
 public:
  AttendWork(const LoadedModel& model, const Plan& plan, const Sequences& sequences, StepMemory& memory, Team& team,
             const Step& step, Measures& measures);

  void begin_step();
  // Of the tail; its counters were taken from before unless it is the first.
  void begin_segment(const Segment& segment, bool is_first);
  void run(const Node& node, int32_t thread);

 private:
  // --- attend.cpp ---
  void run_encodes(const Node& node, const Units& list, int32_t thread);
  void begin_row(const AttendNode& node, int32_t head, float* running) const;
  void check_queries(const AttendNode& node, int32_t row, int32_t head, Worker& worker) const;
  void store_row(const AttendNode& node, void* k_block, void* v_block, int32_t slot, int32_t row, int32_t head,
                 Worker& worker) const;
  void attend_block(const AttendNode& node, const BlockUnit& unit, int32_t head, Worker& worker);
  void attend_single(const AttendNode& node, const SingleUnit& unit, int32_t head, Worker& worker);
  void attend_pages(const AttendNode& node, const SingleUnit& unit, int32_t head, int32_t page_begin, int32_t page_end,
                    float* slots, float* running, Worker& worker) const;
  void finish_row(const AttendNode& node, int32_t row, int32_t head, const float* running, Worker& worker) const;
  void merge_page(const AttendNode& node, int64_t position, int32_t page, float* running, const float* partials) const;
  void rotate_queries(const AttendNode& node, int32_t row, int32_t head, int32_t first, Worker& worker) const;
  void attend_code_page(const AttendNode& node, int32_t sequence, int64_t page, int32_t head, int32_t num_queries,
                        const void* next, Worker& worker) const;

  // --- split.cpp ---
  void attend_splits(const AttendNode& node, const Units& list, uint64_t epoch, int32_t thread);
  void attend_item(const AttendNode& node, const SingleUnit& unit, int32_t head, int32_t item, int32_t pair,
                   uint64_t epoch, Worker& worker);

  const LoadedModel& model_;
  const KernelTable& kernels_;
  StateCache& cache_;
  const std::vector<KvCodec>& codecs_;
  StepMemory& memory_;
  const AttendRoom room_;
  Team& team_;
  StepTimes& times_;
  QueryLog& queries_;
  UnitMaker units_;
  std::unique_ptr<SplitHead[]> split_heads_;              // by split row and head
  std::unique_ptr<std::atomic<uint64_t>[]> split_ready_;  // by item and head: the epoch in which its slots were filled
  const uint64_t epochs_;                                 // of a step or segment: one for each counter
  uint64_t epoch_ = 0;                                    // plus a node's counter: the epoch of that node
};

}  // namespace kamado
