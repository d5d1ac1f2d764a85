#include <fmt/format.h>

#include <boost/json/value.hpp>
#include <cstdio>

#include "base/json.h"
#include "base/text_file.h"
#include "cli/command.h"
#include "cli/model_flags.h"
#include "engine/engine_access.h"
#include "tokenizer/tokenizer.h"

namespace foresight {
namespace {

struct TokenizeFlags {
  std::string directory;
  bool decode = false;
  bool bos = false;
};

Result<std::vector<TokenId>> ParseIds(std::string_view json) {
  ASSIGN_OR_RETURN(const boost::json::value value, ParseJson(json));
  if (!value.is_array()) return InvalidArgument("standard input: want a JSON array of token ids");
  std::vector<TokenId> ids;
  for (const boost::json::value& item : value.get_array()) {
    const int64_t* id = item.if_int64();
    if (id == nullptr || *id < 0 || *id > INT32_MAX) {
      return InvalidArgument("standard input: item {} of the array is no token id", ids.size());
    }
    ids.push_back(static_cast<TokenId>(*id));
  }
  return ids;
}

Status Tokenize(const TokenizeFlags& flags) {
  ASSIGN_OR_RETURN(const ModelFiles files, OpenModel(flags.directory));
  ASSIGN_OR_RETURN(const std::string_view json, files.FindText("tokenizer.json"));
  const Result<Tokenizer> loaded = Tokenizer::Load(json);
  if (!loaded.ok()) return loaded.status().WithContext(files.origin() + ": tokenizer.json");
  const Tokenizer& tokenizer = *loaded;
  ASSIGN_OR_RETURN(const std::string input, ReadStandardInput());
  std::string output;
  if (flags.decode) {
    ASSIGN_OR_RETURN(const std::vector<TokenId> ids, ParseIds(input));
    ASSIGN_OR_RETURN(output, tokenizer.Decode(ids));
  } else {
    ASSIGN_OR_RETURN(const std::vector<TokenId> ids, tokenizer.Encode(input, {.add_bos = flags.bos}));
    output = fmt::format("[{}]\n", fmt::join(ids, ", "));
  }
  std::fwrite(output.data(), 1, output.size(), stdout);  // main looks whether it got there
  return Status();
}

}  // namespace

void AddTokenizeCommand(Command& app, Status* result) {
  auto flags = std::make_shared<TokenizeFlags>();
  Command command =
      app.AddCommand("tokenize", "Standard input as a JSON array of token ids; with --decode, back to text");
  command.Add("-m,--model", flags->directory, "Directory with tokenizer.json (default: the embedded model)");
  command.AddSwitch("--decode", flags->decode, "Read a JSON array of ids and write the text");
  command.AddSwitch("--bos", flags->bos, "Begin with the begin-of-sentence token");
  command.OnRun([flags, result] { *result = Tokenize(*flags); });
}

}  // namespace foresight
