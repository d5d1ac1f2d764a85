# Decides FORESIGHT_CUDA when nobody has, and enables the language.
#
# A program without CUDA is a whole program: nvcc is not among the packages that the set-up installs.

if(FORESIGHT_CUDA STREQUAL "")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER AND NOT FORESIGHT_SANITIZE AND NOT FORESIGHT_FUZZ)
    set(FORESIGHT_CUDA ON)
  else()
    set(FORESIGHT_CUDA OFF)
  endif()
endif()
message(STATUS "CUDA backend: ${FORESIGHT_CUDA}")

if(FORESIGHT_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # every target names its own
  enable_language(CUDA)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 knows nvcc 12's C++20, not 13's
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  find_package(CUDAToolkit 12.4 REQUIRED)
endif()
