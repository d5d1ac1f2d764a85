#include "speculative/draft_traces.h"

#include <gtest/gtest.h>

#include "speculative/file_damage.h"

namespace foresight {
namespace {

DraftTraces Traces() {
  const TracedAnswer sure{.confidences = {0.9f, 0.8f, 1, 0}, .acceptance = {1, 0.75f, 0.001f, 0}};
  const TracedAnswer blind{.confidences = {}, .acceptance = {0.5f}};
  return {.model = "a \"model\"",
          .temperature = 0.7,
          .drafters = {
              {.method = "dspark", .drafts_max = 2, .domains = {{"code", {sure, sure}}, {"chat", {sure}}}},
              {.method = "mtp", .drafts_max = 1, .domains = {{"code", {blind}}}}}};
}

TEST(DraftTraces, ComeBack) {
  const DraftTraces traces = Traces();
  const Result<DraftTraces> read = ParseDraftTraces(FormatDraftTraces(traces));
  ASSERT_TRUE(read.ok()) << read.status().ToString();
  EXPECT_EQ(read->model, traces.model);
  EXPECT_EQ(read->temperature, 0.7);
  const DraftTrace* dspark = read->Find("dspark");
  ASSERT_NE(dspark, nullptr);
  ASSERT_EQ(dspark->domains.size(), 2u);
  EXPECT_EQ(dspark->domains[0].name, "code");
  ASSERT_EQ(dspark->domains[0].answers.size(), 2u);
  EXPECT_EQ(dspark->domains[1].answers[0].confidences, traces.drafters[0].domains[1].answers[0].confidences);
  EXPECT_EQ(dspark->domains[1].answers[0].acceptance, traces.drafters[0].domains[1].answers[0].acceptance);
  ASSERT_NE(read->Find("mtp"), nullptr);
  EXPECT_TRUE(read->Find("mtp")->domains[0].answers[0].confidences.empty());
  EXPECT_EQ(read->Find("ngram"), nullptr);
}

TEST(DraftTraces, SayHowOftenDraftsAreAcceptedWhereTheyAreReached) {
  const std::vector<TracedAnswer> answers = {{.confidences = {}, .acceptance = {1, .5f, .5f, 0}},
                                             {.confidences = {}, .acceptance = {0, 1}}};
  // Of three rounds one and a half reach the second draft, half a one is accepted there.
  EXPECT_EQ(MeanAcceptance({.method = "mtp", .drafts_max = 2, .domains = {{"code", answers}}}),
            std::vector<float>({.5f, static_cast<float>(1 / 3.0)}));
  const std::vector<TracedAnswer> hopeless = {{.confidences = {}, .acceptance = {0, 1}}};
  EXPECT_EQ(MeanAcceptance({.method = "mtp", .drafts_max = 2, .domains = {{"code", hopeless}}}),
            std::vector<float>({0, 0}));
}

TEST(DraftTraces, DamageIsAnError) {
  const std::string good = FormatDraftTraces(Traces());
  const auto replaced = [&](std::string_view from, std::string_view to) { return Replaced(good, from, to); };
  for (const std::string& bad :
       {std::string("{"), std::string("[]"), replaced("foresight-draft-traces", "foresight-prompts"),
        replaced("\"version\": 1", "\"version\": 2"), replaced("\"temperature\": 0.7", "\"temperature\": -1"),
        replaced("\"gamma\": 2", "\"gamma\": 0"), replaced("\"gamma\": 2", "\"gamma\": 3"),
        replaced("\"gamma\": 2", "\"gamma\": 1000"), replaced("\"mtp\"", "\"dspark\""),
        replaced("[1000,750,1,0]", "[1001,750,1,0]"), replaced("[1000,750,1,0]", "[-1,750,1,0]"),
        replaced("[1000,750,1,0]", "[0.5,750,1,0]"), replaced("[1000,750,1,0]", "[]"),
        replaced("[900,800,1000,0]", "[900,800]"), replaced("\"acceptance\"", "\"acceptances\"")}) {
    const Status status = ParseDraftTraces(bad).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << bad;
    EXPECT_EQ(status.message().rfind("draft traces: ", 0), 0u) << status.message();
  }
  for (size_t cut = 0; cut < good.size() - 1; ++cut) EXPECT_FALSE(ParseDraftTraces(good.substr(0, cut)).ok());
}

}  // namespace
}  // namespace foresight
