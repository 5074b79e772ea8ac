// Look-ahead: while attention of a layer runs, the disk reads what the layer's router will probably pick. The guess is
// the router applied to the hidden state before attention has added to it. A wrong guess costs time and changes
// nothing.
#pragma once
#include "kamado/executor.h"

namespace kamado {

// Adds, for every Experts operation whose router reads a norm of the residual stream, that norm and router once more,
// right after the stream was last written before the attention in between.
void add_look_ahead(Program& program);

// Whether the next step of one row looks ahead. With kAuto, steps with and without it are timed against each other, the
// winner is kept for a while, and then they are compared again.
class AheadControl {
 public:
  explicit AheadControl(LookAhead mode = LookAhead::kOff) : mode_(mode) {}

  bool is_on() const;
  void add(double seconds);  // of a step of one row

 private:
  static constexpr int32_t kBlock = 4;  // steps of one kind in a row, so that one's cache serves its own
  static constexpr int32_t kTrial = 8 * kBlock;
  static constexpr int32_t kKept = 8 * kTrial;
  static constexpr double kGain = 0.99;  // it must pay to be used: it wears the disk

  LookAhead mode_;
  int32_t step_ = 0;
  bool is_kept_ = false;
  double seconds_[2] = {0, 0};
};

}  // namespace kamado
