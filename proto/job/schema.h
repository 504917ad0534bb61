// The schema seen as job-file keys: names, enum values, defaults and bounds, all read from the
// descriptors and the options in ela/v1/options.proto, so that a key is described in one place
// only.
#pragma once

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ela::job {

/// Name of a field as a job file writes it.
std::string KeyOf(const google::protobuf::FieldDescriptor* field);

/// The field with that key, or null.
const google::protobuf::FieldDescriptor* FindKey(const google::protobuf::Descriptor* message,
                                                 std::string_view key);
std::vector<std::string> KeysOf(const google::protobuf::Descriptor* message);

/// Names of an enum's values as a job file writes them, without the unspecified one.
std::vector<std::string> EnumKeys(const google::protobuf::EnumDescriptor* type);
const google::protobuf::EnumValueDescriptor* FindEnumKey(
    const google::protobuf::EnumDescriptor* type, std::string_view key);

/// What is wrong with a number against the bounds of its field, e.g. "0 is below the smallest
/// value, 1"; or nothing.
std::optional<std::string> BoundsProblem(const google::protobuf::FieldDescriptor* field,
                                         double value);

/// The default of a field as a job file writes it, empty if it has none.
std::string DefaultOf(const google::protobuf::FieldDescriptor* field);

/// One line for every key that a job file may hold, in schema order: path, type, default, bounds. A
/// frozen test reads it.
std::vector<std::string> DescribeKeys();

/// Shortest text that reads back to exactly this number.
std::string FormatDouble(double value);

}  // namespace ela::job
