// What a resolved job's spec alone shows to be wrong.

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "ela/v1/options.pb.h"
#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "proto/job/schema.h"
#include "proto/job/support.h"
#include "proto/job/text.h"

namespace ela::job {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

class Problems {
 public:
  template <typename... Args>
  void Add(std::string_view path, const Args&... what) {
    list_.push_back(StrCat(path, ": ", what...));
  }
  bool empty() const { return list_.empty(); }
  std::vector<std::string> Take() { return std::move(list_); }

 private:
  std::vector<std::string> list_;
};

// ---- every key by itself: what the parser checks too, for jobs that came as messages ----

void CheckNumber(const Message& message, const FieldDescriptor* field, const std::string& path,
                 int index, Problems* problems) {
  const auto* reflection = message.GetReflection();
  double value = 0;
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_INT64) {
    value = static_cast<double>(reflection->GetInt64(message, field));
  } else {
    value = index < 0 ? reflection->GetDouble(message, field)
                      : reflection->GetRepeatedDouble(message, field, index);
  }
  if (!std::isfinite(value)) return problems->Add(path, "must be a finite number");
  if (const auto problem = BoundsProblem(field, value)) problems->Add(path, *problem);
}

void CheckScalar(const Message& message, const FieldDescriptor* field, const std::string& path,
                 Problems* problems) {
  const auto* reflection = message.GetReflection();
  if (!reflection->HasField(message, field)) {
    if (!DefaultOf(field).empty()) problems->Add(path, "not set; the job was not resolved");
    return;
  }
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_ENUM: {
      const int value = reflection->GetEnumValue(message, field);
      if (value == 0 || field->enum_type()->FindValueByNumber(value) == nullptr) {
        problems->Add(path, "unknown value number ", value,
                      "; is this program older than the job?");
      }
      break;
    }
    case FieldDescriptor::CPPTYPE_STRING:
      if (!IsPlainText(reflection->GetString(message, field))) {
        problems->Add(path, "holds a control character or is not valid UTF-8");
      }
      break;
    case FieldDescriptor::CPPTYPE_BOOL:
      break;
    default:
      CheckNumber(message, field, path, -1, problems);
      break;
  }
}

void CheckKeys(const Message& message, const std::string& prefix, Problems* problems) {
  const auto* reflection = message.GetReflection();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = message.GetDescriptor()->field(i);
    const std::string path = prefix + KeyOf(field);
    const bool is_message = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    if (field->is_map()) continue;
    if (!field->is_repeated()) {
      if (is_message) {
        CheckKeys(reflection->GetMessage(message, field), path + ".", problems);
      } else {
        CheckScalar(message, field, path, problems);
      }
      continue;
    }
    const int size = reflection->FieldSize(message, field);
    if (size > 1000) problems->Add(path, "holds more than 1000 items");
    for (int k = 0; k < std::min(size, 1000); ++k) {
      const std::string item = StrCat(path, "[", k, "]");
      if (is_message) {
        CheckKeys(reflection->GetRepeatedMessage(message, field, k), item + ".", problems);
      } else {
        CheckNumber(message, field, item, k, problems);
      }
    }
  }
}

// ---- keys that have no default ----

void Require(bool set, std::string_view path, std::string_view meaning, Problems* problems) {
  if (!set) problems->Add(path, "not set, and it has no default (", meaning, ")");
}

void CheckRequired(const v1::TrainingJob& job, Problems* problems) {
  const v1::ModelSpec& model = job.spec().model();
  const v1::TrainingSpec& training = job.spec().training();
  Require(job.metadata().has_name(), "metadata.name", "the job's name", problems);
  Require(model.has_vocab_size(), "spec.model.vocab_size", "V", problems);
  Require(model.has_hidden_size(), "spec.model.hidden_size", "d", problems);
  Require(model.has_num_layers(), "spec.model.num_layers", "N", problems);
  Require(model.has_num_attention_heads(), "spec.model.num_attention_heads", "H", problems);
  Require(model.moe().has_intermediate_size(), "spec.model.moe.intermediate_size", "F", problems);
  Require(job.spec().data().has_seq_len(), "spec.data.seq_len", "L, tokens per sequence", problems);
  Require(training.has_steps(), "spec.training.steps", "optimizer steps", problems);
  Require(training.has_global_batch_size(), "spec.training.global_batch_size",
          "sequences per optimizer step", problems);
  if (job.spec().data().train().empty()) {
    problems->Add("spec.data.train", "not set; list the token shards: train: [{path: PREFIX}]");
  }
  for (int i = 0; i < job.spec().data().train_size(); ++i) {
    Require(!job.spec().data().train(i).path().empty(), StrCat("spec.data.train[", i, "].path"),
            "prefix of .bin and .idx token shards", problems);
  }
}

// ---- names ----

bool IsName(std::string_view text) {
  return !text.empty() && text.size() <= 40 && std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-';
  });
}

