#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <limits>

#include "base/check.h"
#include "base/progress.h"
#include "base/tell.h"
#include "base/text_file.h"
#include "chat/markup.h"
#include "chat/output_parser.h"
#include "chat/prompt.h"
#include "cli/command.h"
#include "cli/draft_flags.h"
#include "cli/interrupt.h"
#include "cli/model_flags.h"
#include "foresight/engine.h"
#include "sampling/sampling_params.h"
#include "tokenizer/tokenizer.h"

namespace foresight {
namespace {

struct RunFlags {
  ModelFlags model;
  DraftFlags draft;
  std::string prompt;
  std::string file;
  bool has_prompt = false;  // and be it empty
  bool has_file = false;
  std::string system;
  std::string effort;
  std::string chat_format = "preview";
  bool chat = false;
  bool thinking = false;
  bool greedy = false;
  bool quiet = false;
  bool ignore_eos = false;
  // Given on the command line or not; what isn't comes from generation_config.json.
  std::optional<double> temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
  std::optional<int64_t> top_k, seed, max_tokens;
  std::optional<int> logprobs;
  std::vector<std::string> stop;
  std::vector<std::string> logit_bias;

  bool Thinks() const { return thinking || !effort.empty(); }
  // Whether a single text is laid out as a user's turn: what only a conversation has was asked for.
  bool IsChat() const { return chat || Thinks() || !system.empty(); }
  PromptOptions ToPromptOptions() const {
    return {.thinking = Thinks(),
            .effort = effort == "max"    ? ReasoningEffort::kMax
                      : effort == "high" ? ReasoningEffort::kHigh
                                         : ReasoningEffort::kLow,
            .ladder = chat_format == "refresh" ? EffortLadder::kRefresh : EffortLadder::kPreview};
  }
};

Result<SamplingParams> SamplingOf(const RunFlags& flags, SamplingParams params) {
  params.temperature = flags.greedy ? 0 : flags.temperature.value_or(params.temperature);
  params.top_p = flags.top_p.value_or(params.top_p);
  params.top_k = flags.top_k.value_or(params.top_k);
  params.min_p = flags.min_p.value_or(params.min_p);
  params.repetition_penalty = flags.repetition_penalty.value_or(params.repetition_penalty);
  params.presence_penalty = flags.presence_penalty.value_or(params.presence_penalty);
  params.frequency_penalty = flags.frequency_penalty.value_or(params.frequency_penalty);
  params.seed = flags.seed;
  params.max_tokens = flags.max_tokens;
  params.logprobs = flags.logprobs;
  params.stop = flags.stop;
  for (const std::string& entry : flags.logit_bias) {
    TokenId id = 0;
    double bias = 0;
    char rest = 0;
    const auto [end, error] = std::from_chars(entry.data(), entry.data() + entry.size(), id);
    if (error != std::errc() || *end != ':' || std::sscanf(end + 1, "%lf%c", &bias, &rest) != 1) {
      return InvalidArgument("--logit-bias: want ID:BIAS, got '{}'", entry);
    }
    params.logit_bias.emplace_back(id, bias);
  }
  return params;
}

// An error of the output, errno `error`: a reader that has gone wanted no more.
Status OutputError(int error) {
  if (error == EPIPE) return Error(StatusCode::kCancelled, "nobody reads the output");
  return Error(StatusCode::kUnavailable, "standard output can't be written: {}", std::strerror(error));
}

// Prints an answer as it comes: its content on the output, its reasoning and log-probabilities on the error
// stream. Called on the engine's thread while this one waits.
class Printer : public OutputSink {
 public:
  // in_reasoning: the prompt left a <think> open.
  Printer(const Tokenizer& tokenizer, bool logprobs, bool quiet, bool in_reasoning)
      : tokenizer_(tokenizer),
        logprobs_(logprobs),
        quiet_(quiet),
        parser_({.in_reasoning = in_reasoning}, this) {}

  void Print(const OutputEvent& event) {
    for (const OutputToken& token : event.tokens) {
      if (logprobs_) PrintLogProbs(token);
    }
    Parsed(parser_.Push(event.text));
  }
  void Finish() { Parsed(parser_.Finish()); }

  void OnReasoning(std::string_view text) override {
    if (!quiet_) Tell("{}{}", answer_.reasoning.empty() ? kThinkBeginToken : "", text);
    answer_.reasoning += text;
  }
  void OnContent(std::string_view text) override {
    if (!quiet_ && answer_.content.empty() && !answer_.reasoning.empty()) {
      Tell("{}\n", kThinkEndToken);
    }
    answer_.content += text;
    if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0) return;
    if (output_.ok()) output_ = OutputError(errno);
    Interrupted() = true;
  }
  // Without declared tools there are none.
  void OnCallBegin(std::string_view) override {}
  void OnCallArguments(std::string_view) override {}
  void OnCallEnd() override {}

  // The first error of the output, which has ended the answer.
  const Status& output() const { return output_; }
  // What was said, as the next message of the conversation.
  const Message& answer() const { return answer_; }

