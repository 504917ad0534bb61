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

/// InvalidArgument, with what to do, if a block is damaged among the part-th of `parts` shares of
/// the shards of `prefixes`. Reads all the bytes of the share.
absl::Status CheckShards(const std::vector<std::string>& prefixes, int64_t part, int64_t parts);

}  // namespace ela::data
