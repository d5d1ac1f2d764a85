#include "base/text_file.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

namespace foresight {
namespace {

TEST(ReadTextFile, ReadsWholeFilesAndEmptyOnes) {
  const std::string path = testing::TempDir() + "/text_file_test";
  for (const std::string& text : {std::string(), std::string("a\n\0b", 4), std::string(200'000, 'x')}) {
    std::ofstream(path, std::ios::binary) << text;
    const Result<std::string> read = ReadTextFile(path);
    ASSERT_TRUE(read.ok()) << read.status().ToString();
    EXPECT_EQ(*read, text);
  }
  std::filesystem::remove(path);
}

TEST(ReadTextFile, RefusesWhatIsNoFile) {
  EXPECT_EQ(ReadTextFile(testing::TempDir() + "/isn't there").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(ReadTextFile(testing::TempDir()).status().code(), StatusCode::kNotFound);  // a directory
  EXPECT_EQ(ReadTextFile("/dev/zero").status().code(), StatusCode::kInvalidArgument);  // never ends
}

}  // namespace
}  // namespace foresight
