#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "gmock/gmock.h"
#include "tests/checkpoints/step_testing.h"
#include "tests/checkpoints/test_folder.h"

namespace ela::checkpoints {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

/// No file of this process grows beyond the limit, while it lives.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit = {bytes, old_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &old_);
    ::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit old_;
  void (*handler_)(int);
};

class DiskFullTest : public ::testing::Test {
 protected:
  absl::StatusOr<v1::WriterManifest> WriteBig(const std::string& path, int64_t step) {
    return WriteShard({path, step, 1, 0}, {{"t", 0, 1 << 20, big_.data()}});
  }
  void ExpectNamed(const absl::Status& status, const std::string& path) {
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(path + "/steps/000000000200.1/w00000"), HasSubstr("4194304 bytes"),
                      HasSubstr("make room")));
    EXPECT_FALSE(kv::Exists(path + "/steps/000000000200.1/w00000")) << "half a shard takes space";
  }

  TestFolder folder_;
  const Model model_{1};
  const std::vector<float> big_ = std::vector<float>(1 << 20, 0.5f);
};

TEST_F(DiskFullTest, AFullDiskIsNamedAndHarmsNothing) {
  const std::string path = folder_.path("checkpoints");
  const auto catalog = *Catalog::OpenForWriting(path, 1);
  ASSERT_EQ(SaveStep(catalog.get(), path, model_, {}), absl::OkStatus());
  {
    const FileSizeLimit limit(256 << 10);
    ExpectNamed(WriteBig(path, 200).status(), path);
  }
  EXPECT_EQ(CompareStep(OpenCheckpoint(path)->get(), model_), absl::OkStatus());
  EXPECT_TRUE(WriteBig(path, 200).ok()) << "there is space again";
}

TEST_F(DiskFullTest, ACommitWithoutSpaceIsNoCommitAndCanBeRepeated) {
  const std::string path = folder_.path("checkpoints");
  const auto catalog = *Catalog::OpenForWriting(path, 1);
  ASSERT_EQ(SaveStep(catalog.get(), path, model_, {}), absl::OkStatus());
  SaveOptions options;
  options.step = 200;
  const v1::StepManifest manifest = *WriteStep(path, model_, options);
  {
    const FileSizeLimit limit(16);
    const absl::Status status = catalog->Commit(manifest);
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  }
  EXPECT_EQ((*catalog->Latest())->step(), 100);
  EXPECT_EQ(catalog->Commit(manifest), absl::OkStatus());
  EXPECT_EQ(CompareStep(OpenCheckpoint(path + "@200")->get(), model_), absl::OkStatus());
}

TEST_F(DiskFullTest, AFullFileSystemIsNamedAndHarmsNothing) {
  const std::string disk = folder_.path("disk");
  std::filesystem::create_directory(disk);
  if (::mount("none", disk.c_str(), "tmpfs", 0, "size=3m") != 0) {
    GTEST_SKIP() << "may not mount a small file system here";
  }
  const std::string path = disk + "/checkpoints";
  {
    const auto catalog = *Catalog::OpenForWriting(path, 1);
    EXPECT_EQ(SaveStep(catalog.get(), path, model_, {}), absl::OkStatus());
    const absl::Status status = WriteBig(path, 200).status();
    ExpectNamed(status, path);
    EXPECT_THAT(std::string(status.message()), HasSubstr("free there"));
    EXPECT_EQ(CompareStep(OpenCheckpoint(path)->get(), model_), absl::OkStatus());
  }
  EXPECT_EQ(::umount(disk.c_str()), 0);
}

}  // namespace
}  // namespace ela::checkpoints
