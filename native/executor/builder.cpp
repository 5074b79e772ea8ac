// ProgramBuilder: every id, shape and file range is checked here, so that the executor may trust the program.
#include <algorithm>
#include <cmath>
#include <limits>

#include "executor/file.h"
#include "executor/op_checks.h"
#include "kamado/bits.h"
#include "kamado/executor.h"
#include "kamado/op_rules.h"
#include "kamado/refuse.h"

namespace kamado {
namespace {

std::string text(int64_t value) {
  return std::to_string(value);
}

constexpr int64_t kMaxWidth = std::numeric_limits<int32_t>::max() / 4;  // row offsets in bytes fit an int32

// Bytes of rows * cols values; refuses what the layout, the file or arithmetic does not allow.
void check_range(const std::string& name, const File& file, uint64_t offset, int32_t layout, int64_t rows,
                 int64_t cols) {
  const LayoutInfo* info = layout_info(static_cast<Layout>(layout));
  if (info == nullptr) refuse(name, ": unknown layout ", layout);
  if (rows < 1 || cols < 1 || rows > kMaxWidth || cols > kMaxWidth) {
    refuse(name, ": shape ", rows, " x ", cols, " is out of range");
  }
  if (cols % info->block_values != 0) {
    refuse(name, ": ", cols, " columns are no whole number of ", info->name, " blocks of ", info->block_values);
  }
  uint64_t row = 0, bytes = 0, end = 0;
  if (__builtin_mul_overflow(static_cast<uint64_t>(cols / info->block_values), static_cast<uint64_t>(info->block_bytes),
                             &row) ||
      __builtin_mul_overflow(row, static_cast<uint64_t>(rows), &bytes) || __builtin_add_overflow(offset, bytes, &end) ||
      end > file.size()) {
    refuse(name, ": ", rows, " x ", cols, " ", info->name, " values at byte ", offset, " reach past the end of ",
           file.path(), " (", file.size(), " bytes)");
  }
}

// Refuses what the file or arithmetic does not allow of (before * step + last) items of `item_bytes` bytes.
void check_bytes(const std::string& name, const File& file, uint64_t offset, int64_t before, int64_t step, int64_t last,
                 size_t item_bytes) {
  uint64_t items = 0, bytes = 0, end = 0;
  if (__builtin_mul_overflow(static_cast<uint64_t>(before), static_cast<uint64_t>(step), &items) ||
      __builtin_add_overflow(items, static_cast<uint64_t>(last), &items) ||
      __builtin_mul_overflow(items, static_cast<uint64_t>(item_bytes), &bytes) ||
      __builtin_add_overflow(offset, bytes, &end) || end > file.size()) {
    refuse(name, ": what lies at byte ", offset, " reaches past the end of ", file.path(), " (", file.size(),
           " bytes)");
  }
}

}  // namespace

// The file, which has all of such a tensor.
std::shared_ptr<const File> ProgramBuilder::open(const std::string& name, const std::string& path, uint64_t offset,
                                                 int32_t layout, int64_t rows, int64_t cols) {
  std::shared_ptr<const File> opened = file(path);
  check_range(name, *opened, offset, layout, rows, cols);
  return opened;
}

std::shared_ptr<const File> ProgramBuilder::file(const std::string& path) {
  auto& opened = files_[path];
  if (opened == nullptr) opened = std::make_shared<const File>(path);
  return opened;
}

namespace {

// The id of what `make` gives, which is made once for each key.
template <class Spec, class Make>
int32_t once(std::map<std::string, int32_t>& ids, const std::string& key, std::vector<Spec>& list, Make make) {
  const auto known = ids.find(key);
  if (known != ids.end()) return known->second;
  list.push_back(make());
  return ids[key] = static_cast<int32_t>(list.size() - 1);
}

std::string range_key(const std::string& path, uint64_t offset, int32_t layout, int64_t rows, int64_t cols) {
  return path + '\0' + std::to_string(offset) + ' ' + text(layout) + ' ' + text(rows) + ' ' + text(cols);
}

}  // namespace

int32_t ProgramBuilder::matrix(const std::string& name, const std::string& path, uint64_t offset, int32_t layout,
                               int64_t rows, int64_t cols, const Place& place) {
  int64_t block_rows = place.block_rows, block_stride = place.block_stride;
  int64_t span = rows;  // from the first row to the last
  if (block_rows != 0 || block_stride != 0) {
    if (block_rows < 1 || block_stride < block_rows || rows > kMaxWidth || block_stride > kMaxWidth ||
        rows % block_rows != 0) {
      refuse(name, ": blocks of ", block_rows, " rows every ", block_stride, " do not make ", rows, " rows");
    }
    span = (rows / block_rows - 1) * block_stride + block_rows;
  }
  if (block_rows == 0 || (span == rows && !place.is_by_column)) block_rows = block_stride = rows;
  const std::string key = range_key(path, offset, layout, rows, cols) + ' ' + text(block_rows) + ' ' +
                          text(block_stride) + ' ' + text(place.is_by_column) + ' ' +
                          std::to_string(place.scales_offset) + place.scales_path;
  return once(matrix_ids_, key, program_.matrices, [&] {
    MatrixSpec spec{name,
                    nullptr,
                    offset,
                    static_cast<Layout>(layout),
                    static_cast<int32_t>(rows),
                    static_cast<int32_t>(cols),
                    static_cast<int32_t>(block_rows),
                    static_cast<int32_t>(block_stride)};
    if (!place.is_by_column && place.scales_path.empty()) {
      spec.file = open(name, path, offset, layout, span, cols);
      return spec;
    }
    if (rows < 1 || cols < 1 || rows > kMaxWidth || cols > kMaxWidth || span > kMaxWidth) {
      refuse(name, ": shape ", rows, " x ", cols, " is out of range");
    }
    if (block_rows > 1 && block_rows < rows) refuse(name, ": blocks of rows that do not lie one behind the other");
    spec.file = file(path);
    if (place.is_by_column) {
      const LayoutInfo* info = layout_info(spec.layout);
      if (info == nullptr || !info->is_float() || !place.scales_path.empty()) {
        refuse(name, ": only unquantised values can lie column after column");
      }
      spec.is_by_column = true;
      check_bytes(name, *spec.file, offset, cols - 1, rows / block_rows * block_stride, span, spec.item_bytes());
    } else {
      if (spec.layout != Layout::MXFP4 || cols % 32 != 0) refuse(name, ": no layout whose scales can lie apart");
      spec.scales_file = file(place.scales_path);
      spec.scales_offset = place.scales_offset;
      check_bytes(name, *spec.file, offset, 0, 0, span, spec.item_bytes());
      check_bytes(name, *spec.scales_file, place.scales_offset, 0, 0, span, spec.scale_row_bytes());
    }
    return spec;
  });
}

int32_t ProgramBuilder::vector(const std::string& name, const std::string& path, uint64_t offset, int32_t layout,
                               int64_t length, double add, int64_t step) {
  const auto added = static_cast<float>(add);
  if (length < 1 || length > kMaxWidth || step < 1 || step > kMaxWidth) {
    refuse(name, ": ", length, " values, every ", step, ", are out of range");
  }
  const int64_t span = (length - 1) * step + 1;
  const std::string key = range_key(path, offset, layout, step, length) + ' ' + text(int64_t{bit_cast<int32_t>(added)});
  return once(vector_ids_, key, program_.vectors, [&] {
    return VectorSpec{name,
                      open(name, path, offset, layout, 1, span),
                      offset,
                      static_cast<Layout>(layout),
                      static_cast<int32_t>(length),
                      added,
                      static_cast<int32_t>(step)};
  });
}

int32_t ProgramBuilder::constant(const double* values, size_t count) {
  if (count == 0 || count > static_cast<size_t>(kMaxWidth)) refuse("constant: ", count, " values");
  if (!std::all_of(values, values + count, [](double value) { return std::isfinite(value); })) {
    refuse("constant: not all values are finite");
  }
  program_.constants.emplace_back(values, values + count);
  return static_cast<int32_t>(program_.constants.size() - 1);
}

int32_t ProgramBuilder::buffer(const std::string& name, int64_t width) {
  if (width < 1 || width > kMaxWidth) refuse("buffer ", name, ": width ", width, " is out of range");
  program_.buffers.push_back({name, static_cast<int32_t>(width)});
  is_written_.push_back(false);
  return static_cast<int32_t>(program_.buffers.size() - 1);
}

void ProgramBuilder::append(Op op) {
  const auto is_last = [](const auto& concrete) { return concrete.kIsLast; };
  if (!program_.ops.empty() && std::visit(is_last, program_.ops.back())) {
    refuse("the head must be the last operation");
  }
  const auto check = [this]<class T>(const T& concrete) {
    if constexpr (std::is_same_v<T, PredictOp>) {
      refuse("predict: only the executor itself puts these in");
    } else {
      const OpRules rules(*this, T::kName);
      for_each_value(concrete, [&rules](auto field, const auto& value) { rules.check(field, value); });
      rules.check_overlap(concrete);
      check_rules(concrete, rules);
      if constexpr (std::is_same_v<T, EmbedOp>) rules.check_piece(concrete);
      if constexpr (std::is_same_v<T, ExpertsOp>) rules.expect_together(concrete);
      for_each_value(concrete, [&](auto field, const auto& value) {
        if constexpr (decltype(field)::role == Role::kKeeps) rules.check_state(concrete, value);
      });
    }
  };
  std::visit(check, op);
  accept(op);
  program_.ops.push_back(std::move(op));
}

// Takes note of what a sound operation does.
void ProgramBuilder::accept(const Op& op) {
  const auto note = [this, &op]<class T>(const T& concrete) {
    for_each_operand(concrete, [&](auto field, int32_t id) {
      constexpr Role role = decltype(field)::role;
      if constexpr (is_written(role)) {
        is_written_[static_cast<size_t>(id)] = true;
        routed_.erase(id);  // a routing result belongs to the logits it was made from
      } else if constexpr (role == Role::kMatrix) {
        program_.matrices[static_cast<size_t>(id)].is_packed = true;
      } else if constexpr (role == Role::kTaps) {
        program_.matrices[static_cast<size_t>(id)].is_widened = true;
      }
    });
    for_each_value(concrete, [&](auto field, const auto& value) {
      if constexpr (decltype(field)::role == Role::kKeeps) {
        if (writes_state(op)) is_state_written_[static_cast<size_t>(value)] = true;
      }
    });
    if constexpr (std::is_same_v<T, RouteOp>) routed_[concrete.logits] = concrete.num_experts;
  };
  std::visit(note, op);
}

namespace {

bool has_buffer(const Op& op, int32_t buffer, bool (*is_meant)(Role)) {
  bool found = false;
  const auto look = [&](auto field, int32_t id) {
    if constexpr (is_buffer(decltype(field)::role)) found = found || (id == buffer && is_meant(field.role));
  };
  std::visit([&look](const auto& concrete) { for_each_operand(concrete, look); }, op);
  return found;
}

}  // namespace

bool reads(const Op& op, int32_t buffer) {
  return has_buffer(op, buffer, is_read);
}

bool writes(const Op& op, int32_t buffer) {
  return has_buffer(op, buffer, is_written);
}

bool writes_state(const Op& op) {
  if (const auto* attend = std::get_if<AttendOp>(&op)) return attend->stores;
  return std::visit([](const auto& concrete) { return concrete.kIsRecurrent; }, op);
}

int32_t ProgramBuilder::state(const StateSpec& spec) {
  const std::string which = "state " + text(static_cast<int64_t>(program_.states.size())) + ": ";
  if (spec.kind == StateKind::kRecord) {
    if (spec.num_bytes < 1 || spec.num_bytes % int64_t{sizeof(float)} != 0 || spec.num_bytes > int64_t{1} << 40) {
      refuse(which, spec.num_bytes, " bytes are no record of float32");
    }
  } else {
    for (const int32_t size :
         {spec.num_kv_heads, spec.head_dim, spec.v_dim, spec.kind == StateKind::kPages ? 1 : spec.tokens})
      if (size < 1 || size > kMaxWidth) refuse(which, size, " is out of range");
  }
  program_.states.push_back(spec);
  is_state_written_.push_back(false);
  return static_cast<int32_t>(program_.states.size() - 1);
}

Program ProgramBuilder::finish() {
  const auto is_last = [](const auto& op) { return op.kIsLast; };
  if (program_.ops.empty() || !std::visit(is_last, program_.ops.back())) refuse("the program must end with a head");
  bool has_embed = false;
  for (const Op& op : program_.ops) {
    const auto* embed = std::get_if<EmbedOp>(&op);
    has_embed = has_embed || (embed != nullptr && embed->index == EmbedIndex::kToken);
  }
  if (!has_embed) refuse("the program has no embed");
  int32_t num_by_position = 0, num_sources = 0, num_records = 0;
  for (size_t i = 0; i < program_.states.size(); ++i) {
    StateSpec& spec = program_.states[i];
    const bool is_source = spec.kind == StateKind::kSource;
    if (!is_source && !is_state_written_[i]) refuse("no operation writes state ", i);
    spec.index = spec.kind == StateKind::kRecord ? num_records++ : is_source ? num_sources++ : num_by_position++;
  }
  for (StateSpec& spec : program_.states) spec.index += spec.kind == StateKind::kSource ? num_by_position : 0;
  Program program = std::move(program_);
  *this = ProgramBuilder();
  return program;
}

}  // namespace kamado
