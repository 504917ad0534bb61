#include "data/text/input_files.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string_view>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "proto/status_macros.h"

namespace ela::data {
namespace {

namespace fs = std::filesystem;

InputFile Describe(const std::string& path, const struct stat& info, FormatChoice choice) {
  InputFile file;
  file.path = path;
  file.regular = S_ISREG(info.st_mode);
  file.bytes = file.regular ? info.st_size : 0;
  file.modified_ns =
      file.regular ? int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec : 0;
  const std::string name(absl::StripSuffix(path, ".zst"));
  file.zstd = name.size() < path.size();
  const bool json = absl::EndsWith(name, ".jsonl") || absl::EndsWith(name, ".ndjson");
  file.format = choice == FormatChoice::kJsonLines || (choice == FormatChoice::kAuto && json)
                    ? TextFormat::kJsonLines
                    : TextFormat::kText;
  return file;
}

// Depth first, by name in every folder, so that the order is the same on every file system.
void ListFolder(const std::string& folder, FormatChoice choice, const Notice& notice,
                std::vector<InputFile>* files) {
  std::error_code error;
  fs::directory_iterator entries(folder, error);
  std::vector<fs::path> paths;
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    paths.push_back(entries->path());
  }
  if (error) {
    notice(absl::StrCat(folder, ": skipped, cannot list it: ", error.message()));
    return;
  }
  std::sort(paths.begin(), paths.end());
  for (const fs::path& path : paths) {
    if (path.filename().string().front() == '.') continue;
    struct stat info {};
    if (stat(path.c_str(), &info) != 0) {
      notice(absl::StrCat(path.string(), ": skipped: ", std::strerror(errno)));
    } else if (S_ISDIR(info.st_mode)) {
      if (!fs::is_symlink(path, error)) ListFolder(path.string(), choice, notice, files);
    } else if (S_ISREG(info.st_mode)) {
      if (access(path.c_str(), R_OK) == 0) {
        files->push_back(Describe(path.string(), info, choice));
      } else {
        notice(absl::StrCat(path.string(), ": skipped: ", std::strerror(errno)));
      }
    }
  }
}

}  // namespace

absl::StatusOr<std::vector<InputFile>> ListInputs(const std::vector<std::string>& paths,
                                                  FormatChoice format, const Notice& notice) {
  std::vector<InputFile> files;
  for (const std::string& path : paths) {
    struct stat info {};
    if (stat(path.c_str(), &info) != 0) {
      const int error = errno;
      const std::string message = absl::StrCat(path, ": ", std::strerror(error));
      if (error == ENOENT || error == ENOTDIR) return absl::NotFoundError(message);
      return absl::UnavailableError(message);
    }
    if (S_ISDIR(info.st_mode)) {
      ListFolder(path, format, notice, &files);
    } else if (access(path.c_str(), R_OK) != 0) {
      return absl::UnavailableError(absl::StrCat(path, ": ", std::strerror(errno)));
    } else {
      files.push_back(Describe(path, info, format));
    }
  }
  if (files.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(absl::StrJoin(paths, ", "), ": no files in there"));
  }
  return files;
}

}  // namespace ela::data
