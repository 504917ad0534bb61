#include "checkpoints/kv/rocksdb_support.h"

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "rocksdb/table.h"

namespace ela::kv {

void DamageLog::Logv(const char* format, va_list arguments) {
  char line[1024];
  std::vsnprintf(line, sizeof(line), format, arguments);
  const std::string text = line;
  if (!absl::StrContains(text, "dropping") && !absl::StrContains(text, "Corruption")) return;
  absl::MutexLock lock(&mutex_);
  if (first_.empty()) first_ = text;
}

std::string DamageLog::first() const {
  absl::MutexLock lock(&mutex_);
  return first_;
}

rocksdb::Options BaseOptions(std::shared_ptr<DamageLog> log) {
  rocksdb::BlockBasedTableOptions table;
  table.checksum = rocksdb::kXXH3;
  table.format_version = 5;
  rocksdb::Options options;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  options.info_log = std::move(log);
  options.compression = rocksdb::kNoCompression;
  options.bottommost_compression = rocksdb::kNoCompression;
  options.paranoid_checks = true;
  options.allow_fallocate = false;       // logs and manifests here are small, and live shortly
  options.max_file_opening_threads = 1;  // else sixteen threads are started to open a few files
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  return options;
}

static bool IsNoSpace(const rocksdb::Status& status) {
  if (status.IsNoSpace()) return true;
  const std::string text = status.ToString();
  // A quota and a file size limit have no code of their own in RocksDB.
  return status.IsIOError() && (absl::StrContains(text, std::strerror(EDQUOT)) ||
                                absl::StrContains(text, std::strerror(EFBIG)));
}

absl::Status FromRocksDb(const rocksdb::Status& status, const std::string& what) {
  if (status.ok()) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", status.ToString());
  if (IsNoSpace(status)) return absl::ResourceExhaustedError(message);
  if (status.IsCorruption()) return absl::DataLossError(message);
  if (status.IsNotFound() || status.IsPathNotFound()) return absl::NotFoundError(message);
  if (status.IsInvalidArgument()) return absl::InvalidArgumentError(message);
  return absl::UnavailableError(message);
}

}  // namespace ela::kv
