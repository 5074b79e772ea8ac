// The Python module: the files beside it are the only ones that know nanobind. Signatures are those of
// src/kamado/_native.pyi.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <exception>
#include <string>
#include <vector>

#include "bind/common.h"
#include "bind/text.h"
#include "kamado/checksum.h"
#include "kamado/cpus.h"
#include "kamado/executor.h"
#include "kamado/experts.h"
#include "kamado/limits.h"
#include "kamado/linear.h"
#include "kamado/tables.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using kamado::Array;
using kamado::refuse;

PyObject* read_error_type = nullptr;  // owned by the module

uint64_t xxh64(nb::handle data, uint64_t seed) {
  const kamado::BytesView bytes(data);
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
  return kamado::array_of(std::move(values), {static_cast<size_t>(num_values)});
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

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // a model that somebody holds until the interpreter ends is no fault to report
  m.doc() = "The native executor; see _native.pyi.";
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
  kamado::bind_builder(m);
  kamado::bind_executor(m);
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
