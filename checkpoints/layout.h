// Names of folders and keys, and the sealed form of a manifest: FORMAT.md as code.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ela/v1/manifest.pb.h"

namespace ela::checkpoints {

std::string CatalogFolder(const std::string& path);
std::string StepsFolder(const std::string& path);

/// "000000000120.3"
std::string StepName(int64_t step, int64_t attempt);
struct StepAttempt {
  int64_t step = 0;
  int64_t attempt = 0;
};
/// Nothing for a name that StepName does not make.
std::optional<StepAttempt> ParseStepName(const std::string& name);
std::string StepFolder(const std::string& path, int64_t step, int64_t attempt);
std::string CommitFile(const std::string& step_folder);
/// <step folder>/w00003
std::string WriterFolder(const std::string& step_folder, int writer);

/// 'd' | be32 tensor | be32 piece | be32 chunk
std::string ChunkKey(uint32_t tensor, uint32_t piece, uint32_t chunk);
inline constexpr std::string_view kManifestKey = "m";

/// Magic, XXH3 of the message, message: a catalog value, and the content of COMMIT.
std::string Seal(const v1::StepManifest& manifest);
/// DataLoss; `what` names the key or file.
absl::StatusOr<v1::StepManifest> Unseal(std::string_view sealed, const std::string& what);

}  // namespace ela::checkpoints
