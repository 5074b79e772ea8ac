// Streaming experts: slots and replacement against a naive model, reads that start anywhere, and faults put under them.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "executor/file.h"
#include "kamado/experts.h"
#include "kamado/tables.h"

namespace {

using namespace kamado;
using std::chrono::milliseconds;

struct Random {
  uint32_t state = 1;
  uint32_t operator()(uint32_t below) {
    state = state * 1664525u + 1013904223u;
    return static_cast<uint32_t>((uint64_t{state >> 8} * below) >> 24);
  }
};

// A file of known bytes whose size is no multiple of a block.
struct TestFile {
  std::string path;
  std::vector<uint8_t> bytes;

  explicit TestFile(const char* directory = "/tmp", size_t size = 300001) : bytes(size) {
    path = std::string(directory) + "/kamado-test-XXXXXX";
    const int fd = ::mkstemp(path.data());
    CHECK(fd >= 0);
    ::close(fd);
    Random random;
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random(256));
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
  ~TestFile() { std::remove(path.c_str()); }
};

ReadArrival wait_for_one(Readers& readers) {
  ReadArrival arrival{};
  for (int i = 0; i < 500 && readers.take(&arrival, 1) == 0; ++i) readers.wait(milliseconds(20));
  return arrival;
}

void test_replacement() {
  constexpr int32_t kSlots = 9, kRecords = 20;
  DecayedLfu policy(kSlots, kRecords, kRecords);
  std::vector<int32_t> records(kSlots, -1), pins(kSlots, 0);
  std::vector<std::vector<int32_t>> uses(kRecords);  // when each record was used
  Random random;
  int32_t now = 0;
  // What a record's uses are worth at this moment, by the definition.
  const auto worth = [&](int32_t record) {
    double sum = 0;
    for (const int32_t t : uses[static_cast<size_t>(record)]) {
      sum += std::exp2((t - now) / (DecayedLfu::kHalfLife * kRecords));
    }
    return sum;
  };
  for (int i = 0; i < 4000; ++i) {
    const size_t slot = random(kSlots);
    switch (random(5)) {
      case 0:
        policy.free(static_cast<int32_t>(slot));
        records[slot] = -1;
        break;
      case 1:
        pins[slot] = static_cast<int32_t>(random(3));
        break;
      case 2: {
        const size_t to = random(kSlots);
        if (records[to] != -1 || records[slot] == -1) break;
        policy.move(static_cast<int32_t>(slot), static_cast<int32_t>(to));
        std::swap(records[slot], records[to]);
        break;
      }
      default: {
        const auto record = static_cast<int32_t>(std::min(random(kRecords), random(kRecords)));  // low ones more often
        if (std::find(records.begin(), records.end(), record) != records.end() && records[slot] != record) break;
        policy.use(static_cast<int32_t>(slot), record);
        records[slot] = record;
        uses[static_cast<size_t>(record)].push_back(++now);
      }
    }
    double least = std::numeric_limits<double>::infinity();
    for (size_t s = 0; s < kSlots; ++s) {
      if (records[s] != -1 && pins[s] == 0) least = std::min(least, worth(records[s]));
    }
    const int32_t victim = policy.victim(pins);
    if (victim == -1) {
      if (!CHECK(std::isinf(least))) return;
      continue;
    }
    const auto v = static_cast<size_t>(victim);
    if (!CHECK(records[v] != -1 && pins[v] == 0 && worth(records[v]) <= least * (1 + 1e-9))) return;
  }
}

void test_shares() {
  Random random;
  for (int i = 0; i < 2000; ++i) {
    std::vector<SlotClass> classes(1 + random(4));
    size_t all = 0;
    for (SlotClass& size : classes) {
      size.slot_bytes = 64 * (1 + random(1000));
      size.num_records = static_cast<int32_t>(1 + random(200));
      size.least = std::min<int32_t>(static_cast<int32_t>(1 + random(8)), size.num_records);
      all += size.slot_bytes * static_cast<size_t>(size.num_records);
    }
    const size_t least = least_slot_bytes(classes), bytes = least + random(static_cast<uint32_t>(2 * all));
    share_slots(classes, bytes);
    size_t used = 0, smallest = SIZE_MAX;
    bool is_full = true;
    for (const SlotClass& size : classes) {
      CHECK(size.num_slots >= size.least && size.num_slots <= size.num_records);
      used += size.slot_bytes * static_cast<size_t>(size.num_slots);
      if (size.num_slots < size.num_records) {
        is_full = false;
        smallest = std::min(smallest, size.slot_bytes);
      }
    }
    CHECK(used <= bytes);
    CHECK(is_full || bytes - used < smallest);
  }
}

void test_arena() {
  std::vector<SlotClass> classes{{64, 10, 1, 3}, {128, 10, 1, 2}};
  std::vector<uint8_t> memory(3 * 64 + 2 * 128);
  SlotArena arena(classes, memory.data());
  CHECK(arena.num_slots() == 5);
  int32_t evicted = 0, slots[3];
  for (int32_t i = 0; i < 3; ++i) {
    slots[i] = arena.acquire(0, i, &evicted);
    CHECK(evicted == -1 && arena.data(slots[i]) == memory.data() + 64 * i);
  }
  CHECK(arena.data(arena.acquire(1, 17, &evicted)) == memory.data() + 3 * 64);
  arena.pin(slots[0]);
  CHECK(arena.acquire(0, 3, &evicted) == slots[1] && evicted == 1);
  arena.pin(slots[1]);
  arena.pin(slots[2]);
  CHECK(arena.acquire(0, 4, &evicted) == -1);
  arena.unpin(slots[2]);
  arena.use(slots[2]);
  CHECK(arena.acquire(0, 4, &evicted) == slots[2] && evicted == 2);
  arena.free(slots[0]);
  CHECK(!arena.is_pinned(slots[0]) && arena.record(slots[0]) == -1);
  CHECK(arena.acquire(0, 5, &evicted) == slots[0] && evicted == -1);
}

// The records that the policy would give up last stay, with their bytes: used once each, those are the newest.
void test_arena_shrinks() {
  constexpr int32_t kSlots = 12;
  constexpr size_t kBytes = kSlotAlign;
  Random random;
  for (int round = 0; round < 300; ++round) {
    std::vector<SlotClass> classes{{kBytes, 50, 1, kSlots}, {2 * kBytes, 50, 1, 3}};
    Memory memory(kSlots * kBytes + 6 * kBytes);
    SlotArena arena(classes, memory.data());
    std::vector<int32_t> slot_of(40, -1), order;  // by record; records by their last use
    int32_t evicted = -1;
    for (int32_t record = 0; record < static_cast<int32_t>(random(40)); ++record) {
      const int32_t slot = arena.acquire(0, record, &evicted);
      if (slot == -1) break;
      if (evicted != -1) slot_of[static_cast<size_t>(evicted)] = -1;
      if (random(8) == 0) {  // a read that failed
        arena.free(slot);
        continue;
      }
      std::memset(arena.data(slot), record + 1, kBytes);
      slot_of[static_cast<size_t>(record)] = slot;
      order.push_back(record);
    }
    std::erase_if(order, [&](int32_t record) { return slot_of[static_cast<size_t>(record)] == -1; });
    const auto left = static_cast<int32_t>(1 + random(kSlots));
    classes[0].num_slots = left;
    arena.shrink(classes, [&](int32_t record, int32_t slot) { slot_of[static_cast<size_t>(record)] = slot; });
    CHECK(arena.num_slots() == left + 3);
    const size_t keeps = std::min(order.size(), static_cast<size_t>(left));
    for (size_t i = 0; i < order.size(); ++i) {
      const int32_t record = order[i], slot = slot_of[static_cast<size_t>(record)];
      CHECK((slot != -1) == (i >= order.size() - keeps));
      if (slot == -1) continue;
      CHECK(slot < left && arena.record(slot) == record);
      CHECK(arena.data(slot)[0] == record + 1 && arena.data(slot)[kBytes - 1] == record + 1);
    }
    std::vector<int32_t> taken;  // all slots that are left can be had, and no others
    for (int32_t i = 0; i < left; ++i) taken.push_back(arena.acquire(0, 60 + i, &evicted));
    std::sort(taken.begin(), taken.end());
    for (int32_t i = 0; i < left; ++i) CHECK(taken[static_cast<size_t>(i)] == i);
  }
}

// Every phase of 32 bytes, lengths around a block's, the end of the file; direct and buffered, one and several readers.
void test_reads(const char* directory) {
  if (::access(directory, W_OK) != 0) return test::skip(std::string("no ") + directory);
  const TestFile file(directory);
  constexpr size_t kMost = 20000;
  for (const DirectIo direct : {DirectIo::kAuto, DirectIo::kOff}) {
    for (const int32_t threads : {1, 3}) {
      const size_t size = Readers::buffer_bytes(kMost);
      Memory memory(4 * size);
      Readers readers({std::make_shared<const File>(file.path)}, threads, direct, {memory.data(), size, 4}, 16);
      if (direct == DirectIo::kOff) CHECK(!readers.is_direct());
      const auto check = [&](uint64_t offset, size_t bytes) {
        readers.submit({0, offset, bytes, 0, 0, 0, 0, 0}, true);
        const ReadArrival arrival = wait_for_one(readers);
        CHECK_MSG(arrival.error == 0 && std::memcmp(arrival.data, file.bytes.data() + offset, bytes) == 0,
                  std::to_string(bytes).append(" bytes at ").append(std::to_string(offset)));
        readers.release(arrival.buffer);
      };
      for (uint64_t phase = 0; phase < 4096; phase += 32) check(8192 + phase, 1 + phase * 37 % kMost);
      for (const size_t bytes : {size_t{1}, size_t{4095}, size_t{4096}, size_t{4097}, kMost}) {
        check(0, bytes);
        check(file.bytes.size() - bytes, bytes);
      }
    }
  }
}

void test_read_faults() {
  const TestFile file;
  const size_t size = Readers::buffer_bytes(20000);
  Memory memory(2 * size);
  std::atomic<int> mode{0};
  const ReadFunction read = [&](int fd, void* out, size_t count, uint64_t offset) -> int64_t {
    switch (mode.load()) {
      case 1:
        errno = EIO;
        return -1;
      case 2:
        return 0;  // ends too early
      case 3:
        return os::read_file(fd, out, std::min<size_t>(count, 4096), offset);  // short, but goes on
      case 4:
        return std::min<int64_t>(os::read_file(fd, out, count, offset), 100);  // short in the middle of a block
      case 5: {
        static thread_local int calls = 0;
        if (++calls % 2 == 1) {
          errno = EINTR;
          return -1;
        }
        return os::read_file(fd, out, count, offset);
      }
      default:
        return os::read_file(fd, out, count, offset);
    }
  };
  Readers readers({std::make_shared<const File>(file.path)}, 1, DirectIo::kAuto, {memory.data(), size, 2}, 8, read);
  const auto run = [&](int next_mode) {
    mode = next_mode;
    readers.submit({0, 5000, 15000, 3, 0, 0, 0, 9}, true);
    const ReadArrival arrival = wait_for_one(readers);
    CHECK(arrival.request.record == 3 && arrival.request.ticket == 9);
    if (arrival.error == 0) CHECK(std::memcmp(arrival.data, file.bytes.data() + 5000, 15000) == 0);
    readers.release(arrival.buffer);
    return arrival.error;
  };
  CHECK(run(0) == 0);
  CHECK(run(1) == EIO);
  CHECK(run(2) == EIO);
  CHECK(run(3) == 0);
  CHECK(run(4) == (readers.is_direct() ? EIO : 0));
  CHECK(run(5) == 0);
  CHECK(run(0) == 0);

  std::this_thread::sleep_for(milliseconds(20));  // a tick of the file system's clock
  std::ofstream(file.path, std::ios::binary | std::ios::in | std::ios::out).write("x", 1);
  CHECK(run(0) == ESTALE);
  CHECK(::truncate(file.path.c_str(), 6000) == 0);
  CHECK(run(0) == ESTALE);
}

void test_order_and_forgetting() {
  const TestFile file;
  const size_t size = Readers::buffer_bytes(100);
  Memory memory(size);  // one buffer: one read at a time
  std::atomic<bool> is_held{true};
  const ReadFunction read = [&](int fd, void* out, size_t count, uint64_t offset) {
    while (is_held) std::this_thread::sleep_for(milliseconds(1));
    return os::read_file(fd, out, count, offset);
  };
  Readers readers({std::make_shared<const File>(file.path)}, 2, DirectIo::kOff, {memory.data(), size, 1}, 8, read);
  const auto submit = [&](int32_t record, bool is_urgent) {
    readers.submit({0, 64, 100, record, 0, 0, 0, 0}, is_urgent);
  };
  submit(0, true);
  while (readers.num_queued() > 0) std::this_thread::sleep_for(milliseconds(1));
  for (int32_t record = 1; record < 6; ++record) submit(record, record >= 4);
  readers.forget(2);
  readers.hurry(3);
  is_held = false;
  std::vector<int32_t> order;
  for (int i = 0; i < 5; ++i) {
    const ReadArrival arrival = wait_for_one(readers);
    order.push_back(arrival.request.record);
    readers.release(arrival.buffer);
  }
  CHECK((order == std::vector<int32_t>{0, 4, 5, 3, 1}));
  for (int i = 0; i < 8; ++i) submit(i, false);
  readers.forget(-1);
  CHECK(readers.num_queued() == 0);
}

// --- the stream: one operation after another by one thread that also packs ---

constexpr int32_t kExperts = 12, kHidden = 32, kWidth = 40;

Program make_program(const TestFile& file, int32_t layers) {
  ProgramBuilder b;
  uint64_t offset = 32;
  const auto matrix = [&](int64_t rows, int64_t cols) {
    const uint64_t at = offset;
    offset += static_cast<uint64_t>(rows * cols) * 2 + 32;
    return b.matrix(std::string("m").append(std::to_string(at)), file.path, at, static_cast<int32_t>(Layout::F16), rows,
                    cols);
  };
  const int32_t x = b.buffer("x", kHidden), out = b.buffer("out", kHidden), logits = b.buffer("router", kExperts);
  b.append(EmbedOp{x, matrix(7, kHidden), 1});
  for (int32_t layer = 0; layer < layers; ++layer) {
    b.append(LinearOp{{logits}, x, {matrix(kExperts, kHidden)}, {}});
    b.append(RouteOp{logits, kExperts, 2, RouteScore::kSoftmax, true, -1, 1, 1, 1});
    ExpertsOp experts{out, x, logits, {}, {}, {}, Activation::kSilu};
    for (int32_t e = 0; e < kExperts; ++e) {
      experts.gate.push_back(matrix(kWidth, kHidden));
      experts.up.push_back(matrix(kWidth, kHidden));
      experts.down.push_back(matrix(kHidden, kWidth));
    }
    b.append(experts);
    b.append(AddOp{x, x, out});
  }
  b.append(HeadOp{x, matrix(7, kHidden), -1, 1, 0});
  return b.finish();
}

struct StreamTest {
  TestFile file{"/tmp", 400001};
  Program program = make_program(file, 2);
  const LinearKernels& kernels = *linear_kernels_ref();
  std::atomic<int> fault{0}, held{0};
  std::unique_ptr<ExpertStream> stream;

