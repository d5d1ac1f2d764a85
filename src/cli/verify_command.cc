#include <cstdio>
#include <memory>

#include "cli/command.h"
#include "verify/verify.h"

namespace foresight {
namespace {

struct VerifyFlags {
  std::string directory;
  std::string device = "cpu";
  std::string table = "ref";
  int threads = NumProcessors();
  bool json = false;
};

Status Verify(const VerifyFlags& flags) {
  ASSIGN_OR_RETURN(const Backend backend, OpenBackend(flags.device, flags.table));
  ASSIGN_OR_RETURN(const ModelFiles files, OpenModelDirectory(flags.directory));
  ASSIGN_OR_RETURN(const LoadedModel model, LoadModel(files));
  ThreadPool pool(flags.threads);
  ASSIGN_OR_RETURN(const VerifyReport report, VerifyGolden(model, backend, pool));
  fmt::print("{}", flags.json ? ReportToJson(report) : ReportToText(report));
  std::fflush(stdout);
  if (!report.passed)
    return DataLoss("{}: the {} table is outside the tolerances", flags.directory, report.table);
  return Status();
}

}  // namespace

void AddVerifyCommand(Command& app, Status* result) {
  auto flags = std::make_shared<VerifyFlags>();
  Command command =
      app.AddCommand("verify", "Hold a kernel table to a golden directory (an oracle's results)");
  command.Add("directory", flags->directory, "A checkpoint with golden.safetensors").Required();
  command.Add("--device", flags->device, "cpu, cuda (the first GPU), cuda:N").ShowDefault();
  command
      .Add("--table", flags->table,
           "ref, cpu (the best of this machine), cpu-avx2, cpu-avx512, cuda, cuda-sm80")
      .ShowDefault();
  command.Add("-t,--threads", flags->threads, "Threads").Within(1, 1024).ShowDefault();
  command.AddSwitch("--json", flags->json, "Print the report as JSON");
  command.OnRun([flags, result] { *result = Verify(*flags); });
}

}  // namespace foresight
