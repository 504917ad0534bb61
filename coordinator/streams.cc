#include "coordinator/streams.h"

namespace ela::coordinator {

int64_t StreamHub::Add(const std::string& job_id, std::function<void()> pump) {
  absl::MutexLock lock(&mutex_);
  const int64_t key = next_key_++;
  streams_[key] = {job_id, std::move(pump)};
  return key;
}

void StreamHub::Remove(int64_t key) {
  absl::MutexLock lock(&mutex_);
  streams_.erase(key);
}

void StreamHub::Wake(const std::string& job_id) {
  absl::MutexLock lock(&mutex_);
  for (const auto& [key, stream] : streams_) {
    if (stream.job_id == job_id) executor_->Post(stream.pump);
  }
}

void StreamHub::WakeAll() {
  absl::MutexLock lock(&mutex_);
  for (const auto& [key, stream] : streams_) executor_->Post(stream.pump);
}

void StreamHub::StopAll() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  WakeAll();
}

bool StreamHub::stopping() const {
  absl::MutexLock lock(&mutex_);
  return stopping_;
}

}  // namespace ela::coordinator
