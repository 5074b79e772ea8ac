// What is known of the running step, for all who work on it.
#pragma once
#include <cstdint>
#include <vector>

#include "kamado/executor.h"

namespace kamado {

// Rows of a step that a part of the program works on.
struct Segment {
  int32_t num_rows;
  bool is_one;
  const int32_t* source;  // [num_rows]: the step's row behind each
};

struct Step {
  const Executor::Batch* batch = nullptr;
  int64_t number = 0;              // steps that were done before
  bool looks_ahead = false;        // executor/ahead.h
  std::vector<int32_t> positions;  // [rows]: in the row's sequence
  std::vector<uint8_t> is_wanted;  // [rows]: logits are wanted
};

}  // namespace kamado
