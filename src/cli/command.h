// The commands of the program. Each registers itself on the app; when it is the one chosen, its callback
// stores the Status it ended with, which main turns into the exit status.
#pragma once

#include <CLI/CLI.hpp>

#include "base/status.h"

namespace foresight {

void AddRunCommand(CLI::App& app, Status* result);
void AddBenchCommand(CLI::App& app, Status* result);
// Under `bench`.
void AddBenchSpecCommand(CLI::App& bench, Status* result);
void AddCalibrateCommand(CLI::App& app, Status* result);
void AddInspectCommand(CLI::App& app, Status* result);
void AddTokenizeCommand(CLI::App& app, Status* result);
void AddVerifyCommand(CLI::App& app, Status* result);

}  // namespace foresight