void CheckNames(const v1::TrainingJob& job, Problems* problems) {
  constexpr std::string_view kRule = "1 to 40 of a-z, 0-9 and -";
  if (job.api_version() != "ela/v1") {
    problems->Add("apiVersion", "\"", job.api_version(), "\" is not known; write ela/v1");
  }
  if (job.kind() != "TrainingJob") {
    problems->Add("kind", "\"", job.kind(), "\" is not known; write TrainingJob");
  }
  if (!IsName(job.metadata().name())) {
    problems->Add("metadata.name", "\"", job.metadata().name(), "\" must be ", kRule);
  }
  if (job.metadata().labels().size() > 64) problems->Add("metadata.labels", "more than 64 labels");
  for (const auto& [key, value] : job.metadata().labels()) {
    if (key.empty() || key.size() > 63 || value.size() > 255 || !IsPlainText(key) ||
        !IsPlainText(value)) {
      problems->Add("metadata.labels",
                    "a label has a name of 1 to 63 and a value of up to 255 printable characters");
      break;
    }
  }
}

// ---- the model ----

void CheckHeads(int64_t hidden, int64_t heads, std::string_view path, Problems* problems) {
  if (hidden % heads != 0) {
    return problems->Add(path, heads, " does not divide hidden_size ", hidden);
  }
  const int64_t head_dim = hidden / heads;
  if (head_dim % 8 != 0 || head_dim > 256) {
    problems->Add(path, "hidden_size ", hidden, " / ", heads, " gives a head dim of ", head_dim,
                  "; it must be a multiple of 8, at most 256");
  }
}

constexpr std::string_view kLeak =
    "bidirectional with objective: next_token lets every position see the tokens it must predict, "
    "so "
    "its losses mean nothing (measured on the paper's own data: validation loss 0.07 with full "
    "attention and 0.47 with ELA after ten epochs, where the same model without the lobe stays at "
    "4.1 "
    "to 4.7; under a causal mask the drop vanishes). Use mode: causal, or objective: masked_token, "
    "where nothing leaks; or set memory_lobe.allow_future_leak: true to train it anyway with every "
    "loss labelled as leaking";

void CheckModel(const v1::JobSpec& spec, Problems* problems) {
  const v1::ModelSpec& model = spec.model();
  const bool masked = spec.training().objective() == v1::OBJECTIVE_MASKED_TOKEN;
  CheckHeads(model.hidden_size(), model.num_attention_heads(), "spec.model.num_attention_heads",
             problems);
  if (model.moe().top_k() > model.moe().num_experts()) {
    problems->Add("spec.model.moe.top_k", model.moe().top_k(), " is more than num_experts ",
                  model.moe().num_experts());
  }
  if (masked && model.attention().decay() == v1::DECAY_HEAD) {
    problems->Add("spec.model.attention.decay",
                  "head is causal only, and objective: masked_token attends both ways; use none");
  }
  const v1::MemoryLobeSpec& lobe = model.memory_lobe();
  if (lobe.enabled()) {
    CheckHeads(model.hidden_size(), lobe.num_heads(), "spec.model.memory_lobe.num_heads", problems);
    const bool leaks = lobe.mode() == v1::LOBE_MODE_BIDIRECTIONAL && !masked;
    if (leaks && !lobe.allow_future_leak()) problems->Add("spec.model.memory_lobe.mode", kLeak);
  }
  constexpr int64_t kMostParameters = 10'000'000'000'000;
  if (ParameterCount(model) > kMostParameters) {
    problems->Add("spec.model", ParameterCount(model), " parameters; at most 1e13 are supported");
  }
}

// ---- the mesh and the batch ----

void CheckMesh(const v1::JobSpec& spec, Problems* problems) {
  const int64_t data = spec.parallelism().data();
  const int64_t sequence = spec.parallelism().sequence();
  const int64_t expert = spec.parallelism().expert();
  const int64_t world = data * sequence;
  const int64_t nodes = spec.resources().nodes();
  if (!spec.resources().has_ranks_per_node()) {
    problems->Add("spec.resources.nodes", nodes, " does not divide data x sequence = ", world,
                  " ranks");
  } else if (nodes * spec.resources().ranks_per_node() != world) {
    problems->Add("spec.resources.ranks_per_node", "nodes ", nodes, " x ranks_per_node ",
                  spec.resources().ranks_per_node(), " gives ",
                  nodes * spec.resources().ranks_per_node(), " ranks, but data ", data,
                  " x sequence ", sequence, " needs ", world);
  }
  if (world % expert != 0) {
    problems->Add("spec.parallelism.expert", expert, " does not divide data x sequence = ", world);
  }
  if (spec.model().moe().num_experts() % expert != 0) {
    problems->Add("spec.parallelism.expert", expert, " does not divide num_experts ",
                  spec.model().moe().num_experts());
  }
}

