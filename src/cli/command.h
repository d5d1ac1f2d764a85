// The commands of the program. Each registers itself on the app; when it is the one chosen, its callback
// stores the Status it ended with, which main turns into the exit status.
#pragma once

#include "base/status.h"
#include "cli/command_line.h"

namespace foresight {

void AddRunCommand(Command& app, Status* result);
void AddBenchCommand(Command& app, Status* result);
// Under `bench`.
void AddBenchSpecCommand(Command& bench, Status* result);
void AddCalibrateCommand(Command& app, Status* result);
void AddInspectCommand(Command& app, Status* result);
void AddTokenizeCommand(Command& app, Status* result);
void AddVerifyCommand(Command& app, Status* result);

}  // namespace foresight
