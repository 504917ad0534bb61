// Working memory that threads take and give back, so that a const, thread-safe call need not
// allocate.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace ela::data {

template <typename T>
class ScratchPool {
 public:
  /// A T of one's own until the handle goes; as many exist as were in use at once.
  class Handle {
   public:
    Handle(ScratchPool* pool, std::unique_ptr<T> scratch)
        : pool_(pool), scratch_(std::move(scratch)) {}
    Handle(Handle&&) = default;
    ~Handle() {
      if (scratch_ != nullptr) pool_->Put(std::move(scratch_));
    }
    T* get() const { return scratch_.get(); }
    T* operator->() const { return scratch_.get(); }

   private:
    ScratchPool* pool_;
    std::unique_ptr<T> scratch_;
  };

  Handle Get() {
    std::unique_ptr<T> scratch;
    {
      absl::MutexLock lock(&mutex_);
      if (!idle_.empty()) {
        scratch = std::move(idle_.back());
        idle_.pop_back();
      }
    }
    if (scratch == nullptr) scratch = std::make_unique<T>();
    return Handle(this, std::move(scratch));
  }

 private:
  void Put(std::unique_ptr<T> scratch) {
    absl::MutexLock lock(&mutex_);
    idle_.push_back(std::move(scratch));
  }

  absl::Mutex mutex_;
  std::vector<std::unique_ptr<T>> idle_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ela::data
