// The checks of one operation as it is handed to the builder: the rules of its definition, and what these leave out.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "kamado/executor.h"
#include "kamado/op_rules.h"
#include "kamado/refuse.h"

namespace kamado {

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
      if constexpr (role != Role::kMatrix) {
        const MatrixSpec& spec = builder_.program_.matrices[static_cast<size_t>(value)];
        if (!spec.is_plain()) refuse("tensor ", spec.name, " does not lie row after row, whose rows are read alone");
      }
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
        if (has(written, id)) refuse("buffer ", name(id), " is written twice");
        written.push_back(id);
      } else if constexpr (is_buffer(decltype(field)::role)) {
        read.push_back(id);
      }
    });
    if (T::kIsInPlace) return;
    for (const int32_t id : written) {
      if (has(read, id)) refuse("buffer ", name(id), " is both input and output");
    }
  }

  // Pieces of a table's rows are whole blocks.
  void check_piece(const EmbedOp& op) const {
    const MatrixSpec& table = entry(builder_.program_.matrices, op.table);
    const LayoutInfo* info = layout_info(table.layout);
    if (width(op.out) % info->block_values == 0) return;
    refuse("pieces of ", width(op.out), " values of ", table.name, " are no whole number of ", info->name,
           " blocks of ", info->block_values);
  }

  // Experts are read tile by tile, each with one request (executor/stored.h).
  void expect_together(const ExpertsOp& op) const {
    for (const std::vector<int32_t>* list : {&op.gate, &op.up, &op.down}) {
      for (const int32_t id : *list) {
        const MatrixSpec& spec = entry(builder_.program_.matrices, id);
        if (spec.is_in_blocks() && spec.block_rows > 1)
          refuse("tensor ", spec.name, " lies in blocks, which an expert's must not");
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
  static bool has(const std::vector<int32_t>& list, int32_t id) {
    return std::find(list.begin(), list.end(), id) != list.end();
  }
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

}  // namespace kamado
