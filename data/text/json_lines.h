// Documents out of JSON lines.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace ela::data {

/// The string under `key` of the JSON object in `line`; InvalidArgument, without the place, if
/// there is none.
absl::StatusOr<std::string> TextOfJsonLine(std::string_view line, const std::string& key);

}  // namespace ela::data
