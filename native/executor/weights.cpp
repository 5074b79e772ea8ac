#include "executor/weights.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <map>

#include "executor/stored.h"

namespace kamado {
namespace {

// A read goes to a buffer of this size and is packed from there while it is still in L2. On this kind of machine a
// mapped file costs more in page faults than the copy costs.
constexpr size_t kStageBytes = 256 << 10;
// When cached pages count: read ahead by this many items (2 MiB), and given back after as many. The system's own
// read-ahead may be 8 MiB a window and more.
constexpr size_t kItemsAhead = 8;

// Units [begin, end) of a matrix's run, which are those of another's too (-1: of none).
struct Item {
  int32_t matrix, twin, which, begin, end;
  const File* file;
  uint64_t offset;
};

// In blocks of several rows, which are put together when they are read.
bool is_scattered(const MatrixSpec& spec) {
  return spec.is_in_blocks() && spec.block_rows > 1;
}

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

  StoredRun run_of(const Item& item) const {
    return stored_run(program.matrices[static_cast<size_t>(item.matrix)], item.which, item.twin != -1);
  }

  uint64_t bytes_of(const Item& item) const {
    const MatrixSpec& spec = program.matrices[static_cast<size_t>(item.matrix)];
    if (!is_scattered(spec)) return run_of(item).bytes_of(item.begin, item.end);
    const int32_t last = std::min(item.end * kTileRows, spec.rows) - 1;
    return spec.at(last) + spec.item_bytes() - item.offset;
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
    if (behind.offset > 0) behind.file->drop_cache(0, behind.offset);
  }

  void will_need(const Item& item) const { item.file->will_need(item.offset, bytes_of(item)); }

  void pack(const Item& item, uint8_t* stage) {
    const MatrixSpec& spec = program.matrices[static_cast<size_t>(item.matrix)];
    const StoredRun run = run_of(item);
    const size_t count = run.bytes_of(item.begin, item.end);
    if (is_scattered(spec)) {
      spec.read(item.begin * kTileRows, std::min(item.end * kTileRows, spec.rows) - item.begin * kTileRows, stage);
    } else {
      item.file->read(item.offset, stage, count);
    }
    for (const int32_t matrix : {item.matrix, item.twin}) {
      if (matrix == -1) continue;
      const auto index = static_cast<size_t>(matrix);
      pack_units(kernels, program.matrices[index], run, item.which, item.begin, item.end,
                 stage + (matrix == item.twin ? run.item_bytes : 0),
                 const_cast<uint8_t*>(weights.matrices[index].data));
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
    const size_t span = static_cast<size_t>(spec.length - 1) * static_cast<size_t>(spec.step) + 1;
    stored.resize(row_bytes(spec.layout, static_cast<int64_t>(span)));
    spec.file->read(spec.offset, stored.data(), stored.size());
    const size_t value = stored.size() / span;
    for (int32_t i = 1; spec.step > 1 && i < spec.length; ++i) {
      const size_t from = static_cast<size_t>(i) * static_cast<size_t>(spec.step) * value;
      std::memmove(stored.data() + static_cast<size_t>(i) * value, stored.data() + from, value);
    }
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

size_t MatrixSpec::item_bytes() const {
  if (is_by_column) return row_bytes(layout, 1);
  return row_bytes(layout, cols) - (scales_file == nullptr ? 0 : scale_row_bytes());
}

uint64_t MatrixSpec::at(int32_t row) const {
  const int64_t from_first = int64_t{row / block_rows} * block_stride + row % block_rows;
  return offset + static_cast<uint64_t>(from_first) * item_bytes();
}

void MatrixSpec::read(int32_t begin, int32_t count, uint8_t* out) const {
  const size_t stride = item_bytes();
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
    for (const File* file : {spec.file.get(), spec.scales_file.get()}) {
      if (file == nullptr || file == last) continue;
      file->drop_cache();
      last = file;
    }
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

// By matrix: the other one that is read with it (stored.h), its own id when the other's reading serves it, -1 else.
std::vector<int32_t> find_twins(const Program& program, const std::vector<bool>& is_resident) {
  std::vector<int32_t> twins(program.matrices.size(), -1);
  std::map<std::pair<const File*, uint64_t>, size_t> alternating;
  for (size_t i = 0; i < twins.size(); ++i) {
    const MatrixSpec& spec = program.matrices[i];
    if (is_resident[i] && spec.is_in_blocks() && spec.block_rows == 1) alternating[{spec.file.get(), spec.offset}] = i;
  }
  for (const auto& [place, first] : alternating) {
    const auto second = alternating.find({place.first, place.second + program.matrices[first].item_bytes()});
    if (second == alternating.end() || !is_twin(program.matrices[first], program.matrices[second->second])) continue;
    twins[first] = static_cast<int32_t>(second->second);
    twins[second->second] = static_cast<int32_t>(second->second);
  }
  return twins;
}

}  // namespace

Weights load_weights(const Program& program, const LinearKernels& kernels, Pool& pool, LoadOptions options,
                     const Executor::Progress& progress) {
  Weights weights;
  const std::vector<bool> is_resident = resident_matrices(program, options.streams_experts);
  if (options.drops_cache) {
    // Nothing is read ahead but what is asked for here, and single rows of the tables that stay in the file.
    for (const MatrixSpec& spec : program.matrices) {
      spec.file->advise_random();
      if (spec.scales_file != nullptr) spec.scales_file->advise_random();
    }
  }
  load_floats(program, weights);
  Load load{program, kernels, progress, weights, {}, {}, options.drops_cache};
  const std::vector<int32_t> twins = find_twins(program, is_resident);
  size_t tile_total = 0, stage_bytes = kStageBytes;
  for (size_t i = 0; i < program.matrices.size(); ++i) {
    const MatrixSpec& spec = program.matrices[i];
    PackedMatrix matrix{spec.layout, spec.rows, spec.cols, nullptr, 0};
    if (is_resident[i]) {
      matrix.tile_bytes = packed_tile_bytes(spec.layout, spec.cols);
      tile_total += matrix.tile_bytes * static_cast<size_t>(matrix.num_tiles());
      const auto id = static_cast<int32_t>(i);
      const int32_t twin = twins.at(i);
      for (int32_t which = 0; twin != id && which < num_runs(spec); ++which) {
        const StoredRun run = stored_run(spec, which, twin != -1);
        stage_bytes = std::max(stage_bytes, run.unit_step);
        const auto step = static_cast<int32_t>(std::max<size_t>(1, kStageBytes / run.unit_step));
        for (int32_t unit = 0; unit < run.num_units; unit += step) {
          const uint64_t from = is_scattered(spec) ? spec.at(unit * kTileRows) : run.begin_of(unit);
          load.items.push_back({id, twin, which, unit, std::min(unit + step, run.num_units), run.file, from});
        }
        load.total_bytes += run.bytes();
        if (!options.drops_cache) run.file->advise_sequential();
      }
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
  std::stable_sort(load.items.begin(), load.items.end(), [](const Item& a, const Item& b) {
    const int order = a.file->path().compare(b.file->path());
    return order != 0 ? order < 0 : a.offset < b.offset;
  });
  for (int32_t i = 0; i < pool.size(); ++i) load.stages.emplace_back(stage_bytes);
  pool.run([](void* context, int32_t thread) { static_cast<Load*>(context)->work(thread); }, &load);
  if (options.drops_cache) drop_file_cache(program);
  if (progress) progress(load.done_bytes.load(), load.total_bytes);
  return weights;
}

}  // namespace kamado
