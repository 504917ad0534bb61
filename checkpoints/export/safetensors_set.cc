#include "checkpoints/export/safetensors_set.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoints/export/folder_format.h"
#include "checkpoints/kv/files.h"
#include "proto/status_macros.h"

namespace ela::checkpoints {
namespace {

using nlohmann::json;

constexpr size_t kMaxIndexBytes = size_t{64} << 20;

/// {tensor: file name} of an index; the names stay within the folder.
absl::StatusOr<std::map<std::string, std::string>> ParseIndex(const std::string& text,
                                                              const std::string& path) {
  const auto wrong = [&](const std::string& why) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is no index of safetensors files: ", why));
  };
  const json parsed = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object() || !parsed.contains("weight_map") || !parsed["weight_map"].is_object() ||
      parsed["weight_map"].empty()) {
    return wrong("it has no object \"weight_map\"");
  }
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : parsed["weight_map"].items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (name.empty() || name.find('/') != std::string::npos || name.starts_with('.')) {
      return wrong(absl::StrCat("tensor \"", tensor, "\" is not in a file of this folder"));
    }
    files[tensor] = name;
  }
  return files;
}

}  // namespace

bool SafetensorsSet::IsIn(const std::string& folder) {
  return kv::Exists(absl::StrCat(folder, "/", kWeightsName)) ||
         kv::Exists(absl::StrCat(folder, "/", kIndexName));
}

absl::StatusOr<std::unique_ptr<SafetensorsSet>> SafetensorsSet::Open(const std::string& folder) {
  const std::string single = absl::StrCat(folder, "/", kWeightsName);
  if (!kv::Exists(single)) {
    std::unique_ptr<SafetensorsSet> set(new SafetensorsSet(absl::StrCat(folder, "/", kIndexName)));
    ELA_RETURN_IF_ERROR(set->OpenIndex(folder));
    return set;
  }
  std::unique_ptr<SafetensorsSet> set(new SafetensorsSet(single));
  ELA_RETURN_IF_ERROR(set->AddPart(single));
  for (const SafetensorsEntry& entry : set->parts_[0]->file->tensors()) {
    set->parts_of_[entry.name] = set->parts_[0].get();
  }
  return set;
}

absl::Status SafetensorsSet::AddPart(const std::string& path) {
  parts_.push_back(std::make_unique<Part>());
  ELA_ASSIGN_OR_RETURN(parts_.back()->file, SafetensorsFile::Open(path));
  return absl::OkStatus();
}

absl::Status SafetensorsSet::OpenIndex(const std::string& folder) {
  ELA_ASSIGN_OR_RETURN(const std::string text, kv::ReadFile(path_, kMaxIndexBytes));
  ELA_ASSIGN_OR_RETURN(const auto files, ParseIndex(text, path_));
  std::map<std::string, Part*> opened;
  for (const auto& [tensor, name] : files) {
    Part*& part = opened[name];
    if (part == nullptr) {
      ELA_RETURN_IF_ERROR(AddPart(absl::StrCat(folder, "/", name)));
      part = parts_.back().get();
    }
    if (part->file->Find(tensor) == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(part->file->path(), " has no tensor ", tensor,
                                                     ", which ", path_, " says is in it"));
    }
    parts_of_[tensor] = part;
  }
  return absl::OkStatus();
}

std::vector<std::string> SafetensorsSet::names() const {
  std::vector<std::string> names;
  for (const auto& [name, part] : parts_of_) names.push_back(name);
  return names;
}

const SafetensorsEntry* SafetensorsSet::Find(const std::string& name) const {
  const auto it = parts_of_.find(name);
  return it == parts_of_.end() ? nullptr : it->second->file->Find(name);
}

absl::Status SafetensorsSet::Read(const std::string& name, int64_t begin, int64_t end, float* out) {
  const auto it = parts_of_.find(name);
  if (it == parts_of_.end()) return absl::NotFoundError(absl::StrCat(path_, " has no ", name));
  Part& part = *it->second;
  {
    const absl::MutexLock lock(&part.mutex);
    if (!part.checked) ELA_RETURN_IF_ERROR(part.file->CheckHash());
    part.checked = true;
  }
  return part.file->Read(name, begin, end, out);
}

absl::Status SafetensorsSet::Verify(const std::function<void(const absl::Status&)>& damage) {
  for (const std::unique_ptr<Part>& part : parts_) {
    const absl::Status whole = part->file->CheckHash();
    if (absl::IsDataLoss(whole)) {
      damage(whole);
    } else {
      ELA_RETURN_IF_ERROR(whole);
    }
  }
  return absl::OkStatus();
}

SafetensorsSetWriter::SafetensorsSetWriter(std::string folder,
                                           std::vector<SafetensorsEntry> tensors,
                                           std::map<std::string, std::string> metadata,
                                           int64_t part_bytes)
    : folder_(std::move(folder)), metadata_(std::move(metadata)) {
  parts_.emplace_back();
  for (SafetensorsEntry& entry : tensors) {
    const int64_t bytes = entry.numel() * SafetensorsElementBytes(entry.dtype);
    if (!parts_.back().tensors.empty() && parts_.back().bytes + bytes > part_bytes) {
      parts_.emplace_back();
    }
    parts_.back().bytes += bytes;
    parts_.back().tensors.push_back(std::move(entry));
  }
  for (size_t i = 0; i < parts_.size(); ++i) {
    parts_[i].name = parts_.size() == 1
                         ? std::string(kWeightsName)
                         : absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, parts_.size());
  }
}

absl::Status SafetensorsSetWriter::Append(const void* data, int64_t bytes) {
  if (writer_ == nullptr || (missing_ == 0 && bytes > 0)) {
    if (writer_ != nullptr) ELA_RETURN_IF_ERROR(writer_->Finish());
    if (next_ == parts_.size()) {
      return absl::FailedPreconditionError(
          absl::StrCat("more data than the tensors of ", folder_, " take"));
    }
    const Part& part = parts_[next_++];
    missing_ = part.bytes;
    ELA_ASSIGN_OR_RETURN(writer_, SafetensorsWriter::Create(absl::StrCat(folder_, "/", part.name),
                                                            part.tensors, metadata_));
  }
  missing_ -= bytes;
  return writer_->Append(data, bytes);
}

absl::Status SafetensorsSetWriter::Finish() {
  if (writer_ == nullptr) ELA_RETURN_IF_ERROR(Append("", 0));
  ELA_RETURN_IF_ERROR(writer_->Finish());
  if (next_ < parts_.size()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the data of ", parts_[next_].name, " has not come"));
  }
  return parts_.size() == 1 ? absl::OkStatus() : WriteIndex();
}

absl::Status SafetensorsSetWriter::WriteIndex() const {
  json map = json::object();
  int64_t bytes = 0;
  for (const Part& part : parts_) {
    bytes += part.bytes;
    for (const SafetensorsEntry& entry : part.tensors) map[entry.name] = part.name;
  }
  const json index = {{"metadata", {{"total_size", bytes}}}, {"weight_map", std::move(map)}};
  return kv::WriteFileDurably(absl::StrCat(folder_, "/", kIndexName), index.dump(2) + "\n");
}

}  // namespace ela::checkpoints
