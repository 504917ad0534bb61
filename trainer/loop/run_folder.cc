#include "trainer/loop/run_folder.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/status_macros.h"
#include "trainer/loop/exit_record.h"

namespace ela::trainer {
namespace {

namespace fs = std::filesystem;

absl::Status CreateFolder(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error && !fs::is_directory(path)) {
    const bool full = error == std::errc::no_space_on_device;
    return absl::Status(
        full ? absl::StatusCode::kResourceExhausted : absl::StatusCode::kInvalidArgument,
        absl::StrCat(path, ": cannot create the folder: ", error.message()));
  }
  return absl::OkStatus();
}

// logs -> attempts/<n>/logs, replaced by rename so that a reader never misses it. A real folder of
// that name (a run without a coordinator) stays.
void PointLogsAt(const std::string& run_dir, const std::string& target) {
  std::error_code error;
  const std::string link = run_dir + "/logs", temporary = link + ".tmp";
  if (fs::is_directory(fs::symlink_status(link, error))) return;
  fs::remove(temporary, error);
  fs::create_symlink(target, temporary, error);
  if (!error) fs::rename(temporary, link, error);
}

std::string Number(double value) {
  return std::isfinite(value) ? absl::StrFormat("%.17g", value) : "null";
}

const char* LeakField(bool leaks) { return leaks ? ",\"leaks_future\":true" : ""; }

// The step of a whole line, or -1.
int64_t StepOf(const std::string& line) {
  const nlohmann::json json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) return -1;
  return json["step"].get<int64_t>();
}

}  // namespace

absl::StatusOr<RunFolder> RunFolder::Create(const std::string& path, int64_t attempt, int rank) {
  RunFolder folder;
  folder.path = fs::absolute(path).lexically_normal().string();
  folder.attempt_dir = attempt > 0 ? absl::StrCat(folder.path, "/attempts/", attempt) : folder.path;
  folder.log_dir = folder.attempt_dir + "/logs";
  ELA_RETURN_IF_ERROR(CreateFolder(folder.log_dir));
  if (attempt > 0 && rank == 0) {
    PointLogsAt(folder.path, absl::StrCat("attempts/", attempt, "/logs"));
  }
  return folder;
}

std::string RunFolder::log_file(int rank) const {
  return absl::StrCat(log_dir, "/rank-", rank, ".log");
}

std::string ToJsonLine(const StepRecord& r) {
  return absl::StrCat(
      "{\"step\":", r.step, ",\"loss\":", Number(r.loss), ",\"aux_loss\":", Number(r.aux_loss),
      ",\"grad_norm\":", Number(r.grad_norm), ",\"lr\":", Number(r.lr), ",\"tokens\":", r.tokens,
      ",\"step_seconds\":", Number(r.step_seconds), LeakField(r.leaks_future), "}\n");
}

std::string ToJsonLine(const EvalRecord& r) {
  return absl::StrCat("{\"step\":", r.step, ",\"eval_loss\":", Number(r.loss),
                      ",\"eval_tokens\":", r.tokens, LeakField(r.leaks_future), "}\n");
}

absl::StatusOr<std::unique_ptr<MetricsFile>> MetricsFile::Open(const std::string& path,
                                                               int64_t last_step) {
  std::string kept;
  bool dropped = false;
  {
    std::ifstream in(path);
    for (std::string line; std::getline(in, line);) {
      const int64_t step = StepOf(line);
      const bool whole = !in.eof();
      if (step >= 0 && step <= last_step && whole) {
        kept += line + "\n";
      } else {
        dropped = true;
      }
    }
  }
  if (dropped) ELA_RETURN_IF_ERROR(WriteFileAtomically(path, kept));
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": cannot open for appending: ", std::strerror(errno)));
  }
  return std::unique_ptr<MetricsFile>(new MetricsFile(path, fd));
}

MetricsFile::~MetricsFile() { close(fd_); }

absl::Status MetricsFile::Append(const std::string& line) {
  if (write(fd_, line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
    return absl::UnavailableError(absl::StrCat(path_, ": cannot append: ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

}  // namespace ela::trainer
