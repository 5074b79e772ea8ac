// The paged KV cache of kv.h. One arena of address space holds max_pages pages of all layers; the kernel gives memory
// on first touch. A page is [layer][head]{K [k_dim][128], V [128][v_dim]}, each block on its own cache line.
//
// Huge pages: only when a page of the cache is at least as big as one of the machine's (2 MiB). Pages are handed out
// from the lowest address up and lie side by side, so at most one huge page is touched early; a smaller cache page
// would let a short sequence pin far more than it uses.
#include "kamado/kv.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

namespace kamado {
namespace {

constexpr size_t kCacheLine = 64;
constexpr size_t kHugePage = size_t{2} << 20;
// Free pages that stay resident for the next sequence; what is above goes back to the system.
constexpr size_t kKeepBytes = size_t{64} << 20;
constexpr size_t kKeepPages = 2;

size_t round_up(size_t n, size_t unit) {
  return (n + unit - 1) / unit * unit;
}

size_t checked_mul(size_t a, size_t b) {
  size_t product;
  if (__builtin_mul_overflow(a, b, &product))
    throw std::length_error("the key-value cache is larger than the address space");
  return product;
}

int64_t pages_for(int64_t num_tokens) {
  return (num_tokens + kPageTokens - 1) / kPageTokens;
}

struct Block {  // where a layer's heads lie within a page
  size_t offset;
  size_t k_bytes;
  size_t head_bytes;  // K and V of one head
};

struct Sequence {
  bool live = false;
  int64_t length = 0;
  std::vector<int32_t> pages;
};

}  // namespace

struct KvCache::Impl {
  std::vector<KvLayerShape> shapes;
  std::vector<Block> blocks;
  KvType type;
  size_t element_bytes;
  size_t page_bytes = 0;
  int32_t max_pages;

  uint8_t* arena = nullptr;
  void* mapping = nullptr;
  size_t mapping_bytes = 0;

  std::vector<int32_t> references;  // by page
  std::vector<int32_t> fresh;       // free, never touched or given back; taken from the back: lowest address first
  std::vector<int32_t> warm;        // free, still resident; finite values of earlier tokens
  size_t keep_warm;
  std::vector<Sequence> sequences;

  Impl(std::vector<KvLayerShape> layers, KvType kv_type, int64_t pages, int32_t max_sequences)
      : shapes(std::move(layers)), type(kv_type), element_bytes(kv_type == KvType::kF16 ? 2 : 4) {
    if (type != KvType::kF16 && type != KvType::kF32) throw std::invalid_argument("unknown key-value type");
    if (pages < 1 || pages > std::numeric_limits<int32_t>::max()) {
      throw std::invalid_argument("max_pages must be in [1, 2^31), got " + std::to_string(pages));
    }
    if (max_sequences < 1)
      throw std::invalid_argument("max_sequences must be at least 1, got " + std::to_string(max_sequences));
    max_pages = static_cast<int32_t>(pages);
    for (const auto& shape : shapes) {
      if (shape.num_kv_heads < 0 || shape.k_dim < 1 || shape.v_dim < 1) {
        throw std::invalid_argument("a key-value layer needs positive dimensions");
      }
      const size_t row = checked_mul(kPageTokens, element_bytes);
      Block block{page_bytes, round_up(checked_mul(row, static_cast<size_t>(shape.k_dim)), kCacheLine), 0};
      block.head_bytes = block.k_bytes + round_up(checked_mul(row, static_cast<size_t>(shape.v_dim)), kCacheLine);
      if (__builtin_add_overflow(page_bytes, checked_mul(block.head_bytes, static_cast<size_t>(shape.num_kv_heads)),
                                 &page_bytes)) {
        throw std::length_error("the key-value cache is larger than the address space");
      }
      blocks.push_back(block);
    }
    // Whole system pages, so that giving one page back never touches its neighbours.
    page_bytes = round_up(page_bytes, static_cast<size_t>(sysconf(_SC_PAGESIZE)));
    references.assign(static_cast<size_t>(max_pages), 0);
    fresh.reserve(static_cast<size_t>(max_pages));
    for (int32_t page = max_pages; page-- > 0;) fresh.push_back(page);
    warm.reserve(static_cast<size_t>(max_pages));
    sequences.resize(static_cast<size_t>(max_sequences));
    keep_warm = page_bytes ? kKeepBytes / page_bytes : 0;
    if (keep_warm < kKeepPages) keep_warm = kKeepPages;
    if (page_bytes) map();
  }

  ~Impl() {
    if (mapping) munmap(mapping, mapping_bytes);
  }

