// ela-checkpoint verify, diff.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/cli/commands.h"
#include "checkpoints/cli/text.h"
#include "checkpoints/tiling.h"
#include "proto/status_macros.h"

namespace ela::checkpoints {
namespace {

using nlohmann::ordered_json;

/// The damage of one step, as lines. A step whose folder is gone is damaged too.
absl::StatusOr<std::vector<std::string>> DamageOf(const std::string& folder,
                                                  const v1::StepManifest& manifest) {
  std::vector<std::string> damage;
  const auto reader = StepReader::Open(folder, manifest);
  if (absl::IsDataLoss(reader.status()) || absl::IsNotFound(reader.status())) {
    damage.emplace_back(reader.status().message());
    return damage;
  }
  ELA_RETURN_IF_ERROR(reader.status());
  ELA_RETURN_IF_ERROR(
      (*reader)->Verify([&](const absl::Status& fault) { damage.emplace_back(fault.message()); }));
  return damage;
}

struct Verified {
  const v1::StepManifest* manifest;
  std::vector<std::string> damage;
};

void Tell(const std::vector<Verified>& checked, const Output& output) {
  ordered_json json = ordered_json::array();
  for (const Verified& step : checked) {
    const v1::StepManifest& manifest = *step.manifest;
    if (output.json) {
      json.push_back({{"step", manifest.step()},
                      {"attempt", manifest.attempt()},
                      {"whole", step.damage.empty()},
                      {"damage", step.damage}});
      continue;
    }
    if (step.damage.empty()) {
      *output.out << "step " << manifest.step() << ": whole (" << manifest.tensors_size()
                  << " tensors, " << FormatBytes(manifest.bytes()) << ")\n";
      continue;
    }
    *output.out << "step " << manifest.step() << ": DAMAGED\n";
    for (const std::string& line : step.damage) *output.out << "  " << line << "\n";
  }
  if (output.json) *output.out << json.dump(2) << "\n";
}

/// The newest step before `step` that is whole.
absl::Status OfferPrevious(const std::string& folder, const std::vector<v1::StepManifest>& steps,
                           int64_t step, const Output& output) {
  for (auto it = steps.rbegin(); it != steps.rend(); ++it) {
    if (it->step() >= step) continue;
    ELA_ASSIGN_OR_RETURN(const std::vector<std::string> damage, DamageOf(folder, *it));
    if (!damage.empty()) continue;
    *output.err << "use the newest whole step before it: " << folder << "@" << it->step() << "\n";
    return absl::OkStatus();
  }
  *output.err << "no earlier step is whole\n";
  return absl::OkStatus();
}

absl::StatusOr<bool> VerifyExported(const std::string& path, const Output& output) {
  ELA_ASSIGN_OR_RETURN(const auto reader, OpenExportedFolder(path));
  Verified checked{&reader->manifest(), {}};
  ELA_RETURN_IF_ERROR(reader->Verify(
      [&](const absl::Status& fault) { checked.damage.emplace_back(fault.message()); }));
  Tell({checked}, output);
  return checked.damage.empty();
}

struct Difference {
  std::string tensor, what;
  int64_t elements = 0;  // that differ
  double largest = 0;    // absolute difference
};

/// Where both are floats the largest difference is told, otherwise only how many bytes differ.
absl::StatusOr<Difference> Compare(StepReader* left, StepReader* right,
                                   const v1::TensorRecord& tensor) {
  constexpr int64_t kAtOnce = 1 << 20;
  const size_t size = ElementBytes(tensor.dtype());
  const int64_t count = ElementCount(tensor);
  std::vector<char> a, b;
  Difference difference;
  difference.tensor = tensor.name();
  for (int64_t at = 0; at < count; at += kAtOnce) {
    const int64_t end = std::min(at + kAtOnce, count);
    a.resize(static_cast<size_t>(end - at) * size);
    b.resize(a.size());
    ELA_RETURN_IF_ERROR(left->Read(tensor.name(), at, end, a.data()));
    ELA_RETURN_IF_ERROR(right->Read(tensor.name(), at, end, b.data()));
    for (size_t i = 0; i < a.size(); i += size) {
      if (std::memcmp(a.data() + i, b.data() + i, size) == 0) continue;
      ++difference.elements;
      if (tensor.dtype() != "f32") continue;
      float x, y;
      std::memcpy(&x, a.data() + i, sizeof(x));
      std::memcpy(&y, b.data() + i, sizeof(y));
      const double gap = std::fabs(static_cast<double>(x) - static_cast<double>(y));
      if (!(gap <= difference.largest)) difference.largest = gap;  // a NaN stays
    }
  }
  if (difference.elements > 0) {
    difference.what = absl::StrCat(FormatCount(difference.elements), " of ", FormatCount(count),
                                   " elements differ");
  }
  return difference;
}

using Tensors = std::map<std::string, const v1::TensorRecord*>;
Tensors TensorsOf(const StepReader& reader) {
  Tensors tensors;
  for (const v1::TensorRecord& tensor : reader.manifest().tensors()) {
    tensors[tensor.name()] = &tensor;
  }
  return tensors;
}

bool SameLayout(const v1::TensorRecord& a, const v1::TensorRecord& b) {
  return a.SerializeAsString() == b.SerializeAsString();
}

absl::StatusOr<std::vector<Difference>> CompareAll(StepReader* left, StepReader* right) {
  const Tensors ours = TensorsOf(*left), theirs = TensorsOf(*right);
  std::vector<Difference> differences;
  for (const auto& [name, tensor] : ours) {
    const auto other = theirs.find(name);
    if (other == theirs.end()) {
      differences.push_back({name, "only in the first"});
    } else if (!SameLayout(*tensor, *other->second)) {
      differences.push_back({name, "of another shape or dtype"});
    } else {
      ELA_ASSIGN_OR_RETURN(Difference difference, Compare(left, right, *tensor));
      if (!difference.what.empty()) differences.push_back(std::move(difference));
    }
  }
  for (const auto& [name, tensor] : theirs) {
    if (ours.count(name) == 0) differences.push_back({name, "only in the second"});
  }
  return differences;
}

}  // namespace

absl::StatusOr<bool> VerifyCommand(const std::string& path_at_step, bool all,
                                   const Output& output) {
  if (IsExportedFolder(path_at_step)) return VerifyExported(path_at_step, output);
  ELA_ASSIGN_OR_RETURN(const PathAtStep split, SplitPathAtStep(path_at_step));
  ELA_ASSIGN_OR_RETURN(const std::string folder, FindCheckpointFolder(split.path));
  ELA_ASSIGN_OR_RETURN(const auto catalog, Catalog::OpenForReading(folder));
  ELA_ASSIGN_OR_RETURN(const std::vector<v1::StepManifest> steps, catalog->List());
  std::vector<Verified> checked;
  for (const v1::StepManifest& manifest : steps) {
    const bool wanted = all || (split.step.has_value() ? manifest.step() == *split.step
                                                       : &manifest == &steps.back());
    if (!wanted) continue;
    ELA_ASSIGN_OR_RETURN(std::vector<std::string> damage, DamageOf(folder, manifest));
    checked.push_back({&manifest, std::move(damage)});
  }
  if (checked.empty()) {
    if (split.step.has_value()) return catalog->Get(*split.step).status();
    return absl::NotFoundError(absl::StrCat("no step is committed in ", folder, " yet"));
  }
  Tell(checked, output);
  if (checked.back().damage.empty()) {
    return std::all_of(checked.begin(), checked.end(),
                       [](const Verified& step) { return step.damage.empty(); });
  }
  ELA_RETURN_IF_ERROR(OfferPrevious(folder, steps, checked.back().manifest->step(), output));
  return false;
}

absl::StatusOr<bool> DiffCommand(const std::string& left, const std::string& right,
                                 const Output& output) {
  ELA_ASSIGN_OR_RETURN(const auto first, OpenCheckpoint(left));
  ELA_ASSIGN_OR_RETURN(const auto second, OpenCheckpoint(right));
  ELA_ASSIGN_OR_RETURN(const std::vector<Difference> differences,
                       CompareAll(first.get(), second.get()));
  if (output.json) {
    ordered_json json = ordered_json::array();
    for (const Difference& difference : differences) {
      json.push_back({{"tensor", difference.tensor},
                      {"difference", difference.what},
                      {"elements", difference.elements},
                      {"largest", difference.largest}});
    }
    *output.out << json.dump(2) << "\n";
    return differences.empty();
  }
  if (differences.empty()) {
    *output.err << "the same " << first->manifest().tensors_size() << " tensors, bit for bit\n";
    return true;
  }
  std::vector<std::vector<std::string>> rows;
  for (const Difference& difference : differences) {
    rows.push_back({difference.tensor, difference.what,
                    difference.elements > 0 ? absl::StrCat(difference.largest) : "-"});
  }
  *output.out << RenderTable({"TENSOR", "DIFFERENCE", ">LARGEST"}, rows);
  return false;
}

}  // namespace ela::checkpoints
