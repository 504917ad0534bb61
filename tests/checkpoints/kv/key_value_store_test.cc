#include "checkpoints/kv/key_value_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/checkpoints/test_folder.h"
#include "tests/checkpoints/worker_process.h"

namespace ela::kv {
namespace {

using ::ela::checkpoints::FileBytes;
using ::ela::checkpoints::FilesEndingWith;
using ::ela::checkpoints::FlipBit;
using ::ela::checkpoints::TestFolder;
using ::ela::checkpoints::Truncate;
using ::ela::checkpoints::WorkerProcess;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

enum class Kind { kRocksDb, kMemory };

class AnyStoreTest : public ::testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    if (GetParam() == Kind::kMemory) {
      store_ = MakeMemoryStore();
      return;
    }
    auto opened = OpenRocksDb(folder_.path("db"), OpenMode::kReadWrite);
    ASSERT_TRUE(opened.ok()) << opened.status();
    store_ = *std::move(opened);
  }
  void Put(const std::string& key, const std::string& value) {
    Batch batch;
    batch.Put(key, value);
    ASSERT_TRUE(store_->Write(batch).ok());
  }
  std::vector<std::string> Keys(std::string_view prefix, std::string_view from = "") {
    std::vector<std::string> keys;
    EXPECT_TRUE(store_
                    ->Scan(prefix, from,
                           [&](std::string_view key, std::string_view) {
                             keys.emplace_back(key);
                             return true;
                           })
                    .ok());
    return keys;
  }
  std::optional<std::string> Get(const std::string& key) { return store_->Get(key).value(); }

  TestFolder folder_;
  std::unique_ptr<KeyValueStore> store_;
};

TEST_P(AnyStoreTest, AbsentKeyIsNoError) { EXPECT_EQ(Get("x"), std::nullopt); }

TEST_P(AnyStoreTest, BatchAppliesInOrder) {
  Batch batch;
  batch.Put("k", "1");
  batch.Delete("k");
  batch.Put("k", "2");
  batch.Put("gone", "1");
  batch.Delete("gone");
  ASSERT_TRUE(store_->Write(batch).ok());
  EXPECT_EQ(Get("k"), "2");
  EXPECT_EQ(Get("gone"), std::nullopt);
}

TEST_P(AnyStoreTest, ScanIsAscendingAndStaysInThePrefix) {
  for (const char* key : {"b/2", "a", "b/10", "b", "c", "b/\xff"}) Put(key, "v");
  EXPECT_THAT(Keys("b/"), ElementsAre("b/10", "b/2", "b/\xff"));
  EXPECT_THAT(Keys("b/", "b/2"), ElementsAre("b/2", "b/\xff"));
  EXPECT_THAT(Keys("b/", "a"), ElementsAre("b/10", "b/2", "b/\xff"));
  EXPECT_EQ(Keys("").size(), 6u);
}

TEST_P(AnyStoreTest, ScanStopsWhenToldAndMayCallTheStore) {
  Put("a", "1");
  Put("b", "2");
  int visits = 0;
  auto status = store_->Scan("", "", [&](std::string_view key, std::string_view value) {
    EXPECT_EQ(Get(std::string(key)), std::string(value));
    Put("z", "3");
    return ++visits < 1;
  });
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(visits, 1);
}

TEST_P(AnyStoreTest, KeysAndValuesHoldAnyBytes) {
  const std::string key("k\0\xff", 3), value("\0v\n", 3);
  Put(key, value);
  EXPECT_EQ(Get(key), value);
  Put("empty", "");
  EXPECT_EQ(Get("empty"), "");
}

INSTANTIATE_TEST_SUITE_P(Stores, AnyStoreTest, ::testing::Values(Kind::kRocksDb, Kind::kMemory),
                         [](const auto& info) {
                           return info.param == Kind::kRocksDb ? "RocksDb" : "Memory";
                         });

