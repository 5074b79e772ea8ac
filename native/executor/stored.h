// How a matrix lies in its files: runs of equal units, each of which can be read and packed by itself.
//
//   row after row              one run, whose units are the rows of a tile; where those of two matrices alternate, one
//                              read serves both
//   column after column        one run, whose units are the columns
//   MXFP4 with scales apart    two runs of rows: of codes (16 bytes for 32 values, in pairs) and of scales
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kamado/executor.h"
#include "kamado/linear.h"

namespace kamado {

struct StoredRun {
  const File* file;
  uint64_t offset;
  size_t unit_step;   // bytes from the beginning of a unit to that of the next
  size_t item_bytes;  // of a row, or of a value of a column
  size_t item_step;   // bytes from one to the next
  int32_t num_items, items_a_unit, num_units;
  bool has_twin;  // the items of another matrix, of which the first begins behind this one's first, are wanted too

  uint64_t begin_of(int32_t unit) const { return offset + static_cast<uint64_t>(unit) * unit_step; }
  // Bytes of units [begin, end): to the last item's end.
  size_t bytes_of(int32_t begin, int32_t end) const {
    const auto whole = static_cast<size_t>(end - 1 - begin) * unit_step;
    const int32_t first = is_by_column() ? 0 : (end - 1) * items_a_unit;
    const auto more = static_cast<size_t>(std::min(items_a_unit, num_items - first) - 1) * item_step;
    return whole + more + (has_twin ? item_step : item_bytes);
  }
  size_t bytes() const { return bytes_of(0, num_units); }

 private:
  bool is_by_column() const { return items_a_unit == num_items; }
};

int32_t num_runs(const MatrixSpec& spec);
StoredRun stored_run(const MatrixSpec& spec, int32_t run, bool has_twin = false);
// Packs units [begin, end) of a run, whose first item begins at `data`, into all of the matrix's tiles.
void pack_units(const LinearKernels& kernels, const MatrixSpec& spec, const StoredRun& run, int32_t which,
                int32_t begin, int32_t end, const uint8_t* data, uint8_t* tiles);
// Whether the rows of `second` lie between those of `first`, so that both are read at once.
bool is_twin(const MatrixSpec& first, const MatrixSpec& second);

}  // namespace kamado
