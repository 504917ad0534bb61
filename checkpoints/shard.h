// One writer's shard, for reading: an immutable RocksDB whose every byte is checked before it is
// used.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ela/v1/manifest.pb.h"
#include "rocksdb/db.h"

namespace ela::checkpoints {

class Shard {
 public:
  /// Checks the small files by their hashes, the tables by their sizes, and that the shard's own
  /// record of its pieces is the step's. DataLoss names the file. `manifest` must outlive it.
  static absl::StatusOr<std::unique_ptr<Shard>> Open(const std::string& folder,
                                                     const v1::WriterManifest& manifest);

  /// Elements [begin, end) of a piece, a part of it: counted as in the tensor. DataLoss names
  /// tensor, interval and file. Thread-safe.
  absl::Status Read(const v1::PieceRecord& piece, size_t element_bytes, int64_t begin, int64_t end,
                    char* out) const;

  /// The elements of `piece` that lie in its chunk number `chunk`.
  struct Interval {
    int64_t begin, end;
  };
  Interval ChunkInterval(const v1::PieceRecord& piece, size_t element_bytes, int64_t chunk) const;
  int64_t ChunkCount(const v1::PieceRecord& piece, size_t element_bytes) const;

  /// DataLoss if the file is missing, or its size or hash is another.
  static absl::Status CheckFile(const std::string& folder, const v1::FileRecord& file);

 private:
  struct CloseFamily;
  Shard(std::string folder, const v1::WriterManifest& manifest);
  absl::Status OpenDatabase();
  absl::Status CheckRecord() const;
  std::string FileOf(const std::string& key) const;

  const std::string folder_;
  const v1::WriterManifest& manifest_;
  std::unique_ptr<rocksdb::DB> db_;
  std::unique_ptr<rocksdb::ColumnFamilyHandle> family_;
  std::vector<rocksdb::LiveFileMetaData> tables_;
};

}  // namespace ela::checkpoints
