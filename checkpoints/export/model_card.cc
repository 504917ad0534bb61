#include "checkpoints/export/model_card.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "checkpoints/export/folder_format.h"
#include "proto/job/job_file.h"
#include "proto/program/format.h"

namespace ela::checkpoints {
namespace {

using nlohmann::ordered_json;

/// A row for each key of the model section.
void AppendRows(const ordered_json& object, const std::string& prefix, std::string* text) {
  for (const auto& [key, value] : object.items()) {
    const std::string path = prefix.empty() ? key : absl::StrCat(prefix, ".", key);
    if (value.is_object()) {
      AppendRows(value, path, text);
    } else {
      absl::StrAppend(text, "| ", path, " | ",
                      value.is_string() ? value.get<std::string>() : value.dump(), " |\n");
    }
  }
}

std::string UseOfLobe() {
  return R"(The Memory Lobes alone. They go into a model of the same width and depth:

    ela checkpoint import MODEL --lobe DIR --to NEW      MODEL: an exported folder or a checkpoint
    training.init_from: DIR                              in a job: the rest begins afresh
)";
}

std::string UseOfModel(bool masked, bool leaks) {
  std::string text = "In Python, with PyTorch alone (`modeling_ela.py` is the whole model):\n\n";
  absl::StrAppend(&text, "    from modeling_ela import ElaModel\n",
                  "    model = ElaModel.load(\"DIR\")\n",
                  "    logits = model(ids)                  # ids [B, L] -> [B, L, V]\n");
  if (!masked && !leaks)
    absl::StrAppend(&text, "    ids = model.generate(ids, max_new_tokens=64)\n");
  absl::StrAppend(&text, "\nIn ELA:\n\n");
  if (!masked && !leaks) {
    absl::StrAppend(&text, "    ela model generate --model DIR --prompt TEXT --max-tokens 128\n");
  }
  absl::StrAppend(&text, "    ela model eval --model DIR --data PREFIX --seq-len L\n",
                  "    training.init_from: DIR              in a job: begin with these weights\n",
                  "    ela checkpoint import DIR --to NEW   a checkpoint of them\n");
  return text;
}

}  // namespace

std::string ModelCard(const v1::StepManifest& manifest, const v1::TrainingJob& job,
                      const ExportOptions& options, const ExportResult& result) {
  const bool masked = job.spec().training().objective() == v1::OBJECTIVE_MASKED_TOKEN;
  const v1::MemoryLobeSpec& lobe = job.spec().model().memory_lobe();
  const bool leaks = !masked && lobe.enabled() && lobe.mode() == v1::LOBE_MODE_BIDIRECTIONAL;
  std::string text = absl::StrCat(
      "# ", manifest.job().empty() ? "Model" : manifest.job(),
      "\n\nAn Exact Linear Attention model (arXiv 2605.18848): ", FormatCount(result.parameters),
      " parameters in ", options.bf16 ? "bf16" : "fp32", ", step ", manifest.step(),
      " of its training on ", FormatCount(manifest.state().tokens()),
      " tokens (objective: ", masked ? kMaskedToken : kNextToken, ").\n");
  if (leaks) {
    absl::StrAppend(&text,
                    "\n**Its Memory Lobe looks at tokens that it predicts**: its losses are lower "
                    "than what it can do, and it cannot generate.\n");
  }
  absl::StrAppend(&text, "\n## Use\n\n",
                  options.lobe_only ? UseOfLobe() : UseOfModel(masked, leaks),
                  "\n## config.json\n\n| key | value |\n| --- | --- |\n");
  AppendRows(ordered_json::parse(job::ModelToJson(job.spec().model())), "", &text);
  if (!manifest.code_version().empty()) {
    absl::StrAppend(&text, "\nTrained by ela ", manifest.code_version(), ".\n");
  }
  return text;
}

}  // namespace ela::checkpoints
