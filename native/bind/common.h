// What the files of the Python module share: arrays, bytes, and native work without the GIL.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "kamado/executor.h"
#include "kamado/refuse.h"

namespace kamado {

namespace nb = nanobind;
using namespace nb::literals;

template <class T>
using Array = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Runs native work without the GIL. A Python error that a callback left pending replaces the cancellation it caused.
template <class Work>
auto without_gil(const Work& work) {
  try {
    const nb::gil_scoped_release release;
    return work();
  } catch (const Cancelled&) {
    if (PyErr_Occurred()) throw nb::python_error();
    throw;
  }
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

void bind_builder(nb::module_& m);  // Builder, whose build() makes an Executor
void bind_executor(nb::module_& m);

}  // namespace kamado
