#include "executor/loaded.h"

namespace kamado {

LoadedModel::LoadedModel(const Program& program, const KernelTable& kernels, const ExecutorOptions& options, Pool& pool,
                         const Executor::Progress& progress)
    : program_(program), kernels_(kernels) {
  // First, so that a budget that is too small is told before anything is read.
  if (options.expert_bytes) {
    stream_ = std::make_unique<ExpertStream>(program, *kernels.linear,
                                             ExpertStream::Options{static_cast<size_t>(*options.expert_bytes),
                                                                   options.num_readers,
                                                                   options.direct_io,
                                                                   options.verify_slots,
                                                                   {}});
  }
  weights_ = load_weights(program, *kernels.linear, pool,
                          {stream_ != nullptr, stream_ != nullptr || options.drop_file_cache}, progress);
}

}  // namespace kamado