 private:
  static void Parsed(const Status& status) {
    CHECK(status.ok(), "text without calls: {}", status.ToString());
  }
  void PrintLogProbs(const OutputToken& token) const {
    Tell("{:6} {:9.4f} {}", token.token, token.logprob, Show(token.token));
    for (const TokenLogProb& t : token.top) Tell(" | {} {:.3f}", Show(t.token), t.logprob);
    Tell("\n");
  }
  std::string Show(TokenId token) const {
    const auto bytes = tokenizer_.TokenBytes(token);
    std::string shown = "\"";
    for (const char c : bytes.ok() ? *bytes : "?")
      shown += c == '\n' ? std::string("\\n") : std::string(1, c);
    return shown + '"';
  }

  const Tokenizer& tokenizer_;
  bool logprobs_;
  bool quiet_;
  OutputParser parser_;
  Message answer_{.role = Role::kAssistant};
  Status output_;
};

void PrintClosingLine(const RequestResult& r, std::string_view draft_method) {
  Tell("[{}; prefill {} tokens{} {:.1f} tokens/s; decode {} tokens {:.1f} tokens/s; seed {}]\n",
       FinishReasonName(r.finish), r.prompt_tokens - r.cached_tokens,
       r.cached_tokens > 0 ? fmt::format(" (+{} kept)", r.cached_tokens) : "", r.prefill_tokens_per_second(),
       r.completion_tokens, r.decode_tokens_per_second(), r.seed);
  if (const std::string drafts = DescribeDrafts(r, draft_method); !drafts.empty()) {
    Tell("[{}]\n", drafts);
  }
}

// A conversation's begin.
std::vector<Message> Opening(const RunFlags& flags) {
  if (flags.system.empty()) return {};
  return {{.role = Role::kSystem, .content = flags.system}};
}

Result<std::vector<TokenId>> PromptIds(const RunFlags& flags, const Tokenizer& tokenizer,
                                       std::span<const Message> messages) {
  ASSIGN_OR_RETURN(const Prompt prompt, RenderPrompt(messages, flags.ToPromptOptions()));
  return prompt.Encode(tokenizer);
}

Status OneShot(const RunFlags& flags, Engine& engine, const SamplingParams& params, std::string_view input) {
  const Tokenizer& tokenizer = *engine.tokenizer();
  std::vector<TokenId> prompt;
  if (flags.IsChat()) {
    std::vector<Message> messages = Opening(flags);
    messages.push_back({.role = Role::kUser, .content = std::string(input)});
    ASSIGN_OR_RETURN(prompt, PromptIds(flags, tokenizer, messages));
  } else {
    ASSIGN_OR_RETURN(prompt, tokenizer.Encode(input, {.add_bos = tokenizer.bos_id().has_value()}));
  }
  Printer printer(tokenizer, params.logprobs.has_value(), flags.quiet, flags.Thinks());
  ASSIGN_OR_RETURN(const RequestResult result,
                   engine.Generate(
                       {.prompt = prompt, .sampling = params, .ignore_eos = flags.ignore_eos},
                       [&](const OutputEvent& event) { printer.Print(event); }, &Interrupted()));
  printer.Finish();
  RETURN_IF_ERROR(printer.output());
  if (!flags.quiet) {
    fmt::print("\n");
    PrintClosingLine(result, engine.draft_method());
  }
  if (result.finish == FinishReason::kCancelled) return Error(StatusCode::kCancelled, "interrupted");
  return Status();
}

Status Chat(const RunFlags& flags, Engine& engine, const SamplingParams& params) {
  const Tokenizer& tokenizer = *engine.tokenizer();
  std::vector<Message> messages = Opening(flags);
  Tell("Type a message; /clear starts over, /quit or Ctrl-D ends, Ctrl-C stops an answer.\n");
  for (;;) {
    Tell("> ");
    std::string line;
    if (!std::getline(std::cin, line)) {
      if (!Interrupted().exchange(false)) return Status();
      return Error(StatusCode::kCancelled, "interrupted");
    }
    if (line.empty()) continue;
    if (line == "/quit") return Status();
    if (line == "/help") {
      Tell("/clear  forget the conversation\n/quit   leave\n");
      continue;
    }
    if (line == "/clear") {
      messages = Opening(flags);
      continue;
    }
    if (line.starts_with('/')) {
      Tell("unknown command {}; /help lists them\n", line);
      continue;
    }
    messages.push_back({.role = Role::kUser, .content = line});
    ASSIGN_OR_RETURN(const std::vector<TokenId> prompt, PromptIds(flags, tokenizer, messages));
    Interrupted() = false;
    Printer printer(tokenizer, params.logprobs.has_value(), flags.quiet, flags.Thinks());
    const Result<RequestResult> result = engine.Generate(
        {.prompt = prompt, .sampling = params, .ignore_eos = flags.ignore_eos},
        [&](const OutputEvent& event) { printer.Print(event); }, &Interrupted());
    Interrupted() = false;
    if (!result.ok()) {
      // The request has failed, the conversation goes on as if it had not been made.
      messages.pop_back();
      Tell("{}\n", result.status().ToString());
      continue;
    }
    printer.Finish();
    RETURN_IF_ERROR(printer.output());
    fmt::print("\n");
    std::fflush(stdout);
    if (!flags.quiet) PrintClosingLine(*result, engine.draft_method());
    messages.push_back(printer.answer());
  }
}

// The text of --prompt or --file, if one of them was given.
Result<std::optional<std::string>> GivenText(const RunFlags& flags) {
  if (flags.has_prompt) return std::optional(flags.prompt);
  if (!flags.has_file) return std::optional<std::string>();
  ASSIGN_OR_RETURN(std::string text, ReadTextFile(flags.file));
  return std::optional(std::move(text));
}

Status Run(const RunFlags& flags) {
  // What is wrong whatever the model says is told before one is loaded, which may take long.
  ASSIGN_OR_RETURN(const std::optional<std::string> given, GivenText(flags));
  ASSIGN_OR_RETURN(SamplingParams asked, SamplingOf(flags, SamplingParams()));
  asked.logit_bias.clear();  // whose ids are the model's
  RETURN_IF_ERROR(asked.Validate(std::numeric_limits<int>::max()));

  EngineOptions options = flags.model.ToOptions();
  TerminalProgress progress;
  options.progress = flags.quiet ? nullptr : &progress;
  options.max_sequences = 1;  // one conversation
  options.speculation = flags.draft.ToOptions();
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::Load(options));
  if (engine->tokenizer() == nullptr) return NotFound("{} has no tokenizer.json", flags.model.directory);
  if (!flags.quiet) Tell("{}", engine->StartUpReport());
  ASSIGN_OR_RETURN(const SamplingParams params, SamplingOf(flags, engine->default_sampling()));
  RETURN_IF_ERROR(params.Validate(engine->vocab_size()));

