// main() of a test program that takes numbers beside googletest's own options, so that it can run for longer
// than CTest lets it: speculation_test --requests=1000 --seed=7
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace foresight {

struct TestNumber {
  std::string_view name;  // --name=N
  std::variant<int*, uint64_t*> value;
};

// Whole of `text`.
inline bool ParseTestNumber(std::string_view text, const TestNumber& number) {
  return std::visit(
      [&](auto* value) {
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
        return error == std::errc() && end == text.data() + text.size();
      },
      number.value);
}

// Prints the numbers in use, runs the tests and returns the program's exit status.
inline int RunTests(int argc, char** argv, const std::vector<TestNumber>& numbers) {
  testing::InitGoogleTest(&argc, argv);
  std::string usage = fmt::format("usage: {}", argv[0]);
  for (const TestNumber& number : numbers) usage += fmt::format(" [--{}=N]", number.name);
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    bool known = false;
    for (const TestNumber& number : numbers) {
      const std::string prefix = fmt::format("--{}=", number.name);
      known |= arg.starts_with(prefix) && ParseTestNumber(arg.substr(prefix.size()), number);
    }
    if (!known) {
      fmt::print(stderr, "{} [googletest options]\n", usage);
      return 1;
    }
  }
  for (const TestNumber& number : numbers) {
    std::visit([&](const auto* value) { fmt::print("{} {}\n", number.name, *value); }, number.value);
  }
  return RUN_ALL_TESTS();
}

}  // namespace foresight
