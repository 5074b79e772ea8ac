// ProgramBuilder: every id, shape and file range is checked here, so that the executor may trust the program.
#include <algorithm>
#include <bit>
#include <limits>

#include "executor/file.h"
#include "kamado/executor.h"

namespace kamado {
namespace {

[[noreturn]] void refuse(const std::string& message) {
  throw std::invalid_argument(message);
}

std::string text(int64_t value) {
  return std::to_string(value);
}

constexpr int64_t kMaxWidth = std::numeric_limits<int32_t>::max() / 4;  // row offsets in bytes fit an int32

// Bytes of rows * cols values; refuses what the layout, the file or arithmetic does not allow.
void check_range(const std::string& name, const File& file, uint64_t offset, int32_t layout, int64_t rows,
                 int64_t cols) {
  const LayoutInfo* info = layout_info(static_cast<Layout>(layout));
  if (info == nullptr) refuse(name + ": unknown layout " + text(layout));
  if (rows < 1 || cols < 1 || rows > kMaxWidth || cols > kMaxWidth) {
    refuse(name + ": shape " + text(rows) + " x " + text(cols) + " is out of range");
  }
  if (cols % info->block_values != 0) {
    refuse(name + ": " + text(cols) + " columns are no whole number of " + info->name + " blocks of " +
           text(info->block_values));
  }
  uint64_t row = 0, bytes = 0, end = 0;
  if (__builtin_mul_overflow(static_cast<uint64_t>(cols / info->block_values), static_cast<uint64_t>(info->block_bytes),
                             &row) ||
      __builtin_mul_overflow(row, static_cast<uint64_t>(rows), &bytes) || __builtin_add_overflow(offset, bytes, &end) ||
      end > file.size()) {
    refuse(name + ": " + text(rows) + " x " + text(cols) + " " + info->name + " values at byte " +
           std::to_string(offset) + " reach past the end of " + file.path() + " (" + std::to_string(file.size()) +
           " bytes)");
  }
}

}  // namespace

std::shared_ptr<const File> ProgramBuilder::open(const std::string& path) {
  auto& file = files_[path];
  if (file == nullptr) file = std::make_shared<const File>(path);
  return file;
}

int32_t ProgramBuilder::matrix(const std::string& name, const std::string& path, uint64_t offset, int32_t layout,
                               int64_t rows, int64_t cols) {
  const std::string key =
      path + '\0' + std::to_string(offset) + ' ' + text(layout) + ' ' + text(rows) + ' ' + text(cols);
  const auto known = matrix_ids_.find(key);
  if (known != matrix_ids_.end()) return known->second;
  auto file = open(path);
  check_range(name, *file, offset, layout, rows, cols);
  program_.matrices.push_back({name, std::move(file), offset, static_cast<Layout>(layout), static_cast<int32_t>(rows),
                               static_cast<int32_t>(cols)});
  const auto id = static_cast<int32_t>(program_.matrices.size() - 1);
  matrix_ids_.emplace(key, id);
  return id;
}

int32_t ProgramBuilder::vector(const std::string& name, const std::string& path, uint64_t offset, int32_t layout,
                               int64_t length, double add) {
  const std::string key = path + '\0' + std::to_string(offset) + ' ' + text(layout) + ' ' + text(length) + ' ' +
                          text(std::bit_cast<int32_t>(static_cast<float>(add)));
  const auto known = vector_ids_.find(key);
  if (known != vector_ids_.end()) return known->second;
  auto file = open(path);
  check_range(name, *file, offset, layout, 1, length);
  program_.vectors.push_back({name, std::move(file), offset, static_cast<Layout>(layout), static_cast<int32_t>(length),
                              static_cast<float>(add)});
  const auto id = static_cast<int32_t>(program_.vectors.size() - 1);
  vector_ids_.emplace(key, id);
  return id;
}

int32_t ProgramBuilder::constant(const double* values, size_t count) {
  if (count == 0 || count > static_cast<size_t>(kMaxWidth)) refuse("constant: " + std::to_string(count) + " values");
  program_.constants.emplace_back(values, values + count);
  return static_cast<int32_t>(program_.constants.size() - 1);
}

int32_t ProgramBuilder::buffer(const std::string& name, int64_t width) {
  if (width < 1 || width > kMaxWidth) refuse("buffer " + name + ": width " + text(width) + " is out of range");
  program_.buffers.push_back({name, static_cast<int32_t>(width)});
  is_written_.push_back(false);
  return static_cast<int32_t>(program_.buffers.size() - 1);
}

const MatrixSpec& ProgramBuilder::weight(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= program_.matrices.size()) refuse("no matrix has the id " + text(id));
  return program_.matrices[static_cast<size_t>(id)];
}

