// The program executor: a program (operations over named buffers) is handed over once, weights are packed, and then
// each step runs the whole program for any mix of prefill chunks and decode rows on the executor's own threads.
//
// Bits do not depend on threads, chunking or batch company: lanes and threads split output rows, pages and rows, never
// a sum. A step allocates nothing. Errors are exceptions; after one the sequences are as they were before the step.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kamado/layout.h"
#include "kamado/operands.h"

namespace kamado {

class File;  // native/executor/file.h
class StateCache;

// A step met a NaN or an infinity, which no healthy model makes; its sequences are as they were before.
struct NotFinite : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Thrown by a step that `cancel` or the poll hook stopped.
struct Cancelled : std::runtime_error {
  Cancelled() : std::runtime_error("cancelled") {}
};

struct MatrixSpec {
  std::string name;
  std::shared_ptr<const File> file;
  uint64_t offset;  // of the first row
  Layout layout;
  int32_t rows, cols;
  // So many rows lie one behind the other, the next as many so many rows after those began: what each head has in a
  // matrix that holds several things a head. Both are `rows` where all lie together.
  int32_t block_rows, block_stride;
  // Not rows but columns lie one behind the other, and blocks are of their values (unquantised layouts only).
  bool is_by_column = false;
  // Of MXFP4 whose scales lie apart, from that of the first row on; the codes then hold values 2i and 2i + 1 in a byte.
  std::shared_ptr<const File> scales_file = nullptr;
  uint64_t scales_offset = 0;
  bool is_packed = false;   // a product uses it; otherwise only Embed does, and its rows are read one by one
  bool is_widened = false;  // a convolution's taps: in memory as float32

  bool is_in_blocks() const { return block_rows < rows; }
  bool is_plain() const { return !is_by_column && scales_file == nullptr; }
  size_t scale_row_bytes() const { return static_cast<size_t>(cols / 32); }
  size_t item_bytes() const;  // of a row as it lies in `file`, or of a value where columns lie one behind the other
  uint64_t at(int32_t row) const;                               // where it lies in the file
  void read(int32_t begin, int32_t count, uint8_t* out) const;  // rows [begin, begin + count) of the file, together
};

struct VectorSpec {
  std::string name;
  std::shared_ptr<const File> file;
  uint64_t offset;
  Layout layout;
  int32_t length;
  float add;     // added to each value when it is read
  int32_t step;  // every so many values of the file are these
};

struct BufferSpec {
  std::string name;
  int32_t width;
};

// Operands are ids: of buffers, matrices, vectors (-1: none) and constants, in the order they were declared.
// Put in by the executor itself (executor/ahead.h): what `route` would pick is read ahead for Experts operation
// `layer`.
struct PredictOp {
  RouteOp route;
  int32_t layer;

  static constexpr bool kIsLast = false;
  static constexpr bool kIsRowWise = false;
  static constexpr bool kIsRecurrent = false;
  template <class Self, class Visit>
  static void fields(Self& op, Visit&& visit) {
    visit(Field<Role::kRoutes>{"logits"}, op.route.logits);
  }
};
using Op = AnyOf<PredictOp>;

// Whether an operation needs what a buffer holds, and whether it fills the buffer.
bool reads(const Op& op, int32_t buffer);
bool writes(const Op& op, int32_t buffer);
// Whether it changes what a sequence keeps from step to step.
bool writes_state(const Op& op);

// What a sequence keeps: src/kamado/program/state.py.
enum class StateKind : int32_t { kPages, kWindow, kSource, kRecord };
struct StateSpec {
  StateKind kind;
  int32_t num_kv_heads = 0, head_dim = 0, v_dim = 0, tokens = 0;  // tokens: of a window, at most of a source
  int64_t num_bytes = 0;                                          // of a record
  // Where the executor has it: a KV layer (first pages and windows in order, then sources), or among records.
  int32_t index = -1;
};

struct Program {
  std::vector<MatrixSpec> matrices;
  std::vector<VectorSpec> vectors;
  std::vector<std::vector<double>> constants;
  std::vector<BufferSpec> buffers;
  std::vector<StateSpec> states;
  std::vector<Op> ops;
  std::vector<bool> is_ahead;  // by op: look-ahead's, which a step may leave out; empty: none is
};

// Collects a program and checks every id and shape as it comes, by the rules that the operations' definitions state;
// throws std::invalid_argument with the operation's and the tensor's or buffer's name. The same (path, offset, layout,
// shape) is one matrix. Paths are opened at the first mention.
class ProgramBuilder {
 public:
  // Where a matrix's rows do not simply lie one behind the other: see MatrixSpec. Blocks of 0: all together.
  struct Place {
    int64_t block_rows = 0, block_stride = 0;
    bool is_by_column = false;
    std::string scales_path = {};  // empty: the scales are in the blocks
    uint64_t scales_offset = 0;
  };
  int32_t matrix(const std::string& name, const std::string& path, uint64_t offset, int32_t layout, int64_t rows,
                 int64_t cols, const Place& place);
  int32_t matrix(const std::string& name, const std::string& path, uint64_t offset, int32_t layout, int64_t rows,
                 int64_t cols) {
    return matrix(name, path, offset, layout, rows, cols, Place{});
  }
  int32_t vector(const std::string& name, const std::string& path, uint64_t offset, int32_t layout, int64_t length,
                 double add, int64_t step = 1);
  int32_t constant(const double* values, size_t count);
  int32_t buffer(const std::string& name, int64_t width);
  int32_t state(const StateSpec& spec);  // its number; before the operations that name it
  void append(Op op);
  // Checks what only the whole program shows (a Head at the end, every state written) and hands it over.
  Program finish();

