// ela-model: scores, evaluates, generates and looks into experts, from a checkpoint or an exported
// model. Data on stdout, messages on stderr. Under mpirun the ranks share every sequence, so that
// it may be as long as they can hold together; the last one, which holds its end, speaks.

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "proto/job/text.h"
#include "proto/program/command_line.h"
#include "proto/status_macros.h"
#include "trainer/inference/experts.h"
#include "trainer/inference/generate.h"
#include "trainer/inference/score.h"
#include "trainer/loop/choose_device.h"
#include "trainer/loop/gather.h"
#include "trainer/loop/machine.h"
#include "trainer/parallel/agreement.h"

namespace ela::trainer {
namespace {

using nlohmann::ordered_json;

struct Options {
  std::string model, tokenizer, device = "auto", precision = "fp32", output = "table";
  int threads = 0;
  bool quiet = false;
  std::string tokens_file, data, prompt, text_file;
  int64_t seq_len = 0, max_sequences = 0, top = 10;
  GenerateOptions generate;
  Communicator* world = nullptr;        // null: one rank
  kernels::CudaDevice* card = nullptr;  // null: the CPU
  int local_ranks = 1;

  int ThreadCount() const { return threads > 0 ? threads : ChooseThreads(local_ranks); }
  bool Speaks() const { return world == nullptr || world->rank() == world->size() - 1; }
  bool json() const { return output == "json"; }
};

std::string Dump(const ordered_json& json, int indent = -1) {
  return json.dump(indent, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

absl::StatusOr<std::string> ReadHere(const std::string& path) {
  std::ostringstream text;
  if (path == "-") {
    text << std::cin.rdbuf();
    return text.str();
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot open"));
  text << file.rdbuf();
  return text.str();
}

// Rank 0 reads for all: it alone has the standard input.
absl::StatusOr<std::string> ReadFile(const Options& options, const std::string& path) {
  if (options.world == nullptr) return ReadHere(path);
  absl::StatusOr<std::string> text = "";
  if (options.world->rank() == 0) text = ReadHere(path);
  ELA_RETURN_IF_ERROR(AgreeOk(*options.world, text.status()));
  return BroadcastString(*options.world, *text);
}

absl::StatusOr<std::unique_ptr<LoadedModel>> Load(const Options& options) {
  const bool bf16 = options.precision == "bf16";
  auto model = LoadedModel::Load(options.model, options.tokenizer,
                                 {.num_threads = options.ThreadCount(),
                                  .device = options.card,
                                  .dtype = bf16 ? kernels::DType::kBf16 : kernels::DType::kF32,
                                  .world = options.world});
  if (model.ok() && (*model)->leaks_future() && !options.quiet && options.Speaks()) {
    std::fputs(
        "note: the memory lobe is bidirectional: every loss of this model leaks the future\n",
        stderr);
  }
  return model;
}

absl::StatusOr<std::vector<int32_t>> ParseIds(const std::string& line, int64_t number) {
  std::vector<int32_t> ids;
  for (absl::string_view word :
       absl::StrSplit(line, absl::ByAnyChar(" \t\r,"), absl::SkipEmpty())) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(word, &id)) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, ": \"", word, "\" is not a token id"));
    }
    ids.push_back(id);
  }
  return ids;
}

absl::Status Score(const Options& options) {
  ELA_ASSIGN_OR_RETURN(const std::unique_ptr<LoadedModel> model, Load(options));
  ELA_RETURN_IF_ERROR(CheckScores(*model));
  ELA_ASSIGN_OR_RETURN(const std::string text, ReadFile(options, options.tokens_file));
  std::istringstream lines(text);
  int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ELA_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, ParseIds(line, ++number));
    if (ids.empty()) continue;
    const auto score = ScoreTokens(model.get(), ids);
    if (!score.ok()) {
      return absl::Status(score.status().code(), absl::StrCat(options.tokens_file, ":", number,
                                                              ": ", score.status().message()));
    }
    if (!options.Speaks()) continue;
    ordered_json json = {{"loss", score->loss}, {"logprobs", score->logprobs}};
    if (model->leaks_future()) json["leaks_future"] = true;
    std::cout << Dump(json) << std::flush;
  }
  return absl::OkStatus();
}

