#include "data/text/json_lines.h"

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace ela::data {

absl::StatusOr<std::string> TextOfJsonLine(std::string_view line, const std::string& key) {
  using nlohmann::json;
  // Only the members of the outermost object matter: deeper values are dropped as they are read.
  const auto keep = [](int depth, json::parse_event_t event, json&) {
    return depth <= 1 || event == json::parse_event_t::key;
  };
  try {
    json object = json::parse(line, keep);
    const auto found = object.find(key);
    if (!object.is_object() || found == object.end() || !found->is_string()) {
      return absl::InvalidArgumentError(absl::StrCat("no JSON object with a string \"", key, "\""));
    }
    return std::move(found->get_ref<std::string&>());
  } catch (const json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("not JSON: ", error.what()));
  }
}

}  // namespace ela::data
