// RocksDB as the shards use it.
#pragma once

#include <cstdint>
#include <string>

#include "rocksdb/options.h"

namespace ela::checkpoints {

/// One block a chunk, no compression, XXH3 of every block and of the whole file, no compaction.
rocksdb::Options ShardOptions();

/// The XXH3 that ShardOptions' file checksum holds.
uint64_t FileXxh3(const std::string& file_checksum);

}  // namespace ela::checkpoints
