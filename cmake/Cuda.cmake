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
  find_package(CUDAToolkit 12.4 REQUIRED)
endif()
