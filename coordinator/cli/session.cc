#include "coordinator/cli/session.h"

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/job/job_file.h"
#include "proto/job/writer.h"
#include "proto/status_macros.h"

namespace ela::cli {
namespace {

// The environment's character set, by the rules of setlocale; one that says nothing is a modern
// terminal.
bool WantsUnicode(const Io& io) {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const std::string locale = absl::AsciiStrToLower(io.env(name));
    if (locale.empty()) continue;
    return absl::StrContains(locale, "utf-8") || absl::StrContains(locale, "utf8");
  }
  return true;
}

}  // namespace

absl::StatusOr<Client*> Session::client() {
  if (client_ == nullptr) {
    ELA_ASSIGN_OR_RETURN(client_, Client::Create(arguments_, io_));
  }
  return client_.get();
}

absl::StatusOr<absl::Duration> Session::longest_follow() const {
  if (!arguments_.Has("timeout")) return absl::InfiniteDuration();
  const auto timeout = job::ParseDurationMs(arguments_.Get("timeout"));
  if (!timeout.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--timeout: ", timeout.status().message()));
  }
  return absl::Milliseconds(*timeout);
}

ViewStyle Session::style() const {
  ViewStyle style;
  const TerminalSize size = io_.terminal_size();
  style.width = size.columns;
  style.height = size.rows;
  int width = 0;
  if (absl::SimpleAtoi(arguments_.Get("width"), &width) && width > 0) style.width = width;
  style.unicode = WantsUnicode(io_);
  style.colour = io_.out_is_terminal && io_.env("NO_COLOR").empty() && io_.env("TERM") != "dumb";
  return style;
}

int Session::table_columns() const {
  return io_.out_is_terminal && format() != "wide" ? io_.terminal_size().columns : 0;
}

void Session::Emit(const nlohmann::ordered_json& json) const {
  out() << (format() == "yaml" ? job::JsonToYaml(json) : job::JsonText(json)) << std::flush;
}

void Session::Note(const std::string& text) const {
  if (!quiet()) *io_.err << "ela: " << text << std::endl;
}

int Session::Fail(const absl::Status& status) const {
  const std::vector<std::string> lines = absl::StrSplit(status.message(), '\n', absl::SkipEmpty());
  for (const std::string& line : lines) *io_.err << "ela: " << line << "\n";
  io_.err->flush();
  return ExitCodeOf(status);
}

}  // namespace ela::cli
