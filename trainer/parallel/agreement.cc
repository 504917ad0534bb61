#include "trainer/parallel/agreement.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/status_macros.h"

namespace ela::trainer {
namespace {

constexpr size_t kMaxBytes = 480;

/// Cuts at the start of a UTF-8 character.
void Cut(std::string* text) {
  if (text->size() <= kMaxBytes) return;
  size_t end = kMaxBytes;
  while (end > 0 && (static_cast<unsigned char>((*text)[end]) & 0xc0) == 0x80) --end;
  text->resize(end);
}

}  // namespace

absl::Status AgreeOk(Communicator& group, const absl::Status& mine) {
  const int32_t code = static_cast<int32_t>(mine.code());
  std::vector<int32_t> codes(static_cast<size_t>(group.size()));
  ELA_RETURN_IF_ERROR(group.AllGather(codes.data(), &code, sizeof code));
  const auto first = std::find_if(codes.begin(), codes.end(), [](int32_t c) { return c != 0; });
  if (first == codes.end()) return absl::OkStatus();
  const int rank = static_cast<int>(first - codes.begin());

  std::string text = absl::StrCat("rank ", rank, ": ", mine.message());
  Cut(&text);
  text.resize(kMaxBytes, '\0');
  ELA_RETURN_IF_ERROR(group.Broadcast(text.data(), text.size(), rank));
  text.resize(text.find_last_not_of('\0') + 1);
  return absl::Status(static_cast<absl::StatusCode>(*first), text);
}

}  // namespace ela::trainer
