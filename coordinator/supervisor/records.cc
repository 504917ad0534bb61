#include "coordinator/supervisor/records.h"

#include <algorithm>
#include <regex>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "coordinator/supervisor/files.h"
#include "coordinator/supervisor/process.h"
#include "nlohmann/json.hpp"

namespace ela::coordinator {
namespace {

using nlohmann::json;

constexpr size_t kLogTailBytes = 64 << 10;

std::string Text(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

int64_t Number(const json& object, const char* key, int64_t otherwise = 0) {
  const auto it = object.find(key);
  return it != object.end() && it->is_number_integer() ? it->get<int64_t>() : otherwise;
}

bool Flag(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_boolean() && it->get<bool>();
}

std::string Dump(const json& object) {
  return object.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

/// nullopt: no such file. DataLoss: not a JSON object.
absl::StatusOr<std::optional<json>> ReadObject(const std::string& path) {
  auto text = ReadFileIfExists(path);
  if (!text.ok()) return text.status();
  if (!text->has_value()) return std::optional<json>();
  json object = json::parse(**text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return absl::DataLossError(absl::StrCat(path, ": not a JSON object"));
  return std::optional<json>(std::move(object));
}

json ToJson(const RankExit& exit) {
  return {{"rank", exit.rank},
          {"outcome", exit.outcome},
          {"exit_code", exit.exit_code},
          {"reason", exit.reason},
          {"unix_ms", exit.unix_ms}};
}

RankExit RankExitFromJson(const json& object) {
  RankExit exit;
  exit.rank = static_cast<int>(Number(object, "rank", -1));
  exit.outcome = Text(object, "outcome");
  exit.exit_code = static_cast<int>(Number(object, "exit_code"));
  exit.reason = Text(object, "reason");
  exit.unix_ms = Number(object, "unix_ms");
  return exit;
}

}  // namespace

absl::Status WriteLaunchFile(const std::string& attempt_dir, const LaunchFile& launch) {
  const json object = {{"argv", launch.argv}, {"ranks", launch.ranks}};
  return WriteFileDurably(attempt_dir + "/launch.json", Dump(object), 0600);
}

absl::StatusOr<LaunchFile> ReadLaunchFile(const std::string& attempt_dir) {
  const std::string path = attempt_dir + "/launch.json";
  auto object = ReadObject(path);
  if (!object.ok()) return object.status();
  if (!object->has_value()) return absl::NotFoundError(path + ": no such file");
  LaunchFile launch;
  launch.ranks = static_cast<int>(Number(**object, "ranks"));
  const auto argv = (*object)->find("argv");
  if (argv != (*object)->end() && argv->is_array()) {
    for (const json& argument : *argv) {
      if (argument.is_string()) launch.argv.push_back(argument.get<std::string>());
    }
  }
  if (launch.argv.empty()) return absl::DataLossError(path + ": holds no command");
  return launch;
}

absl::Status MakeClaim(const std::string& attempt_dir, const Claim& claim) {
  const json object = {{"pid", claim.pid},
                       {"start_ticks", claim.start_ticks},
                       {"boot_id", claim.boot_id},
                       {"unix_ms", claim.unix_ms}};
  return CreateFileDurably(attempt_dir + "/claim.json", Dump(object), 0600);
}

absl::StatusOr<std::optional<Claim>> ReadClaim(const std::string& attempt_dir) {
  auto object = ReadObject(attempt_dir + "/claim.json");
  if (!object.ok()) return object.status();
  if (!object->has_value()) return std::optional<Claim>();
  Claim claim;
  claim.pid = Number(**object, "pid");
  claim.start_ticks = Number(**object, "start_ticks");
  claim.boot_id = Text(**object, "boot_id");
  claim.unix_ms = Number(**object, "unix_ms");
  if (claim.pid <= 1) return absl::DataLossError(attempt_dir + "/claim.json: holds no pid");
  return std::optional<Claim>(claim);
}

bool IsHeld(const Claim& claim) {
  return claim.boot_id == BootId() && IsAlive(static_cast<pid_t>(claim.pid), claim.start_ticks);
}

absl::Status WriteStopRequest(const std::string& attempt_dir, const StopRequest& request) {
  const json object = {{"deadline_unix_ms", request.deadline_unix_ms},
                       {"dump_stacks", request.dump_stacks}};
  return WriteFileDurably(attempt_dir + "/request.json", Dump(object), 0600);
}

absl::StatusOr<std::optional<StopRequest>> ReadStopRequest(const std::string& attempt_dir) {
  auto object = ReadObject(attempt_dir + "/request.json");
  if (!object.ok()) return object.status();
  if (!object->has_value()) return std::optional<StopRequest>();
  StopRequest request;
  request.deadline_unix_ms = Number(**object, "deadline_unix_ms");
  request.dump_stacks = Flag(**object, "dump_stacks");
  return std::optional<StopRequest>(request);
}

std::vector<RankExit> ReadRankExits(const std::string& attempt_dir, int ranks) {
  std::vector<RankExit> exits;
  for (int rank = 0; rank < ranks; ++rank) {
    const auto object = ReadObject(absl::StrCat(attempt_dir, "/rank-", rank, ".exit.json"));
    if (!object.ok() || !object->has_value()) continue;
    RankExit exit = RankExitFromJson(**object);
    exit.rank = rank;
    exits.push_back(std::move(exit));
  }
  return exits;
}

absl::Status WriteExitRecord(const std::string& attempt_dir, const ExitRecord& record) {
  json ranks = json::array();
  for (const RankExit& exit : record.ranks) ranks.push_back(ToJson(exit));
  const json object = {{"exit_code", record.exit_code},
                       {"signal", record.signal},
                       {"failed_rank", record.failed_rank},
                       {"failed_signal", record.failed_signal},
                       {"stop_requested", record.stop_requested},
                       {"forced", record.forced},
                       {"reason", record.reason},
                       {"started_unix_ms", record.started_unix_ms},
                       {"ended_unix_ms", record.ended_unix_ms},
                       {"ranks", ranks}};
  return WriteFileDurably(attempt_dir + "/exit.json", Dump(object), 0600);
}

absl::StatusOr<std::optional<ExitRecord>> ReadExitRecord(const std::string& attempt_dir) {
  auto object = ReadObject(attempt_dir + "/exit.json");
  if (!object.ok()) return object.status();
  if (!object->has_value()) return std::optional<ExitRecord>();
  if ((*object)->find("exit_code") == (*object)->end()) {
    return absl::DataLossError(attempt_dir + "/exit.json: holds no exit_code");
  }
  ExitRecord record;
  record.exit_code = static_cast<int>(Number(**object, "exit_code"));
  record.signal = static_cast<int>(Number(**object, "signal"));
  record.failed_rank = static_cast<int>(Number(**object, "failed_rank", -1));
  record.failed_signal = static_cast<int>(Number(**object, "failed_signal"));
  record.stop_requested = Flag(**object, "stop_requested");
  record.forced = Flag(**object, "forced");
  record.reason = Text(**object, "reason");
  record.started_unix_ms = Number(**object, "started_unix_ms");
  record.ended_unix_ms = Number(**object, "ended_unix_ms");
  const auto ranks = (*object)->find("ranks");
  if (ranks != (*object)->end() && ranks->is_array()) {
    for (const json& exit : *ranks) {
      if (exit.is_object()) record.ranks.push_back(RankExitFromJson(exit));
    }
  }
  return std::optional<ExitRecord>(std::move(record));
}

void ReadFailureFromLog(const std::string& log_path, ExitRecord* record) {
  const auto text = ReadFileIfExists(log_path);
  if (!text.ok() || !text->has_value()) return;
  const std::string tail =
      (*text)->substr((*text)->size() - std::min((*text)->size(), kLogTailBytes));
  static const std::regex by_signal(
      R"(process rank (\d+) with PID \d+ on node \S+ exited on\s+signal (\d+))");
  static const std::regex by_code(R"(Process name: \[\[\d+,\d+\],(\d+)\]\s+Exit code:\s+(\d+))");
  std::smatch match;
  if (std::regex_search(tail, match, by_signal)) {
    (void)absl::SimpleAtoi(match[1].str(), &record->failed_rank);
    (void)absl::SimpleAtoi(match[2].str(), &record->failed_signal);
  } else if (std::regex_search(tail, match, by_code)) {
    (void)absl::SimpleAtoi(match[1].str(), &record->failed_rank);
  }
}

}  // namespace ela::coordinator
