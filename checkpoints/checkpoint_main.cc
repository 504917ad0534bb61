// ela-checkpoint: looks into checkpoints, checks them, and carries models out and in. Offline.
#include <CLI/CLI.hpp>
#include <iostream>

#include "checkpoints/checkpoint.h"
#include "checkpoints/cli/commands.h"
#include "checkpoints/kv/files.h"
#include "proto/program/command_line.h"

namespace ela::checkpoints {
namespace {

enum ExitCode : int { kDone = 0, kFailed = 1, kNotFound = 3, kNotAllowed = 4 };  // 2: usage

constexpr char kFooter[] =
    "PATH is a checkpoint folder, a run folder or (where a step is read) an exported model;\n"
    "@STEP picks a step, the newest without it.\n"
    "Data goes to stdout, messages to stderr. Exit codes: 0 done, 1 failed (verify: damaged;\n"
    "diff: different), 2 usage, 3 not found, 4 not allowed.";

int Report(const absl::Status& status) {
  if (status.ok()) return kDone;
  std::cerr << "ela-checkpoint: " << status.message() << "\n";
  if (absl::IsNotFound(status)) return kNotFound;
  if (absl::IsPermissionDenied(status)) return kNotAllowed;
  return kFailed;
}

int Report(const absl::StatusOr<bool>& good) {
  if (!good.ok()) return Report(good.status());
  return *good ? kDone : kFailed;
}

/// "@STEP" that is no number is a matter of usage.
std::string CheckPath(const std::string& path_at_step) {
  const auto split = SplitPathAtStep(path_at_step);
  return split.ok() ? "" : std::string(split.status().message());
}

struct Line {
  std::string path, second, format = "table", only;
  bool all = false, without_tokenizer = false;
  std::string dtype = "f32";
  ExportOptions exporting;
  ImportOptions importing;
};

CLI::App* Verb(CLI::App* app, const std::string& name, const std::string& doc, Line* line) {
  CLI::App* verb = app->add_subcommand(name, doc);
  verb->add_option("-o,--output", line->format, "table | json")
      ->check(CLI::IsMember({"table", "json"}))
      ->capture_default_str();
  verb->footer(kFooter);
  return verb;
}

void AddPath(CLI::App* verb, const std::string& name, std::string* path, const std::string& doc) {
  verb->add_option(name, *path, doc)->required()->check(CheckPath);
}

struct Verbs {
  CLI::App *list, *describe, *verify, *diff, *to_folder, *from_folder;
};

Verbs AddVerbs(CLI::App* app, Line* line) {
  Verbs verbs{};
  verbs.list = Verb(app, "list", "The committed steps", line);
  verbs.list->add_option("PATH", line->path, "checkpoint or run folder")->required();

  verbs.describe = Verb(app, "describe", "One step: job, position, tensors", line);
  AddPath(verbs.describe, "PATH[@STEP]", &line->path, "the step");

  verbs.verify = Verb(app, "verify", "Reads every byte and names what is damaged", line);
  AddPath(verbs.verify, "PATH[@STEP]", &line->path, "the step");
  verbs.verify->add_flag("--all", line->all, "every committed step");

  verbs.diff = Verb(app, "diff", "Compares two steps tensor by tensor", line);
  AddPath(verbs.diff, "PATH[@STEP]", &line->path, "one step");
  AddPath(verbs.diff, "OTHER[@STEP]", &line->second, "the other");

  verbs.to_folder = Verb(app, "export",
                         "Writes a folder that PyTorch and ELA load: safetensors, config.json, "
                         "tokenizer, modeling_ela.py",
                         line);
  AddPath(verbs.to_folder, "PATH[@STEP]", &line->path, "the step");
  verbs.to_folder->add_option("--to", line->exporting.to, "a new folder")->required();
  verbs.to_folder->add_option("--only", line->only, "memory_lobe: the Memory Lobes alone")
      ->check(CLI::IsMember({kMemoryLobe}));
  verbs.to_folder->add_option("--dtype", line->dtype, "f32 | bf16 (rounded)")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  verbs.to_folder
      ->add_option("--part-bytes", line->exporting.part_bytes,
                   "more than that is cut into several files with an index; 500MiB, 4GiB")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::PositiveNumber)
      ->default_str("4GiB");
  verbs.to_folder->add_option("--tokenizer", line->exporting.tokenizer_path,
                              "instead of the file that the job names");
  verbs.to_folder->add_flag("--without-tokenizer", line->without_tokenizer, "copy no tokenizer");

  verbs.from_folder =
      Verb(app, "import", "Makes a checkpoint of an exported model, for training.init_from", line);
  AddPath(verbs.from_folder, "MODEL", &line->path,
          "an exported folder, or PATH[@STEP] of a checkpoint");
  verbs.from_folder
      ->add_option("--lobe", line->importing.lobe,
                   "take the Memory Lobes from here instead: an export --only memory_lobe, or a "
                   "model of the same width and depth")
      ->check(CheckPath);
  verbs.from_folder->add_option("--to", line->importing.to, "a new checkpoint folder")->required();
  return verbs;
}

int Run(int argc, char** argv) {
  CLI::App app("Looks into checkpoints, checks them, and carries models out and in.",
               "ela checkpoint");
  app.require_subcommand(1);
  app.footer(kFooter);
  Line line;
  const Verbs verbs = AddVerbs(&app, &line);
  if (const auto exit = ParseCommandLine(&app, "ela-checkpoint", argc, argv)) return *exit;
  const Output output{&std::cout, &std::cerr, line.format == "json"};
  line.exporting.lobe_only = line.only == kMemoryLobe;
  line.exporting.bf16 = line.dtype == "bf16";
  line.exporting.tokenizer = !line.without_tokenizer;
  line.importing.from = line.path;
  if (*verbs.list) return Report(ListCommand(line.path, output));
  if (*verbs.describe) return Report(DescribeCommand(line.path, output));
  if (*verbs.verify) return Report(VerifyCommand(line.path, line.all, output));
  if (*verbs.diff) return Report(DiffCommand(line.path, line.second, output));
  if (*verbs.to_folder) return Report(ExportCommand(line.path, line.exporting, output));
  return Report(ImportCommand(line.importing, output));
}

}  // namespace
}  // namespace ela::checkpoints

int main(int argc, char** argv) { return ela::checkpoints::Run(argc, argv); }
