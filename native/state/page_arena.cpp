// Huge pages: only when a page of the arena is at least as big as one of the machine's (2 MiB). Pages are handed out
// from the lowest address up and lie side by side, so at most one huge page is touched early; a smaller arena page
// would let a short sequence pin far more than it uses.
#include "state/page_arena.h"

#include <cerrno>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "kamado/align.h"
#include "kamado/refuse.h"
#include "os/os_memory.h"

namespace kamado {
namespace {

// Free pages that stay resident for the next sequence; what is above goes back to the system.
constexpr size_t kKeepBytes = size_t{64} << 20;
constexpr size_t kKeepPages = 2;

[[noreturn]] void too_large() {
  refuse<std::length_error>("the key-value cache is larger than the address space");
}

}  // namespace

size_t checked_mul(size_t a, size_t b) {
  size_t product;
  if (__builtin_mul_overflow(a, b, &product)) too_large();
  return product;
}

size_t checked_add(size_t a, size_t b) {
  size_t sum;
  if (__builtin_add_overflow(a, b, &sum)) too_large();
  return sum;
}

PageArena::PageArena(size_t payload_bytes, int64_t max_pages) : payload_bytes_(payload_bytes) {
  if (max_pages < 0 || max_pages > std::numeric_limits<int32_t>::max()) {
    refuse("max_pages must be in [1, 2^31), got ", max_pages);
  }
  const size_t system_page = os::page_bytes();
  if (payload_bytes > std::numeric_limits<size_t>::max() - system_page) too_large();
  // Whole system pages, so that giving one page back never touches its neighbours.
  page_bytes_ = align_up(payload_bytes, system_page);
  const auto count = static_cast<size_t>(max_pages);
  (void)checked_add(checked_mul(page_bytes_, count), os::kHugePageBytes);  // refused before the lists are made
  keep_warm_ = page_bytes_ ? kKeepBytes / page_bytes_ : 0;
  if (keep_warm_ < kKeepPages) keep_warm_ = kKeepPages;
  references_.assign(count, 0);
  fresh_.reserve(count);
  warm_.reserve(count);
  for (auto page = static_cast<int32_t>(max_pages); page-- > 0;) fresh_.push_back(page);
  if (page_bytes_ > 0 && count > 0) map();
}

PageArena& PageArena::operator=(PageArena&& other) noexcept {
  std::swap(payload_bytes_, other.payload_bytes_);
  std::swap(page_bytes_, other.page_bytes_);
  std::swap(keep_warm_, other.keep_warm_);
  std::swap(base_, other.base_);
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_bytes_, other.mapping_bytes_);
  std::swap(num_shared_, other.num_shared_);
  references_.swap(other.references_);
  fresh_.swap(other.fresh_);
  warm_.swap(other.warm_);
  return *this;
}

PageArena::~PageArena() {
  if (mapping_ != nullptr) os::release(mapping_, mapping_bytes_);
}

void PageArena::map() {
  const size_t usable = page_bytes_ * references_.size();
  mapping_bytes_ = usable + os::kHugePageBytes;
  mapping_ = os::reserve(mapping_bytes_);
  if (mapping_ == nullptr) {
    refuse<std::runtime_error>("cannot reserve ", mapping_bytes_,
                               " bytes of address space for the key-value cache: ", std::strerror(errno));
  }
  base_ = reinterpret_cast<uint8_t*>(align_up(reinterpret_cast<size_t>(mapping_), os::kHugePageBytes));
  os::advise_huge_pages(base_, usable, page_bytes_ >= os::kHugePageBytes / 4);
  os::keep_out_of_dumps(base_, usable);  // they hold conversations
}

int32_t PageArena::take() {
  auto& from = warm_.empty() ? fresh_ : warm_;
  const int32_t page = from.back();
  from.pop_back();
  references_[static_cast<size_t>(page)] = 1;
  return page;
}

bool PageArena::drop(int32_t page) {
  const int32_t left = --references_[static_cast<size_t>(page)];
  if (left > 0) {
    num_shared_ -= left == 1;
    return false;
  }
  if (page_bytes_ == 0 || warm_.size() < keep_warm_ || !os::give_back(at(page), page_bytes_)) {
    warm_.push_back(page);
  } else {
    fresh_.push_back(page);
  }
  return true;
}

}  // namespace kamado
