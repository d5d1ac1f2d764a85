#include "speculative/ngram.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "base/rng.h"

namespace foresight {
namespace {

// A bucket is searched no further than this: bounded work whatever the text; a missed match costs a draft.
constexpr int kSearchMax = 32;
constexpr int64_t kBucketsMin = 64;

}  // namespace

NgramDrafter::NgramDrafter(int64_t tokens_reserved) {
  CHECK(tokens_reserved >= 0 && tokens_reserved < INT32_MAX);
  tokens_.reserve(tokens_reserved);
  const int64_t buckets = std::bit_ceil(static_cast<uint64_t>(std::max(tokens_reserved, kBucketsMin)));
  for (Index& index : indexes_) {
    index.previous.reserve(tokens_reserved);
    index.heads.assign(buckets, -1);
  }
}

size_t NgramDrafter::Bucket(const Index& index, int n, int64_t last) const {
  uint64_t hash = 0;
  for (int i = 0; i < n; ++i) hash = MixBits(hash + static_cast<uint64_t>(tokens_[last - i]) + 1);
  return hash & (index.heads.size() - 1);
}

bool NgramDrafter::Equal(int n, int64_t last, int64_t other) const {
  for (int i = 0; i < n; ++i) {
    if (tokens_[last - i] != tokens_[other - i]) return false;
  }
  return true;
}

void NgramDrafter::Link(int n, int64_t last) {
  Index& index = indexes_[n - kNgramShortest];
  int32_t previous = -1;
  if (last >= n - 1) {
    int32_t& head = index.heads[Bucket(index, n, last)];
    previous = head;
    head = static_cast<int32_t>(last);
  }
  index.previous.push_back(previous);
}

void NgramDrafter::Grow() {
  for (int n = kNgramShortest; n <= kNgramLongest; ++n) {
    Index& index = indexes_[n - kNgramShortest];
    index.heads.assign(2 * index.heads.size(), -1);
    index.previous.clear();
    for (int64_t last = 0; last < length(); ++last) Link(n, last);
  }
}

void NgramDrafter::Append(TokenId token) {
  CHECK(length() < INT32_MAX);
  if (length() == std::ssize(indexes_[0].heads)) Grow();
  tokens_.push_back(token);
  for (int n = kNgramShortest; n <= kNgramLongest; ++n) Link(n, length() - 1);
}

void NgramDrafter::Truncate(int64_t new_length) {
  CHECK(new_length >= 0 && new_length <= length(), "truncate {} tokens to {}", length(), new_length);
  for (int64_t last = length() - 1; last >= new_length; --last) {
    for (int n = kNgramShortest; n <= kNgramLongest; ++n) {
      Index& index = indexes_[n - kNgramShortest];
      if (last >= n - 1) index.heads[Bucket(index, n, last)] = index.previous[last];
      index.previous.pop_back();
    }
    tokens_.pop_back();
  }
}

NgramDraft NgramDrafter::Propose(std::span<TokenId> out) const {
  if (out.empty()) return {};
  const int64_t last = length() - 1;
  for (int n = kNgramLongest; n >= kNgramShortest; --n) {
    if (last < n) continue;  // no room for an earlier occurrence
    const Index& index = indexes_[n - kNgramShortest];
    int32_t found = index.previous[last];
    for (int i = 0; i < kSearchMax && found >= 0 && !Equal(n, last, found); ++i)
      found = index.previous[found];
    if (found < 0 || !Equal(n, last, found)) continue;
    for (size_t i = 0; i < out.size(); ++i) {
      const int64_t place = found + 1 + static_cast<int64_t>(i);
      out[i] = place <= last ? tokens_[place] : out[place - last - 1];
    }
    return {.num_tokens = static_cast<int>(out.size()), .match_length = n};
  }
  return {};
}

}  // namespace foresight
