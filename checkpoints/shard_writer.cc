// WriteShard: SSTs written in key order and ingested into an empty RocksDB, which is then
// immutable.
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/kv/files.h"
#include "checkpoints/kv/key_value_store.h"
#include "checkpoints/kv/rocksdb_support.h"
#include "checkpoints/layout.h"
#include "checkpoints/shard_options.h"
#include "checkpoints/xxh3.h"
#include "proto/status_macros.h"
#include "rocksdb/db.h"
#include "rocksdb/sst_file_writer.h"

namespace ela::checkpoints {
namespace {

constexpr uint64_t kMaxChunks = uint64_t{1} << 32;

/// The pieces in key order with their ids: tensors in order of first appearance, pieces by begin.
struct OrderedPiece {
  const Piece* piece;
  v1::PieceRecord record;
};

absl::StatusOr<std::vector<OrderedPiece>> Order(const std::vector<Piece>& pieces,
                                                size_t chunk_bytes) {
  std::map<std::string_view, int32_t> ids;
  std::vector<OrderedPiece> ordered;
  for (const Piece& piece : pieces) {
    if (piece.begin == piece.end) continue;
    if (piece.begin < 0 || piece.end < piece.begin || piece.data == nullptr ||
        piece.element_bytes == 0 ||
        static_cast<uint64_t>(piece.end - piece.begin) * piece.element_bytes / chunk_bytes >=
            kMaxChunks) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", piece.tensor, " elements [",
                                                     piece.begin, ", ", piece.end,
                                                     ") is no piece that can be written"));
    }
    const int32_t id = ids.emplace(piece.tensor, static_cast<int32_t>(ids.size())).first->second;
    OrderedPiece& added = ordered.emplace_back();
    added.piece = &piece;
    added.record.set_tensor(piece.tensor);
    added.record.set_begin(piece.begin);
    added.record.set_end(piece.end);
    added.record.set_tensor_id(id);
  }
  std::stable_sort(ordered.begin(), ordered.end(), [](const auto& a, const auto& b) {
    return std::pair(a.record.tensor_id(), a.record.begin()) <
           std::pair(b.record.tensor_id(), b.record.begin());
  });
  for (size_t i = 1; i < ordered.size(); ++i) {
    const v1::PieceRecord& before = ordered[i - 1].record;
    v1::PieceRecord& record = ordered[i].record;
    if (record.tensor_id() != before.tensor_id()) continue;
    if (record.begin() < before.end()) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", record.tensor(), " element ",
                                                     record.begin(), " is in two pieces"));
    }
    record.set_piece_id(before.piece_id() + 1);
  }
  return ordered;
}

/// A folder of a dead writer goes; one of a committed step stays, and nothing is written.
absl::Status PrepareFolder(const WriteOptions& options, const std::string& folder) {
  if (kv::Exists(folder)) {
    const std::string step_folder = kv::ParentDirectory(folder);
    bool committed = kv::Exists(CommitFile(step_folder));
    if (!committed && kv::Exists(CatalogFolder(options.path))) {
      ELA_ASSIGN_OR_RETURN(const auto catalog, Catalog::OpenForReading(options.path));
      const auto manifest = catalog->Get(options.step);
      committed = manifest.ok() && manifest->attempt() == options.attempt;
      if (!manifest.ok() && !absl::IsNotFound(manifest.status())) return manifest.status();
    }
    if (committed) {
      return absl::AlreadyExistsError(
          absl::StrCat("step ", options.step, " of attempt ", options.attempt, " is committed in ",
                       step_folder, ": a new attempt must have a new number"));
    }
    ELA_RETURN_IF_ERROR(kv::RemoveTree(folder));
  }
  return kv::MakeDirectories(folder);
}

class ShardWriter {
 public:
  ShardWriter(const WriteOptions& options, std::string folder)
      : options_(options), folder_(std::move(folder)), shard_options_(ShardOptions()) {
    manifest_.set_writer(options.writer);
    manifest_.set_chunk_bytes(static_cast<int64_t>(options.chunk_bytes));
  }

