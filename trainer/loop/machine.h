// What a rank finds out about the machine it runs on.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "trainer/layers/layer_context.h"
#include "trainer/parallel/communicator.h"

namespace ela::trainer {

std::string HostName();

/// This process's rank in an MPI job, as far as a launcher says it; empty: started alone.
std::string LaunchedRank();

/// Of the ranks that meet the same mistake before they can agree on anything, the one that tells.
bool SpeaksForAll();

/// Collective: how many ranks of `world` run on this host.
absl::StatusOr<int> LocalRanks(Communicator& world);

/// Threads of one rank: ELA_NUM_THREADS or OMP_NUM_THREADS if set; the cores this process is bound
/// to, if it is bound to some; else the machine's (or its control group's) share of one rank.
int ChooseThreads(int local_ranks);

/// Bytes that can be had without swapping, of the machine or of the control group; 0: unknown.
int64_t AvailableMemory();
/// Bytes of this process in memory; 0: unknown.
int64_t ResidentMemory();

/// FLOP/s of a matrix product on this rank (768^3 on the CPU, 4096^3 on a device), best of five:
/// what ela_train_mfu_ratio divides by.
double MeasureProductRate(const LayerContext& layer);

}  // namespace ela::trainer
