#include "data/shards/sidecar.h"

#include <xxhash.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "data/shards/format.h"

namespace ela::data {
namespace {

using nlohmann::json;

constexpr char kFormatName[] = "ela.data/v1";

std::string Hex(uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(value));
  return text;
}

json ChecksumsToJson(const FileChecksums& sums) {
  return {{"bytes", sums.bytes}, {"xxh3", sums.xxh3}};
}

FileChecksums ChecksumsFromJson(const json& value) {
  return {value.at("bytes").get<int64_t>(), value.at("xxh3").get<std::vector<std::string>>()};
}

}  // namespace

std::string HexHash(std::string_view bytes) { return Hex(XXH3_64bits(bytes.data(), bytes.size())); }

std::string SidecarToJson(const Sidecar& sidecar) {
  nlohmann::ordered_json out;
  out["format"] = kFormatName;
  out["tokenizer_hash"] = sidecar.tokenizer_hash;
  out["end_of_document"] = sidecar.end_of_document;
  out["vocab_size"] = sidecar.vocab_size;
  out["tokens"] = sidecar.tokens;
  out["documents"] = sidecar.documents;
  out["text_bytes"] = sidecar.text_bytes;
  out["checksum_block_bytes"] = kChecksumBlockBytes;
  out["bin"] = ChecksumsToJson(sidecar.bin);
  out["idx"] = ChecksumsToJson(sidecar.idx);
  return out.dump(2) + "\n";
}

absl::StatusOr<Sidecar> SidecarFromJson(std::string_view text, const std::string& file) {
  try {
    const json in = json::parse(text);
    if (in.at("format") != kFormatName) {
      return absl::InvalidArgumentError(absl::StrCat(
          file, ": format is ", in.at("format").dump(), ", expected \"", kFormatName,
          "\"; rebuild the corpus with ela-data build, or remove the file to go without checks"));
    }
    if (in.at("checksum_block_bytes").get<int64_t>() != kChecksumBlockBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": checksum_block_bytes must be ", kChecksumBlockBytes));
    }
    Sidecar sidecar;
    sidecar.tokenizer_hash = in.at("tokenizer_hash").get<std::string>();
    sidecar.end_of_document = in.at("end_of_document").get<int64_t>();
    sidecar.vocab_size = in.at("vocab_size").get<int64_t>();
    sidecar.tokens = in.at("tokens").get<int64_t>();
    sidecar.documents = in.at("documents").get<int64_t>();
    sidecar.text_bytes = in.at("text_bytes").get<int64_t>();
    sidecar.bin = ChecksumsFromJson(in.at("bin"));
    sidecar.idx = ChecksumsFromJson(in.at("idx"));
    return sidecar;
  } catch (const json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(
        file, ": damaged sidecar: ", error.what(),
        "; rebuild the corpus with ela-data build, or remove the file to go without checks"));
  }
}

BlockHasher::BlockHasher() : state_(XXH3_createState()) {
  XXH3_64bits_reset(static_cast<XXH3_state_t*>(state_));
}

BlockHasher::~BlockHasher() { XXH3_freeState(static_cast<XXH3_state_t*>(state_)); }

void BlockHasher::EndBlock() {
  auto* state = static_cast<XXH3_state_t*>(state_);
  sums_.xxh3.push_back(Hex(XXH3_64bits_digest(state)));
  XXH3_64bits_reset(state);
  in_block_ = 0;
}

void BlockHasher::Add(std::string_view bytes) {
  while (!bytes.empty()) {
    const size_t take = std::min<size_t>(bytes.size(), kChecksumBlockBytes - in_block_);
    XXH3_64bits_update(static_cast<XXH3_state_t*>(state_), bytes.data(), take);
    in_block_ += static_cast<int64_t>(take);
    sums_.bytes += static_cast<int64_t>(take);
    bytes.remove_prefix(take);
    if (in_block_ == kChecksumBlockBytes) EndBlock();
  }
}

FileChecksums BlockHasher::Finish() {
  if (in_block_ > 0) EndBlock();
  return std::move(sums_);
}

}  // namespace ela::data
