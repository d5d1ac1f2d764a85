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

void AddVerifyCommand(CLI::App& app, Status* result) {
  auto flags = std::make_shared<VerifyFlags>();
  CLI::App* command =
      app.add_subcommand("verify", "Hold a kernel table to a golden directory (an oracle's results)");
  command->add_option("directory", flags->directory, "A checkpoint with golden.safetensors")->required();
  command->add_option("--device", flags->device, "cpu, cuda (the first GPU), cuda:N")->capture_default_str();
  command
      ->add_option("--table", flags->table,
                   "ref, cpu (the best of this machine), cpu-avx2, cpu-avx512, cuda, cuda-sm80")
      ->capture_default_str();
  command->add_option("-t,--threads", flags->threads, "Threads")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_flag("--json", flags->json, "Print the report as JSON");
  command->callback([flags, result] { *result = Verify(*flags); });
}

}  // namespace foresight
