// StepReader: any interval of any tensor, from the pieces it lies in.
#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/kv/files.h"
#include "checkpoints/layout.h"
#include "checkpoints/shard.h"
#include "checkpoints/tiling.h"
#include "checkpoints/xxh3.h"
#include "proto/status_macros.h"

namespace ela::checkpoints {
namespace {

using Damage = std::function<void(const absl::Status&)>;

class StepReaderImpl : public StepReader {
 public:
  StepReaderImpl(std::string folder, const v1::StepManifest& manifest)
      : folder_(std::move(folder)), manifest_(manifest), shards_(manifest.writers_size()) {
    for (const v1::TensorRecord& record : manifest_.tensors()) {
      Tensor& tensor = tensors_[record.name()];
      tensor.count = ElementCount(record);
      tensor.element_bytes = ElementBytes(record.dtype());
    }
    for (int writer = 0; writer < manifest_.writers_size(); ++writer) {
      for (const v1::PieceRecord& piece : manifest_.writers(writer).pieces()) {
        tensors_[piece.tensor()].parts.push_back({&piece, writer});
      }
    }
    for (auto& [name, tensor] : tensors_) {
      std::sort(tensor.parts.begin(), tensor.parts.end(),
                [](const Part& a, const Part& b) { return a.piece->begin() < b.piece->begin(); });
    }
  }

  const v1::StepManifest& manifest() const override { return manifest_; }

  absl::Status Read(const std::string& name, int64_t begin, int64_t end, void* out) override {
    const auto it = tensors_.find(name);
    if (it == tensors_.end()) {
      return absl::NotFoundError(absl::StrCat(folder_, " has no tensor ", name));
    }
    const Tensor& tensor = it->second;
    if (begin < 0 || end < begin || end > tensor.count) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", name, " has elements [0, ",
                                                     tensor.count, "): [", begin, ", ", end,
                                                     ") is not within"));
    }
    auto part =
        std::upper_bound(tensor.parts.begin(), tensor.parts.end(), begin,
                         [](int64_t element, const Part& p) { return element < p.piece->end(); });
    char* to = static_cast<char*>(out);
    for (int64_t at = begin; at < end; ++part) {
      const int64_t stop = std::min(end, part->piece->end());
      ELA_RETURN_IF_ERROR(ReadPart(*part, tensor.element_bytes, at, stop, to));
      to += static_cast<size_t>(stop - at) * tensor.element_bytes;
      at = stop;
    }
    return absl::OkStatus();
  }

  absl::Status Verify(const Damage& damage) override {
    const std::string copy = CommitFile(folder_);
    const auto sealed = kv::ReadFile(copy);
    if (!sealed.ok() && !absl::IsNotFound(sealed.status())) return sealed.status();
    if (!sealed.ok()) {
      damage(absl::DataLossError(absl::StrCat(copy, " is missing")));
    } else if (const auto manifest = Unseal(*sealed, copy); !manifest.ok()) {
      damage(manifest.status());
    }
    for (int writer = 0; writer < manifest_.writers_size(); ++writer) {
      ELA_RETURN_IF_ERROR(VerifyShard(writer, damage));
    }
    return absl::OkStatus();
  }

 private:
  struct Part {
    const v1::PieceRecord* piece;
    int writer;  // index in the manifest
  };
  struct Tensor {
    int64_t count = 0;
    size_t element_bytes = 0;
    std::vector<Part> parts;  // ascending, without gaps
  };

  std::string ShardFolder(int writer) const {
    return WriterFolder(folder_, manifest_.writers(writer).writer());
  }