absl::Status Eval(const Options& options) {
  ELA_ASSIGN_OR_RETURN(const std::unique_ptr<LoadedModel> model, Load(options));
  const bool progress = options.Speaks() && !options.quiet && isatty(STDERR_FILENO) == 1;
  const auto tell = [&](int64_t done, int64_t all) {
    if (progress)
      std::fprintf(stderr, "\r%ld of %ld sequences%s", done, all, done < all ? "" : "\n");
  };
  ELA_ASSIGN_OR_RETURN(
      const HeldOutLoss result,
      EvaluateShards(model.get(), options.data, options.seq_len, options.max_sequences, tell));
  if (!options.Speaks()) return absl::OkStatus();
  if (options.json()) {
    ordered_json json = {{"loss", result.loss},
                         {"perplexity", std::exp(result.loss)},
                         {"tokens", result.tokens},
                         {"sequences", result.sequences}};
    if (model->leaks_future()) json["leaks_future"] = true;
    std::cout << Dump(json);
  } else {
    std::cout << absl::StrFormat("loss %.4f  perplexity %.2f  tokens %d%s\n", result.loss,
                                 std::exp(result.loss), result.tokens,
                                 model->leaks_future() ? "  (leaks the future)" : "");
  }
  return absl::OkStatus();
}

std::string Kib(int64_t bytes) {
  return absl::StrFormat("%.1f KiB", static_cast<double>(bytes) / 1024);
}

void TellSpeed(const Generation& g, const kernels::CudaDevice* card) {
  std::string memory;
  if (g.state_bytes > 0) absl::StrAppend(&memory, "; state ", Kib(g.state_bytes), " at any length");
  if (g.cache_bytes > 0)
    absl::StrAppend(&memory, "; key-value caches ", Kib(g.cache_bytes), " so far");
  absl::FPrintF(
      stderr,
      "prompt %d tokens in %.2f s; %d tokens at %.0f tok/s%s%s (key-value caches in every "
      "layer: %s)\n",
      g.prompt_tokens, g.prefill_seconds, g.decoded_tokens,
      static_cast<double>(g.decoded_tokens) / std::max(g.decode_seconds, 1e-9),
      card == nullptr ? "" : absl::StrCat(" on ", card->name()), memory, Kib(g.softmax_bytes));
}

absl::Status GenerateText(const Options& options) {
  ELA_ASSIGN_OR_RETURN(const std::unique_ptr<LoadedModel> model, Load(options));
  ELA_RETURN_IF_ERROR(CheckGenerates(*model));  // before the prompt is shown
  ELA_ASSIGN_OR_RETURN(const data::Tokenizer* tokenizer, model->tokenizer());
  std::vector<int32_t> prompt = tokenizer->Encode(options.prompt);
  if (prompt.empty()) prompt = {tokenizer->end_of_document()};
  // One sample is shown as it grows; several come one after the other when they are whole.
  const bool streamed = !options.json() && options.generate.samples == 1;
  TextStream stream(tokenizer);
  if (streamed && options.Speaks()) std::cout << options.prompt << std::flush;
  const auto show = [&](int64_t, int32_t id) {
    if (streamed) std::cout << stream.Push(id) << std::flush;
    return static_cast<bool>(std::cout);
  };
  ELA_ASSIGN_OR_RETURN(const Generation result,
                       Generate(model.get(), prompt, options.generate, show));
  if (!options.Speaks()) return absl::OkStatus();
  if (streamed) std::cout << stream.Finish() << "\n" << std::flush;  // before what stderr says
  for (size_t i = 0; i < result.tokens.size() && !streamed; ++i) {
    const std::string text = tokenizer->Decode(result.tokens[i]);
    if (options.json()) {
      std::cout << Dump({{"prompt", options.prompt}, {"text", text}, {"tokens", result.tokens[i]}});
    } else {
      std::cout << "--- sample " << i + 1 << "\n" << options.prompt << text << "\n";
    }
  }
  if (!options.quiet) TellSpeed(result, options.card);
  return absl::OkStatus();
}

