#include "trainer/parallel/local_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "proto/status_macros.h"
#include "tests/trainer/parallel/checks.h"
#include "tests/trainer/parallel/staged_communicator.h"

namespace ela::trainer {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(LocalCommunicator, KeepsEveryContractForOneToEightRanks) {
  for (int ranks = 1; ranks <= 8; ++ranks) {
    for (const NamedCheck& check : AllChecks()) {
      EXPECT_EQ(RunLocalRanks(ranks, check.run), absl::OkStatus()) << check.name << ", " << ranks;
    }
  }
}

/// What brings NCCL's buffers to the checks brings the same bytes.
TEST(StagedCommunicator, KeepsEveryContract) {
  for (int ranks = 1; ranks <= 4; ++ranks) {
    for (const NamedCheck& check : AllChecks()) {
      const absl::Status status = RunLocalRanks(ranks, [&](Communicator& world) -> absl::Status {
        ELA_ASSIGN_OR_RETURN(auto inner, world.Split(0, "world"));
        StagedCommunicator staged(std::move(inner), nullptr);
        return check.run(staged);
      });
      EXPECT_EQ(status, absl::OkStatus()) << check.name << ", " << ranks;
    }
  }
}

TEST(LocalCommunicator, BarrierLeavesNobodyBehind) {
  constexpr int kRanks = 4, kRounds = 50;
  std::atomic<int> arrived = 0;
  const absl::Status status = RunLocalRanks(kRanks, [&](Communicator& world) {
    for (int round = 1; round <= kRounds; ++round) {
      ++arrived;
      ELA_RETURN_IF_ERROR(world.Barrier());
      if (arrived < round * kRanks) return absl::DataLossError("a rank had not arrived");
      ELA_RETURN_IF_ERROR(world.Barrier());
    }
    return absl::OkStatus();
  });
  EXPECT_EQ(status, absl::OkStatus());
}

TEST(SingleRank, IsAWorldOfItsOwn) {
  CommunicatorOptions options;
  options.statistics = std::make_shared<CommStatistics>();
  const auto world = MakeSingleRank(options);
  for (const NamedCheck& check : AllChecks()) EXPECT_EQ(check.run(*world), absl::OkStatus());
}

TEST(MakeCommunicator, RefusesALocalWorldOfSeveralRanks) {
  CommunicatorOptions options;
  options.expected_world = 4;
  const absl::Status status = MakeCommunicator(CommunicatorKind::kLocal, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("mpirun -n 4"));
}

// A run in which rank 1 makes a mistake: every rank that goes on gets the same error.
struct Faulty {
  absl::Status result;
  std::vector<absl::Status> of_rank;
};

Faulty RunFaulty(int ranks, const Check& mistake_of_1) {
  Faulty run;
  run.of_rank.resize(static_cast<size_t>(ranks));
  run.result = RunLocalRanks(ranks, [&](Communicator& world) {
    if (world.rank() == 1) return mistake_of_1(world);
    absl::Status status;
    std::vector<int> recv(static_cast<size_t>(ranks));
    for (int i = 0; i < 3 && status.ok(); ++i) {
      status = world.AllGather(recv.data(), &i, sizeof i);
    }
    run.of_rank[static_cast<size_t>(world.rank())] = status;
    return status;
  });
  return run;
}

void ExpectAllGot(const Faulty& run, const std::string& part) {
  EXPECT_FALSE(run.result.ok());
  EXPECT_THAT(std::string(run.result.message()), AllOf(StartsWith("rank "), HasSubstr(part)));
  for (size_t r = 0; r < run.of_rank.size(); ++r) {
    if (r == 1) continue;
    EXPECT_EQ(run.of_rank[r], run.result) << r;
  }
}

TEST(LocalFault, AnErrorEndsAllRanks) {
  const Faulty run = RunFaulty(4, [](Communicator&) { return absl::NotFoundError("no data"); });
  ExpectAllGot(run, "no data");
  EXPECT_EQ(run.result, absl::NotFoundError("rank 1: no data"));
}

TEST(LocalFault, AbortEndsAllRanks) {
  ExpectAllGot(RunFaulty(4,
                         [](Communicator& world) {
                           world.Abort(7);
                           return world.Barrier();
                         }),
               "rank 1: aborted the run with exit code 7");
}

TEST(LocalFault, ARankThatReturnsIsNotWaitedFor) {
  ExpectAllGot(RunFaulty(4, [](Communicator&) { return absl::OkStatus(); }),
               "for rank 1, which has ended");
}

TEST(LocalFault, ADifferentSizeEndsAllRanks) {
  const auto mistake = [](Communicator& world) {
    std::vector<char> recv(400);
    return world.AllGather(recv.data(), recv.data(), 9);
  };
  ExpectAllGot(RunFaulty(4, mistake), "all_gather of world: expects ");
}

TEST(LocalFault, ADifferentCallEndsAllRanks) {
  const auto mistake = [](Communicator& world) { return world.Barrier(); };
  ExpectAllGot(RunFaulty(4, mistake), " calls ");
}

TEST(LocalFault, AMessageThatNobodyTakesIsAFault) {
  const absl::Status status = RunLocalRanks(2, [](Communicator& world) -> absl::Status {
    char c = 0;
    if (world.rank() == 0) return world.Broadcast(&c, 1, 0);
    return absl::OkStatus();
  });
  EXPECT_EQ(status, absl::InternalError("rank 0: called broadcast, and rank 1 ended without it"));
}

TEST(LocalFault, RanksThatWaitForEachOtherOnDifferentGroupsEnd) {
  const absl::Status status = RunLocalRanks(3, [](Communicator& world) -> absl::Status {
    ELA_ASSIGN_OR_RETURN(const auto other, world.Split(0, "other"));
    return world.rank() == 0 ? other->Barrier() : world.Barrier();
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("while every other rank waits too"));
}

TEST(LocalFault, PendingCallsEndToo) {
  const absl::Status status = RunLocalRanks(2, [](Communicator& world) -> absl::Status {
    if (world.rank() == 1) return absl::ResourceExhaustedError("out of memory");
    char recv[2], send = 0;
    ELA_ASSIGN_OR_RETURN(const auto pending, world.AllGatherStart(recv, &send, 1));
    return pending->Wait();
  });
  EXPECT_EQ(status, absl::ResourceExhaustedError("rank 1: out of memory"));
}

}  // namespace
}  // namespace ela::trainer