  /// Opened when it is first needed, and kept.
  absl::StatusOr<Shard*> OpenShard(int writer) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    std::unique_ptr<Shard>& shard = shards_[static_cast<size_t>(writer)];
    if (shard == nullptr) {
      ELA_ASSIGN_OR_RETURN(shard, Shard::Open(ShardFolder(writer), manifest_.writers(writer)));
    }
    return shard.get();
  }

  absl::Status ReadPart(const Part& part, size_t element_bytes, int64_t begin, int64_t end,
                        char* out) {
    const auto shard = OpenShard(part.writer);
    if (!shard.ok()) {
      return absl::Status(shard.status().code(),
                          absl::StrCat("tensor ", part.piece->tensor(), " elements [", begin, ", ",
                                       end, "): ", shard.status().message()));
    }
    ELA_RETURN_IF_ERROR((*shard)->Read(*part.piece, element_bytes, begin, end, out));
    if (begin != part.piece->begin() || end != part.piece->end()) return absl::OkStatus();
    return CheckPiece(part, Xxh3({out, static_cast<size_t>(end - begin) * element_bytes}));
  }

  absl::Status CheckPiece(const Part& part, uint64_t xxh3) const {
    if (xxh3 == part.piece->xxh3()) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat(
        "tensor ", part.piece->tensor(), " elements [", part.piece->begin(), ", ",
        part.piece->end(), ") in ", ShardFolder(part.writer), ": the checksum does not match"));
  }

  /// Only an error that is no damage ends it.
  absl::Status VerifyShard(int writer, const Damage& damage) {
    const v1::WriterManifest& shard_manifest = manifest_.writers(writer);
    std::string told;
    const Damage tell = [&](const absl::Status& fault) {
      absl::StrAppend(&told, std::string(fault.message()), "\n");
      damage(fault);
    };
    const auto shard = OpenShard(writer);
    if (!shard.ok()) {
      if (!absl::IsDataLoss(shard.status())) return shard.status();
      ReportUnreadable(shard_manifest, shard.status(), tell);
      if (!kv::Exists(ShardFolder(writer))) return absl::OkStatus();
    }
    for (int i = 0; shard.ok() && i < shard_manifest.pieces_size(); ++i) {
      ELA_RETURN_IF_ERROR(VerifyPiece(**shard, {&shard_manifest.pieces(i), writer}, tell));
    }
    // What no piece shows: the index of a table, for one.
    for (const v1::FileRecord& file : shard_manifest.files()) {
      const absl::Status whole = Shard::CheckFile(ShardFolder(writer), file);
      if (!whole.ok() && !absl::IsDataLoss(whole)) return whole;
      const std::string path = absl::StrCat(ShardFolder(writer), "/", file.name());
      if (!whole.ok() && !absl::StrContains(told, path)) damage(whole);
    }
    return absl::OkStatus();
  }

  static void ReportUnreadable(const v1::WriterManifest& shard, const absl::Status& why,
                               const Damage& damage) {
    if (shard.pieces_size() == 0) return damage(why);
    for (const v1::PieceRecord& piece : shard.pieces()) {
      damage(
          absl::DataLossError(absl::StrCat("tensor ", piece.tensor(), " elements [", piece.begin(),
                                           ", ", piece.end(), "): ", why.message())));
    }
  }

  absl::Status VerifyPiece(const Shard& shard, const Part& part, const Damage& damage) {
    const size_t element_bytes = tensors_[part.piece->tensor()].element_bytes;
    std::vector<char> buffer;
    Xxh3Stream hash;
    bool whole = true;
    int64_t at = part.piece->begin();
    for (int64_t chunk = 0; chunk < shard.ChunkCount(*part.piece, element_bytes); ++chunk) {
      const int64_t end = shard.ChunkInterval(*part.piece, element_bytes, chunk).end;
      const size_t bytes = static_cast<size_t>(end - at) * element_bytes;
      buffer.resize(std::max(buffer.size(), bytes));
      const absl::Status read = shard.Read(*part.piece, element_bytes, at, end, buffer.data());
      if (!read.ok() && !absl::IsDataLoss(read)) return read;
      if (!read.ok()) {
        damage(read);
        whole = false;
      }
      hash.Update(buffer.data(), bytes);
      at = end;
    }
    if (whole && hash.Digest() != part.piece->xxh3()) damage(CheckPiece(part, hash.Digest()));
    return absl::OkStatus();
  }

  const std::string folder_;
  const v1::StepManifest manifest_;
  std::map<std::string, Tensor> tensors_;
  absl::Mutex mutex_;
  std::vector<std::unique_ptr<Shard>> shards_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<StepReader>> StepReader::Open(const std::string& path,
                                                             const v1::StepManifest& manifest) {
  const std::string folder = StepFolder(path, manifest.step(), manifest.attempt());
  const absl::Status tiled = CheckTiling(manifest);
  if (!tiled.ok()) {
    return absl::DataLossError(absl::StrCat("the manifest of ", folder, ": ", tiled.message()));
  }
  if (!kv::Exists(folder)) return absl::NotFoundError(absl::StrCat(folder, " is missing"));
  return std::make_unique<StepReaderImpl>(folder, manifest);
}

}  // namespace ela::checkpoints
