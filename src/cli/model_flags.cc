#include "cli/model_flags.h"

namespace foresight {

void ModelFlags::AddTo(Command& command) {
  command.Add("-m,--model", directory,
              "Checkpoint directory in the official layout (default: the embedded model)");
  command.Add("--device", device, "cpu, cuda (the first GPU), cuda:N").ShowDefault();
  command
      .Add("--table", table,
           "Kernels: auto (the best of the device), cpu-avx512, cpu-avx2, cuda, "
           "cuda-sm80, ref")
      .ShowDefault();
  command.Add("--numerics", numerics, "faithful (the released model's roundings) or clean (none)")
      .OneOf({"faithful", "clean"})
      .ShowDefault();
  command.Add("-t,--threads", threads, "Threads").Within(1, 1024).ShowDefault();
  command
      .Add("-c,--context", context_tokens, "Context in tokens (default: as much as model and memory allow)")
      .Within(int64_t{1}, int64_t{1} << 24);
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
