// Experts streamed from disk inside a byte budget.
//
//   Readers       threads that only read: one request is one explicit read of a piece of an expert into a raw buffer
//   SlotArena     memory in size classes; a slot holds one expert record (gate, up and down, packed into tiles)
//   Replacement   which slot is given up: decayed use counts
//   ExpertStream  ties them together for the executor: what an Experts operation needs is requested, what has arrived
//                 is handed out to be packed and computed, what is in use is pinned
//
// Readers never compute, and compute threads never touch the disk: a piece lands in a raw buffer, the compute threads
// pack it into its slot by tiles (the same bits as packing at load), and the buffer goes back to the readers. So a slot
// has the packed size, a piece may begin at any byte of the file, and nothing is ever written into a slot that was
// given up: an abandoned read ends in a buffer that nobody looks at.
#pragma once
#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kamado/executor.h"
#include "kamado/linear.h"

namespace kamado {

class Memory;      // native/executor/file.h
struct StoredRun;  // native/executor/stored.h

// A read of an expert that failed. `code` is an errno: ESTALE when the file is not the one that was opened any more
// (its size or time of change differ), EBADMSG when verify_slots found other bytes in a slot than in the file.
struct ReadError : std::runtime_error {
  ReadError(int error_code, std::string file_path, const std::string& message)
      : std::runtime_error(message), code(error_code), path(std::move(file_path)) {}
  int code;
  std::string path;
};

// --- reader threads (readers.cpp) ---

// As os::read_file of os/os_file.h; tests put faults here.
using ReadFunction = std::function<int64_t(int file, void* out, size_t count, uint64_t offset)>;

struct ReadRequest {
  int32_t file;  // index into the readers' files
  uint64_t offset;
  size_t bytes;
  // The owner's:
  int32_t record, run, unit_begin, unit_end;
  uint32_t ticket;
};

struct ReadArrival {
  ReadRequest request;
  const uint8_t* data;  // of the first wanted byte, in a raw buffer
  int32_t buffer;       // to be given back by release()
  int32_t error;        // errno; 0: all bytes are there
  double seconds;
};

class Readers {
 public:
  struct Buffers {
    uint8_t* data;  // kReadAlign-aligned
    size_t bytes;   // of one, a multiple of kReadAlign
    int32_t count;
  };
  // With kAuto a file is read by direct I/O where its file system takes it: experts that exceed the budget would only
  // push each other out of the page cache, at the cost of a copy and of memory outside the budget. Where it does not
  // (and with kOff) reads are buffered, without read-ahead, and what they leave in the page cache is dropped at once.
  // kOn throws std::invalid_argument where direct I/O is refused.
  Readers(std::vector<std::shared_ptr<const File>> files, int32_t num_threads, DirectIo direct_io, Buffers buffers,
          size_t max_requests, ReadFunction read = {});
  ~Readers();
  Readers(const Readers&) = delete;
  Readers& operator=(const Readers&) = delete;

  // Bytes of a buffer that holds any range of `bytes` bytes with what its alignment adds.
  static size_t buffer_bytes(size_t bytes);

  // Requests that are not urgent wait until no urgent one is left. Throws std::length_error past max_requests.
  void submit(const ReadRequest& request, bool is_urgent);
  size_t num_queued() const;  // not started
  // Hands out what has arrived, oldest first.
  size_t take(ReadArrival* out, size_t max);
  // Waits until something has arrived; false when nothing did in time.
  bool wait(std::chrono::milliseconds timeout);
  void release(int32_t buffer);
  // Forgets queued requests of a record (-1: of all); those being read still arrive.
  void forget(int32_t record);
  // Makes the queued requests of a record urgent.
  void hurry(int32_t record);
  // Only the first `count` buffers are used from now on; the memory of the others goes back to the system.
  void keep_buffers(int32_t count);
  void delay_for_test(int32_t milliseconds) { delay_ms_ = milliseconds; }

  bool is_direct() const;  // all files are
  int32_t num_threads() const { return static_cast<int32_t>(threads_.size()); }
  double busy_seconds() const;      // with at least one read under way
  bool is_of_this_process() const;  // false after fork()

 private:
  struct Source;
  void work();
  int32_t read(const ReadRequest& request, uint8_t* buffer, const uint8_t** data);
  int32_t read_from(const Source& source, bool is_direct, const ReadRequest& request, uint8_t* buffer,
                    const uint8_t** data);
  bool pop(std::vector<ReadRequest>& queue, size_t& head, ReadRequest* out);

  std::vector<std::unique_ptr<Source>> sources_;
  const ReadFunction read_;
  const Buffers buffers_;
  const size_t max_requests_;

