#include "executor/weights.h"

#include <algorithm>
#include <atomic>
#include <chrono>

namespace kamado {
namespace {

// A read goes to a buffer of this size and is packed from there while it is still in L2. On this kind of machine a
// mapped file costs more in page faults than the copy costs.
constexpr size_t kStageBytes = 256 << 10;
// When cached pages count: read ahead by this many items (2 MiB), and given back after as many. The system's own
// read-ahead may be 8 MiB a window and more.
constexpr size_t kItemsAhead = 8;

struct Item {
  int32_t matrix, tile_begin, tile_end;
};

struct Load {
  const Program& program;
  const LinearKernels& kernels;
  const Executor::Progress& progress;
  Weights& weights;
  std::vector<Item> items;
  std::vector<Memory> stages;
  bool drops_cache = false;
  uint64_t total_bytes = 0;
  std::atomic<size_t> next{0};
  std::atomic<uint64_t> done_bytes{0};
  std::atomic<bool> is_stopped{false};

  const File& file_of(const Item& item) const { return *program.matrices[static_cast<size_t>(item.matrix)].file; }

  uint64_t begin_of(const Item& item) const {
    return program.matrices[static_cast<size_t>(item.matrix)].at(item.tile_begin * kTileRows);
  }

  uint64_t bytes_of(const Item& item) const {
    const MatrixSpec& spec = program.matrices[static_cast<size_t>(item.matrix)];
    const int32_t last = std::min(item.tile_end * kTileRows, spec.rows) - 1;
    return spec.at(last) + row_bytes(spec.layout, spec.cols) - begin_of(item);
  }

  // Reads ahead of item `index` and gives back what lies well behind it. Another thread may be a few items behind: what
  // it had not read yet is then read twice.
  void keep_cache_small(size_t index) const {
    if (index == 0) {
      for (size_t i = 1; i < std::min(kItemsAhead, items.size()); ++i) will_need(items[i]);
    }
    if (index + kItemsAhead < items.size()) will_need(items[index + kItemsAhead]);
    if (index % kItemsAhead != 0 || index < kItemsAhead) return;
    const Item& behind = items[index - kItemsAhead];
    const uint64_t end = begin_of(behind);
    if (end > 0) file_of(behind).drop_cache(0, end);
  }

  void will_need(const Item& item) const { file_of(item).will_need(begin_of(item), bytes_of(item)); }

  void pack(const Item& item, uint8_t* stage) {
    const MatrixSpec& spec = program.matrices[static_cast<size_t>(item.matrix)];
    const PackedMatrix& matrix = weights.matrices[static_cast<size_t>(item.matrix)];
    const size_t stride = row_bytes(spec.layout, spec.cols);
    const int32_t row_begin = item.tile_begin * kTileRows;
    const int32_t row_end = std::min(item.tile_end * kTileRows, spec.rows);
    const size_t count = static_cast<size_t>(row_end - row_begin) * stride;
    spec.read(row_begin, row_end - row_begin, stage);
    for (int32_t tile = item.tile_begin; tile < item.tile_end; ++tile) {
      const int32_t row = tile * kTileRows;
      kernels.pack_tile(spec.layout, stage + static_cast<size_t>(row - row_begin) * stride, stride,
                        std::min(kTileRows, row_end - row), spec.cols,
                        const_cast<uint8_t*>(matrix.data) + static_cast<size_t>(tile) * matrix.tile_bytes);
    }
    done_bytes.fetch_add(count, std::memory_order_relaxed);
  }

