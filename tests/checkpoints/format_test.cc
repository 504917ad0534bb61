// Holds FORMAT.md's worked example to the code.
#include "absl/strings/escaping.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/layout.h"
#include "gtest/gtest.h"
#include "rocksdb/db.h"
#include "tests/checkpoints/test_folder.h"

namespace ela::checkpoints {
namespace {

std::vector<std::pair<std::string, std::string>> ReadAll(const std::string& shard) {
  const std::vector<rocksdb::ColumnFamilyDescriptor> families = {
      {rocksdb::kDefaultColumnFamilyName, rocksdb::ColumnFamilyOptions()}};
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* opened = nullptr;
  const rocksdb::Status status =
      rocksdb::DB::OpenForReadOnly(rocksdb::DBOptions(), shard, families, &handles, &opened);
  EXPECT_TRUE(status.ok()) << status.ToString();
  std::unique_ptr<rocksdb::DB> db(opened);
  std::vector<std::pair<std::string, std::string>> entries;
  {
    std::unique_ptr<rocksdb::Iterator> it(db->NewIterator(rocksdb::ReadOptions(), handles[0]));
    for (it->SeekToFirst(); it->Valid(); it->Next()) {
      entries.emplace_back(it->key().ToString(), it->value().ToString());
    }
  }
  db->DestroyColumnFamilyHandle(handles[0]).PermitUncheckedError();
  return entries;
}

TEST(FormatTest, TheWorkedExampleHolds) {
  const TestFolder folder(FastFolder());
  const float values[] = {1, 2, 3};
  const auto written =
      WriteShard({folder.path(), 7, 1, 0, /*chunk_bytes=*/8}, {{"t", 0, 3, values}});
  ASSERT_TRUE(written.ok()) << written.status();
  const auto entries = ReadAll(folder.path("steps/000000000007.1/w00000"));
  ASSERT_EQ(entries.size(), 3u);
  const auto hex = [](const std::string& bytes) { return absl::BytesToHexString(bytes); };
  EXPECT_EQ(hex(entries[0].first), "64000000000000000000000000");
  EXPECT_EQ(hex(entries[0].second), "0000803f00000040");
  EXPECT_EQ(hex(entries[1].first), "64000000000000000000000001");
  EXPECT_EQ(hex(entries[1].second), "00004040");
  EXPECT_EQ(entries[2].first, "m");
  EXPECT_EQ(hex(entries[2].second), "120e0a0174180321627d81acb9fb7779200c2808");
}

TEST(FormatTest, ASealedManifestOpensOrIsRefused) {
  v1::StepManifest manifest;
  manifest.set_step(7);
  const std::string sealed = Seal(manifest);
  EXPECT_EQ(sealed.substr(0, 8), "ELACMT1\n");
  EXPECT_EQ(absl::BytesToHexString(sealed.substr(16)), "0807");
  EXPECT_EQ(Unseal(sealed, "COMMIT")->step(), 7);
  for (size_t i = 0; i < sealed.size(); ++i) {
    std::string bad = sealed;
    bad[i] ^= 1;
    EXPECT_TRUE(absl::IsDataLoss(Unseal(bad, "COMMIT").status())) << i;
    EXPECT_TRUE(absl::IsDataLoss(Unseal(sealed.substr(0, i), "COMMIT").status())) << i;
  }
}

TEST(FormatTest, OnlyStepFoldersParseAsSuch) {
  EXPECT_EQ(ParseStepName("000000000120.3")->step, 120);
  EXPECT_EQ(ParseStepName("000000000120.3")->attempt, 3);
  for (const char* name : {"", ".", "120.3", "000000000120", "000000000120.03", "000000000120.3x",
                           ".removed-000000000120.3", "000000000120.", "00000000012a.3"}) {
    EXPECT_FALSE(ParseStepName(name).has_value()) << name;
  }
}

}  // namespace
}  // namespace ela::checkpoints
