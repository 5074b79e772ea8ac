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

// Lists the values that a node reads and writes.
void for_each_read(const Node& node, const std::function<void(int32_t)>& visit);
void for_each_write(const Node& node, const std::function<void(int32_t)>& visit);

}  // namespace kamado
