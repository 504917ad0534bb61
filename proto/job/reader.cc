#include "proto/job/reader.h"

#include "absl/strings/str_join.h"
#include "proto/job/job_file.h"
#include "proto/job/schema.h"
#include "proto/job/text.h"
#include "proto/status_macros.h"

namespace ela::job {
namespace {

using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr size_t kMaxListItems = 1000;

// Where a value stands, for messages.
struct Place {
  const std::string& file_name;
  const std::string& path;
  int line;  // 0: not from a file

  absl::Status Error(std::string_view problem) const {
    const std::string where = line > 0 ? StrCat(file_name, ":", line) : file_name;
    return absl::InvalidArgumentError(StrCat(where, ": ", path, path.empty() ? "" : ": ", problem));
  }
};

absl::Status Expected(const Place& place, std::string_view what, const YamlNode& node) {
  if (node.kind == YamlNode::Kind::kNull) {
    return place.Error("has no value; leave the key out to keep its default");
  }
  return place.Error(StrCat("expected ", what, ", got ", node.Describe()));
}

// A list's elements are added, a single value is set.
template <typename Value>
void Put(const FieldDescriptor* field, Message* message, Value value,
         void (Reflection::*set)(Message*, const FieldDescriptor*, Value) const,
         void (Reflection::*add)(Message*, const FieldDescriptor*, Value) const) {
  const Reflection* reflection = message->GetReflection();
  (reflection->*(field->is_repeated() ? add : set))(message, field, std::move(value));
}

absl::Status FillInteger(const YamlNode& node, const Place& place, const FieldDescriptor* field,
                         Message* message) {
  const auto value = node.quoted ? std::nullopt : ParseInteger(node.text);
  if (!value.has_value()) return Expected(place, "an integer", node);
  if (const auto problem = BoundsProblem(field, static_cast<double>(*value))) {
    return place.Error(*problem);
  }
  Put<int64_t>(field, message, *value, &Reflection::SetInt64, &Reflection::AddInt64);
  return absl::OkStatus();
}

absl::Status FillDouble(const YamlNode& node, const Place& place, const FieldDescriptor* field,
                        Message* message) {
  const auto value = node.quoted ? std::nullopt : ParseNumber(node.text);
  if (!value.has_value()) return Expected(place, "a number", node);
  if (const auto problem = BoundsProblem(field, *value)) return place.Error(*problem);
  Put<double>(field, message, *value, &Reflection::SetDouble, &Reflection::AddDouble);
  return absl::OkStatus();
}

absl::Status FillBool(const YamlNode& node, const Place& place, const FieldDescriptor* field,
                      Message* message) {
  if (node.quoted || (node.text != "true" && node.text != "false")) {
    return Expected(place, "true or false", node);
  }
  Put<bool>(field, message, node.text == "true", &Reflection::SetBool, &Reflection::AddBool);
  return absl::OkStatus();
}

absl::Status FillEnum(const YamlNode& node, const Place& place, const FieldDescriptor* field,
                      Message* message) {
  const EnumValueDescriptor* value = FindEnumKey(field->enum_type(), node.text);
  if (value == nullptr) {
    const std::vector<std::string> known = EnumKeys(field->enum_type());
    const std::string nearest = Nearest(node.text, known);
    return place.Error(StrCat(node.Describe(), " is not one of ", absl::StrJoin(known, ", "),
                              nearest.empty() ? "" : "; did you mean ", nearest,
                              nearest.empty() ? "" : "?"));
  }
  Put<const EnumValueDescriptor*>(field, message, value, &Reflection::SetEnum,
                                  &Reflection::AddEnum);
  return absl::OkStatus();
}

absl::Status FillScalar(const YamlNode& node, const Place& place, const FieldDescriptor* field,
                        Message* message) {
  if (node.kind != YamlNode::Kind::kScalar) return Expected(place, "a single value", node);
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT64:
      return FillInteger(node, place, field, message);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return FillDouble(node, place, field, message);
    case FieldDescriptor::CPPTYPE_BOOL:
      return FillBool(node, place, field, message);
    case FieldDescriptor::CPPTYPE_ENUM:
      return FillEnum(node, place, field, message);
    case FieldDescriptor::CPPTYPE_STRING:
      Put<std::string>(field, message, node.text, &Reflection::SetString, &Reflection::AddString);
      return absl::OkStatus();
    default:
      return place.Error("the schema gives this key a type that job files cannot hold");
  }
}

absl::Status FillMap(const YamlNode& node, const Place& place, const FieldDescriptor* field,
                     Message* message) {
  const FieldDescriptor* key = field->message_type()->map_key();
  const FieldDescriptor* value = field->message_type()->map_value();
  for (size_t i = 0; i < node.items.size(); ++i) {
    Message* entry = message->GetReflection()->AddMessage(message, field);
    entry->GetReflection()->SetString(entry, key, node.keys[i]);
    const std::string path = StrCat(place.path, ".", node.keys[i]);
    const Place item{place.file_name, path, node.key_lines[i]};
    ELA_RETURN_IF_ERROR(FillScalar(node.items[i], item, value, entry));
  }
  return absl::OkStatus();
}

}  // namespace

