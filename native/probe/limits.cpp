// Measures the machine's limits with the pool and the loops of the active tier.
#include "kamado/limits.h"

#include <chrono>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "kamado/align.h"
#include "kamado/pool.h"
#include "kamado/refuse.h"
#include "kamado/tables.h"
#include "os/os_memory.h"

namespace kamado {
namespace {

using Clock = std::chrono::steady_clock;

uint64_t read_ref(const uint8_t* data, size_t bytes) {
  uint64_t sum[8] = {};
  for (size_t i = 0; i < bytes; i += sizeof sum) {
    uint64_t words[8];
    std::memcpy(words, data + i, sizeof words);
    for (int l = 0; l < 8; ++l) sum[l] += words[l];
  }
  uint64_t total = 0;
  for (const uint64_t s : sum) total += s;
  return total;
}

int32_t int8_dot_ref(const uint8_t* a, const int8_t* b, int64_t rounds) {
  int32_t total = 0;
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" ::: "memory");
    for (int row = 0; row < 4; ++row) {
      for (int column = 0; column < 2; ++column) {
        const uint8_t* x = a + static_cast<size_t>(row) * kDotBytes;
        const int8_t* y = b + static_cast<size_t>(column) * kDotBytes;
        int32_t sum = 0;
        for (size_t i = 0; i < kDotBytes; ++i) sum += static_cast<int32_t>(x[i]) * y[i];
        total ^= sum;
      }
    }
  }
  return total;
}

// Makes the compiler take `x` for a new number, in the register where it is.
void forget(float& x) {
#if defined(__x86_64__)
  asm volatile("" : "+x"(x));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(x));
#else
  asm volatile("" : "+m"(x));  // through memory: a few cycles in a round of 32
#endif
}

float multiply_add_ref(int64_t rounds) {
  float sum[32] = {}, x = 1e-3f;  // separate operations: the baseline has no fma instruction
  for (int64_t i = 0; i < rounds * (kFmaPerRound / 32); ++i) {
    forget(x);
    for (float& s : sum) s = s * 0.5f + x;
  }
  for (int l = 1; l < 32; ++l) sum[0] += sum[l];
  return sum[0];
}

constexpr LimitKernels kReference = {read_ref, int8_dot_ref, multiply_add_ref};

const LimitKernels& active_kernels() {
  const char* tier = best_table().tier;
#ifdef KAMADO_HAS_AVX512
  if (std::strcmp(tier, "avx512") == 0) return *limit_kernels_avx512();
#endif
#ifdef KAMADO_HAS_AVX2
  if (std::strcmp(tier, "avx2") == 0) return *limit_kernels_avx2();
#endif
  (void)tier;
  return kReference;
}

// Anonymous memory at a huge page's boundary.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : mapping_bytes_(bytes + os::kHugePageBytes), mapping_(os::allocate(mapping_bytes_)) {
    if (mapping_ == nullptr) throw std::bad_alloc();
    data_ = reinterpret_cast<uint8_t*>(align_up(reinterpret_cast<size_t>(mapping_), os::kHugePageBytes));
    os::advise_huge_pages(data_, bytes, true);
  }
  ~Buffer() { os::release(mapping_, mapping_bytes_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  uint8_t* data() const { return data_; }

 private:
  size_t mapping_bytes_;
  void* mapping_;
  uint8_t* data_;
};

void check(int32_t num_threads, double seconds) {
  if (num_threads < 1) refuse("num_threads must be at least 1, got ", num_threads);
  if (!(seconds > 0 && seconds <= 3600)) {
    refuse("seconds must be in (0, 3600], got ", seconds);
  }
}

// Runs `work(id)`, which returns the units it did, on every thread until `seconds` have passed; units a second of all.
// `prepare(id)` comes before the clock starts.
template <class Prepare, class Work>
double rate(int32_t num_threads, double seconds, Prepare prepare, Work work) {
  struct alignas(64) Share {
    double rate = 0;
  };
  Pool pool(num_threads);
  std::vector<Share> shares(static_cast<size_t>(num_threads));
  auto body = [&](int32_t id) {
    prepare(id);
    pool.barrier();
    const auto start = Clock::now();
    double units = 0, elapsed;
    do {
      units += work(id);
      elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    } while (elapsed < seconds);
    shares[static_cast<size_t>(id)].rate = units / elapsed;
  };
  using Body = decltype(body);
  pool.run([](void* context, int32_t id) { (*static_cast<Body*>(context))(id); }, &body);
  double total = 0;
  for (const Share& share : shares) total += share.rate;
  return total;
}

volatile uint64_t sink;  // results go here, so that no loop is left out

}  // namespace

const LimitKernels* limit_kernels_ref() {
  return &kReference;
}

double measure_bandwidth(int32_t num_threads, int64_t megabytes, double seconds) {
  check(num_threads, seconds);
  if (megabytes < 1 || megabytes > int64_t{1} << 30) {
    refuse("megabytes must be in [1, 2^30], got ", megabytes);
  }
  const LimitKernels& kernels = active_kernels();
  const size_t share = (static_cast<size_t>(megabytes) << 20) / static_cast<size_t>(num_threads) / os::kHugePageBytes *
                       os::kHugePageBytes;
  if (share == 0) refuse("the buffer needs at least 2 MiB a thread");
  const Buffer buffer(share * static_cast<size_t>(num_threads));
  const auto own = [&](int32_t id) { return buffer.data() + share * static_cast<size_t>(id); };
  std::vector<size_t> at(static_cast<size_t>(num_threads) * 8, 0);  // one a cache line
  return rate(
      num_threads, seconds, [&](int32_t id) { std::memset(own(id), 1, share); },  // first touch by its reader: NUMA
      [&](int32_t id) {
        size_t& offset = at[static_cast<size_t>(id) * 8];
        sink = kernels.read(own(id) + offset, os::kHugePageBytes);
        offset = (offset + os::kHugePageBytes) % share;
        return static_cast<double>(os::kHugePageBytes);
      });
}

double measure_int8(int32_t num_threads, double seconds) {
  check(num_threads, seconds);
  const LimitKernels& kernels = active_kernels();
  struct alignas(64) Data {
    uint8_t a[4 * kDotBytes];
    int8_t b[2 * kDotBytes];
  };
  std::vector<Data> data(static_cast<size_t>(num_threads));
  constexpr int64_t kRounds = 64;
  return rate(
      num_threads, seconds, [&](int32_t id) { std::memset(&data[static_cast<size_t>(id)], 3, sizeof(Data)); },
      [&](int32_t id) {
        const Data& own = data[static_cast<size_t>(id)];
        sink = static_cast<uint64_t>(kernels.int8_dot(own.a, own.b, kRounds));
        return 2.0 * 4 * 2 * kDotBytes * kRounds;
      });
}

double measure_f32(int32_t num_threads, double seconds) {
  check(num_threads, seconds);
  const LimitKernels& kernels = active_kernels();
  constexpr int64_t kRounds = 100;
  return rate(
      num_threads, seconds, [](int32_t) {},
      [&](int32_t) {
        sink = static_cast<uint64_t>(kernels.multiply_add(kRounds));
        return 2.0 * kFmaPerRound * kRounds;
      });
}

}  // namespace kamado
