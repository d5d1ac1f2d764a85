#include "base/text_file.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

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

TEST(WriteTextFile, ReplacesAFileAndLeavesNothingBeside) {
  const std::filesystem::path folder = testing::TempDir() + "/write_text_file_test";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directory(folder);
  const std::string path = folder / "file";
  for (const std::string& text : {std::string("old"), std::string(200'000, 'x'), std::string()}) {
    ASSERT_TRUE(CheckWritable(path).ok());
    ASSERT_TRUE(WriteTextFile(path, text).ok());
    EXPECT_EQ(*ReadTextFile(path), text);
  }
  // What leads to the file still does.
  const std::string link = folder / "link";
  std::filesystem::create_symlink("file", link);
  ASSERT_TRUE(WriteTextFile(link, "new").ok());
  EXPECT_TRUE(std::filesystem::is_symlink(link));
  EXPECT_EQ(*ReadTextFile(path), "new");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 2);
  std::filesystem::remove_all(folder);
}

TEST(WriteTextFile, SaysWhatCanNotBeWritten) {
  const std::string folder = testing::TempDir();
  for (const std::string& path : {folder, folder + "/isn't there/file"}) {
    EXPECT_EQ(CheckWritable(path).code(), StatusCode::kInvalidArgument) << path;
    EXPECT_EQ(WriteTextFile(path, "text").code(), StatusCode::kInvalidArgument) << path;
  }
  // A device is written, not replaced; this one is full.
  EXPECT_TRUE(CheckWritable("/dev/full").ok());
  EXPECT_EQ(WriteTextFile("/dev/full", "text").code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/full"));
  EXPECT_TRUE(WriteTextFile("/dev/null", "text").ok());
}

}  // namespace
}  // namespace foresight
