// KeyValueStore over one RocksDB with a synced write-ahead log.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "checkpoints/kv/files.h"
#include "checkpoints/kv/key_value_store.h"
#include "checkpoints/kv/rocksdb_support.h"
#include "proto/status_macros.h"
#include "rocksdb/db.h"
#include "rocksdb/write_batch.h"

namespace ela::kv {
namespace {

class RocksDbStore : public KeyValueStore {
 public:
  RocksDbStore(std::string path, std::unique_ptr<rocksdb::DB> db,
               rocksdb::ColumnFamilyHandle* default_family)
      : path_(std::move(path)), default_family_(default_family), db_(std::move(db)) {}

  ~RocksDbStore() override {
    db_->DestroyColumnFamilyHandle(default_family_).PermitUncheckedError();
    db_->Close().PermitUncheckedError();
  }

  absl::StatusOr<std::optional<std::string>> Get(std::string_view key) override {
    std::string value;
    const rocksdb::Status status =
        db_->Get(rocksdb::ReadOptions(), default_family_, ToSlice(key), &value);
    if (status.IsNotFound()) return std::optional<std::string>();
    if (!status.ok()) return FromRocksDb(status, path_);
    return std::optional<std::string>(std::move(value));
  }

  absl::Status Write(const Batch& batch) override {
    if (batch.empty()) return absl::OkStatus();
    rocksdb::Status status = WriteSynced(batch);
    // After an error RocksDB refuses all writes until it is told to go on. Repeating is safe: a
    // batch sets keys, so applying it twice is applying it once.
    if (!status.ok() && db_->Resume().ok()) status = WriteSynced(batch);
    return FromRocksDb(status, absl::StrCat("write to ", path_));
  }

  absl::Status Scan(std::string_view prefix, std::string_view from,
                    const std::function<bool(std::string_view, std::string_view)>& visit) override {
    std::unique_ptr<rocksdb::Iterator> it(
        db_->NewIterator(rocksdb::ReadOptions(), default_family_));
    for (it->Seek(ToSlice(std::max(prefix, from))); it->Valid(); it->Next()) {
      if (!it->key().starts_with(ToSlice(prefix))) break;
      if (!visit(it->key().ToStringView(), it->value().ToStringView())) break;
    }
    return FromRocksDb(it->status(), path_);
  }

 private:
  static rocksdb::Slice ToSlice(std::string_view text) { return {text.data(), text.size()}; }

  rocksdb::Status WriteSynced(const Batch& batch) {
    rocksdb::WriteBatch changes;
    for (const auto& [key, value] : batch.changes()) {
      const rocksdb::Status added = value.has_value() ? changes.Put(default_family_, key, *value)
                                                      : changes.Delete(default_family_, key);
      if (!added.ok()) return added;
    }
    rocksdb::WriteOptions options;
    options.sync = true;
    return db_->Write(options, &changes);
  }

  const std::string path_;
  rocksdb::ColumnFamilyHandle* default_family_;
  std::unique_ptr<rocksdb::DB> db_;
};

rocksdb::Options StoreOptions(std::shared_ptr<DamageLog> log, OpenMode mode) {
  rocksdb::Options options = BaseOptions(std::move(log));
  options.create_if_missing = mode == OpenMode::kReadWrite;
  options.write_buffer_size = size_t{8} << 20;
  // A closed log that is missing or too short is found at open, instead of being taken for an old
  // state.
  options.track_and_verify_wals_in_manifest = true;
  return options;
}

// The process that holds the lock of a database; 0: unknown. Only for a lock of another process:
// closing the file would drop a lock of our own.
pid_t LockHolder(const std::string& path) {
  const int fd = ::open(absl::StrCat(path, "/LOCK").c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return 0;
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  const bool held = ::fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
  ::close(fd);
  return held ? lock.l_pid : 0;
}

absl::Status OpenError(const rocksdb::Status& status, const std::string& path,
                       const DamageLog& log) {
  const std::string text = status.ToString();
  if (status.IsIOError() && absl::StrContains(text, "lock hold by current process")) {
    return absl::UnavailableError(absl::StrCat(path, " is already open in this process"));
  }
  if (status.IsIOError() && absl::StrContains(text, "lock file")) {
    const pid_t holder = LockHolder(path);
    return absl::UnavailableError(
        absl::StrCat(path, " is in use by another process",
                     holder > 0 ? absl::StrCat(" (pid ", holder, ")") : "",
                     "; stop it first, or use another folder"));
  }
  const absl::Status mapped = FromRocksDb(status, absl::StrCat("cannot open ", path));
  const std::string damage = log.first();
  if (!absl::IsDataLoss(mapped) || damage.empty()) return mapped;
  return absl::DataLossError(absl::StrCat(mapped.message(), " (", damage, ")"));
}

// Every opening turns the log into a file, and ascending keys never overlap, so that compaction
// would move those files and not merge them. Should this fail, nothing is lost.
void MergeSmallFiles(rocksdb::DB* db, rocksdb::ColumnFamilyHandle* family) {
  constexpr size_t kMostFiles = 16, kSmallBytes = size_t{1} << 20;
  std::vector<rocksdb::LiveFileMetaData> files;
  db->GetLiveFilesMetaData(&files);
  size_t bytes = 0;
  for (const rocksdb::LiveFileMetaData& file : files) bytes += file.size;
  if (files.size() < kMostFiles || bytes / files.size() > kSmallBytes) return;
  rocksdb::CompactRangeOptions all;
  all.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForce;
  db->CompactRange(all, family, nullptr, nullptr).PermitUncheckedError();
}

}  // namespace

absl::StatusOr<std::unique_ptr<KeyValueStore>> OpenRocksDb(const std::string& path, OpenMode mode) {
  auto log = std::make_shared<DamageLog>();
  const rocksdb::Options options = StoreOptions(log, mode);
  const std::vector<rocksdb::ColumnFamilyDescriptor> families = {
      {rocksdb::kDefaultColumnFamilyName, rocksdb::ColumnFamilyOptions(options)}};
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* db = nullptr;
  rocksdb::Status status;
  if (mode == OpenMode::kReadWrite) {
    ELA_RETURN_IF_ERROR(MakeDirectories(path));
    status = rocksdb::DB::Open(rocksdb::DBOptions(options), path, families, &handles, &db);
  } else {
    if (!Exists(path + "/CURRENT")) {
      return absl::NotFoundError(absl::StrCat(path, " holds no database"));
    }
    status =
        rocksdb::DB::OpenForReadOnly(rocksdb::DBOptions(options), path, families, &handles, &db);
  }
  if (!status.ok()) return OpenError(status, path, *log);
  if (mode == OpenMode::kReadWrite) MergeSmallFiles(db, handles[0]);
  return std::make_unique<RocksDbStore>(path, std::unique_ptr<rocksdb::DB>(db), handles[0]);
}

}  // namespace ela::kv