  CatchInterrupts();
  std::signal(SIGPIPE, SIG_IGN);

  if (given) return OneShot(flags, *engine, params, *given);
  if (isatty(STDIN_FILENO)) return Chat(flags, *engine, params);
  const Result<std::string> text = ReadStandardInput();
  if (Interrupted()) return Error(StatusCode::kCancelled, "interrupted");
  RETURN_IF_ERROR(text.status());
  return OneShot(flags, *engine, params, *text);
}

}  // namespace

void AddRunCommand(Command& app, Status* result) {
  auto flags = std::make_shared<RunFlags>();
  Command command = app.AddCommand(
      "run",
      "Generate text: one answer for -p, --file or piped standard input; a conversation on a terminal");
  flags->model.AddTo(command);
  flags->draft.AddTo(command);
  flags->draft.AddFilesTo(command);
  const Flag prompt = command.Add("-p,--prompt", flags->prompt, "The text to continue");
  const Flag file =
      command.Add("-f,--file", flags->file, "A file with the text to continue").Excludes(prompt);
  command.AddSwitch("--chat", flags->chat, "Lay the text out as a user's turn instead of continuing it");
  command.Add("--system", flags->system, "System text of a conversation (implies --chat)");
  command.AddSwitch("--thinking", flags->thinking,
                    "Let the answer begin with reasoning, shown on the error stream (implies --chat)");
  command.Add("--effort", flags->effort, "How hard to think: low, high or max (implies --thinking)")
      .OneOf({"low", "high", "max"});
  command
      .Add("--chat-format", flags->chat_format,
           "Which release's effort texts: preview (max only) or refresh (0731 and later: high, max)")
      .OneOf({"preview", "refresh"})
      .ShowDefault();
  command.AddSwitch("-q,--quiet", flags->quiet, "The text only");
  command.Add("-n,--max-tokens", flags->max_tokens, "Longest answer (default: the rest of the context)");
  command.Add("--temperature,--temp", flags->temperature,
              "0 is greedy (defaults: the model's generation_config.json)");
  command.AddSwitch("--greedy", flags->greedy, "The same as --temperature 0");
  command.Add("--top-k", flags->top_k, "Keep the k most likely tokens; 0: all");
  command.Add("--top-p", flags->top_p, "Keep the smallest set of this probability");
  command.Add("--min-p", flags->min_p, "Keep tokens at least this likely relative to the best");
  command.Add("--repetition-penalty", flags->repetition_penalty, "Divides logits of tokens seen; 1: off");
  command.Add("--presence-penalty", flags->presence_penalty, "Subtracted once from tokens generated");
  command.Add("--frequency-penalty", flags->frequency_penalty, "Subtracted for each time generated");
  command.Add("-s,--seed", flags->seed, "The same seed gives the same text");
  command.Add("--stop", flags->stop, "End before this text (may be given several times)").OneEachTime();
  command.Add("--logprobs", flags->logprobs, "Print log-probabilities of this many alternatives");
  command.Add("--logit-bias", flags->logit_bias, "ID:BIAS, added to a token's logit (several times)")
      .OneEachTime();
  command.AddSwitch("--ignore-eos", flags->ignore_eos, "Go on after the end-of-sequence token");
  command.OnRun([flags, prompt, file, result] {
    flags->has_prompt = prompt.IsGiven();
    flags->has_file = file.IsGiven();
    *result = Run(*flags);
  });
}

}  // namespace foresight