  explicit StreamTest(int32_t extra_slots = 3, bool verifies = false) {
    const auto options = [&](size_t bytes) {
      return ExpertStream::Options{bytes, 2, DirectIo::kAuto, verifies,
                                   [this](int fd, void* out, size_t count, uint64_t offset) -> int64_t {
                                     while (held.load() != 0) std::this_thread::sleep_for(milliseconds(1));
                                     if (fault.load() != 0) {
                                       errno = fault.load();
                                       return -1;
                                     }
                                     return os::read_file(fd, out, count, offset);
                                   }};
    };
    size_t least = 0;
    try {
      ExpertStream(program, kernels, options(1));
    } catch (const std::invalid_argument& error) {
      const std::string text = error.what();
      least = std::stoul(text.substr(text.rfind(' ') + 1));
    }
    CHECK(least > 1);
    stream = std::make_unique<ExpertStream>(program, kernels, options(least + static_cast<size_t>(extra_slots) * 8192));
  }

  bool has_bytes(int32_t layer, int32_t expert) const {
    int32_t at = -1;
    const ExpertsOp* op = nullptr;
    for (const Op& any : program.ops) {
      if (const auto* experts = std::get_if<ExpertsOp>(&any)) {
        if (++at == layer) op = experts;
      }
    }
    for (int p = 0; p < 3; ++p) {
      const auto& list = p == 0 ? op->gate : p == 1 ? op->up : op->down;
      const MatrixSpec& spec = program.matrices[static_cast<size_t>(list[static_cast<size_t>(expert)])];
      const PackedMatrix& got = stream->matrix(layer, expert, p);
      const size_t stride = row_bytes(spec.layout, spec.cols);
      std::vector<uint8_t> tile(got.tile_bytes);
      for (int32_t t = 0; t < got.num_tiles(); ++t) {
        kernels.pack_tile(spec.layout, file.bytes.data() + spec.offset + static_cast<size_t>(t) * kTileRows * stride,
                          stride, std::min(kTileRows, spec.rows - t * kTileRows), spec.cols, tile.data());
        if (std::memcmp(tile.data(), got.data + static_cast<size_t>(t) * got.tile_bytes, tile.size()) != 0)
          return false;
      }
    }
    return true;
  }

