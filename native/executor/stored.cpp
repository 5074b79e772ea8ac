#include "executor/stored.h"

namespace kamado {
namespace {

// Every so many rows or columns of what is stored belong to the matrix. Rows in larger blocks are put together when
// they are read (MatrixSpec::read).
size_t items_apart(const MatrixSpec& spec) {
  return spec.block_rows == 1 ? static_cast<size_t>(spec.block_stride) : 1;
}

}  // namespace

int32_t num_runs(const MatrixSpec& spec) {
  return spec.scales_file == nullptr ? 1 : 2;
}

StoredRun stored_run(const MatrixSpec& spec, int32_t run, bool has_twin) {
  const bool is_scales = run == 1;
  StoredRun found{};
  found.file = is_scales ? spec.scales_file.get() : spec.file.get();
  found.offset = is_scales ? spec.scales_offset : spec.offset;
  found.item_bytes = is_scales ? spec.scale_row_bytes() : spec.item_bytes();
  found.item_step = found.item_bytes * items_apart(spec);
  found.num_items = spec.rows;
  found.has_twin = has_twin;
  if (spec.is_by_column) {
    found.items_a_unit = spec.rows;
    found.num_units = spec.cols;
    found.unit_step = static_cast<size_t>(spec.rows) * found.item_step;
  } else {
    found.items_a_unit = kTileRows;
    found.num_units = (spec.rows + kTileRows - 1) / kTileRows;
    found.unit_step = kTileRows * found.item_step;
  }
  return found;
}

void pack_units(const LinearKernels& kernels, const MatrixSpec& spec, const StoredRun& run, int32_t which,
                int32_t begin, int32_t end, const uint8_t* data, uint8_t* tiles) {
  const size_t tile_bytes = packed_tile_bytes(spec.layout, spec.cols);
  for (int32_t unit = begin; unit < end; ++unit, data += run.unit_step) {
    if (spec.is_by_column) {
      pack_column(spec.layout, data, run.item_step, spec.rows, spec.cols, unit, tiles);
      continue;
    }
    const int rows = std::min(kTileRows, spec.rows - unit * kTileRows);
    uint8_t* tile = tiles + static_cast<size_t>(unit) * tile_bytes;
    if (which == 1) {
      pack_scales(spec.layout, data, run.item_step, rows, spec.cols, tile);
    } else if (spec.scales_file != nullptr) {
      pack_paired_codes(spec.layout, data, run.item_step, rows, spec.cols, tile);
    } else {
      kernels.pack_tile(spec.layout, data, run.item_step, rows, spec.cols, tile);
    }
  }
}

bool is_twin(const MatrixSpec& first, const MatrixSpec& second) {
  const bool is_alike = first.file == second.file && first.layout == second.layout && first.rows == second.rows &&
                        first.cols == second.cols && first.is_by_column == second.is_by_column &&
                        first.scales_file == second.scales_file;
  return is_alike && first.block_rows == 1 && first.block_stride == 2 && second.block_rows == 1 &&
         second.block_stride == 2 && second.offset == first.offset + first.item_bytes() &&
         (first.scales_file == nullptr || second.scales_offset == first.scales_offset + first.scale_row_bytes());
}

}  // namespace kamado
