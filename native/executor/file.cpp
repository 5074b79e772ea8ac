#include "executor/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

namespace kamado {

File::File(const std::string& path) : path_(path) {
  fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a FIFO would wait for a writer
  if (fd_ < 0) throw std::invalid_argument(path + ": cannot open: " + std::strerror(errno));
  struct stat status{};
  if (::fstat(fd_, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(fd_);
    throw std::invalid_argument(path + ": not a regular file");
  }
  size_ = static_cast<uint64_t>(status.st_size);
  changed_[0] = status.st_mtim.tv_sec;
  changed_[1] = status.st_mtim.tv_nsec;
}

File::~File() {
  ::close(fd_);
}

void File::read(uint64_t offset, void* out, size_t count) const {
  auto* target = static_cast<uint8_t*>(out);
  while (count > 0) {
    const ssize_t got = ::pread(fd_, target, count, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw std::runtime_error(path_ + ": read failed: " + std::strerror(errno));
    if (got == 0) {
      throw std::runtime_error(path_ + ": ends at byte " + std::to_string(offset) + ", it had " +
                               std::to_string(size_) + " when it was opened: it was changed while in use");
    }
    target += got;
    offset += static_cast<uint64_t>(got);
    count -= static_cast<size_t>(got);
  }
}

void File::advise_sequential() const {
#ifdef POSIX_FADV_SEQUENTIAL
  ::posix_fadvise(fd_, 0, 0, POSIX_FADV_SEQUENTIAL);
#endif
}

void File::advise_random() const {
#ifdef POSIX_FADV_RANDOM
  ::posix_fadvise(fd_, 0, 0, POSIX_FADV_RANDOM);
#endif
}

void File::will_need(uint64_t offset, uint64_t count) const {
#ifdef POSIX_FADV_WILLNEED
  ::posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(count), POSIX_FADV_WILLNEED);
#else
  (void)offset;
  (void)count;
#endif
}

void File::drop_cache(uint64_t offset, uint64_t count) const {
#ifdef POSIX_FADV_DONTNEED
  ::posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(count), POSIX_FADV_DONTNEED);
#else
  (void)offset;
  (void)count;
#endif
}

bool File::is_unchanged() const {
  struct stat status{};
  return ::fstat(fd_, &status) == 0 && static_cast<uint64_t>(status.st_size) == size_ &&
         status.st_mtim.tv_sec == changed_[0] && status.st_mtim.tv_nsec == changed_[1];
}

int File::reopen(int flags) const {
  // By the path another file could lie there by now.
  return ::open(("/proc/self/fd/" + std::to_string(fd_)).c_str(), O_RDONLY | O_CLOEXEC | flags);
}

Memory::Memory(size_t bytes) {
  // Whole huge pages, so that the last one can be huge too; what is never touched costs nothing.
  constexpr size_t kHugePage = size_t{2} << 20;
  size_ = align_up(bytes > 0 ? bytes : 1, bytes >= kHugePage ? kHugePage : 4096);
  if (size_ < bytes) throw std::bad_alloc();
  void* data = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<uint8_t*>(data);
#ifdef MADV_HUGEPAGE
  if (size_ >= kHugePage) ::madvise(data_, size_, MADV_HUGEPAGE);
#endif
}

void give_back(uint8_t* data, size_t bytes) {
  constexpr uintptr_t kPage = 4096;
  const auto begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

Memory::~Memory() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

Memory::Memory(Memory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Memory& Memory::operator=(Memory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

}  // namespace kamado
