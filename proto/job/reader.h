// Fills messages of the schema from a YAML tree, strictly.
#pragma once

#include <google/protobuf/message.h>

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "proto/job/yaml_tree.h"

namespace ela::job {

/// Sets in `message` what the mapping holds; `path` is the message's own key path ("spec.model",
/// empty at the top). Errors (InvalidArgument) read "file_name:line: path.key: what".
absl::Status FillMessage(const YamlNode& node, const std::string& file_name,
                         const std::string& path, google::protobuf::Message* message);

/// Sets one field; a list, a mapping or a message replaces what was there.
absl::Status FillField(const YamlNode& node, const std::string& file_name, const std::string& path,
                       const google::protobuf::FieldDescriptor* field,
                       google::protobuf::Message* message);

/// Appends one element to a repeated field.
absl::Status AppendElement(const YamlNode& node, const std::string& file_name,
                           const std::string& path, const google::protobuf::FieldDescriptor* field,
                           google::protobuf::Message* message);

/// "unknown key; did you mean hidden_size?"
std::string UnknownKey(std::string_view key, const google::protobuf::Descriptor* message);

}  // namespace ela::job
