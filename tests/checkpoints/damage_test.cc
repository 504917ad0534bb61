// Bits flip, files are torn and vanish: everything is found and named, and nothing wrong is read.
#include <set>

#include "gmock/gmock.h"
#include "tests/checkpoints/step_testing.h"
#include "tests/checkpoints/test_folder.h"

namespace ela::checkpoints {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class DamageTest : public ::testing::Test {
 protected:
  void SetUp() override {
    catalog_ = *Catalog::OpenForWriting(path_, 1);
    ASSERT_EQ(SaveStep(catalog_.get(), path_, model_, {}), absl::OkStatus());
    manifest_ = *catalog_->Get(100);
  }
  std::string StepFile(const std::string& name) const {
    return path_ + "/steps/000000000100.1/" + name;
  }
  std::vector<std::string> ShardFiles() const { return FilesEndingWith(StepFile("w00001"), ""); }

  std::vector<std::string> Verify() {
    std::vector<std::string> damage;
    auto reader = StepReader::Open(path_, manifest_);
    EXPECT_TRUE(reader.ok()) << reader.status();
    const absl::Status read = (*reader)->Verify([&](const absl::Status& fault) {
      EXPECT_TRUE(absl::IsDataLoss(fault)) << fault;
      damage.push_back(std::string(fault.message()));
    });
    EXPECT_TRUE(read.ok()) << read;
    return damage;
  }
  // OK with the right values, or DataLoss; anything else is a failure.
  absl::Status Compare() {
    auto reader = StepReader::Open(path_, manifest_);
    const absl::Status status = reader.ok() ? CompareStep(reader->get(), model_) : reader.status();
    EXPECT_TRUE(status.ok() || absl::IsDataLoss(status)) << status;
    return status;
  }

