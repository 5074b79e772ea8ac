// The Python module: the files beside it are the only ones that know nanobind. Signatures are those of
// src/kamado/_native.pyi.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kamado/checksum.h"
#include "kamado/executor.h"
#include "kamado/experts.h"
#include "kamado/limits.h"
#include "kamado/refuse.h"
#include "kamado/state.h"
#include "kamado/tables.h"
#include "bind/text.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using kamado::Executor;
using kamado::ProgramBuilder;
using kamado::refuse;
using kamado::StateCache;

template <class T>
using Array = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ids = std::vector<int32_t>;

unsigned long main_thread_id = 0;
PyObject* read_error_type = nullptr;  // owned by the module

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

// True when a Python signal handler raised; the error stays pending in this thread.
bool has_signal() {
  const nb::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

// Runs native work without the GIL. A Python error that a callback left pending replaces the cancellation it caused.
template <class Work>
auto without_gil(const Work& work) {
  try {
    const nb::gil_scoped_release release;
    return work();
  } catch (const kamado::Cancelled&) {
    if (PyErr_Occurred()) throw nb::python_error();
    throw;
  }
}

// Only the main thread runs signal handlers; others need not ask for the GIL.
Executor::Poll poll_for_this_thread() {
  if (PyThread_get_thread_ident() != main_thread_id) return {};
  return has_signal;
}

// Owns the executor, which also lives as long as an array of its logits.
class PyExecutor {
 public:
  explicit PyExecutor(std::shared_ptr<Executor> executor) : executor_(std::move(executor)) {}

  Executor& get() const {
    if (executor_ == nullptr) refuse<std::runtime_error>("the executor is closed");
    return *executor_;
  }
  const std::shared_ptr<Executor>& shared() const { return executor_; }
  void close() { executor_.reset(); }

 private:
  std::shared_ptr<Executor> executor_;
};

// Passes a call on to the executor.
template <class Result, class... Arguments>
auto call(Result (Executor::*method)(Arguments...)) {
  return [method](const PyExecutor& self, Arguments... arguments) { return (self.get().*method)(arguments...); };
}
template <class Result, class... Arguments>
auto call(Result (Executor::*method)(Arguments...) const) {
  return [method](const PyExecutor& self, Arguments... arguments) { return (self.get().*method)(arguments...); };
}

int32_t state(ProgramBuilder& builder, const std::string& kind, int32_t num_kv_heads, int32_t head_dim, int32_t v_dim,
              int32_t tokens, int64_t num_bytes) {
  const auto of = choice_of<kamado::StateKind>("kind", kind, {"pages", "window", "source", "record"});
  return builder.state({of, num_kv_heads, head_dim, v_dim, tokens, num_bytes});
}

// Passes a call on to the executor's sequences.
template <class Result, class... Arguments>
auto call(Result (StateCache::*method)(Arguments...)) {
  return
      [method](const PyExecutor& self, Arguments... arguments) { return (self.get().state().*method)(arguments...); };
}
template <class Result, class... Arguments>
auto call(Result (StateCache::*method)(Arguments...) const) {
  return
      [method](const PyExecutor& self, Arguments... arguments) { return (self.get().state().*method)(arguments...); };
}

PyExecutor build(ProgramBuilder& builder, int32_t num_threads, int32_t max_rows, int32_t max_logit_rows,
                 int64_t max_kv_tokens, int32_t max_sequences, const std::string& kv, std::optional<std::string> tier,
                 const std::optional<nb::callable>& progress, std::optional<uint64_t> expert_bytes, int32_t num_readers,
                 const std::string& direct_io, bool verify_slots, const std::string& look_ahead,
                 std::optional<std::vector<std::pair<int32_t, int32_t>>> kv_bits, int32_t kv_reuse_points,
                 bool drop_file_cache, int64_t max_records, int32_t record_rows) {
  if (kv != "f32" && kv != "f16") refuse("kv must be \"f32\" or \"f16\", got \"", kv, "\"");
  kamado::ExecutorOptions options{
      num_threads,        max_rows,
      max_logit_rows,     max_kv_tokens,
      max_sequences,      kv == "f16",
      std::move(tier),    expert_bytes,
      num_readers,        choice_of<kamado::DirectIo>("direct_io", direct_io, {"auto", "on", "off"}),
      verify_slots,       choice_of<kamado::LookAhead>("look_ahead", look_ahead, {"off", "on", "auto"}),
      std::move(kv_bits), kv_reuse_points};
  options.max_records = max_records;
  options.record_rows = record_rows;
  options.drop_file_cache = drop_file_cache;
  kamado::Program program = builder.finish();
  const auto report = [&progress](uint64_t done, uint64_t total) {
    const nb::gil_scoped_acquire gil;
    try {
      if (progress) (*progress)(done, total);
    } catch (nb::python_error& error) {
      error.restore();
      throw kamado::Cancelled();
    }
    if (PyErr_CheckSignals() != 0) throw kamado::Cancelled();
  };
  return without_gil([&] { return PyExecutor(std::make_shared<Executor>(std::move(program), options, report)); });
}

// What an array's values lie in lives as long as the array.
template <class Owner>
nb::capsule keep(Owner owner) {
  auto kept = std::make_unique<Owner>(std::move(owner));
  const nb::capsule capsule(kept.get(), [](void* pointer) noexcept { delete static_cast<Owner*>(pointer); });
  kept.release();
  return capsule;
}

template <class T, size_t kDims>
nb::ndarray<nb::numpy, T, nb::ndim<kDims>> array_of(std::vector<T> values, const size_t (&shape)[kDims]) {
  T* data = values.data();
  return {data, kDims, shape, keep(std::move(values))};
}

nb::ndarray<nb::numpy, float, nb::ndim<2>> step(const PyExecutor& self, const Array<int32_t>& sequences,
                                                const Array<int32_t>& counts, const Array<int32_t>& tokens,
                                                const Array<int32_t>& logit_rows, bool hidden) {
  Executor& executor = self.get();
  if (sequences.size() != counts.size()) {
    refuse(sequences.size(), " sequences and ", counts.size(), " counts");
  }
  const Executor::Batch batch{sequences.data(), counts.data(),     sequences.size(),  tokens.data(),
                              tokens.size(),    logit_rows.data(), logit_rows.size(), hidden};
  const Executor::Poll poll = poll_for_this_thread();
  const float* rows = without_gil([&] { return executor.step(batch, poll); });
  const int32_t width = hidden ? executor.hidden_width() : executor.vocab_size();
  const size_t shape[2] = {logit_rows.size(), static_cast<size_t>(width)};
  return {const_cast<float*>(rows), 2, shape, keep(self.shared())};
}

nb::ndarray<nb::numpy, double, nb::ndim<1>> score(const PyExecutor& self, int32_t sequence,
                                                  const Array<int32_t>& tokens, const Array<int32_t>& targets) {
  Executor& executor = self.get();
  if (tokens.size() != targets.size()) {
    refuse(tokens.size(), " tokens and ", targets.size(), " targets");
  }
  std::vector<double> values(tokens.size());
  const Executor::Poll poll = poll_for_this_thread();
  without_gil([&] { executor.score(sequence, tokens.data(), targets.data(), tokens.size(), values.data(), poll); });
  return array_of(std::move(values), {tokens.size()});
}

// A bytes object of num_bytes that `fill` writes to, without the GIL.
template <class Fill>
nb::bytes bytes_of(size_t num_bytes, Fill fill) {
  if (num_bytes > static_cast<size_t>(PY_SSIZE_T_MAX)) throw std::bad_alloc();
  const nb::object object = nb::steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(num_bytes)));
  if (!object.is_valid()) nb::raise_python_error();
  auto* out = reinterpret_cast<uint8_t*>(PyBytes_AsString(object.ptr()));
  without_gil([&] { fill(out); });
  return nb::borrow<nb::bytes>(object);
}

