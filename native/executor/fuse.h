// First half of planning: the program as a flat list of nodes over values, products merged and gates fused.
#pragma once
#include <map>
#include <tuple>
#include <vector>

#include "executor/plan.h"

namespace kamado {

// What a buffer holds between two overwrites, a quantised copy, a routing result or a table.
struct Value {
  size_t row_bytes = 0;
  int32_t first = -1, last = -1;  // indexes into the part's nodes: written first, used last
  int32_t slot = -1;              // the memory it lies in; values whose lives do not overlap share
};

// One part of the program. Each node of kind kRow has exactly one operation here.
struct Part {
  std::vector<Node> nodes;
  std::vector<Value> values;
};

struct Flat {
  Part main, tail;
  // Gather operations at the tail's start read a value of the main part (RowOp::in[0]) into one of the tail's.
  std::vector<UnitKind> unit_kinds;
  int32_t logits = -1;  // value of the tail
  bool has_main = false;
};

Flat fuse(const Program& program);

// Calls visit(value, place) for each value that a node reads or writes, -1 where one is not used. What Gather reads is
// left out: it is a value of the other part.
template <class AnyNode, class Visit>
void for_each_input(AnyNode& node, Visit&& visit) {
  for (auto& op : node.rows) {
    for (int32_t i = 0; op.kind != RowKind::kGather && i < kMaxRowInputs; ++i) visit(op.in[i], op.in_at[i]);
  }
  for (auto& part : node.linear.parts) visit(part.act, part.act_at);
  visit(node.attend.q, node.attend.q_at);
  visit(node.attend.k, node.attend.k_at);
  visit(node.attend.v, node.attend.v_at);
  for (int i = 0; i < kNumActKinds; ++i) visit(node.experts.acts[i], node.experts.acts_at[i]);
  visit(node.experts.routing, node.experts.routing_at);
  for (int32_t i = 0; i < node.record.num_inputs; ++i) visit(node.record.in[i], node.record.in_at[i]);
}
template <class AnyNode, class Visit>
void for_each_output(AnyNode& node, Visit&& visit) {
  for (auto& op : node.rows) visit(op.out, op.out_at);
  for (auto& part : node.linear.parts) visit(part.out, part.out_at);
  visit(node.attend.out, node.attend.out_at);
  visit(node.experts.out, node.experts.out_at);
  visit(node.record.out, node.record.out_at);
}

}  // namespace kamado
