// What is loaded: the program, the kernels of this machine, weights in memory, and experts that stay on the disk.
#pragma once
#include <memory>

#include "executor/plan.h"
#include "executor/weights.h"
#include "kamado/executor.h"
#include "kamado/experts.h"
#include "kamado/pool.h"
#include "kamado/tables.h"

namespace kamado {

class LoadedModel {
 public:
  // Loads on all threads of the pool. `program` and `kernels` must outlive the model.
  LoadedModel(const Program& program, const KernelTable& kernels, const ExecutorOptions& options, Pool& pool,
              const Executor::Progress& progress);

  const Program& program() const { return program_; }
  const KernelTable& kernels() const { return kernels_; }
  const float* vector(int32_t id) const { return id == -1 ? nullptr : weights_.vectors[static_cast<size_t>(id)]; }
  // Of a convolution: tap j of channel i at [j * stride + i].
  struct Taps {
    const float* values;
    size_t stride;
    int32_t count;
  };
  Taps taps(int32_t id) const {
    const MatrixSpec& spec = program_.matrices[static_cast<size_t>(id)];
    return {weights_.taps[static_cast<size_t>(id)], align_up(static_cast<size_t>(spec.rows), 16), spec.cols};
  }
  const PackedMatrix& matrix(int32_t id) const { return weights_.matrices[static_cast<size_t>(id)]; }
  // Part 0, 1, 2: gate, up, down.
  const PackedMatrix& expert_matrix(const ExpertsNode& node, int32_t expert, int32_t part) const {
    if (stream_ != nullptr) return stream_->matrix(node.layer, expert, part);
    const auto& list = part == 0 ? node.op->gate : part == 1 ? node.op->up : node.op->down;
    return matrix(list[static_cast<size_t>(expert)]);
  }
  ExpertStream* stream() const { return stream_.get(); }  // nullptr: all experts are resident
  size_t weight_bytes() const { return weights_.bytes; }  // of what is resident

 private:
  const Program& program_;
  const KernelTable& kernels_;
  std::unique_ptr<ExpertStream> stream_;
  Weights weights_;
};

}  // namespace kamado
