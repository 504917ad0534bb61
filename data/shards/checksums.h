// A shard's files against the checksums of its sidecar.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "data/shards/shard_reader.h"

namespace ela::data {

/// One line for every damaged 64 MiB block of PREFIX.idx and PREFIX.bin among blocks part,
/// part + parts, ... of each: its file and bytes. Empty without a sidecar.
std::vector<std::string> DamagedBlocks(const ShardReader& shard, int64_t part = 0,
                                       int64_t parts = 1);

/// InvalidArgument, with what to do, if one of these blocks is damaged. Reads all their bytes.
absl::Status CheckBlocks(const ShardReader& shard, int64_t part, int64_t parts);

}  // namespace ela::data
