// ProgramBuilder: every id, shape and file range is checked here, so that the executor may trust the program.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "executor/file.h"
#include "kamado/bits.h"
#include "kamado/executor.h"
#include "kamado/op_rules.h"
#include "kamado/refuse.h"

namespace kamado {
namespace {

std::string text(int64_t value) {
  return std::to_string(value);
}

bool contains(const std::vector<int32_t>& list, int32_t item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

constexpr int64_t kMaxWidth = std::numeric_limits<int32_t>::max() / 4;  // row offsets in bytes fit an int32

// Bytes of rows * cols values; refuses what the layout, the file or arithmetic does not allow.
void check_range(const std::string& name, const File& file, uint64_t offset, int32_t layout, int64_t rows,
                 int64_t cols) {
  const LayoutInfo* info = layout_info(static_cast<Layout>(layout));
  if (info == nullptr) refuse(name, ": unknown layout ", layout);
  if (rows < 1 || cols < 1 || rows > kMaxWidth || cols > kMaxWidth) {
    refuse(name, ": shape ", rows, " x ", cols, " is out of range");
  }
  if (cols % info->block_values != 0) {
    refuse(name, ": ", cols, " columns are no whole number of ", info->name, " blocks of ", info->block_values);
  }
  uint64_t row = 0, bytes = 0, end = 0;
  if (__builtin_mul_overflow(static_cast<uint64_t>(cols / info->block_values), static_cast<uint64_t>(info->block_bytes),
                             &row) ||
      __builtin_mul_overflow(row, static_cast<uint64_t>(rows), &bytes) || __builtin_add_overflow(offset, bytes, &end) ||
      end > file.size()) {
    refuse(name, ": ", rows, " x ", cols, " ", info->name, " values at byte ", offset, " reach past the end of ",
           file.path(), " (", file.size(), " bytes)");
  }
}

}  // namespace

// The file, which has all of such a tensor.
std::shared_ptr<const File> ProgramBuilder::open(const std::string& name, const std::string& path, uint64_t offset,
                                                 int32_t layout, int64_t rows, int64_t cols) {
  auto& file = files_[path];
  if (file == nullptr) file = std::make_shared<const File>(path);
  check_range(name, *file, offset, layout, rows, cols);
  return file;
}

namespace {

// The id of what `make` gives, which is made once for each key.
template <class Spec, class Make>
int32_t once(std::map<std::string, int32_t>& ids, const std::string& key, std::vector<Spec>& list, Make make) {
  const auto known = ids.find(key);
  if (known != ids.end()) return known->second;
  list.push_back(make());
  return ids[key] = static_cast<int32_t>(list.size() - 1);
}

std::string range_key(const std::string& path, uint64_t offset, int32_t layout, int64_t rows, int64_t cols) {
  return path + '\0' + std::to_string(offset) + ' ' + text(layout) + ' ' + text(rows) + ' ' + text(cols);
}

}  // namespace

int32_t ProgramBuilder::matrix(const std::string& name, const std::string& path, uint64_t offset, int32_t layout,
                               int64_t rows, int64_t cols, int64_t block_rows, int64_t block_stride) {
  int64_t span = rows;  // from the first row to the last
  if (block_rows != 0 || block_stride != 0) {
    if (block_rows < 1 || block_stride < block_rows || rows > kMaxWidth || block_stride > kMaxWidth ||
        rows % block_rows != 0) {
      refuse(name, ": blocks of ", block_rows, " rows every ", block_stride, " do not make ", rows, " rows");
    }
    span = (rows / block_rows - 1) * block_stride + block_rows;
  }
  if (span == rows) block_rows = block_stride = rows;
  const std::string key =
      range_key(path, offset, layout, rows, cols) + ' ' + text(block_rows) + ' ' + text(block_stride);
  return once(matrix_ids_, key, program_.matrices, [&] {
    return MatrixSpec{name,
                      open(name, path, offset, layout, span, cols),
                      offset,
                      static_cast<Layout>(layout),
                      static_cast<int32_t>(rows),
                      static_cast<int32_t>(cols),
                      static_cast<int32_t>(block_rows),
                      static_cast<int32_t>(block_stride)};
  });
}

int32_t ProgramBuilder::vector(const std::string& name, const std::string& path, uint64_t offset, int32_t layout,
                               int64_t length, double add) {
  const auto added = static_cast<float>(add);
  const std::string key = range_key(path, offset, layout, 1, length) + ' ' + text(bit_cast<int32_t>(added));
  return once(vector_ids_, key, program_.vectors, [&] {
    return VectorSpec{name,
                      open(name, path, offset, layout, 1, length),
                      offset,
                      static_cast<Layout>(layout),
                      static_cast<int32_t>(length),
                      added};
  });
}

int32_t ProgramBuilder::constant(const double* values, size_t count) {
  if (count == 0 || count > static_cast<size_t>(kMaxWidth)) refuse("constant: ", count, " values");
  if (!std::all_of(values, values + count, [](double value) { return std::isfinite(value); })) {
    refuse("constant: not all values are finite");
  }
  program_.constants.emplace_back(values, values + count);
  return static_cast<int32_t>(program_.constants.size() - 1);
}

int32_t ProgramBuilder::buffer(const std::string& name, int64_t width) {
  if (width < 1 || width > kMaxWidth) refuse("buffer ", name, ": width ", width, " is out of range");
  program_.buffers.push_back({name, static_cast<int32_t>(width)});
  is_written_.push_back(false);
  return static_cast<int32_t>(program_.buffers.size() - 1);
}

// What check_rules asks of a program and says of an operation; every id that it is given was found to exist.
class OpRules {
 public:
  OpRules(const ProgramBuilder& builder, const char* op) : builder_(builder), op_(op) {}

  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... problem) const {
    kamado::refuse(op_, ": ", problem...);
  }

