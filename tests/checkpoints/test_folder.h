// A temporary folder of one test, and the damage tests do to files in it.
#pragma once

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "checkpoints/kv/files.h"
#include "gtest/gtest.h"

namespace ela::checkpoints {

class TestFolder {
 public:
  TestFolder() : TestFolder(std::filesystem::temp_directory_path()) {}
  explicit TestFolder(const std::filesystem::path& parent) {
    std::string pattern = (parent / "ela-test-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TestFolder() { kv::RemoveTree(path_).IgnoreError(); }
  std::string path(const std::string& name = "") const {
    return name.empty() ? path_ : path_ + "/" + name;
  }

 private:
  std::string path_;
};

/// Memory, where there is such a place: for tests of many small synced files that do not need a
/// disk.
inline std::filesystem::path FastFolder() {
  return ::access("/dev/shm", W_OK) == 0 ? "/dev/shm" : std::filesystem::temp_directory_path();
}

/// Files below `folder` whose name ends with `suffix`, sorted.
inline std::vector<std::string> FilesEndingWith(const std::string& folder,
                                                const std::string& suffix) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    const std::string path = entry.path().string();
    if (entry.is_regular_file() && path.ends_with(suffix)) files.push_back(path);
  }
  std::sort(files.begin(), files.end());
  return files;
}

inline void FlipBit(const std::string& file, int64_t byte, int bit = 0) {
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekg(byte);
  const char old = static_cast<char>(stream.get());
  stream.seekp(byte);
  stream.put(static_cast<char>(old ^ (1 << bit)));
  ASSERT_TRUE(stream.good()) << file << " byte " << byte;
}

inline int64_t FileBytes(const std::string& file) {
  return static_cast<int64_t>(std::filesystem::file_size(file));
}

inline void Truncate(const std::string& file, int64_t bytes) {
  std::filesystem::resize_file(file, static_cast<uintmax_t>(bytes));
}

}  // namespace ela::checkpoints
