// What the core asks of the operating system's memory: the only place of native/ that does. os_memory_linux.cpp is
// Linux. Another system needs one source with these functions (none is written or tried yet):
//   macOS    the same calls; no huge pages to ask for and no MADV_DONTDUMP (do nothing), give_back by
//            madvise(MADV_FREE_REUSABLE) over which fresh zeros are mapped; pages are 16 KiB on its arm64.
//   Windows  VirtualAlloc(MEM_RESERVE) commits nothing, so a touch must be foreseen: reserve, then commit by piece;
//            give_back is VirtualFree(MEM_DECOMMIT), release VirtualFree(MEM_RELEASE).
//   wasm     no addresses without memory: reserve is allocate, and give_back keeps everything.
#pragma once
#include <cstddef>
#include <cstdint>

namespace kamado::os {

// Bytes of a huge page: 2 MiB on x86-64 and on aarch64 with pages of 4 KiB. Elsewhere it is only an alignment.
constexpr size_t kHugePageBytes = size_t{2} << 20;

// Bytes of a page: 4096 on x86-64; 4096, 16384 or 65536 on aarch64.
size_t page_bytes();

// Addresses for `bytes` > 0 bytes that read as zeros; memory comes with the first touch and is not promised before, so
// this may be far more than the machine has. nullptr, and errno, when there are none. At a page's boundary.
void* reserve(size_t bytes);
// As reserve, but refused when the system would not promise so much memory.
void* allocate(size_t bytes);
// Ends what reserve or allocate gave, all of it.
void release(void* data, size_t bytes);

// Whether [data, data + bytes), from a page's boundary on, should come in huge pages: advice, which a system may
// ignore.
void advise_huge_pages(void* data, size_t bytes, bool is_wanted);
// Leaves the range out of core files: advice, too.
void keep_out_of_dumps(void* data, size_t bytes);
// Gives the whole pages of [data, data + bytes) back; they read as zeros when they are touched again. False when the
// system refused: then they are as they were.
bool give_back(void* data, size_t bytes);

// Of [data, data + bytes), from a page's boundary on, the bytes that are in memory; SIZE_MAX when the system does not
// tell. For tests.
size_t resident_bytes(const void* data, size_t bytes);

}  // namespace kamado::os