class RocksDbStoreTest : public ::testing::Test {
 protected:
  std::string path() const { return folder_.path("db"); }
  absl::StatusOr<std::unique_ptr<KeyValueStore>> Open(OpenMode mode = OpenMode::kReadWrite) {
    return OpenRocksDb(path(), mode);
  }
  // Leaves a log with `count` records of about `bytes` that were never flushed to a table.
  void WriteAndKill(int count) {
    WorkerProcess worker({"count", path()});
    for (int i = 0; i < count; ++i) ASSERT_EQ(worker.ReadLine(), std::to_string(i + 1));
    worker.Kill();
  }
  std::string NewestLog() { return FilesEndingWith(path(), ".log").back(); }

  TestFolder folder_;
};

TEST_F(RocksDbStoreTest, ReopenedStoreHasWhatWasWritten) {
  Batch batch;
  batch.Put("k", "v");
  ASSERT_TRUE(Open().value()->Write(batch).ok());
  EXPECT_EQ(Open().value()->Get("k").value(), "v");
  EXPECT_EQ(Open(OpenMode::kReadOnly).value()->Get("k").value(), "v");
}

TEST_F(RocksDbStoreTest, ReadOnlyRefusesWritesAndMissingFolder) {
  EXPECT_EQ(Open(OpenMode::kReadOnly).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(Open().ok());
  Batch batch;
  batch.Put("k", "v");
  EXPECT_FALSE(Open(OpenMode::kReadOnly).value()->Write(batch).ok());
}

TEST_F(RocksDbStoreTest, ReadOnlyOpensBesideAWriter) {
  WorkerProcess worker({"count", path()});
  ASSERT_EQ(worker.ReadLine(), "1");
  auto reader = Open(OpenMode::kReadOnly);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ((*reader)->Get("a").value(), (*reader)->Get("b").value());
}

TEST_F(RocksDbStoreTest, LockOfAnotherProcessIsNamedWithItsPid) {
  WorkerProcess worker({"hold", path()});
  ASSERT_EQ(worker.ReadLine(), "open");
  const absl::Status status = Open().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("in use by another process (pid " + std::to_string(worker.pid())));
}

TEST_F(RocksDbStoreTest, SecondOpenInOneProcessIsRefused) {
  auto first = Open();
  EXPECT_THAT(std::string(Open().status().message()), HasSubstr("already open in this process"));
}

TEST_F(RocksDbStoreTest, KilledWriterLosesNoAcknowledgedBatch) {
  int last = 0;
  for (int round = 1; round <= 5; ++round) {
    WorkerProcess worker({"count", path()});
    std::string line;
    for (int i = 0; i < 17 * round; ++i) line = worker.ReadLine();
    worker.Kill();
    last = std::stoi(worker.ReadLastLine(line));
    auto store = Open();
    ASSERT_TRUE(store.ok()) << store.status();
    const int a = std::stoi((*store)->Get("a").value().value());
    EXPECT_GE(a, last);
    EXPECT_LE(a, last + 1);  // the batch in flight may have become durable
    EXPECT_EQ((*store)->Get("b").value(), std::to_string(a));
  }
}

TEST_F(RocksDbStoreTest, TornTailRecovers) {
  WriteAndKill(20);
  const std::string log = NewestLog();
  Truncate(log, FileBytes(log) - 3);
  auto store = Open();
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_GE(std::stoi((*store)->Get("a").value().value()), 19);
  EXPECT_EQ((*store)->Get("a").value(), (*store)->Get("b").value());
}

TEST_F(RocksDbStoreTest, CorruptedMiddleIsRefusedWithTheFile) {
  WriteAndKill(20);
  const std::string log = NewestLog();
  FlipBit(log, FileBytes(log) / 2, 3);
  const absl::Status status = Open().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(log.substr(log.rfind('/') + 1)));
}

}  // namespace
}  // namespace ela::kv
