// Reader threads: each takes a request and a raw buffer, reads the enclosing aligned range, and says what came of it.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#ifdef __linux__
#include <pthread.h>
#endif

#include "executor/file.h"
#include "kamado/experts.h"
#include "kamado/refuse.h"
#include "os/os_memory.h"

namespace kamado {
namespace {

using Clock = std::chrono::steady_clock;

// At least what any common device wants; os::direct_alignment may ask for more.
constexpr size_t kReadAlign = 4096;

// A descriptor that takes direct reads, or none. Some file systems open for them and refuse the read.
int open_direct(const File& file) {
  const int fd = os::reopen_file(file.handle(), true);
  if (fd == os::kNoFile) return fd;
  const size_t alignment = os::direct_alignment(fd, kReadAlign);
  if (alignment > 0 && alignment <= kReadAlign) {
    alignas(kReadAlign) static thread_local uint8_t probe[kReadAlign];
    if (os::read_file(fd, probe, kReadAlign, 0) >= 0) return fd;
  }
  os::close_file(fd);
  return os::kNoFile;
}

}  // namespace

struct Readers::Source {
  std::shared_ptr<const File> file;
  int direct = os::kNoFile, buffered = os::kNoFile;
  mutable std::atomic<bool> is_direct{false};

  ~Source() {
    if (direct != os::kNoFile) os::close_file(direct);
    if (buffered != os::kNoFile) os::close_file(buffered);
  }
};

size_t Readers::buffer_bytes(size_t bytes) {
  return align_up(bytes, kReadAlign) + kReadAlign;
}

Readers::Readers(std::vector<std::shared_ptr<const File>> files, int32_t num_threads, DirectIo direct_io,
                 Buffers buffers, size_t max_requests, ReadFunction read)
    : read_(read ? std::move(read) : os::read_file),
      buffers_(buffers),
      max_requests_(max_requests),
      num_buffers_(buffers.count),
      pid_(::getpid()) {
  if (num_threads < 1 || num_threads > 256) {
    refuse("num_readers must be from 1 to 256, got ", num_threads);
  }
  for (auto& file : files) {
    auto source = std::make_unique<Source>();
    source->file = std::move(file);
    source->buffered = os::reopen_file(source->file->handle(), false);
    if (source->buffered == os::kNoFile) {
      refuse(source->file->path(), ": cannot be opened again: ", std::strerror(errno));
    }
    os::advise_file(source->buffered, os::Access::kRandom);  // read-ahead would stay in the page cache
    if (direct_io != DirectIo::kOff) source->direct = open_direct(*source->file);
    if (direct_io == DirectIo::kOn && source->direct == os::kNoFile) {
      refuse(source->file->path(), ": its file system takes no direct reads");
    }
    source->is_direct = source->direct != os::kNoFile;
    sources_.push_back(std::move(source));
  }
  // A head moves on before its queue is emptied: twice the requests never move memory more than once a request.
  urgent_.reserve(2 * max_requests);
  idle_.reserve(2 * max_requests);
  arrivals_.reserve(static_cast<size_t>(buffers.count));
  for (int32_t i = 0; i < buffers.count; ++i) free_buffers_.push_back(i);
  try {
    for (int32_t i = 0; i < num_threads; ++i) {
      threads_.emplace_back([this] { work(); });
#ifdef __linux__
      ::pthread_setname_np(threads_.back().native_handle(), ("kamado-read-" + std::to_string(i)).c_str());
#endif
    }
  } catch (...) {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    has_work_.notify_all();
    for (auto& thread : threads_) thread.join();
    throw;
  }
}

Readers::~Readers() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  has_work_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void Readers::submit(const ReadRequest& request, bool is_urgent) {
  {
    const std::lock_guard lock(mutex_);
    auto& queue = is_urgent ? urgent_ : idle_;
    size_t& head = is_urgent ? urgent_head_ : idle_head_;
    if (queue.size() - head >= max_requests_) refuse<std::length_error>("too many requests");
    if (queue.size() == queue.capacity()) {
      queue.erase(queue.begin(), queue.begin() + static_cast<std::ptrdiff_t>(head));
      head = 0;
    }
    queue.push_back(request);
  }
  has_work_.notify_one();
}

size_t Readers::num_queued() const {
  const std::lock_guard lock(mutex_);
  return urgent_.size() - urgent_head_ + idle_.size() - idle_head_;
}

size_t Readers::take(ReadArrival* out, size_t max) {
  const std::lock_guard lock(mutex_);
  const size_t count = std::min(max, arrivals_.size());
  std::copy_n(arrivals_.begin(), count, out);
  arrivals_.erase(arrivals_.begin(), arrivals_.begin() + static_cast<std::ptrdiff_t>(count));
  return count;
}

bool Readers::wait(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  return has_arrival_.wait_for(lock, timeout, [this] { return !arrivals_.empty(); });
}

void Readers::release(int32_t buffer) {
  {
    const std::lock_guard lock(mutex_);
    if (buffer >= num_buffers_) {
      os::give_back(buffers_.data + static_cast<size_t>(buffer) * buffers_.bytes, buffers_.bytes);
      return;
    }
    free_buffers_.push_back(buffer);
  }
  has_work_.notify_one();
}

void Readers::keep_buffers(int32_t count) {
  const std::lock_guard lock(mutex_);
  num_buffers_ = std::min(num_buffers_, count);
  std::erase_if(free_buffers_, [&](int32_t buffer) {
    if (buffer < num_buffers_) return false;
    os::give_back(buffers_.data + static_cast<size_t>(buffer) * buffers_.bytes, buffers_.bytes);
    return true;
  });
}

void Readers::forget(int32_t record) {
  const std::lock_guard lock(mutex_);
  const auto is_of = [record](const ReadRequest& request) { return record == -1 || request.record == record; };
  urgent_.erase(std::remove_if(urgent_.begin() + static_cast<std::ptrdiff_t>(urgent_head_), urgent_.end(), is_of),
                urgent_.end());
  idle_.erase(std::remove_if(idle_.begin() + static_cast<std::ptrdiff_t>(idle_head_), idle_.end(), is_of), idle_.end());
}

void Readers::hurry(int32_t record) {
  const std::lock_guard lock(mutex_);
  const auto begin = idle_.begin() + static_cast<std::ptrdiff_t>(idle_head_);
  const auto rest = std::stable_partition(begin, idle_.end(),
                                          [record](const ReadRequest& request) { return request.record != record; });
  urgent_.insert(urgent_.end(), rest, idle_.end());
  idle_.erase(rest, idle_.end());
}

bool Readers::is_direct() const {
  return std::all_of(sources_.begin(), sources_.end(), [](const auto& source) { return source->is_direct.load(); });
}

double Readers::busy_seconds() const {
  const std::lock_guard lock(mutex_);
  double seconds = busy_seconds_;
  if (num_reading_ > 0) seconds += std::chrono::duration<double>(Clock::now() - busy_since_).count();
  return seconds;
}

bool Readers::is_of_this_process() const {
  return pid_ == ::getpid();
}

bool Readers::pop(std::vector<ReadRequest>& queue, size_t& head, ReadRequest* out) {
  if (head == queue.size()) return false;
  *out = queue[head++];
  if (head == queue.size()) {
    queue.clear();
    head = 0;
  }
  return true;
}

void Readers::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    has_work_.wait(lock, [this] {
      return stop_ || (!free_buffers_.empty() && (urgent_head_ < urgent_.size() || idle_head_ < idle_.size()));
    });
    if (stop_) return;
    ReadArrival arrival{};
    if (!pop(urgent_, urgent_head_, &arrival.request)) pop(idle_, idle_head_, &arrival.request);
    arrival.buffer = free_buffers_.back();
    free_buffers_.pop_back();
    const Clock::time_point begin = Clock::now();
    if (num_reading_++ == 0) busy_since_ = begin;
    lock.unlock();
    arrival.error =
        read(arrival.request, buffers_.data + static_cast<size_t>(arrival.buffer) * buffers_.bytes, &arrival.data);
    lock.lock();
    const Clock::time_point end = Clock::now();
    arrival.seconds = std::chrono::duration<double>(end - begin).count();
    if (--num_reading_ == 0) busy_seconds_ += std::chrono::duration<double>(end - busy_since_).count();
    arrivals_.push_back(arrival);
    has_arrival_.notify_one();
  }
}

