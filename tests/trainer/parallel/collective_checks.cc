#include <algorithm>
#include <memory>

#include "proto/status_macros.h"
#include "tests/trainer/parallel/checks.h"

namespace ela::trainer {
namespace {

using Bytes = std::vector<uint8_t>;

constexpr size_t kSizes[] = {0, 1, 7, 13, 26, 1000};

absl::Status AllGatherIsEveryonesPart(Communicator& world) {
  for (size_t n : kSizes) {
    Bytes recv(n * static_cast<size_t>(world.size()), 0xee);
    const Bytes mine = Pattern(n, world.rank(), 0, 1);
    ELA_RETURN_IF_ERROR(world.AllGather(recv.data(), mine.data(), n));
    for (int p = 0; p < world.size(); ++p) {
      const Bytes expected = Pattern(n, p, 0, 1);
      ELA_EXPECT_THAT(
          std::equal(expected.begin(), expected.end(), recv.begin() + p * static_cast<int>(n)),
          " for rank ", p, " at ", n, " bytes");
    }
  }
  return absl::OkStatus();
}

absl::Status AllGatherWorksInPlace(Communicator& world) {
  constexpr size_t kBytes = 100;
  Bytes recv(kBytes * static_cast<size_t>(world.size()), 0xee);
  uint8_t* own = recv.data() + kBytes * static_cast<size_t>(world.rank());
  const Bytes mine = Pattern(kBytes, world.rank(), 0, 2);
  std::copy(mine.begin(), mine.end(), own);
  ELA_RETURN_IF_ERROR(world.AllGather(recv.data(), own, kBytes));
  Bytes expected;
  for (int p = 0; p < world.size(); ++p) {
    const Bytes part = Pattern(kBytes, p, 0, 2);
    expected.insert(expected.end(), part.begin(), part.end());
  }
  ELA_EXPECT_THAT(recv == expected);
  return absl::OkStatus();
}

/// Three all-gathers and a broadcast under way at once, waited for out of order.
absl::Status PendingCallsDoNotMix(Communicator& world) {
  constexpr size_t kBytes = 40;
  std::vector<Bytes> sends, recvs;
  std::vector<std::unique_ptr<Pending>> pending;
  for (int i = 0; i < 3; ++i) {
    sends.push_back(Pattern(kBytes, world.rank(), 0, i));
    recvs.emplace_back(kBytes * static_cast<size_t>(world.size()));
  }
  for (size_t i = 0; i < 3; ++i) {
    ELA_ASSIGN_OR_RETURN(auto started,
                         world.AllGatherStart(recvs[i].data(), sends[i].data(), kBytes));
    pending.push_back(std::move(started));
  }
  Bytes word = Pattern(kBytes, world.rank(), 0, 9);
  ELA_RETURN_IF_ERROR(world.Broadcast(word.data(), word.size(), world.size() - 1));
  ELA_EXPECT_THAT(word == Pattern(kBytes, world.size() - 1, 0, 9));
  for (size_t i : {2, 0, 1}) ELA_RETURN_IF_ERROR(pending[i]->Wait());
  for (int i = 0; i < 3; ++i) {
    for (int p = 0; p < world.size(); ++p) {
      const Bytes expected = Pattern(kBytes, p, 0, i);
      ELA_EXPECT_THAT(std::equal(expected.begin(), expected.end(),
                                 recvs[static_cast<size_t>(i)].begin() + p * int{kBytes}),
                      " call ", i, " rank ", p);
    }
  }
  return absl::OkStatus();
}

size_t Uneven(int from, int to) { return static_cast<size_t>((from * 7 + to * 3) % 5) * 11; }

/// An all-to-all of `scale` times Uneven bytes, and where it goes.
struct UnevenParts {
  UnevenParts(const Communicator& world, size_t scale, int salt) {
    for (int p = 0; p < world.size(); ++p) {
      send_bytes.push_back(scale * Uneven(world.rank(), p));
      recv_bytes.push_back(scale * Uneven(p, world.rank()));
      const Bytes to = Pattern(send_bytes.back(), world.rank(), p, salt);
      const Bytes from = Pattern(recv_bytes.back(), p, world.rank(), salt);
      send.insert(send.end(), to.begin(), to.end());
      expected.insert(expected.end(), from.begin(), from.end());
    }
    recv.assign(expected.size(), 0xee);
  }
  std::vector<size_t> send_bytes, recv_bytes;
  Bytes send, recv, expected;
};

absl::Status AllToAllMovesUnevenParts(Communicator& world) {
  for (size_t scale : {0, 1}) {
    UnevenParts parts(world, scale, 3);
    ELA_RETURN_IF_ERROR(
        world.AllToAllV(parts.recv.data(), parts.recv_bytes, parts.send.data(), parts.send_bytes));
    ELA_EXPECT_THAT(parts.recv == parts.expected);
  }
  return absl::OkStatus();
}

/// Of messages that MPI sends at once and of others, with an all-gather of all ranks between their
/// start and their end.
absl::Status AllToAllGoesOnBesideOtherCalls(Communicator& world) {
  std::vector<UnevenParts> parts;
  for (size_t scale : {1, 3000, 0}) parts.emplace_back(world, scale, static_cast<int>(scale % 7));
  std::vector<std::unique_ptr<Pending>> pending;
  for (UnevenParts& p : parts) {
    ELA_ASSIGN_OR_RETURN(auto started, world.AllToAllVStart(p.recv.data(), p.recv_bytes,
                                                            p.send.data(), p.send_bytes));
    pending.push_back(std::move(started));
  }
  ELA_RETURN_IF_ERROR(AllGatherIsEveryonesPart(world));
  for (size_t i : {1, 0, 2}) {
    ELA_RETURN_IF_ERROR(pending[i]->Wait());
    ELA_EXPECT_THAT(parts[i].recv == parts[i].expected, ", call ", i);
    ELA_RETURN_IF_ERROR(pending[i]->Wait());
  }
  return absl::OkStatus();
}

/// Messages of different sizes go round the ring until each is home.
absl::Status RingStepsCarryMessagesRound(Communicator& world) {
  const int size = world.size(), next = (world.rank() + 1) % size;
  const int previous = (world.rank() + size - 1) % size;
  const auto bytes_of = [](int owner) { return static_cast<size_t>(owner * 9); };
  Bytes held = Pattern(bytes_of(world.rank()), world.rank(), 0, 4);
  for (int step = 1; step <= size; ++step) {
    const int owner = (world.rank() + size - step % size) % size;
    Bytes arrived(bytes_of(owner), 0xee);
    ELA_ASSIGN_OR_RETURN(const auto pending,
                         world.SendRecvStart(arrived.data(), arrived.size(), previous, held.data(),
                                             held.size(), next));
    ELA_RETURN_IF_ERROR(pending->Wait());
    ELA_EXPECT_THAT(arrived == Pattern(bytes_of(owner), owner, 0, 4), " at step ", step);
    held = arrived;
  }
  return absl::OkStatus();
}

absl::Status BroadcastReachesAllFromAnyRoot(Communicator& world) {
  for (size_t n : kSizes) {
    for (int root = 0; root < world.size(); ++root) {
      Bytes data = Pattern(n, world.rank(), 0, 5);
      ELA_RETURN_IF_ERROR(world.Broadcast(data.data(), n, root));
      ELA_EXPECT_THAT(data == Pattern(n, root, 0, 5), " from root ", root, " at ", n, " bytes");
    }
  }
  return absl::OkStatus();
}

/// An all-gather goes on over barriers.
absl::Status BarriersDoNotDisturbWhatIsUnderWay(Communicator& world) {
  const Bytes mine = Pattern(30, world.rank(), 0, 6);
  Bytes recv(30 * static_cast<size_t>(world.size()));
  ELA_ASSIGN_OR_RETURN(const auto pending, world.AllGatherStart(recv.data(), mine.data(), 30));
  for (int i = 0; i < 3; ++i) ELA_RETURN_IF_ERROR(world.Barrier());
  ELA_RETURN_IF_ERROR(pending->Wait());
  ELA_EXPECT_THAT(
      std::equal(recv.end() - 30, recv.end(), Pattern(30, world.size() - 1, 0, 6).begin()));
  return absl::OkStatus();
}

absl::Status CountsCallsAndBytesByAxis(Communicator& world) {
  ELA_ASSIGN_OR_RETURN(const auto pair, world.Split(world.rank() / 2, "pair"));
  Bytes recv(10 * static_cast<size_t>(world.size()));
  const Bytes mine(10);
  // The first call may have to agree on more than its data.
  ELA_RETURN_IF_ERROR(pair->AllGather(recv.data(), mine.data(), 10));
  ELA_RETURN_IF_ERROR(world.Broadcast(recv.data(), 10, 0));
  auto before = world.statistics()->Snapshot();
  ELA_RETURN_IF_ERROR(pair->AllGather(recv.data(), mine.data(), 10));
  ELA_RETURN_IF_ERROR(pair->AllGather(recv.data(), mine.data(), 7));
  ELA_RETURN_IF_ERROR(world.Broadcast(recv.data(), 10, 0));
  auto after = world.statistics()->Snapshot();
  const auto since = [&](const char* op, const char* axis) {
    CommStatistics::Entry entry = after[{op, axis}];
    entry.calls -= before[{op, axis}].calls;
    entry.bytes -= before[{op, axis}].bytes;
    return entry;
  };
  const CommStatistics::Entry gathers = since("all_gather", "pair");
  ELA_EXPECT_THAT(gathers.calls == 2, ": ", gathers.calls);
  ELA_EXPECT_THAT(gathers.bytes == 17 * (pair->size() - 1), ": ", gathers.bytes);
  ELA_EXPECT_THAT(gathers.seconds >= 0);
  const CommStatistics::Entry broadcasts = since("broadcast", "world");
  ELA_EXPECT_THAT(broadcasts.calls == 1, ": ", broadcasts.calls);
  ELA_EXPECT_THAT(broadcasts.bytes == (world.rank() == 0 ? 0 : 10), ": ", broadcasts.bytes);
  return absl::OkStatus();
}

/// Two calls at once on groups that overlap do not take each other's messages.
absl::Status GroupsKeepTheirMessagesApart(Communicator& world) {
  ELA_ASSIGN_OR_RETURN(const auto same, world.Split(0, "same"));
  ELA_ASSIGN_OR_RETURN(const auto reversed, same->Split(world.rank() % 2, "parity"));
  ELA_EXPECT_THAT(same->rank() == world.rank() && same->axis() == "same");
  ELA_EXPECT_THAT(reversed->rank() == world.rank() / 2);
  const size_t ranks = static_cast<size_t>(world.size());
  std::vector<int> in_world(ranks), in_same(ranks), in_parity(ranks);
  const int a = world.rank(), b = 100 + a, c = 200 + a;
  ELA_ASSIGN_OR_RETURN(const auto first, world.AllGatherStart(in_world.data(), &a, sizeof a));
  ELA_ASSIGN_OR_RETURN(const auto second, same->AllGatherStart(in_same.data(), &b, sizeof b));
  ELA_RETURN_IF_ERROR(reversed->AllGather(in_parity.data(), &c, sizeof c));
  ELA_RETURN_IF_ERROR(second->Wait());
  ELA_RETURN_IF_ERROR(first->Wait());
  for (int p = 0; p < world.size(); ++p) {
    ELA_EXPECT_THAT(in_world[static_cast<size_t>(p)] == p);
    ELA_EXPECT_THAT(in_same[static_cast<size_t>(p)] == 100 + p);
  }
  for (int p = 0; p < reversed->size(); ++p) {
    ELA_EXPECT_THAT(in_parity[static_cast<size_t>(p)] == 200 + 2 * p + world.rank() % 2);
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<NamedCheck> CollectiveChecks() {
  return {{"AllGatherIsEveryonesPart", AllGatherIsEveryonesPart},
          {"AllGatherWorksInPlace", AllGatherWorksInPlace},
          {"PendingCallsDoNotMix", PendingCallsDoNotMix},
          {"AllToAllMovesUnevenParts", AllToAllMovesUnevenParts},
          {"AllToAllGoesOnBesideOtherCalls", AllToAllGoesOnBesideOtherCalls},
          {"RingStepsCarryMessagesRound", RingStepsCarryMessagesRound},
          {"BroadcastReachesAllFromAnyRoot", BroadcastReachesAllFromAnyRoot},
          {"BarriersDoNotDisturbWhatIsUnderWay", BarriersDoNotDisturbWhatIsUnderWay},
          {"CountsCallsAndBytesByAxis", CountsCallsAndBytesByAxis},
          {"GroupsKeepTheirMessagesApart", GroupsKeepTheirMessagesApart}};
}

}  // namespace ela::trainer