nb::bytes export_pages(const PyExecutor& self, int32_t sequence, int64_t first_page, int64_t last_page) {
  const Executor& executor = self.get();
  const size_t num_bytes = executor.export_pages_bytes(sequence, first_page, last_page);
  return bytes_of(num_bytes, [&](uint8_t* out) { executor.export_pages(sequence, first_page, last_page, out); });
}

nb::bytes export_tail(const PyExecutor& self, int32_t sequence, int64_t num_tokens) {
  Executor& executor = self.get();
  const size_t num_bytes = executor.export_tail_bytes(sequence, num_tokens);
  return bytes_of(num_bytes, [&](uint8_t* out) { executor.export_tail(sequence, num_tokens, out); });
}

// Read-only memory of anything that has the buffer protocol.
class BytesView {
 public:
  explicit BytesView(nb::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &buffer_, PyBUF_SIMPLE) != 0) nb::raise_python_error();
  }
  ~BytesView() { PyBuffer_Release(&buffer_); }
  BytesView(const BytesView&) = delete;
  BytesView& operator=(const BytesView&) = delete;
  const uint8_t* data() const { return static_cast<const uint8_t*>(buffer_.buf); }
  size_t size() const { return static_cast<size_t>(buffer_.len); }

 private:
  Py_buffer buffer_;
};

