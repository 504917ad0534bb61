// The checks of every back end, over MPI and NCCL under mpirun.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "kernels/device.h"
#include "tests/support/mpirun.h"
#include "tests/trainer/parallel/checks.h"

namespace ela::trainer {
namespace {

using ela::testing::MpiRun;
using ela::testing::RunProcess;
using ela::testing::RunUnderMpi;
using ::testing::HasSubstr;

void ExpectAllChecksRan(const MpiRun& run) {
  EXPECT_EQ(run.exit_code, 0) << run.output;
  for (const NamedCheck& check : AllChecks()) {
    EXPECT_THAT(run.output, HasSubstr("ok " + check.name));
  }
}

TEST(MpiCommunicator, KeepsEveryContractForOneToFourRanks) {
  for (int ranks = 1; ranks <= 4; ++ranks) {
    ExpectAllChecksRan(RunUnderMpi(ranks, {ELA_RANKS_UNDER_MPI, "checks"}));
  }
}

TEST(MpiCommunicator, CutsLongMessages) {
  ExpectAllChecksRan(RunUnderMpi(3, {ELA_RANKS_UNDER_MPI, "checks", "13"}));
}

TEST(MpiCommunicator, RunsWithoutMpirun) {
  ExpectAllChecksRan(RunProcess({ELA_RANKS_UNDER_MPI, "checks"}));
}

TEST(MpiCommunicator, RefusesAnotherWorldThanTheMesh) {
  const MpiRun run = RunUnderMpi(2, {ELA_RANKS_UNDER_MPI, "world", "4"});
  EXPECT_EQ(run.exit_code, 3);
  EXPECT_THAT(run.output, HasSubstr("FAILED_PRECONDITION"));
  EXPECT_THAT(run.output, HasSubstr("mesh has 4 ranks"));
  EXPECT_THAT(run.output, HasSubstr("in a world of 2: run `mpirun -n 4"));
  const MpiRun alone = RunProcess({ELA_RANKS_UNDER_MPI, "world", "4"});
  EXPECT_EQ(alone.exit_code, 3);
  EXPECT_THAT(alone.output, HasSubstr("in a world of 1"));
}

TEST(MpiCommunicator, AcceptsTheMeshsWorld) {
  const MpiRun run = RunUnderMpi(2, {ELA_RANKS_UNDER_MPI, "world", "2"});
  EXPECT_EQ(run.exit_code, 0) << run.output;
}

TEST(MpiCommunicator, AbortEndsRanksThatWait) {
  const MpiRun run = RunUnderMpi(3, {ELA_RANKS_UNDER_MPI, "abort", "9"});
  EXPECT_EQ(run.exit_code, 9) << run.output;
}

TEST(MpiCommunicator, AnotherSizeThanExpectedIsAnError) {
  const MpiRun run = RunUnderMpi(2, {ELA_RANKS_UNDER_MPI, "sizes"});
  EXPECT_EQ(run.exit_code, 4) << run.output;
  EXPECT_THAT(run.output, ::testing::AnyOf(HasSubstr("rank 0 sent 8 bytes where rank 1 expects 16"),
                                           HasSubstr("MPI_ERR_TRUNCATE")));
}

TEST(MpiCommunicator, ARankThatIsNotThereIsAnErrorAfterTheTimeout) {
  const MpiRun run = RunUnderMpi(3, {ELA_RANKS_UNDER_MPI, "silent", "2"});
  EXPECT_EQ(run.exit_code, 5) << run.output;
  EXPECT_THAT(run.output, HasSubstr("waited for rank 2 for 2 s"));
}

class NcclCommunicator : public ::testing::Test {
 protected:
  void SetUp() override {
    if (kernels::NumCudaDevices() == 0) GTEST_SKIP() << kernels::WhyNoCudaDevice();
  }
};

TEST_F(NcclCommunicator, KeepsEveryContractForTwoAndThreeRanks) {
  for (int ranks : {2, 3}) ExpectAllChecksRan(RunUnderMpi(ranks, {ELA_RANKS_UNDER_MPI, "nccl"}));
}

TEST_F(NcclCommunicator, SumsBesideTheDevicesWorkHaveTheSameBits) {
  const MpiRun run = RunUnderMpi(2, {ELA_RANKS_UNDER_MPI, "nccl-sums"});
  EXPECT_EQ(run.exit_code, 0) << run.output;
  EXPECT_THAT(run.output, HasSubstr("the same bits"));
}

TEST_F(NcclCommunicator, ARankThatIsNotThereIsAnErrorAfterTheTimeout) {
  const MpiRun run = RunUnderMpi(2, {ELA_RANKS_UNDER_MPI, "nccl-silent", "5"});
  EXPECT_EQ(run.exit_code, 5) << run.output;
  EXPECT_THAT(run.output, HasSubstr("NCCL: all_gather of world"));
}

}  // namespace
}  // namespace ela::trainer
