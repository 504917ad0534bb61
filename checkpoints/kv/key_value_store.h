// The key-value seam over RocksDB: what the coordinator's store and the checkpoint catalog need, no more.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ela::kv {

/// Changes that happen together or not at all, in order.
class Batch {
 public:
  void Put(std::string key, std::string value) { changes_.push_back({std::move(key), std::move(value)}); }
  void Delete(std::string key) { changes_.push_back({std::move(key), std::nullopt}); }
  const std::vector<std::pair<std::string, std::optional<std::string>>>& changes() const { return changes_; }
  bool empty() const { return changes_.empty(); }

 private:
  std::vector<std::pair<std::string, std::optional<std::string>>> changes_;
};

/// Ordered keys, thread-safe. Write returns when the batch is synced to the disk.
/// Errors: ResourceExhausted (disk full), DataLoss (corruption, with the file), Unavailable (locked by another process or I/O).
class KeyValueStore {
 public:
  virtual ~KeyValueStore() = default;
  virtual absl::StatusOr<std::optional<std::string>> Get(std::string_view key) = 0;
  virtual absl::Status Write(const Batch& batch) = 0;
  /// Calls `visit` for each key that starts with `prefix`, from `from` (empty: the first), ascending, until it returns false.
  virtual absl::Status Scan(std::string_view prefix, std::string_view from,
                            const std::function<bool(std::string_view key, std::string_view value)>& visit) = 0;
};

enum class OpenMode { kReadWrite, kReadOnly };
/// RocksDB with WAL, synced writes, wal_recovery_mode kTolerateCorruptedTailRecords, per-record checksums. After a write fails
/// for lack of space the store recovers by itself when there is space again.
absl::StatusOr<std::unique_ptr<KeyValueStore>> OpenRocksDb(const std::string& path, OpenMode mode);
/// In memory, for tests and simulations.
std::unique_ptr<KeyValueStore> MakeMemoryStore();

}  // namespace ela::kv
