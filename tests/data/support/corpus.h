// Fixture verbs for tests over token shards: a fresh folder, corpora with known ids, bytes of
// files.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "data/shards/shard_writer.h"

namespace ela::data::testing {

/// A folder of its own for each test, gone with it.
class TempFolder : public ::testing::Test {
 protected:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "ela-data-XXXXXX").string();
    folder_ = mkdtemp(pattern.data());
  }
  ~TempFolder() override { std::filesystem::remove_all(folder_); }
  std::string Path(const std::string& name) const { return folder_ + "/" + name; }

  std::string folder_;
};

inline std::string ReadBytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void WriteBytes(const std::string& path, const std::string& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << bytes;
  ASSERT_TRUE(out.good()) << path;
}

using Documents = std::vector<std::vector<int32_t>>;

/// Documents of the given lengths; every token of the corpus has another id, so that a window tells
/// where it is from.
inline Documents CountingDocuments(const std::vector<int>& lengths, int32_t first = 0) {
  Documents documents;
  for (const int length : lengths) {
    documents.emplace_back();
    for (int i = 0; i < length; ++i) documents.back().push_back(first++);
  }
  return documents;
}

inline std::vector<int32_t> Stream(const Documents& documents) {
  std::vector<int32_t> out;
  for (const auto& document : documents) out.insert(out.end(), document.begin(), document.end());
  return out;
}

inline void WriteCorpus(const std::string& prefix, const Documents& documents,
                        int64_t vocab_size = 1 << 20, const std::string& tokenizer_hash = "") {
  auto writer = ShardWriter::Create({prefix, vocab_size, tokenizer_hash, 0});
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (const auto& document : documents) {
    ASSERT_TRUE((*writer)->Add(document, static_cast<int64_t>(document.size())).ok());
  }
  const absl::Status sealed = (*writer)->Seal();
  ASSERT_TRUE(sealed.ok()) << sealed;
}

}  // namespace ela::data::testing
