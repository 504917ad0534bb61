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

absl::StatusOr<CatalogState> LoadState(const std::string& path, kv::KeyValueStore* store) {
  CatalogState state;
  ELA_ASSIGN_OR_RETURN(const std::optional<std::string> fence, store->Get(kFenceKey));
  if (fence.has_value() && !absl::SimpleAtoi(*fence, &state.fence)) {
    return absl::DataLossError(
        absl::StrCat("key ", kFenceKey, " of ", CatalogFolder(path), " is damaged: no number"));
  }
  absl::Status damage;
  ELA_RETURN_IF_ERROR(
      store->Scan(kStepPrefix, "", [&](std::string_view key, std::string_view value) {
        const std::string what =
            absl::StrCat("key ", std::string(key), " of ", CatalogFolder(path));
        absl::StatusOr<v1::StepManifest> manifest = Unseal(value, what);
        if (manifest.ok() && StepKey(manifest->step()) != key) {
          manifest = absl::DataLossError(
              absl::StrCat(what, " is damaged: it holds step ", manifest->step()));
        }
        damage = manifest.status();
        if (!damage.ok()) return false;
        state.steps[manifest->step()] = *std::move(manifest);
        return true;
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
