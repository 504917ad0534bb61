// ela-data: builds, inspects and verifies token shards.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "data/corpus/build.h"
#include "data/corpus/inspect.h"
#include "data/corpus/progress_line.h"
#include "data/tokenizer/train_tokenizer.h"
#include "proto/program/command_line.h"

namespace ela::data {
namespace {

using nlohmann::ordered_json;

enum ExitCode : int { kDone = 0, kFailed = 1, kNotFound = 3 };  // 2: usage

struct Arguments {
  BuildOptions build;
  std::string format = "auto";
  std::string output_format = "table";
  std::string prefix;
  std::string tokenizer;
  int64_t document = -1;
};

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "ela-data: %s\n", std::string(status.message()).c_str());
  return absl::IsNotFound(status) ? kNotFound : kFailed;
}

// One line a member, names aligned; nested values are left to JSON.
void Print(const ordered_json& object, const std::string& format) {
  if (format == "json") {
    std::printf("%s\n", object.dump(2).c_str());
    return;
  }
  size_t width = 0;
  for (const auto& [name, value] : object.items()) width = std::max(width, name.size());
  for (const auto& [name, value] : object.items()) {
    std::string label = name;
    std::replace(label.begin(), label.end(), '_', ' ');
    const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
    std::printf("%-*s  %s\n", static_cast<int>(width), label.c_str(), text.c_str());
  }
}

double Ratio(int64_t a, int64_t b) { return b == 0 ? 0 : static_cast<double>(a * 1000 / b) / 1000; }

ordered_json ToJson(const BuiltCorpus& corpus) {
  return {{"prefix", corpus.prefix},
          {"documents", corpus.documents},
          {"tokens", corpus.tokens},
          {"text_bytes", corpus.text_bytes},
          {"bytes_per_token", Ratio(corpus.text_bytes, corpus.tokens)}};
}

int RunBuild(Arguments& arguments) {
  const auto formats = {std::pair{"auto", FormatChoice::kAuto},
                        {"text", FormatChoice::kText},
                        {"jsonl", FormatChoice::kJsonLines}};
  for (const auto& [name, choice] : formats) {
    if (arguments.format == name) arguments.build.format = choice;
  }
  absl::StatusOr<BuildResult> result;
  double seconds = 0;
  {
    ProgressLine line;
    BuildObserver observer;
    observer.notice = [&](const std::string& message) { line.Notice(message); };
    observer.progress = [&](const BuildProgress& progress) { line.Show(progress); };
    result = Build(arguments.build, observer);
    seconds = line.seconds();
  }
  if (!result.ok()) return Fail(result.status());
  ordered_json out;
  int64_t text_bytes = 0;
  for (const BuiltCorpus& corpus : result->corpora) text_bytes += corpus.text_bytes;
  if (arguments.output_format == "json") {
    out["corpora"] = ordered_json::array();
    for (const BuiltCorpus& corpus : result->corpora) out["corpora"].push_back(ToJson(corpus));
  }
  out["tokenizer"] = result->tokenizer_path;
  out["vocab_size"] = result->vocab_size;
  out["files"] = result->files;
  out["skipped_files"] = result->skipped_files;
  out["skipped_lines"] = result->skipped_lines;
  out["resumed"] = result->resumed;
  out["seconds"] = Ratio(static_cast<int64_t>(seconds * 1000), 1000);
  if (arguments.output_format == "table") {
    for (const BuiltCorpus& corpus : result->corpora) {
      std::printf("%s: %s documents, %s tokens, %s bytes of text\n", corpus.prefix.c_str(),
                  HumanCount(static_cast<double>(corpus.documents)).c_str(),
                  HumanCount(static_cast<double>(corpus.tokens)).c_str(),
                  HumanCount(static_cast<double>(corpus.text_bytes)).c_str());
    }
  }
  Print(out, arguments.output_format);
  return kDone;
}

int RunInspect(const Arguments& arguments) {
  if (arguments.document >= 0) {
    const auto text = DocumentText(arguments.prefix, arguments.document, arguments.tokenizer);
    if (!text.ok()) return Fail(text.status());
    if (arguments.output_format == "json") {
      const ordered_json out = {{"document", arguments.document}, {"text", *text}};
      std::printf("%s\n", out.dump(-1, ' ', false, ordered_json::error_handler_t::replace).c_str());
    } else {
      std::fwrite(text->data(), 1, text->size(), stdout);
    }
    return kDone;
  }
  const auto info = Inspect(arguments.prefix);
  if (!info.ok()) return Fail(info.status());
  ordered_json out = {{"prefix", info->prefix},
                      {"documents", info->documents},
                      {"tokens", info->tokens},
                      {"token_type", info->token_type},
                      {"shortest_document", info->shortest},
                      {"median_document", info->median},
                      {"longest_document", info->longest},
                      {"bin_bytes", info->bin_bytes},
                      {"idx_bytes", info->idx_bytes},
                      {"sidecar", info->has_sidecar}};
  if (info->has_sidecar) {
    out["text_bytes"] = info->text_bytes;
    out["bytes_per_token"] = Ratio(info->text_bytes, info->tokens);
    out["vocab_size"] = info->vocab_size;
    out["end_of_document"] = info->end_of_document;
    out["tokenizer_hash"] = info->tokenizer_hash;
    out["tokenizer"] = info->tokenizer_path;
  }
  Print(out, arguments.output_format);
  return kDone;
}

