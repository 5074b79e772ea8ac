// Executor: steps, sequences, and what is known of them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bind/common.h"
#include "kamado/executor.h"
#include "kamado/experts.h"
#include "kamado/state.h"

namespace kamado {
namespace {

unsigned long main_thread_id = 0;  // who runs the handlers of signals

// True when a Python signal handler raised; the error stays pending in this thread.
bool has_signal() {
  const nb::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

// Only the main thread runs signal handlers; others need not ask for the GIL.
Executor::Poll poll_for_this_thread() {
  if (PyThread_get_thread_ident() != main_thread_id) return {};
  return has_signal;
}

// Passes a call on to the executor.
template <class Result, class... Arguments>
auto call(Result (Executor::*method)(Arguments...)) {
  return [method](const PyExecutor& self, Arguments... arguments) { return (self.get().*method)(arguments...); };
}
template <class Result, class... Arguments>
auto call(Result (Executor::*method)(Arguments...) const) {
  return [method](const PyExecutor& self, Arguments... arguments) { return (self.get().*method)(arguments...); };
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

template <class... Values>
nb::dict dict_of(const std::pair<const char*, Values>&... items) {
  nb::dict result;
  ((result[items.first] = items.second), ...);
  return result;
}

nb::dict ledger(const PyExecutor& self) {
  using std::pair;
  const ExpertLedger from = self.get().ledger();
  nb::list layers;
  for (size_t i = 0; i < from.layers.size(); ++i) {
    const LayerLedger& layer = from.layers[i];
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
  const RecordedQueries& from = self.get().recorded_queries(layer);
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

}  // namespace

void bind_executor(nb::module_& m) {
  main_thread_id = nb::cast<unsigned long>(nb::module_::import_("threading").attr("main_thread")().attr("ident"));
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

}  // namespace kamado
