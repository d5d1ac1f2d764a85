#include "weights/embedded/embedded_model.h"

#include <gtest/gtest.h>

#include <cstdint>

#include "weights/loader.h"

namespace foresight {
namespace {

TEST(EmbeddedModel, IsWholeAndAlignedWhenTheTreeHasOne) {
  const ModelFiles files = EmbeddedModel();
  if (files.empty()) GTEST_SKIP() << "this tree has no models/foresight-mini";
  for (const std::string& name : files.Names()) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(files.Find(name)->data()) % 64, 0u) << name;
  }
  EXPECT_TRUE(files.Contains("tokenizer.json"));
  const Result<LoadedModel> model = LoadModel(files);
  ASSERT_TRUE(model.ok()) << model.status().ToString();
  EXPECT_EQ(model->report.copied_bytes, 0u);
  for (const std::string& name : files.DraftNames()) {
    const Result<ModelFiles> draft = files.Draft(name);
    ASSERT_TRUE(draft.ok()) << draft.status().ToString();
    const Result<LoadedModel> with = LoadModel(files, {.draft = *draft});
    ASSERT_TRUE(with.ok()) << with.status().ToString();
    EXPECT_TRUE(with->weights.mtp.has_value() || with->weights.dspark.has_value()) << name;
    EXPECT_EQ(with->report.copied_bytes, 0u) << name;
  }
}

}  // namespace
}  // namespace foresight