  absl::Status Write(std::vector<OrderedPiece>* pieces) {
    for (OrderedPiece& ordered : *pieces) {
      ELA_RETURN_IF_ERROR(WritePiece(*ordered.piece, &ordered.record));
      *manifest_.add_pieces() = std::move(ordered.record);
    }
    ELA_RETURN_IF_ERROR(Put(std::string(kManifestKey), manifest_.SerializeAsString()));
    ELA_RETURN_IF_ERROR(FinishFile());
    ELA_RETURN_IF_ERROR(Ingest());
    return Seal();
  }

  v1::WriterManifest& manifest() { return manifest_; }

 private:
  absl::Status WritePiece(const Piece& piece, v1::PieceRecord* record) {
    const char* data = static_cast<const char*>(piece.data);
    const size_t bytes = static_cast<size_t>(piece.end - piece.begin) * piece.element_bytes;
    hash_.Reset();
    uint32_t chunk = 0;
    for (size_t at = 0; at < bytes; at += options_.chunk_bytes, ++chunk) {
      const size_t size = std::min(options_.chunk_bytes, bytes - at);
      hash_.Update(data + at, size);
      ELA_RETURN_IF_ERROR(Put(ChunkKey(static_cast<uint32_t>(record->tensor_id()),
                                       static_cast<uint32_t>(record->piece_id()), chunk),
                              {data + at, size}));
    }
    record->set_xxh3(hash_.Digest());
    manifest_.set_bytes(manifest_.bytes() + static_cast<int64_t>(bytes));
    return absl::OkStatus();
  }

  absl::Status Put(const std::string& key, std::string_view value) {
    if (file_ != nullptr && file_->FileSize() >= options_.sst_bytes) {
      ELA_RETURN_IF_ERROR(FinishFile());
    }
    if (file_ == nullptr) {
      rocksdb::EnvOptions env_options(shard_options_);
      file_ = std::make_unique<rocksdb::SstFileWriter>(env_options, shard_options_);
      const std::string path = absl::StrCat(folder_, "/", files_.size(), ".ingest");
      ELA_RETURN_IF_ERROR(kv::FromRocksDb(file_->Open(path), "cannot write " + path));
      files_.push_back(path);
    }
    return kv::FromRocksDb(file_->Put(key, rocksdb::Slice(value.data(), value.size())),
                           "cannot write " + files_.back());
  }

  absl::Status FinishFile() {
    rocksdb::ExternalSstFileInfo info;
    ELA_RETURN_IF_ERROR(kv::FromRocksDb(file_->Finish(&info), "cannot write " + files_.back()));
    file_.reset();
    v1::FileRecord& record = digests_[info.smallest_key];
    record.set_bytes(static_cast<int64_t>(info.file_size));
    record.set_xxh3(FileXxh3(info.file_checksum));
    return absl::OkStatus();
  }

  absl::Status Ingest() {
    rocksdb::Options options = shard_options_;
    options.create_if_missing = true;
    options.error_if_exists = true;
    options.file_checksum_gen_factory = nullptr;  // known already, and kept in the step's manifest
    rocksdb::DB* opened = nullptr;
    ELA_RETURN_IF_ERROR(kv::FromRocksDb(rocksdb::DB::Open(options, folder_, &opened),
                                        absl::StrCat("cannot make ", folder_)));
    std::unique_ptr<rocksdb::DB> db(opened);
    rocksdb::IngestExternalFileOptions ingest;
    ingest.move_files = true;
    ingest.write_global_seqno = false;
    ingest.snapshot_consistency = false;
    ELA_RETURN_IF_ERROR(kv::FromRocksDb(db->IngestExternalFile(files_, ingest),
                                        absl::StrCat("cannot ingest into ", folder_)));
    std::vector<rocksdb::LiveFileMetaData> live;
    db->GetLiveFilesMetaData(&live);
    for (const rocksdb::LiveFileMetaData& file : live) {
      const auto it = digests_.find(file.smallestkey);
      if (it == digests_.end()) {
        return absl::InternalError(absl::StrCat("unknown file ", file.name, " in ", folder_));
      }
      it->second.set_name(file.relative_filename);
    }
    return kv::FromRocksDb(db->Close(), absl::StrCat("cannot close ", folder_));
  }

