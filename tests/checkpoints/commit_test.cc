#include "gmock/gmock.h"
#include "tests/checkpoints/step_testing.h"
#include "tests/checkpoints/test_folder.h"

namespace ela::checkpoints {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class CommitTest : public ::testing::Test {
 protected:
  std::unique_ptr<Catalog> Open(int64_t attempt) {
    auto catalog = Catalog::OpenForWriting(path_, attempt);
    EXPECT_TRUE(catalog.ok()) << catalog.status();
    return catalog.ok() ? *std::move(catalog) : nullptr;
  }
  absl::Status Save(Catalog* catalog, int64_t step) {
    SaveOptions options;
    options.step = step;
    options.attempt = catalog->attempt();
    return SaveStep(catalog, path_, model_, options);
  }
  std::vector<int64_t> Steps() {
    std::vector<int64_t> steps;
    const auto catalog = Catalog::OpenForReading(path_);
    EXPECT_TRUE(catalog.ok()) << catalog.status();
    const auto list = (*catalog)->List();
    EXPECT_TRUE(list.ok()) << list.status();
    for (const v1::StepManifest& manifest : *list) steps.push_back(manifest.step());
    return steps;
  }
  std::vector<std::string> Folders() { return *kv::ListDirectory(path_ + "/steps"); }
  absl::Status Compare(int64_t step) {
    const auto reader = OpenCheckpoint(path_ + "@" + std::to_string(step));
    return reader.ok() ? CompareStep(reader->get(), model_) : reader.status();
  }
  v1::StepManifest Written(int64_t step = 100) {
    SaveOptions options;
    options.step = step;
    auto manifest = WriteStep(path_, model_, options);
    EXPECT_TRUE(manifest.ok()) << manifest.status();
    return *manifest;
  }

