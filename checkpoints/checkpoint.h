// The trainer's view of checkpoints: write this rank's pieces, commit a step, read any interval of
// any tensor back. Layout and byte formats: FORMAT.md.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ela/v1/manifest.pb.h"

namespace ela::checkpoints {

/// A flat interval [begin, end) of a global row-major tensor, in memory.
struct Piece {
  std::string tensor;  // "model/embed.weight", "adam_m/...", "adam_v/..."
  int64_t begin = 0;   // elements
  int64_t end = 0;
  const void* data = nullptr;  // (end - begin) elements
  size_t element_bytes = 4;
};

/// Writes one rank's shard into <path>/steps/<step:012>.<attempt>/w<writer:05>/ and makes it
/// durable (files and directories synced) before it returns. Blocking; run it on a background
/// thread for an asynchronous save. A folder left by a dead writer of the same step and attempt is
/// replaced. Errors: ResourceExhausted (disk full: says the folder and the bytes needed),
/// Unavailable (other I/O), AlreadyExists (this step of this attempt is committed); nothing
/// committed is touched.
struct WriteOptions {
  std::string path;
  int64_t step = 0;
  int64_t attempt = 0;
  int writer = 0;
  size_t chunk_bytes = 1 << 20;
  size_t sst_bytes = size_t{512} << 20;
};
absl::StatusOr<v1::WriterManifest> WriteShard(const WriteOptions& options,
                                              const std::vector<Piece>& pieces);

/// The catalog of one checkpoint folder: the only commit point. Processes take turns: it is locked
/// while an operation runs.
class Catalog {
 public:
  /// Creates the folder if need be. Fences off older attempts: later commits of a smaller attempt
  /// are refused, as is a smaller attempt here (FailedPrecondition). Attempt 0 (no coordinator
  /// numbers them): the one after the newest so far. Clears uncommitted leftovers of older
  /// attempts.
  static absl::StatusOr<std::unique_ptr<Catalog>> OpenForWriting(const std::string& path,
                                                                 int64_t attempt);
  /// For reading only; NotFound if there is none.
  static absl::StatusOr<std::unique_ptr<Catalog>> OpenForReading(const std::string& path);
  virtual ~Catalog() = default;

  /// The attempt that it commits for; -1: open for reading.
  virtual int64_t attempt() const = 0;

  /// Checks that the writers' pieces tile every tensor of the manifest exactly, then writes one
  /// synced batch: the commit. FailedPrecondition if a newer attempt has fenced this one;
  /// InvalidArgument names the tensor and interval that is missing or doubled.
  virtual absl::Status Commit(const v1::StepManifest& manifest) = 0;
  /// Committed steps, ascending; damaged catalog entries are an error that names the key.
  virtual absl::StatusOr<std::vector<v1::StepManifest>> List() = 0;
  virtual absl::StatusOr<v1::StepManifest> Get(int64_t step) = 0;  // NotFound
  virtual absl::StatusOr<std::optional<v1::StepManifest>> Latest() = 0;
  /// Applies retention: keeps the newest keep_last committed steps, every multiple of keep_every
  /// (0: none), and always the newest; removes the rest and uncommitted leftovers of older
  /// attempts, in the background of nothing: returns when done.
  virtual absl::Status Collect(int64_t keep_last, int64_t keep_every) = 0;
};

/// Reads a committed step. Every byte that is returned has passed its checksum.
class StepReader {
 public:
  static absl::StatusOr<std::unique_ptr<StepReader>> Open(const std::string& path,
                                                          const v1::StepManifest& manifest);
  virtual ~StepReader() = default;

  virtual const v1::StepManifest& manifest() const = 0;
  /// Elements [begin, end) of a tensor into `out`, whatever pieces they lie in. NotFound: no such
  /// tensor. DataLoss names the tensor, interval and file of the damage. Thread-safe.
  virtual absl::Status Read(const std::string& tensor, int64_t begin, int64_t end, void* out) = 0;
  /// Reads everything; calls `damage` for each fault found. The status is that of the reading
  /// itself.
  virtual absl::Status Verify(const std::function<void(const absl::Status&)>& damage) = 0;
};

struct PathAtStep {
  std::string path;
  std::optional<int64_t> step;  // none: the newest
};
/// InvalidArgument: what follows the @ is no step. A path that exists as it stands is never split.
absl::StatusOr<PathAtStep> SplitPathAtStep(const std::string& path_at_step);
/// The checkpoint folder of a run folder, or `path` if it is one. NotFound says what is missing.
absl::StatusOr<std::string> FindCheckpointFolder(const std::string& path);

/// "PATH[@STEP]" (the newest step without @) of a checkpoint or run folder, or the PATH of an
/// exported model, which reads like a step of the model's tensors alone.
absl::StatusOr<std::unique_ptr<StepReader>> OpenCheckpoint(const std::string& path_at_step);

}  // namespace ela::checkpoints
