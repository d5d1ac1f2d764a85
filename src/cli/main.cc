// foresight: run, measure and inspect DeepSeek-V4 models.

#include <cstdio>
#include <exception>
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
  CLI::App app{"Foresight: an inference engine for the DeepSeek-V4 family", "foresight"};
  app.set_version_flag("--version", FORESIGHT_VERSION);
  app.require_subcommand(1);
  Status result;
  AddRunCommand(app, &result);
  AddBenchCommand(app, &result);
  AddCalibrateCommand(app, &result);
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
  if (!result.ok()) fmt::print(stderr, "foresight: {}\n", WithoutControlCharacters(result.ToString()));
  return ExitCode(result.code());
}
