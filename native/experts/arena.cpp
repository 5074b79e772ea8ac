// Slots: memory in size classes, least recently used first.
#include <algorithm>
#include <cstring>

#include "kamado/experts.h"

namespace kamado {

Lru::Lru(int32_t num_slots) : links_(static_cast<size_t>(num_slots)) {}

void Lru::use(int32_t slot) {
  free(slot);
  Link& link = links_[static_cast<size_t>(slot)];
  link = {newest_, -1, true};
  if (newest_ != -1) links_[static_cast<size_t>(newest_)].newer = slot;
  newest_ = slot;
  if (oldest_ == -1) oldest_ = slot;
}

void Lru::free(int32_t slot) {
  Link& link = links_[static_cast<size_t>(slot)];
  if (!link.is_in) return;
  (link.older == -1 ? oldest_ : links_[static_cast<size_t>(link.older)].newer) = link.newer;
  (link.newer == -1 ? newest_ : links_[static_cast<size_t>(link.newer)].older) = link.older;
  link = {};
}

int32_t Lru::victim(const std::vector<int32_t>& pins) const {
  int32_t slot = oldest_;
  while (slot != -1 && pins[static_cast<size_t>(slot)] > 0) slot = links_[static_cast<size_t>(slot)].newer;
  return slot;
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
  for (size_t c = 0; c < classes.size(); ++c) {
    const int32_t count = classes[c].num_slots;
    Class& size = classes_.emplace_back();
    size.first = num_slots();
    size.pins.assign(static_cast<size_t>(count), 0);
    size.policy = std::make_unique<Lru>(count);
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
  size.policy->use(index);
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
  classes_[static_cast<size_t>(slot.size_class)].policy->use(slot.index);
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

void SlotArena::swap_contents_for_test(int32_t a, int32_t b, size_t bytes) {
  std::swap_ranges(data(a), data(a) + bytes, data(b));
}

}  // namespace kamado
