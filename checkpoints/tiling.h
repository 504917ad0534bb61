// Whether pieces make whole tensors.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/status.h"
#include "ela/v1/manifest.pb.h"

namespace ela::checkpoints {

/// Bytes of an element of "f32", "f64", "bf16", "i64"; 0: no such dtype.
size_t ElementBytes(std::string_view dtype);
/// Product of the shape; -1 if a dimension is negative or the bytes leave
/// int64.
int64_t ElementCount(const v1::TensorRecord& tensor);

/// InvalidArgument unless the writers' pieces cover every element of every tensor exactly once;
/// names the tensor and the interval that is missing, doubled or outside.
absl::Status CheckTiling(const v1::StepManifest& manifest);

}  // namespace ela::checkpoints
