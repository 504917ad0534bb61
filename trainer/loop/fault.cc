#include "trainer/loop/fault.h"

#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace ela::trainer {

absl::StatusOr<Fault> Fault::Parse(const std::string& text) {
  Fault fault;
  if (text.empty()) return fault;
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  const bool known = parts[0] == "nan" || parts[0] == "kill";
  if (parts.size() != 3 || !known || !absl::SimpleAtoi(parts[1], &fault.rank) ||
      !absl::SimpleAtoi(parts[2], &fault.step)) {
    return absl::InvalidArgumentError(
        absl::StrCat("ELA_FAULT=", text, ": want nan:<rank>:<step> or kill:<rank>:<step>"));
  }
  fault.kind = parts[0] == "nan" ? Kind::kNan : Kind::kKill;
  return fault;
}

}  // namespace ela::trainer
