#include "cli/command_line.h"

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdlib>
#include <type_traits>
#include <utility>

#include "base/status.h"

namespace foresight {
namespace {

template <typename Value>
constexpr bool kHoldsInt64 = std::is_same_v<Value, int64_t> || std::is_same_v<Value, std::vector<int64_t>> ||
                             std::is_same_v<Value, std::optional<int64_t>>;

// CLI11 reads a number beyond 64 bits as the largest one. The complaint, or nothing.
std::string FitsInt64(const std::string& text) {
  errno = 0;
  std::strtoll(text.c_str(), nullptr, 0);
  return errno == ERANGE ? text + " is beyond 64 bits" : "";
}

}  // namespace

bool Flag::IsGiven() const {
  return option_->count() > 0;
}
Flag& Flag::Required() {
  option_->required();
  return *this;
}
Flag& Flag::ShowDefault() {
  option_->capture_default_str();
  return *this;
}
template <typename Number>
Flag& Flag::Within(Number least, Number most) {
  option_->check(CLI::Range(least, most));
  return *this;
}
template Flag& Flag::Within(int, int);
template Flag& Flag::Within(int64_t, int64_t);
template Flag& Flag::Within(double, double);
Flag& Flag::OneOf(const std::vector<std::string>& values) {
  option_->check(CLI::IsMember(values));
  return *this;
}
Flag& Flag::Needs(const Flag& other) {
  option_->needs(other.option_);
  return *this;
}
Flag& Flag::Excludes(const Flag& other) {
  option_->excludes(other.option_);
  return *this;
}
Flag& Flag::SplitAtCommas() {
  option_->delimiter(',');
  return *this;
}
Flag& Flag::OneEachTime() {
  option_->allow_extra_args(false);
  return *this;
}

Command Command::AddCommand(const std::string& name, const std::string& description) {
  return Command(app_->add_subcommand(name, description));
}

template <typename Value>
Flag Command::Add(const std::string& names, Value& value, const std::string& description) {
  CLI::Option* const option = app_->add_option(names, value, description);
  if constexpr (kHoldsInt64<Value>) option->check(FitsInt64);
  return Flag(option);
}
template Flag Command::Add(const std::string&, std::string&, const std::string&);
template Flag Command::Add(const std::string&, int&, const std::string&);
template Flag Command::Add(const std::string&, int64_t&, const std::string&);
template Flag Command::Add(const std::string&, double&, const std::string&);
template Flag Command::Add(const std::string&, std::vector<std::string>&, const std::string&);
template Flag Command::Add(const std::string&, std::vector<int>&, const std::string&);
template Flag Command::Add(const std::string&, std::vector<int64_t>&, const std::string&);
template Flag Command::Add(const std::string&, std::optional<int>&, const std::string&);
template Flag Command::Add(const std::string&, std::optional<int64_t>&, const std::string&);
template Flag Command::Add(const std::string&, std::optional<double>&, const std::string&);

Flag Command::AddSwitch(const std::string& names, bool& value, const std::string& description) {
  return Flag(app_->add_flag(names, value, description));
}

void Command::Remove(const std::string& name) {
  app_->remove_option(app_->get_option(name));
}

void Command::OnRun(std::function<void()> run) {
  // CLI11 calls a parent's callback after its subcommand's.
  app_->callback([app = app_, run = std::move(run)] {
    if (app->get_subcommands().empty()) run();
  });
}

CommandLine::CommandLine(const std::string& description, const std::string& name, const std::string& version)
    : app_(std::make_unique<CLI::App>(description, name)) {
  app_->set_version_flag("--version", version);
  app_->require_subcommand(1);
}

CommandLine::~CommandLine() = default;

Command CommandLine::program() {
  return Command(app_.get());
}

std::optional<int> CommandLine::Run(int argc, char** argv) {
  try {
    app_->parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app_->exit(e) == 0 ? 0 : kUsageExitCode;
  }
  return std::nullopt;
}

}  // namespace foresight