 private:
  friend class OpRules;  // builder.cpp

  std::shared_ptr<const File> file(const std::string& path);
  std::shared_ptr<const File> open(const std::string& name, const std::string& path, uint64_t offset, int32_t layout,
                                   int64_t rows, int64_t cols);
  void accept(const Op& op);

  Program program_;
  std::map<std::string, std::shared_ptr<const File>> files_;
  std::map<std::string, int32_t> matrix_ids_, vector_ids_;
  std::vector<bool> is_written_;
  std::vector<bool> is_state_written_;
  std::map<int32_t, int32_t> routed_;  // logits buffer -> number of experts
};

// How experts are read: direct I/O where the file system takes it (kAuto), always, or never. See kamado/experts.h.
enum class DirectIo : int32_t { kAuto, kOn, kOff };
// Reading ahead what the next layer's router picks from the present hidden state: never, always, or while it pays.
enum class LookAhead : int32_t { kOff, kOn, kAuto };

struct ExecutorOptions {
  int32_t num_threads = 1;
  int32_t max_rows = 512;
  int32_t max_logit_rows = 1;
  int64_t max_kv_tokens = 2048;
  int32_t max_sequences = 1;
  bool kv_f16 = true;
  std::optional<std::string> tier;  // none: the best one
  // At most this many bytes for expert slots and their raw read buffers; none: all experts are resident.
  std::optional<uint64_t> expert_bytes;
  int32_t num_readers = 4;
  DirectIo direct_io = DirectIo::kAuto;
  bool verify_slots = false;  // compare every expert used with the file: slow, for tests
  LookAhead look_ahead = LookAhead::kAuto;
  // (key bits, value bits) of each KV layer, 0 and 0: exact; then layers with a window keep their window only. None:
  // all of every layer is kept exactly.
  std::optional<std::vector<std::pair<int32_t, int32_t>>> kv_bits;
  int32_t kv_reuse_points = 0;  // of all sequences together, whose pages are certainly kept
  // Of a program with records: how many there are, of sequences and reuse points. 0: as many as all of them need.
  int64_t max_records = 0;
  int32_t record_rows = 1;  // after how many of its last rows a step hands records back, so that it can be cut there
  // Cached pages of the files are counted against someone's budget: loading never leaves more than a few MiB of them,
  // whatever the device's read-ahead is. Always so when experts are streamed.
  bool drop_file_cache = false;
};

// What experts cost, by Experts operation in program order.
struct LayerLedger {
  // Experts that an operation needed, once each however many rows picked them, are hits (in a slot), misses, or
  // lookahead_hits (read ahead, or on their way). lookahead_wrong were read ahead in vain.
  int64_t hits = 0, misses = 0;
  int64_t bytes_read = 0, requests = 0;
  double read_seconds = 0;     // summed over requests, which overlap
  double wait_seconds = 0;     // with nothing to pack or compute
  double compute_seconds = 0;  // the operation's other time
  int64_t lookahead_hits = 0, lookahead_wrong = 0;
};
struct ExpertLedger {
  std::vector<LayerLedger> layers;
  bool is_resident = true;
  // Of streamed experts:
  int32_t num_slots = 0;
  size_t slot_bytes = 0;    // of all slots
  size_t total_bytes = 0;   // with the raw read buffers
  size_t least_bytes = 0;   // the least expert_bytes that works
  size_t record_bytes = 0;  // of the largest expert in the file
  bool is_direct = false;
  int32_t num_readers = 0;
  double busy_seconds = 0;  // with at least one read under way
};

// Queries of one KV layer, as attention takes them (positions applied, not scaled).
struct RecordedQueries {
  int32_t num_heads = 0, head_dim = 0;
  std::vector<int32_t> positions;
  std::vector<float> values;  // [positions][num_heads][head_dim]
};

class Executor {
 public:
  // Called on the thread that called, about every 50 ms; true stops the work. May throw.
  using Poll = std::function<bool()>;
  // (bytes done, bytes in all); as Poll.
  using Progress = std::function<void(uint64_t, uint64_t)>;

