// The keys of job files are a promise to users: this list changes only on purpose. After such a
// change, set ELA_UPDATE_GOLDEN=1 and run this test once.

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "proto/job/schema.h"

namespace ela::job {
namespace {

const char* const kGolden = ELA_SOURCE_DIR "/tests/proto/job_keys.golden";

TEST(JobKeys, AreThoseThatWerePromised) {
  std::string actual;
  for (const std::string& line : DescribeKeys()) actual += line + "\n";
  if (std::getenv("ELA_UPDATE_GOLDEN") != nullptr) std::ofstream(kGolden) << actual;
  std::stringstream expected;
  expected << std::ifstream(kGolden).rdbuf();
  EXPECT_EQ(actual, expected.str());
}

}  // namespace
}  // namespace ela::job
