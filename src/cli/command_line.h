// The command line: commands and what they take. CLI11 is behind it, in command_line.cc alone: whatever
// includes its header takes seconds to compile.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace foresight {

class Flag {
 public:
  explicit Flag(CLI::Option* option) : option_(option) {}

  Flag& Required();
  // Whether it was on the command line, once that is read.
  bool IsGiven() const;
  // The help names the value that is there.
  Flag& ShowDefault();
  template <typename Number>  // int, int64_t or double (instantiated in command_line.cc)
  Flag& Within(Number least, Number most);
  Flag& OneOf(const std::vector<std::string>& values);
  Flag& Needs(const Flag& other);
  Flag& Excludes(const Flag& other);
  // Of lists: "1,2" gives two items.
  Flag& SplitAtCommas();
  // Of lists: the flag takes one item each time it is given.
  Flag& OneEachTime();

 private:
  CLI::Option* option_;
};

class Command {
 public:
  explicit Command(CLI::App* app) : app_(app) {}

  Command AddCommand(const std::string& name, const std::string& description);
  // `names`: "-m,--model", or "directory" of what is given without a name. Value: std::string, int, int64_t,
  // double, a vector of one of the first three, an optional number (instantiated in command_line.cc).
  template <typename Value>
  Flag Add(const std::string& names, Value& value, const std::string& description);
  // True where it is given.
  Flag AddSwitch(const std::string& names, bool& value, const std::string& description);
  void Remove(const std::string& name);
  // Where no command below it was given.
  void OnRun(std::function<void()> run);

 private:
  CLI::App* app_;
};

class CommandLine {
 public:
  CommandLine(const std::string& description, const std::string& name, const std::string& version);
  ~CommandLine();

  Command program();
  // Runs the command that is asked for; exceptions of it pass. The exit status where there was none to run:
  // after
  // --help, or when `argv` is not understood, which is then said on standard error.
  std::optional<int> Run(int argc, char** argv);

 private:
  std::unique_ptr<CLI::App> app_;
};

}  // namespace foresight
