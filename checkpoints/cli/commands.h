// The verbs of ela-checkpoint. Data goes to `out`, messages to `err`.
#pragma once

#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/export/exported_folder.h"

namespace ela::checkpoints {

struct Output {
  std::ostream* out = nullptr;
  std::ostream* err = nullptr;
  bool json = false;
};

absl::Status ListCommand(const std::string& path, const Output& output);
absl::Status DescribeCommand(const std::string& path_at_step, const Output& output);
/// True: all whole. False: damage was found and told, and the newest whole step before it offered.
absl::StatusOr<bool> VerifyCommand(const std::string& path_at_step, bool all, const Output& output);
/// True: the same tensors with the same bits.
absl::StatusOr<bool> DiffCommand(const std::string& left, const std::string& right,
                                 const Output& output);
absl::Status ExportCommand(const std::string& path_at_step, const ExportOptions& options,
                           const Output& output);
absl::Status ImportCommand(const ImportOptions& options, const Output& output);

}  // namespace ela::checkpoints
