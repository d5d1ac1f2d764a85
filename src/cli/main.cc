// foresight: run, measure and inspect DeepSeek-V4 models.

#include <cstdio>
#include <exception>
#include <optional>
#include <string>

#include "cli/command.h"

namespace {

// Names in messages come out of files: a terminal is not to obey what is in them.
std::string WithoutControlCharacters(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 && c != '\n') c = '?';
  }
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace foresight;
  CommandLine line("Foresight: an inference engine for the DeepSeek-V4 family", "foresight",
                   FORESIGHT_VERSION);
  Command program = line.program();
  Status result;
  AddRunCommand(program, &result);
  AddBenchCommand(program, &result);
  AddCalibrateCommand(program, &result);
  AddInspectCommand(program, &result);
  AddTokenizeCommand(program, &result);
  AddVerifyCommand(program, &result);
  try {
    if (const std::optional<int> exit_code = line.Run(argc, argv)) return *exit_code;
  } catch (const std::exception& e) {
    fmt::print(stderr, "foresight: internal: {}\n", e.what());
    return ExitCode(StatusCode::kInternal);
  }
  if (!result.ok()) fmt::print(stderr, "foresight: {}\n", WithoutControlCharacters(result.ToString()));
  return ExitCode(result.code());
}