  TestFolder folder_{FastFolder()};
  const std::string path_ = folder_.path("checkpoints");
  const Model model_{1};
};

TEST_F(CommitTest, NothingIsThereBeforeTheFirstCommit) {
  EXPECT_TRUE(absl::IsNotFound(Catalog::OpenForReading(path_).status()));
  const auto catalog = Open(1);
  EXPECT_FALSE((*catalog->Latest()).has_value());
  Written();
  EXPECT_THAT(Steps(), ElementsAre());
  EXPECT_TRUE(absl::IsNotFound(OpenCheckpoint(path_).status()));
}

TEST_F(CommitTest, CommittedStepsAscend) {
  const auto catalog = Open(1);
  for (const int64_t step : {9, 10, 200}) ASSERT_EQ(Save(catalog.get(), step), absl::OkStatus());
  EXPECT_THAT(Steps(), ElementsAre(9, 10, 200));
  EXPECT_EQ((*catalog->Latest())->step(), 200);
  EXPECT_TRUE(absl::IsNotFound(catalog->Get(11).status()));
}

TEST_F(CommitTest, ANewerAttemptFencesTheOlder) {
  const auto old = Open(1);
  const v1::StepManifest late = Written(100);
  const auto fresh = Open(2);
  EXPECT_TRUE(absl::IsFailedPrecondition(old->Commit(late)));
  EXPECT_TRUE(absl::IsFailedPrecondition(old->Collect(1, 0)));
  EXPECT_TRUE(absl::IsFailedPrecondition(Catalog::OpenForWriting(path_, 1).status()));
  EXPECT_THAT(Steps(), ElementsAre());
  EXPECT_EQ(Save(fresh.get(), 100), absl::OkStatus());
  EXPECT_EQ(Compare(100), absl::OkStatus());
}

TEST_F(CommitTest, AttemptZeroTakesTheNextNumber) {
  EXPECT_EQ(Open(0)->attempt(), 1);
  EXPECT_EQ(Open(0)->attempt(), 2);
  EXPECT_EQ(Open(7)->attempt(), 7);
  EXPECT_EQ(Open(0)->attempt(), 8);
}

TEST_F(CommitTest, ANewerAttemptClearsWhatTheOlderLeft) {
  Open(1);
  Written(100);
  EXPECT_THAT(Folders(), ElementsAre("000000000100.1"));
  Open(2);
  EXPECT_THAT(Folders(), ElementsAre());
}

TEST_F(CommitTest, AStepSavedAgainReplacesTheOlderAttempts) {
  ASSERT_EQ(Save(Open(1).get(), 100), absl::OkStatus());
  const auto catalog = Open(2);
  ASSERT_EQ(Save(catalog.get(), 100), absl::OkStatus());
  EXPECT_EQ(catalog->Get(100)->attempt(), 2);
  ASSERT_EQ(catalog->Collect(2, 0), absl::OkStatus());
  EXPECT_THAT(Folders(), ElementsAre("000000000100.2"));
  EXPECT_EQ(Compare(100), absl::OkStatus());
}

TEST_F(CommitTest, ACommittedShardIsNeverWrittenAgain) {
  ASSERT_EQ(Save(Open(1).get(), 100), absl::OkStatus());
  EXPECT_TRUE(absl::IsAlreadyExists(WriteStep(path_, Model(2), {}).status()));
  std::filesystem::remove(path_ + "/steps/000000000100.1/COMMIT");
  EXPECT_TRUE(absl::IsAlreadyExists(WriteStep(path_, Model(2), {}).status()));
  EXPECT_EQ(Compare(100), absl::OkStatus());
}

TEST_F(CommitTest, AShardOfADeadWriterIsReplaced) {
  const auto catalog = Open(1);
  ASSERT_TRUE(WriteStep(path_, Model(2), {}).ok());
  std::ofstream(path_ + "/steps/000000000100.1/w00001/000099.sst") << "left by the dead";
  ASSERT_EQ(Save(catalog.get(), 100), absl::OkStatus());
  EXPECT_EQ(Compare(100), absl::OkStatus());
}

TEST_F(CommitTest, RefusesAHole) {
  const auto catalog = Open(1);
  v1::StepManifest manifest = Written();
  v1::WriterManifest* writer = manifest.mutable_writers(1);
  const v1::PieceRecord lost = writer->pieces(0);
  writer->mutable_pieces()->DeleteSubrange(0, 1);
  writer->set_bytes(writer->bytes() - 4 * (lost.end() - lost.begin()));
  const absl::Status status = catalog->Commit(manifest);
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(lost.tensor()), HasSubstr("by nobody"),
                    HasSubstr("[" + std::to_string(lost.begin()) + ", " +
                              std::to_string(lost.end()) + ")")));
  EXPECT_THAT(Steps(), ElementsAre());
}

TEST_F(CommitTest, RefusesDoubledElements) {
  const auto catalog = Open(1);
  v1::StepManifest manifest = Written();
  v1::PieceRecord* piece = manifest.mutable_writers(1)->mutable_pieces(0);
  piece->set_begin(piece->begin() - 3);
  manifest.mutable_writers(1)->set_bytes(manifest.writers(1).bytes() + 12);
  const absl::Status status = catalog->Commit(manifest);
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(piece->tensor()), HasSubstr("twice"),
                    HasSubstr("[" + std::to_string(piece->begin()) + ", " +
                              std::to_string(piece->begin() + 3) + ")")));
}

TEST_F(CommitTest, RefusesElementsOfAnotherSize) {
  const auto catalog = Open(1);
  v1::StepManifest manifest = Written();
  manifest.mutable_tensors(0)->set_dtype("bf16");
  EXPECT_THAT(std::string(catalog->Commit(manifest).message()), HasSubstr("dtypes"));
  manifest.mutable_tensors(0)->set_dtype("f31");
  EXPECT_THAT(std::string(catalog->Commit(manifest).message()), HasSubstr("f31"));
}

