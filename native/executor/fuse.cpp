#include "executor/fuse.h"

#include <algorithm>

#include "executor/file.h"

namespace kamado {
namespace {

// Calls the kernel of an operation of type T.
template <class T>
void call_kernel(const RowKernels& kernels, const Op& op, const float* const* in, int32_t n, float* out) {
  run_row_kernel(kernels, *std::get_if<T>(&op), in, n, out);
}

bool contains(const std::vector<int32_t>& list, int32_t item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

class Fuser {
 public:
  explicit Fuser(const Program& program) : program_(program), current_(program.buffers.size(), -1) {
    for (size_t i = 0; i < program.ops.size(); ++i) {
      if (writes_state(program.ops[i])) tail_begin_ = i + 1;
    }
    flat_.has_main = tail_begin_ > 0;
    part_ = flat_.has_main ? &flat_.main : &flat_.tail;
  }

  Flat run() {
    size_t i = 0;
    while (i < program_.ops.size()) {
      if (flat_.has_main && i == tail_begin_) enter_tail();
      const Op& op = program_.ops[i];
      is_ahead_ = !program_.is_ahead.empty() && program_.is_ahead[i];
      if (std::holds_alternative<LinearOp>(op)) {
        i = linear(i);
      } else {
        std::visit([&](const auto& concrete) { emit(op, concrete); }, op);
        ++i;
      }
    }
    flat_.tail.nodes.insert(flat_.tail.nodes.begin(), gathers_.begin(), gathers_.end());
    return std::move(flat_);
  }

 private:
  int32_t new_value(size_t row_bytes) {
    part_->values.emplace_back().row_bytes = align_up(row_bytes);
    return static_cast<int32_t>(part_->values.size() - 1);
  }

  int32_t width(int32_t buffer) const { return program_.buffers[static_cast<size_t>(buffer)].width; }

  // The value that a buffer holds now; in the tail, one of the main part is gathered first.
  int32_t value_of(int32_t buffer) {
    int32_t& value = current_[static_cast<size_t>(buffer)];
    if (is_of_main_.empty() || !is_of_main_[static_cast<size_t>(buffer)]) return value;
    is_of_main_[static_cast<size_t>(buffer)] = false;
    return value = gather(value);
  }

  int32_t gather(int32_t main_value) {
    const size_t bytes = flat_.main.values[static_cast<size_t>(main_value)].row_bytes;
    const int32_t out = new_value(bytes);
    Node node{NodeKind::kRow};
    RowOp& op = node.rows.emplace_back(RowKind::kGather);
    op.width = static_cast<int32_t>(bytes);
    op.out = out;
    op.in[0] = main_value;
    gathers_.push_back(std::move(node));
    return out;
  }

  int32_t overwrite(int32_t buffer) {
    if (!is_of_main_.empty()) is_of_main_[static_cast<size_t>(buffer)] = false;
    return current_[static_cast<size_t>(buffer)] = new_value(static_cast<size_t>(width(buffer)) * sizeof(float));
  }

  // `buffer` is written; in place when it is one of the operation's inputs.
  int32_t output(int32_t buffer, const std::vector<int32_t>& inputs) {
    if (!contains(inputs, buffer)) return overwrite(buffer);
    const int32_t value = value_of(buffer);
    std::erase_if(quantised_, [value](const auto& entry) { return entry.first.first == value; });
    return value;
  }

  void enter_tail() {
    part_ = &flat_.tail;
    is_of_main_.assign(program_.buffers.size(), true);
    quantised_.clear();
    ropes_.clear();
    for (auto& [logits, routing] : routings_) routing.is_of_main = true;
    for (auto& [table, stored] : fetched_) stored.is_of_main = true;
  }

  RowOp& row(RowKind kind, const Op* op, int32_t row_width) {
    Node node{NodeKind::kRow};
    RowOp& entry = node.rows.emplace_back(kind);
    entry.is_ahead = is_ahead_;
    entry.op = op;
    entry.width = row_width;
    part_->nodes.push_back(std::move(node));
    return part_->nodes.back().rows.back();
  }

  // `value` as a product takes it; one quantisation serves all products that read the same values.
  int32_t quantised(int32_t value, ActKind kind, int32_t cols) {
    if (kind == ActKind::kF32) return value;
    const auto known = quantised_.find({value, kind});
    if (known != quantised_.end()) return known->second;
    const int32_t out = new_value(act_bytes(kind, cols));
    RowOp& op = row(RowKind::kQuantize, nullptr, cols);
    op.act = kind;
    op.out = out;
    op.in[0] = value;
    quantised_[{value, kind}] = out;
    return out;
  }

  ActKind kind_of(int32_t matrix) const { return act_kind(program_.matrices[static_cast<size_t>(matrix)].layout); }

  // Whether what `buffer` holds at op `index` is read there or later.
  bool is_read_from(size_t index, int32_t buffer) const {
    for (size_t i = index; i < program_.ops.size(); ++i) {
      if (reads(program_.ops[i], buffer)) return true;
      if (writes(program_.ops[i], buffer)) return false;
    }
    return false;
  }

  // Merges the products from op `begin` on that share its input, fuses a gate that follows; returns the next op.
  size_t linear(size_t begin) {
    const int32_t x = std::get<LinearOp>(program_.ops[begin]).x;
    std::vector<int32_t> outs, weights, biases;
    size_t end = begin;
    for (; end < program_.ops.size() && !(flat_.has_main && end == tail_begin_ && end != begin); ++end) {
      const auto* op = std::get_if<LinearOp>(&program_.ops[end]);
      if (op == nullptr || op->x != x || contains(outs, x)) break;
      if (std::any_of(op->outs.begin(), op->outs.end(), [&](int32_t out) { return contains(outs, out); })) break;
      outs.insert(outs.end(), op->outs.begin(), op->outs.end());
      weights.insert(weights.end(), op->weights.begin(), op->weights.end());
      biases.insert(biases.end(), op->biases.begin(), op->biases.end());
      biases.resize(outs.size(), -1);
    }
    Node node{NodeKind::kLinear};
    LinearNode& linear = node.linear;
    const int32_t input = value_of(x);
    std::vector<LinearPart> parts(outs.size());
    for (size_t i = 0; i < outs.size(); ++i) {
      parts[i].matrix = weights[i];
      parts[i].bias = biases[i];
      parts[i].act = quantised(input, kind_of(weights[i]), width(x));
    }
    const GateOp* gate = fusable_gate(end, outs);
    if (gate != nullptr) {
      ++end;
      linear.is_gated = true;
      linear.has_gate_b = gate->b != -1;
      linear.activation = gate->activation;
      linear.limit = gate->limit;
      linear.alpha = gate->alpha;
      // Part 0 is the gate's first input, part 1 its second.
      const auto bring = [&](int32_t buffer, size_t to) {
        const auto from = static_cast<size_t>(std::find(outs.begin(), outs.end(), buffer) - outs.begin());
        std::swap(outs[from], outs[to]);
        std::swap(parts[from], parts[to]);
      };
      bring(gate->a, 0);
      if (linear.has_gate_b) bring(gate->b, 1);
    }
    for (size_t i = 0; i < outs.size(); ++i) {
      if (linear.is_gated && i <= (linear.has_gate_b ? 1u : 0u)) continue;
      parts[i].out = overwrite(outs[i]);
    }
    if (gate != nullptr) parts[0].out = overwrite(gate->out);
    linear.parts = std::move(parts);
    linear.is_ahead = is_ahead_;
    part_->nodes.push_back(std::move(node));
    return end;
  }

  const GateOp* fusable_gate(size_t index, const std::vector<int32_t>& outs) const {
    if (index >= program_.ops.size() || (flat_.has_main && index == tail_begin_)) return nullptr;
    const auto* gate = std::get_if<GateOp>(&program_.ops[index]);
    if (gate == nullptr || !contains(outs, gate->a) || gate->a == gate->b) return nullptr;
    if (gate->b != -1 && !contains(outs, gate->b)) return nullptr;
    if (gate->group > 1) return nullptr;  // the tiles of its inputs are not those of the same columns
    if (gate->out != gate->a && gate->out != gate->b && contains(outs, gate->out)) return nullptr;
    for (const int32_t input : {gate->a, gate->b}) {
      if (input != -1 && input != gate->out && is_read_from(index + 1, input)) return nullptr;
    }
    return gate;
  }

  void emit(const Op& op, const EmbedOp& o) {
    const int32_t stored = o.pieces > 1 ? fetch(op, o) : -1;
    const int32_t out = overwrite(o.out);
    RowOp& entry = row(RowKind::kEmbed, &op, width(o.out));
    entry.out = out;
    entry.in[0] = stored;
  }

  // A row of the table as it is stored: read once for all its pieces, in the tail too.
  int32_t fetch(const Op& op, const EmbedOp& o) {
    Fetched& stored = fetched_[{o.table, o.index}];
    if (stored.value == -1) {
      const MatrixSpec& table = program_.matrices[static_cast<size_t>(o.table)];
      stored.value = new_value(row_bytes(table.layout, table.cols));
      row(RowKind::kFetch, &op, width(o.out)).out = stored.value;
    } else if (stored.is_of_main) {
      stored = {gather(stored.value), false};
    }
    return stored.value;
  }

  // What an operation reads, in the order of its fields.
  template <class T>
  static std::vector<int32_t> inputs_of(const T& o) {
    std::vector<int32_t> inputs;
    T::fields(o, [&inputs](auto field, auto value) {
      if constexpr (decltype(field)::role == Role::kReads) inputs.push_back(value);
    });
    return inputs;
  }

  template <class T>
    requires T::kIsRowWise
  void emit(const Op& op, const T& o) {
    RowOp& entry = row_of(RowKind::kKernel, op, o.out, inputs_of(o));
    entry.kernel = call_kernel<T>;
    entry.guards = T::kGuards;
  }

  RowOp& row_of(RowKind kind, const Op& op, int32_t out_buffer, const std::vector<int32_t>& inputs) {
    int32_t values[kMaxRowInputs];
    for (size_t i = 0; i < inputs.size(); ++i) values[i] = inputs[i] == -1 ? -1 : value_of(inputs[i]);
    const int32_t out = output(out_buffer, inputs);
    RowOp& entry = row(kind, &op, width(out_buffer));
    entry.out = out;
    std::copy_n(values, inputs.size(), entry.in);
    for (size_t i = 0; i < inputs.size(); ++i) entry.in_width[i] = inputs[i] == -1 ? 0 : width(inputs[i]);
    return entry;
  }

  void emit(const Op& op, const NormOp& o) { row_of(RowKind::kNorm, op, o.out, {o.x}); }
  void emit(const Op& op, const TemperOp& o) { row_of(RowKind::kTemper, op, o.out, {o.x}); }
  void emit(const Op& op, const RescaleOp& o) { row_of(RowKind::kRescale, op, o.out, {o.x}); }
  void emit(const Op&, const LinearOp&) {}  // linear() does these

  void emit(const Op& op, const RopeOp& o) {
    const auto key = std::make_pair(o.inv_freq, o.attention_factor);
    auto table = ropes_.find(key);
    if (table == ropes_.end()) {
      const size_t half = program_.constants[static_cast<size_t>(o.inv_freq)].size();
      const int32_t value = new_value(2 * half * sizeof(float));
      row(RowKind::kRopeTable, &op, static_cast<int32_t>(half)).out = value;
      table = ropes_.emplace(key, value).first;
    }
    row_of(RowKind::kRope, op, o.x, {o.x}).in[1] = table->second;
  }

  // The choice that a route makes from its logits, as a value of its own.
  int32_t choose(RowKind kind, const Op& op, const RouteOp& route) {
    const int32_t logits = value_of(route.logits);
    const int32_t out = new_value(static_cast<size_t>(route.top_k) * (sizeof(int32_t) + sizeof(float)));
    RowOp& entry = row(kind, &op, route.num_experts);
    entry.out = out;
    entry.in[0] = logits;
    return out;
  }

  void emit(const Op& op, const RouteOp& o) { routings_[o.logits] = {&o, choose(RowKind::kRoute, op, o), false}; }
  void emit(const Op& op, const PredictOp& o) { choose(RowKind::kPredict, op, o.route); }

  void emit(const Op&, const ExpertsOp& o) {
    Routing& routing = routings_.at(o.logits);
    if (routing.is_of_main) {
      routing.value = gather(routing.value);
      routing.is_of_main = false;
    }
    Node node{NodeKind::kExperts};
    node.experts.op = &o;
    node.experts.route = routing.op;
    node.experts.routing = routing.value;
    node.experts.expert_width = program_.matrices[static_cast<size_t>(o.gate[0])].rows;
    node.experts.width = width(o.out);
    node.experts.layer = num_experts_ops_++;
    const int32_t x = value_of(o.x);
    for (const auto* list : {&o.gate, &o.up}) {
      for (const int32_t matrix : *list) {
        const ActKind kind = kind_of(matrix);
        node.experts.acts[static_cast<size_t>(kind)] = quantised(x, kind, width(o.x));
      }
    }
    node.experts.out = overwrite(o.out);
    part_->nodes.push_back(std::move(node));
  }

  void emit(const Op& op, const AttendOp& o) {
    const bool is_last = static_cast<size_t>(&op - program_.ops.data()) + 1 == tail_begin_;
    const StateSpec& state = program_.states[static_cast<size_t>(o.state)];
    const bool is_source = state.kind == StateKind::kSource;
    UnitKind kind{o.num_kv_heads, o.num_heads / o.num_kv_heads, o.window, o.causal && !is_source, is_last, o.stores};
    kind.source = is_source ? state.index : -1;
    kind.is_tail = part_ == &flat_.tail;
    auto& kinds = flat_.unit_kinds;
    const auto same = std::find(kinds.begin(), kinds.end(), kind);
    Node node{NodeKind::kAttend};
    node.attend.op = &o;
    node.attend.layer = state.index;
    node.attend.is_causal = kind.is_causal;
    node.attend.units = static_cast<int32_t>(same - kinds.begin());
    if (same == kinds.end()) kinds.push_back(kind);
    node.attend.q = value_of(o.q);
    if (o.stores) {
      node.attend.k = value_of(o.k);
      node.attend.v = value_of(o.v);
    }
    node.attend.out = overwrite(o.out);
    part_->nodes.push_back(std::move(node));
  }

  template <class T>
    requires T::kIsRecurrent
  void emit(const Op& op, const T& o) {
    Node node{NodeKind::kRecord};
    RecordNode& record = node.record;
    record.op = &op;
    record.record = program_.states[static_cast<size_t>(o.state)].index;
    record.num_columns = width(o.out);
    const std::vector<int32_t> inputs = inputs_of(o);
    for (const int32_t input : inputs) record.in[record.num_inputs++] = value_of(input);
    record.out = output(o.out, inputs);
    part_->nodes.push_back(std::move(node));
  }

  int32_t hand_out(int32_t buffer) {
    const int32_t x = value_of(buffer);
    row(RowKind::kOutput, nullptr, width(buffer)).in[0] = x;
    return x;
  }

  void emit(const Op&, const PoolOp& o) { hand_out(o.x); }

  void emit(const Op&, const HeadOp& o) {
    const int32_t x = hand_out(o.x);
    Node node{NodeKind::kLinear};
    LinearPart part;
    part.matrix = o.weight;
    part.bias = o.bias;
    part.act = quantised(x, kind_of(o.weight), width(o.x));
    part.out = flat_.logits = new_value(0);  // has memory of its own, without padding between rows
    node.linear.parts.push_back(part);
    node.linear.is_head = true;
    node.linear.scale = o.scale;
    node.linear.softcap = o.softcap;
    part_->nodes.push_back(std::move(node));
  }

  struct Routing {
    const RouteOp* op;
    int32_t value;
    bool is_of_main;
  };
  struct Fetched {
    int32_t value = -1;
    bool is_of_main = false;
  };

  const Program& program_;
  Flat flat_;
  Part* part_;
  size_t tail_begin_ = 0;
  std::vector<int32_t> current_;  // buffer -> value
  std::vector<bool> is_of_main_;  // in the tail: the buffer's value is still one of the main part
  std::map<std::pair<int32_t, ActKind>, int32_t> quantised_;
  std::map<std::pair<int32_t, double>, int32_t> ropes_;
  std::map<int32_t, Routing> routings_;  // logits buffer ->
  std::map<std::pair<int32_t, EmbedIndex>, Fetched> fetched_;
  std::vector<Node> gathers_;
  int32_t num_experts_ops_ = 0;
  bool is_ahead_ = false;  // the operation at hand
};

}  // namespace

Flat fuse(const Program& program) {
  return Fuser(program).run();
}

}  // namespace kamado
