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
#include <variant>
#include <vector>

#include "kamado/layout.h"
#include "kamado/vector.h"

namespace kamado {

class File;  // native/executor/file.h

// Thrown by a step that `cancel` or the poll hook stopped.
struct Cancelled : std::runtime_error {
  Cancelled() : std::runtime_error("cancelled") {}
};

struct MatrixSpec {
  std::string name;
  std::shared_ptr<const File> file;
  uint64_t offset;
  Layout layout;
  int32_t rows, cols;
  bool is_packed = false;  // a product uses it; otherwise only Embed does, and its rows are read one by one
};

struct VectorSpec {
  std::string name;
  std::shared_ptr<const File> file;
  uint64_t offset;
  Layout layout;
  int32_t length;
  float add;  // added to each value when it is read
};

struct BufferSpec {
  std::string name;
  int32_t width;
};

// Operands are ids: of buffers, matrices, vectors (-1: none) and constants, in the order they were declared.
struct EmbedOp {
  int32_t out, table;
  float scale;
};
struct NormOp {
  int32_t out, x, weight, bias;
  float eps;
  bool is_layer;
  int32_t group;
};
struct LinearOp {
  std::vector<int32_t> outs;
  int32_t x;
  std::vector<int32_t> weights, biases;
};
struct RopeOp {
  int32_t x, head_dim, inv_freq;
  bool is_interleaved;
  double factor;
};
struct AttendOp {
  int32_t out, q, k, v, layer, num_heads, num_kv_heads, head_dim, v_dim;
  float scale;
  int32_t window;  // 0: none
  float softcap;   // 0: none
  bool is_causal;
};
struct GateOp {
  int32_t out, a, b;
  Activation activation;
};
enum class RouteScore : int32_t { kSoftmax, kSigmoid, kTopkSoftmax };
struct RouteOp {
  int32_t logits, num_experts, top_k;
  RouteScore score;
  bool is_normalized;
  int32_t bias, num_groups, top_groups;
  float scale;
};
struct ExpertsOp {
  int32_t out, x, logits;
  std::vector<int32_t> gate, up, down;
  Activation activation;
};
struct AddOp {
  int32_t out, a, b;
};
struct ScaleOp {
  int32_t out, x;
  float factor;
};
struct SoftcapOp {
  int32_t out, x;
  float cap;
};
struct HeadOp {
  int32_t x, weight, bias;
  float scale, softcap;
};
using Op = std::variant<EmbedOp, NormOp, LinearOp, RopeOp, AttendOp, GateOp, RouteOp, ExpertsOp, AddOp, ScaleOp,
                        SoftcapOp, HeadOp>;

struct Program {
  std::vector<MatrixSpec> matrices;
  std::vector<VectorSpec> vectors;
  std::vector<std::vector<double>> constants;
  std::vector<BufferSpec> buffers;
  std::vector<Op> ops;
};

// Collects a program and checks every id and shape as it comes; throws std::invalid_argument with the tensor's or
// buffer's name. The same (path, offset, layout, shape) is one matrix. Paths are opened at the first mention.
class ProgramBuilder {
 public:
  int32_t matrix(const std::string& name, const std::string& path, uint64_t offset, int32_t layout, int64_t rows,
                 int64_t cols);
  int32_t vector(const std::string& name, const std::string& path, uint64_t offset, int32_t layout, int64_t length,
                 double add);
  int32_t constant(const double* values, size_t count);
  int32_t buffer(const std::string& name, int64_t width);
  void append(Op op);
  // Checks what only the whole program shows (a Head at the end, KV layers without gaps) and hands it over.
  Program finish();

 private:
  std::shared_ptr<const File> open(const std::string& path);
  const MatrixSpec& weight(int32_t id) const;
  const BufferSpec& buffer_of(int32_t id) const;
  void check_vector(int32_t id, int64_t length, const char* op) const;
  const std::vector<double>& constant_of(int32_t id) const;
  void read(int32_t buffer, const char* op);
  void write(int32_t buffer);
  void check(const EmbedOp& op);
  void check(const NormOp& op);
  void check(const LinearOp& op);
  void check(const RopeOp& op);
  void check(const AttendOp& op);
  void check(const GateOp& op);
  void check(const RouteOp& op);
  void check(const ExpertsOp& op);
  void check(const AddOp& op);
  void check(const ScaleOp& op);
  void check(const SoftcapOp& op);
  void check(const HeadOp& op);
  int32_t product(int32_t matrix, int64_t cols, const std::string& what);

  Program program_;
  std::map<std::string, std::shared_ptr<const File>> files_;
  std::map<std::string, int32_t> matrix_ids_, vector_ids_;
  std::vector<bool> is_written_;
  std::map<int32_t, int32_t> routed_;  // logits buffer -> number of experts
};

struct ExecutorOptions {
  int32_t num_threads = 1;
  int32_t max_rows = 512;
  int32_t max_logit_rows = 1;
  int64_t max_kv_tokens = 2048;
  int32_t max_sequences = 1;
  bool kv_f16 = true;
  std::optional<std::string> tier;  // none: the best one
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

  int32_t create_sequence();
  void free_sequence(int32_t sequence);
  int32_t fork_sequence(int32_t sequence, int64_t num_tokens);
  void truncate(int32_t sequence, int64_t num_tokens);
  int64_t length(int32_t sequence) const;

  struct Batch {
    const int32_t* sequences;  // [num_sequences]
    const int32_t* counts;     // [num_sequences]
    size_t num_sequences;
    const int32_t* tokens;  // [num_tokens], concatenated in the order of sequences
    size_t num_tokens;
    const int32_t* logit_rows;  // [num_logit_rows], indexes into tokens
    size_t num_logit_rows;
  };
  // float[num_logit_rows][vocab_size], valid until the next step.
  const float* step(const Batch& batch, const Poll& poll);
  // out[i] = log p(targets[i] | tokens up to i), 0 where targets[i] is -1.
  void score(int32_t sequence, const int32_t* tokens, const int32_t* targets, size_t count, double* out,
             const Poll& poll);
  void tile_kv(int32_t sequence, int64_t num_tokens);
  void cancel();  // from any thread
  std::vector<std::pair<std::string, double>> stats() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Processors that this process may use: affinity and the cgroup's quota, at least 1.
int32_t available_cpus();

}  // namespace kamado
