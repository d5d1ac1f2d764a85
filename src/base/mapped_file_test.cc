#include "base/mapped_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

namespace foresight {
namespace {

class MappedFileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "mapped_file_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern + "/";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string folder_;
};

TEST_F(MappedFileTest, ShowsTheBytesAndSurvivesAMove) {
  std::ofstream(folder_ + "a") << "hello";
  Result<MappedFile> file = MappedFile::Open(folder_ + "a");
  ASSERT_TRUE(file.ok()) << file.status().ToString();
  MappedFile moved = std::move(*file);
  AdviseWillNeed(moved.bytes().subspan(1, 3));
  ASSERT_EQ(moved.bytes().size(), 5u);
  EXPECT_EQ(std::memcmp(moved.bytes().data(), "hello", 5), 0);
}

TEST_F(MappedFileTest, AnEmptyFileIsAnEmptySpan) {
  std::ofstream(folder_ + "empty").flush();
  Result<MappedFile> file = MappedFile::Open(folder_ + "empty");
  ASSERT_TRUE(file.ok()) << file.status().ToString();
  EXPECT_TRUE(file->bytes().empty());
}

TEST_F(MappedFileTest, NamesThePathAndTheReason) {
  std::filesystem::create_symlink(folder_ + "loop", folder_ + "loop");
  ASSERT_EQ(mkfifo((folder_ + "pipe").c_str(), 0600), 0);

  const Status missing = MappedFile::Open(folder_ + "none").status();
  EXPECT_EQ(missing.code(), StatusCode::kNotFound);
  EXPECT_NE(missing.message().find(folder_ + "none"), std::string::npos);

  const Status folder = MappedFile::Open(folder_).status();
  EXPECT_EQ(folder.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(folder.message().find("a directory"), std::string::npos);

  EXPECT_EQ(MappedFile::Open(folder_ + "loop").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(MappedFile::Open(folder_ + "pipe").status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace foresight
