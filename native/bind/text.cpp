#include "bind/text.h"

#include <nanobind/ndarray.h>

#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "kamado/byte_pairs.h"
#include "kamado/json_cost.h"
#include "kamado/string_table.h"
#include "kamado/top_ids.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kamado {
namespace {

// UTF-8 of a str, valid as long as it lives.
std::string_view utf8(nb::handle text) {
  Py_ssize_t size = 0;
  const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
  if (data == nullptr) throw nb::python_error();
  return {data, static_cast<size_t>(size)};
}

nb::object to_str(std::string_view text) {
  // Real vocabularies hold pieces of characters; as surrogates their bytes can be had back.
  PyObject* object = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogateescape");
  if (object == nullptr) throw nb::python_error();
  return nb::steal(object);
}

nb::list to_list(const StringTable& table) {
  nb::object list = nb::steal(PyList_New(static_cast<Py_ssize_t>(table.size())));
  if (!list.is_valid()) throw nb::python_error();
  for (size_t i = 0; i < table.size(); ++i) {
    PyList_SetItem(list.ptr(), static_cast<Py_ssize_t>(i), to_str(table[i]).release().ptr());
  }
  return nb::borrow<nb::list>(list);
}

StringTable table_of(const nb::list& texts) {
  StringTable table;
  table.reserve(nb::len(texts), 8 * nb::len(texts));
  for (const nb::handle text : texts) {
    if (!PyUnicode_Check(text.ptr())) throw nb::type_error("a list of str is needed");
    table.append(utf8(text));
  }
  return table;
}

nb::tuple scan(const nb::bytes& data, size_t begin, uint64_t count) {
  StringTable table;
  const StringScan result = scan_strings(static_cast<const uint8_t*>(data.data()), data.size(), begin, count, table);
  if (!result.is_complete) return nb::make_tuple(nb::none(), result.begin, result.length);
  return nb::make_tuple(nb::cast(std::move(table)), result.begin, result.length);
}

void make_byte_pairs(BytePairs* self, const StringTable& tokens, const nb::bytes& is_hidden, const StringTable& merges,
                     bool whole_words) {
  const auto* flags = static_cast<const uint8_t*>(is_hidden.data());
  const std::vector<uint8_t> hidden(flags, flags + is_hidden.size());
  const nb::gil_scoped_release release;
  new (self) BytePairs(tokens, hidden, merges, whole_words);
}

// `words` are what the tokenizers package cuts: (text, place) pairs.
nb::list encode_words(const BytePairs& self, const nb::list& words) {
  std::vector<int32_t> ids;
  for (const nb::handle word : words) {
    if (!PyTuple_Check(word.ptr()) || PyTuple_Size(word.ptr()) == 0) throw nb::type_error("a word is a tuple");
    const nb::handle text = PyTuple_GetItem(word.ptr(), 0);
    if (!PyUnicode_Check(text.ptr())) throw nb::type_error("a word begins with its text");
    self.encode(utf8(text), ids);
  }
  nb::list result;
  for (const int32_t id : ids) result.append(id);
  return result;
}

nb::ndarray<nb::numpy, int64_t, nb::ndim<1>> select_top_ids(
    const nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>& logits, size_t k) {
  if (k < 1 || k > logits.size()) throw std::invalid_argument("k must be from 1 to the number of logits");
  auto ids = std::make_unique<int64_t[]>(k);
  // The GIL is kept: this takes microseconds, and to get it back from a busy thread can take 5 ms.
  top_ids(logits.data(), logits.size(), k, ids.get());
  const nb::capsule owner(ids.get(), [](void* pointer) noexcept { delete[] static_cast<int64_t*>(pointer); });
  return {ids.release(), {k}, owner};
}

}  // namespace

void bind_text(nb::module_& m) {
  nb::class_<StringTable>(m, "StringTable")
      .def(
          "__init__", [](StringTable* self, const nb::list& texts) { new (self) StringTable(table_of(texts)); },
          "texts"_a)
      .def("__len__", &StringTable::size)
      .def("tolist", &to_list);
  m.def("scan_strings", &scan, "data"_a, "begin"_a, "count"_a);
  nb::class_<BytePairs>(m, "BytePairs")
      .def("__init__", &make_byte_pairs, "tokens"_a, "is_hidden"_a, "merges"_a, "whole_words"_a)
      .def("encode", &encode_words, "words"_a);
  nb::class_<JsonCost>(m, "JsonCost")
      .def(nb::init<>())
      .def(
          "take",
          [](JsonCost& self, const nb::bytes& data) {
            self.take(static_cast<const uint8_t*>(data.data()), data.size());
          },
          "data"_a)
      .def_prop_ro("depth", &JsonCost::depth)
      .def_prop_ro("weight", &JsonCost::weight)
      .def_prop_ro("nbytes", &JsonCost::bytes);
  m.def("top_ids", &select_top_ids, "logits"_a.noconvert(), "k"_a);
}

}  // namespace kamado
