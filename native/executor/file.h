// Reading files by explicit reads, and big anonymous memory.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "kamado/align.h"
#include "os/os_file.h"

namespace kamado {

// An open file, read-only. Reads are explicit (pread) and never through a mapping: a file that shrinks while it is used
// is an exception then, not a SIGBUS, and no source page ever counts as this process's memory.
class File {
 public:
  explicit File(const std::string& path);  // throws std::invalid_argument when it cannot be opened
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& path() const { return path_; }
  uint64_t size() const { return opened_.size; }  // when it was opened
  // Fills out[0, count) from `offset`; throws std::runtime_error when the file ends before or a read fails.
  void read(uint64_t offset, void* out, size_t count) const;
  void advise_sequential() const;
  void advise_random() const;                             // no read-ahead from now on
  void will_need(uint64_t offset, uint64_t count) const;  // begins to read into the page cache
  // Drops [offset, offset + count) from the page cache where nothing else keeps it; a count of 0: to the end.
  void drop_cache(uint64_t offset = 0, uint64_t count = 0) const;
  // Whether size and time of change are those of when it was opened.
  bool is_unchanged() const;
  int handle() const { return fd_; }  // for calls of os/os_file.h

 private:
  std::string path_;
  int fd_ = os::kNoFile;
  os::FileState opened_{};  // as it was when it was opened
};

// Zeroed anonymous memory on huge pages where the system grants them; pages come with the first touch.
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes);  // throws std::bad_alloc
  ~Memory();
  Memory(Memory&& other) noexcept;
  Memory& operator=(Memory&& other) noexcept;

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace kamado
