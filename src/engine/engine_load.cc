// Where an engine's model comes from. In a file of its own, so that only programs that ask for it carry the
// embedded model.
#include "base/exceptions.h"
#include "engine/engine_access.h"
#include "weights/embedded/embedded_model.h"
#include "weights/synthetic.h"

namespace foresight {
namespace {

Result<std::unique_ptr<Engine>> LoadEngine(const EngineOptions& options) {
  RETURN_IF_ERROR(CheckEngineOptions(options));
  std::unique_ptr<Runtime> runtime;
  if (!options.synthetic.empty()) {
    if (!options.model.empty()) return InvalidArgument("a model and a synthetic one: want one of them");
    ASSIGN_OR_RETURN(const ModelConfig config,
                     ParseSyntheticSpec(options.synthetic, options.synthetic_experts));
    ASSIGN_OR_RETURN(runtime, Runtime::Synthesize(config, options));
  } else {
    ASSIGN_OR_RETURN(const ModelFiles files, OpenModel(options.model));
    ASSIGN_OR_RETURN(runtime, Runtime::Load(files, options));
  }
  return EngineAccess::Make(std::move(runtime), options);
}

}  // namespace

Result<std::unique_ptr<Engine>> Engine::Load(const EngineOptions& options) {
  try {
    return LoadEngine(options);
  } catch (const std::exception& e) {  // threads and memory that the system doesn't give
    return StatusOf(e);
  }
}

Result<ModelFiles> OpenModel(const std::string& directory) {
  if (!directory.empty()) return OpenModelDirectory(directory);
  ModelFiles files = EmbeddedModel();
  if (files.empty()) return NotFound("this build carries no model; name a checkpoint directory");
  return files;
}

}  // namespace foresight
