#include <cstring>
#include <limits>
#include <random>

#include "kernels/context.h"
#include "kernels/permute/permute.h"
#include "kernels/tensor.h"
#include "proto/status_macros.h"
#include "tests/trainer/parallel/checks.h"
#include "trainer/parallel/agreement.h"
#include "trainer/parallel/expert_dispatch.h"
#include "trainer/parallel/mesh.h"
#include "trainer/parallel/ordered_sum.h"

namespace ela::trainer {
namespace {

using kernels::Backend;
using kernels::Tensor;

/// A context of this rank alone.
struct RankContext {
  kernels::Arena arena;
  kernels::Counters counters;
  kernels::Context ctx;
  explicit RankContext(Backend backend) {
    ctx.backend = backend;
    ctx.scratch = &arena;
    ctx.counters = &counters;
  }
};

/// Numbers of very different sizes, so that another order gives other bits.
template <class T>
std::vector<T> Numbers(int64_t n, int rank) {
  std::mt19937_64 engine(static_cast<uint64_t>(rank) + 1);
  std::normal_distribution<double> normal;
  std::vector<T> values;
  for (int64_t i = 0; i < n; ++i) {
    values.push_back(static_cast<T>(std::ldexp(normal(engine), static_cast<int>(i % 40) - 20)));
  }
  return values;
}

template <class T>
std::vector<T> SumInRankOrder(int64_t n, int ranks) {
  std::vector<T> sum = Numbers<T>(n, 0);
  for (int p = 1; p < ranks; ++p) {
    const std::vector<T> more = Numbers<T>(n, p);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += more[i];
  }
  return sum;
}

template <class T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size()) return false;
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <class T>
absl::Status AllReduceAddsInRankOrderOf(Communicator& world) {
  for (int64_t n : {0, 1, 100}) {
    std::vector<T> values = Numbers<T>(n, world.rank());
    ELA_RETURN_IF_ERROR(AllReduceSum(world, values.data(), n));
    ELA_EXPECT_THAT(SameBits(values, SumInRankOrder<T>(n, world.size())), " for ", n);
  }
  return absl::OkStatus();
}

absl::Status AllReduceAddsInRankOrder(Communicator& world) {
  ELA_RETURN_IF_ERROR(AllReduceAddsInRankOrderOf<float>(world));
  ELA_RETURN_IF_ERROR(AllReduceAddsInRankOrderOf<double>(world));
  return AllReduceAddsInRankOrderOf<int64_t>(world);
}

/// Two sums under way at once.
template <class T>
absl::Status ReduceScatterOf(Communicator& world, Backend backend, int64_t n) {
  const RankContext rank(backend);
  const int64_t ranks = world.size(), begin = world.rank() * n;
  const std::vector<T> mine = Numbers<T>(ranks * n, world.rank());
  const std::vector<T> sum = SumInRankOrder<T>(ranks * n, world.size());
  std::vector<T> expected = mine;
  std::copy_n(sum.begin() + begin, n, expected.begin() + begin);

  std::vector<std::vector<T>> full(2, mine), received(2, std::vector<T>(mine.size()));
  std::vector<PendingSum> sums;
  for (size_t i : {0, 1}) {
    ELA_ASSIGN_OR_RETURN(PendingSum started,
                         ReduceScatterSumStart(world, Tensor::Of(full[i].data(), {ranks * n}),
                                               Tensor::Of(received[i].data(), {ranks * n})));
    sums.push_back(std::move(started));
  }
  for (size_t i : {0, 1}) {
    ELA_RETURN_IF_ERROR(sums[i].Finish(rank.ctx));
    ELA_EXPECT_THAT(SameBits(full[i], expected), ": sum ", i, " of ", n, " elements a rank");
  }
  return absl::OkStatus();
}

absl::Status ReduceScatterAddsInRankOrderAndKeepsTheRest(Communicator& world) {
  for (int64_t n : {1, 7, 300}) {
    ELA_RETURN_IF_ERROR(ReduceScatterOf<float>(world, Backend::kCpu, n));
    ELA_RETURN_IF_ERROR(ReduceScatterOf<double>(world, Backend::kReference, n));
  }
  return absl::OkStatus();
}

/// The world ranks of a group, in its order.
absl::StatusOr<std::vector<int>> MembersOf(const Communicator& world, Communicator& group) {
  std::vector<int> members(static_cast<size_t>(group.size()));
  const int mine = world.rank();
  ELA_RETURN_IF_ERROR(group.AllGather(members.data(), &mine, sizeof mine));
  return members;
}

std::vector<int> RanksWhere(int world, const std::function<bool(int)>& belongs) {
  std::vector<int> ranks;
  for (int r = 0; r < world; ++r) {
    if (belongs(r)) ranks.push_back(r);
  }
  return ranks;
}

absl::Status CheckMesh(Communicator& world, const MeshSizes& sizes) {
  const int64_t experts = int64_t{3} * sizes.expert;
  ELA_ASSIGN_OR_RETURN(const auto mesh, Mesh::Create(&world, sizes, experts));
  const int me = world.rank(), seq = sizes.sequence, exp = sizes.expert;
  const auto expect = [&](Communicator& group, const std::string& axis,
                          const std::function<bool(int)>& belongs) -> absl::Status {
    ELA_ASSIGN_OR_RETURN(const std::vector<int> members, MembersOf(world, group));
    ELA_EXPECT_THAT(members == RanksWhere(world.size(), belongs), " on ", axis);
    ELA_EXPECT_THAT(group.axis() == axis && group.statistics() == world.statistics());
    return absl::OkStatus();
  };
  ELA_RETURN_IF_ERROR(expect(mesh->data(), "data", [&](int r) { return r % seq == me % seq; }));
  ELA_RETURN_IF_ERROR(
      expect(mesh->sequence(), "sequence", [&](int r) { return r / seq == me / seq; }));
  ELA_RETURN_IF_ERROR(expect(mesh->expert(), "expert", [&](int r) { return r / exp == me / exp; }));
  ELA_RETURN_IF_ERROR(
      expect(mesh->expert_data(), "expert_data", [&](int r) { return r % exp == me % exp; }));
  ELA_EXPECT_THAT(mesh->data().rank() == mesh->data_index());
  ELA_EXPECT_THAT(mesh->sequence().rank() == mesh->sequence_index());
  ELA_EXPECT_THAT(mesh->expert().rank() == mesh->expert_index());
  ELA_EXPECT_THAT(mesh->expert_data().rank() == mesh->expert_data_index());
  ELA_EXPECT_THAT(mesh->expert_begin() == 3 * mesh->expert_index());
  ELA_EXPECT_THAT(mesh->expert_end() == mesh->expert_begin() + 3);
  return absl::OkStatus();
}

absl::Status MeshGroupsAreRightForEveryFactorisation(Communicator& world) {
  for (int sequence = 1; sequence <= world.size(); ++sequence) {
    if (world.size() % sequence != 0) continue;
    for (int expert = 1; expert <= world.size(); ++expert) {
      if (world.size() % expert != 0) continue;
      ELA_RETURN_IF_ERROR(CheckMesh(world, {world.size() / sequence, sequence, expert}));
    }
  }
  return absl::OkStatus();
}

/// Row i of rank p by (expert, token): tells who it is.
double RowTag(int rank, int64_t expert, int64_t i, int64_t column) {
  return rank * 10000 + static_cast<double>(expert * 1000 + i * 10 + column);
}

absl::Status CheckDispatch(Communicator& world, Backend backend, int64_t own,
                           const std::function<int64_t(int rank, int64_t expert)>& count) {
  const RankContext rank(backend);
  const kernels::DType type =
      backend == Backend::kReference ? kernels::DType::kF64 : kernels::DType::kF32;
  const int64_t experts = own * world.size(), n = 3, first = own * world.rank();
  std::vector<int64_t> counts;
  std::vector<double> sent, expected;
  for (int64_t e = 0; e < experts; ++e) {
    counts.push_back(count(world.rank(), e));
    for (int64_t i = 0; i < counts.back() * n; ++i) {
      sent.push_back(RowTag(world.rank(), e, i / n, i % n));
    }
  }
  for (int64_t e = first; e < first + own; ++e) {
    for (int p = 0; p < world.size(); ++p) {
      for (int64_t i = 0; i < count(p, e) * n; ++i) expected.push_back(RowTag(p, e, i / n, i % n));
    }
  }
  DispatchPlan plan;
  ELA_RETURN_IF_ERROR(PlanDispatch(world, counts.data(), experts, &plan));
  ELA_EXPECT_THAT(plan.rows() * n == static_cast<int64_t>(expected.size()));
  const auto store = [&](const std::vector<double>& values, std::vector<char>* memory) {
    memory->assign(values.size() * kernels::SizeOf(type), 0);
    const int64_t rows = static_cast<int64_t>(values.size()) / n;
    const Tensor t(memory->data(), type, {rows, n});
    for (size_t i = 0; i < values.size(); ++i) {
      if (type == kernels::DType::kF64) t.as<double>()[i] = values[i];
      if (type == kernels::DType::kF32) t.as<float>()[i] = static_cast<float>(values[i]);
    }
    return t;
  };
  std::vector<char> sorted_memory, wanted_memory, arrived_memory, returned_memory;
  const Tensor sorted = store(sent, &sorted_memory);
  store(expected, &wanted_memory);
  const Tensor arrived = store(std::vector<double>(expected.size(), -1), &arrived_memory);
  const Tensor returned = store(std::vector<double>(sent.size(), -1), &returned_memory);
  ELA_RETURN_IF_ERROR(DispatchRows(rank.ctx, world, arrived, sorted, plan));
  ELA_EXPECT_THAT(arrived_memory == wanted_memory, ": rows by (expert, source, token)");
  ELA_RETURN_IF_ERROR(ReturnRows(rank.ctx, world, returned, arrived, plan));
  ELA_EXPECT_THAT(returned_memory == sorted_memory, ": back where they came from");
  return absl::OkStatus();
}

absl::Status DispatchAndReturnIsTheIdentity(Communicator& world) {
  for (Backend backend : {Backend::kCpu, Backend::kReference}) {
    const auto check = [&](const std::function<int64_t(int, int64_t)>& count) {
      return CheckDispatch(world, backend, 2, count);
    };
    ELA_RETURN_IF_ERROR(check([](int rank, int64_t e) { return (rank * 3 + e * 5) % 4; }));
    ELA_RETURN_IF_ERROR(check([](int rank, int64_t e) { return e == 1 ? 6 : 0; }));
    ELA_RETURN_IF_ERROR(check([](int rank, int64_t e) { return rank == 0 ? 2 : 0; }));
    ELA_RETURN_IF_ERROR(check([](int rank, int64_t e) { return 0; }));
  }
  return absl::OkStatus();
}

absl::Status AgreementIsTheLowestRanksError(Communicator& world) {
  ELA_RETURN_IF_ERROR(AgreeOk(world, absl::OkStatus()));
  for (int bad = 0; bad < world.size(); ++bad) {
    const absl::Status mine = world.rank() < bad
                                  ? absl::OkStatus()
                                  : absl::NotFoundError(absl::StrCat("no file ", world.rank()));
    const absl::Status agreed = AgreeOk(world, mine);
    ELA_EXPECT_THAT(agreed.code() == absl::StatusCode::kNotFound);
    ELA_EXPECT_THAT(agreed.message() == absl::StrCat("rank ", bad, ": no file ", bad));
  }
  std::string lengthy = "a";
  for (int i = 0; i < 400; ++i) lengthy += "\xc3\xa9";  // two bytes a character
  const absl::Status cut = AgreeOk(world, absl::DataLossError(lengthy));
  ELA_EXPECT_THAT(cut.message().size() == 479 || cut.message().size() == 480);
  ELA_EXPECT_THAT(cut.message() == ("rank 0: " + lengthy).substr(0, cut.message().size()));
  ELA_EXPECT_THAT(cut.message().substr(cut.message().size() - 2) == "\xc3\xa9");
  return absl::OkStatus();
}

}  // namespace

std::vector<NamedCheck> GroupChecks() {
  return {
      {"AllReduceAddsInRankOrder", AllReduceAddsInRankOrder},
      {"ReduceScatterAddsInRankOrderAndKeepsTheRest", ReduceScatterAddsInRankOrderAndKeepsTheRest},
      {"MeshGroupsAreRightForEveryFactorisation", MeshGroupsAreRightForEveryFactorisation},
      {"DispatchAndReturnIsTheIdentity", DispatchAndReturnIsTheIdentity},
      {"AgreementIsTheLowestRanksError", AgreementIsTheLowestRanksError}};
}

}  // namespace ela::trainer
