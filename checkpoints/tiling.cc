#include "checkpoints/tiling.h"

#include <algorithm>
#include <limits>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/status_macros.h"

namespace ela::checkpoints {
namespace {

struct Part {
  int64_t begin, end;
  int writer;
};

absl::Status Fault(const std::string& tensor, int64_t begin, int64_t end, const std::string& what) {
  return absl::InvalidArgumentError(
      absl::StrCat("tensor ", tensor, " elements [", begin, ", ", end, ") ", what));
}

absl::Status CheckParts(const std::string& tensor, int64_t count, std::vector<Part> parts) {
  std::sort(parts.begin(), parts.end(),
            [](const Part& a, const Part& b) { return a.begin < b.begin; });
  int64_t covered = 0;
  for (const Part& part : parts) {
    if (part.begin < covered) {
      return Fault(tensor, part.begin, std::min(covered, part.end), "are written twice");
    }
    if (part.begin > covered) return Fault(tensor, covered, part.begin, "are written by nobody");
    covered = part.end;
  }
  if (covered < count) return Fault(tensor, covered, count, "are written by nobody");
  return absl::OkStatus();
}

using Tensors = std::map<std::string, const v1::TensorRecord*>;
using PartsOfTensors = std::map<std::string, std::vector<Part>>;

absl::StatusOr<Tensors> Index(const v1::StepManifest& manifest) {
  Tensors tensors;
  for (const v1::TensorRecord& tensor : manifest.tensors()) {
    if (ElementBytes(tensor.dtype()) == 0 || ElementCount(tensor) < 0) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", tensor.name(),
                                                     " has an unknown dtype \"", tensor.dtype(),
                                                     "\" or an impossible shape"));
    }
    if (!tensors.emplace(tensor.name(), &tensor).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", tensor.name(), " is in the manifest twice"));
    }
  }
  return tensors;
}

absl::Status AddParts(const v1::WriterManifest& writer, const Tensors& tensors,
                      PartsOfTensors* parts) {
  int64_t bytes = 0;
  for (const v1::PieceRecord& piece : writer.pieces()) {
    const auto it = tensors.find(piece.tensor());
    if (it == tensors.end()) {
      return Fault(
          piece.tensor(), piece.begin(), piece.end(),
          absl::StrCat("of writer ", writer.writer(), " are of no tensor in the manifest's list"));
    }
    const int64_t count = ElementCount(*it->second);
    if (piece.begin() < 0 || piece.end() <= piece.begin() || piece.end() > count) {
      return Fault(piece.tensor(), piece.begin(), piece.end(),
                   absl::StrCat("of writer ", writer.writer(), " are not within [0, ", count, ")"));
    }
    (*parts)[piece.tensor()].push_back({piece.begin(), piece.end(), writer.writer()});
    bytes +=
        (piece.end() - piece.begin()) * static_cast<int64_t>(ElementBytes(it->second->dtype()));
  }
  if (bytes == writer.bytes()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "writer ", writer.writer(), " wrote ", writer.bytes(), " bytes and its pieces take ", bytes,
      ": its elements are not of the size of their tensors' dtypes"));
}

}  // namespace

size_t ElementBytes(std::string_view dtype) {
  if (dtype == "f32") return 4;
  if (dtype == "f64" || dtype == "i64") return 8;
  if (dtype == "bf16") return 2;
  return 0;
}

int64_t ElementCount(const v1::TensorRecord& tensor) {
  int64_t count = 1;
  for (const int64_t size : tensor.shape()) {
    if (size < 0 || __builtin_mul_overflow(count, size, &count)) return -1;
  }
  return count <= std::numeric_limits<int64_t>::max() / 8 ? count : -1;
}

absl::Status CheckTiling(const v1::StepManifest& manifest) {
  ELA_ASSIGN_OR_RETURN(const Tensors tensors, Index(manifest));
  PartsOfTensors parts;
  for (const v1::WriterManifest& writer : manifest.writers()) {
    ELA_RETURN_IF_ERROR(AddParts(writer, tensors, &parts));
  }
  for (const auto& [name, tensor] : tensors) {
    ELA_RETURN_IF_ERROR(CheckParts(name, ElementCount(*tensor), std::move(parts[name])));
  }
  return absl::OkStatus();
}

}  // namespace ela::checkpoints
