#include "weights/safetensors.h"

#include <gtest/gtest.h>

#include <string>

#include "weights/test_checkpoint.h"

namespace foresight {
namespace {

Status StatusOf(const std::string& file) {
  return ParseSafetensors(std::as_bytes(std::span(file))).status();
}

// The file is refused with this code and a message with these words.
void ExpectRefused(const std::string& file, StatusCode code, std::string_view words) {
  const Status status = StatusOf(file);
  EXPECT_EQ(status.code(), code) << status.ToString();
  EXPECT_NE(status.message().find(words), std::string::npos) << status.ToString();
}

// A file with this header and 32 bytes of data.
std::string WithHeader(std::string_view header) {
  return SafetensorsFile(header, std::string(32, '\1'));
}

constexpr std::string_view kGood =
    R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
    R"("b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}})";

std::string Damaged(std::string_view from, std::string_view to) {
  std::string header(kGood);
  const size_t at = header.find(from);
  CHECK(at != std::string::npos);
  return WithHeader(header.replace(at, from.size(), to));
}

TEST(Safetensors, ReadsTensorsInTheOrderOfTheirBytes) {
  const std::string file = WithHeader(kGood);
  const auto tensors = ParseSafetensors(std::as_bytes(std::span(file)));
  ASSERT_TRUE(tensors.ok()) << tensors.status().ToString();
  ASSERT_EQ(tensors->size(), 2u);
  EXPECT_EQ((*tensors)[0].name, "a");
  EXPECT_EQ((*tensors)[0].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ((*tensors)[1].dtype, DType::kBF16);
  EXPECT_EQ((*tensors)[1].bytes.size(), 8u);
}

TEST(Safetensors, TakesScalarsEmptyTensorsAndNone) {
  EXPECT_TRUE(StatusOf(SafetensorsFile("{}", "")).ok());
  EXPECT_TRUE(StatusOf(WithHeader(R"({"s":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
                                  R"("n":{"dtype":"I8","shape":[0,7],"data_offsets":[8,8]},)"
                                  R"("t":{"dtype":"I8","shape":[24],"data_offsets":[8,32]}}  )"))
                  .ok());
}

TEST(Safetensors, RefusesEveryTruncation) {
  const std::string file = WithHeader(kGood);
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_FALSE(StatusOf(file.substr(0, size)).ok()) << size;
  }
  ExpectRefused(file.substr(0, 7), StatusCode::kDataLoss, "got a file of 7");
  ExpectRefused(file.substr(0, 20), StatusCode::kDataLoss, "does not fit into the file of 20");
  ExpectRefused(file.substr(0, file.size() - 1), StatusCode::kInvalidArgument,
                "run past the 31 bytes of data");
}

TEST(Safetensors, RefusesHugeHeaders) {
  std::string file = WithHeader(kGood);
  for (const uint64_t size : {uint64_t{100'000'001}, uint64_t{1} << 63, ~uint64_t{0}}) {
    std::memcpy(file.data(), &size, 8);
    ExpectRefused(file, StatusCode::kInvalidArgument, "more than the 100000000 that the format allows");
  }
}

TEST(Safetensors, RefusesOffsetsThatAreNone) {
  ExpectRefused(Damaged("[0,24]", "[-1,24]"), StatusCode::kInvalidArgument,
                "a: data_offsets: want two offsets");
  ExpectRefused(Damaged("[0,24]", "[24,0]"), StatusCode::kInvalidArgument, "run backwards");
  ExpectRefused(Damaged("[0,24]", "[0]"), StatusCode::kInvalidArgument,
                "data_offsets is missing or incomplete");
  ExpectRefused(Damaged("[0,24]", "[0,24,32]"), StatusCode::kInvalidArgument, "got three");
  ExpectRefused(Damaged("[0,24]", "[0.0,24]"), StatusCode::kInvalidArgument, "a fraction");
  ExpectRefused(Damaged("[24,32]", "[24,18446744073709551615]"), StatusCode::kInvalidArgument, "run past");
  ExpectRefused(Damaged("[24,32]", "[24,18446744073709551616]"), StatusCode::kInvalidArgument,
                "beyond 64 bits");
}

TEST(Safetensors, RefusesOverlapsAndGaps) {
  ExpectRefused(Damaged("[24,32]", "[16,24]"), StatusCode::kInvalidArgument, "overlap those of tensor a");
  ExpectRefused(Damaged("\"BF16\",\"shape\":[4],\"data_offsets\":[24,32]",
                        "\"BF16\",\"shape\":[3],\"data_offsets\":[26,32]"),
                StatusCode::kInvalidArgument, "bytes [24, 26) before tensor b belong to no tensor");
  ExpectRefused(WithHeader(kGood) + "x", StatusCode::kInvalidArgument,
                "at the end of the data belong to no tensor");
}

TEST(Safetensors, RefusesShapesThatDisagreeWithTheirBytes) {
  ExpectRefused(Damaged("[2,3]", "[2,4]"), StatusCode::kInvalidArgument, "takes 32 bytes");
  ExpectRefused(Damaged("[2,3]", "[-2,-3]"), StatusCode::kInvalidArgument, "want an array of sizes");
  // Products that wrap around to the right number.
  ExpectRefused(Damaged("[2,3]", "[4611686018427387906,3]"), StatusCode::kInvalidArgument, "more than 2^63");
  ExpectRefused(Damaged("[2,3]", "[18446744073709551615,0]"), StatusCode::kInvalidArgument, "more than 2^63");
  ExpectRefused(Damaged("[2,3]", "[1,1,1,1,1,1,1,2,3]"), StatusCode::kInvalidArgument,
                "more than 8 dimensions");
}

TEST(Safetensors, RefusesOtherDtypes) {
  ExpectRefused(Damaged("\"F32\"", "\"F64\""), StatusCode::kInvalidArgument, "dtype F64 is none of");
  ExpectRefused(Damaged("\"F32\"", "32"), StatusCode::kInvalidArgument,
                "a: dtype: want a string, got a number");
}

TEST(Safetensors, RefusesHeadersOfAnotherForm) {
  for (const std::string_view header :
       {"", "[]", "null", "{", "{}x", "{\"a\":1}", "{\"a\":[]}", "{\"a\":{}}", "{\"__metadata__\":[]}",
        "{\"__metadata__\":{\"k\":1}}",
        R"({"a":{"dtype":"I8","dtype":"I8","shape":[32],"data_offsets":[0,32]}})",
        R"({"a":{"dtype":"I8","shape":[32],"data_offsets":[0,32],"extra":1}})",
        R"({"a":{"dtype":"I8","shape":[[32]],"data_offsets":[0,32]}})", "{\"\xff\":{}}"}) {
    EXPECT_EQ(StatusOf(WithHeader(header)).code(), StatusCode::kInvalidArgument) << header;
  }
  ExpectRefused(Damaged("\"b\":", "\"a\":"), StatusCode::kInvalidArgument, "tensor a: the name occurs twice");
  EXPECT_FALSE(StatusOf(WithHeader(std::string(1'000'000, '['))).ok());
}

TEST(Safetensors, ListsTheProblemsOfSeveralTensors) {
  std::string header(kGood);
  header.replace(header.find("F32"), 3, "F16");
  header.replace(header.find("[4]"), 3, "[5]");
  const std::string message = StatusOf(WithHeader(header)).message();
  EXPECT_NE(message.find("2 problems"), std::string::npos) << message;
}

}  // namespace
}  // namespace foresight