const BufferSpec& ProgramBuilder::buffer_of(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= program_.buffers.size()) refuse("no buffer has the id " + text(id));
  return program_.buffers[static_cast<size_t>(id)];
}

const std::vector<double>& ProgramBuilder::constant_of(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= program_.constants.size()) refuse("no constant has the id " + text(id));
  return program_.constants[static_cast<size_t>(id)];
}

void ProgramBuilder::check_vector(int32_t id, int64_t length, const char* op) const {
  if (id == -1) return;
  if (id < 0 || static_cast<size_t>(id) >= program_.vectors.size()) refuse("no vector has the id " + text(id));
  const VectorSpec& vector = program_.vectors[static_cast<size_t>(id)];
  if (vector.length != length) {
    refuse(std::string(op) + ": vector " + vector.name + " has " + text(vector.length) + " values, " + text(length) +
           " are needed");
  }
}

void ProgramBuilder::read(int32_t buffer, const char* op) {
  const BufferSpec& spec = buffer_of(buffer);
  if (!is_written_[static_cast<size_t>(buffer)])
    refuse(std::string(op) + ": buffer " + spec.name + " is read before it is written");
}

void ProgramBuilder::write(int32_t buffer) {
  buffer_of(buffer);
  is_written_[static_cast<size_t>(buffer)] = true;
  routed_.erase(buffer);  // a routing result belongs to the logits it was made from
}

// A matrix used in a product with inputs of `cols` values; returns its rows.
int32_t ProgramBuilder::product(int32_t matrix, int64_t cols, const std::string& what) {
  const MatrixSpec& spec = weight(matrix);
  if (spec.cols != cols) {
    refuse(what + ": matrix " + spec.name + " has " + text(spec.cols) + " columns, its input has " + text(cols));
  }
  program_.matrices[static_cast<size_t>(matrix)].is_packed = true;
  return spec.rows;
}

void ProgramBuilder::append(Op op) {
  if (!program_.ops.empty() && std::holds_alternative<HeadOp>(program_.ops.back())) {
    refuse("the head must be the last operation");
  }
  std::visit([this](const auto& concrete) { check(concrete); }, op);
  program_.ops.push_back(std::move(op));
}

namespace {
void same_width(const BufferSpec& a, const BufferSpec& b, const char* op) {
  if (a.width != b.width) {
    refuse(std::string(op) + ": buffer " + a.name + " is " + text(a.width) + " wide and " + b.name + " " +
           text(b.width));
  }
}
}  // namespace

void ProgramBuilder::check(const EmbedOp& op) {
  const MatrixSpec& table = weight(op.table);
  if (table.cols != buffer_of(op.out).width) {
    refuse("embed: table " + table.name + " has " + text(table.cols) + " columns, buffer " + buffer_of(op.out).name +
           " is " + text(buffer_of(op.out).width) + " wide");
  }
  write(op.out);
}

void ProgramBuilder::check(const NormOp& op) {
  read(op.x, "norm");
  same_width(buffer_of(op.out), buffer_of(op.x), "norm");
  const int32_t width = buffer_of(op.x).width;
  const int32_t group = op.group > 0 ? op.group : width;
  if (op.group < 0 || width % group != 0) refuse("norm: groups of " + text(op.group) + " in a width of " + text(width));
  if (!op.is_layer && op.bias != -1) refuse("norm: an RMS norm has no bias");
  if (!(op.eps >= 0)) refuse("norm: eps must not be negative");
  check_vector(op.weight, group, "norm");
  check_vector(op.bias, group, "norm");
  write(op.out);
}

