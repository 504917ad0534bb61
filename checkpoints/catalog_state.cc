#include "checkpoints/catalog_state.h"

#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "checkpoints/kv/files.h"
#include "checkpoints/layout.h"
#include "proto/status_macros.h"

namespace ela::checkpoints {

std::string StepKey(int64_t step) {
  return absl::StrCat(kStepPrefix, absl::Dec(step, absl::kZeroPad12));
}
std::string GoneKey(const std::string& step_name) { return absl::StrCat(kGonePrefix, step_name); }

absl::StatusOr<int64_t> LoadFence(const std::string& path, kv::KeyValueStore* store) {
  ELA_ASSIGN_OR_RETURN(const std::optional<std::string> value, store->Get(kFenceKey));
  int64_t fence = 0;
  if (!value.has_value() || absl::SimpleAtoi(*value, &fence)) return fence;
  return absl::DataLossError(
      absl::StrCat("key ", kFenceKey, " of ", CatalogFolder(path), " is damaged: no number"));
}

static absl::StatusOr<v1::StepManifest> ReadEntry(const std::string& path, const std::string& key,
                                                  std::string_view value) {
  const std::string what = absl::StrCat("key ", key, " of ", CatalogFolder(path));
  ELA_ASSIGN_OR_RETURN(v1::StepManifest manifest, Unseal(value, what));
  if (StepKey(manifest.step()) == key) return manifest;
  return absl::DataLossError(absl::StrCat(what, " is damaged: it holds step ", manifest.step()));
}

absl::StatusOr<std::optional<v1::StepManifest>> LoadStep(const std::string& path,
                                                         kv::KeyValueStore* store, int64_t step) {
  ELA_ASSIGN_OR_RETURN(const std::optional<std::string> value, store->Get(StepKey(step)));
  if (!value.has_value()) return std::optional<v1::StepManifest>();
  return ReadEntry(path, StepKey(step), *value);
}

absl::StatusOr<CatalogState> LoadState(const std::string& path, kv::KeyValueStore* store) {
  CatalogState state;
  ELA_ASSIGN_OR_RETURN(state.fence, LoadFence(path, store));
  absl::Status damage;
  ELA_RETURN_IF_ERROR(
      store->Scan(kStepPrefix, "", [&](std::string_view key, std::string_view value) {
        auto manifest = ReadEntry(path, std::string(key), value);
        damage = manifest.status();
        if (damage.ok()) state.steps[manifest->step()] = *std::move(manifest);
        return damage.ok();
      }));
  ELA_RETURN_IF_ERROR(damage);
  ELA_RETURN_IF_ERROR(store->Scan(kGonePrefix, "", [&](std::string_view key, std::string_view) {
    state.gone.emplace(key.substr(sizeof(kGonePrefix) - 1));
    return true;
  }));
  return state;
}

std::vector<int64_t> AdoptCommits(const std::string& path, CatalogState* state) {
  std::vector<int64_t> adopted;
  const auto names = kv::ListDirectory(StepsFolder(path));
  if (!names.ok()) return adopted;
  for (const std::string& name : *names) {
    const std::optional<StepAttempt> parsed = ParseStepName(name);
    if (!parsed.has_value() || state->gone.count(name) > 0) continue;
    const auto known = state->steps.find(parsed->step);
    if (known != state->steps.end() && known->second.attempt() >= parsed->attempt) continue;
    const std::string file = CommitFile(StepFolder(path, parsed->step, parsed->attempt));
    const auto sealed = kv::ReadFile(file);
    if (!sealed.ok()) continue;  // not committed
    auto manifest = Unseal(*sealed, file);
    if (!manifest.ok() || manifest->step() != parsed->step ||
        manifest->attempt() != parsed->attempt) {
      continue;
    }
    state->steps[parsed->step] = *std::move(manifest);
    adopted.push_back(parsed->step);
  }
  return adopted;
}

}  // namespace ela::checkpoints
