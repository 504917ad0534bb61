// What every use of RocksDB here shares: options, errors, and the log that names a damaged file.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "rocksdb/env.h"
#include "rocksdb/options.h"
#include "rocksdb/status.h"

namespace ela::kv {

/// RocksDB's log, kept in memory: no LOG files beside the data, so a checkpoint on a read-only file
/// system opens too. The only lines kept are those that tell which file recovery had to drop bytes
/// of, since the status does not.
class DamageLog : public rocksdb::Logger {
 public:
  DamageLog() : rocksdb::Logger(rocksdb::InfoLogLevel::WARN_LEVEL) {}
  using rocksdb::Logger::Logv;
  void Logv(const char* format, va_list arguments) override ABSL_LOCKS_EXCLUDED(mutex_);
  /// The first line that reported damage; empty: none.
  std::string first() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  mutable absl::Mutex mutex_;
  std::string first_ ABSL_GUARDED_BY(mutex_);
};

/// XXH3 block checksums (RocksDB's CRC32C has no hardware path in some distributions), no
/// compression, no LOG files, one background thread's worth of work.
rocksdb::Options BaseOptions(std::shared_ptr<DamageLog> log);

/// ResourceExhausted (no space), DataLoss (corruption), NotFound, Unavailable (the rest), prefixed
/// with `what`, which names the database.
absl::Status FromRocksDb(const rocksdb::Status& status, const std::string& what);

}  // namespace ela::kv
