// Every row-wise operation with parameters as a program may have them, for the checks of its kernels: a new operation
// is among them because it is defined.
#pragma once
#include <algorithm>
#include <type_traits>

#include "kamado/operands.h"

namespace kamado {

// Calls visit(op, is_there): whether input i of the operation is there. Numbers come from random(), which gives floats
// above 0; every choice, both bools, and optional inputs with and without occur.
template <class Random, class Visit>
void for_each_row_case(Random&& random, Visit&& visit) {
  for_each_op([&]<class T>(T op) {
    if constexpr (T::kIsRowWise) {
      int32_t num_variants = 1;
      bool can_lack = false;
      T::fields(op, [&](auto field, auto&) {
        num_variants = std::max({num_variants, field.num_choices, field.role == Role::kBool ? 2 : 1});
        can_lack = can_lack || (field.role == Role::kReads && field.is_optional);
      });
      for (int32_t variant = 0; variant < num_variants * (can_lack ? 2 : 1); ++variant) {
        bool is_there[kMaxRowInputs] = {};
        int32_t input = 0;
        T::fields(op, [&]<class Value>(auto field, Value& value) {
          if constexpr (field.role == Role::kReads) {
            is_there[input++] = !field.is_optional || variant < num_variants;
          } else if constexpr (std::is_enum_v<Value>) {
            value = static_cast<Value>(variant % field.num_choices);
          } else if constexpr (std::is_same_v<Value, bool>) {
            value = variant % 2 == 1;
          } else if constexpr (!is_operand(field.role)) {
            value = static_cast<Value>(1 + random());
          }
        });
        visit(static_cast<const T&>(op), is_there);
      }
    }
  });
}

}  // namespace kamado
