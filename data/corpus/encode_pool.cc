#include "data/corpus/encode_pool.h"

#include <utility>

namespace ela::data {

EncodePool::EncodePool(ChunkReader* reader, const Tokenizer* tokenizer,
                       const EncodeOptions& options, int threads)
    : reader_(reader),
      tokenizer_(tokenizer),
      options_(options),
      limit_(static_cast<size_t>(threads) * 4 + 4) {
  threads_.emplace_back([this] { Read(); });
  for (int t = 0; t < threads; ++t) threads_.emplace_back([this] { Work(); });
}

EncodePool::~EncodePool() {
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

void EncodePool::Read() {
  for (;;) {
    auto job = std::make_shared<Job>();
    const absl::StatusOr<bool> more = reader_->Next(&job->chunk);
    absl::MutexLock lock(&mutex_);
    consumed_ = reader_->consumed();
    if (!more.ok() || !*more) {
      read_status_ = more.status();
      read_all_ = true;
      return;
    }
    mutex_.Await(absl::Condition(this, &EncodePool::MayRead));
    if (stop_) return;
    jobs_.push_back(job);
    waiting_.push_back(std::move(job));
  }
}

void EncodePool::Work() {
  for (;;) {
    std::shared_ptr<Job> job;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &EncodePool::HasWork));
      if (stop_ || waiting_.empty()) return;
      job = std::move(waiting_.front());
      waiting_.pop_front();
    }
    absl::StatusOr<EncodedChunk> result = EncodeChunk(job->chunk, *tokenizer_, options_);
    job->chunk.bytes = {};
    absl::MutexLock lock(&mutex_);
    job->result = std::move(result);
    job->done = true;
  }
}

absl::StatusOr<std::optional<EncodedChunk>> EncodePool::Next() {
  std::shared_ptr<Job> job;
  {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(this, &EncodePool::FrontIsReady));
    if (jobs_.empty()) {
      if (!read_status_.ok()) return read_status_;
      return std::optional<EncodedChunk>();
    }
    job = std::move(jobs_.front());
    jobs_.pop_front();
  }
  if (!job->result.ok()) return job->result.status();
  return std::optional<EncodedChunk>(*std::move(job->result));
}

int64_t EncodePool::consumed() const {
  absl::MutexLock lock(&mutex_);
  return consumed_;
}

}  // namespace ela::data
