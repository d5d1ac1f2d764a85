// The prompts of benchmarks and calibration: texts by domain, as models/foresight-mini/prompts.json has them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "tokenizer/tokenizer.h"
#include "weights/model_files.h"

namespace foresight {

struct PromptDomain {
  std::string name;
  std::vector<std::string> texts;
};

// {"format": "foresight-prompts", "version": 1, "domains": {NAME: [{"text": ...}, ...], ...}}. Errors:
// kInvalidArgument (what is wrong, and where).
Result<std::vector<PromptDomain>> ParsePrompts(std::string_view json);
// Those of a file; of the model's prompts.json when `path` is empty. Errors: kNotFound, those of
// ParsePrompts.
Result<std::vector<PromptDomain>> LoadPrompts(const std::string& path, const ModelFiles& model);

// The text as a prompt begins; texts of the domain "chat" are a user's turns.
Result<std::vector<TokenId>> EncodePrompt(const Tokenizer& tokenizer, const PromptDomain& domain,
                                          std::string_view text);

}  // namespace foresight
