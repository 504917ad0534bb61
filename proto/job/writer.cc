#include "proto/job/writer.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "proto/job/schema.h"
#include "proto/job/text.h"

namespace ela::job {
namespace {

using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using nlohmann::ordered_json;

ordered_json EnumToJson(const EnumValueDescriptor* value) {
  if (value->index() == 0) return nullptr;
  return EnumKey(value);
}

ordered_json SingleToJson(const Message& message, const FieldDescriptor* field) {
  const Reflection* reflection = message.GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return reflection->GetInt32(message, field);
    case FieldDescriptor::CPPTYPE_INT64:
      return reflection->GetInt64(message, field);
    case FieldDescriptor::CPPTYPE_UINT32:
      return reflection->GetUInt32(message, field);
    case FieldDescriptor::CPPTYPE_UINT64:
      return reflection->GetUInt64(message, field);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return reflection->GetDouble(message, field);
    case FieldDescriptor::CPPTYPE_FLOAT:
      return reflection->GetFloat(message, field);
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection->GetBool(message, field);
    case FieldDescriptor::CPPTYPE_STRING:
      return reflection->GetString(message, field);
    case FieldDescriptor::CPPTYPE_ENUM:
      return EnumToJson(reflection->GetEnum(message, field));
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return MessageToJson(reflection->GetMessage(message, field));
  }
  return nullptr;
}

ordered_json RepeatedToJson(const Message& message, const FieldDescriptor* field) {
  const Reflection* reflection = message.GetReflection();
  ordered_json list = ordered_json::array();
  for (int i = 0; i < reflection->FieldSize(message, field); ++i) {
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_MESSAGE:
        list.push_back(MessageToJson(reflection->GetRepeatedMessage(message, field, i)));
        break;
      case FieldDescriptor::CPPTYPE_DOUBLE:
        list.push_back(reflection->GetRepeatedDouble(message, field, i));
        break;
      case FieldDescriptor::CPPTYPE_INT64:
        list.push_back(reflection->GetRepeatedInt64(message, field, i));
        break;
      case FieldDescriptor::CPPTYPE_STRING:
        list.push_back(reflection->GetRepeatedString(message, field, i));
        break;
      case FieldDescriptor::CPPTYPE_ENUM:
        list.push_back(EnumToJson(reflection->GetRepeatedEnum(message, field, i)));
        break;
      default:
        list.push_back(nullptr);
        break;
    }
  }
  return list;
}

ordered_json MapToJson(const Message& message, const FieldDescriptor* field) {
  const Reflection* reflection = message.GetReflection();
  std::map<std::string, ordered_json> sorted;
  for (int i = 0; i < reflection->FieldSize(message, field); ++i) {
    const Message& entry = reflection->GetRepeatedMessage(message, field, i);
    const FieldDescriptor* key = field->message_type()->map_key();
    const FieldDescriptor* value = field->message_type()->map_value();
    sorted[entry.GetReflection()->GetString(entry, key)] = SingleToJson(entry, value);
  }
  ordered_json object = ordered_json::object();
  for (auto& [key, value] : sorted) object[key] = std::move(value);
  return object;
}

// A string that YAML reads back as the same string without quotes. Words that other readers take
// for something else (numbers, true, null) are quoted too.
bool IsPlainYaml(const std::string& text) {
  if (text.empty() || text.size() > 200) return false;
  const bool safe = std::all_of(text.begin(), text.end(), [](char c) {
    return ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || ('0' <= c && c <= '9') || c == '_' ||
           c == '.' || c == '/' || c == '-';
  });
  const bool letter_first = ('a' <= text[0] && text[0] <= 'z') ||
                            ('A' <= text[0] && text[0] <= 'Z') || text[0] == '/' || text[0] == '.';
  if (!safe || !letter_first || ParseNumber(text).has_value()) return false;
  static constexpr const char* kWords[] = {"true", "false", "null", "yes",  "no", "on", "off",
                                           "y",    "n",     ".inf", ".nan", ".",  "..", "..."};
  std::string lower = text;
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](char c) { return 'A' <= c && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return std::find(std::begin(kWords), std::end(kWords), lower) == std::end(kWords);
}