  std::string text(int64_t value) const { return std::to_string(value); }
  std::string text(float value) const {
    char digits[32];
    std::snprintf(digits, sizeof digits, "%g", static_cast<double>(value));
    return digits;
  }
  int64_t width(int32_t buffer) const { return entry(builder_.program_.buffers, buffer).width; }
  int64_t rows(int32_t matrix) const { return entry(builder_.program_.matrices, matrix).rows; }
  int64_t cols(int32_t matrix) const { return entry(builder_.program_.matrices, matrix).cols; }
  int64_t size(int32_t constant) const {
    return static_cast<int64_t>(entry(builder_.program_.constants, constant).size());
  }
  int64_t choices(int32_t buffer) const {
    const auto routed = builder_.routed_.find(buffer);
    return routed == builder_.routed_.end() ? 0 : routed->second;
  }
  int32_t at(const std::vector<int32_t>& list, size_t index) const {
    if (index >= list.size()) refuse("a list has only ", list.size(), " entries");
    return list[index];
  }

  void expect_buffer(int32_t buffer, int64_t wanted) const {
    if (buffer == -1 || width(buffer) == wanted) return;
    refuse("buffer ", name(buffer), " has width ", width(buffer), ", expected ", wanted);
  }
  void expect_vector(int32_t vector, int64_t wanted) const {
    if (vector == -1) return;
    const VectorSpec& spec = entry(builder_.program_.vectors, vector);
    if (spec.length == wanted) return;
    refuse("vector ", spec.name, " has ", spec.length, " values, expected ", wanted);
  }
  // Of -1: any number.
  void expect_matrix(int32_t matrix, int64_t wanted_rows, int64_t wanted_cols) const {
    const MatrixSpec& spec = entry(builder_.program_.matrices, matrix);
    const auto fits = [](int64_t wanted, int64_t has) { return wanted == -1 || wanted == has; };
    if (fits(wanted_rows, spec.rows) && fits(wanted_cols, spec.cols)) return;
    const auto number = [this](int64_t wanted) { return wanted == -1 ? "any" : text(wanted); };
    refuse("matrix ", spec.name, " has shape ", spec.rows, " x ", spec.cols, ", expected ", number(wanted_rows), " x ",
           number(wanted_cols));
  }

  // What the kind of a field asks of its value, or of one entry of it, whatever the others are.
  template <class FieldOf, class Value>
  void check(FieldOf field, const Value& value) const {
    constexpr Role role = FieldOf::role;
    if constexpr (is_buffer(role)) {
      check_id(field, value, builder_.program_.buffers.size(), "buffer");
      if (value == -1 || !is_read(role) || builder_.is_written_[static_cast<size_t>(value)]) return;
      refuse("buffer ", name(value), " is read before it is written");
    } else if constexpr (role == Role::kMatrix || role == Role::kTable || role == Role::kTaps) {
      check_id(field, value, builder_.program_.matrices.size(), "matrix");
    } else if constexpr (role == Role::kVector) {
      check_id(field, value, builder_.program_.vectors.size(), "vector");
    } else if constexpr (role == Role::kConstants) {
      check_id(field, value, builder_.program_.constants.size(), "constant");
    } else if constexpr (role == Role::kChoice) {
      const auto index = static_cast<int32_t>(value);
      if (index < 0 || index >= field.num_choices) refuse(field.name, " is no choice");
    } else if constexpr (role != Role::kBool) {
      const bool is_in_range = std::isfinite(static_cast<double>(value)) && (!field.is_optional || value >= 0) &&
                               (role != Role::kKeeps || value >= 0);
      if (!is_in_range) refuse(field.name, " is not a number that it can be");
    }
  }