TEST_F(CommitTest, RefusesOverlapWithinAWriter) {
  const float data[8] = {};
  const auto written = WriteShard({path_, 1, 1, 0}, {{"t", 0, 5, data}, {"t", 4, 8, data}});
  EXPECT_TRUE(absl::IsInvalidArgument(written.status())) << written.status();
  EXPECT_FALSE(kv::Exists(path_));
}

TEST_F(CommitTest, RetentionKeepsTheNewestAndTheMultiples) {
  const auto catalog = Open(1);
  for (int64_t step = 10; step <= 70; step += 10) {
    ASSERT_EQ(Save(catalog.get(), step), absl::OkStatus());
  }
  ASSERT_EQ(catalog->Collect(2, 30), absl::OkStatus());
  EXPECT_THAT(Steps(), ElementsAre(30, 60, 70));
  EXPECT_THAT(Folders(), ElementsAre("000000000030.1", "000000000060.1", "000000000070.1"));
  ASSERT_EQ(catalog->Collect(0, 0), absl::OkStatus());
  EXPECT_THAT(Steps(), ElementsAre(70)) << "never the newest";
  EXPECT_EQ(Compare(70), absl::OkStatus());
}

TEST_F(CommitTest, RetentionKeepsWhatIsCommittedBelowStepsThatCouldNotBeRead) {
  {
    const auto first = Open(1);
    for (const int64_t step : {10, 20, 30}) ASSERT_EQ(Save(first.get(), step), absl::OkStatus());
  }
  const auto second = Open(2);  // went on from step 10
  for (const int64_t step : {12, 14}) ASSERT_EQ(Save(second.get(), step), absl::OkStatus());
  Written(16);  // may be under way
  ASSERT_EQ(second->Collect(1, 0), absl::OkStatus());
  EXPECT_THAT(Steps(), ElementsAre(14, 20, 30));
  EXPECT_EQ(Compare(14), absl::OkStatus());
}

TEST_F(CommitTest, RetentionClearsSavesThatFailedBeforeTheNewestCommit) {
  const auto catalog = Open(1);
  Written(90);
  ASSERT_EQ(Save(catalog.get(), 100), absl::OkStatus());
  Written(110);  // may be under way
  ASSERT_EQ(catalog->Collect(1, 0), absl::OkStatus());
  EXPECT_THAT(Folders(), ElementsAre("000000000100.1", "000000000110.1"));
}

TEST_F(CommitTest, TheCatalogIsMadeAnewFromTheCommitFiles) {
  const auto catalog = Open(1);
  for (const int64_t step : {10, 20}) ASSERT_EQ(Save(catalog.get(), step), absl::OkStatus());
  std::filesystem::remove_all(path_ + "/catalog");
  EXPECT_THAT(Steps(), ElementsAre(10, 20));
  const auto fresh = Open(2);
  ASSERT_EQ(Save(fresh.get(), 30), absl::OkStatus());
  EXPECT_THAT(Steps(), ElementsAre(10, 20, 30));
  EXPECT_EQ(Compare(10), absl::OkStatus());
}

TEST_F(CommitTest, AMissingCommitFileIsWrittenAgain) {
  ASSERT_EQ(Save(Open(1).get(), 10), absl::OkStatus());
  const std::string copy = path_ + "/steps/000000000010.1/COMMIT";
  std::filesystem::remove(copy);
  EXPECT_THAT(Steps(), ElementsAre(10));
  Open(2);
  EXPECT_TRUE(kv::Exists(copy));
}

TEST_F(CommitTest, ManyCommitsLeaveASmallCatalog) {
  const auto catalog = Open(1);
  v1::StepManifest manifest;
  manifest.set_attempt(1);
  for (int64_t step = 1; step <= 60; ++step) {
    manifest.set_step(step);
    ASSERT_EQ(catalog->Commit(manifest), absl::OkStatus());
  }
  EXPECT_EQ(Steps().size(), 60u);
  EXPECT_LT(kv::ListDirectory(path_ + "/catalog")->size(), 30u);
}

}  // namespace
}  // namespace ela::checkpoints
