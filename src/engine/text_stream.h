// The tokens of one answer as text that may leave: whole characters, nothing that may begin a stop string.
#pragma once

#include <optional>
#include <string>

#include "base/status.h"
#include "sampling/sampling_params.h"
#include "sampling/stop_matcher.h"
#include "tokenizer/streaming_decoder.h"

namespace foresight {

// One thread. The tokenizer may be null: then there is no text.
class TextStream {
 public:
  TextStream(const Tokenizer* tokenizer, const SamplingParams& sampling)
      : stop_(sampling.stop, sampling.include_stop) {
    if (tokenizer != nullptr) decoder_.emplace(*tokenizer, DecodeOptions{.skip_special = true});
  }

  // Appends to `out` what the token lets go.
  Status Push(TokenId token, std::string& out) {
    if (!decoder_) return Status();
    ASSIGN_OR_RETURN(const std::string text, decoder_->Push(token));
    out += stop_.Push(text);
    return Status();
  }
  // The answer has ended: appends what was held back.
  void Finish(std::string& out) {
    if (!decoder_) return;
    out += stop_.Push(decoder_->Finish());
    if (!stop_.stopped()) out += stop_.Flush();
  }
  bool stopped() const { return stop_.stopped(); }
  // Which stop string was found, or -1.
  int stopped_by() const { return stop_.stopped_by(); }

 private:
  std::optional<StreamingDecoder> decoder_;
  StopMatcher stop_;
};

}  // namespace foresight
