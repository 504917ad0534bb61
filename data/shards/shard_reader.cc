#include "data/shards/shard_reader.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/status_macros.h"

namespace ela::data {
namespace {

constexpr char kRebuild[] = "; copy the files again or rebuild them with ela-data build";

absl::Status Damaged(const std::string& file, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", what, kRebuild));
}

// Widens `count` tokens and returns their bounds; without branches, so that it vectorises.
template <typename T>
std::pair<int64_t, int64_t> Widen(const char* in, int64_t count, int32_t* out) {
  T low = std::numeric_limits<T>::max();
  T high = std::numeric_limits<T>::min();
  for (int64_t i = 0; i < count; ++i) {
    const T value = LoadUnaligned<T>(in + i * sizeof(T));
    low = std::min(low, value);
    high = std::max(high, value);
    out[i] = static_cast<int32_t>(value);
  }
  return {low, high};
}

template <typename T>
int64_t FirstOutside(const char* in, int64_t count, int64_t limit) {
  for (int64_t i = 0; i < count; ++i) {
    const auto value = static_cast<int64_t>(LoadUnaligned<T>(in + i * sizeof(T)));
    if (value < 0 || value >= limit) return i;
  }
  return count;
}

template <typename T>
absl::Status ReadAs(const ShardReader& shard, int64_t begin, int64_t count, int64_t limit,
                    int32_t* out) {
  if (count == 0) return absl::OkStatus();
  const char* in = shard.bin().data() + begin * static_cast<int64_t>(sizeof(T));
  const auto [low, high] = Widen<T>(in, count, out);
  if (low >= 0 && high < limit) return absl::OkStatus();
  const int64_t at = FirstOutside<T>(in, count, limit);
  return absl::InvalidArgumentError(absl::StrCat(
      shard.bin_path(), ": token ", begin + at, " has id ",
      static_cast<int64_t>(LoadUnaligned<T>(in + at * sizeof(T))), ", outside [0, ", limit,
      "); the corpus was built with another tokenizer or is damaged: set vocab_size to the "
      "tokenizer's, or run ela-data verify ",
      shard.prefix()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<ShardReader>> ShardReader::Open(const std::string& prefix) {
  auto shard = std::make_unique<ShardReader>();
  shard->prefix_ = prefix;
  for (auto [path, file] :
       {std::pair{shard->idx_path(), &shard->idx_}, std::pair{shard->bin_path(), &shard->bin_}}) {
    auto mapped = MappedFile::Open(path);
    if (absl::IsNotFound(mapped.status())) {
      return absl::NotFoundError(absl::StrCat(
          path, ": no such file; a corpus is named by its prefix, without .bin or .idx, and made ",
          "with ela-data build --output ", prefix));
    }
    ELA_RETURN_IF_ERROR(mapped.status());
    *file = *std::move(mapped);
  }
  ELA_RETURN_IF_ERROR(shard->ParseHeader());
  ELA_RETURN_IF_ERROR(shard->CheckEnds());
  if (shard->sequences_ <= kFullCheckSequences) ELA_RETURN_IF_ERROR(shard->CheckIndex());
  ELA_RETURN_IF_ERROR(shard->LoadSidecar());
  return shard;
}

absl::Status ShardReader::ParseHeader() {
  const char* at = idx_.data();
  if (idx_.size() < kIndexHeaderBytes) {
    return Damaged(idx_path(), absl::StrCat("truncated: ", idx_.size(),
                                            " bytes, the header alone has ", kIndexHeaderBytes));
  }
  if (idx_.view().substr(0, kIndexMagic.size()) != kIndexMagic) {
    return Damaged(idx_path(), "not an index: it does not start with MMIDIDX");
  }
  at += kIndexMagic.size();
  const auto version = LoadUnaligned<uint64_t>(at);
  if (version != kIndexVersion) {
    return Damaged(idx_path(), absl::StrCat("version ", version, ", only version 1 is known"));
  }
  type_ = static_cast<TokenType>(at[8]);
  token_bytes_ = TokenBytes(type_);
  if (token_bytes_ == 0) {
    return Damaged(idx_path(), absl::StrCat("element type ", static_cast<int>(at[8]), " (",
                                            TypeName(type_), ") is no integer type of tokens"));
  }
  const auto sequences = LoadUnaligned<uint64_t>(at + 9);
  const auto entries = LoadUnaligned<uint64_t>(at + 17);
  const auto room = static_cast<uint64_t>(idx_.size() - kIndexHeaderBytes);
  // The first two conditions keep the products of the third from overflowing.
  if (sequences > room / 12 || entries > room / 8 || sequences * 12 + entries * 8 != room) {
    return Damaged(idx_path(),
                   absl::StrCat("truncated or damaged: ", idx_.size(), " bytes do not hold ",
                                sequences, " sequences and ", entries, " document entries"));
  }
  sequences_ = static_cast<int64_t>(sequences);
  document_entries_ = static_cast<int64_t>(entries);
  lengths_ = idx_.data() + kIndexHeaderBytes;
  pointers_ = lengths_ + 4 * sequences_;
  documents_ = pointers_ + 8 * sequences_;
  tokens_ = bin_.size() / token_bytes_;
  return absl::OkStatus();
}

absl::Status ShardReader::CheckEnds() const {
  const int64_t last = sequences_ - 1;
  int64_t indexed = 0;
  if (sequences_ > 0) {
    // The bound keeps the sum below from overflowing.
    if (Pointer(last) < 0 || Pointer(last) > INT64_MAX / 2 || Length(last) < 0) {
      return Damaged(idx_path(), absl::StrCat("sequence ", last, ": pointer ", Pointer(last),
                                              " or length ", Length(last), " out of range"));
    }
    indexed = Pointer(last) + Length(last) * token_bytes_;
  }
  if (indexed != bin_.size()) {
    return Damaged(bin_path(), absl::StrCat(bin_.size(), " bytes, but the index ends at ", indexed,
                                            indexed > bin_.size() ? " (truncated?)" : ""));
  }
  if (document_entries_ < 1 || DocumentEntry(0) != 0 ||
      DocumentEntry(document_entries_ - 1) != sequences_) {
    return Damaged(
        idx_path(),
        absl::StrCat("document entries must go from 0 to the number of sequences, ", sequences_));
  }
  return absl::OkStatus();
}

absl::Status ShardReader::CheckIndex() const {
  int64_t expected = 0;
  for (int64_t s = 0; s < sequences_; ++s) {
    if (Length(s) < 0) {
      return Damaged(idx_path(), absl::StrCat("sequence ", s, ": negative length ", Length(s)));
    }
    if (Pointer(s) != expected) {
      return Damaged(idx_path(),
                     absl::StrCat("sequence ", s, ": pointer ", Pointer(s), ", expected ", expected,
                                  ": lengths before it do not add up"));
    }
    expected += Length(s) * token_bytes_;
  }
  for (int64_t d = 1; d < document_entries_; ++d) {
    if (DocumentEntry(d) < DocumentEntry(d - 1) || DocumentEntry(d) > sequences_) {
      return Damaged(idx_path(), absl::StrCat("document entry ", d, ": ", DocumentEntry(d),
                                              " is out of order or range"));
    }
  }
  return absl::OkStatus();
}

absl::Status ShardReader::LoadSidecar() {
  const std::string path = prefix_ + ".json";
  auto file = MappedFile::Open(path);
  if (absl::IsNotFound(file.status())) return absl::OkStatus();
  ELA_RETURN_IF_ERROR(file.status());
  ELA_ASSIGN_OR_RETURN(sidecar_, SidecarFromJson(file->view(), path));
  if (sidecar_->bin.bytes != bin_.size() || sidecar_->idx.bytes != idx_.size()) {
    return Damaged(path, absl::StrCat("describes a .bin of ", sidecar_->bin.bytes,
                                      " and an .idx of ", sidecar_->idx.bytes, " bytes, found ",
                                      bin_.size(), " and ", idx_.size()));
  }
  if (sidecar_->tokens != tokens_ || sidecar_->documents != documents()) {
    return Damaged(path,
                   absl::StrCat("says ", sidecar_->tokens, " tokens and ", sidecar_->documents,
                                " documents, found ", tokens_, " and ", documents()));
  }
  return absl::OkStatus();
}

int64_t ShardReader::DocumentBegin(int64_t d) const {
  const int64_t s = std::clamp<int64_t>(DocumentEntry(d), 0, sequences_);
  if (s == sequences_) return tokens_;
  return std::clamp<int64_t>(Pointer(s) / token_bytes_, 0, tokens_);
}

int64_t ShardReader::FirstDocumentAfter(int64_t token) const {
  int64_t low = 0;
  int64_t high = documents();
  while (low < high) {
    const int64_t mid = low + (high - low) / 2;
    if (DocumentBegin(mid) > token) {
      high = mid;
    } else {
      low = mid + 1;
    }
  }
  return low;
}

absl::Status ShardReader::Read(int64_t begin, int64_t count, int64_t vocab_size,
                               int32_t* out) const {
  if (begin < 0 || count < 0 || begin > tokens_ || count > tokens_ - begin) {
    return absl::OutOfRangeError(
        absl::StrCat(bin_path(), ": tokens [", begin, ", ", begin + count, ") of ", tokens_));
  }
  const int64_t limit = vocab_size > 0 ? vocab_size : int64_t{1} << 31;
  switch (type_) {
    case TokenType::kU8:
      return ReadAs<uint8_t>(*this, begin, count, limit, out);
    case TokenType::kI8:
      return ReadAs<int8_t>(*this, begin, count, limit, out);
    case TokenType::kI16:
      return ReadAs<int16_t>(*this, begin, count, limit, out);
    case TokenType::kI32:
      return ReadAs<int32_t>(*this, begin, count, limit, out);
    case TokenType::kI64:
      return ReadAs<int64_t>(*this, begin, count, limit, out);
    case TokenType::kU16:
      return ReadAs<uint16_t>(*this, begin, count, limit, out);
    case TokenType::kF64:
    case TokenType::kF32:
      break;
  }
  return absl::InternalError("no integer type of tokens");
}

std::string ShardReader::Fingerprint() const {
  constexpr int64_t kBlocks = 64;
  constexpr int64_t kBlockBytes = 4096;
  std::string parts;
  for (const MappedFile* file : {&idx_, &bin_}) {
    absl::StrAppend(&parts, file->size(), ":");
    for (int64_t i = 0; i < kBlocks; ++i) {
      // Evenly spaced, the first block at the start and the last one at the end.
      const int64_t slack = std::max<int64_t>(0, file->size() - kBlockBytes);
      const int64_t at = static_cast<int64_t>(static_cast<__int128>(slack) * i / (kBlocks - 1));
      absl::StrAppend(&parts, HexHash(file->view().substr(at, kBlockBytes)));
    }
  }
  return HexHash(parts);
}

}  // namespace ela::data
