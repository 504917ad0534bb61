// XXH3, 64 bits: the hash of pieces, files and sealed manifests.
#pragma once

#include <xxhash.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace ela::checkpoints {

inline uint64_t Xxh3(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

class Xxh3Stream {
 public:
  Xxh3Stream() : state_(XXH3_createState()) { Reset(); }
  void Reset() { XXH3_64bits_reset(state_.get()); }
  void Update(const void* data, size_t bytes) { XXH3_64bits_update(state_.get(), data, bytes); }
  uint64_t Digest() const { return XXH3_64bits_digest(state_.get()); }

 private:
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Free> state_;
};

struct FileDigest {
  int64_t bytes = 0;
  uint64_t xxh3 = 0;
};
/// Reads the whole file. Errors as in kv::ReadFile.
absl::StatusOr<FileDigest> DigestFile(const std::string& path);

}  // namespace ela::checkpoints
