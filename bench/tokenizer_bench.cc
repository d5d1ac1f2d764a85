// How fast a tokenizer encodes on one core, by kind of text and on long runs of one character; prints JSON.
//
//   tokenizer_bench TOKENIZER_JSON [TEXT_FILE...]
//
// Without files it encodes texts of its own: words, code, Chinese, digits, emoji, and a mix of them all.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace foresight {
namespace {

constexpr size_t kTextBytes = 4'000'000;
constexpr int kNumRuns = 3;  // the median is reported
constexpr size_t kRunBytes = 1'000'000;

using Text = std::pair<std::string, std::string>;  // name, bytes
using Random = std::mt19937_64;

double Seconds(std::chrono::steady_clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

std::string Word(Random* random) {
  static constexpr const char* kSyllables[] = {
      "the", "in", "ter", "na",  "tion", "al",  "com", "put", "er", "ing", "re", "con", "sis", "ts",  "of",
      "ma",  "ny", "pro", "ces", "ses",  "and", "is",  "to",  "a",  "for", "un", "ly",  "est", "wor", "king"};
  std::string word;
  for (size_t n = 1 + (*random)() % 3; n > 0; --n) word += kSyllables[(*random)() % std::size(kSyllables)];
  return word;
}

std::string English(Random* random) {
  std::string text = Word(random);
  text[0] = static_cast<char>(text[0] - 'a' + 'A');
  for (size_t n = 4 + (*random)() % 12; n > 0; --n) text.append(" ").append(Word(random));
  return text.append((*random)() % 4 == 0 ? ".\n\n" : ". ");
}

std::string Code(Random* random) {
  std::string indent(4 * ((*random)() % 4), ' ');
  return fmt::format(
      "{}for (int {} = 0; {} < {}.size(); ++{}) {{\n{}    {}->{}_{}({}[{}], \"{}\");  // {}\n{}}}\n", indent,
      "i", "i", Word(random), "i", indent, Word(random), Word(random), Word(random), Word(random), "i",
      Word(random), Word(random), indent);
}

void AppendCharacter(uint32_t code_point, std::string* text) {  // of three or four bytes
  if (code_point >= 0x10000) *text += static_cast<char>(0xf0 | code_point >> 18);
  *text +=
      static_cast<char>(code_point >= 0x10000 ? 0x80 | (code_point >> 12 & 0x3f) : 0xe0 | code_point >> 12);
  *text += static_cast<char>(0x80 | (code_point >> 6 & 0x3f));
  *text += static_cast<char>(0x80 | (code_point & 0x3f));
}

std::string Chinese(Random* random) {
  static constexpr const char* kWords[] = {"模型", "的",     "计算", "我们", "在",   "注意力", "是",
                                           "数据", "一个",   "语言", "可以", "和",   "推理",   "速度",
                                           "了",   "开发者", "有",   "中国", "技术", "系统"};
  std::string text;
  for (size_t n = 4 + (*random)() % 12; n > 0; --n) {
    if ((*random)() % 8 == 0) {
      AppendCharacter(0x4e00 + (*random)() % 0x5000, &text);
    } else {
      text += kWords[(*random)() % std::size(kWords)];
    }
  }
  return text.append((*random)() % 2 == 0 ? "，" : "。");
}

std::string Digits(Random* random) {
  return fmt::format("{} ", (*random)() >> (*random)() % 64);
}

std::string Emoji(Random* random) {
  std::string text;
  AppendCharacter(0x1f600 + (*random)() % 0x50, &text);
  return (*random)() % 2 == 0 ? text : fmt::format("{} {} ", text, Word(random));
}

struct Kind {
  const char* name;
  std::string (*make)(Random*);
};
constexpr Kind kKinds[] = {
    {"english", English}, {"code", Code}, {"chinese", Chinese}, {"digits", Digits}, {"emoji", Emoji}};

std::string Mixed(Random* random) {
  return kKinds[(*random)() % std::size(kKinds)].make(random);
}

Text MakeText(const Kind& kind) {
  Random random(1);
  std::string text;
  while (text.size() < kTextBytes) text += kind.make(&random);
  return {kind.name, text};
}

Text MakeRun(const char* name, std::string_view unit) {
  std::string text;
  while (text.size() < kRunBytes) text += unit;
  return {name, text};
}

std::vector<Text> OwnTexts() {
  std::vector<Text> texts;
  for (const Kind& kind : kKinds) texts.push_back(MakeText(kind));
  texts.push_back(MakeText({"mixed", Mixed}));
  texts.push_back(MakeRun("run of one letter", "a"));
  texts.push_back(MakeRun("run of spaces", " "));
  texts.push_back(MakeRun("run of digits", "7"));
  texts.push_back(MakeRun("run of signs", "!"));
  texts.push_back(MakeRun("run of Chinese", "中"));
  texts.push_back(MakeRun("run of stray bytes", "\x80"));
  return texts;
}

Result<std::string> ReadFile(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return NotFound("can't open {}", path);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

Status Run(int argc, char** argv) {
  if (argc < 2) return InvalidArgument("usage: tokenizer_bench TOKENIZER_JSON [TEXT_FILE...]");
  ASSIGN_OR_RETURN(std::string json, ReadFile(argv[1]));
  auto start = std::chrono::steady_clock::now();
  ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::Load(json));
  double load_s = Seconds(std::chrono::steady_clock::now() - start);

  std::vector<Text> texts;
  for (int i = 2; i < argc; ++i) {
    ASSIGN_OR_RETURN(std::string text, ReadFile(argv[i]));
    texts.emplace_back(argv[i], std::move(text));
  }
  if (texts.empty()) texts = OwnTexts();

  fmt::print("{{\"vocab_size\": {}, \"pre_tokenizer\": \"{}\", \"load_ms\": {:.1f}, \"texts\": [",
             tokenizer.vocab_size(), tokenizer.Description(), load_s * 1e3);
  for (size_t t = 0; t < texts.size(); ++t) {
    const auto& [name, text] = texts[t];
    std::vector<double> times_s;
    size_t num_tokens = 0;
    for (int run = 0; run < kNumRuns; ++run) {
      start = std::chrono::steady_clock::now();
      ASSIGN_OR_RETURN(std::vector<TokenId> ids, tokenizer.Encode(text));
      times_s.push_back(Seconds(std::chrono::steady_clock::now() - start));
      num_tokens = ids.size();
    }
    std::sort(times_s.begin(), times_s.end());
    fmt::print(
        "{}\n  {{\"text\": \"{}\", \"bytes\": {}, \"tokens\": {}, \"ms\": {:.1f}, \"mb_per_s\": {:.1f}}}",
        t == 0 ? "" : ",", name, text.size(), num_tokens, times_s[kNumRuns / 2] * 1e3,
        text.size() / times_s[kNumRuns / 2] / 1e6);
  }
  fmt::print("\n]}}\n");
  return Status();
}

}  // namespace
}  // namespace foresight

int main(int argc, char** argv) {
  foresight::Status status = foresight::Run(argc, argv);
  if (!status.ok()) fmt::print(stderr, "{}\n", status.ToString());
  return foresight::ExitCode(status.code());
}
