// One size class of KV pages: a reserved range of addresses, pages handed out from the lowest one up,
// reference-counted.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace kamado {

class PageArena {
 public:
  // payload_bytes: what a page holds; 0 makes pages that are only counted. Reserves addresses; the kernel gives memory
  // on first touch. Throws std::length_error past the address space, std::runtime_error when none can be had.
  PageArena(size_t payload_bytes, int64_t max_pages);
  ~PageArena();
  PageArena(PageArena&& other) noexcept { *this = std::move(other); }
  PageArena& operator=(PageArena&& other) noexcept;
  PageArena(const PageArena&) = delete;
  PageArena& operator=(const PageArena&) = delete;

  int32_t take();  // one reference; there must be a free page
  void share(int32_t page) { num_shared_ += ++references_[static_cast<size_t>(page)] == 2; }
  bool drop(int32_t page);  // true when that was the last reference
  int32_t references(int32_t page) const { return references_[static_cast<size_t>(page)]; }
  uint8_t* at(int32_t page) const { return base_ + static_cast<size_t>(page) * page_bytes_; }

  size_t payload_bytes() const { return payload_bytes_; }
  size_t page_bytes() const { return page_bytes_; }  // of memory: whole system pages
  int64_t max_pages() const { return static_cast<int64_t>(references_.size()); }
  int64_t num_free() const { return static_cast<int64_t>(fresh_.size() + warm_.size()); }
  int64_t num_used() const { return max_pages() - num_free(); }
  int64_t num_shared() const { return num_shared_; }
  size_t bytes_used() const { return static_cast<size_t>(num_used()) * page_bytes_; }

 private:
  void map();

  size_t payload_bytes_ = 0, page_bytes_ = 0, keep_warm_ = 0;
  uint8_t* base_ = nullptr;
  void* mapping_ = nullptr;
  size_t mapping_bytes_ = 0;
  int64_t num_shared_ = 0;  // pages with more than one reference
  std::vector<int32_t> references_;
  std::vector<int32_t> fresh_;  // free, never touched or given back; taken from the back: lowest address first
  std::vector<int32_t> warm_;   // free, still resident; finite values of earlier tokens
};

// Products and sums of sizes; std::length_error when they leave the address space.
size_t checked_mul(size_t a, size_t b);
size_t checked_add(size_t a, size_t b);

}  // namespace kamado
