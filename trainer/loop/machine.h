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

/// Bytes that can be had without swapping, of the machine or of the control group, whose page cache
/// would make way; 0: unknown. `root` is where /proc and /sys are.
int64_t AvailableMemory(const std::string& root = "");
/// Bytes of this process in memory; 0: unknown.
int64_t ResidentMemory();

/// FLOP/s of a product of size^3 of random numbers on this rank, the best of five runs, by the
/// device's clock where there is one. With the default (768 on the CPU, 4096 on a device) it is
/// what ela_train_mfu_ratio divides by.
double MeasureProductRate(const LayerContext& layer, int64_t size = 0);

}  // namespace ela::trainer
