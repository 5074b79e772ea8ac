// How long steps took, by what they did: thread 0's time.
#pragma once
#include <chrono>
#include <cstdint>

namespace kamado {

enum class Timed { kRows, kLinear, kAttend, kExperts, kHead, kRecords };
constexpr int kNumTimed = 6;

class StepTimes {
 public:
  using Clock = std::chrono::steady_clock;

  static double between(Clock::time_point begin, Clock::time_point end) {
    return std::chrono::duration<double>(end - begin).count();
  }

  void begin() {
    begin_ = last_ = Clock::now();
    now_ = Timed::kRows;
  }
  // What is done from now on.
  void enter(Timed what) {
    const Clock::time_point time = Clock::now();
    spent(now_) += between(last_, time);
    last_ = time;
    now_ = what;
  }
  // Ends a step that succeeded; gives its seconds.
  double end(int64_t num_rows) {
    enter(Timed::kRows);
    const double seconds = between(begin_, last_);
    total_ += seconds;
    ++num_steps_;
    num_rows_ += num_rows;
    return seconds;
  }
  void add_encode(double seconds) { encode_ += seconds; }

  double seconds(Timed what) const { return seconds_[static_cast<int>(what)]; }
  double total() const { return total_; }
  double encode() const { return encode_; }  // part of kAttend: pages to codes
  int64_t num_steps() const { return num_steps_; }
  int64_t num_rows() const { return num_rows_; }

 private:
  double& spent(Timed what) { return seconds_[static_cast<int>(what)]; }

  Clock::time_point begin_, last_;
  Timed now_ = Timed::kRows;
  double seconds_[kNumTimed] = {};
  double total_ = 0, encode_ = 0;
  int64_t num_steps_ = 0, num_rows_ = 0;
};

}  // namespace kamado