ordered_json ToJson(const ExpertProfile& profile, const data::Tokenizer& tokenizer) {
  ordered_json tokens = ordered_json::array();
  for (const DrawnToken& token : profile.tokens_drawn) {
    tokens.push_back({{"token", tokenizer.Decode({token.id})},
                      {"id", token.id},
                      {"drawn", token.drawn},
                      {"seen", token.seen},
                      {"mean_weight", token.weight / static_cast<double>(token.drawn)}});
  }
  return {{"layer", profile.layer},
          {"expert", profile.expert},
          {"load", profile.load},
          {"tokens", std::move(tokens)}};
}

// A token on one line, its blanks visible.
std::string Visible(const std::string& text) {
  std::string shown;
  for (char c : text) {
    if (c == ' ') {
      shown += "\u00b7";
    } else if (c == '\n') {
      shown += "\\n";
    } else if (c == '\t') {
      shown += "\\t";
    } else {
      shown += c;
    }
  }
  return job::IsPlainText(shown) ? shown : "?";
}

absl::Status Experts(const Options& options) {
  ELA_ASSIGN_OR_RETURN(const std::unique_ptr<LoadedModel> model, Load(options));
  ELA_ASSIGN_OR_RETURN(const data::Tokenizer* tokenizer, model->tokenizer());
  ELA_ASSIGN_OR_RETURN(const std::string text, ReadFile(options, options.text_file));
  ELA_ASSIGN_OR_RETURN(const std::vector<ExpertProfile> profiles,
                       ProfileExperts(model.get(), tokenizer->Encode(text),
                                      std::max<int64_t>(1, options.seq_len), options.top));
  if (options.json()) {
    ordered_json all = ordered_json::array();
    for (const ExpertProfile& profile : profiles) all.push_back(ToJson(profile, *tokenizer));
    std::cout << Dump(all, 2);
    return absl::OkStatus();
  }
  std::cout << "LAYER  EXPERT   LOAD  DRAWS (share of the token's occurrences)\n";
  for (const ExpertProfile& profile : profiles) {
    std::string drawn;
    for (const DrawnToken& token : profile.tokens_drawn) {
      absl::StrAppendFormat(
          &drawn, "  %s %.0f%%", Visible(tokenizer->Decode({token.id})),
          100.0 * static_cast<double>(token.drawn) / static_cast<double>(token.seen));
    }
    if (drawn.empty()) drawn = "  (no token)";
    std::cout << absl::StrFormat("%5d  %6d  %4.0f%%%s\n", profile.layer, profile.expert,
                                 100 * profile.load, drawn);
  }
  return absl::OkStatus();
}

CLI::App* AddCommand(CLI::App* app, const char* name, const char* doc, Options* options) {
  CLI::App* command = app->add_subcommand(name, doc);
  command
      ->add_option("--model", options->model,
                   "Exported folder, or checkpoint or run folder, PATH[@STEP]")
      ->required();
  command->add_option("--tokenizer", options->tokenizer, "Instead of the model's own");
  command->add_option("--threads", options->threads, "Not given: this machine's cores");
  command
      ->add_option("--device", options->device, "auto, cpu or cuda; auto: a card, if there is one")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  command->add_option("--precision", options->precision, "Of weights and activations: fp32 or bf16")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  command->add_option("-o,--output", options->output, "table or json")
      ->check(CLI::IsMember({"table", "json"}));
  command->add_flag("--quiet", options->quiet, "No messages");
  return command;
}

