// One Split step of a pre-tokenizer: a pattern cuts a piece of text into smaller pieces.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace foresight {

// What becomes of the matches of the pattern and of the text between them.
enum class SplitBehavior {
  kIsolated,            // each match and each text between is a piece
  kRemoved,             // the matches are dropped
  kMergedWithPrevious,  // a match joins the piece before it
  kMergedWithNext,      // a match joins the piece after it
  kContiguous,          // matches without text between them are one piece
};

struct SplitConfig {
  std::string pattern;
  bool is_literal = false;  // the pattern is a plain string
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  // "match" above means the text between the matches, and the other way round
};

// Working memory, to be kept between calls. One thread at a time; serves every Split.
class SplitScratch {
 public:
  SplitScratch();
  ~SplitScratch();
  SplitScratch(SplitScratch&&) noexcept;
  SplitScratch& operator=(SplitScratch&&) noexcept;

 private:
  friend class Split;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Immutable once compiled: any thread may cut.
//
// The regex dialect is what Oniguruma, for which tokenizer.json is written, and PCRE2 read alike: groups,
// classes, repeats, look-around, \p{..} \P{..}, \s \S (Unicode's White_Space), \d \D, \r \n \t \f, \x{..}, \A
// \z and escaped signs. A pattern that uses another escape is refused.
class Split {
 public:
  // Errors: kInvalidArgument (syntax, or a pattern that matches the empty text), kUnimplemented (outside the
  // dialect).
  static Result<Split> Compile(const SplitConfig& config);
  ~Split();
  Split(Split&&) noexcept;
  Split& operator=(Split&&) noexcept;

  // Replaces *pieces by the pieces of `text`, none of them empty. The text is valid UTF-8; what stands around
  // it is invisible to the pattern. Errors: kResourceExhausted when one match takes more than kMatchStepsMin
  // + kMatchStepsPerByte * bytes steps: the pattern backtracks without end.
  Status Apply(std::string_view text, SplitScratch* scratch, std::vector<std::string_view>* pieces) const;
  static constexpr uint32_t kMatchStepsMin = 1'000'000;
  static constexpr uint32_t kMatchStepsPerByte = 8;

  // The pattern runs as machine code; otherwise PCRE2 interprets it (a machine without executable memory).
  bool is_compiled() const;

 private:
  struct Impl;
  explicit Split(std::unique_ptr<const Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

}  // namespace foresight
