// What the machine has and what the process holds of it, as the system tells.
#pragma once

#include <cstdint>
#include <string>

namespace foresight {

struct Machine {
  std::string processor;        // its model name, "unknown processor" when the system doesn't say
  int processors = 0;           // that this process may run on
  int64_t memory_bytes = 0;     // physical memory
  int64_t available_bytes = 0;  // what can still be taken without swapping, page cache that can go included
};

Machine DescribeMachine();

// Bytes of the process in physical memory: its own pages, and pages of mapped files it has touched.
struct ResidentMemory {
  int64_t anonymous_bytes = 0;
  int64_t file_bytes = 0;

  int64_t total_bytes() const { return anonymous_bytes + file_bytes; }
};

// Zeros when the system doesn't say.
ResidentMemory ReadResidentMemory();

}  // namespace foresight