  Executor(Program program, const ExecutorOptions& options, const Progress& progress);
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  const char* tier() const;
  int32_t num_threads() const;
  int32_t vocab_size() const;
  int32_t hidden_width() const;  // of the head's input

  // Sequences and what they keep: create, fork, cut, mark, count (kamado/state.h). Its calls that a step makes are not
  // for others.
  StateCache& state() const;
  int64_t num_pages() const;  // that max_kv_tokens fill
  int64_t num_free_pages() const;
  bool reserve(int32_t sequence, int64_t num_tokens);
  struct SourceShape {
    int32_t k_width, v_width, max_tokens;  // widths of a row: all heads
  };
  SourceShape source_shape(int32_t state) const;  // throws std::invalid_argument when it is no source
  // Fills a source: k [num_tokens][k_width], v [num_tokens][v_width], finite.
  void set_source(int32_t sequence, int32_t state, const float* k, const float* v, int64_t num_tokens);
  size_t tail_bytes(int64_t num_tokens) const;
  // The first checks and gives the size of what the second writes.
  size_t export_pages_bytes(int32_t sequence, int64_t first_page, int64_t last_page) const;
  void export_pages(int32_t sequence, int64_t first_page, int64_t last_page, uint8_t* out) const;
  size_t export_tail_bytes(int32_t sequence, int64_t num_tokens) const;
  void export_tail(int32_t sequence, int64_t num_tokens, uint8_t* out);
  int32_t begin_import(int64_t num_tokens);
  void import_pages(int32_t sequence, int64_t first_page, int64_t last_page, const uint8_t* pages, size_t num_bytes);
  void import_tail(int32_t sequence, const uint8_t* tail, size_t num_bytes);

  struct Batch {
    const int32_t* sequences;  // [num_sequences]
    const int32_t* counts;     // [num_sequences]
    size_t num_sequences;
    const int32_t* tokens;  // [num_tokens], concatenated in the order of sequences
    size_t num_tokens;
    const int32_t* logit_rows;  // [num_logit_rows], indexes into tokens
    size_t num_logit_rows;
    bool wants_hidden = false;  // the head's input instead of logits
  };
  // float[num_logit_rows][vocab_size, or hidden_width], valid until the next step.
  const float* step(const Batch& batch, const Poll& poll);
  // out[i] = log p(targets[i] | tokens up to i), 0 where targets[i] is -1.
  void score(int32_t sequence, const int32_t* tokens, const int32_t* targets, size_t count, double* out,
             const Poll& poll);
  void tile_kv(int32_t sequence, int64_t num_tokens);
  void cancel();  // from any thread
  std::vector<std::pair<std::string, double>> stats() const;

  ExpertLedger ledger() const;
  void record_routing(bool is_enabled);
  // Rows of routing_columns() ids: step, layer, row, then the experts that the row picked (-1 fills up); forgets them.
  std::vector<int32_t> take_routing();
  int32_t routing_columns() const;

  // For measurements. From now on a step keeps the queries of its rows whose logits are wanted and whose position is a
  // multiple of `stride`; those kept before are forgotten. 0: no more. Throws std::invalid_argument below 0.
  void record_queries(int32_t stride);
  const RecordedQueries& recorded_queries(int32_t layer) const;  // throws std::invalid_argument when it is no layer
  // What a query right after the sequence reads of one KV layer if that had codes of so many bits, 0 and 0: exactly.
  // k [num_kv_heads][length][k_dim], v [num_kv_heads][length][v_dim]. The cache must keep the layer as f16 for good;
  // throws std::invalid_argument when it does not, or when the heads cannot be encoded so. `kv_shape` checks too.
  struct KvShape {
    int32_t num_kv_heads, k_dim, v_dim;
    int64_t length;
  };
  KvShape kv_shape(int32_t sequence, int32_t layer, int32_t k_bits, int32_t v_bits) const;
  void read_kv(int32_t sequence, int32_t layer, int32_t k_bits, int32_t v_bits, float* k, float* v);

  // Gives back what reading the model's files left in the page cache.
  void drop_file_cache() const;
  // Between steps: experts and their read buffers take at most `bytes` from now on, and what was theirs goes back to
  // the system. Throws std::invalid_argument below ExpertLedger::least_bytes; never grows.
  void shrink_experts(uint64_t bytes);
  // Exchanges what two slots hold, which verify_slots must notice.
  void swap_slots_for_test(int32_t layer, int32_t a, int32_t b);
  // Each read of experts begins that much later, as on a slow disk.
  void delay_reads_for_test(int32_t milliseconds);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kamado