  void map() {
    const bool huge = page_bytes >= kHugePage;
    mapping_bytes = checked_mul(page_bytes, static_cast<size_t>(max_pages));
    if (__builtin_add_overflow(mapping_bytes, kHugePage, &mapping_bytes))
      throw std::length_error("the key-value cache is larger than the address space");
    mapping = mmap(nullptr, mapping_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) {
      mapping = nullptr;
      throw std::runtime_error("cannot reserve " + std::to_string(mapping_bytes) +
                               " bytes of address space for the key-value cache: " + std::strerror(errno));
    }
    arena = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<size_t>(mapping), kHugePage));
    const size_t usable = page_bytes * static_cast<size_t>(max_pages);
    (void)madvise(arena, usable, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);  // advice: an old kernel may refuse it
    (void)madvise(arena, usable, MADV_DONTDUMP);                           // conversations stay out of core files
  }

  Sequence& live(int32_t seq) {
    if (seq < 0 || static_cast<size_t>(seq) >= sequences.size() || !sequences[static_cast<size_t>(seq)].live) {
      throw std::out_of_range("sequence " + std::to_string(seq) + " is not live");
    }
    return sequences[static_cast<size_t>(seq)];
  }

  int64_t free_pages() const { return static_cast<int64_t>(fresh.size() + warm.size()); }

  void require_free(int64_t needed) const {
    if (needed > free_pages()) {
      throw std::length_error("the key-value cache is full: " + std::to_string(needed) + " pages of " +
                              std::to_string(kPageTokens) + " tokens needed, " + std::to_string(free_pages()) + " of " +
                              std::to_string(max_pages) + " free");
    }
  }

  int32_t take() {
    auto& from = warm.empty() ? fresh : warm;
    const int32_t page = from.back();
    from.pop_back();
    references[static_cast<size_t>(page)] = 1;
    return page;
  }

  uint8_t* address(int32_t page) const { return arena + static_cast<size_t>(page) * page_bytes; }

  void drop(int32_t page) {
    if (--references[static_cast<size_t>(page)] > 0) return;
    if (warm.size() < keep_warm || madvise(address(page), page_bytes, MADV_DONTNEED) != 0) {
      warm.push_back(page);
    } else {
      fresh.push_back(page);
    }
  }

  // Copies the first num_tokens tokens of a page. K lies by dimension, so its whole block is copied; V only its rows.
  void copy(int32_t from, int32_t to, int64_t num_tokens) {
    for (size_t layer = 0; layer < shapes.size(); ++layer) {
      const Block& block = blocks[layer];
      const size_t v_bytes = static_cast<size_t>(num_tokens) * static_cast<size_t>(shapes[layer].v_dim) * element_bytes;
      for (int32_t head = 0; head < shapes[layer].num_kv_heads; ++head) {
        const size_t offset = block.offset + static_cast<size_t>(head) * block.head_bytes;
        memcpy(address(to) + offset, address(from) + offset, block.k_bytes);
        memcpy(address(to) + offset + block.k_bytes, address(from) + offset + block.k_bytes, v_bytes);
      }
    }
  }

  void shrink(Sequence& s, int64_t num_pages) {
    while (static_cast<int64_t>(s.pages.size()) > num_pages) {
      drop(s.pages.back());
      s.pages.pop_back();
    }
  }

  uint8_t* block(int32_t seq, int64_t page, int32_t layer, int32_t head) {
    const Sequence& s = live(seq);
    if (page < 0 || page >= static_cast<int64_t>(s.pages.size()) || layer < 0 ||
        static_cast<size_t>(layer) >= blocks.size() || head < 0 ||
        head >= shapes[static_cast<size_t>(layer)].num_kv_heads) {
      throw std::out_of_range("no key-value block for page " + std::to_string(page) + ", layer " +
                              std::to_string(layer) + ", head " + std::to_string(head));
    }
    const Block& b = blocks[static_cast<size_t>(layer)];
    return address(s.pages[static_cast<size_t>(page)]) + b.offset + static_cast<size_t>(head) * b.head_bytes;
  }
};

KvCache::KvCache(std::vector<KvLayerShape> layers, KvType type, int64_t max_pages, int32_t max_sequences)
    : impl_(std::make_unique<Impl>(std::move(layers), type, max_pages, max_sequences)) {}

KvCache::~KvCache() = default;

int32_t KvCache::create() {
  for (size_t id = 0; id < impl_->sequences.size(); ++id) {
    if (impl_->sequences[id].live) continue;
    impl_->sequences[id] = Sequence{true, 0, {}};
    return static_cast<int32_t>(id);
  }
  throw std::length_error("all " + std::to_string(impl_->sequences.size()) + " sequences are in use");
}

