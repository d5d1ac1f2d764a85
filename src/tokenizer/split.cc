#include "tokenizer/split.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>

#include "base/check.h"

namespace foresight {
namespace {

constexpr size_t kPatternBytesMax = 16 << 10;

template <auto kFree>
struct Deleter {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using CodePtr = std::unique_ptr<pcre2_code, Deleter<&pcre2_code_free>>;
using CompileContextPtr = std::unique_ptr<pcre2_compile_context, Deleter<&pcre2_compile_context_free>>;
using MatchContextPtr = std::unique_ptr<pcre2_match_context, Deleter<&pcre2_match_context_free>>;
using MatchDataPtr = std::unique_ptr<pcre2_match_data, Deleter<&pcre2_match_data_free>>;

std::string ErrorText(int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

bool IsAsciiLetterOrDigit(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// The pattern in PCRE2's words: \s becomes the property that it means in Oniguruma (PCRE2's own takes U+180E
// too).
Result<std::string> TranslateRegex(std::string_view pattern) {
  if (size_t at = pattern.find("(*"); at != std::string_view::npos) {
    return Unimplemented("the verb '(*' at byte {} is not supported", at);
  }
  std::string translated;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] != '\\') {
      translated += pattern[i];
      continue;
    }
    if (++i == pattern.size()) return InvalidArgument("the pattern ends with a backslash");
    char escaped = pattern[i];
    bool is_code_point = escaped == 'x' && i + 1 < pattern.size() && pattern[i + 1] == '{';
    if (escaped == 's') {
      translated += "\\p{White_Space}";
    } else if (escaped == 'S') {
      translated += "\\P{White_Space}";
    } else if (is_code_point || !IsAsciiLetterOrDigit(escaped) ||
               std::string_view("pPdDrntfAz").find(escaped) != std::string_view::npos) {
      translated += '\\';
      translated += escaped;
    } else {
      return Unimplemented("the escape '\\{}' at byte {} is not supported", escaped, i - 1);
    }
  }
  return translated;
}

struct Piece {
  std::string_view text;
  bool is_match;
};

// Joins what the behaviour joins (the rules of Hugging Face's tokenizers library), front to back.
void Join(SplitBehavior behavior, const std::vector<Piece>& cut, std::vector<std::string_view>* pieces) {
  bool was_match = false;
  for (const auto& [text, is_match] : cut) {
    bool joins = false;  // the piece before
    switch (behavior) {
      case SplitBehavior::kIsolated:
        break;
      case SplitBehavior::kRemoved:
        if (is_match) continue;
        break;
      case SplitBehavior::kMergedWithPrevious:
        joins = is_match && !was_match;
        break;
      case SplitBehavior::kMergedWithNext:
        // Seen from the front: text after a match joins the match, and of two matches in a row only the last
        // is next to the text.
        joins = was_match && !is_match;
        break;
      case SplitBehavior::kContiguous:
        joins = is_match == was_match;
        break;
    }
    if (joins && !pieces->empty()) {
      pieces->back() = {pieces->back().data(), pieces->back().size() + text.size()};
    } else {
      pieces->push_back(text);
    }
    was_match = is_match;
  }
}

}  // namespace

struct SplitScratch::Impl {
  MatchDataPtr match;
  MatchContextPtr context;
  std::vector<Piece> cut;
};

SplitScratch::SplitScratch() : impl_(std::make_unique<Impl>()) {
  impl_->match.reset(pcre2_match_data_create(1, nullptr));
  impl_->context.reset(pcre2_match_context_create(nullptr));
  CHECK(impl_->match && impl_->context, "out of memory");
}
SplitScratch::~SplitScratch() = default;
SplitScratch::SplitScratch(SplitScratch&&) noexcept = default;
SplitScratch& SplitScratch::operator=(SplitScratch&&) noexcept = default;

struct Split::Impl {
  CodePtr code;
  SplitBehavior behavior;
  bool invert;
  bool is_compiled;
};

Split::Split(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Split::~Split() = default;
Split::Split(Split&&) noexcept = default;
Split& Split::operator=(Split&&) noexcept = default;

Result<Split> Split::Compile(const SplitConfig& config) {
  if (config.pattern.empty()) return InvalidArgument("the pattern is empty");
  if (config.pattern.size() > kPatternBytesMax) {
    return InvalidArgument("the pattern has {} bytes, more than {}", config.pattern.size(), kPatternBytesMax);
  }
  std::string pattern = config.pattern;
  if (!config.is_literal) {
    ASSIGN_OR_RETURN(pattern, TranslateRegex(config.pattern));
  }

  CompileContextPtr context(pcre2_compile_context_create(nullptr));
  CHECK(context != nullptr, "out of memory");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  // In Oniguruma ^ and $ are always about lines, as with PCRE2_MULTILINE.
  uint32_t options = PCRE2_UTF | (config.is_literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE);
  int error = 0;
  size_t error_offset = 0;
  CodePtr code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), options, &error,
                             &error_offset, context.get()));
  if (!code) return InvalidArgument("{} at byte {} of '{}'", ErrorText(error), error_offset, pattern);
  uint32_t matches_empty = 0;
  pcre2_pattern_info(code.get(), PCRE2_INFO_MATCHEMPTY, &matches_empty);
  if (matches_empty != 0) return InvalidArgument("the pattern '{}' matches the empty text", config.pattern);

  auto impl = std::make_unique<Impl>();
  impl->is_compiled = pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE) == 0;
  impl->code = std::move(code);
  impl->behavior = config.behavior;
  impl->invert = config.invert;
  return Split(std::move(impl));
}

Status Split::Apply(std::string_view text, SplitScratch* scratch,
                    std::vector<std::string_view>* pieces) const {
  SplitScratch::Impl& state = *scratch->impl_;
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const pcre2_code* code = impl_->code.get();
  pcre2_match_context* context = state.context.get();
  pcre2_set_match_limit(context, static_cast<uint32_t>(std::min<size_t>(
                                     kMatchStepsMin + kMatchStepsPerByte * text.size(), UINT32_MAX)));
  const size_t* match = pcre2_get_ovector_pointer(state.match.get());

  state.cut.clear();
  pieces->clear();
  for (size_t pos = 0; pos < text.size();) {
    int rc = PCRE2_ERROR_JIT_STACKLIMIT;
    if (impl_->is_compiled)
      rc = pcre2_jit_match(code, subject, text.size(), pos, 0, state.match.get(), context);
    // Machine code has a small stack; the interpreter, which keeps its own on the heap, decides where it runs
    // out.
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      rc = pcre2_match(code, subject, text.size(), pos, PCRE2_NO_JIT | PCRE2_NO_UTF_CHECK, state.match.get(),
                       context);
    }
    if (rc == PCRE2_ERROR_NOMATCH) {
      state.cut.push_back({text.substr(pos), impl_->invert});
      break;
    }
    if (rc < 0) return ResourceExhausted("a pre-tokenizer pattern failed at byte {}: {}", pos, ErrorText(rc));
    if (match[0] > pos) state.cut.push_back({text.substr(pos, match[0] - pos), impl_->invert});
    state.cut.push_back({text.substr(match[0], match[1] - match[0]), !impl_->invert});
    pos = match[1];
  }
  Join(impl_->behavior, state.cut, pieces);
  return Status();
}

bool Split::is_compiled() const {
  return impl_->is_compiled;
}

}  // namespace foresight
