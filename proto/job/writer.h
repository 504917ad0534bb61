// Messages as JSON and YAML, with the keys and the enum names of job files. Job files and
// everything that `ela -o json|yaml` prints go through here.
#pragma once

#include <google/protobuf/message.h>

#include <nlohmann/json.hpp>
#include <string>

#include "ela/v1/job.pb.h"

namespace ela::job {

/// Fields in schema order. A field with presence appears if it is set; one without always does, an
/// unspecified enum value as null. Maps are sorted by key.
nlohmann::ordered_json MessageToJson(const google::protobuf::Message& message);

/// A valid resolved job and what follows from it, as `ela validate -o json` and `ela-trainer
/// --validate -o json` print it: "resolved", "parameters", "active_parameters", "ranks",
/// "bytes_per_rank" by kind and in total.
nlohmann::ordered_json PlanToJson(const v1::TrainingJob& resolved);

/// Block style, two spaces a level; lists of plain values on one line. Ends with a newline.
std::string JsonToYaml(const nlohmann::ordered_json& json);

/// Two spaces a level; ends with a newline.
std::string JsonText(const nlohmann::ordered_json& json);

}  // namespace ela::job