void AddGenerate(CLI::App* app, Options* options) {
  CLI::App* c = AddCommand(app, "generate", "Continue a prompt", options);
  GenerateOptions& g = options->generate;
  c->add_option("--prompt", options->prompt, "Text to continue")->required();
  c->add_option("--max-tokens", g.max_tokens, "At most so many new tokens")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->capture_default_str();
  c->add_option("--temperature", g.sampler.temperature, "0: always the likeliest token")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  c->add_option("--top-k", g.sampler.top_k, "Only the k likeliest; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  c->add_option("--top-p", g.sampler.top_p, "Only the likeliest that together reach p")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  c->add_option("--seed", g.sampler.seed, "Same seed, same text")->capture_default_str();
  c->add_option("--samples", g.samples, "Continuations, decoded together")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
}

int ExitCodeOf(const absl::Status& status) {
  if (status.ok()) return 0;
  if (absl::IsInvalidArgument(status)) return 2;
  return absl::IsNotFound(status) ? 3 : 1;
}

// The ranks that mpirun has started, or this one.
absl::StatusOr<std::unique_ptr<Communicator>> MakeWorld() {
  const bool alone = LaunchedRank().empty();
  return MakeCommunicator(alone ? CommunicatorKind::kLocal : CommunicatorKind::kMpi, {});
}

v1::DeviceKind KindOf(const std::string& device) {
  if (device == "cpu") return v1::DEVICE_KIND_CPU;
  return device == "cuda" ? v1::DEVICE_KIND_CUDA : v1::DEVICE_KIND_AUTO;
}

// Users' mistakes are the same on all ranks, and one tells; others must not be waited for.
int Leave(const Options& options, const absl::Status& status) {
  const int code = ExitCodeOf(status);
  const bool mistake = code == 2 || code == 3;
  if (!status.ok() && (options.Speaks() || !mistake)) {
    std::fprintf(stderr, "ela-model: %s\n", std::string(status.message()).c_str());
  }
  if (!status.ok() && !mistake && options.world != nullptr) options.world->Abort(code);
  return code;
}

int Run(Options options, absl::Status (*command)(const Options&)) {
  std::unique_ptr<kernels::CudaDevice> device;  // outlives the world
  auto world = MakeWorld();
  if (!world.ok()) return Leave(options, world.status());
  if ((*world)->size() > 1) options.world = world->get();
  const v1::DeviceKind kind = KindOf(options.device);
  auto chosen = ChooseDevice(kind, **world);
  if (!chosen.ok()) return Leave(options, chosen.status());
  device = std::move(chosen->device);
  options.card = device.get();
  if (!chosen->note.empty() && options.Speaks() && !options.quiet) {
    std::fprintf(stderr, "ela-model: %s\n", chosen->note.c_str());
  }
  options.world = nullptr;
  world = WorldOf(*std::move(world), device.get(), CommTimeoutSeconds(kind));
  if (!world.ok()) return Leave(options, world.status());
  if ((*world)->size() > 1) options.world = world->get();
  const auto local_ranks = LocalRanks(**world);
  if (!local_ranks.ok()) return Leave(options, local_ranks.status());
  options.local_ranks = *local_ranks;
  return Leave(options, command(options));
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Scores, evaluates and generates with a trained model", "ela model");
  app.require_subcommand(1);
  CLI::App* score =
      AddCommand(&app, "score", "Log-probabilities of given tokens, as JSON lines", &options);
  score
      ->add_option("--tokens", options.tokens_file,
                   "File: a sequence of token ids a line; - is stdin")
      ->required();
  CLI::App* eval = AddCommand(&app, "eval", "Held-out loss over token shards", &options);
  eval->add_option("--data", options.data, "Prefix of the shards")->required();
  eval->add_option("--seq-len", options.seq_len, "Tokens per sequence")
      ->required()
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  eval->add_option("--max-sequences", options.max_sequences, "0: all")
      ->check(CLI::NonNegativeNumber);
  AddGenerate(&app, &options);
  CLI::App* experts =
      AddCommand(&app, "experts", "Which tokens each label vector draws, layer by layer", &options);
  experts->add_option("--text", options.text_file, "File of text; - is stdin")->required();
  experts->add_option("--top", options.top, "Tokens shown of each expert")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  experts->add_option("--seq-len", options.seq_len, "Tokens per sequence")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->default_val(int64_t{1024});
  if (const auto exit = ParseCommandLine(&app, "ela-model", argc, argv, SpeaksForAll())) {
    return *exit;
  }
  if (score->parsed()) return Run(options, Score);
  if (eval->parsed()) return Run(options, Eval);
  if (experts->parsed()) return Run(options, Experts);
  return Run(options, GenerateText);
}

}  // namespace
}  // namespace ela::trainer

int main(int argc, char** argv) { return ela::trainer::Main(argc, argv); }
