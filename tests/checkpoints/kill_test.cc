// kill -9 at random moments over save, commit and retention. ELA_KILLS sets how many.
#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <random>

#include "checkpoints/layout.h"
#include "tests/checkpoints/step_testing.h"
#include "tests/checkpoints/test_folder.h"
#include "tests/checkpoints/worker_process.h"

namespace ela::checkpoints {
namespace {

int64_t LastStep(const std::string& line, int64_t before) {
  return line.empty() || line.starts_with("attempt") ? before : std::stoll(line);
}

class KillTest : public ::testing::Test {
 protected:
  /// Every step that is listed is whole, and none that was acknowledged and not given up is gone.
  void ExpectSound(int64_t acknowledged) {
    const auto catalog = Catalog::OpenForReading(path_);
    ASSERT_TRUE(catalog.ok()) << catalog.status();
    const auto steps = (*catalog)->List();
    ASSERT_TRUE(steps.ok()) << steps.status();
    ASSERT_GE(steps->empty() ? 0 : steps->back().step(), acknowledged);
    for (const v1::StepManifest& manifest : *steps) {
      auto reader = StepReader::Open(path_, manifest);
      ASSERT_TRUE(reader.ok()) << reader.status();
      ASSERT_EQ(CompareStep(reader->get(), Model(static_cast<uint32_t>(manifest.step()))),
                absl::OkStatus());
    }
  }

  /// After one more attempt there is nothing but what retention keeps.
  void ExpectTidy() {
    const auto catalog = Catalog::OpenForWriting(path_, 0);
    ASSERT_TRUE(catalog.ok()) << catalog.status();
    ASSERT_EQ((*catalog)->Collect(2, 10), absl::OkStatus());
    const auto steps = *(*catalog)->List();
    std::vector<std::string> folders;
    for (const v1::StepManifest& manifest : steps) {
      EXPECT_TRUE(manifest.step() % 10 == 0 || manifest.step() > steps.back().step() - 2);
      folders.push_back(StepName(manifest.step(), manifest.attempt()));
    }
    EXPECT_EQ(*kv::ListDirectory(path_ + "/steps"), folders);
  }

  /// What a worker takes here and now, so that kills fall into every part of a step.
  double MicrosecondsPerStep() {
    TestFolder trial(FastFolder());
    WorkerProcess worker({"save", trial.path("checkpoints"), "2"});
    worker.ReadLine();
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < 4; ++i) worker.ReadLine();
    const std::chrono::duration<double, std::micro> elapsed =
        std::chrono::steady_clock::now() - begin;
    return elapsed.count() / 4 + 1;
  }

  bool CatalogIsLocked() {
    const int fd = ::open((path_ + "/catalog/LOCK").c_str(), O_RDWR | O_CLOEXEC);
    struct flock lock = {};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    EXPECT_EQ(::fcntl(fd, F_GETLK, &lock), 0);
    ::close(fd);
    return lock.l_type != F_UNLCK;
  }

  /// Outside of the catalog's operations: nobody gets past one that is stopped within.
  void StopBetweenOperations(WorkerProcess* worker) {
    for (;;) {
      ::kill(worker->pid(), SIGSTOP);
      int status = 0;
      ASSERT_EQ(::waitpid(worker->pid(), &status, WUNTRACED), worker->pid());
      if (!CatalogIsLocked()) return;
      ::kill(worker->pid(), SIGCONT);
      ASSERT_NE(worker->ReadLine(), "");
    }
  }

  TestFolder folder_{FastFolder()};
  const std::string path_ = folder_.path("checkpoints");
};

TEST_F(KillTest, NoKillTearsAStep) {
  const char* wanted = std::getenv("ELA_KILLS");
  const int kills = wanted == nullptr ? 60 : std::atoi(wanted);
  std::mt19937 random(1);
  const auto longest = static_cast<uint32_t>(3 * MicrosecondsPerStep());
  int64_t acknowledged = 0;
  int at_work = 0;
  for (int i = 0; i < kills; ++i) {
    WorkerProcess worker({"save", path_, std::to_string(1 + i % 3)});
    if (random() % 4 != 0) {  // else it may die while it opens, too
      ASSERT_NE(worker.ReadLine(), "") << "the worker cannot start after kill " << i;
      ++at_work;
    }
    ::usleep(static_cast<useconds_t>(random() % longest));
    worker.Kill();
    acknowledged = LastStep(worker.ReadLastLine(""), acknowledged);
    if (acknowledged == 0) continue;
    ASSERT_NO_FATAL_FAILURE(ExpectSound(acknowledged)) << "kill " << i;
  }
  EXPECT_GT(at_work, kills / 3);
  EXPECT_GT(acknowledged, 0);
  std::printf("%d kills, %d of them after opening, %d steps committed\n", kills, at_work,
              static_cast<int>(acknowledged));
  ExpectTidy();
}

TEST_F(KillTest, AnOldAttemptThatWakesUpOverwritesNothing) {
  WorkerProcess old({"save", path_, "2"});
  ASSERT_EQ(old.ReadLine(), "attempt 1");
  ASSERT_EQ(old.ReadLine(), "1");
  ASSERT_NO_FATAL_FAILURE(StopBetweenOperations(&old));
  int64_t step = 0;
  {
    WorkerProcess fresh({"save", path_, "3"});
    ASSERT_EQ(fresh.ReadLine(), "attempt 2");
    for (int i = 0; i < 3; ++i) step = LastStep(fresh.ReadLine(), step);
    ::kill(old.pid(), SIGCONT);
    EXPECT_EQ(old.Wait(), 1) << "fenced";
    for (int i = 0; i < 3; ++i) step = LastStep(fresh.ReadLine(), step);
  }
  ExpectSound(step);
}

}  // namespace
}  // namespace ela::checkpoints
