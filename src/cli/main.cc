// foresight: run, measure and inspect DeepSeek-V4 models.

#include <cstdio>
#include <exception>

#include "cli/command.h"

int main(int argc, char** argv) {
  using namespace foresight;
  CLI::App app{"Foresight: an inference engine for the DeepSeek-V4 family", "foresight"};
  app.set_version_flag("--version", FORESIGHT_VERSION);
  app.require_subcommand(1);
  app.failure_message(CLI::FailureMessage::help);
  Status result;
  AddRunCommand(app, &result);
  AddBenchCommand(app, &result);
  AddInspectCommand(app, &result);
  AddTokenizeCommand(app, &result);
  AddVerifyCommand(app, &result);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    const int code = app.exit(e);
    return code == 0 ? 0 : kUsageExitCode;
  } catch (const std::exception& e) {
    fmt::print(stderr, "foresight: internal: {}\n", e.what());
    return ExitCode(StatusCode::kInternal);
  }
  if (!result.ok()) fmt::print(stderr, "foresight: {}\n", result.ToString());
  return ExitCode(result.code());
}
