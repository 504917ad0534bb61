// The header of a safetensors file: strict, since files come from anywhere.
#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "checkpoints/export/safetensors.h"
#include "proto/status_macros.h"

namespace ela::checkpoints {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 8;  // of the JSON: a header needs 3

absl::Status Wrong(const std::string& what, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat(what, " is no safetensors file: ", why));
}

bool ReadInteger(const json& value, int64_t* out) {
  if (!value.is_number_unsigned()) return false;
  const auto number = value.get<uint64_t>();
  if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return false;
  *out = static_cast<int64_t>(number);
  return true;
}

/// JSON that neither repeats a key nor nests deeply; discarded if it does, or is none.
json ParseStrictly(std::string_view text) {
  std::vector<std::set<std::string>> keys;
  bool fine = true;
  const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth > kMaxDepth) fine = false;
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end && !keys.empty()) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.empty()) {
      fine = keys.back().insert(parsed.get<std::string>()).second && fine;
    }
    return fine;
  };
  json parsed = json::parse(text.begin(), text.end(), check, /*allow_exceptions=*/false);
  return fine ? parsed : json(json::value_t::discarded);
}

absl::StatusOr<SafetensorsEntry> ParseEntry(const std::string& name, const json& value,
                                            const std::string& what) {
  const auto wrong = [&](const std::string& why) {
    return Wrong(what, absl::StrCat("tensor \"", name, "\" ", why));
  };
  if (!value.is_object() || value.size() != 3 || !value.contains("dtype") ||
      !value.contains("shape") || !value.contains("data_offsets")) {
    return wrong("does not have exactly dtype, shape and data_offsets");
  }
  SafetensorsEntry entry;
  entry.name = name;
  if (!value["dtype"].is_string()) return wrong("has a dtype that is no string");
  entry.dtype = value["dtype"].get<std::string>();
  const int64_t element_bytes = SafetensorsElementBytes(entry.dtype);
  if (element_bytes == 0) return wrong(absl::StrCat("has the unknown dtype ", entry.dtype));
  if (!value["shape"].is_array()) return wrong("has a shape that is no list");
  int64_t bytes = element_bytes;
  for (const json& extent : value["shape"]) {
    int64_t size = 0;
    if (!ReadInteger(extent, &size) || __builtin_mul_overflow(bytes, size, &bytes)) {
      return wrong("has an impossible shape");
    }
    entry.shape.push_back(size);
  }
  const json& offsets = value["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !ReadInteger(offsets[0], &entry.begin) ||
      !ReadInteger(offsets[1], &entry.end) || entry.end < entry.begin) {
    return wrong("has impossible data_offsets");
  }
  if (entry.end - entry.begin != bytes) {
    return wrong(
        absl::StrCat("has ", entry.end - entry.begin, " bytes, and its shape takes ", bytes));
  }
  return entry;
}

absl::Status CheckOrder(const std::vector<SafetensorsEntry>& tensors, int64_t data_bytes,
                        const std::string& what) {
  int64_t at = 0;
  for (const SafetensorsEntry& entry : tensors) {
    if (entry.begin != at) {
      return Wrong(what, absl::StrCat("tensor \"", entry.name, "\" begins at byte ", entry.begin,
                                      " of the data instead of ", at));
    }
    at = entry.end;
  }
  if (at == data_bytes) return absl::OkStatus();
  return Wrong(what,
               absl::StrCat("it holds ", data_bytes, " bytes of data, and its tensors take ", at));
}

}  // namespace

int64_t SafetensorsEntry::numel() const {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

int64_t SafetensorsElementBytes(std::string_view dtype) {
  static constexpr std::pair<std::string_view, int64_t> kBytes[] = {
      {"F32", 4}, {"BF16", 2}, {"F16", 2},  {"F64", 8}, {"I64", 8}, {"I32", 4}, {"I16", 2},
      {"I8", 1},  {"U8", 1},   {"BOOL", 1}, {"U16", 2}, {"U32", 4}, {"U64", 8}};
  for (const auto& [name, bytes] : kBytes) {
    if (name == dtype) return bytes;
  }
  return 0;
}

absl::Status CheckFloating(const SafetensorsEntry& entry, const std::string& path) {
  for (const char* dtype : {"F64", "F32", "F16", "BF16"}) {
    if (entry.dtype == dtype) return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("tensor ", entry.name, " of ", path, " is ",
                                                 entry.dtype, ", not a floating type"));
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view text, int64_t data_bytes,
                                                         const std::string& what) {
  const json parsed = ParseStrictly(text);
  if (!parsed.is_object()) return Wrong(what, "its header is no JSON object without repeated keys");
  SafetensorsHeader header;
  for (const auto& [name, value] : parsed.items()) {
    if (name == "__metadata__") {
      if (!value.is_object()) return Wrong(what, "__metadata__ is no object");
      for (const auto& [key, text_value] : value.items()) {
        if (!text_value.is_string()) return Wrong(what, "__metadata__ holds more than strings");
        header.metadata[key] = text_value.get<std::string>();
      }
      continue;
    }
    ELA_ASSIGN_OR_RETURN(SafetensorsEntry entry, ParseEntry(name, value, what));
    header.tensors.push_back(std::move(entry));
  }
  // An empty tensor lies before the one that begins where it does.
  std::sort(header.tensors.begin(), header.tensors.end(), [](const auto& a, const auto& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  ELA_RETURN_IF_ERROR(CheckOrder(header.tensors, data_bytes, what));
  return header;
}

}  // namespace ela::checkpoints
