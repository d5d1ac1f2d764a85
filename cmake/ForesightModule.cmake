# One function per module (docs: CONTRIBUTING.md).
#
#   foresight_module(kv_cache DEPS base tensor LIBS fmt::fmt)
#
# makes the library foresight_<name> from every *.cc of the current folder, a test program <name>_test from every
# *_test.cc, sets warnings as errors, and records the dependency for the layering test. TEST_THREADS: that the test keeps
# busy, where more than one; tests run side by side on what processors there are.

add_library(foresight_options INTERFACE)
target_compile_features(foresight_options INTERFACE cxx_std_20)
target_include_directories(foresight_options INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src>
                                                       $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>)
set(own_options  # who embeds the library has warnings of their own
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror -Wno-psabi -ffp-contract=off>
    # g++ 12 reports impossible overlaps in std::string (GCC bug 105651), and impossible lengths once it is precompiled.
    $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict -Wno-array-bounds -Wno-stringop-overflow -Wno-stringop-overread>
    # fmt takes nvcc for a compiler without constexpr functions.
    $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings -Xcompiler=-Wall,-Wextra,-Werror -DFMT_USE_CONSTEXPR=1>)
target_compile_options(foresight_options INTERFACE "$<BUILD_INTERFACE:${own_options}>")
if(FORESIGHT_SANITIZE)
  target_compile_options(foresight_options INTERFACE -fsanitize=${FORESIGHT_SANITIZE} -fno-omit-frame-pointer
                                                     -fno-sanitize-recover=all)
  target_link_options(foresight_options INTERFACE -fsanitize=${FORESIGHT_SANITIZE})
endif()
if(FORESIGHT_FUZZ)
  target_compile_options(foresight_options INTERFACE -fsanitize=fuzzer-no-link)
endif()

# The headers of others that most files include, compiled once and not in each of them. GCC takes them only where options
# and definitions are the same: what a target adds to those must not matter to any of these headers.
add_library(foresight_headers OBJECT ${CMAKE_CURRENT_LIST_DIR}/headers.cc)
target_link_libraries(foresight_headers PRIVATE foresight_options fmt::fmt)
target_precompile_headers(foresight_headers PRIVATE <algorithm> <array> <chrono> <cmath> <cstring> <functional> <map>
                          <memory> <optional> <span> <string> <tl/expected.hpp> <unordered_map> <vector> <fmt/format.h>)
if(FORESIGHT_TESTS)
  # Tests spend their time in the modules, which keep their options.
  add_library(foresight_test_options INTERFACE)
  target_compile_options(foresight_test_options INTERFACE -O1 -g0)
  target_include_directories(foresight_test_options INTERFACE ${PROJECT_SOURCE_DIR})  # tests/*.h
  target_link_libraries(foresight_test_options INTERFACE GTest::gtest)
  add_library(foresight_test_headers OBJECT ${CMAKE_CURRENT_LIST_DIR}/headers.cc)
  target_link_libraries(foresight_test_headers PRIVATE foresight_options foresight_test_options fmt::fmt)
  target_precompile_headers(foresight_test_headers PRIVATE <gtest/gtest.h> <algorithm> <array> <cmath> <fstream> <functional>
                            <map> <memory> <numeric> <optional> <random> <span> <string> <thread> <tl/expected.hpp>
                            <unordered_map> <vector> <fmt/format.h>)
endif()

# A test program from its sources. LIBS: what it tests, and GTest::gtest_main unless it has a main of its own.
function(foresight_test_program name)
  cmake_parse_arguments(arg "" "" "SOURCES;LIBS" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_LIBS} foresight_test_options)
  target_precompile_headers(${name} REUSE_FROM foresight_test_headers)
endfunction()

function(foresight_module name)
  cmake_parse_arguments(arg "" "TEST_THREADS" "DEPS;LIBS;SOURCES;TESTS;TEST_LIBS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS *.cc)
  file(GLOB tests CONFIGURE_DEPENDS *_test.cc)
  if(tests)
    list(REMOVE_ITEM sources ${tests})
  endif()
  list(APPEND sources ${arg_SOURCES})
  list(APPEND tests ${arg_TESTS})
  list(TRANSFORM arg_DEPS PREPEND foresight_)
  if(sources)
    add_library(foresight_${name} STATIC ${sources})
    target_link_libraries(foresight_${name} PUBLIC foresight_options ${arg_DEPS} ${arg_LIBS})
    target_precompile_headers(foresight_${name} REUSE_FROM foresight_headers)
  else()
    add_library(foresight_${name} INTERFACE)
    target_link_libraries(foresight_${name} INTERFACE foresight_options ${arg_DEPS} ${arg_LIBS})
  endif()
  set_property(GLOBAL APPEND PROPERTY FORESIGHT_MODULES foresight_${name})
  if(FORESIGHT_TESTS AND tests)
    foresight_test_program(${name}_test SOURCES ${tests} LIBS foresight_${name} ${arg_TEST_LIBS} GTest::gtest_main)
    add_test(NAME ${name} COMMAND ${name}_test WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    if(arg_TEST_THREADS)
      set_tests_properties(${name} PROPERTIES PROCESSORS ${arg_TEST_THREADS})
    endif()
  endif()
endfunction()
