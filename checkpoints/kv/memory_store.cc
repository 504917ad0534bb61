// KeyValueStore in memory.
#include <algorithm>
#include <map>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "checkpoints/kv/key_value_store.h"

namespace ela::kv {
namespace {

class MemoryStore : public KeyValueStore {
 public:
  absl::StatusOr<std::optional<std::string>> Get(std::string_view key) override
      ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    const auto it = entries_.find(key);
    if (it == entries_.end()) return std::optional<std::string>();
    return std::optional<std::string>(it->second);
  }

  absl::Status Write(const Batch& batch) override ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    for (const auto& [key, value] : batch.changes()) {
      if (value.has_value()) {
        entries_[key] = *value;
      } else {
        entries_.erase(key);
      }
    }
    return absl::OkStatus();
  }

  // Visits a snapshot, as RocksDB's iterators do, so that `visit` may call the store.
  absl::Status Scan(std::string_view prefix, std::string_view from,
                    const std::function<bool(std::string_view, std::string_view)>& visit) override
      ABSL_LOCKS_EXCLUDED(mutex_) {
    std::vector<std::pair<std::string, std::string>> found;
    {
      absl::MutexLock lock(&mutex_);
      for (auto it = entries_.lower_bound(std::max(prefix, from));
           it != entries_.end() && it->first.starts_with(prefix); ++it) {
        found.emplace_back(*it);
      }
    }
    for (const auto& [key, value] : found) {
      if (!visit(key, value)) break;
    }
    return absl::OkStatus();
  }

 private:
  absl::Mutex mutex_;
  std::map<std::string, std::string, std::less<>> entries_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::unique_ptr<KeyValueStore> MakeMemoryStore() { return std::make_unique<MemoryStore>(); }

}  // namespace ela::kv
