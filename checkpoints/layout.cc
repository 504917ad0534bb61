#include "checkpoints/layout.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "checkpoints/xxh3.h"

namespace ela::checkpoints {
namespace {

constexpr char kMagic[] = "ELACMT1\n";
constexpr size_t kMagicBytes = sizeof(kMagic) - 1;
constexpr size_t kSealBytes = kMagicBytes + 8;  // magic, XXH3

std::string LittleEndian64(uint64_t value) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) {
    bytes[static_cast<size_t>(i)] = static_cast<char>(value >> (8 * i) & 0xff);
  }
  return bytes;
}

void AppendBigEndian32(uint32_t value, std::string* key) {
  for (int shift = 24; shift >= 0; shift -= 8) key->push_back(static_cast<char>(value >> shift));
}

}  // namespace

std::string CatalogFolder(const std::string& path) { return path + "/catalog"; }
std::string StepsFolder(const std::string& path) { return path + "/steps"; }

std::string StepName(int64_t step, int64_t attempt) {
  return absl::StrCat(absl::Dec(step, absl::kZeroPad12), ".", attempt);
}

std::optional<StepAttempt> ParseStepName(const std::string& name) {
  const size_t dot = name.find('.');
  StepAttempt parsed;
  if (dot == std::string::npos || !absl::SimpleAtoi(name.substr(0, dot), &parsed.step) ||
      !absl::SimpleAtoi(name.substr(dot + 1), &parsed.attempt) ||
      StepName(parsed.step, parsed.attempt) != name) {
    return std::nullopt;
  }
  return parsed;
}

std::string StepFolder(const std::string& path, int64_t step, int64_t attempt) {
  return absl::StrCat(StepsFolder(path), "/", StepName(step, attempt));
}

std::string CommitFile(const std::string& step_folder) { return step_folder + "/COMMIT"; }

std::string WriterFolder(const std::string& step_folder, int writer) {
  return absl::StrCat(step_folder, "/w", absl::Dec(writer, absl::kZeroPad5));
}

std::string ChunkKey(uint32_t tensor, uint32_t piece, uint32_t chunk) {
  std::string key = "d";
  for (const uint32_t part : {tensor, piece, chunk}) AppendBigEndian32(part, &key);
  return key;
}

std::string Seal(const v1::StepManifest& manifest) {
  const std::string message = manifest.SerializeAsString();
  return absl::StrCat(kMagic, LittleEndian64(Xxh3(message)), message);
}

absl::StatusOr<v1::StepManifest> Unseal(std::string_view sealed, const std::string& what) {
  const auto damaged = [&](const std::string& why) {
    return absl::DataLossError(absl::StrCat(what, " is damaged: ", why));
  };
  if (sealed.size() < kSealBytes) return damaged(absl::StrCat("only ", sealed.size(), " bytes"));
  if (sealed.substr(0, kMagicBytes) != kMagic) return damaged("it does not start as a manifest");
  const std::string_view message = sealed.substr(kSealBytes);
  if (sealed.substr(kMagicBytes, 8) != LittleEndian64(Xxh3(message))) {
    return damaged("its checksum does not match");
  }
  v1::StepManifest manifest;
  if (!manifest.ParseFromArray(message.data(), static_cast<int>(message.size()))) {
    return damaged("it is no manifest");
  }
  return manifest;
}

}  // namespace ela::checkpoints
