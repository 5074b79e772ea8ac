#include "executor/file.h"

#include <cerrno>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

#include "kamado/refuse.h"
#include "os/os_memory.h"

namespace kamado {

File::File(const std::string& path) : path_(path), fd_(os::open_file(path)) {
  if (fd_ == os::kNoFile) refuse(path, ": cannot open: ", std::strerror(errno));
  if (!os::state_of_file(fd_, &opened_) || !opened_.is_regular) {
    os::close_file(fd_);
    refuse(path, ": not a regular file");
  }
}

File::~File() {
  os::close_file(fd_);
}

void File::read(uint64_t offset, void* out, size_t count) const {
  auto* target = static_cast<uint8_t*>(out);
  while (count > 0) {
    const int64_t got = os::read_file(fd_, target, count, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) refuse<std::runtime_error>(path_, ": read failed: ", std::strerror(errno));
    if (got == 0) {
      refuse<std::runtime_error>(path_, ": ends at byte ", offset, ", it had ", size(),
                                 " when it was opened: it was changed while in use");
    }
    target += got;
    offset += static_cast<uint64_t>(got);
    count -= static_cast<size_t>(got);
  }
}

void File::advise_sequential() const {
  os::advise_file(fd_, os::Access::kSequential);
}

void File::advise_random() const {
  os::advise_file(fd_, os::Access::kRandom);
}

void File::will_need(uint64_t offset, uint64_t count) const {
  os::advise_file(fd_, os::Access::kSoon, offset, count);
}

void File::drop_cache(uint64_t offset, uint64_t count) const {
  os::advise_file(fd_, os::Access::kNoMore, offset, count);
}

bool File::is_unchanged() const {
  os::FileState now{};
  return os::state_of_file(fd_, &now) && now == opened_;
}

Memory::Memory(size_t bytes) {
  // Whole huge pages, so that the last one can be huge too; what is never touched costs nothing.
  size_ = align_up(bytes > 0 ? bytes : 1, bytes >= os::kHugePageBytes ? os::kHugePageBytes : os::page_bytes());
  if (size_ < bytes) throw std::bad_alloc();
  data_ = static_cast<uint8_t*>(os::reserve(size_));
  if (data_ == nullptr) throw std::bad_alloc();
  if (size_ >= os::kHugePageBytes) os::advise_huge_pages(data_, size_, true);
}

Memory::~Memory() {
  if (data_ != nullptr) os::release(data_, size_);
}

Memory::Memory(Memory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Memory& Memory::operator=(Memory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

}  // namespace kamado