  void work(int32_t thread) {
    auto last = std::chrono::steady_clock::now();
    try {
      while (!is_stopped.load(std::memory_order_relaxed)) {
        const size_t index = next.fetch_add(1, std::memory_order_relaxed);
        if (index >= items.size()) break;
        if (drops_cache) keep_cache_small(index);
        pack(items[index], stages[static_cast<size_t>(thread)].data());
        if (thread != 0 || !progress) continue;
        const auto now = std::chrono::steady_clock::now();
        if (now - last < std::chrono::milliseconds(50)) continue;
        last = now;
        progress(done_bytes.load(std::memory_order_relaxed), total_bytes);
      }
    } catch (...) {
      is_stopped.store(true, std::memory_order_relaxed);
      throw;
    }
  }
};

size_t taps_floats(const MatrixSpec& spec) {
  return spec.is_widened ? static_cast<size_t>(spec.cols) * align_up(static_cast<size_t>(spec.rows), 16) : 0;
}

// Vectors, and the taps of convolutions, of which columns are used and therefore lie together.
void load_floats(const Program& program, Weights& weights) {
  size_t count = 0;
  for (const VectorSpec& spec : program.vectors) count += align_up(static_cast<size_t>(spec.length), 16);
  for (const MatrixSpec& spec : program.matrices) count += taps_floats(spec);
  weights.floats = Memory(count * sizeof(float));
  weights.bytes += count * sizeof(float);
  auto* values = reinterpret_cast<float*>(weights.floats.data());
  std::vector<uint8_t> stored;
  for (const VectorSpec& spec : program.vectors) {
    stored.resize(row_bytes(spec.layout, spec.length));
    spec.file->read(spec.offset, stored.data(), stored.size());
    dequantize_row(spec.layout, stored.data(), values, spec.length);
    if (spec.add != 0) {
      for (int32_t i = 0; i < spec.length; ++i) values[i] += spec.add;
    }
    weights.vectors.push_back(values);
    values += align_up(static_cast<size_t>(spec.length), 16);
  }
  std::vector<float> row;
  for (const MatrixSpec& spec : program.matrices) {
    weights.taps.push_back(spec.is_widened ? values : nullptr);
    if (!spec.is_widened) continue;
    const size_t stored_row = row_bytes(spec.layout, spec.cols), rows = static_cast<size_t>(spec.rows);
    stored.resize(stored_row * rows);
    spec.read(0, spec.rows, stored.data());
    row.resize(static_cast<size_t>(spec.cols));
    for (size_t i = 0; i < rows; ++i) {
      dequantize_row(spec.layout, stored.data() + i * stored_row, row.data(), spec.cols);
      for (size_t j = 0; j < row.size(); ++j) values[j * align_up(rows, 16) + i] = row[j];
    }
    values += taps_floats(spec);
  }
}

}  // namespace

uint64_t MatrixSpec::at(int32_t row) const {
  const int64_t from_first = int64_t{row / block_rows} * block_stride + row % block_rows;
  return offset + static_cast<uint64_t>(from_first) * row_bytes(layout, cols);
}

void MatrixSpec::read(int32_t begin, int32_t count, uint8_t* out) const {
  const size_t stride = row_bytes(layout, cols);
  for (int32_t row = begin; row < begin + count;) {
    const int32_t together = std::min(block_rows - row % block_rows, begin + count - row);
    file->read(at(row), out, static_cast<size_t>(together) * stride);
    out += static_cast<size_t>(together) * stride;
    row += together;
  }
}

void drop_file_cache(const Program& program) {
  const File* last = nullptr;  // neighbours mostly lie in one file
  for (const MatrixSpec& spec : program.matrices) {
    if (spec.file.get() != last) spec.file->drop_cache();
    last = spec.file.get();
  }
}

namespace {

// By matrix: whether it is packed into memory for good.
std::vector<bool> resident_matrices(const Program& program, bool streams_experts) {
  std::vector<bool> is_resident(program.matrices.size());
  for (size_t i = 0; i < is_resident.size(); ++i) is_resident[i] = program.matrices[i].is_packed && !streams_experts;
  if (!streams_experts) return is_resident;
  for (const Op& op : program.ops) {
    if (const auto* linear = std::get_if<LinearOp>(&op)) {
      for (const int32_t id : linear->weights) is_resident[static_cast<size_t>(id)] = true;
    } else if (const auto* head = std::get_if<HeadOp>(&op)) {
      is_resident[static_cast<size_t>(head->weight)] = true;
    }
  }
  return is_resident;
}

}  // namespace

Weights load_weights(const Program& program, const LinearKernels& kernels, Pool& pool, LoadOptions options,
                     const Executor::Progress& progress) {
  Weights weights;
  const std::vector<bool> is_resident = resident_matrices(program, options.streams_experts);
  if (options.drops_cache) {
    // Nothing is read ahead but what is asked for here, and single rows of the tables that stay in the file.
    for (const MatrixSpec& spec : program.matrices) spec.file->advise_random();
  }
  load_floats(program, weights);
  Load load{program, kernels, progress, weights, {}, {}, options.drops_cache};
  size_t tile_total = 0, stage_bytes = kStageBytes;
  for (size_t i = 0; i < program.matrices.size(); ++i) {
    const MatrixSpec& spec = program.matrices[i];
    PackedMatrix matrix{spec.layout, spec.rows, spec.cols, nullptr, 0};
    if (is_resident[i]) {
      matrix.tile_bytes = packed_tile_bytes(spec.layout, spec.cols);
      const size_t source = row_bytes(spec.layout, spec.cols) * kTileRows;
      stage_bytes = std::max(stage_bytes, source);
      const auto step = static_cast<int32_t>(std::max<size_t>(1, kStageBytes / source));
      for (int32_t tile = 0; tile < matrix.num_tiles(); tile += step) {
        load.items.push_back({static_cast<int32_t>(i), tile, std::min(tile + step, matrix.num_tiles())});
      }
      tile_total += matrix.tile_bytes * static_cast<size_t>(matrix.num_tiles());
      load.total_bytes += static_cast<uint64_t>(row_bytes(spec.layout, spec.cols)) * static_cast<uint64_t>(spec.rows);
      if (!options.drops_cache) spec.file->advise_sequential();
    }
    weights.matrices.push_back(matrix);
  }
  // Tiles lie in the order of the program, reads go in the order of the files.
  weights.tiles = Memory(tile_total);
  weights.bytes += tile_total;
  uint8_t* at = weights.tiles.data();
  for (PackedMatrix& matrix : weights.matrices) {
    if (matrix.tile_bytes == 0) continue;
    matrix.data = at;
    at += matrix.tile_bytes * static_cast<size_t>(matrix.num_tiles());
  }
  std::stable_sort(load.items.begin(), load.items.end(), [&program](const Item& a, const Item& b) {
    const MatrixSpec& x = program.matrices[static_cast<size_t>(a.matrix)];
    const MatrixSpec& y = program.matrices[static_cast<size_t>(b.matrix)];
    const int order = x.file->path().compare(y.file->path());
    if (order != 0) return order < 0;
    return x.offset != y.offset ? x.offset < y.offset : a.tile_begin < b.tile_begin;
  });
  for (int32_t i = 0; i < pool.size(); ++i) load.stages.emplace_back(stage_bytes);
  pool.run([](void* context, int32_t thread) { static_cast<Load*>(context)->work(thread); }, &load);
  if (options.drops_cache) drop_file_cache(program);
  if (progress) progress(load.done_bytes.load(), load.total_bytes);
  return weights;
}

}  // namespace kamado