  // Runs an operation whose experts have these numbers of rows, in waves of `wave` rows; checks what comes.
  void run(int32_t layer, const std::vector<int32_t>& rows, int32_t wave, const std::function<void()>& check = [] {}) {
    std::vector<int32_t> begin(kExperts + 1, 0);
    for (int32_t e = 0; e < kExperts; ++e) {
      begin[static_cast<size_t>(e) + 1] = begin[static_cast<size_t>(e)] + rows[static_cast<size_t>(e)];
    }
    const int32_t total = begin.back();
    std::vector<int32_t> seen(kExperts, 0);
    stream->begin(layer, begin.data());
    for (int32_t at = 0; at < total; at += wave) {
      const int32_t end = std::min(at + wave, total);
      stream->begin_wave(at, end);
      for (bool is_last = false; !is_last;) {
        const ExpertStream::Batch& batch = stream->next(check);
        is_last = batch.is_last;
        for (int32_t i = 0; i < batch.num_pack_items; ++i) stream->pack(i);
        for (const int32_t e : batch.experts) {
          CHECK(has_bytes(layer, e));
          const auto index = static_cast<size_t>(e);
          seen[index] += std::min(begin[index + 1], end) - std::max(begin[index], at);
        }
        stream->end_batch();
      }
    }
    stream->end();
    CHECK(seen == rows);
  }
};

std::vector<int32_t> random_rows(Random& random, uint32_t most, uint32_t one_in) {
  std::vector<int32_t> rows(kExperts, 0);
  for (int32_t& count : rows) count = random(one_in) == 0 ? static_cast<int32_t>(1 + random(most)) : 0;
  rows[random(kExperts)] = 1;
  return rows;
}

void test_stream() {
  for (const int32_t extra : {0, 1, 5, 40}) {
    StreamTest t(extra, extra == 1);
    Random random;
    int64_t needed = 0;
    for (int i = 0; i < 150; ++i) {
      const std::vector<int32_t> rows = random_rows(random, 30, 1 + random(6));
      needed += kExperts - std::count(rows.begin(), rows.end(), 0);
      const auto layer = static_cast<int32_t>(random(2));
      if (random(3) == 0) {
        const int32_t guess[] = {static_cast<int32_t>(random(kExperts)), static_cast<int32_t>(random(kExperts))};
        t.stream->look_ahead(layer, guess, 2);
      }
      t.run(layer, rows, static_cast<int32_t>(1 + random(60)));
    }
    int64_t counted = 0;
    for (const LayerLedger& layer : t.stream->ledger()) counted += layer.hits + layer.misses + layer.lookahead_hits;
    CHECK(counted == needed);
    CHECK(t.stream->total_bytes() >= t.stream->slot_bytes());
  }
}

void test_stream_faults() {
  StreamTest t;
  const std::vector<int32_t> all(kExperts, 1), few{1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  t.run(0, all, 100);
  for (const int error : {EIO, ENXIO}) {
    t.fault = error;
    int code = 0;
    try {
      t.run(1, all, 100);
    } catch (const ReadError& caught) {
      code = caught.code;
      CHECK(caught.path == t.file.path);
      CHECK(std::string(caught.what()).find("MoE layer 1") != std::string::npos);
    }
    CHECK(code == error);
    t.stream->abandon();
    t.fault = 0;
    t.run(1, all, 5);
  }

  // Cancelled while a read hangs: no wait for it, and what it brings later is not taken for another's.
  t.held = 1;
  const auto begin = std::chrono::steady_clock::now();
  bool is_cancelled = false;
  try {
    t.run(0, few, 100, [&] {
      if (std::chrono::steady_clock::now() - begin > milliseconds(30)) throw Cancelled();
    });
  } catch (const Cancelled&) {
    is_cancelled = true;
  }
  t.stream->abandon();
  CHECK(is_cancelled || t.stream->num_slots() >= 2 * kExperts);
  t.held = 0;
  for (int i = 0; i < 5; ++i) t.run(i % 2, all, 7);

  std::this_thread::sleep_for(milliseconds(20));
  std::ofstream(t.file.path, std::ios::binary | std::ios::in | std::ios::out).write("x", 1);
  int code = 0;
  try {
    for (int i = 0; i < 4; ++i) t.run(i % 2, all, 100);
  } catch (const ReadError& caught) {
    code = caught.code;
  }
  CHECK(code == ESTALE);
  t.stream->abandon();
}

void test_verify() {
  StreamTest t(40, true);
  const std::vector<int32_t> all(kExperts, 1);
  t.run(0, all, 100);
  t.stream->swap_slots_for_test(0, 2, 5);
  int code = 0;
  try {
    t.run(0, all, 100);
  } catch (const ReadError& caught) {
    code = caught.code;
  }
  CHECK(code == EBADMSG);
  t.stream->abandon();
  t.stream->swap_slots_for_test(0, 2, 5);
  t.run(0, all, 100);
}

}  // namespace

int main() {
  test_replacement();
  test_shares();
  test_arena();
  test_arena_shrinks();
  test_reads("/tmp");
  test_reads("/dev/shm");
  test_read_faults();
  test_order_and_forgetting();
  test_stream();
  test_stream_faults();
  test_verify();
  return test::finish();
}
