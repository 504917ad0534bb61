#include "trainer/loop/init_from.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "checkpoints/export/exported_folder.h"
#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "proto/status_macros.h"
#include "trainer/optim/zero1_optimizer.h"

namespace ela::trainer {
namespace {

using checkpoints::IsLobeParameter;

constexpr size_t kNamed = 5;  // tensors that a message names

using Shapes = std::map<std::string, std::vector<int64_t>>;

Shapes ShapesOf(const v1::StepManifest& source) {
  Shapes shapes;
  for (const v1::TensorRecord& tensor : source.tensors()) {
    const std::string prefix = "model/";
    if (!tensor.name().starts_with(prefix)) continue;
    shapes[tensor.name().substr(prefix.size())] = {tensor.shape().begin(), tensor.shape().end()};
  }
  return shapes;
}

std::string Named(const std::vector<std::string>& names) {
  const size_t shown = std::min(kNamed, names.size());
  const std::string text = absl::StrJoin(names.begin(), names.begin() + shown, ", ");
  return shown == names.size() ? text : absl::StrCat(text, " and ", names.size() - shown, " more");
}

bool AnyOf(const Shapes& shapes, bool lobe) {
  return std::any_of(shapes.begin(), shapes.end(),
                     [&](const auto& tensor) { return IsLobeParameter(tensor.first) == lobe; });
}

/// "attention.kernel: sum_squared there, hadamard_exp here" of every key that differs.
std::vector<std::string> DifferentKeys(const v1::ModelSpec& there, const v1::ModelSpec& here) {
  const auto flat = [](const v1::ModelSpec& spec) {
    return nlohmann::ordered_json::parse(job::ModelToJson(spec)).flatten();
  };
  const auto theirs = flat(there), ours = flat(here);
  std::vector<std::string> lines;
  for (const auto& [pointer, value] : ours.items()) {
    const auto other = theirs.find(pointer);
    if (other == theirs.end() || *other == value) continue;
    std::string key = pointer.substr(1);
    std::replace(key.begin(), key.end(), '/', '.');
    if (key == "preset") continue;
    lines.push_back(absl::StrCat(key, ": ", other->dump(), " there, ", value.dump(), " here"));
  }
  return lines;
}

absl::Status CheckUnused(const Shapes& source, const std::set<std::string>& used, bool has_lobe,
                         InitPlan* plan) {
  std::vector<std::string> unused;
  bool dropped = false;
  for (const auto& [name, shape] : source) {
    if (used.count(name) > 0) continue;
    if (IsLobeParameter(name) && !has_lobe) {
      dropped = true;
    } else {
      unused.push_back(name);
    }
  }
  if (dropped) plan->notes.emplace_back("its Memory Lobes are left out: this model has none");
  if (unused.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "training.init_from: it holds tensors that this model has no place for: ", Named(unused)));
}

}  // namespace

absl::StatusOr<InitPlan> PlanInit(const v1::StepManifest& source, const v1::ModelSpec& model,
                                  v1::TrainOnly train_only) {
  const Shapes shapes = ShapesOf(source);
  const bool lobes = AnyOf(shapes, true), rest = AnyOf(shapes, false);
  InitPlan plan;
  std::set<std::string> used;
  std::vector<std::string> missing;
  for (const job::ParameterInfo& parameter : job::Parameters(model)) {
    const auto found = shapes.find(parameter.name);
    if (found == shapes.end()) {
      const bool may = IsLobeParameter(parameter.name) ? rest && !lobes : lobes && !rest;
      if (may) {
        plan.fresh.insert(parameter.name);
      } else {
        missing.push_back(parameter.name);
      }
      continue;
    }
    used.insert(parameter.name);
    if (found->second == parameter.shape) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "training.init_from: tensor ", parameter.name, " is [", absl::StrJoin(found->second, ", "),
        "] there, this model has [", absl::StrJoin(parameter.shape, ", "), "]"));
  }
  if (!missing.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("training.init_from: it lacks tensors of this model: ", Named(missing)));
  }
  if (used.empty()) {
    return absl::InvalidArgumentError(
        "training.init_from: it holds Memory Lobes alone, and this model has none: set "
        "model.memory_lobe.enabled");
  }
  if (!rest && train_only == v1::TRAIN_ONLY_MEMORY_LOBE) {
    return absl::InvalidArgumentError(
        "training.init_from: it holds Memory Lobes alone, and training.train_only: memory_lobe "
        "would leave the rest at its initial values: put the lobes into a trained model by ela "
        "checkpoint import MODEL --lobe LOBE, and begin from that");
  }
  const bool has_lobe = model.memory_lobe().enabled();
  ELA_RETURN_IF_ERROR(CheckUnused(shapes, used, has_lobe, &plan));
  if (!plan.fresh.empty()) {
    plan.notes.emplace_back(rest ? "it has no Memory Lobes: they begin afresh"
                                 : "it holds Memory Lobes alone: all else begins afresh");
  }
  if (const auto job = checkpoints::JobOf(source); job.ok() && rest) {
    for (std::string& line : DifferentKeys(job->spec().model(), model)) {
      plan.notes.push_back(absl::StrCat("spec.model differs: ", line));
    }
  }
  return plan;
}

ParameterSource InitFromSource(checkpoints::StepReader* reader, InitPlan plan, int64_t num_layers,
                               uint64_t seed) {
  return [taken = CheckpointSource(reader), begun = InitialSource(num_layers, seed),
          plan = std::move(plan)](const job::ParameterInfo& parameter, int64_t begin, int64_t end,
                                  float* out) {
    const bool fresh = plan.fresh.count(parameter.name) > 0;
    return (fresh ? begun : taken)(parameter, begin, end, out);
  };
}

}  // namespace ela::trainer
