# One function per module (docs: CONTRIBUTING.md).
#
#   foresight_module(kv_cache DEPS base tensor LIBS fmt::fmt)
#
# makes the library foresight_<name> from every *.cc of the current folder, a test program <name>_test from every
# *_test.cc, sets warnings as errors, and records the dependency for the layering test.

add_library(foresight_options INTERFACE)
target_compile_features(foresight_options INTERFACE cxx_std_20)
target_include_directories(foresight_options INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src>
                                                       $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>)
set(own_options  # who embeds the library has warnings of their own
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror -Wno-psabi -ffp-contract=off>
    # g++ 12 reports impossible overlaps in std::string (GCC bug 105651).
    $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict>
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

function(foresight_module name)
  cmake_parse_arguments(arg "" "" "DEPS;LIBS;SOURCES;TESTS;TEST_LIBS" ${ARGN})
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
  else()
    add_library(foresight_${name} INTERFACE)
    target_link_libraries(foresight_${name} INTERFACE foresight_options ${arg_DEPS} ${arg_LIBS})
  endif()
  set_property(GLOBAL APPEND PROPERTY FORESIGHT_MODULES foresight_${name})
  if(FORESIGHT_TESTS AND tests)
    add_executable(${name}_test ${tests})
    target_link_libraries(${name}_test PRIVATE foresight_${name} ${arg_TEST_LIBS} GTest::gtest_main)
    target_include_directories(${name}_test PRIVATE ${PROJECT_SOURCE_DIR})  # tests/*.h
    add_test(NAME ${name} COMMAND ${name}_test WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  endif()
endfunction()
