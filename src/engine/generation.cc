#include "engine/generation.h"

#include <algorithm>
#include <chrono>
#include <optional>

#include "tokenizer/streaming_decoder.h"

namespace foresight {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Tokens to text to what may leave.
class TextStream {
 public:
  TextStream(const Tokenizer* tokenizer, const SamplingParams& sampling, GenerationSink& sink)
      : stop_(sampling.stop, sampling.include_stop), sink_(sink) {
    if (tokenizer != nullptr) decoder_.emplace(*tokenizer, DecodeOptions{.skip_special = true});
  }

  Status Push(TokenId token) {
    if (!decoder_) return Status();
    ASSIGN_OR_RETURN(const std::string text, decoder_->Push(token));
    Emit(stop_.Push(text));
    return Status();
  }
  void Finish() {
    if (!decoder_) return;
    Emit(stop_.Push(decoder_->Finish()));
    if (!stop_.stopped()) Emit(stop_.Flush());
  }
  bool stopped() const { return stop_.stopped(); }

 private:
  void Emit(std::string_view text) {
    if (!text.empty()) sink_.OnText(text);
  }

  std::optional<StreamingDecoder> decoder_;
  StopMatcher stop_;
  GenerationSink& sink_;
};

}  // namespace

std::string_view FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  return "";
}

double GenerationResult::prefill_tokens_per_second() const {
  return prefill_seconds > 0 ? static_cast<double>(prompt_tokens - cached_tokens) / prefill_seconds : 0;
}

double GenerationResult::decode_tokens_per_second() const {
  return decode_seconds > 0 ? static_cast<double>(completion_tokens - 1) / decode_seconds : 0;
}

Result<Session> Session::Create(Engine& engine) {
  ASSIGN_OR_RETURN(SequenceState state, engine.cache().NewSequence());
  Session session(engine, std::move(state));
  session.tokens_.reserve(engine.context_tokens());
  return session;
}

Result<int64_t> Session::ReusePrefix(std::span<const TokenId> prompt) {
  // The last prompt token is always computed: its logits are wanted.
  const auto mismatch = std::mismatch(tokens_.begin(), tokens_.end(), prompt.begin(), prompt.end() - 1);
  int64_t common = mismatch.first - tokens_.begin();
  // Further back than the rings remember, the state is computed anew.
  if (common < state_.length() && common < state_.truncatable_to()) common = 0;
  RETURN_IF_ERROR(state_.Truncate(common));
  tokens_.resize(common);
  return common;
}

Result<GenerationResult> Session::Generate(const GenerationRequest& request, GenerationSink& sink) {
  Model& model = engine_->model();
  const ModelConfig& config = engine_->config();
  const std::span<const TokenId> prompt = request.prompt;
  if (prompt.empty()) return InvalidArgument("the prompt has no tokens");
  if (std::ssize(prompt) >= engine_->context_tokens()) {
    return InvalidArgument("the prompt has {} tokens, the context holds {}, answer included", prompt.size(),
                           engine_->context_tokens());
  }
  for (TokenId token : prompt) {
    if (token < 0 || token >= config.vocab_size) {
      return InvalidArgument("token id {} is outside the vocabulary of {}", token, config.vocab_size);
    }
  }
  RETURN_IF_ERROR(request.sampling.Validate(config.vocab_size));
  const auto cancelled = [&] { return request.cancel != nullptr && request.cancel->load(); };

  Sampler sampler(request.sampling, config.vocab_size);
  sampler.AddPrompt(prompt);
  TextStream text(engine_->tokenizer(), request.sampling, sink);
  GenerationResult result{.prompt_tokens = std::ssize(prompt), .seed = sampler.seed()};
  ASSIGN_OR_RETURN(result.cached_tokens, ReusePrefix(prompt));
  const int64_t room = engine_->context_tokens() - std::ssize(prompt);
  const int64_t max_tokens = std::min(request.sampling.max_tokens.value_or(room), room);

  auto step = [&](std::span<const TokenId> tokens, bool want_logits) -> Result<std::span<const float>> {
    const SequenceChunk chunk[] = {{.sequence = &state_, .num_rows = static_cast<int>(tokens.size())}};
    const int32_t last[] = {static_cast<int32_t>(tokens.size()) - 1};
    ASSIGN_OR_RETURN(
        const StepOutputs out,
        model.Step({.tokens = tokens, .chunks = chunk, .logit_rows = std::span(last, want_logits ? 1 : 0)}));
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
    return out.logits;
  };

  // Prefill in chunks; only the last one's last row has logits.
  Clock::time_point start = Clock::now();
  std::span<const float> logits;
  for (int64_t done = result.cached_tokens; done < std::ssize(prompt);) {
    if (cancelled()) {
      result.finish = FinishReason::kCancelled;
      return result;
    }
    const int64_t count = std::min<int64_t>(std::ssize(prompt) - done, model.max_step_rows());
    ASSIGN_OR_RETURN(logits, step(prompt.subspan(done, count), done + count == std::ssize(prompt)));
    done += count;
  }
  result.prefill_seconds = SecondsSince(start);

  start = Clock::now();
  SampledToken sampled;
  result.finish = FinishReason::kLength;
  while (result.completion_tokens < max_tokens) {
    if (cancelled()) {
      result.finish = FinishReason::kCancelled;
      break;
    }
    if (result.completion_tokens > 0) {
      // Not before it is needed: the last token of an answer is never stepped.
      const TokenId previous[] = {sampled.token};
      ASSIGN_OR_RETURN(logits, step(previous, true));
    }
    ASSIGN_OR_RETURN(sampled, sampler.Sample(logits, std::ssize(tokens_)));
    sampler.AddGenerated(sampled.token);
    ++result.completion_tokens;
    sink.OnToken(sampled);
    if (sampled.token == config.eos_token_id && !request.ignore_eos) {
      result.finish = FinishReason::kStop;
      break;
    }
    RETURN_IF_ERROR(text.Push(sampled.token));
    if (text.stopped()) {
      result.finish = FinishReason::kStop;
      break;
    }
  }
  text.Finish();
  result.decode_seconds = SecondsSince(start);
  return result;
}

}  // namespace foresight
