#include <set>
#include <thread>

#include "gmock/gmock.h"
#include "tests/checkpoints/step_testing.h"
#include "tests/checkpoints/test_folder.h"

namespace ela::checkpoints {
namespace {

using ::testing::HasSubstr;

class RoundTripTest : public ::testing::Test {
 protected:
  void Save(const SaveOptions& options) {
    auto catalog = Catalog::OpenForWriting(path_, options.attempt);
    ASSERT_TRUE(catalog.ok()) << catalog.status();
    const absl::Status saved = SaveStep(catalog->get(), path_, model_, options);
    ASSERT_TRUE(saved.ok()) << saved;
  }
  std::unique_ptr<StepReader> Open(const std::string& path_at_step) {
    auto reader = OpenCheckpoint(path_at_step);
    EXPECT_TRUE(reader.ok()) << reader.status();
    return reader.ok() ? *std::move(reader) : nullptr;
  }

  TestFolder folder_{FastFolder()};
  const std::string path_ = folder_.path("checkpoints");
  const Model model_{1};
};

TEST_F(RoundTripTest, EveryMeshReadsWhatEveryMeshWrote) {
  for (const int writers : {1, 2, 5, 8}) {
    SaveOptions options;
    options.step = writers;
    options.world = writers;
    Save(options);
    const auto reader = Open(path_ + "@" + std::to_string(writers));
    for (const int readers : {1, 2, 3, 7}) {
      EXPECT_EQ(CompareStep(reader.get(), model_, readers), absl::OkStatus())
          << writers << " to " << readers;
    }
  }
}

TEST_F(RoundTripTest, EverySingleElementCanBeRead) {
  Save({});
  const auto reader = Open(path_);
  const std::vector<float>& values = model_.values().at("model/embed.weight");
  for (int64_t i = 0; i < static_cast<int64_t>(values.size()); ++i) {
    float value = -1;
    ASSERT_TRUE(reader->Read("model/embed.weight", i, i + 1, &value).ok()) << i;
    ASSERT_EQ(value, values[static_cast<size_t>(i)]) << i;
  }
  EXPECT_TRUE(reader->Read("model/embed.weight", 5, 5, nullptr).ok());
}

TEST_F(RoundTripTest, AChunkNeedNotHoldWholeElements) {
  SaveOptions options;
  options.chunk_bytes = 510;
  Save(options);
  EXPECT_EQ(CompareStep(Open(path_).get(), model_, 3), absl::OkStatus());
}

TEST_F(RoundTripTest, ManyThreadsShareAReader) {
  Save({});
  const auto reader = Open(path_);
  std::vector<absl::Status> results(4);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] { results[i] = CompareStep(reader.get(), model_, i + 1); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& result : results) EXPECT_EQ(result, absl::OkStatus());
}

TEST_F(RoundTripTest, AVerifiedStepHasNoDamage) {
  Save({});
  std::vector<absl::Status> damage;
  const absl::Status read =
      Open(path_)->Verify([&](const absl::Status& fault) { damage.push_back(fault); });
  EXPECT_TRUE(read.ok()) << read;
  EXPECT_TRUE(damage.empty()) << damage[0];
}

TEST_F(RoundTripTest, SavingTwiceWritesTheSameBytes) {
  const auto first = WriteStep(path_, model_, {});
  const auto second = WriteStep(folder_.path("other"), model_, {});
  ASSERT_TRUE(first.ok() && second.ok());
  for (int i = 0; i < first->writers_size(); ++i) {
    ASSERT_EQ(first->writers(i).pieces_size(), second->writers(i).pieces_size());
    for (int j = 0; j < first->writers(i).pieces_size(); ++j) {
      EXPECT_EQ(first->writers(i).pieces(j).xxh3(), second->writers(i).pieces(j).xxh3());
    }
  }
}

TEST_F(RoundTripTest, OnlyWhatReadingNeedsStaysInAShard) {
  Save({});
  std::set<std::string> names;
  for (const std::string& file : FilesEndingWith(path_ + "/steps/000000000100.1/w00001", "")) {
    const std::string name = std::filesystem::path(file).filename();
    names.insert(name.substr(0, name.find_first_of("0123456789")) +
                 std::string(std::filesystem::path(name).extension()));
  }
  EXPECT_EQ(names, (std::set<std::string>{"CURRENT", "MANIFEST-", ".sst"}));
}

TEST_F(RoundTripTest, AWriterMayHoldNothing) {
  auto catalog = Catalog::OpenForWriting(path_, 1);
  auto manifest = WriteStep(path_, model_, {});
  ASSERT_TRUE(manifest.ok());
  const WriteOptions write = {path_, 100, 1, 3, 512, 4096};
  const auto empty = WriteShard(write, {});
  ASSERT_TRUE(empty.ok()) << empty.status();
  *manifest->add_writers() = *empty;
  ASSERT_TRUE((*catalog)->Commit(*manifest).ok());
  EXPECT_EQ(CompareStep(Open(path_).get(), model_), absl::OkStatus());
}

TEST_F(RoundTripTest, RefusesWhatIsNotThere) {
  Save({});
  const auto reader = Open(path_);
  float value;
  EXPECT_TRUE(absl::IsNotFound(reader->Read("model/no.such", 0, 1, &value)));
  EXPECT_TRUE(absl::IsInvalidArgument(reader->Read("model/embed.weight", 0, 9999, &value)));
  EXPECT_TRUE(absl::IsInvalidArgument(reader->Read("model/embed.weight", -1, 1, &value)));
  EXPECT_TRUE(absl::IsInvalidArgument(reader->Read("model/embed.weight", 2, 1, &value)));
}

TEST_F(RoundTripTest, FindsStepsAsUsersNameThem) {
  for (const int64_t step : {100, 200}) {
    SaveOptions options;
    options.step = step;
    Save(options);
  }
  EXPECT_EQ(Open(path_)->manifest().step(), 200);
  EXPECT_EQ(Open(path_ + "@100")->manifest().step(), 100);
  EXPECT_EQ(Open(folder_.path() + "@100")->manifest().step(), 100) << "a run folder";
  const auto missing = OpenCheckpoint(path_ + "@150");
  EXPECT_TRUE(absl::IsNotFound(missing.status()));
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("100 200"));
  EXPECT_TRUE(absl::IsInvalidArgument(OpenCheckpoint(path_ + "@last").status()));
  EXPECT_TRUE(absl::IsNotFound(OpenCheckpoint(folder_.path("nowhere")).status()));
}

TEST_F(RoundTripTest, ARunFolderNamesItsCheckpointsElsewhere) {
  Save({});
  std::filesystem::create_directory(folder_.path("run"));
  std::ofstream(folder_.path("run/job.resolved.yaml"))
      << "apiVersion: ela/v1\nkind: TrainingJob\nspec: {checkpoint: {path: " << path_ << "}}\n";
  EXPECT_EQ(Open(folder_.path("run"))->manifest().step(), 100);
}

}  // namespace
}  // namespace ela::checkpoints
