// What a checkpoint holds of a model, and reading it back as a source of parameters.
#include <memory>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "trainer/optim/zero1_optimizer.h"

namespace ela::trainer {
namespace {

absl::Status CheckRecord(const v1::TensorRecord& record, const job::ParameterInfo& parameter) {
  const std::vector<int64_t> shape(record.shape().begin(), record.shape().end());
  if (record.dtype() == "f32" && shape == parameter.shape) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      record.name(), " of the checkpoint is ", record.dtype(), " [", absl::StrJoin(shape, ", "),
      "], this model's is f32 [", absl::StrJoin(parameter.shape, ", "),
      "]: use a checkpoint of the same spec.model, or change spec.model to its sizes"));
}

}  // namespace

std::vector<v1::TensorRecord> CheckpointTensors(const ParameterStore& store) {
  std::vector<v1::TensorRecord> records;
  for (const job::ParameterInfo& parameter : store.all()) {
    for (const char* prefix : {"model/", "adam_m/", "adam_v/"}) {
      v1::TensorRecord& record = records.emplace_back();
      record.set_name(prefix + parameter.name);
      record.set_dtype("f32");
      for (const int64_t extent : parameter.shape) record.add_shape(extent);
      if (!store.Trains(parameter)) break;
    }
  }
  return records;
}

ParameterSource CheckpointSource(checkpoints::StepReader* reader) {
  auto records = std::make_shared<std::unordered_map<std::string, v1::TensorRecord>>();
  for (const v1::TensorRecord& record : reader->manifest().tensors()) {
    records->emplace(record.name(), record);
  }
  return [reader, records](const job::ParameterInfo& parameter, int64_t begin, int64_t end,
                           float* out) -> absl::Status {
    const std::string name = "model/" + parameter.name;
    if (const auto found = records->find(name); found != records->end()) {
      if (absl::Status same = CheckRecord(found->second, parameter); !same.ok()) return same;
    }
    return reader->Read(name, begin, end, out);
  };
}

}  // namespace ela::trainer
