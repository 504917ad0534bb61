// Reads chunks on one thread, encodes them on several, and hands them back in their order.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "data/corpus/encode_chunk.h"
#include "data/text/chunk_reader.h"

namespace ela::data {

/// Holds at most a few chunks a thread, so memory is bounded and reading waits for encoding.
class EncodePool {
 public:
  /// Reader and tokenizer are used by this pool's threads until it is destroyed.
  EncodePool(ChunkReader* reader, const Tokenizer* tokenizer, const EncodeOptions& options,
             int threads);
  ~EncodePool();

  /// The next chunk in input order, nothing after the last one, or the first error in that order.
  absl::StatusOr<std::optional<EncodedChunk>> Next();
  /// Bytes of input files read so far.
  int64_t consumed() const;

 private:
  struct Job {
    Chunk chunk;
    bool done = false;
    absl::StatusOr<EncodedChunk> result = absl::UnknownError("not encoded");
  };

  void Read();
  void Work();
  bool MayRead() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stop_ || jobs_.size() < limit_;
  }
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stop_ || !waiting_.empty() || read_all_;
  }
  bool FrontIsReady() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return jobs_.empty() ? read_all_ : jobs_.front()->done;
  }

  ChunkReader* reader_;
  const Tokenizer* tokenizer_;
  const EncodeOptions options_;
  const size_t limit_;
  mutable absl::Mutex mutex_;
  std::deque<std::shared_ptr<Job>> jobs_ ABSL_GUARDED_BY(mutex_);     // in input order
  std::deque<std::shared_ptr<Job>> waiting_ ABSL_GUARDED_BY(mutex_);  // for a thread
  absl::Status read_status_ ABSL_GUARDED_BY(mutex_);
  bool read_all_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t consumed_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::thread> threads_;
};

}  // namespace ela::data
