#include <sys/mman.h>
#include <unistd.h>

#include <vector>

#include "os/os_memory.h"

namespace kamado::os {
namespace {

void* map(size_t bytes, int flags) {
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  return data == MAP_FAILED ? nullptr : data;
}

}  // namespace

size_t page_bytes() {
  static const auto bytes = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  return bytes;
}

void* reserve(size_t bytes) {
  return map(bytes, MAP_NORESERVE);
}

void* allocate(size_t bytes) {
  return map(bytes, 0);
}

void release(void* data, size_t bytes) {
  ::munmap(data, bytes);
}

// A kernel that was built without huge pages, or an old one, refuses such advice: nothing is lost.
void advise_huge_pages(void* data, size_t bytes, bool is_wanted) {
  (void)::madvise(data, bytes, is_wanted ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
}

void keep_out_of_dumps(void* data, size_t bytes) {
  (void)::madvise(data, bytes, MADV_DONTDUMP);
}

bool give_back(void* data, size_t bytes) {
  const uintptr_t page = page_bytes(), start = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (start + page - 1) / page * page, end = (start + bytes) / page * page;
  return begin >= end || ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED) == 0;
}

size_t resident_bytes(const void* data, size_t bytes) {
  const size_t page = page_bytes();
  std::vector<unsigned char> map((bytes + page - 1) / page);
  if (::mincore(const_cast<void*>(data), bytes, map.data()) != 0) return SIZE_MAX;
  size_t count = 0;
  for (const unsigned char is_there : map) count += is_there & 1;
  return count * page;
}

}  // namespace kamado::os
