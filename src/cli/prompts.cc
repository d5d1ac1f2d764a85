#include "cli/prompts.h"

#include "base/json.h"
#include "base/text_file.h"
#include "base/utf8.h"
#include "chat/prompt.h"

namespace foresight {

Result<std::vector<PromptDomain>> ParsePrompts(std::string_view json) {
  ASSIGN_OR_RETURN(const boost::json::value value, ParseJson(json));
  const boost::json::object* root = value.if_object();
  const boost::json::value* domains = root != nullptr ? root->if_contains("domains") : nullptr;
  if (domains == nullptr || !domains->is_object()) return InvalidArgument("prompts: no object \"domains\"");
  if (domains->get_object().empty()) return InvalidArgument("prompts: \"domains\" is empty");
  std::vector<PromptDomain> out;
  for (const auto& [name, list] : domains->get_object()) {
    PromptDomain domain{.name = std::string(name), .texts = {}};
    if (HasControlCharacters(domain.name)) {
      return InvalidArgument("prompts: control characters in the name of domain \"{}\"", domain.name);
    }
    if (!list.is_array() || list.get_array().empty()) {
      return InvalidArgument("prompts: domain {} is not a list of prompts", domain.name);
    }
    for (const boost::json::value& prompt : list.get_array()) {
      const boost::json::object* fields = prompt.if_object();
      const boost::json::value* text = fields != nullptr ? fields->if_contains("text") : nullptr;
      if (text == nullptr || !text->is_string() || text->get_string().empty()) {
        return InvalidArgument("prompts: prompt {} of {} has no text", domain.texts.size(), domain.name);
      }
      domain.texts.emplace_back(text->get_string());
    }
    out.push_back(std::move(domain));
  }
  return out;
}

Result<std::vector<PromptDomain>> LoadPrompts(const std::string& path, const ModelFiles& model) {
  if (path.empty()) {
    ASSIGN_OR_RETURN(const std::string_view json, model.FindText("prompts.json"));
    return ParsePrompts(json);
  }
  ASSIGN_OR_RETURN(const std::string json, ReadTextFile(path));
  Result<std::vector<PromptDomain>> prompts = ParsePrompts(json);
  if (!prompts.ok()) return prompts.status().WithContext(path);
  return prompts;
}

Result<std::vector<TokenId>> EncodePrompt(const Tokenizer& tokenizer, const PromptDomain& domain,
                                          std::string_view text) {
  if (domain.name != "chat") return tokenizer.Encode(text, {.add_bos = tokenizer.bos_id().has_value()});
  const std::vector<Message> messages = {{.role = Role::kUser, .content = std::string(text)}};
  ASSIGN_OR_RETURN(const Prompt prompt, RenderPrompt(messages, PromptOptions{}));
  return prompt.Encode(tokenizer);
}

}  // namespace foresight
