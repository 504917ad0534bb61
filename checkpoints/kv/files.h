// Durable file operations: what has returned OK survives a loss of power.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ela::kv {

/// "cannot <what> <path>: <reason>" with the code the reason asks for: ResourceExhausted (no space,
/// quota or size limit), NotFound, PermissionDenied, otherwise Unavailable.
absl::Status ErrnoStatus(int error, const std::string& what, const std::string& path);

/// Makes the folder and its missing parents; each new entry is synced.
absl::Status MakeDirectories(const std::string& path);
absl::Status SyncFile(const std::string& path);
absl::Status SyncDirectory(const std::string& path);
/// rename(2), then a sync of the folder (both folders if they differ).
absl::Status RenameDurably(const std::string& from, const std::string& to);
/// Writes through a temporary file beside `path`, syncs, renames: readers see the old content or
/// the new.
absl::Status WriteFileDurably(const std::string& path, std::string_view content);
/// The whole file; NotFound if there is none; ResourceExhausted if it is longer than `max_bytes`.
absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max_bytes = size_t{1} << 30);
/// Names in a folder without "." and "..", sorted; NotFound if there is no such folder.
absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path);
/// Removes a file or a folder with all it holds; nothing there is fine. Links are removed, never
/// followed.
absl::Status RemoveTree(const std::string& path);
bool Exists(const std::string& path);
std::string ParentDirectory(const std::string& path);

}  // namespace ela::kv
