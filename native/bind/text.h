// The part of the Python module that deals in strings and in the choice of tokens.
#pragma once

#include <nanobind/nanobind.h>

namespace kamado {

// Adds StringTable, scan_strings, BytePairs, JsonCost and top_ids.
void bind_text(nanobind::module_& m);

}  // namespace kamado
