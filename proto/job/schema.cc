#include "proto/job/schema.h"

#include <charconv>

#include "absl/strings/ascii.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "ela/v1/job.pb.h"
#include "ela/v1/options.pb.h"
#include "proto/job/job_file.h"
#include "proto/job/text.h"

namespace ela::job {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;

// Every value of an enum starts with the same prefix; the first one is <PREFIX>UNSPECIFIED.
std::string EnumPrefix(const EnumDescriptor* type) {
  return std::string(absl::StripSuffix(type->value(0)->name(), "UNSPECIFIED"));
}

std::string TypeName(const FieldDescriptor* field) {
  std::string name;
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_ENUM:
      name = absl::StrJoin(EnumKeys(field->enum_type()), "|");
      break;
    case FieldDescriptor::CPPTYPE_BOOL:
      name = "bool";
      break;
    case FieldDescriptor::CPPTYPE_DOUBLE:
      name = "number";
      break;
    case FieldDescriptor::CPPTYPE_STRING:
      name = "string";
      break;
    default:
      name = "integer";
      break;
  }
  return field->is_repeated() ? StrCat("list of ", name) : name;
}

void DescribeField(const FieldDescriptor* field, const std::string& path,
                   std::vector<std::string>* lines);

void DescribeMessage(const Descriptor* message, const std::string& prefix,
                     std::vector<std::string>* lines) {
  for (int i = 0; i < message->field_count(); ++i) {
    DescribeField(message->field(i), prefix + KeyOf(message->field(i)), lines);
  }
}

void DescribeField(const FieldDescriptor* field, const std::string& path,
                   std::vector<std::string>* lines) {
  if (field->is_map()) {
    lines->push_back(StrCat(path, ".<name>: string"));
    return;
  }
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
    DescribeMessage(field->message_type(), StrCat(path, field->is_repeated() ? "[]." : "."), lines);
    return;
  }
  std::string line = StrCat(path, ": ", TypeName(field));
  const auto& options = field->options();
  if (!DefaultOf(field).empty()) line += StrCat(" = ", DefaultOf(field));
  if (options.HasExtension(v1::min) || options.HasExtension(v1::max)) {
    line += StrCat(" in [", FormatDouble(options.GetExtension(v1::min)), ", ",
                   FormatDouble(options.GetExtension(v1::max)), "]");
  }
  lines->push_back(line);
}

}  // namespace

std::string KeyOf(const FieldDescriptor* field) {
  const std::string& key = field->options().GetExtension(v1::key);
  return key.empty() ? field->name() : key;
}

const FieldDescriptor* FindKey(const Descriptor* message, std::string_view key) {
  for (int i = 0; i < message->field_count(); ++i) {
    if (KeyOf(message->field(i)) == key) return message->field(i);
  }
  return nullptr;
}

std::vector<std::string> KeysOf(const Descriptor* message) {
  std::vector<std::string> keys;
  for (int i = 0; i < message->field_count(); ++i) keys.push_back(KeyOf(message->field(i)));
  return keys;
}

std::string EnumKey(const EnumValueDescriptor* value) {
  return absl::AsciiStrToLower(absl::StripPrefix(value->name(), EnumPrefix(value->type())));
}

std::vector<std::string> EnumKeys(const EnumDescriptor* type) {
  std::vector<std::string> keys;
  for (int i = 1; i < type->value_count(); ++i) keys.push_back(EnumKey(type->value(i)));
  return keys;
}

const EnumValueDescriptor* FindEnumKey(const EnumDescriptor* type, std::string_view key) {
  for (int i = 1; i < type->value_count(); ++i) {
    if (EnumKey(type->value(i)) == key) return type->value(i);
  }
  return nullptr;
}

std::optional<std::string> BoundsProblem(const FieldDescriptor* field, double value) {
  const auto& options = field->options();
  // Written so that a NaN fails both.
  if (options.HasExtension(v1::min) && !(value >= options.GetExtension(v1::min))) {
    return StrCat(FormatDouble(value), " is below the smallest value, ",
                  FormatDouble(options.GetExtension(v1::min)));
  }
  if (options.HasExtension(v1::max) && !(value <= options.GetExtension(v1::max))) {
    return StrCat(FormatDouble(value), " is above the largest value, ",
                  FormatDouble(options.GetExtension(v1::max)));
  }
  return std::nullopt;
}

std::string DefaultOf(const FieldDescriptor* field) {
  return field->options().GetExtension(v1::default_value);
}

std::vector<std::string> DescribeKeys() {
  std::vector<std::string> lines;
  DescribeMessage(v1::TrainingJob::descriptor(), "", &lines);
  return lines;
}

std::string FormatDouble(double value) {
  char buffer[32];
  // Integers in plain digits (10000, not 1e+04), everything else in its shortest exact form.
  const bool integral = value > -1e15 && value < 1e15 && value == static_cast<int64_t>(value);
  const auto result =
      integral ? std::to_chars(buffer, buffer + sizeof(buffer), static_cast<int64_t>(value))
               : std::to_chars(buffer, buffer + sizeof(buffer), value);
  return std::string(buffer, result.ptr);
}

}  // namespace ela::job