void import_pages(const PyExecutor& self, int32_t sequence, int64_t first_page, int64_t last_page, nb::handle pages) {
  Executor& executor = self.get();
  const BytesView bytes(pages);
  without_gil([&] { executor.import_pages(sequence, first_page, last_page, bytes.data(), bytes.size()); });
}

using Rows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void set_source(const PyExecutor& self, int32_t sequence, int32_t state, const Rows& k, const Rows& v) {
  Executor& executor = self.get();
  const Executor::SourceShape shape = executor.source_shape(state);
  const auto is_fit = [&](const Rows& rows, int32_t width) {
    return rows.shape(0) == k.shape(0) && rows.shape(0) <= static_cast<size_t>(shape.max_tokens) &&
           rows.shape(1) == static_cast<size_t>(width);
  };
  if (!is_fit(k, shape.k_width) || !is_fit(v, shape.v_width)) {
    refuse("a source of state ", state, " has at most ", shape.max_tokens, " rows of ", shape.k_width, " and ",
           shape.v_width, " values");
  }
  without_gil([&] { executor.set_source(sequence, state, k.data(), v.data(), static_cast<int64_t>(k.shape(0))); });
}

void import_tail(const PyExecutor& self, int32_t sequence, nb::handle tail) {
  Executor& executor = self.get();
  const BytesView bytes(tail);
  without_gil([&] { executor.import_tail(sequence, bytes.data(), bytes.size()); });
}

uint64_t xxh64(nb::handle data, uint64_t seed) {
  const BytesView bytes(data);
  const nb::gil_scoped_release released;
  return kamado::xxh64(bytes.data(), bytes.size(), seed);
}

nb::ndarray<nb::numpy, float, nb::ndim<1>> dequantize(int32_t layout, const Array<uint8_t>& data, int64_t num_values) {
  const auto kind = static_cast<kamado::Layout>(layout);
  const kamado::LayoutInfo* info = kamado::layout_info(kind);
  if (info == nullptr) refuse("unknown layout ", layout);
  if (num_values < 0 || num_values % info->block_values != 0 ||
      data.size() != static_cast<size_t>(num_values / info->block_values) * static_cast<size_t>(info->block_bytes)) {
    refuse(num_values, " ", info->name, " values in ", data.size(), " bytes");
  }
  std::vector<float> values(static_cast<size_t>(num_values));
  kamado::dequantize_row(kind, data.data(), values.data(), num_values);
  return array_of(std::move(values), {static_cast<size_t>(num_values)});
}

