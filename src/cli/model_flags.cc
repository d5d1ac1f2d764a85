#include "cli/model_flags.h"

namespace foresight {

void ModelFlags::AddTo(CLI::App& command) {
  command.add_option("-m,--model", directory,
                     "Checkpoint directory in the official layout (default: the embedded model)");
  command.add_option("--device", device, "cpu, cuda (the first GPU), cuda:N")->capture_default_str();
  command
      .add_option("--table", table,
                  "Kernels: auto (the best of the device), cpu-avx512, cpu-avx2, cuda, "
                  "cuda-sm80, ref")
      ->capture_default_str();
  command.add_option("--numerics", numerics, "faithful (the released model's roundings) or clean (none)")
      ->check(CLI::IsMember({"faithful", "clean"}))
      ->capture_default_str();
  command.add_option("-t,--threads", threads, "Threads")->check(CLI::Range(1, 1024))->capture_default_str();
  command
      .add_option("-c,--context", context_tokens,
                  "Context in tokens (default: as much as model and memory allow)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
}

EngineOptions ModelFlags::ToOptions() const {
  EngineOptions options;
  options.model = directory;
  options.num_threads = threads;
  options.device = device;
  options.table = table;
  options.numerics = numerics == "clean" ? Numerics::kClean : Numerics::kFaithful;
  options.context_tokens = context_tokens;
  return options;
}

}  // namespace foresight