  mutable std::mutex mutex_;
  std::condition_variable has_work_, has_arrival_;
  std::vector<ReadRequest> urgent_, idle_;  // first in, first out from their heads
  size_t urgent_head_ = 0, idle_head_ = 0;
  std::vector<ReadArrival> arrivals_;
  std::vector<int32_t> free_buffers_;
  int32_t num_buffers_;
  std::atomic<bool> stop_{false};
  std::atomic<int32_t> delay_ms_{0};
  int32_t num_reading_ = 0;
  std::chrono::steady_clock::time_point busy_since_;
  double busy_seconds_ = 0;
  int64_t pid_;
  std::vector<std::thread> threads_;
};

// --- slots (arena.cpp) ---

// Which slot of a size class is given up when no one is free.
class Replacement {
 public:
  virtual ~Replacement() = default;
  virtual void use(int32_t slot, int32_t record) = 0;  // a record was put in or used
  virtual void free(int32_t slot) = 0;                 // it holds no record any more
  virtual void move(int32_t from, int32_t to) = 0;     // its record lies in `to` now, which held none
  // Among used slots with no pin the one to give up; -1: none.
  virtual int32_t victim(const std::vector<int32_t>& pins) const = 0;
};

// Gives up what was used least, where a use counts half after every kHalfLife x num_records later ones (64 tokens of a
// model that uses 8 of 128 experts). Counts outlive the slot: a record that comes back is known. On recorded routing it
// missed 3 to 33 % less than LRU with slots for 10 to 50 % of the experts (docs/lab-notes.md).
class DecayedLfu final : public Replacement {
 public:
  static constexpr double kHalfLife = 4;

  // Records are numbered below `num_ids`; `num_records` of them belong here.
  DecayedLfu(int32_t num_slots, int32_t num_records, int32_t num_ids);
  void use(int32_t slot, int32_t record) override;
  void free(int32_t slot) override;
  void move(int32_t from, int32_t to) override;
  int32_t victim(const std::vector<int32_t>& pins) const override;

 private:
  // log2 of the sum of 2^(t / half_life) over a record's uses t, so that time passing changes none; -inf: no use yet.
  std::vector<double> scores_;
  std::vector<int32_t> records_;  // by slot; -1: none
  double half_life_;              // uses
  int64_t now_ = 0;
};

// Slots are whole pages, so that those that are given up go back to the system entirely.
constexpr size_t kSlotAlign = 4096;

// How many slots of each size class a budget gives. Classes get the same share of their records, since every layer runs
// once a token.
struct SlotClass {
  size_t slot_bytes;
  int32_t num_records;
  int32_t least;  // slots that one operation needs at once
  int32_t num_slots = 0;
};
size_t least_slot_bytes(const std::vector<SlotClass>& classes);
// Sets num_slots; `bytes` is at least the least.
void share_slots(std::vector<SlotClass>& classes, size_t bytes);

// Slots of all classes in one piece of memory, and which record lies where. Slots are numbered through.
class SlotArena {
 public:
  SlotArena(const std::vector<SlotClass>& classes, uint8_t* memory);

  // A free slot or the policy's victim; what lay there is told by `evicted` (-1: nothing). -1: all are pinned.
  int32_t acquire(int32_t size_class, int32_t record, int32_t* evicted);
  void free(int32_t slot);
  void use(int32_t slot);
  void pin(int32_t slot);
  void unpin(int32_t slot);
  bool is_pinned(int32_t slot) const;
  uint8_t* data(int32_t slot) const { return slots_[static_cast<size_t>(slot)].data; }
  int32_t record(int32_t slot) const { return slots_[static_cast<size_t>(slot)].record; }
  // Keeps that many slots of each class, as share_slots gave them: the policy's victims are given up, what stays moves
  // to the first slots, and the memory behind goes back to the system. `moved(record, slot)` tells of each (-1: given
  // up). No record may be pinned.
  void shrink(const std::vector<SlotClass>& classes, const std::function<void(int32_t, int32_t)>& moved);
  void swap_contents_for_test(int32_t a, int32_t b, size_t bytes);
  int32_t num_slots() const;

 private:
  struct Slot {
    uint8_t* data;
    int32_t size_class, index;  // within its class
    int32_t record = -1;
  };
  struct Class {
    int32_t first, count;  // slots; those from `count` on are not used any more
    size_t bytes;          // of one slot
    std::vector<int32_t> pins, free;
    std::unique_ptr<Replacement> policy;
  };
  std::vector<Slot> slots_;
  std::vector<Class> classes_;
};

// --- the stream (stream.cpp) ---

class ExpertStream {
 public:
  struct Options {
    size_t bytes;
    int32_t num_readers = 4;
    DirectIo direct_io = DirectIo::kAuto;
    bool verify_slots = false;
    ReadFunction read;  // empty: os::read_file
  };
  // What all threads do next: pack the pieces, compute the experts.
  struct Batch {
    std::vector<int32_t> experts;
    std::vector<ReadArrival> pieces;
    std::vector<int32_t> items_end;  // [pieces]: pack items up to and with it
    int32_t num_pack_items = 0;
    bool is_last = false;  // of the wave
  };

  // Throws std::invalid_argument naming the least that works when the budget is too small.
  ExpertStream(const Program& program, const LinearKernels& kernels, const Options& options);
  ~ExpertStream();

