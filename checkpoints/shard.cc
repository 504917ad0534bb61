#include "checkpoints/shard.h"

#include <malloc.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "checkpoints/kv/files.h"
#include "checkpoints/kv/rocksdb_support.h"
#include "checkpoints/layout.h"
#include "checkpoints/shard_options.h"
#include "checkpoints/xxh3.h"
#include "proto/status_macros.h"

namespace ela::checkpoints {
namespace {

constexpr size_t kReadahead = size_t{8} << 20;

// Blocks of a chunk's size would be mapped and unmapped one by one: page faults cost more than the
// reading.
void KeepLargeBlocks() {
  static std::once_flag once;
  std::call_once(once, [] {
    ::mallopt(M_MMAP_THRESHOLD, 64 << 20);
    ::mallopt(M_TRIM_THRESHOLD, 256 << 20);
  });
}

absl::Status CheckSize(const std::string& folder, const v1::FileRecord& file) {
  const std::string path = absl::StrCat(folder, "/", file.name());
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) {
    if (errno != ENOENT) return kv::ErrnoStatus(errno, "look at", path);
    return absl::DataLossError(absl::StrCat(path, " is missing"));
  }
  if (info.st_size == file.bytes()) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat(path, " has ", info.st_size, " bytes instead of ", file.bytes()));
}

bool IsTable(const v1::FileRecord& file) { return absl::EndsWith(file.name(), ".sst"); }

}  // namespace

Shard::Shard(std::string folder, const v1::WriterManifest& manifest)
    : folder_(std::move(folder)), manifest_(manifest) {}

absl::Status Shard::CheckFile(const std::string& folder, const v1::FileRecord& file) {
  ELA_RETURN_IF_ERROR(CheckSize(folder, file));
  const std::string path = absl::StrCat(folder, "/", file.name());
  ELA_ASSIGN_OR_RETURN(const FileDigest digest, DigestFile(path));
  if (digest.xxh3 == file.xxh3() && digest.bytes == file.bytes()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(path, " is damaged: its checksum does not match"));
}

absl::StatusOr<std::unique_ptr<Shard>> Shard::Open(const std::string& folder,
                                                   const v1::WriterManifest& manifest) {
  KeepLargeBlocks();
  if (manifest.chunk_bytes() <= 0) {
    return absl::DataLossError(absl::StrCat("the manifest of ", folder, " has no chunk size"));
  }
  if (!kv::Exists(folder)) return absl::DataLossError(absl::StrCat(folder, " is missing"));
  for (const v1::FileRecord& file : manifest.files()) {
    ELA_RETURN_IF_ERROR(IsTable(file) ? CheckSize(folder, file) : CheckFile(folder, file));
  }
  std::unique_ptr<Shard> shard(new Shard(folder, manifest));
  const absl::Status opened = shard->OpenDatabase();
  if (opened.ok()) return shard;
  // RocksDB's words seldom name the file.
  for (const v1::FileRecord& file : manifest.files()) {
    if (IsTable(file)) ELA_RETURN_IF_ERROR(CheckFile(folder, file));
  }
  return opened;
}

absl::Status Shard::OpenDatabase() {
  const rocksdb::Options options = ShardOptions();
  const std::vector<rocksdb::ColumnFamilyDescriptor> families = {
      {rocksdb::kDefaultColumnFamilyName, rocksdb::ColumnFamilyOptions(options)}};
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* db = nullptr;
  ELA_RETURN_IF_ERROR(kv::FromRocksDb(
      rocksdb::DB::OpenForReadOnly(rocksdb::DBOptions(options), folder_, families, &handles, &db),
      absl::StrCat("cannot open ", folder_)));
  db_.reset(db);
  family_.reset(handles[0]);
  db_->GetLiveFilesMetaData(&tables_);
  return CheckRecord();
}

// A shard in the place of another would pass every checksum of its own.
absl::Status Shard::CheckRecord() const {
  std::string value;
  const std::string key(kManifestKey);
  ELA_RETURN_IF_ERROR(kv::FromRocksDb(db_->Get(rocksdb::ReadOptions(), family_.get(), key, &value),
                                      absl::StrCat("cannot read ", FileOf(key))));
  v1::WriterManifest expected = manifest_;
  expected.clear_files();
  v1::WriterManifest own;
  if (own.ParseFromString(value) && own.SerializeAsString() == expected.SerializeAsString()) {
    return absl::OkStatus();
  }
  return absl::DataLossError(
      absl::StrCat(folder_, " is not the shard that was committed: its record of pieces differs"));
}

std::string Shard::FileOf(const std::string& key) const {
  for (const rocksdb::LiveFileMetaData& table : tables_) {
    if (table.smallestkey <= key && key <= table.largestkey) {
      return absl::StrCat(folder_, "/", table.relative_filename);
    }
  }
  return folder_;
}

int64_t Shard::ChunkCount(const v1::PieceRecord& piece, size_t element_bytes) const {
  const int64_t bytes = (piece.end() - piece.begin()) * static_cast<int64_t>(element_bytes);
  return (bytes + manifest_.chunk_bytes() - 1) / manifest_.chunk_bytes();
}

Shard::Interval Shard::ChunkInterval(const v1::PieceRecord& piece, size_t element_bytes,
                                     int64_t chunk) const {
  const int64_t size = static_cast<int64_t>(element_bytes);
  const int64_t begin = chunk * manifest_.chunk_bytes();
  const int64_t end = begin + manifest_.chunk_bytes();
  return {piece.begin() + begin / size,
          std::min(piece.end(), piece.begin() + (end + size - 1) / size)};
}

absl::Status Shard::Read(const v1::PieceRecord& piece, size_t element_bytes, int64_t begin,
                         int64_t end, char* out) const {
  const int64_t size = static_cast<int64_t>(element_bytes), chunk_bytes = manifest_.chunk_bytes();
  int64_t at = (begin - piece.begin()) * size;
  const int64_t last = (end - piece.begin()) * size;
  const int64_t total = (piece.end() - piece.begin()) * size;
  rocksdb::ReadOptions options;
  options.verify_checksums = true;
  options.fill_cache = false;
  options.readahead_size = std::min(kReadahead, static_cast<size_t>(last - at));
  std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(options, family_.get()));
  for (bool first = true; at < last; first = false) {
    const int64_t chunk = at / chunk_bytes, start = chunk * chunk_bytes;
    const std::string key =
        ChunkKey(static_cast<uint32_t>(piece.tensor_id()), static_cast<uint32_t>(piece.piece_id()),
                 static_cast<uint32_t>(chunk));
    first ? it->Seek(key) : it->Next();
    const int64_t length = std::min(chunk_bytes, total - start);
    std::string why;
    if (!it->Valid()) {
      why = it->status().ok() ? "the chunk is missing" : it->status().ToString();
    } else if (it->key() != rocksdb::Slice(key)) {
      why = "the chunk is missing";
    } else if (static_cast<int64_t>(it->value().size()) != length) {
      why = absl::StrCat("the chunk has ", it->value().size(), " bytes instead of ", length);
    }
    if (!why.empty()) {
      const Interval interval = ChunkInterval(piece, element_bytes, chunk);
      return absl::DataLossError(absl::StrCat("tensor ", piece.tensor(), " elements [",
                                              interval.begin, ", ", interval.end, ") in ",
                                              FileOf(key), ": ", why));
    }
    const int64_t stop = std::min(last, start + length);
    std::memcpy(out, it->value().data() + (at - start), static_cast<size_t>(stop - at));
    out += stop - at;
    at = stop;
  }
  return absl::OkStatus();
}

}  // namespace ela::checkpoints