  /// Removes what reading does not need, syncs and records the rest.
  absl::Status Seal() {
    std::set<std::string> tables;
    for (const auto& [key, record] : digests_) {
      if (record.name().empty()) {
        return absl::InternalError(absl::StrCat("a file of ", folder_, " was not ingested"));
      }
      tables.insert(record.name());
      *manifest_.add_files() = record;
    }
    ELA_ASSIGN_OR_RETURN(const std::vector<std::string> names, kv::ListDirectory(folder_));
    for (const std::string& name : names) {
      const std::string path = absl::StrCat(folder_, "/", name);
      if (name == "CURRENT" || absl::StartsWith(name, "MANIFEST-")) {
        ELA_ASSIGN_OR_RETURN(const FileDigest digest, DigestFile(path));
        v1::FileRecord* record = manifest_.add_files();
        record->set_name(name);
        record->set_bytes(digest.bytes);
        record->set_xxh3(digest.xxh3);
      } else if (tables.count(name) == 0) {
        ELA_RETURN_IF_ERROR(kv::RemoveTree(path));
        continue;
      }
      ELA_RETURN_IF_ERROR(kv::SyncFile(path));
    }
    return kv::SyncDirectory(folder_);
  }

  const WriteOptions& options_;
  const std::string folder_;
  const rocksdb::Options shard_options_;
  v1::WriterManifest manifest_;
  Xxh3Stream hash_;
  std::unique_ptr<rocksdb::SstFileWriter> file_;
  std::vector<std::string> files_;                 // to ingest
  std::map<std::string, v1::FileRecord> digests_;  // by smallest key
};

absl::Status Explain(const absl::Status& status, const std::string& folder,
                     const std::vector<Piece>& pieces) {
  if (!absl::IsResourceExhausted(status)) return status;
  uint64_t bytes = 0;
  for (const Piece& piece : pieces) {
    bytes += static_cast<uint64_t>(piece.end - piece.begin) * piece.element_bytes;
  }
  struct statvfs disk;
  const bool known = ::statvfs(kv::ParentDirectory(folder).c_str(), &disk) == 0;
  return absl::ResourceExhaustedError(absl::StrCat(
      "no space for the checkpoint shard ", folder, ", which takes ", bytes, " bytes",
      known ? absl::StrCat(" (free there: ", uint64_t{disk.f_bavail} * disk.f_frsize, ")") : "",
      ": make room, keep fewer steps, or set another checkpoint.path (", status.message(), ")"));
}

}  // namespace

absl::StatusOr<v1::WriterManifest> WriteShard(const WriteOptions& options,
                                              const std::vector<Piece>& pieces) {
  if (options.path.empty() || options.step < 0 || options.attempt < 0 || options.writer < 0 ||
      options.chunk_bytes == 0 || options.sst_bytes == 0) {
    return absl::InvalidArgumentError("a shard needs a path, and numbers that are not negative");
  }
  const std::string folder =
      WriterFolder(StepFolder(options.path, options.step, options.attempt), options.writer);
  ELA_ASSIGN_OR_RETURN(std::vector<OrderedPiece> ordered, Order(pieces, options.chunk_bytes));
  absl::Status prepared = PrepareFolder(options, folder);
  if (!prepared.ok()) return Explain(prepared, folder, pieces);
  absl::Status written;
  v1::WriterManifest manifest;
  {
    ShardWriter writer(options, folder);
    written = writer.Write(&ordered);
    manifest = std::move(writer.manifest());
  }
  if (written.ok()) return manifest;
  const absl::Status explained = Explain(written, folder, pieces);
  kv::RemoveTree(folder).IgnoreError();  // half a shard only takes space
  return explained;
}

}  // namespace ela::checkpoints