template <class... Values>
nb::dict dict_of(const std::pair<const char*, Values>&... items) {
  nb::dict result;
  ((result[items.first] = items.second), ...);
  return result;
}

nb::dict ledger(const PyExecutor& self) {
  using std::pair;
  const kamado::ExpertLedger from = self.get().ledger();
  nb::list layers;
  for (size_t i = 0; i < from.layers.size(); ++i) {
    const kamado::LayerLedger& layer = from.layers[i];
    layers.append(dict_of(pair{"layer", i}, pair{"hits", layer.hits}, pair{"misses", layer.misses},
                          pair{"bytes_read", layer.bytes_read}, pair{"requests", layer.requests},
                          pair{"read_seconds", layer.read_seconds}, pair{"wait_seconds", layer.wait_seconds},
                          pair{"compute_seconds", layer.compute_seconds}, pair{"lookahead_hits", layer.lookahead_hits},
                          pair{"lookahead_wrong", layer.lookahead_wrong}));
  }
  return dict_of(pair{"layers", layers}, pair{"resident", from.is_resident}, pair{"slots", from.num_slots},
                 pair{"slot_bytes", from.slot_bytes}, pair{"expert_bytes", from.total_bytes},
                 pair{"least_expert_bytes", from.least_bytes}, pair{"expert_record_bytes", from.record_bytes},
                 pair{"direct_io", from.is_direct}, pair{"readers", from.num_readers},
                 pair{"busy_seconds", from.busy_seconds});
}

nb::ndarray<nb::numpy, int32_t, nb::ndim<2>> routing(const PyExecutor& self) {
  Executor& executor = self.get();
  std::vector<int32_t> rows = executor.take_routing();
  const auto columns = static_cast<size_t>(executor.routing_columns());
  const size_t num_rows = rows.size() / columns;
  return array_of(std::move(rows), {num_rows, columns});
}

nb::tuple recorded_queries(const PyExecutor& self, int32_t layer) {
  const kamado::RecordedQueries& from = self.get().recorded_queries(layer);
  const size_t rows = from.positions.size();
  return nb::make_tuple(
      array_of(from.positions, {rows}),
      array_of(from.values, {rows, static_cast<size_t>(from.num_heads), static_cast<size_t>(from.head_dim)}));
}

nb::tuple read_kv(const PyExecutor& self, int32_t sequence, int32_t layer, int32_t k_bits, int32_t v_bits) {
  Executor& executor = self.get();
  const Executor::KvShape shape = executor.kv_shape(sequence, layer, k_bits, v_bits);
  const auto heads = static_cast<size_t>(shape.num_kv_heads), length = static_cast<size_t>(shape.length);
  const auto k_dim = static_cast<size_t>(shape.k_dim), v_dim = static_cast<size_t>(shape.v_dim);
  std::vector<float> k(heads * length * k_dim), v(heads * length * v_dim);
  without_gil([&] { executor.read_kv(sequence, layer, k_bits, v_bits, k.data(), v.data()); });
  return nb::make_tuple(array_of(std::move(k), {heads, length, k_dim}), array_of(std::move(v), {heads, length, v_dim}));
}

int64_t packed_bytes(int32_t layout, int64_t rows, int64_t cols) {
  const auto kind = static_cast<kamado::Layout>(layout);
  const kamado::LayoutInfo* info = kamado::layout_info(kind);
  if (info == nullptr) refuse("unknown layout ", layout);
  if (rows < 1 || cols < 1 || cols % info->block_values != 0) {
    refuse(rows, " x ", cols, " values of ", info->name);
  }
  const int64_t tiles = (rows + kamado::kTileRows - 1) / kamado::kTileRows;
  return tiles * static_cast<int64_t>(kamado::packed_tile_bytes(kind, cols));
}

