#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "os/os_file.h"

namespace kamado::os {

int open_file(const std::string& path) {
  return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
}

int reopen_file(int file, bool is_direct) {
  return ::open(("/proc/self/fd/" + std::to_string(file)).c_str(), O_RDONLY | O_CLOEXEC | (is_direct ? O_DIRECT : 0));
}

void close_file(int file) {
  ::close(file);
}

bool state_of_file(int file, FileState* out) {
  struct stat status{};
  if (::fstat(file, &status) != 0) return false;
  *out = {S_ISREG(status.st_mode), static_cast<uint64_t>(status.st_size), status.st_mtim.tv_sec,
          status.st_mtim.tv_nsec};
  return true;
}

int64_t read_file(int file, void* out, size_t count, uint64_t offset) {
  return ::pread(file, out, count, static_cast<off_t>(offset));
}

size_t direct_alignment(int file, size_t otherwise) {
#ifdef STATX_DIOALIGN  // Linux 6.1, and a C library that knows it
  struct statx status{};
  if (::statx(file, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 && (status.stx_mask & STATX_DIOALIGN) != 0) {
    return std::max<size_t>(status.stx_dio_offset_align, status.stx_dio_mem_align);
  }
#else
  (void)file;
#endif
  return otherwise;
}

void advise_file(int file, Access access, uint64_t offset, uint64_t count) {
  constexpr int kAdvice[] = {POSIX_FADV_SEQUENTIAL, POSIX_FADV_RANDOM, POSIX_FADV_WILLNEED, POSIX_FADV_DONTNEED};
  (void)::posix_fadvise(file, static_cast<off_t>(offset), static_cast<off_t>(count),
                        kAdvice[static_cast<size_t>(access)]);
}

}  // namespace kamado::os
