// What an Experts operation needs, what is on its way, what may be given up.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>

#include "executor/file.h"
#include "executor/stored.h"
#include "kamado/experts.h"
#include "kamado/refuse.h"
#include "os/os_memory.h"

namespace kamado {
namespace {

using Clock = std::chrono::steady_clock;

// One request: large enough for a disk's full speed, small enough that packing starts while the rest is read.
constexpr size_t kRequestBytes = size_t{2} << 20;
// Stored bytes of one pack item.
constexpr size_t kPackItemBytes = size_t{64} << 10;
// Rows computed between two looks at what has arrived, while reads are under way.
constexpr int32_t kRowsWhileReading = 16;
constexpr auto kWait = std::chrono::milliseconds(10);  // between two looks at the cancel flag

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Memory comes in pages, huge ones when there is room for one.
size_t whole_pages(size_t bytes, bool rounds_up) {
  const size_t page = bytes >= os::kHugePageBytes ? os::kHugePageBytes : os::page_bytes();
  return rounds_up ? align_up(bytes, page) : bytes / page * page;
}

int32_t units_a_pack_item(const StoredRun& run) {
  return static_cast<int32_t>(std::max<size_t>(1, kPackItemBytes / run.unit_step));
}

}  // namespace

ExpertStream::ExpertStream(const Program& program, const LinearKernels& kernels, const Options& options)
    : program_(program), kernels_(kernels), verify_slots_(options.verify_slots) {
  std::map<size_t, int32_t> class_of;  // slot bytes -> size class
  std::map<const File*, int32_t> file_of;
  std::map<int32_t, int32_t> top_ks;  // logits buffer -> top_k
  std::vector<SlotClass>& classes = classes_;
  size_t largest_request = 0, most_requests = 0;
  int32_t most_experts = 0;
  for (const Op& op : program.ops) {
    if (const auto* route = std::get_if<RouteOp>(&op)) top_ks[route->logits] = route->top_k;
    const auto* experts = std::get_if<ExpertsOp>(&op);
    if (experts == nullptr) continue;
    const auto count = static_cast<int32_t>(experts->gate.size());
    const Layer layer{static_cast<int32_t>(records_.size()), count, top_ks.at(experts->logits)};
    most_experts = std::max(most_experts, count);
    for (int32_t e = 0; e < count; ++e) {
      Record& record = records_.emplace_back();
      record.layer = static_cast<int32_t>(layers_.size());
      record.expert = e;
      size_t slot_bytes = 0, in_file = 0, requests = 0;
      const std::vector<int32_t>* lists[3] = {&experts->gate, &experts->up, &experts->down};
      for (int p = 0; p < 3; ++p) record.ids[p] = (*lists[p])[static_cast<size_t>(e)];
      const bool has_twins = is_twin(spec_of(record, 0), spec_of(record, 1));
      for (int p = 0; p < 3; ++p) {
        const MatrixSpec& spec = spec_of(record, p);
        record.matrices[p] = {spec.layout, spec.rows, spec.cols, nullptr, packed_tile_bytes(spec.layout, spec.cols)};
        record.slot_offsets[p] = slot_bytes;
        slot_bytes += align_up(record.matrices[p].tile_bytes * static_cast<size_t>(record.matrices[p].num_tiles()));
        for (int32_t which = 0; !(p == 1 && has_twins) && which < num_runs(spec); ++which) {
          Run& run = record.runs[record.num_runs++];
          run = {p, which, p == 0 && has_twins, 0, 0};
          const StoredRun stored = this->stored(record, run);
          const auto known = file_of.try_emplace(stored.file, static_cast<int32_t>(files_.size()));
          if (known.second) files_.push_back(which == 0 ? spec.file : spec.scales_file);
          run.file = known.first->second;
          const auto at_most = static_cast<int32_t>(
              std::clamp<size_t>(kRequestBytes / stored.unit_step, 1, static_cast<size_t>(stored.num_units)));
          const int32_t pieces = (stored.num_units + at_most - 1) / at_most;
          run.units_per_request = (stored.num_units + pieces - 1) / pieces;
          in_file += stored.bytes();
          requests += static_cast<size_t>(pieces);
          largest_request = std::max(largest_request, stored.bytes_of(0, run.units_per_request));
        }
      }
      slot_bytes = align_up(slot_bytes, kSlotAlign);
      const auto known = class_of.try_emplace(slot_bytes, static_cast<int32_t>(classes.size()));
      if (known.second) classes.push_back({slot_bytes, 0, 0});
      record.size_class = known.first->second;
      SlotClass& size = classes[static_cast<size_t>(record.size_class)];
      ++size.num_records;
      size.least = std::max(size.least, layer.top_k);
      record_bytes_ = std::max(record_bytes_, in_file);
      most_requests = std::max(most_requests, requests);
    }
    layers_.push_back(layer);
  }
  if (layers_.empty()) refuse("expert_bytes is given, but the program has no experts");
  for (SlotClass& size : classes) size.least = std::min(size.least, size.num_records);

  int32_t most_picks = 0;
  for (const Layer& layer : layers_) most_picks = std::max(most_picks, layer.top_k);
  // As many buffers as help: all experts of a row, and some to read into meanwhile.
  buffer_bytes_ = Readers::buffer_bytes(largest_request);
  most_buffers_ = std::min<size_t>(static_cast<size_t>(most_picks) * most_requests, 24) +
                  static_cast<size_t>(std::max(options.num_readers, 1));
  least_slot_bytes_ = least_slot_bytes(classes);
  least_bytes_ = whole_pages(2 * buffer_bytes_ + least_slot_bytes_, true);
  const size_t bytes = whole_pages(options.bytes, false);
  if (bytes < least_bytes_) refuse_budget(options.bytes);
  const size_t num_buffers = choose_buffers(bytes), for_buffers = num_buffers * buffer_bytes_;
  share_slots(classes, bytes - for_buffers);
  for (const SlotClass& size : classes) slot_bytes_ += size.slot_bytes * static_cast<size_t>(size.num_slots);
  total_bytes_ = for_buffers + slot_bytes_;
  memory_ = std::make_unique<Memory>(total_bytes_);
  arena_ = std::make_unique<SlotArena>(classes, memory_->data() + for_buffers);

  queue_target_ = 4 * num_buffers;
  max_look_ahead_ = static_cast<int32_t>(num_buffers / most_requests);
  const size_t max_requests = queue_target_ + most_requests * (1 + static_cast<size_t>(max_look_ahead_));
  readers_ = std::make_unique<Readers>(
      files_, options.num_readers, options.direct_io,
      Readers::Buffers{memory_->data(), buffer_bytes_, static_cast<int32_t>(num_buffers)}, max_requests, options.read);
  ledger_.resize(layers_.size());
  needs_.resize(static_cast<size_t>(most_experts));
  computed_.resize(static_cast<size_t>(most_experts));
  batch_.experts.reserve(static_cast<size_t>(most_experts));
  batch_.pieces.reserve(num_buffers);
  batch_.items_end.reserve(num_buffers);
  items_left_ = std::make_unique<std::atomic<int32_t>[]>(num_buffers);
  ahead_.reserve(static_cast<size_t>(std::max(max_look_ahead_, 1)));
  kept_.reserve(static_cast<size_t>(most_picks));
}

void ExpertStream::refuse_budget(size_t bytes) const {
  refuse("expert_bytes = ", bytes, " is too little: the experts of one operation and their read buffers take ",
         least_bytes_);
}

// A sixteenth of the budget, as long as more help.
size_t ExpertStream::choose_buffers(size_t bytes) const {
  return std::clamp(std::min(bytes / 16, bytes - least_slot_bytes_) / buffer_bytes_, size_t{2}, most_buffers_);
}

ExpertStream::~ExpertStream() {
  // After fork() the reader threads do not exist here, and what they waited on cannot be taken down.
  if (readers_ != nullptr && !readers_->is_of_this_process()) (void)readers_.release();
}

const MatrixSpec& ExpertStream::spec_of(const Record& record, int32_t part) const {
  return program_.matrices[static_cast<size_t>(record.ids[part])];
}

StoredRun ExpertStream::stored(const Record& record, const Run& run) const {
  return stored_run(spec_of(record, run.part), run.which, run.feeds_next);
}

// Takes a slot and requests the record; false when all slots of its class are pinned.
bool ExpertStream::start(Record& record, bool is_urgent) {
  const auto id = static_cast<int32_t>(&record - records_.data());
  int32_t evicted = -1;
  const int32_t slot = arena_->acquire(record.size_class, id, &evicted);
  if (slot == -1) return false;
  if (evicted != -1) records_[static_cast<size_t>(evicted)].slot = -1;
  arena_->pin(slot);
  record.slot = slot;
  record.ticket = ++next_ticket_;
  record.requests_left = 0;
  for (int p = 0; p < 3; ++p) record.matrices[p].data = arena_->data(slot) + record.slot_offsets[p];
  for (int32_t i = 0; i < record.num_runs; ++i) {
    const Run& run = record.runs[i];
    const StoredRun stored = this->stored(record, run);
    for (int32_t unit = 0; unit < stored.num_units; unit += run.units_per_request) {
      const int32_t end = std::min(unit + run.units_per_request, stored.num_units);
      readers_->submit({run.file, stored.begin_of(unit), stored.bytes_of(unit, end), id, i, unit, end, record.ticket},
                       is_urgent);
      ++record.requests_left;
    }
  }
  return true;
}

// Forgets a record whose reads are not complete. A read that has begun, or has ended and was not looked at, comes in
// with another ticket than the record's.
void ExpertStream::drop(Record& record) {
  readers_->forget(static_cast<int32_t>(&record - records_.data()));
  arena_->free(record.slot);
  record.slot = -1;
  record.requests_left = 0;
  record.ticket = 0;
}

void ExpertStream::begin(int32_t layer, const int32_t* expert_begin) {
  begun_ = Clock::now();
  waited_ = 0;
  layer_ = static_cast<size_t>(layer);
  expert_begin_ = expert_begin;
  pump_at_ = num_expected_ = 0;
  wave_begin_ = wave_end_ = 0;
  LayerLedger& ledger = ledger_[layer_];
  const int32_t count = layers_[layer_].num_experts;
  const auto is_needed = [&](int32_t e) { return expert_begin[e] < expert_begin[e + 1]; };
  for (const int32_t id : kept_) arena_->unpin(records_[static_cast<size_t>(id)].slot);
  kept_.clear();
  for (const int32_t id : ahead_) {
    Record& record = records_[static_cast<size_t>(id)];
    const bool is_right = record.layer == layer && is_needed(record.expert);
    LayerLedger& owner = ledger_[static_cast<size_t>(record.layer)];
    ++(is_right ? owner.lookahead_hits : owner.lookahead_wrong);
    if (is_right) {
      readers_->hurry(id);
    } else {
      drop(record);
    }
  }
  ahead_.clear();
  for (int32_t e = 0; e < count; ++e) {
    Need& need = needs_[static_cast<size_t>(e)];
    need = Need::kNone;
    if (!is_needed(e)) continue;
    computed_[static_cast<size_t>(e)] = expert_begin[e];
    Record& record = record_of(e);
    if (record.slot == -1) {
      need = Need::kMissing;
    } else {
      arena_->use(record.slot);
      if (record.requests_left > 0) {  // read ahead
        need = Need::kReading;
        ++num_expected_;
        continue;
      }
      need = Need::kReady;
      arena_->pin(record.slot);
    }
    ++(need == Need::kReady ? ledger.hits : ledger.misses);
  }
  pump();
}

void ExpertStream::begin_wave(int32_t begin, int32_t end) {
  wave_begin_ = begin;
  wave_end_ = end;
  wave_left_ = 0;
  for (int32_t e = 0; e < layers_[layer_].num_experts; ++e) {
    if (std::max(expert_begin_[e], begin) < std::min(expert_begin_[e + 1], end)) ++wave_left_;
  }
}

// Requests what is missing, in ascending order, as far as slots and the queue allow.
void ExpertStream::pump() {
  for (; pump_at_ < layers_[layer_].num_experts; ++pump_at_) {
    Need& need = needs_[static_cast<size_t>(pump_at_)];
    if (need != Need::kMissing) continue;
    if (readers_->num_queued() >= queue_target_) return;
    Record& record = record_of(pump_at_);
    while (!start(record, true)) {
      if (!give_up_later_hit(pump_at_)) return;
    }
    need = Need::kReading;
    ++num_expected_;
  }
}

// Experts of later waves that were there already would hold the slots that this wave waits for: the last one is read
// again when its turn comes. What this wave holds is computed and given up by itself.
bool ExpertStream::give_up_later_hit(int32_t expert) {
  for (int32_t e = layers_[layer_].num_experts - 1; e > expert; --e) {
    if (needs_[static_cast<size_t>(e)] != Need::kReady || expert_begin_[e] < wave_end_) continue;
    const Record& record = record_of(e);
    if (record.size_class != record_of(expert).size_class) continue;
    arena_->unpin(record.slot);
    needs_[static_cast<size_t>(e)] = Need::kMissing;
    --ledger_[layer_].hits;
    ++ledger_[layer_].misses;
    return true;
  }
  return false;
}

// Takes what has arrived into the batch.
bool ExpertStream::collect() {
  ReadArrival arrival;
  const size_t most = batch_.pieces.capacity();
  while (batch_.pieces.size() < most && readers_->take(&arrival, 1) == 1) {
    Record& record = records_[static_cast<size_t>(arrival.request.record)];
    LayerLedger& ledger = ledger_[static_cast<size_t>(record.layer)];
    ++ledger.requests;
    ledger.read_seconds += arrival.seconds;
    if (arrival.error == 0) ledger.bytes_read += static_cast<int64_t>(arrival.request.bytes);
    if (record.ticket != arrival.request.ticket) {
      readers_->release(arrival.buffer);
      continue;
    }
    if (arrival.error != 0) {
      readers_->release(arrival.buffer);
      fail(arrival);
    }
    const int32_t step = units_a_pack_item(stored(record, record.runs[arrival.request.run]));
    const int32_t items = (arrival.request.unit_end - arrival.request.unit_begin + step - 1) / step;
    items_left_[batch_.pieces.size()].store(items, std::memory_order_relaxed);
    batch_.num_pack_items += items;
    batch_.pieces.push_back(arrival);
    batch_.items_end.push_back(batch_.num_pack_items);
  }
  return !batch_.pieces.empty();
}

// Puts experts of the wave that are complete into the batch.
void ExpertStream::choose() {
  const bool is_reading = num_expected_ > 0 || pump_at_ < layers_[layer_].num_experts;
  int32_t rows = 0;
  for (int32_t e = 0; e < layers_[layer_].num_experts; ++e) {
    if (needs_[static_cast<size_t>(e)] != Need::kReady) continue;
    const int32_t end = std::min(expert_begin_[e + 1], wave_end_);
    const int32_t begin = std::max(expert_begin_[e], wave_begin_);
    if (begin >= end || computed_[static_cast<size_t>(e)] >= end) continue;
    if (verify_slots_) verify(record_of(e));
    batch_.experts.push_back(e);
    rows += end - begin;
    if (is_reading && rows >= kRowsWhileReading) break;
  }
}

const ExpertStream::Batch& ExpertStream::next(const std::function<void()>& check) {
  for (;;) {
    collect();
    pump();
    choose();
    if (!batch_.pieces.empty() || !batch_.experts.empty()) break;
    const Clock::time_point begin = Clock::now();
    check();
    readers_->wait(kWait);
    waited_ += seconds_since(begin);
  }
  batch_.is_last = static_cast<int32_t>(batch_.experts.size()) == wave_left_;
  return batch_;
}

void ExpertStream::end_batch() {
  for (const int32_t e : batch_.experts) {
    computed_[static_cast<size_t>(e)] = std::min(expert_begin_[e + 1], wave_end_);
    if (computed_[static_cast<size_t>(e)] < expert_begin_[e + 1]) continue;  // goes on in the next wave
    needs_[static_cast<size_t>(e)] = Need::kDone;
    arena_->unpin(record_of(e).slot);
  }
  wave_left_ -= static_cast<int32_t>(batch_.experts.size());
  for (const ReadArrival& piece : batch_.pieces) {
    Record& record = records_[static_cast<size_t>(piece.request.record)];
    if (--record.requests_left > 0) continue;
    needs_[static_cast<size_t>(record.expert)] = Need::kReady;
    --num_expected_;
  }
  batch_.experts.clear();
  batch_.pieces.clear();
  batch_.items_end.clear();
  batch_.num_pack_items = 0;
}

void ExpertStream::end() {
  LayerLedger& ledger = ledger_[layer_];
  ledger.wait_seconds += waited_;
  ledger.compute_seconds += seconds_since(begun_) - waited_;
}

void ExpertStream::pack(int32_t item) {
  size_t piece = 0;
  while (batch_.items_end[piece] <= item) ++piece;
  if (piece > 0) item -= batch_.items_end[piece - 1];
  const ReadArrival& arrival = batch_.pieces[piece];
  const ReadRequest& request = arrival.request;
  const Record& record = records_[static_cast<size_t>(request.record)];
  const Run& run = record.runs[request.run];
  const StoredRun stored = this->stored(record, run);
  const int32_t step = units_a_pack_item(stored);
  const int32_t begin = request.unit_begin + item * step, end = std::min(begin + step, request.unit_end);
  const uint8_t* data = arrival.data + static_cast<size_t>(begin - request.unit_begin) * stored.unit_step;
  for (int32_t twin = 0; twin <= (run.feeds_next ? 1 : 0); ++twin) {
    const int32_t part = run.part + twin;
    pack_units(kernels_, spec_of(record, part), stored, run.which, begin, end,
               data + static_cast<size_t>(twin) * stored.item_bytes, const_cast<uint8_t*>(record.matrices[part].data));
  }
  // The piece's last item gives the buffer back.
  if (items_left_[piece].fetch_sub(1, std::memory_order_acq_rel) == 1) readers_->release(arrival.buffer);
}

void ExpertStream::look_ahead(int32_t layer, const int32_t* experts, int32_t count) {
  const int32_t first = layers_[static_cast<size_t>(layer)].first;
  // What is there already must not be given up for the others that the same row wants. Without this a token read 1.03
  // to 1.05 times what the replacement policy alone reads (measured when it was LRU).
  for (int32_t i = 0; i < count; ++i) {
    const Record& record = records_[static_cast<size_t>(first + experts[i])];
    if (record.slot == -1) continue;
    arena_->pin(record.slot);
    kept_.push_back(first + experts[i]);
  }
  for (int32_t i = 0; i < count && static_cast<int32_t>(ahead_.size()) < max_look_ahead_; ++i) {
    Record& record = records_[static_cast<size_t>(first + experts[i])];
    if (record.slot != -1) continue;
    if (!start(record, false)) return;
    ahead_.push_back(first + experts[i]);
  }
}

void ExpertStream::abandon() {
  for (size_t i = 0; i < batch_.pieces.size(); ++i) {
    if (items_left_[i].load(std::memory_order_relaxed) > 0) readers_->release(batch_.pieces[i].buffer);
  }
  batch_.experts.clear();
  batch_.pieces.clear();
  batch_.items_end.clear();
  batch_.num_pack_items = 0;
  ahead_.clear();
  kept_.clear();
  for (Record& record : records_) {
    if (record.slot == -1) continue;
    if (record.requests_left > 0) {
      drop(record);
    } else {
      while (arena_->is_pinned(record.slot)) arena_->unpin(record.slot);
    }
  }
}

void ExpertStream::shrink(size_t bytes) {
  bytes = whole_pages(bytes, false);
  if (bytes >= total_bytes_) return;
  if (bytes < least_bytes_) refuse_budget(bytes);
  ReadArrival arrival;  // what an abandoned step left
  while (readers_->take(&arrival, 1) == 1) readers_->release(arrival.buffer);
  const size_t num_buffers = choose_buffers(bytes);
  readers_->keep_buffers(static_cast<int32_t>(num_buffers));
  share_slots(classes_, bytes - num_buffers * buffer_bytes_);
  arena_->shrink(classes_, [this](int32_t id, int32_t slot) {
    Record& record = records_[static_cast<size_t>(id)];
    record.slot = slot;
    if (slot == -1) return;
    for (int p = 0; p < 3; ++p) record.matrices[p].data = arena_->data(slot) + record.slot_offsets[p];
  });
  slot_bytes_ = 0;
  for (const SlotClass& size : classes_) slot_bytes_ += size.slot_bytes * static_cast<size_t>(size.num_slots);
  total_bytes_ = num_buffers * buffer_bytes_ + slot_bytes_;
}

// Reads the record again and packs it anew; the executor's thread does it, since this is no way to run fast.
void ExpertStream::verify(const Record& record) {
  std::vector<uint8_t> stored, tiles;
  for (int p = 0; p < 3; ++p) {
    const MatrixSpec& spec = spec_of(record, p);
    const PackedMatrix& matrix = record.matrices[p];
    tiles.assign(matrix.tile_bytes * static_cast<size_t>(matrix.num_tiles()), 0);
    for (int32_t which = 0; which < num_runs(spec); ++which) {
      const StoredRun run = stored_run(spec, which);
      for (int32_t unit = 0; unit < run.num_units; ++unit) {
        stored.resize(run.bytes_of(unit, unit + 1));
        run.file->read(run.begin_of(unit), stored.data(), stored.size());
        pack_units(kernels_, spec, run, which, unit, unit + 1, stored.data(), tiles.data());
      }
    }
    if (std::memcmp(matrix.data, tiles.data(), tiles.size()) != 0) {
      const std::string& path = spec.file->path();
      throw ReadError(
          EBADMSG, path,
          joined(path, ": the slot of ", name_of(record), " does not hold what the file has at byte ", spec.offset));
    }
  }
}

std::string ExpertStream::name_of(const Record& record) const {
  return joined("expert ", record.expert, " of MoE layer ", record.layer, " (", spec_of(record, 0).name, ")");
}

void ExpertStream::fail(const ReadArrival& arrival) const {
  const ReadRequest& request = arrival.request;
  const Record& record = records_[static_cast<size_t>(request.record)];
  const std::string& path = files_[static_cast<size_t>(request.file)]->path();
  const std::string why = arrival.error == ESTALE ? "was changed while it is in use; it must be loaded again"
                          : arrival.error == EIO  ? "cannot be read, or ends too early"
                                                  : std::strerror(arrival.error);
  throw ReadError(
      arrival.error, path,
      joined(path, ": ", why, " (at byte ", request.offset, ", ", request.bytes, " bytes of ", name_of(record), ")"));
}

void ExpertStream::swap_slots_for_test(int32_t layer, int32_t a, int32_t b) {
  const int32_t first = layers_.at(static_cast<size_t>(layer)).first;
  const Record& x = records_.at(static_cast<size_t>(first + a));
  const Record& y = records_.at(static_cast<size_t>(first + b));
  if (x.slot == -1 || y.slot == -1 || x.size_class != y.size_class) {
    refuse("experts ", a, " and ", b, " are not both in slots");
  }
  size_t bytes = 0;
  for (int p = 0; p < 3; ++p) {
    bytes = x.slot_offsets[p] + x.matrices[p].tile_bytes * static_cast<size_t>(x.matrices[p].num_tiles());
  }
  arena_->swap_contents_for_test(x.slot, y.slot, bytes);
}

}  // namespace kamado
