#include "executor/ahead.h"

#include <algorithm>

namespace kamado {
namespace {

// The last operation before `end` that writes `buffer`; -1: none.
int64_t last_write(const Program& program, int64_t end, int32_t buffer) {
  for (int64_t i = end - 1; i >= 0; --i) {
    if (writes(program.ops[static_cast<size_t>(i)], buffer)) return i;
  }
  return -1;
}

struct Guess {
  size_t after;  // index of the operation that it follows
  NormOp norm;
  LinearOp linear;
  PredictOp predict;
};

}  // namespace

void add_look_ahead(Program& program) {
  std::vector<Guess> guesses;
  int64_t previous = -1;  // Experts operation
  int32_t layer = 0;
  for (size_t at = 0; at < program.ops.size(); ++at) {
    const auto* experts = std::get_if<ExpertsOp>(&program.ops[at]);
    if (experts == nullptr) continue;
    const int64_t begin = previous;
    previous = static_cast<int64_t>(at);
    const int32_t this_layer = layer++;
    if (begin == -1) continue;
    const RouteOp* route = nullptr;
    int64_t route_at = previous;
    while (route == nullptr && route_at-- > begin) {
      route = std::get_if<RouteOp>(&program.ops[static_cast<size_t>(route_at)]);
      if (route != nullptr && route->logits != experts->logits) route = nullptr;
    }
    if (route == nullptr) continue;
    const int64_t linear_at = last_write(program, route_at, route->logits);
    const auto* linear =
        linear_at <= begin ? nullptr : std::get_if<LinearOp>(&program.ops[static_cast<size_t>(linear_at)]);
    if (linear == nullptr) continue;
    const int64_t norm_at = last_write(program, linear_at, linear->x);
    const auto* norm = norm_at <= begin ? nullptr : std::get_if<NormOp>(&program.ops[static_cast<size_t>(norm_at)]);
    if (norm == nullptr || norm->x == norm->out) continue;
    int64_t attend_at = begin;
    while (attend_at < norm_at && !std::holds_alternative<AttendOp>(program.ops[static_cast<size_t>(attend_at)])) {
      ++attend_at;
    }
    const int64_t after = last_write(program, attend_at, norm->x);
    if (attend_at == norm_at || after <= begin) continue;  // nothing to hide reads behind
    const auto part =
        static_cast<size_t>(std::find(linear->outs.begin(), linear->outs.end(), route->logits) - linear->outs.begin());
    Guess guess{static_cast<size_t>(after), *norm, {}, {*route, this_layer}};
    guess.linear.weights = {linear->weights[part]};
    if (!linear->biases.empty()) guess.linear.biases = {linear->biases[part]};
    guesses.push_back(std::move(guess));
  }
  if (guesses.empty()) return;

  std::vector<Op> ops;
  std::vector<bool> is_ahead;
  const auto buffer = [&program](const std::string& name, int32_t width) {
    program.buffers.push_back({name, width});
    return static_cast<int32_t>(program.buffers.size() - 1);
  };
  auto next = guesses.begin();
  for (size_t i = 0; i < program.ops.size(); ++i) {
    ops.push_back(std::move(program.ops[i]));
    is_ahead.push_back(false);
    for (; next != guesses.end() && next->after == i; ++next) {
      const int32_t width = program.buffers[static_cast<size_t>(next->norm.x)].width;
      next->norm.out = next->linear.x = buffer("look-ahead norm", width);
      next->predict.route.logits = buffer("look-ahead router", next->predict.route.num_experts);
      next->linear.outs = {next->predict.route.logits};
      ops.insert(ops.end(), {next->norm, next->linear, next->predict});
      is_ahead.insert(is_ahead.end(), 3, true);
    }
  }
  program.ops = std::move(ops);
  program.is_ahead = std::move(is_ahead);
}

bool AheadControl::is_on() const {
  if (mode_ != LookAhead::kAuto) return mode_ == LookAhead::kOn;
  return step_ < kTrial ? step_ / kBlock % 2 == 1 : is_kept_;
}

void AheadControl::add(double seconds) {
  if (mode_ != LookAhead::kAuto) return;
  if (step_ < kTrial) seconds_[is_on() ? 1 : 0] += seconds;
  if (++step_ == kTrial) is_kept_ = seconds_[1] < kGain * seconds_[0];
  if (step_ < kTrial + kKept) return;
  step_ = 0;
  seconds_[0] = seconds_[1] = 0;
}

}  // namespace kamado