void ProgramBuilder::check(const LinearOp& op) {
  read(op.x, "linear");
  if (op.outs.empty() || op.outs.size() != op.weights.size() ||
      (!op.biases.empty() && op.biases.size() != op.outs.size())) {
    refuse("linear: " + text(static_cast<int64_t>(op.outs.size())) + " outputs, " +
           text(static_cast<int64_t>(op.weights.size())) + " weights, " + text(static_cast<int64_t>(op.biases.size())) +
           " biases");
  }
  for (size_t i = 0; i < op.outs.size(); ++i) {
    const BufferSpec& out = buffer_of(op.outs[i]);
    if (op.outs[i] == op.x) refuse("linear: buffer " + out.name + " is input and output");
    if (std::count(op.outs.begin(), op.outs.end(), op.outs[i]) > 1)
      refuse("linear: buffer " + out.name + " is written twice");
    const int32_t rows = product(op.weights[i], buffer_of(op.x).width, "linear");
    if (rows != out.width) {
      refuse("linear: matrix " + weight(op.weights[i]).name + " has " + text(rows) + " rows, buffer " + out.name +
             " is " + text(out.width) + " wide");
    }
    if (!op.biases.empty()) check_vector(op.biases[i], rows, "linear");
  }
  for (const int32_t out : op.outs) write(out);
}

void ProgramBuilder::check(const RopeOp& op) {
  read(op.x, "rope");
  const int32_t width = buffer_of(op.x).width;
  const auto rot_dim = static_cast<int64_t>(constant_of(op.inv_freq).size()) * 2;
  if (op.head_dim < 1 || width % op.head_dim != 0 || rot_dim > op.head_dim) {
    refuse("rope: " + text(rot_dim) + " rotated of " + text(op.head_dim) + " values a head in buffer " +
           buffer_of(op.x).name + " of width " + text(width));
  }
  write(op.x);
}

void ProgramBuilder::check(const AttendOp& op) {
  read(op.q, "attend");
  read(op.k, "attend");
  read(op.v, "attend");
  if (op.num_heads < 1 || op.num_kv_heads < 1 || op.num_heads % op.num_kv_heads != 0 || op.head_dim < 1 ||
      op.v_dim < 1) {
    refuse("attend: " + text(op.num_heads) + " heads over " + text(op.num_kv_heads) + " key-value heads of " +
           text(op.head_dim) + " and " + text(op.v_dim) + " values");
  }
  const struct {
    int32_t buffer;
    int64_t width;
  } wanted[] = {
      {op.q, int64_t{op.num_heads} * op.head_dim},
      {op.k, int64_t{op.num_kv_heads} * op.head_dim},
      {op.v, int64_t{op.num_kv_heads} * op.v_dim},
      {op.out, int64_t{op.num_heads} * op.v_dim},
  };
  for (const auto& [buffer, width] : wanted) {
    if (buffer_of(buffer).width != width) {
      refuse("attend: buffer " + buffer_of(buffer).name + " is " + text(buffer_of(buffer).width) + " wide, " +
             text(width) + " are needed");
    }
  }
  if (op.out == op.q || op.out == op.k || op.out == op.v) {
    refuse("attend: buffer " + buffer_of(op.out).name + " is input and output");
  }
  if (op.layer < 0 || op.window < 0 || !(op.softcap >= 0))
    refuse("attend: layer, window and softcap must not be negative");
  write(op.out);
}

void ProgramBuilder::check(const GateOp& op) {
  read(op.a, "gate");
  same_width(buffer_of(op.out), buffer_of(op.a), "gate");
  if (op.b != -1) {
    read(op.b, "gate");
    same_width(buffer_of(op.out), buffer_of(op.b), "gate");
  }
  write(op.out);
}