std::vector<std::string> tiers() {
  std::vector<std::string> names;
  for (const char* name : {"scalar", "avx2", "avx512"}) {
    if (kamado::table_by_name(name) != nullptr) names.emplace_back(name);
  }
  return names;
}

// One value of an operation's field, or one entry of its list.
template <kamado::Role kRole, class Value>
void read_value(kamado::Field<kRole> field, nb::handle given, Value& value) {
  if (given.is_none() && field.is_optional) {
    value = Value(kamado::is_operand(kRole) ? -1 : 0);
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

template <kamado::Role kRole>
void read_value(kamado::Field<kRole> field, nb::handle given, Ids& ids) {
  if (!nb::isinstance<nb::sequence>(given)) refuse(field.name, ": no list");
  for (const nb::handle entry : given) read_value(field, entry, ids.emplace_back(-1));
}

void append(ProgramBuilder& self, const std::string& name, const nb::dict& fields) {
  bool is_known = false;
  kamado::for_each_op([&](auto op) {
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

void bind_builder(nb::module_& m) {
  nb::class_<ProgramBuilder>(m, "Builder")
      .def(nb::init<>())
      .def("matrix", &ProgramBuilder::matrix, "name"_a, "path"_a, "offset"_a, "layout"_a, "rows"_a, "cols"_a)
      .def("vector", &ProgramBuilder::vector, "name"_a, "path"_a, "offset"_a, "layout"_a, "length"_a, "add"_a = 0.0)
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

void bind_executor(nb::module_& m) {
  nb::class_<PyExecutor>(m, "Executor")
      .def_prop_ro("tier", call(&Executor::tier))
      .def_prop_ro("num_threads", call(&Executor::num_threads))
      .def_prop_ro("vocab_size", call(&Executor::vocab_size))
      .def_prop_ro("hidden_width", call(&Executor::hidden_width))
      .def("create_sequence", call(&StateCache::create))
      .def("free_sequence", call(&StateCache::free), "sequence"_a)
      .def("fork_sequence", call(&StateCache::fork), "sequence"_a, "num_tokens"_a)
      .def("truncate", call(&StateCache::truncate), "sequence"_a, "num_tokens"_a)
      .def("length", call(&StateCache::length), "sequence"_a)
      .def_prop_ro("num_pages", call(&Executor::num_pages))
      .def_prop_ro("num_free_pages", call(&Executor::num_free_pages))
      .def("reserve", call(&Executor::reserve), "sequence"_a, "num_tokens"_a)
      .def("give_back", call(&StateCache::give_back), "sequence"_a)
      .def("count_pages", call(&StateCache::count_pages), "sequences"_a)
      .def("shared_pages", call(&StateCache::shared_pages), "sequence"_a, "first_page"_a)
      .def_prop_ro("num_free_records", call(&StateCache::records_free))
      .def("set_source", &set_source, "sequence"_a, "state"_a, "k"_a.noconvert(), "v"_a.noconvert())
      .def_prop_ro("can_reuse_anywhere", call(&StateCache::can_reuse_anywhere))
      .def("mark_reuse", call(&StateCache::mark_reuse), "sequence"_a)
      .def("unmark_reuse", call(&StateCache::unmark_reuse), "sequence"_a, "num_tokens"_a)
      .def("reuse_points", call(&StateCache::reuse_points), "sequence"_a)
      .def("last_reusable", call(&StateCache::last_reusable), "sequence"_a, "num_tokens"_a)
      .def_prop_ro("kv_fingerprint", call(&StateCache::fingerprint))
      .def("page_bytes", call(&StateCache::stored_page_bytes))
      .def(
          "settled_pages", [](const PyExecutor&, int64_t num_tokens) { return kamado::settled_pages(num_tokens); },
          "num_tokens"_a)
      .def("tail_bytes", call(&Executor::tail_bytes), "num_tokens"_a)
      .def("export_pages", &export_pages, "sequence"_a, "first_page"_a, "last_page"_a)
      .def("export_tail", &export_tail, "sequence"_a, "num_tokens"_a)
      .def("begin_import", call(&Executor::begin_import), "num_tokens"_a)
      .def("import_pages", &import_pages, "sequence"_a, "first_page"_a, "last_page"_a, "pages"_a)
      .def("import_tail", &import_tail, "sequence"_a, "tail"_a)
      .def("step", &step, "sequences"_a.noconvert(), "counts"_a.noconvert(), "tokens"_a.noconvert(),
           "logit_rows"_a.noconvert(), "hidden"_a = false)
      .def("score", &score, "sequence"_a, "tokens"_a.noconvert(), "targets"_a.noconvert())
      .def("tile_kv", call(&Executor::tile_kv), "sequence"_a, "num_tokens"_a)
      .def("record_queries", call(&Executor::record_queries), "stride"_a)
      .def("recorded_queries", &recorded_queries, "layer"_a)
      .def("read_kv", &read_kv, "sequence"_a, "layer"_a, "k_bits"_a, "v_bits"_a)
      .def("ledger", &ledger)
      .def("record_routing", call(&Executor::record_routing), "enabled"_a)
      .def("routing", &routing)
      .def("drop_file_cache", call(&Executor::drop_file_cache))
      .def("swap_slots_for_test", call(&Executor::swap_slots_for_test), "layer"_a, "a"_a, "b"_a)
      .def("shrink_experts", call(&Executor::shrink_experts), "expert_bytes"_a)
      .def("delay_reads_for_test", call(&Executor::delay_reads_for_test), "milliseconds"_a)
      .def("cancel", call(&Executor::cancel))
      .def("stats",
           [](const PyExecutor& self) {
             nb::dict result;
             for (const auto& [name, value] : self.get().stats()) result[name.c_str()] = value;
             return result;
           })
      .def("close", &PyExecutor::close);
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // a model that somebody holds until the interpreter ends is no fault to report
  m.doc() = "The native executor; see _native.pyi.";
  main_thread_id = nb::cast<unsigned long>(nb::module_::import_("threading").attr("main_thread")().attr("ident"));
  nb::exception<kamado::NotFinite>(m, "NotFinite", PyExc_FloatingPointError);
  nb::exception<kamado::Cancelled>(m, "Cancelled", PyExc_RuntimeError);
  nb::exception<kamado::ReadError>(m, "ReadError", PyExc_OSError);
  read_error_type = m.attr("ReadError").ptr();
  // As an OSError is made: errno, text, file name.
  nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
    try {
      std::rethrow_exception(pointer);
    } catch (const kamado::ReadError& error) {
      const nb::object arguments = nb::make_tuple(error.code, error.what(), error.path);
      PyErr_SetObject(read_error_type, arguments.ptr());
    }
  });
  bind_builder(m);
  bind_executor(m);
  kamado::bind_text(m);
  m.def("tiers", &tiers);
  m.def("xxh64", &xxh64, "data"_a, "seed"_a = 0);
  m.def("active_tier", [] { return std::string(kamado::best_table().tier); });
  m.def("dequantize", &dequantize, "layout"_a, "data"_a.noconvert(), "num_values"_a);
  m.def("packed_bytes", &packed_bytes, "layout"_a, "rows"_a, "cols"_a);
  m.def("available_cpus", &kamado::available_cpus);
  m.def("measure_bandwidth", &kamado::measure_bandwidth, "num_threads"_a, "megabytes"_a, "seconds"_a,
        nb::call_guard<nb::gil_scoped_release>());
  m.def("measure_int8", &kamado::measure_int8, "num_threads"_a, "seconds"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("measure_f32", &kamado::measure_f32, "num_threads"_a, "seconds"_a, nb::call_guard<nb::gil_scoped_release>());
}