  TestFolder folder_{FastFolder()};
  const std::string path_ = folder_.path("checkpoints");
  const Model model_{1};
  std::unique_ptr<Catalog> catalog_;
  v1::StepManifest manifest_;
};

TEST_F(DamageTest, AFlippedBitAnywhereInAShardIsFoundAndNamed) {
  const std::vector<std::string> files = ShardFiles();
  ASSERT_GE(files.size(), 4u) << "CURRENT, MANIFEST and at least two tables";
  int flips = 0;
  for (const std::string& file : files) {
    for (int64_t byte = 0; byte < FileBytes(file); byte += 61) {
      FlipBit(file, byte, static_cast<int>(byte % 8));
      const std::vector<std::string> damage = Verify();
      ASSERT_FALSE(damage.empty()) << file << " byte " << byte;
      EXPECT_THAT(damage[0], HasSubstr(file)) << byte;
      Compare().IgnoreError();  // right or refused
      FlipBit(file, byte, static_cast<int>(byte % 8));
      ++flips;
    }
  }
  EXPECT_GT(flips, 50);
  EXPECT_EQ(Compare(), absl::OkStatus());
}

TEST_F(DamageTest, AFlippedBitInATensorNamesTensorIntervalAndFile) {
  const std::string table = ShardFiles()[0];
  FlipBit(table, 700);  // in the second chunk of its first piece
  const v1::PieceRecord& piece = manifest_.writers(1).pieces(0);
  const std::string interval =
      "[" + std::to_string(piece.begin() + 128) + ", " + std::to_string(piece.begin() + 256) + ")";
  const auto expected = AllOf(HasSubstr(piece.tensor()), HasSubstr(interval), HasSubstr(table));
  const std::vector<std::string> damage = Verify();
  ASSERT_EQ(damage.size(), 1u);
  EXPECT_THAT(damage[0], expected);
  const absl::Status read = Compare();
  EXPECT_TRUE(absl::IsDataLoss(read));
  EXPECT_THAT(std::string(read.message()), expected);
}

TEST_F(DamageTest, WhatIsWholeCanBeReadBesideWhatIsNot) {
  FlipBit(ShardFiles()[0], 700);
  const auto reader = *StepReader::Open(path_, manifest_);
  const v1::PieceRecord& whole = manifest_.writers(0).pieces(0);
  std::vector<float> values(static_cast<size_t>(whole.end() - whole.begin()));
  EXPECT_TRUE(reader->Read(whole.tensor(), whole.begin(), whole.end(), values.data()).ok());
}

TEST_F(DamageTest, EveryDamagedChunkIsReported) {
  const std::string table = ShardFiles()[0];
  for (const int64_t byte : {100, 700, 1300}) FlipBit(table, byte);
  EXPECT_EQ(Verify().size(), 3u);
}

TEST_F(DamageTest, TornFilesAreFoundAndNamed) {
  for (const std::string& file : ShardFiles()) {
    for (const int64_t lost : {int64_t{1}, FileBytes(file) / 2, FileBytes(file)}) {
      const std::string aside = folder_.path("aside");
      std::filesystem::copy_file(file, aside, std::filesystem::copy_options::overwrite_existing);
      Truncate(file, FileBytes(file) - lost);
      const std::vector<std::string> damage = Verify();
      ASSERT_FALSE(damage.empty()) << file << " lost " << lost;
      EXPECT_THAT(damage[0], HasSubstr(file));
      EXPECT_TRUE(absl::IsDataLoss(Compare()));
      std::filesystem::rename(aside, file);
    }
  }
  EXPECT_EQ(Compare(), absl::OkStatus());
}

TEST_F(DamageTest, MissingFilesAreFoundAndNamed) {
  for (const std::string& file : ShardFiles()) {
    const std::string aside = folder_.path("aside");
    std::filesystem::rename(file, aside);
    const std::vector<std::string> damage = Verify();
    ASSERT_FALSE(damage.empty()) << file;
    EXPECT_THAT(damage[0], AllOf(HasSubstr(file), HasSubstr("missing")));
    EXPECT_TRUE(absl::IsDataLoss(Compare()));
    std::filesystem::rename(aside, file);
  }
}

TEST_F(DamageTest, AMissingShardNamesAllItsPieces) {
  std::filesystem::remove_all(StepFile("w00001"));
  const std::vector<std::string> damage = Verify();
  ASSERT_EQ(damage.size(), static_cast<size_t>(manifest_.writers(1).pieces_size()));
  EXPECT_THAT(damage[0], AllOf(HasSubstr("w00001 is missing"),
                               HasSubstr(manifest_.writers(1).pieces(0).tensor())));
}

TEST_F(DamageTest, AMissingStepIsNotFound) {
  std::filesystem::remove_all(path_ + "/steps/000000000100.1");
  EXPECT_TRUE(absl::IsNotFound(StepReader::Open(path_, manifest_).status()));
}

TEST_F(DamageTest, AShardOfAnotherStepIsRefused) {
  SaveOptions other;
  other.step = 200;
  ASSERT_EQ(SaveStep(catalog_.get(), path_, Model(2), other), absl::OkStatus());
  std::filesystem::remove_all(StepFile("w00001"));
  std::filesystem::copy(path_ + "/steps/000000000200.1/w00001", StepFile("w00001"));
  EXPECT_TRUE(absl::IsDataLoss(Compare()));
  EXPECT_FALSE(Verify().empty());
}

TEST_F(DamageTest, ADamagedCommitFileIsFoundAndMended) {
  const std::string copy = StepFile("COMMIT");
  FlipBit(copy, 100);
  const std::vector<std::string> damage = Verify();
  ASSERT_EQ(damage.size(), 1u);
  EXPECT_THAT(damage[0], HasSubstr(copy));
  ASSERT_TRUE(Catalog::OpenForWriting(path_, 2).ok());
  EXPECT_TRUE(Verify().empty());
}

TEST_F(DamageTest, ADamagedCatalogSaysSoOrIsRight) {
  std::set<absl::StatusCode> codes;
  for (const std::string& file : FilesEndingWith(path_ + "/catalog", "")) {
    for (int64_t byte = 0; byte < FileBytes(file); byte += 211) {
      FlipBit(file, byte, 3);
      const auto catalog = Catalog::OpenForReading(path_);
      codes.insert(catalog.status().code());
      if (catalog.ok()) {
        const auto list = (*catalog)->List();
        ASSERT_TRUE(list.ok()) << list.status();
        ASSERT_EQ(list->size(), 1u) << file << " byte " << byte;
        EXPECT_EQ((*list)[0].SerializeAsString(), manifest_.SerializeAsString());
      }
      FlipBit(file, byte, 3);
    }
  }
  EXPECT_TRUE(codes.count(absl::StatusCode::kDataLoss)) << "no flip was noticed at all";
  EXPECT_FALSE(codes.count(absl::StatusCode::kNotFound)) << "a damaged catalog is no empty one";
}

}  // namespace
}  // namespace ela::checkpoints