void KvCache::free(int32_t seq) {
  Sequence& s = impl_->live(seq);
  impl_->shrink(s, 0);
  s = Sequence{};
}

int32_t KvCache::fork(int32_t seq, int64_t num_tokens) {
  Impl& impl = *impl_;
  const int64_t length = impl.live(seq).length;
  if (num_tokens < 0 || num_tokens > length) {
    throw std::invalid_argument("cannot fork " + std::to_string(num_tokens) + " tokens of a sequence of " +
                                std::to_string(length));
  }
  const int64_t whole = num_tokens / kPageTokens, rest = num_tokens % kPageTokens;
  if (rest) impl.require_free(1);
  const int32_t id = create();
  Sequence& child = impl.sequences[static_cast<size_t>(id)];
  const Sequence& parent = impl.live(seq);
  try {
    child.pages.reserve(static_cast<size_t>(whole + 1));
  } catch (...) {
    child = Sequence{};
    throw;
  }
  child.pages.assign(parent.pages.begin(), parent.pages.begin() + whole);
  for (const int32_t page : child.pages) ++impl.references[static_cast<size_t>(page)];
  if (rest) {
    child.pages.push_back(impl.take());
    impl.copy(parent.pages[static_cast<size_t>(whole)], child.pages.back(), rest);
  }
  child.length = num_tokens;
  return id;
}

void KvCache::truncate(int32_t seq, int64_t num_tokens) {
  Sequence& s = impl_->live(seq);
  if (num_tokens < 0 || num_tokens > s.length) {
    throw std::invalid_argument("cannot truncate a sequence of " + std::to_string(s.length) + " tokens to " +
                                std::to_string(num_tokens));
  }
  impl_->shrink(s, pages_for(num_tokens));
  s.length = num_tokens;
}

int64_t KvCache::length(int32_t seq) const {
  return impl_->live(seq).length;
}

void KvCache::reserve(int32_t seq, int64_t num_tokens) {
  Impl& impl = *impl_;
  Sequence& s = impl.live(seq);
  if (num_tokens < 0) throw std::invalid_argument("cannot reserve " + std::to_string(num_tokens) + " tokens");
  if (num_tokens <= s.length) return;
  if (num_tokens > static_cast<int64_t>(impl.max_pages) * kPageTokens)
    impl.require_free(std::numeric_limits<int64_t>::max());
  const int64_t rest = s.length % kPageTokens;
  const auto partial = static_cast<size_t>(s.length / kPageTokens);
  const bool is_shared = rest && impl.references[static_cast<size_t>(s.pages[partial])] > 1;
  const int64_t missing = pages_for(num_tokens) - static_cast<int64_t>(s.pages.size());
  impl.require_free((missing > 0 ? missing : 0) + is_shared);
  if (missing > 0) s.pages.reserve(s.pages.size() + static_cast<size_t>(missing));
  if (is_shared) {
    const int32_t own = impl.take();
    impl.copy(s.pages[partial], own, rest);
    impl.drop(s.pages[partial]);
    s.pages[partial] = own;
  }
  for (int64_t i = 0; i < missing; ++i) s.pages.push_back(impl.take());
}

void KvCache::commit(int32_t seq, int64_t num_tokens) {
  Sequence& s = impl_->live(seq);
  if (num_tokens < s.length || pages_for(num_tokens) > static_cast<int64_t>(s.pages.size())) {
    throw std::invalid_argument("cannot commit " + std::to_string(num_tokens) + " tokens: " + std::to_string(s.length) +
                                " are cached, " + std::to_string(s.pages.size()) + " pages reserved");
  }
  s.length = num_tokens;
}

void* KvCache::k_block(int32_t seq, int64_t page, int32_t layer, int32_t head) const {
  return impl_->block(seq, page, layer, head);
}

void* KvCache::v_block(int32_t seq, int64_t page, int32_t layer, int32_t head) const {
  uint8_t* k = impl_->block(seq, page, layer, head);
  return k + impl_->blocks[static_cast<size_t>(layer)].k_bytes;
}

KvType KvCache::type() const {
  return impl_->type;
}
size_t KvCache::page_bytes() const {
  return impl_->page_bytes;
}
int64_t KvCache::pages_used() const {
  return impl_->max_pages - impl_->free_pages();
}
int64_t KvCache::pages_free() const {
  return impl_->free_pages();
}
size_t KvCache::bytes_used() const {
  return static_cast<size_t>(pages_used()) * impl_->page_bytes;
}

}  // namespace kamado