  // Buffers that an operation fills differ from each other and, unless it works in place, from those that it reads.
  template <class T>
  void check_overlap(const T& op) const {
    std::vector<int32_t> read, written;
    for_each_operand(op, [&](auto field, int32_t id) {
      if constexpr (decltype(field)::role == Role::kWrites) {
        if (contains(written, id)) refuse("buffer ", name(id), " is written twice");
        written.push_back(id);
      } else if constexpr (is_buffer(decltype(field)::role)) {
        read.push_back(id);
      }
    });
    if (T::kIsInPlace) return;
    for (const int32_t id : written) {
      if (contains(read, id)) refuse("buffer ", name(id), " is both input and output");
    }
  }

  // Experts are read tile by tile, each with one request.
  void expect_together(const ExpertsOp& op) const {
    for (const std::vector<int32_t>* list : {&op.gate, &op.up, &op.down}) {
      for (const int32_t id : *list) {
        const MatrixSpec& spec = entry(builder_.program_.matrices, id);
        if (spec.is_in_blocks()) refuse("tensor ", spec.name, " lies in blocks, which an expert's must not");
      }
    }
  }

  // Written once, and before it is read; what an operation asks of its state.
  template <class T>
  void check_state(const T& op, int32_t number) const {
    const StateSpec& state = entry(builder_.program_.states, number);
    const bool is_written = builder_.is_state_written_[static_cast<size_t>(number)];
    if (is_written && writes_state(op)) refuse("state ", number, " is written twice");
    if (!is_written && !writes_state(op) && state.kind != StateKind::kSource) {
      refuse("state ", number, " is read before it is written");
    }
    if (!fits(op, state)) refuse("state ", number, " is of another kind or shape");
  }

 private:
  static bool fits(const AttendOp& op, const StateSpec& state) {
    if (state.num_kv_heads != op.num_kv_heads || state.head_dim != op.head_dim || state.v_dim != op.v_dim) return false;
    if (state.kind == StateKind::kSource) return !op.stores && op.window == 0;
    if (state.kind == StateKind::kWindow) return op.causal && op.window > 0 && op.window <= state.tokens;
    return state.kind == StateKind::kPages;
  }
  // The widths of its buffers, which check_rules compared, bound what is multiplied.
  template <class T>
    requires T::kIsRecurrent
  bool fits(const T& op, const StateSpec& state) const {
    return state.kind == StateKind::kRecord && state.num_bytes % int64_t{sizeof(float)} == 0 &&
           state.num_bytes / int64_t{sizeof(float)} == record_values(op, *this);
  }

  const std::string& name(int32_t buffer) const { return entry(builder_.program_.buffers, buffer).name; }

  template <class T>
  const T& entry(const std::vector<T>& list, int32_t id) const {
    if (id < 0 || static_cast<size_t>(id) >= list.size()) refuse("nothing has the id ", id);
    return list[static_cast<size_t>(id)];
  }

  template <class FieldOf>
  void check_id(FieldOf field, int32_t id, size_t count, const char* what) const {
    if (id == -1 && field.is_optional) return;
    if (id >= 0 && static_cast<size_t>(id) < count) return;
    refuse(field.name, ": no ", what, " has the id ", id);
  }