std::string UnknownKey(std::string_view key, const google::protobuf::Descriptor* message) {
  const std::vector<std::string> known = KeysOf(message);
  const std::string nearest = Nearest(key, known);
  if (!nearest.empty()) return StrCat("unknown key; did you mean ", nearest, "?");
  return StrCat("unknown key; known here: ", absl::StrJoin(known, ", "));
}

absl::Status AppendElement(const YamlNode& node, const std::string& file_name,
                           const std::string& path, const FieldDescriptor* field,
                           Message* message) {
  if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
    return FillScalar(node, {file_name, path, node.line}, field, message);
  }
  return FillMessage(node, file_name, path, message->GetReflection()->AddMessage(message, field));
}

absl::Status FillField(const YamlNode& node, const std::string& file_name, const std::string& path,
                       const FieldDescriptor* field, Message* message) {
  const Place place{file_name, path, node.line};
  message->GetReflection()->ClearField(message, field);
  if (field->is_map()) {
    if (node.kind != YamlNode::Kind::kMap) return Expected(place, "a mapping", node);
    return FillMap(node, place, field, message);
  }
  if (!field->is_repeated()) {
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
      return FillScalar(node, place, field, message);
    }
    Message* child = message->GetReflection()->MutableMessage(message, field);
    // A section whose keys are all commented out is an empty one.
    if (node.kind == YamlNode::Kind::kNull) return absl::OkStatus();
    return FillMessage(node, file_name, path, child);
  }
  if (node.kind != YamlNode::Kind::kSequence) return Expected(place, "a list", node);
  if (node.items.size() > kMaxListItems) {
    return place.Error(StrCat("holds more than ", kMaxListItems, " items"));
  }
  for (size_t i = 0; i < node.items.size(); ++i) {
    const std::string item = StrCat(path, "[", i, "]");
    ELA_RETURN_IF_ERROR(AppendElement(node.items[i], file_name, item, field, message));
  }
  return absl::OkStatus();
}

absl::Status FillMessage(const YamlNode& node, const std::string& file_name,
                         const std::string& path, Message* message) {
  if (node.kind != YamlNode::Kind::kMap) {
    return Expected({file_name, path, node.line}, "a mapping", node);
  }
  for (size_t i = 0; i < node.items.size(); ++i) {
    const std::string key_path = StrCat(path, path.empty() ? "" : ".", node.keys[i]);
    const FieldDescriptor* field = FindKey(message->GetDescriptor(), node.keys[i]);
    if (field == nullptr) {
      return Place{file_name, key_path, node.key_lines[i]}.Error(
          UnknownKey(node.keys[i], message->GetDescriptor()));
    }
    ELA_RETURN_IF_ERROR(FillField(node.items[i], file_name, key_path, field, message));
  }
  return absl::OkStatus();
}

}  // namespace ela::job