std::string Quoted(const std::string& text) {
  return ordered_json(text).dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

std::string ScalarText(const ordered_json& json) {
  if (json.is_number_float()) return FormatDouble(json.get<double>());
  if (!json.is_string()) return json.dump();
  const std::string& text = json.get_ref<const std::string&>();
  return IsPlainYaml(text) ? text : Quoted(text);
}

bool IsFlowList(const ordered_json& json) {
  return json.is_array() && std::none_of(json.begin(), json.end(),
                                         [](const auto& item) { return item.is_structured(); });
}

std::string FlowList(const ordered_json& json) {
  std::string text = "[";
  for (const ordered_json& item : json) {
    text += StrCat(text.size() > 1 ? ", " : "", ScalarText(item));
  }
  return text + "]";
}

void AppendBlock(const ordered_json& json, const std::string& indent, std::string* out);

// What follows "key:" or "-".
void AppendValue(const ordered_json& value, const std::string& indent, std::string* out) {
  if (IsFlowList(value)) {
    *out += StrCat(" ", FlowList(value), "\n");
  } else if (value.is_object() && value.empty()) {
    *out += StrCat(" {}\n");
  } else if (value.is_structured()) {
    *out += StrCat("\n");
    AppendBlock(value, indent, out);
  } else {
    *out += StrCat(" ", ScalarText(value), "\n");
  }
}

void AppendBlock(const ordered_json& json, const std::string& indent, std::string* out) {
  if (json.is_object()) {
    for (const auto& [key, value] : json.items()) {
      *out += StrCat(indent, IsPlainYaml(key) ? key : Quoted(key), ":");
      AppendValue(value, indent + "  ", out);
    }
    return;
  }
  for (const ordered_json& item : json) {
    std::string block;
    if (item.is_structured() && !item.empty() && !IsFlowList(item)) {
      // The first key stands beside the dash.
      AppendBlock(item, indent + "  ", &block);
      *out += StrCat(indent, "- ", block.substr(indent.size() + 2));
    } else {
      *out += StrCat(indent, "-");
      AppendValue(item, indent + "  ", out);
    }
  }
}

}  // namespace

ordered_json MessageToJson(const Message& message) {
  ordered_json json = ordered_json::object();
  const Reflection* reflection = message.GetReflection();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = message.GetDescriptor()->field(i);
    if (field->is_map()) {
      if (reflection->FieldSize(message, field) > 0) json[KeyOf(field)] = MapToJson(message, field);
    } else if (field->is_repeated()) {
      if (reflection->FieldSize(message, field) > 0) {
        json[KeyOf(field)] = RepeatedToJson(message, field);
      }
    } else if (!field->has_presence() || reflection->HasField(message, field)) {
      json[KeyOf(field)] = SingleToJson(message, field);
    }
  }
  return json;
}

ordered_json PlanToJson(const v1::TrainingJob& resolved) {
  const MemoryPlan plan = PlanMemory(resolved);
  const v1::ModelSpec& model = resolved.spec().model();
  return {
      {"resolved", MessageToJson(resolved)},
      {"parameters", ParameterCount(model)},
      {"active_parameters", ActiveParameterCount(model)},
      {"ranks", resolved.spec().parallelism().data() * resolved.spec().parallelism().sequence()},
      {"bytes_per_rank",
       {{"parameters", plan.parameters},
        {"gradients", plan.gradients},
        {"optimizer", plan.optimizer},
        {"activations", plan.activations},
        {"workspace", plan.workspace},
        {"staging", plan.staging},
        {"total", plan.total()}}}};
}

std::string JsonToYaml(const ordered_json& json) {
  std::string text;
  if (IsFlowList(json)) return FlowList(json) + "\n";
  if (!json.is_structured()) return ScalarText(json) + "\n";
  if (json.empty()) return "{}\n";
  AppendBlock(json, "", &text);
  return text;
}

std::string JsonText(const ordered_json& json) {
  return json.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace ela::job
