// What explains an exported folder to who finds it.
#pragma once

#include <string>
#include <string_view>

#include "checkpoints/export/exported_folder.h"

namespace ela::checkpoints {

/// README.md: what the model is, how it was trained, and how to use the folder. Markdown.
std::string ModelCard(const v1::StepManifest& manifest, const v1::TrainingJob& job,
                      const ExportOptions& options, const ExportResult& result);

/// The text of modeling_ela.py, which is part of the program.
std::string_view ModelingModule();

}  // namespace ela::checkpoints