void CheckBatch(const v1::JobSpec& spec, Problems* problems) {
  const int64_t data = spec.parallelism().data();
  const int64_t batch = spec.training().global_batch_size();
  constexpr std::string_view kPath = "spec.training.global_batch_size";
  if (batch % data != 0) {
    return problems->Add(kPath, batch, " is not a multiple of parallelism.data ", data);
  }
  const int64_t micro = spec.training().micro_batch_size();
  if (micro <= 0 || batch % (data * micro) != 0) {
    problems->Add(kPath, batch, " is not a multiple of parallelism.data ", data,
                  " x micro_batch_size ", micro);
  }
  const v1::DataSpec& sources = spec.data();
  const bool weightless = std::all_of(sources.train().begin(), sources.train().end(),
                                      [](const auto& source) { return source.weight() <= 0; });
  if (weightless) problems->Add("spec.data.train", "every weight is 0; give one source a weight");
  if (spec.training().eval_every() > 0 && !sources.has_validation()) {
    problems->Add("spec.training.eval_every",
                  "needs data.validation, the token shards to evaluate on; or use 0");
  }
}

// Beyond this no machine helps, and the byte counts of the memory plan would leave 64 bits.
void CheckSize(const v1::JobSpec& spec, Problems* problems) {
  const v1::ModelSpec& model = spec.model();
  const double tokens = static_cast<double>(spec.training().micro_batch_size()) *
                        static_cast<double>(spec.data().seq_len());
  const double columns =
      static_cast<double>(model.moe().top_k()) *
          static_cast<double>(5 * model.hidden_size() + 3 * model.moe().intermediate_size()) +
      static_cast<double>(20 * model.hidden_size() + model.moe().num_experts());
  const double states = static_cast<double>(spec.training().micro_batch_size()) *
                        static_cast<double>(spec.parallelism().sequence() + 4) *
                        static_cast<double>(model.hidden_size()) * 300;
  if ((tokens * columns + states) * static_cast<double>(model.num_layers()) > 1e17) {
    problems->Add("spec.training.micro_batch_size", spec.training().micro_batch_size(),
                  " x seq_len ", spec.data().seq_len(),
                  " tokens of this model need more than 400 PB at once");
  }
}

// ---- training ----

void CheckOptimizer(const v1::JobSpec& spec, Problems* problems) {
  const v1::OptimizerSpec& optimizer = spec.optimizer();
  if (optimizer.betas_size() != 2) {
    problems->Add("spec.optimizer.betas", "holds ", optimizer.betas_size(),
                  " numbers; AdamW takes two, such as [0.9, 0.95]");
  }
  if (std::any_of(optimizer.betas().begin(), optimizer.betas().end(),
                  [](double beta) { return beta >= 1; })) {
    problems->Add("spec.optimizer.betas", "must be below 1");
  }
  if (optimizer.eps() <= 0) problems->Add("spec.optimizer.eps", "must be above 0");
  const v1::LrSchedulerSpec& scheduler = spec.lr_scheduler();
  if (scheduler.min_lr() > optimizer.lr()) {
    problems->Add("spec.lr_scheduler.min_lr", FormatDouble(scheduler.min_lr()),
                  " is above optimizer.lr ", FormatDouble(optimizer.lr()));
  }
  if (scheduler.warmup_steps() > spec.training().steps()) {
    problems->Add("spec.lr_scheduler.warmup_steps", scheduler.warmup_steps(),
                  " is more than training.steps ", spec.training().steps());
  }
  const bool lobe_only = spec.training().train_only() == v1::TRAIN_ONLY_MEMORY_LOBE;
  if (lobe_only && !spec.model().memory_lobe().enabled()) {
    problems->Add("spec.training.train_only",
                  "memory_lobe needs a lobe: set model.memory_lobe.enabled: true");
  }
}

void CheckDuration(bool set, const std::string& text, bool zero_is_fine, std::string_view path,
                   Problems* problems) {
  if (!set) return;
  const absl::StatusOr<int64_t> duration = ParseDurationMs(text);
  if (!duration.ok()) {
    problems->Add(path, std::string(duration.status().message()));
  } else if (*duration == 0 && !zero_is_fine) {
    problems->Add(path, "must be longer than 0");
  }
}

}  // namespace

std::vector<std::string> Validate(const v1::TrainingJob& resolved) {
  Problems problems;
  CheckKeys(resolved, "", &problems);
  CheckRequired(resolved, &problems);
  // What follows divides by sizes and compares keys: they must be there and within their bounds.
  if (!problems.empty()) return problems.Take();
  const v1::JobSpec& spec = resolved.spec();
  CheckNames(resolved, &problems);
  CheckModel(spec, &problems);
  CheckMesh(spec, &problems);
  CheckBatch(spec, &problems);
  CheckSize(spec, &problems);
  CheckOptimizer(spec, &problems);
  CheckDuration(spec.resources().has_time_limit(), spec.resources().time_limit(), false,
                "spec.resources.time_limit", &problems);
  CheckDuration(spec.restart().has_backoff(), spec.restart().backoff(), true,
                "spec.restart.backoff", &problems);
  for (const Unsupported& row : UnsupportedKeys(spec)) problems.Add(row.path, row.problem);
  return problems.Take();
}

}  // namespace ela::job
