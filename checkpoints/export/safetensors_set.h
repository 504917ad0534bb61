// The weights of a folder: model.safetensors, or the parts that model.safetensors.index.json names,
// laid out as other tools do it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "checkpoints/export/safetensors.h"

namespace ela::checkpoints {

class SafetensorsSet {
 public:
  /// NotFound (no weights, or a part of them is missing); InvalidArgument: a file or the index is
  /// damaged, or they disagree.
  static absl::StatusOr<std::unique_ptr<SafetensorsSet>> Open(const std::string& folder);
  /// Whether the folder has either.
  static bool IsIn(const std::string& folder);

  /// The file that a user knows the weights by.
  const std::string& path() const { return path_; }
  const std::map<std::string, std::string>& metadata() const { return parts_[0]->file->metadata(); }
  std::vector<std::string> names() const;
  const SafetensorsEntry* Find(const std::string& name) const;  // null: none

  /// Elements [begin, end) as floats. Reads all of a part before its first tensor, to check its
  /// hash. Errors: those of SafetensorsFile, DataLoss.
  absl::Status Read(const std::string& name, int64_t begin, int64_t end, float* out);
  /// Tells each damaged part.
  absl::Status Verify(const std::function<void(const absl::Status&)>& damage);

 private:
  struct Part {
    std::unique_ptr<SafetensorsFile> file;
    absl::Mutex mutex;
    bool checked ABSL_GUARDED_BY(mutex) = false;
  };
  explicit SafetensorsSet(std::string path) : path_(std::move(path)) {}
  absl::Status AddPart(const std::string& path);
  absl::Status OpenIndex(const std::string& folder);

  const std::string path_;
  std::vector<std::unique_ptr<Part>> parts_;  // at least one
  std::map<std::string, Part*> parts_of_;     // by tensor
};

/// Writes the tensors as one file, or as parts of at most `part_bytes` (a larger tensor has a part
/// of its own) with the index; the index comes last.
class SafetensorsSetWriter {
 public:
  /// `tensors`: name, dtype and shape, in the order in which their data will come.
  SafetensorsSetWriter(std::string folder, std::vector<SafetensorsEntry> tensors,
                       std::map<std::string, std::string> metadata, int64_t part_bytes);

  /// The next bytes of the data; one call does not cross tensors.
  absl::Status Append(const void* data, int64_t bytes);
  /// Durable when it returns OK. FailedPrecondition: not all data has come.
  absl::Status Finish();

 private:
  struct Part {
    std::string name;
    std::vector<SafetensorsEntry> tensors;
    int64_t bytes = 0;
  };
  absl::Status WriteIndex() const;

  const std::string folder_;
  const std::map<std::string, std::string> metadata_;
  std::vector<Part> parts_;
  size_t next_ = 0;      // the part to open next
  int64_t missing_ = 0;  // bytes of the open part
  std::unique_ptr<SafetensorsWriter> writer_;
};

}  // namespace ela::checkpoints
