#include "checkpoints/shard_options.h"

#include <cstring>
#include <memory>

#include "checkpoints/kv/rocksdb_support.h"
#include "checkpoints/xxh3.h"
#include "rocksdb/file_checksum.h"
#include "rocksdb/table.h"

namespace ela::checkpoints {
namespace {

class Generator : public rocksdb::FileChecksumGenerator {
 public:
  void Update(const char* data, size_t bytes) override { hash_.Update(data, bytes); }
  void Finalize() override {}
  std::string GetChecksum() const override {
    const uint64_t digest = hash_.Digest();
    return {reinterpret_cast<const char*>(&digest), sizeof(digest)};
  }
  const char* Name() const override { return "XXH3"; }

 private:
  Xxh3Stream hash_;
};

class Factory : public rocksdb::FileChecksumGenFactory {
 public:
  std::unique_ptr<rocksdb::FileChecksumGenerator> CreateFileChecksumGenerator(
      const rocksdb::FileChecksumGenContext&) override {
    return std::make_unique<Generator>();
  }
  const char* Name() const override { return "XXH3"; }
};

}  // namespace

rocksdb::Options ShardOptions() {
  rocksdb::Options options = kv::BaseOptions(std::make_shared<kv::DamageLog>());
  rocksdb::BlockBasedTableOptions table;
  table.checksum = rocksdb::kXXH3;
  table.format_version = 5;
  table.block_size = 1;  // a block ends with the first chunk in it
  table.no_block_cache = true;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  options.file_checksum_gen_factory = std::make_shared<Factory>();
  options.disable_auto_compactions = true;
  options.max_open_files = -1;
  options.bytes_per_sync = uint64_t{8} << 20;  // the disk works while we do
  options.advise_random_on_open = false;
  options.compaction_readahead_size = 0;
  return options;
}

uint64_t FileXxh3(const std::string& file_checksum) {
  uint64_t digest = 0;
  if (file_checksum.size() == sizeof(digest)) {
    std::memcpy(&digest, file_checksum.data(), sizeof(digest));
  }
  return digest;
}

}  // namespace ela::checkpoints