  const ProgramBuilder& builder_;
  const std::string op_;
};

void ProgramBuilder::append(Op op) {
  const auto is_last = [](const auto& concrete) { return concrete.kIsLast; };
  if (!program_.ops.empty() && std::visit(is_last, program_.ops.back())) {
    refuse("the head must be the last operation");
  }
  const auto check = [this]<class T>(const T& concrete) {
    if constexpr (std::is_same_v<T, PredictOp>) {
      refuse("predict: only the executor itself puts these in");
    } else {
      const OpRules rules(*this, T::kName);
      for_each_value(concrete, [&rules](auto field, const auto& value) { rules.check(field, value); });
      rules.check_overlap(concrete);
      check_rules(concrete, rules);
      if constexpr (std::is_same_v<T, ExpertsOp>) rules.expect_together(concrete);
      for_each_value(concrete, [&](auto field, const auto& value) {
        if constexpr (decltype(field)::role == Role::kKeeps) rules.check_state(concrete, value);
      });
    }
  };
  std::visit(check, op);
  accept(op);
  program_.ops.push_back(std::move(op));
}

// Takes note of what a sound operation does.
void ProgramBuilder::accept(const Op& op) {
  const auto note = [this, &op]<class T>(const T& concrete) {
    for_each_operand(concrete, [&](auto field, int32_t id) {
      constexpr Role role = decltype(field)::role;
      if constexpr (is_written(role)) {
        is_written_[static_cast<size_t>(id)] = true;
        routed_.erase(id);  // a routing result belongs to the logits it was made from
      } else if constexpr (role == Role::kMatrix) {
        program_.matrices[static_cast<size_t>(id)].is_packed = true;
      } else if constexpr (role == Role::kTaps) {
        program_.matrices[static_cast<size_t>(id)].is_widened = true;
      }
    });
    for_each_value(concrete, [&](auto field, const auto& value) {
      if constexpr (decltype(field)::role == Role::kKeeps) {
        if (writes_state(op)) is_state_written_[static_cast<size_t>(value)] = true;
      }
    });
    if constexpr (std::is_same_v<T, RouteOp>) routed_[concrete.logits] = concrete.num_experts;
  };
  std::visit(note, op);
}

namespace {

bool has_buffer(const Op& op, int32_t buffer, bool (*is_meant)(Role)) {
  bool found = false;
  const auto look = [&](auto field, int32_t id) {
    if constexpr (is_buffer(decltype(field)::role)) found = found || (id == buffer && is_meant(field.role));
  };
  std::visit([&look](const auto& concrete) { for_each_operand(concrete, look); }, op);
  return found;
}

}  // namespace

bool reads(const Op& op, int32_t buffer) {
  return has_buffer(op, buffer, is_read);
}

bool writes(const Op& op, int32_t buffer) {
  return has_buffer(op, buffer, is_written);
}

bool writes_state(const Op& op) {
  if (const auto* attend = std::get_if<AttendOp>(&op)) return attend->stores;
  return std::visit([](const auto& concrete) { return concrete.kIsRecurrent; }, op);
}

int32_t ProgramBuilder::state(const StateSpec& spec) {
  const std::string which = "state " + text(static_cast<int64_t>(program_.states.size())) + ": ";
  if (spec.kind == StateKind::kRecord) {
    if (spec.num_bytes < 1 || spec.num_bytes % int64_t{sizeof(float)} != 0 || spec.num_bytes > int64_t{1} << 40) {
      refuse(which, spec.num_bytes, " bytes are no record of float32");
    }
  } else {
    for (const int32_t size :
         {spec.num_kv_heads, spec.head_dim, spec.v_dim, spec.kind == StateKind::kPages ? 1 : spec.tokens})
      if (size < 1 || size > kMaxWidth) refuse(which, size, " is out of range");
  }
  program_.states.push_back(spec);
  is_state_written_.push_back(false);
  return static_cast<int32_t>(program_.states.size() - 1);
}

Program ProgramBuilder::finish() {
  const auto is_last = [](const auto& op) { return op.kIsLast; };
  if (program_.ops.empty() || !std::visit(is_last, program_.ops.back())) refuse("the program must end with a head");
  bool has_embed = false;
  for (const Op& op : program_.ops) {
    const auto* embed = std::get_if<EmbedOp>(&op);
    has_embed = has_embed || (embed != nullptr && embed->index == EmbedIndex::kToken);
  }
  if (!has_embed) refuse("the program has no embed");
  int32_t num_by_position = 0, num_sources = 0, num_records = 0;
  for (size_t i = 0; i < program_.states.size(); ++i) {
    StateSpec& spec = program_.states[i];
    const bool is_source = spec.kind == StateKind::kSource;
    if (!is_source && !is_state_written_[i]) refuse("no operation writes state ", i);
    spec.index = spec.kind == StateKind::kRecord ? num_records++ : is_source ? num_sources++ : num_by_position++;
  }
  for (StateSpec& spec : program_.states) spec.index += spec.kind == StateKind::kSource ? num_by_position : 0;
  Program program = std::move(program_);
  *this = ProgramBuilder();
  return program;
}

}  // namespace kamado