int32_t Readers::read(const ReadRequest& request, uint8_t* buffer, const uint8_t** data) {
  const Source& source = *sources_[static_cast<size_t>(request.file)];
  for (int32_t i = 0; i < delay_ms_.load() && !stop_; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const bool is_direct = source.is_direct.load(std::memory_order_relaxed);
  int32_t error = read_from(source, is_direct, request, buffer, data);
  if (is_direct && error == EINVAL) {  // a file system that takes some direct reads only
    source.is_direct.store(false, std::memory_order_relaxed);
    error = read_from(source, false, request, buffer, data);
  }
  // A file that was changed may have been read half old and half new, whatever pread said.
  return source.file->is_unchanged() ? error : ESTALE;
}

int32_t Readers::read_from(const Source& source, bool is_direct, const ReadRequest& request, uint8_t* buffer,
                           const uint8_t** data) {
  const int fd = is_direct ? source.direct : source.buffered;
  const uint64_t begin = is_direct ? request.offset / kReadAlign * kReadAlign : request.offset;
  const size_t wanted = static_cast<size_t>(request.offset - begin) + request.bytes;
  const size_t count = is_direct ? align_up(wanted, kReadAlign) : wanted;
  size_t got = 0;
  while (got < wanted) {
    const int64_t part = read_(fd, buffer + got, count - got, begin + got);
    if (part < 0 && errno == EINTR) continue;
    if (part < 0) return errno;
    if (part == 0) return EIO;  // the file ended before
    got += static_cast<size_t>(part);
    // The last block of a file may be short, and then all of it is there. Anything else is read on, which direct I/O
    // can only do from an aligned place.
    if (is_direct && got < wanted && got % kReadAlign != 0) return EIO;
  }
  if (!is_direct) {
    const uint64_t first = request.offset / kReadAlign * kReadAlign;
    const uint64_t end = align_up(request.offset + request.bytes, kReadAlign);
    os::advise_file(fd, os::Access::kNoMore, first, end - first);
  }
  *data = buffer + (request.offset - begin);
  return 0;
}

}  // namespace kamado
