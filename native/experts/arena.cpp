// Slots: memory in size classes, and which of them is given up.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "kamado/experts.h"
#include "os/os_memory.h"

namespace kamado {

DecayedLfu::DecayedLfu(int32_t num_slots, int32_t num_records, int32_t num_ids)
    : scores_(static_cast<size_t>(num_ids), -std::numeric_limits<double>::infinity()),
      records_(static_cast<size_t>(num_slots), -1),
      half_life_(kHalfLife * std::max(num_records, 1)) {}

void DecayedLfu::use(int32_t slot, int32_t record) {
  records_[static_cast<size_t>(slot)] = record;
  double& score = scores_[static_cast<size_t>(record)];
  const double time = static_cast<double>(++now_) / half_life_;
  score = time + std::log2(1 + std::exp2(score - time));  // the sum of both powers
}

void DecayedLfu::free(int32_t slot) {
  records_[static_cast<size_t>(slot)] = -1;
}

void DecayedLfu::move(int32_t from, int32_t to) {
  records_[static_cast<size_t>(to)] = std::exchange(records_[static_cast<size_t>(from)], -1);
}

int32_t DecayedLfu::victim(const std::vector<int32_t>& pins) const {
  int32_t worst = -1;
  double lowest = std::numeric_limits<double>::infinity();
  for (size_t slot = 0; slot < records_.size(); ++slot) {
    if (records_[slot] == -1 || pins[slot] > 0) continue;
    const double score = scores_[static_cast<size_t>(records_[slot])];
    if (score < lowest) {
      lowest = score;
      worst = static_cast<int32_t>(slot);
    }
  }
  return worst;
}

size_t least_slot_bytes(const std::vector<SlotClass>& classes) {
  size_t bytes = 0;
  for (const SlotClass& size : classes) bytes += size.slot_bytes * static_cast<size_t>(size.least);
  return bytes;
}

void share_slots(std::vector<SlotClass>& classes, size_t bytes) {
  size_t wanted = 0, left = bytes;
  for (const SlotClass& size : classes) wanted += size.slot_bytes * static_cast<size_t>(size.num_records);
  const double share = std::min(1.0, static_cast<double>(bytes) / static_cast<double>(std::max<size_t>(wanted, 1)));
  for (SlotClass& size : classes) {
    size.num_slots = size.least;
    left -= size.slot_bytes * static_cast<size_t>(size.num_slots);
  }
  for (SlotClass& size : classes) {
    const auto fair = static_cast<int32_t>(share * size.num_records);
    const auto fits = static_cast<int32_t>(std::min<size_t>(left / size.slot_bytes, 1 << 30));
    const int32_t more = std::clamp(fair - size.num_slots, 0, fits);
    size.num_slots += more;
    left -= size.slot_bytes * static_cast<size_t>(more);
  }
  // What rounding left goes to the class that got the smallest share.
  for (;;) {
    SlotClass* poorest = nullptr;
    for (SlotClass& size : classes) {
      if (size.slot_bytes > left || size.num_slots >= size.num_records) continue;
      if (poorest == nullptr ||
          int64_t{size.num_slots} * poorest->num_records < int64_t{poorest->num_slots} * size.num_records) {
        poorest = &size;
      }
    }
    if (poorest == nullptr) return;
    poorest->num_slots += 1;
    left -= poorest->slot_bytes;
  }
}

SlotArena::SlotArena(const std::vector<SlotClass>& classes, uint8_t* memory) {
  int32_t num_ids = 0;
  for (const SlotClass& size : classes) num_ids += size.num_records;
  for (size_t c = 0; c < classes.size(); ++c) {
    const int32_t count = classes[c].num_slots;
    Class& size = classes_.emplace_back();
    size.first = static_cast<int32_t>(slots_.size());
    size.count = count;
    size.bytes = classes[c].slot_bytes;
    size.pins.assign(static_cast<size_t>(count), 0);
    size.policy = std::make_unique<DecayedLfu>(count, classes[c].num_records, num_ids);
    for (int32_t i = 0; i < count; ++i) {
      slots_.push_back({memory, static_cast<int32_t>(c), i});
      memory += classes[c].slot_bytes;
      size.free.push_back(count - 1 - i);  // the lowest is taken first: untouched memory costs nothing
    }
  }
}

int32_t SlotArena::acquire(int32_t size_class, int32_t record, int32_t* evicted) {
  Class& size = classes_[static_cast<size_t>(size_class)];
  *evicted = -1;
  int32_t index = -1;
  if (!size.free.empty()) {
    index = size.free.back();
    size.free.pop_back();
  } else {
    index = size.policy->victim(size.pins);
    if (index == -1) return -1;
  }
  Slot& slot = slots_[static_cast<size_t>(size.first + index)];
  *evicted = slot.record;
  slot.record = record;
  size.policy->use(index, record);
  return size.first + index;
}

void SlotArena::free(int32_t id) {
  Slot& slot = slots_[static_cast<size_t>(id)];
  Class& size = classes_[static_cast<size_t>(slot.size_class)];
  slot.record = -1;
  size.pins[static_cast<size_t>(slot.index)] = 0;
  size.policy->free(slot.index);
  size.free.push_back(slot.index);
}

void SlotArena::use(int32_t id) {
  const Slot& slot = slots_[static_cast<size_t>(id)];
  classes_[static_cast<size_t>(slot.size_class)].policy->use(slot.index, slot.record);
}

void SlotArena::pin(int32_t id) {
  const Slot& slot = slots_[static_cast<size_t>(id)];
  ++classes_[static_cast<size_t>(slot.size_class)].pins[static_cast<size_t>(slot.index)];
}

void SlotArena::unpin(int32_t id) {
  const Slot& slot = slots_[static_cast<size_t>(id)];
  --classes_[static_cast<size_t>(slot.size_class)].pins[static_cast<size_t>(slot.index)];
}

bool SlotArena::is_pinned(int32_t id) const {
  const Slot& slot = slots_[static_cast<size_t>(id)];
  return classes_[static_cast<size_t>(slot.size_class)].pins[static_cast<size_t>(slot.index)] > 0;
}

void SlotArena::shrink(const std::vector<SlotClass>& classes, const std::function<void(int32_t, int32_t)>& moved) {
  for (size_t c = 0; c < classes_.size(); ++c) {
    Class& size = classes_[c];
    const int32_t before = size.count, after = classes[c].num_slots;
    if (after >= before) continue;
    const auto slot_of = [&](int32_t index) -> Slot& { return slots_[static_cast<size_t>(size.first + index)]; };
    int32_t num_used = 0;
    for (int32_t i = 0; i < before; ++i) num_used += slot_of(i).record != -1 ? 1 : 0;
    for (; num_used > after; --num_used) {
      const int32_t index = size.policy->victim(size.pins);
      if (index == -1) throw std::logic_error("slots are in use");
      moved(slot_of(index).record, -1);
      free(size.first + index);
    }
    size.count = after;
    std::erase_if(size.free, [after](int32_t index) { return index >= after; });
    for (int32_t i = after; i < before; ++i) {
      Slot& from = slot_of(i);
      if (from.record == -1) continue;
      const int32_t index = size.free.back();
      size.free.pop_back();
      Slot& to = slot_of(index);
      std::memcpy(to.data, from.data, size.bytes);
      to.record = std::exchange(from.record, -1);
      size.policy->move(i, index);
      moved(to.record, size.first + index);
    }
    // In one piece, so that huge pages go back whole.
    os::give_back(slot_of(after).data, static_cast<size_t>(before - after) * size.bytes);
  }
}

int32_t SlotArena::num_slots() const {
  int32_t count = 0;
  for (const Class& size : classes_) count += size.count;
  return count;
}

void SlotArena::swap_contents_for_test(int32_t a, int32_t b, size_t bytes) {
  std::swap_ranges(data(a), data(a) + bytes, data(b));
}

}  // namespace kamado
