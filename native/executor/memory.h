// Everything that a step writes, laid out once: values of the program, what threads leave for each other, and each
// thread's own memory.
#pragma once
#include <cstdint>
#include <vector>

#include "executor/file.h"
#include "executor/plan.h"
#include "kamado/attention.h"
#include "kamado/executor.h"
#include "kamado/kv_codec.h"
#include "kamado/tables.h"

namespace kamado {

// Rows of one attention work item times their query heads: fills the kernel's registers and stays in L1.
constexpr int32_t kMaxQueries = 64;
// Of a split row's pages: items wanted for each thread, so that all end at about the same time.
constexpr int32_t kSplitItemsPerThread = 16;
// Rows of one product call over an expert's rows.
constexpr int32_t kExpertRowBlock = 256;
// Rows times picks whose intermediate results are held at once; more are done in waves.
constexpr int32_t kMaxAssignments = 1024;

// One thread's own memory.
struct Worker {
  Memory memory;
  uint8_t* values = nullptr;          // private values, one row each
  uint8_t* scratch = nullptr;         // of a kernel
  uint8_t* table_row = nullptr;       // stored bytes of an embedding
  const uint8_t** acts = nullptr;     // [rows]
  float** outs = nullptr;             // [rows]
  float** gate_outs = nullptr;        // [rows]
  float* gate_values = nullptr;       // second product of a fused gate
  AttendQuery* queries = nullptr;     // [kMaxQueries or the group]
  int32_t* query_ids = nullptr;       // [same]
  CodeQuery* code_queries = nullptr;  // [same]
  uint8_t* rotated = nullptr;         // [same][rotated_stride]
  float* partials = nullptr;          // [same][partial_stride]
  float* running = nullptr;           // [same][partial_stride]
  float* scores = nullptr;            // [3 * experts]: router
  const char* damage = nullptr;       // where this step first met a value that is not finite
  int32_t* expert_begin = nullptr;    // [experts + 1]: where an expert's rows begin in `order`
  int32_t* order = nullptr;           // [rows * top_k]: row * top_k + pick, by expert
  int32_t* place = nullptr;           // [rows * top_k]: inverse of `order`
  int32_t* picked = nullptr;          // [experts]: those that any row picked, ascending
  int32_t num_picked = 0;
};

// What threads that attend leave for each other.
struct AttendRoom {
  float* partial_slots = nullptr;  // [num_partial_slots][num_heads][partial_stride]
  int64_t num_partial_slots = 0;
  size_t partial_stride = 0;  // floats: maximum, sum, vector
  size_t partial_slot_floats = 0;
  float* split_running = nullptr;  // [pairs of split rows and heads][max_group][partial_stride]
  size_t split_running_floats = 0;
  size_t rotated_stride = 0;                   // bytes of a rotated query
  int32_t max_pairs = 0, max_split_items = 0;  // of all split rows and heads together
};

// Rows of experts under way.
struct ExpertRoom {
  uint8_t* hidden = nullptr;       // [assignments][hidden_stride]: an expert's gated values
  uint8_t* hidden_acts = nullptr;  // [assignments][hidden_act_stride]
  uint8_t* expert_outs = nullptr;  // [assignments][expert_out_stride]
  size_t hidden_stride = 0, hidden_act_stride = 0, expert_out_stride = 0;
  int32_t max_assignments = 0;
};

class StepMemory {
 public:
  // `codecs`: of the layers that are encoded.
  StepMemory(const Program& program, const Plan& plan, const ExecutorOptions& options,
             const std::vector<KvCodec>& codecs, const VectorKernels& math);

  size_t max_rows() const { return max_rows_; }  // of a step and of its tail
  size_t bytes() const { return bytes_; }
  const AttendRoom& attend() const { return attend_; }
  const ExpertRoom& experts() const { return experts_; }
  Worker& worker(int32_t thread) { return workers_[static_cast<size_t>(thread)]; }
  bool is_first(const Worker& worker) const { return &worker == workers_.data(); }

  uint8_t* at(const Operand& operand, int32_t row, const Worker& worker) const {
    return operand.is_private ? worker.values + operand.offset
                              : shared_.data() + operand.offset + static_cast<size_t>(row) * operand.stride;
  }
  float* floats_at(const Operand& operand, int32_t row, const Worker& worker) const {
    return reinterpret_cast<float*>(at(operand, row, worker));
  }
  const float* shared_floats(size_t offset) const { return reinterpret_cast<const float*>(shared_.data() + offset); }

  // Every place where a NaN or an infinity could become an ordinary number asks first: what damaged weights make must
  // not look like an answer. A pass over values in L1; the step throws NotFinite at its end.
  void note_damage(const float* x, int32_t n, const char* what, Worker& worker) const {
    if (!math_.is_finite(x, n) && worker.damage == nullptr) worker.damage = what;
  }
  void forget_damage();
  void refuse_damage() const;

 private:
  const VectorKernels& math_;
  size_t max_rows_;
  AttendRoom attend_;
  ExpertRoom experts_;
  Memory shared_;  // values, then what is in the rooms
  std::vector<Worker> workers_;
  size_t bytes_ = 0;
};

}  // namespace kamado