  // An expert's matrix: part 0 is gate, 1 up, 2 down. Its data is valid while the expert is in a batch.
  const PackedMatrix& matrix(int32_t layer, int32_t expert, int32_t part) const {
    return records_[static_cast<size_t>(layers_[static_cast<size_t>(layer)].first + expert)].matrices[part];
  }

  // One operation, by one thread: rows of expert e are [expert_begin[e], expert_begin[e + 1]) of all assignments, which
  // are walked in waves. `check` is called while waiting and may throw.
  void begin(int32_t layer, const int32_t* expert_begin);
  void begin_wave(int32_t begin, int32_t end);
  const Batch& next(const std::function<void()>& check);
  void end_batch();  // its work is done
  void end();
  // Any thread: packs the item'th piece of a batch.
  void pack(int32_t item);

  // Between operations, by one thread: reads experts that are likely to be needed next, while the disk has nothing
  // else.
  void look_ahead(int32_t layer, const int32_t* experts, int32_t count);

  // After an error: nothing is in use or expected any more. Does not wait for reads under way.
  void abandon();

  const std::vector<LayerLedger>& ledger() const { return ledger_; }
  // See Executor::shrink_experts.
  void shrink(size_t bytes);
  void delay_reads_for_test(int32_t milliseconds) { readers_->delay_for_test(milliseconds); }

  int32_t num_slots() const { return arena_->num_slots(); }
  size_t slot_bytes() const { return slot_bytes_; }    // of all slots
  size_t total_bytes() const { return total_bytes_; }  // slots and raw buffers
  size_t least_bytes() const { return least_bytes_; }
  size_t record_bytes() const { return record_bytes_; }  // of the largest record, in the file
  const Readers& readers() const { return *readers_; }
  void swap_slots_for_test(int32_t layer, int32_t a, int32_t b);

 private:
  // What is read in one go (executor/stored.h): a matrix's run, whose units may be those of the matrix behind it too.
  struct Run {
    int32_t part, which;
    bool feeds_next;
    int32_t file;
    int32_t units_per_request;
  };
  struct Record {
    Run runs[6];
    int32_t num_runs = 0;
    int32_t ids[3];  // of its matrices in the program
    PackedMatrix matrices[3];
    size_t slot_offsets[3];
    int32_t layer, expert, size_class;
    int32_t slot = -1;
    int32_t requests_left = 0;  // 0 with a slot: complete
    uint32_t ticket = 0;
  };
  struct Layer {
    int32_t first, num_experts, top_k;
  };
  enum class Need : uint8_t { kNone, kMissing, kReading, kReady, kDone };

  const MatrixSpec& spec_of(const Record& record, int32_t part) const;
  StoredRun stored(const Record& record, const Run& run) const;
  Record& record_of(int32_t expert) { return records_[static_cast<size_t>(layers_[layer_].first + expert)]; }
  bool start(Record& record, bool is_urgent);
  void drop(Record& record);
  [[noreturn]] void refuse_budget(size_t bytes) const;
  size_t choose_buffers(size_t bytes) const;
  void pump();
  bool give_up_later_hit(int32_t expert);
  bool collect();
  void choose();
  void verify(const Record& record);
  [[noreturn]] void fail(const ReadArrival& arrival) const;
  std::string name_of(const Record& record) const;

  const Program& program_;
  const LinearKernels& kernels_;
  const bool verify_slots_;
  std::vector<Layer> layers_;
  std::vector<Record> records_;
  std::vector<std::shared_ptr<const File>> files_;
  std::unique_ptr<Memory> memory_;
  std::unique_ptr<SlotArena> arena_;
  std::unique_ptr<Readers> readers_;
  std::vector<LayerLedger> ledger_;
  std::vector<SlotClass> classes_;
  size_t slot_bytes_ = 0, total_bytes_ = 0, least_bytes_ = 0, record_bytes_ = 0;
  size_t buffer_bytes_ = 0, most_buffers_ = 0, least_slot_bytes_ = 0;
  size_t queue_target_ = 0;
  int32_t max_look_ahead_ = 0;
  uint32_t next_ticket_ = 0;

  // The running operation.
  size_t layer_ = 0;
  const int32_t* expert_begin_ = nullptr;
  std::vector<Need> needs_;        // [experts]
  std::vector<int32_t> computed_;  // [experts]: assignments before this are done
  int32_t pump_at_ = 0, num_expected_ = 0;
  int32_t wave_begin_ = 0, wave_end_ = 0, wave_left_ = 0;
  Batch batch_;
  std::unique_ptr<std::atomic<int32_t>[]> items_left_;  // by piece
  std::chrono::steady_clock::time_point begun_;
  double waited_ = 0;
  std::vector<int32_t> ahead_;  // records that look-ahead reads
  std::vector<int32_t> kept_;   // records that it found there and pinned until their layer begins
};

}  // namespace kamado
