// ela-checkpoint export, import.
#include <nlohmann/json.hpp>
#include <string>

#include "checkpoints/checkpoint.h"
#include "checkpoints/cli/commands.h"
#include "checkpoints/cli/text.h"
#include "proto/status_macros.h"

namespace ela::checkpoints {

absl::Status ExportCommand(const std::string& path_at_step, const ExportOptions& options,
                           const Output& output) {
  ELA_ASSIGN_OR_RETURN(const auto reader, OpenCheckpoint(path_at_step));
  ELA_ASSIGN_OR_RETURN(const ExportResult result, ExportStep(reader.get(), options));
  if (output.json) {
    const nlohmann::ordered_json json = {
        {"folder", options.to},      {"step", reader->manifest().step()},
        {"tensors", result.tensors}, {"parameters", result.parameters},
        {"bytes", result.bytes},     {"tokenizer", result.tokenizer}};
    *output.out << json.dump(2) << "\n";
    return absl::OkStatus();
  }
  *output.out << options.to << "\n";
  *output.err << "exported step " << reader->manifest().step() << ": " << result.tensors
              << " tensors, " << FormatCount(result.parameters) << " parameters, "
              << FormatBytes(result.bytes) << "\n";
  if (result.tokenizer.empty() && !options.lobe_only) *output.err << "without a tokenizer\n";
  return absl::OkStatus();
}

absl::Status ImportCommand(const ImportOptions& options, const Output& output) {
  ELA_ASSIGN_OR_RETURN(const v1::StepManifest manifest, ImportStep(options));
  if (output.json) {
    const nlohmann::ordered_json json = {{"path", options.to},
                                         {"step", manifest.step()},
                                         {"tensors", manifest.tensors_size()},
                                         {"bytes", manifest.bytes()}};
    *output.out << json.dump(2) << "\n";
    return absl::OkStatus();
  }
  *output.out << options.to << "@" << manifest.step() << "\n";
  *output.err << "imported " << manifest.tensors_size() << " tensors, "
              << FormatBytes(manifest.bytes()) << ", without optimizer state: start from it by "
              << "training.init_from\n";
  return absl::OkStatus();
}

}  // namespace ela::checkpoints
