#include "coordinator/supervisor/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"

namespace ela::coordinator {
namespace {

std::string DirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

absl::Status SyncDirectory(const std::string& directory) {
  const int fd = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(directory);
  const int result = fsync(fd);
  const absl::Status status = result == 0 ? absl::OkStatus() : ErrnoStatus(directory);
  close(fd);
  return status;
}

absl::Status WriteAndSync(int fd, std::string_view contents, const std::string& path) {
  while (!contents.empty()) {
    const ssize_t written = write(fd, contents.data(), contents.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrnoStatus(path);
    contents.remove_prefix(static_cast<size_t>(written));
  }
  return fsync(fd) == 0 ? absl::OkStatus() : ErrnoStatus(path);
}

/// Writes a synced temporary file beside `path` and returns its name.
absl::StatusOr<std::string> WriteTemporary(const std::string& path, std::string_view contents,
                                           mode_t mode) {
  std::string name = path + ".tmp.XXXXXX";
  const int fd = mkostemp(name.data(), O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(path);
  absl::Status status = WriteAndSync(fd, contents, path);
  if (status.ok() && fchmod(fd, mode) != 0) status = ErrnoStatus(path);
  close(fd);
  if (!status.ok()) {
    unlink(name.c_str());
    return status;
  }
  return name;
}

}  // namespace

absl::Status ErrnoStatus(std::string_view what) {
  const int error = errno;
  const std::string message = absl::StrCat(std::string(what), ": ", std::strerror(error));
  if (error == ENOSPC || error == EDQUOT) return absl::ResourceExhaustedError(message);
  if (error == ENOENT) return absl::NotFoundError(message);
  if (error == EEXIST) return absl::AlreadyExistsError(message);
  return absl::UnavailableError(message);
}

absl::Status WriteFileDurably(const std::string& path, std::string_view contents, mode_t mode) {
  absl::StatusOr<std::string> temporary = WriteTemporary(path, contents, mode);
  if (!temporary.ok()) return temporary.status();
  if (rename(temporary->c_str(), path.c_str()) != 0) {
    const absl::Status status = ErrnoStatus(path);
    unlink(temporary->c_str());
    return status;
  }
  return SyncDirectory(DirectoryOf(path));
}

absl::Status CreateFileDurably(const std::string& path, std::string_view contents, mode_t mode) {
  absl::StatusOr<std::string> temporary = WriteTemporary(path, contents, mode);
  if (!temporary.ok()) return temporary.status();
  // link() fails when the name exists: O_EXCL, but with the contents already in place.
  const int result = link(temporary->c_str(), path.c_str());
  const absl::Status status = result == 0 ? absl::OkStatus() : ErrnoStatus(path);
  unlink(temporary->c_str());
  if (!status.ok()) return status;
  return SyncDirectory(DirectoryOf(path));
}

absl::StatusOr<std::optional<std::string>> ReadFileIfExists(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0 && errno == ENOENT) return std::optional<std::string>();
  if (fd < 0) return ErrnoStatus(path);
  std::string contents;
  char buffer[65536];
  while (true) {
    const ssize_t count = read(fd, buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      const absl::Status status = ErrnoStatus(path);
      close(fd);
      return status;
    }
    if (count == 0) break;
    contents.append(buffer, static_cast<size_t>(count));
  }
  close(fd);
  return std::optional<std::string>(std::move(contents));
}

absl::Status MakeDirectories(const std::string& path) {
  std::string made;
  for (const auto& part : std::filesystem::path(path)) {
    made = (std::filesystem::path(made) / part).string();
    if (made.empty() || made == "/") continue;
    if (mkdir(made.c_str(), 0700) != 0 && errno != EEXIST) return ErrnoStatus(made);
  }
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": exists and is not a directory"));
  }
  return absl::OkStatus();
}

}  // namespace ela::coordinator
