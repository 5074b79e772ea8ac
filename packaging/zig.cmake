# The toolchain of the wheels: clang and libc++ of the `ziglang` package against the C library of 2018, whatever this
# machine has. tools/releasing/wheels.py writes the programs in KAMADO_ZIG_BIN and sets the environment.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR $ENV{KAMADO_PROCESSOR})
set(CMAKE_CXX_COMPILER $ENV{KAMADO_ZIG_BIN}/c++)
set(CMAKE_AR $ENV{KAMADO_ZIG_BIN}/ar CACHE FILEPATH "" FORCE)
set(CMAKE_RANLIB $ENV{KAMADO_ZIG_BIN}/ranlib CACHE FILEPATH "" FORCE)
# nanobind's faster thread-locals (TLSDESC): before glibc 2.40 their slow path loses vector registers.
set(NB_HAS_MTLS_GNU2 OFF CACHE INTERNAL "")
# libc++ is linked into the module. None of its names may be seen from outside, or be taken from another C++ library
# that the process has.
set(CMAKE_MODULE_LINKER_FLAGS_INIT "-s -Wl,--version-script=${CMAKE_CURRENT_LIST_DIR}/exports.map")
