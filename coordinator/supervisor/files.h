// Small files that must survive a crash: written whole or not at all.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ela::coordinator {

/// Temporary file, fsync, rename, fsync of the directory. Errors name the path and the system's
/// reason.
absl::Status WriteFileDurably(const std::string& path, std::string_view contents, mode_t mode);

/// As above, but AlreadyExists when `path` is there already: of several writers exactly one
/// succeeds, and nobody ever sees half a file.
absl::Status CreateFileDurably(const std::string& path, std::string_view contents, mode_t mode);

/// The whole file; nullopt when there is none.
absl::StatusOr<std::optional<std::string>> ReadFileIfExists(const std::string& path);

/// Makes the directory and those above it, mode 0700.
absl::Status MakeDirectories(const std::string& path);

/// "text: No such file or directory" from errno, as ResourceExhausted when the disk is full.
absl::Status ErrnoStatus(std::string_view what);

}  // namespace ela::coordinator
