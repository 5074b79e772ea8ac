// Weights in memory: matrices of products packed into tiles, vectors widened to floats.
#pragma once
#include <functional>
#include <vector>

#include "executor/file.h"
#include "kamado/executor.h"
#include "kamado/linear.h"
#include "kamado/pool.h"

namespace kamado {

struct Weights {
  std::vector<PackedMatrix> matrices;  // data is nullptr for those that no product uses
  std::vector<const float*> vectors;
  std::vector<const float*> taps;  // by matrix, nullptr but for a convolution's: [cols][rows, rounded up to 16]
  size_t bytes = 0;                // of packed tiles and vectors

  Memory tiles, floats;
};

// Reads and packs on all threads of the pool; `progress` is called on this thread about every 50 ms.
struct LoadOptions {
  bool streams_experts;  // matrices that only experts use are left out
  bool drops_cache;      // what reading leaves in the page cache is given back every few MiB, and nothing stays
};
Weights load_weights(const Program& program, const LinearKernels& kernels, Pool& pool, LoadOptions options,
                     const Executor::Progress& progress);

// Gives back what reading the program's files left in the page cache, as far as nothing else keeps it.
void drop_file_cache(const Program& program);

}  // namespace kamado
