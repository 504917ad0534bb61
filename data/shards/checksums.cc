#include "data/shards/checksums.h"

#include <algorithm>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "data/shards/format.h"
#include "data/shards/mapped_file.h"
#include "data/shards/sidecar.h"

namespace ela::data {
namespace {

void AddDamaged(const std::string& path, const MappedFile& file, const FileChecksums& expected,
                int64_t part, int64_t parts, std::vector<std::string>* found) {
  const int64_t blocks = (file.size() + kChecksumBlockBytes - 1) / kChecksumBlockBytes;
  if (blocks != static_cast<int64_t>(expected.xxh3.size())) {
    found->push_back(
        absl::StrCat(path, ": ", blocks, " blocks, the sidecar has ", expected.xxh3.size()));
    return;
  }
  for (int64_t b = part; b < blocks; b += parts) {
    const int64_t begin = b * kChecksumBlockBytes;
    const int64_t end = std::min<int64_t>(begin + kChecksumBlockBytes, file.size());
    const std::string hash =
        HexHash(file.view().substr(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
    const std::string& wanted = expected.xxh3[static_cast<size_t>(b)];
    if (hash == wanted) continue;
    found->push_back(absl::StrCat(path, ": bytes ", begin, " to ", end, " are damaged: checksum ",
                                  hash, ", expected ", wanted));
  }
}

}  // namespace

std::vector<std::string> DamagedBlocks(const ShardReader& shard, int64_t part, int64_t parts) {
  std::vector<std::string> found;
  if (!shard.sidecar().has_value()) return found;
  AddDamaged(shard.idx_path(), shard.idx(), shard.sidecar()->idx, part, parts, &found);
  AddDamaged(shard.bin_path(), shard.bin(), shard.sidecar()->bin, part, parts, &found);
  return found;
}

absl::Status CheckBlocks(const ShardReader& shard, int64_t part, int64_t parts) {
  const std::vector<std::string> damaged = DamagedBlocks(shard, part, parts);
  if (damaged.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(damaged.front(), "; build the corpus again with ela data build"));
}

}  // namespace ela::data
