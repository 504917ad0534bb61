// Room for ids that are written by pointer, before they go to a vector.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "data/tokenizer/word_cache.h"

namespace ela::data {

/// Usage: at Begin(), then for every word Reserve, write, Commit the end; Finish at last.
class IdBuffer {
 public:
  void Begin(std::vector<int32_t>* ids) {
    ids_ = ids;
    next_ = buffer_.get();
  }
  /// Where `count` ids may be written, and WordCache::kSlack behind them.
  int32_t* Reserve(size_t count) {
    if (static_cast<size_t>(buffer_.get() + capacity_ - next_) < count + WordCache::kSlack) {
      MakeRoom(count + WordCache::kSlack);
    }
    return next_;
  }
  void Commit(int32_t* end) { next_ = end; }
  void Finish() {
    ids_->insert(ids_->end(), buffer_.get(), next_);
    next_ = buffer_.get();
  }

 private:
  void MakeRoom(size_t count) {
    Finish();
    if (count > capacity_) {
      capacity_ = count;
      buffer_ = std::make_unique_for_overwrite<int32_t[]>(capacity_);
    }
    next_ = buffer_.get();
  }

  size_t capacity_ = size_t{1} << 14;
  std::unique_ptr<int32_t[]> buffer_ = std::make_unique_for_overwrite<int32_t[]>(capacity_);
  int32_t* next_ = buffer_.get();
  std::vector<int32_t>* ids_ = nullptr;
};

}  // namespace ela::data
