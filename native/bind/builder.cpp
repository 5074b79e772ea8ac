// Builder: a program handed over field by field, and the executor that is made of it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bind/common.h"
#include "kamado/executor.h"

namespace kamado {
namespace {

using Ids = std::vector<int32_t>;

// The value that stands where `name` does in a list of names, as the enumeration counts them.
template <class Enum>
Enum choice_of(const char* what, const std::string& name, std::initializer_list<const char*> names) {
  std::string known;
  for (auto each = names.begin(); each != names.end(); ++each) {
    if (name == *each) return static_cast<Enum>(each - names.begin());
    known += std::string(known.empty() ? "" : ", ") + "\"" + *each + "\"";
  }
  refuse(what, " must be one of ", known, ", got \"", name, "\"");
}

int32_t state(ProgramBuilder& builder, const std::string& kind, int32_t num_kv_heads, int32_t head_dim, int32_t v_dim,
              int32_t tokens, int64_t num_bytes) {
  const auto of = choice_of<StateKind>("kind", kind, {"pages", "window", "source", "record"});
  return builder.state({of, num_kv_heads, head_dim, v_dim, tokens, num_bytes});
}

int32_t matrix(ProgramBuilder& builder, const std::string& name, const std::string& path, uint64_t offset,
               int32_t layout, int64_t rows, int64_t cols, int64_t block_rows, int64_t block_stride, bool is_by_column,
               const std::string& scales_path, uint64_t scales_offset) {
  const ProgramBuilder::Place place{block_rows, block_stride, is_by_column, scales_path, scales_offset};
  return builder.matrix(name, path, offset, layout, rows, cols, place);
}

PyExecutor build(ProgramBuilder& builder, int32_t num_threads, int32_t max_rows, int32_t max_logit_rows,
                 int64_t max_kv_tokens, int32_t max_sequences, const std::string& kv, std::optional<std::string> tier,
                 const std::optional<nb::callable>& progress, std::optional<uint64_t> expert_bytes, int32_t num_readers,
                 const std::string& direct_io, bool verify_slots, const std::string& look_ahead,
                 std::optional<std::vector<std::pair<int32_t, int32_t>>> kv_bits, int32_t kv_reuse_points,
                 bool drop_file_cache, int64_t max_records, int32_t record_rows) {
  if (kv != "f32" && kv != "f16") refuse("kv must be \"f32\" or \"f16\", got \"", kv, "\"");
  ExecutorOptions options{num_threads,        max_rows,
                          max_logit_rows,     max_kv_tokens,
                          max_sequences,      kv == "f16",
                          std::move(tier),    expert_bytes,
                          num_readers,        choice_of<DirectIo>("direct_io", direct_io, {"auto", "on", "off"}),
                          verify_slots,       choice_of<LookAhead>("look_ahead", look_ahead, {"off", "on", "auto"}),
                          std::move(kv_bits), kv_reuse_points};
  options.max_records = max_records;
  options.record_rows = record_rows;
  options.drop_file_cache = drop_file_cache;
  Program program = builder.finish();
  const auto report = [&progress](uint64_t done, uint64_t total) {
    const nb::gil_scoped_acquire gil;
    try {
      if (progress) (*progress)(done, total);
    } catch (nb::python_error& error) {
      error.restore();
      throw Cancelled();
    }
    if (PyErr_CheckSignals() != 0) throw Cancelled();
  };
  return without_gil([&] { return PyExecutor(std::make_shared<Executor>(std::move(program), options, report)); });
}

// One value of an operation's field, or one entry of its list.
template <Role kRole, class Value>
void read_value(Field<kRole> field, nb::handle given, Value& value) {
  if (given.is_none() && field.is_optional) {
    value = Value(is_operand(kRole) ? -1 : 0);
  } else if constexpr (std::is_enum_v<Value>) {
    std::string name;
    const bool is_text = nb::try_cast(given, name);
    for (int32_t i = 0; i < field.num_choices; ++i) {
      if (name == field.choices[i]) return void(value = static_cast<Value>(i));
    }
    refuse(field.name, ": ", (is_text ? name : "no text"), " is no choice");
  } else if (!nb::try_cast(given, value)) {
    refuse(field.name, ": the value has the wrong type or is out of range");
  }
}

template <Role kRole>
void read_value(Field<kRole> field, nb::handle given, Ids& ids) {
  if (!nb::isinstance<nb::sequence>(given)) refuse(field.name, ": no list");
  for (const nb::handle entry : given) read_value(field, entry, ids.emplace_back(-1));
}

void append(ProgramBuilder& self, const std::string& name, const nb::dict& fields) {
  bool is_known = false;
  for_each_op([&](auto op) {
    if (name != op.kName) return;
    is_known = true;
    size_t num_fields = 0;
    op.fields(op, [&](auto field, const auto&) {
      if (!fields.contains(field.name)) refuse(name, ": field ", field.name, " is missing");
      ++num_fields;
    });
    if (num_fields != fields.size()) refuse(name, ": there are fields that it does not have");
    op.fields(op, [&](auto field, auto& value) { read_value(field, fields[field.name], value); });
    self.append(op);
  });
  if (!is_known) refuse("no operation is called ", name);
}

}  // namespace

void bind_builder(nb::module_& m) {
  nb::class_<ProgramBuilder>(m, "Builder")
      .def(nb::init<>())
      .def("matrix", &matrix, "name"_a, "path"_a, "offset"_a, "layout"_a, "rows"_a, "cols"_a, "block_rows"_a = 0,
           "block_stride"_a = 0, "is_by_column"_a = false, "scales_path"_a = "", "scales_offset"_a = 0)
      .def("vector", &ProgramBuilder::vector, "name"_a, "path"_a, "offset"_a, "layout"_a, "length"_a, "add"_a = 0.0,
           "step"_a = 1)
      .def(
          "constant",
          [](ProgramBuilder& self, const Array<double>& values) { return self.constant(values.data(), values.size()); },
          "values"_a)
      .def("buffer", &ProgramBuilder::buffer, "name"_a, "width"_a)
      .def("state", &state, "kind"_a, "num_kv_heads"_a = 0, "head_dim"_a = 0, "v_dim"_a = 0, "tokens"_a = 0,
           "num_bytes"_a = 0)
      .def("append", &append, "operation"_a, "fields"_a)
      .def("build", &build, "num_threads"_a, "max_rows"_a, "max_logit_rows"_a, "max_kv_tokens"_a, "max_sequences"_a,
           "kv"_a, "tier"_a.none() = nb::none(), "progress"_a.none() = nb::none(), "expert_bytes"_a.none() = nb::none(),
           "num_readers"_a = 4, "direct_io"_a = "auto", "verify_slots"_a = false, "look_ahead"_a = "auto",
           "kv_bits"_a.none() = nb::none(), "kv_reuse_points"_a = 0, "drop_file_cache"_a = false, "max_records"_a = 0,
           "record_rows"_a = 1);
}

}  // namespace kamado
