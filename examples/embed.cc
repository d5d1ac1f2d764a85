// Foresight inside another program: load a model, ask it, print the answer as it comes.
//
//   embed [PROMPT [CHECKPOINT_DIRECTORY]]
#include <cstdio>

#include "foresight/engine.h"

int main(int argc, char** argv) {
  const char* prompt_text = argc > 1 ? argv[1] : "The program reads a file and";
  // Without a directory: the small model that is part of the library.
  auto engine = foresight::Engine::Load({.model = argc > 2 ? argv[2] : "", .max_sequences = 2});
  if (!engine.ok()) {
    std::fprintf(stderr, "%s\n", engine.status().ToString().c_str());
    return 1;
  }
  auto prompt = (*engine)->Encode(prompt_text);
  if (!prompt.ok()) {
    std::fprintf(stderr, "%s\n", prompt.status().ToString().c_str());
    return 1;
  }
  foresight::Request request{.prompt = *prompt, .sampling = (*engine)->default_sampling()};
  request.sampling.max_tokens = 40;
  request.sampling.seed = 1;  // the same text every time
  auto result = (*engine)->Generate(request, [](const foresight::OutputEvent& event) {
    std::fwrite(event.text.data(), 1, event.text.size(), stdout);
    std::fflush(stdout);
  });
  if (!result.ok()) {
    std::fprintf(stderr, "%s\n", result.status().ToString().c_str());
    return 1;
  }
  std::printf("\n[%lld tokens, %.1f tokens/s]\n", static_cast<long long>(result->completion_tokens),
              result->decode_tokens_per_second());
  return 0;
}
