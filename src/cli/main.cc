// foresight: run, measure and inspect DeepSeek-V4 models.

#include <fcntl.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <optional>
#include <string>

#include "base/exceptions.h"
#include "base/tell.h"
#include "base/utf8.h"
#include "cli/command.h"

namespace foresight {
namespace {

// A file that is opened must not take the place of a closed standard stream: what is told would get into it.
// Reading the input and writing the outputs fail as they would have.
void FillClosedStreams() {
  for (int fd = 0; fd < 3; ++fd) {
    if (fcntl(fd, F_GETFD) == -1) open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY);
  }
}

// What is still on its way to the output gets there, or the command has failed.
Status FlushOutput() {
  errno = 0;
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return Status();
  return Error(StatusCode::kUnavailable, "standard output can't be written{}{}", errno == 0 ? "" : ": ",
               errno == 0 ? "" : std::strerror(errno));
}

}  // namespace
}  // namespace foresight

int main(int argc, char** argv) {
  using namespace foresight;
  FillClosedStreams();
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
    if (const std::optional<int> exit_code = line.Run(argc, argv); exit_code.value_or(0) != 0)
      return *exit_code;
  } catch (const std::exception& e) {
    result = StatusOf(e);
  }
  if (const Status flushed = FlushOutput(); result.ok()) result = flushed;
  // Names in messages come out of files: a terminal is not to obey what is in them.
  if (!result.ok()) Tell("foresight: {}\n", WithoutControlCharacters(result.ToString()));
  return ExitCode(result.code());
}
