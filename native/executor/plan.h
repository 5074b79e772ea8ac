// What one step does, worked out once: which operations are fused, where each value lies, and where threads must meet.
//
// A program is cut after its last operation that writes sequence state. The *main* part runs for every row of the step,
// the *tail* only for the rows whose logits are wanted. Each part is planned twice. With *one* row, every thread does
// the row-wise work itself, into memory of its own, because that is cheaper than meeting at a barrier; only products,
// attention and experts are shared out. With *many* rows, thread t owns a fixed share of the rows for row-wise work.
//
// A barrier is put only where two accesses to the same memory since the last one conflict: a write by any thread and
// another access whose share-out differs.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kamado/executor.h"
#include "kamado/linear.h"

namespace kamado {

constexpr int kNumActKinds = 3;
constexpr int32_t kMaxOneChunkTiles = 64;     // of one row's product
constexpr int32_t kMaxManyChunkTiles = 8;     // bounds the time between two looks at the cancel flag
constexpr size_t kRowBlockBytes = 512 << 10;  // quantised rows of one product call: half of a usual L2

// Where a value lies.
struct Operand {
  size_t offset = 0;  // of row 0, in the shared or the thread's own memory
  size_t stride = 0;  // bytes from row to row
  bool is_private = false;
};

enum class RowKind {
  kFetch,  // a row of a table as it is stored, for Embeds of its pieces
  kEmbed,
  kNorm,
  kRopeTable,
  kRope,
  kKernel,  // a row-wise operation's own kernel
  kRoute,
  kQuantize,
  kGather,
  kPredict,
  kTemper,
  kRescale,
  kOutput
};

// A row-wise operation of the program, or a part of another one. `out` and `in` are values (-1: none) and, once
// resolved, their places.
struct RowOp {
  explicit RowOp(RowKind row_kind) : kind(row_kind) { std::fill_n(in, kMaxRowInputs, -1); }

  RowKind kind;
  bool is_ahead = false;   // look-ahead's: left out of steps without it
  const Op* op = nullptr;  // its parameters; none for Quantize and Gather
  ActKind act = ActKind::kF32;
  int32_t width = 0;  // floats; of Gather: bytes
  int32_t out = -1;
  int32_t in[kMaxRowInputs];
  int32_t in_width[kMaxRowInputs] = {};  // floats; of kKernel
  Operand out_at, in_at[kMaxRowInputs];
  // Of kKernel: calls it with rows of `in` (nullptr: none) and `out`; what an input is called when all must be finite.
  void (*kernel)(const RowKernels& kernels, const Op& op, const float* const* in, int32_t n, float* out) = nullptr;
  const char* guards = nullptr;
};

// One matrix of a product.
struct LinearPart {
  int32_t matrix = -1, bias = -1;
  int32_t act = -1, out = -1;  // values; out is -1 for the second matrix of a fused gate
  Operand act_at, out_at;
};

// Tiles [begin, end) of a part; of part 0 and 1 together when the node is gated and part is 0.
struct Chunk {
  int32_t part, begin, end;
};

struct LinearNode {
  std::vector<LinearPart> parts;
  bool is_gated = false;  // out of part 0 = activation(part 0) [* part 1]
  bool has_gate_b = false;
  Activation activation = Activation::kNone;
  float limit = 0, alpha = 0;  // of a gate
  bool is_head = false;
  bool is_ahead = false;         // look-ahead's
  float scale = 1, softcap = 0;  // of a head
  std::vector<Chunk> chunks;
  int32_t row_block = 1;  // rows of one product call
};

struct AttendNode {
  const AttendOp* op = nullptr;
  int32_t layer = -1;  // of the cache: StateSpec::index
  bool is_causal = true;
  int32_t units = -1;  // index into Plan::unit_kinds
  int32_t q = -1, k = -1, v = -1, out = -1;
  Operand q_at, k_at, v_at, out_at;
};

// An operation that replaces a record: threads share its columns, and each takes the rows of a sequence in order.
struct RecordNode {
  const Op* op = nullptr;
  int32_t record = -1;      // StateSpec::index
  int32_t num_columns = 0;  // of out
  int32_t num_inputs = 0;
  int32_t in[kMaxRecordInputs] = {};  // in the order of the operation's fields
  int32_t out = -1;
  Operand in_at[kMaxRecordInputs], out_at;
};

struct ExpertsNode {
  const ExpertsOp* op = nullptr;
  const RouteOp* route = nullptr;
  int32_t acts[kNumActKinds] = {-1, -1, -1};  // x as each kind that the gate and up matrices take
  int32_t routing = -1, out = -1;
  Operand acts_at[kNumActKinds], routing_at, out_at;
  int32_t expert_width = 0, width = 0;
  int32_t layer = -1;  // counted over the program's Experts operations
};

enum class NodeKind { kRow, kLinear, kAttend, kExperts, kRecord };

struct Node {
  explicit Node(NodeKind node_kind) : kind(node_kind) {}

  NodeKind kind;
  bool has_barrier = false;  // before it
  int32_t counter = -1;      // of its work items; Attend uses 3, Experts 2 (see there)
  std::vector<RowOp> rows;
  LinearNode linear;
  AttendNode attend;
  ExpertsNode experts;
  RecordNode record;
};

// Attention work depends on positions and these only, so layers that agree share a list of work units.
struct UnitKind {
  int32_t num_kv_heads, group, window;
  bool is_causal;
  bool is_last;  // only rows whose logits are wanted attend
  bool stores;
  int32_t source = -1;   // the layer whose tokens, another number in each sequence, all rows see
  bool is_tail = false;  // its rows are those of a segment of the tail

  bool operator==(const UnitKind&) const = default;
};

struct Plan {
  std::vector<Node> main[2];     // [is_one]
  std::vector<Node> tail[2][2];  // [main is_one][tail is_one]
  std::vector<UnitKind> unit_kinds;
  size_t shared_bytes = 0;   // all values, as max_rows or max_logit_rows rows
  size_t private_bytes = 0;  // one row of each, for one thread
  Operand logits, hidden;
  int32_t num_counters = 0, tail_counters_begin = 0;
  int32_t vocab_size = 0;     // rows of the head; 0: it has no matrix
  int32_t hidden_width = 0;   // of the head's input
  int32_t num_tokens = 0;     // rows of the smallest embedding table: token ids are below
  int32_t num_positions = 0;  // rows of the smallest table of positions
  bool is_causal = true;      // no operation looks ahead
  int64_t max_cols = 0;       // widest product input
  int32_t max_row_block = 1;
  bool has_main = false;        // before the tail
  bool has_tail_units = false;  // of attention
};

// `program` must outlive the plan.
Plan make_plan(const Program& program, int32_t num_threads, int32_t max_rows, int32_t max_logit_rows);

}  // namespace kamado
