// What a catalog says, as values: read from its store, completed by the COMMIT copies.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "checkpoints/kv/key_value_store.h"
#include "ela/v1/manifest.pb.h"

namespace ela::checkpoints {

inline constexpr char kFenceKey[] = "fence";
inline constexpr char kStepPrefix[] = "step/";
inline constexpr char kGonePrefix[] = "gone/";

std::string StepKey(int64_t step);
std::string GoneKey(const std::string& step_name);

struct CatalogState {
  int64_t fence = 0;                          // the newest attempt that has opened it for writing
  std::map<int64_t, v1::StepManifest> steps;  // committed
  std::set<std::string> gone;                 // step folders that retention has given up
};

/// DataLoss names the key that is damaged.
absl::StatusOr<int64_t> LoadFence(const std::string& path, kv::KeyValueStore* store);
/// Nothing if the step is not committed.
absl::StatusOr<std::optional<v1::StepManifest>> LoadStep(const std::string& path,
                                                         kv::KeyValueStore* store, int64_t step);
absl::StatusOr<CatalogState> LoadState(const std::string& path, kv::KeyValueStore* store);

/// Steps that have a whole COMMIT and are not in `state`: the catalog has lost its end, or all of
/// itself. Adds them to `state` and returns their numbers.
std::vector<int64_t> AdoptCommits(const std::string& path, CatalogState* state);

}  // namespace ela::checkpoints