void ProgramBuilder::check(const RouteOp& op) {
  read(op.logits, "route");
  if (op.num_experts < 1 || buffer_of(op.logits).width != op.num_experts || op.top_k < 1 || op.top_k > op.num_experts) {
    refuse("route: top " + text(op.top_k) + " of " + text(op.num_experts) + " experts from buffer " +
           buffer_of(op.logits).name + " of width " + text(buffer_of(op.logits).width));
  }
  if (op.num_groups < 1 || op.num_experts % op.num_groups != 0 || op.top_groups < 1 || op.top_groups > op.num_groups ||
      op.top_groups * (op.num_experts / op.num_groups) < op.top_k) {
    refuse("route: " + text(op.top_groups) + " of " + text(op.num_groups) + " groups for top " + text(op.top_k) +
           " of " + text(op.num_experts));
  }
  check_vector(op.bias, op.num_experts, "route");
  routed_[op.logits] = op.num_experts;
}

void ProgramBuilder::check(const ExpertsOp& op) {
  read(op.x, "experts");
  const auto routed = routed_.find(op.logits);
  if (routed == routed_.end()) refuse("experts: no route made a choice from buffer " + buffer_of(op.logits).name);
  const auto count = static_cast<size_t>(routed->second);
  if (op.gate.size() != count || op.up.size() != count || op.down.size() != count) {
    refuse("experts: " + std::to_string(op.gate.size()) + " gate, " + std::to_string(op.up.size()) + " up and " +
           std::to_string(op.down.size()) + " down matrices for " + std::to_string(count) + " experts");
  }
  if (op.out == op.x) refuse("experts: buffer " + buffer_of(op.out).name + " is input and output");
  const int32_t width = weight(op.gate[0]).rows;
  for (size_t i = 0; i < count; ++i) {
    const bool is_even = product(op.gate[i], buffer_of(op.x).width, "experts") == width &&
                         product(op.up[i], buffer_of(op.x).width, "experts") == width &&
                         product(op.down[i], width, "experts") == buffer_of(op.out).width;
    if (!is_even) refuse("experts: the matrices of " + weight(op.gate[i]).name + " and its expert differ in shape");
  }
  write(op.out);
}

void ProgramBuilder::check(const AddOp& op) {
  read(op.a, "add");
  read(op.b, "add");
  same_width(buffer_of(op.out), buffer_of(op.a), "add");
  same_width(buffer_of(op.out), buffer_of(op.b), "add");
  write(op.out);
}

void ProgramBuilder::check(const ScaleOp& op) {
  read(op.x, "scale");
  same_width(buffer_of(op.out), buffer_of(op.x), "scale");
  write(op.out);
}

void ProgramBuilder::check(const SoftcapOp& op) {
  read(op.x, "softcap");
  same_width(buffer_of(op.out), buffer_of(op.x), "softcap");
  if (!(op.cap > 0)) refuse("softcap: the cap must be positive");
  write(op.out);
}

void ProgramBuilder::check(const HeadOp& op) {
  read(op.x, "head");
  if (op.weight == -1) {
    if (op.bias != -1) refuse("head: a bias without a matrix");
    return;
  }
  const int32_t rows = product(op.weight, buffer_of(op.x).width, "head");
  check_vector(op.bias, rows, "head");
  if (!(op.softcap >= 0)) refuse("head: the softcap must not be negative");
}

void ProgramBuilder::check(const PredictOp&) {
  refuse("predict: only the executor itself puts these in");
}

Program ProgramBuilder::finish() {
  if (program_.ops.empty() || !std::holds_alternative<HeadOp>(program_.ops.back())) {
    refuse("the program must end with a head");
  }
  std::vector<int32_t> layers;
  bool has_embed = false;
  for (const Op& op : program_.ops) {
    if (const auto* attend = std::get_if<AttendOp>(&op)) layers.push_back(attend->layer);
    const auto* embed = std::get_if<EmbedOp>(&op);
    has_embed = has_embed || (embed != nullptr && embed->by == EmbedBy::kToken);
  }
  if (!has_embed) refuse("the program has no embed");
  std::sort(layers.begin(), layers.end());
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i] != static_cast<int32_t>(i)) refuse("attend: the layers must be 0, 1, ..., each once");
  }
  Program program = std::move(program_);
  *this = ProgramBuilder();
  return program;
}

}  // namespace kamado
