#include "trainer/parallel/mesh.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "trainer/parallel/local_communicator.h"

namespace ela::trainer {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string Problem(const MeshSizes& sizes, int world, int64_t experts) {
  const absl::Status status = ValidateMesh(sizes, world, experts);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return std::string(status.message());
}

TEST(Mesh, AcceptsWhatFits) {
  EXPECT_EQ(ValidateMesh({1, 1, 1}, 1, 1), absl::OkStatus());
  EXPECT_EQ(ValidateMesh({2, 4, 8}, 8, 16), absl::OkStatus());
  EXPECT_EQ(ValidateMesh({3, 2, 2}, 6, 4), absl::OkStatus());
}

TEST(Mesh, SaysWhichSizesDoNotFitTheWorld) {
  EXPECT_THAT(Problem({2, 3, 1}, 4, 1),
              AllOf(HasSubstr("parallelism.data 2 x parallelism.sequence 3 = 6 ranks"),
                    HasSubstr("the world has 4")));
}

TEST(Mesh, SaysThatExpertGroupsDoNotDivideTheWorld) {
  EXPECT_THAT(Problem({2, 2, 3}, 4, 6),
              HasSubstr("parallelism.expert 3 does not divide the world of 4 ranks"));
}

TEST(Mesh, SaysThatExpertsDoNotDivide) {
  EXPECT_THAT(Problem({2, 2, 4}, 4, 6),
              HasSubstr("parallelism.expert 4 does not divide moe.num_experts 6"));
}

TEST(Mesh, RefusesSizesBelowOne) {
  EXPECT_THAT(Problem({0, 2, 1}, 2, 1), HasSubstr("parallelism.data 0"));
  EXPECT_THAT(Problem({2, -1, 1}, 2, 1), HasSubstr("parallelism.sequence -1"));
  EXPECT_THAT(Problem({1, 1, 0}, 1, 1), HasSubstr("parallelism.expert 0"));
}

TEST(Mesh, DoesNotOverflowOnHugeSizes) {
  EXPECT_THAT(Problem({1 << 30, 1 << 30, 1}, 1, 1), HasSubstr("1152921504606846976 ranks"));
}

TEST(Mesh, CreateRefusesOnEveryRankWithoutACollective) {
  const absl::Status status = RunLocalRanks(3, [](Communicator& world) {
    return Mesh::Create(&world, {2, 2, 1}, 4).status();
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
}

TEST(ShardBegin, CutsTheSequenceIntoAscendingShards) {
  for (int64_t length : {0, 1, 3, 7, 8, 100}) {
    for (int shards = 1; shards <= 9; ++shards) {
      EXPECT_EQ(ShardBegin(length, 0, shards), 0);
      EXPECT_EQ(ShardBegin(length, shards, shards), length);
      for (int s = 0; s < shards; ++s) {
        const int64_t rows = ShardBegin(length, s + 1, shards) - ShardBegin(length, s, shards);
        EXPECT_GE(rows, length / shards);
        EXPECT_LE(rows, (length + shards - 1) / shards);
      }
    }
  }
}

TEST(ShardBegin, HoldsForSequencesPastTwoToThe32) {
  const int64_t length = int64_t{1} << 40;
  EXPECT_EQ(ShardBegin(length, 3, 4), length / 4 * 3);
}

}  // namespace
}  // namespace ela::trainer
