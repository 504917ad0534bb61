#include "trainer/loop/machine.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace ela::trainer {
namespace {

/// The files that a machine and its control group would show.
class Memory : public ::testing::Test {
 protected:
  Memory() {
    std::string pattern = ::testing::TempDir() + "machine-XXXXXX";
    root_ = mkdtemp(pattern.data());
  }
  ~Memory() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  std::string root_;
};

TEST_F(Memory, IsUnknownWhereNothingTellsIt) { EXPECT_EQ(AvailableMemory(root_), 0); }

TEST_F(Memory, OfAMachineIsWhatItCallsAvailable) {
  Write("/proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    700 kB\nBuffers: 3 kB\n");
  EXPECT_EQ(AvailableMemory(root_), 700 * 1024);
  Write("/sys/fs/cgroup/memory.max", "max\n");
  Write("/sys/fs/cgroup/memory.current", "1\n");
  EXPECT_EQ(AvailableMemory(root_), 700 * 1024);
}

TEST_F(Memory, OfAControlGroupIsItsLimitLessWhatItCannotGiveBack) {
  Write("/proc/meminfo", "MemAvailable: 700 kB\n");
  Write("/sys/fs/cgroup/memory.max", "100000\n");
  Write("/sys/fs/cgroup/memory.current", "90000\n");
  EXPECT_EQ(AvailableMemory(root_), 10000);
  Write("/sys/fs/cgroup/memory.stat", "anon 60000\ninactive_file 20000\nactive_file 5000\n");
  EXPECT_EQ(AvailableMemory(root_), 35000);
}

}  // namespace
}  // namespace ela::trainer
