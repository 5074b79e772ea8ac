// The operations' fields, generic over what they are to their operation.
#pragma once
#include "kamado/ops.h"

namespace kamado {

constexpr bool is_read(Role role) {
  return role == Role::kReads || role == Role::kUpdates || role == Role::kRoutes;
}
constexpr bool is_written(Role role) {
  return role == Role::kWrites || role == Role::kUpdates;
}
constexpr bool is_buffer(Role role) {
  return is_read(role) || is_written(role) || role == Role::kRouted;
}
constexpr bool is_operand(Role role) {
  return is_buffer(role) || role == Role::kTable || role == Role::kMatrix || role == Role::kTaps ||
         role == Role::kVector || role == Role::kConstants;
}

// Calls visit(field, value) for each field, of a list for each entry.
template <class T, class Visit>
void for_each_value(T& op, Visit&& visit) {
  T::fields(op, [&](auto field, auto& value) {
    if constexpr (requires { value.begin(); }) {
      for (auto& entry : value) visit(field, entry);
    } else {
      visit(field, value);
    }
  });
}

// Calls visit(field, id) for each buffer, tensor and constant that is there.
template <class T, class Visit>
void for_each_operand(const T& op, Visit&& visit) {
  for_each_value(op, [&](auto field, auto value) {
    if constexpr (is_operand(decltype(field)::role)) {
      if (value != -1) visit(field, value);
    }
  });
}

}  // namespace kamado
