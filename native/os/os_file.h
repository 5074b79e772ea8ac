// What the core asks of the operating system's files, all of them read-only: the only place of native/ that does.
// os_file_linux.cpp is Linux. Another system needs one source with these functions (none is written or tried yet):
//   macOS    st_mtimespec for the time of change; fcntl(F_NOCACHE) for direct reads; F_RDADVISE for kSoon, nothing for
//            the other advice; /dev/fd/N opened again keeps what the path may have lost, but shares the position, which
//            no read here uses.
//   Windows  HANDLEs behind an index; ReadFile with an OVERLAPPED offset; FILE_FLAG_NO_BUFFERING (reads aligned to the
//            sector), ReOpenFile; GetFileInformationByHandle; no advice. It has no ESTALE.
// A failed call leaves its reason in errno.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace kamado::os {

constexpr int kNoFile = -1;

// Opens a file to be read, never waiting (a FIFO would, for a writer), and not for programs that this process starts.
// kNoFile when it cannot be opened.
int open_file(const std::string& path);
// Another descriptor of the very same file, also when another one lies at its path by now. With is_direct its reads go
// past the page cache, in aligned pieces. kNoFile when that cannot be had.
int reopen_file(int file, bool is_direct);
void close_file(int file);

// What tells one state of a file from another.
struct FileState {
  bool is_regular;
  uint64_t size;                  // bytes
  int64_t changed_s, changed_ns;  // when its contents last changed
  bool operator==(const FileState&) const = default;
};
bool state_of_file(int file, FileState* out);

// Reads up to `count` bytes from byte `offset` on: the number read, which may be less (0: the file ends there), or -1.
int64_t read_file(int file, void* out, size_t count, uint64_t offset);
// What offsets, sizes and addresses of direct reads must be multiples of; 0: the file takes none; `otherwise` when the
// system does not tell.
size_t direct_alignment(int file, size_t otherwise);

// How [offset, offset + count) is going to be read (a count of 0: to the end). Advice, which a system may ignore.
enum class Access { kSequential, kRandom, kSoon, kNoMore };  // kSoon begins to read it, kNoMore drops it from the cache
void advise_file(int file, Access access, uint64_t offset = 0, uint64_t count = 0);

}  // namespace kamado::os
