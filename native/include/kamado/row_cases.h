// Every row-wise operation with parameters as a program may have them, for the checks of its kernels: a new operation
// is among them because it is defined.
#pragma once
#include <algorithm>
#include <type_traits>

#include "kamado/operands.h"

namespace kamado {

// Calls visit(op, is_there): whether input i of the operation is there; one that is has i for its buffer. Numbers come
// from what make_random() gives anew for each operation: floats from 0 up. Every choice, both bools, and optional
// inputs and numbers with and without, in all combinations, occur.
template <class MakeRandom, class Visit>
void for_each_row_case(MakeRandom&& make_random, Visit&& visit) {
  for_each_op([&]<class T>(T op) {
    if constexpr (T::kIsRowWise) {
      auto random = make_random();
      int32_t num_variants = 1, num_lacks = 1;
      T::fields(op, [&](auto field, auto&) {
        num_variants = std::max({num_variants, field.num_choices, field.role == Role::kBool ? 2 : 1});
        if (field.is_optional) num_lacks *= 2;
      });
      for (int32_t variant = 0; variant < num_variants * num_lacks; ++variant) {
        bool is_there[kMaxRowInputs] = {};
        int32_t input = 0, lacks = variant / num_variants;
        T::fields(op, [&]<class Value>(auto field, Value& value) {
          const bool is_given = !field.is_optional || lacks % 2 == 0;
          if (field.is_optional) lacks /= 2;
          if constexpr (field.role == Role::kReads) {
            value = is_given ? input : -1;
            is_there[input++] = is_given;
          } else if constexpr (std::is_enum_v<Value>) {
            value = static_cast<Value>(variant % num_variants % field.num_choices);
          } else if constexpr (std::is_same_v<Value, bool>) {
            value = variant % num_variants % 2 == 1;
          } else if constexpr (!is_operand(field.role)) {
            value = is_given ? static_cast<Value>(1 + random()) : Value{};
          }
        });
        visit(static_cast<const T&>(op), is_there);
      }
    }
  });
}

}  // namespace kamado
