// The tiers that a test goes through.
#pragma once
#include <string>

#include "check.h"
#include "kamado/tables.h"

namespace kamado::test {

// Calls run(table, is_reference) for the scalar reference and for every tier of this machine; tells of the others.
template <class Run>
void for_each_tier(Run&& run) {
  for (const char* tier : {"scalar", "avx2", "avx512"}) {
    const KernelTable* table = table_by_name(tier);
    if (table != nullptr) {
      run(*table, table == table_by_name("scalar"));
    } else {
      skip(std::string("tier ") + tier + ": not tested, this build or processor lacks it");
    }
  }
}

}  // namespace kamado::test