int RunVerify(const Arguments& arguments) {
  const auto result = Verify(arguments.prefix);
  if (!result.ok()) return Fail(result.status());
  for (const std::string& problem : result->problems) {
    std::fprintf(stderr, "ela-data: %s\n", problem.c_str());
  }
  if (!result->checksums) {
    std::fprintf(stderr,
                 "ela-data: %s.json: not there, so only the index and the ids were checked\n",
                 arguments.prefix.c_str());
  }
  const ordered_json out = {{"prefix", arguments.prefix},
                            {"whole", result->problems.empty()},
                            {"checksums", result->checksums},
                            {"checked_bytes", result->checked_bytes},
                            {"problems", result->problems}};
  if (arguments.output_format == "json") {
    Print(out, "json");
  } else if (result->problems.empty()) {
    std::printf("%s: whole\n", arguments.prefix.c_str());
  }
  return result->problems.empty() ? kDone : kFailed;
}

/// What is wrong with the text; nothing: nothing.
std::string CheckTokenizer(const std::string& tokenizer) {
  return std::string(VocabToTrain(tokenizer).status().message());
}

void AddBuild(CLI::App* command, Arguments* arguments) {
  BuildOptions& build = arguments->build;
  build.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  command
      ->add_option("--input", build.inputs,
                   "Files and folders of text or JSON lines, also .zst; folders recursively")
      ->required();
  command
      ->add_option("--tokenizer", build.tokenizer,
                   "SentencePiece .model, Hugging Face tokenizer.json, or train:VOCAB")
      ->required()
      ->check(CheckTokenizer);
  command->add_option("--output", build.output, "Prefix of the shards; missing folders are made")
      ->required();
  command
      ->add_option("--validation-fraction", build.validation_fraction,
                   "Share of the text to hold out: PREFIX.train and PREFIX.validation")
      ->check(CLI::Range(0.0, 0.5))
      ->capture_default_str();
  command->add_option("--format", arguments->format, "By suffix (.jsonl, .ndjson), or as said")
      ->check(CLI::IsMember({"auto", "text", "jsonl"}))
      ->capture_default_str();
  command->add_option("--text-key", build.text_key, "Key of a document in a JSON line")
      ->capture_default_str();
  command->add_flag("--skip-bad-lines", build.skip_bad_lines,
                    "Report and skip JSON lines without text, instead of stopping");
  command->add_option("--threads", build.threads, "Threads that encode; the result is the same")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_flag("--replace", build.replace, "Replace a corpus of that name");
  command->add_flag("--restart", build.restart, "Do not go on with an interrupted build");
  command
      ->add_option("--commit-bytes", build.commit_bytes,
                   "Text after which an interrupted build does not begin again")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
}

}  // namespace
}  // namespace ela::data

int main(int argc, char** argv) {
  using namespace ela::data;  // NOLINT: the program's own
  Arguments arguments;
  CLI::App app("Builds, inspects and verifies token shards.", "ela data");
  app.require_subcommand(1);
  CLI::App* build = app.add_subcommand("build", "Turn text into token shards");
  CLI::App* inspect = app.add_subcommand("inspect", "Show what is in a corpus");
  CLI::App* verify = app.add_subcommand("verify", "Check a corpus against its checksums");
  AddBuild(build, &arguments);
  for (CLI::App* command : {inspect, verify}) {
    command->add_option("PREFIX", arguments.prefix, "Of the shards, without .bin or .idx")
        ->required();
  }
  inspect->add_option("--document", arguments.document, "Print the text of document N, from 0")
      ->check(CLI::NonNegativeNumber);
  inspect->add_option("--tokenizer", arguments.tokenizer, "To decode with, if not beside them");
  for (CLI::App* command : {build, inspect, verify}) {
    // Of build, --output is where the shards go.
    command
        ->add_option(command == build ? "-o" : "-o,--output", arguments.output_format,
                     "table or json")
        ->check(CLI::IsMember({"table", "json"}))
        ->capture_default_str();
  }
  if (const auto exit = ela::ParseCommandLine(&app, "ela-data", argc, argv)) return *exit;
  if (build->parsed()) return RunBuild(arguments);
  if (inspect->parsed()) return RunInspect(arguments);
  return RunVerify(arguments);
}
