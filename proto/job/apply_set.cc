// `--set a.b[0].c=value`: walks the schema to the field, then reads the value as YAML.

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "proto/job/job_file.h"
#include "proto/job/reader.h"
#include "proto/job/schema.h"
#include "proto/job/text.h"
#include "proto/job/yaml_tree.h"
#include "proto/status_macros.h"

namespace ela::job {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

struct Step {
  std::string key;
  int index = -1;  // -1: no [index]
};

absl::StatusOr<std::vector<Step>> SplitPath(std::string_view path, const std::string& source) {
  std::vector<Step> steps;
  for (std::string part : std::vector<std::string>(absl::StrSplit(std::string(path), '.'))) {
    Step step;
    if (const size_t bracket = part.find('['); bracket != std::string::npos) {
      const std::string inside = part.substr(bracket + 1);
      absl::string_view index = inside;
      const bool closed = absl::ConsumeSuffix(&index, "]");
      if (!closed || !absl::SimpleAtoi(index, &step.index) || step.index < 0) {
        return absl::InvalidArgumentError(
            StrCat(source, ": ", part, ": an index is written as [0]"));
      }
      part = part.substr(0, bracket);
    }
    if (part.empty()) return absl::InvalidArgumentError(source + ": the path has an empty part");
    step.key = std::move(part);
    steps.push_back(std::move(step));
  }
  // Only job.spec has keys that users write without naming it.
  if (FindKey(v1::TrainingJob::descriptor(), steps[0].key) == nullptr) {
    steps.insert(steps.begin(), Step{"spec"});
  }
  return steps;
}

void ForgetLines(YamlNode* node) {
  node->line = 0;
  std::fill(node->key_lines.begin(), node->key_lines.end(), 0);
  for (YamlNode& item : node->items) ForgetLines(&item);
}

// One map entry is the whole map with that entry replaced.
absl::Status SetMapEntry(const YamlNode& value, const std::string& source, const std::string& path,
                         const std::string& key, const FieldDescriptor* field, Message* message) {
  const auto* reflection = message->GetReflection();
  YamlNode map;
  map.kind = YamlNode::Kind::kMap;
  for (int i = 0; i < reflection->FieldSize(*message, field); ++i) {
    const Message& entry = reflection->GetRepeatedMessage(*message, field, i);
    const auto* fields = entry.GetReflection();
    const std::string name = fields->GetString(entry, field->message_type()->map_key());
    if (name == key) continue;
    YamlNode item;
    item.kind = YamlNode::Kind::kScalar;
    item.text = fields->GetString(entry, field->message_type()->map_value());
    map.keys.push_back(name);
    map.items.push_back(std::move(item));
  }
  map.keys.push_back(key);
  map.items.push_back(value);
  map.key_lines.resize(map.keys.size());
  return FillField(map, source, path, field, message);
}

// Assigns to one element of a list; the index after the last one appends.
absl::Status SetElement(const YamlNode& value, const std::string& source, const std::string& path,
                        int index, const FieldDescriptor* field, Message* message) {
  const auto* reflection = message->GetReflection();
  const int size = reflection->FieldSize(*message, field);
  ELA_RETURN_IF_ERROR(AppendElement(value, source, path, field, message));
  if (index == size) return absl::OkStatus();
  reflection->SwapElements(message, field, index, size);
  reflection->RemoveLast(message, field);
  return absl::OkStatus();
}

class Assignment {
 public:
  Assignment(std::string source, std::vector<Step> steps, YamlNode value)
      : source_(std::move(source)), steps_(std::move(steps)), value_(std::move(value)) {}

  absl::Status Apply(size_t depth, const std::string& parent, Message* message) const {
    const Step& step = steps_[depth];
    const std::string path = StrCat(parent, parent.empty() ? "" : ".", step.key);
    const FieldDescriptor* field = FindKey(message->GetDescriptor(), step.key);
    if (field == nullptr) return Error(path, UnknownKey(step.key, message->GetDescriptor()));
    const bool last = depth + 1 == steps_.size();
    if (step.index >= 0) return ApplyIndexed(depth, path, field, message);
    if (last) return FillField(value_, source_, path, field, message);
    if (field->is_map() && depth + 2 == steps_.size()) {
      return SetMapEntry(value_, source_, path, steps_[depth + 1].key, field, message);
    }
    if (field->is_repeated()) return Error(path, "is a list; name an element, such as [0]");
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
      return Error(path, "is a single value; it has no keys below it");
    }
    return Apply(depth + 1, path, message->GetReflection()->MutableMessage(message, field));
  }

 private:
  absl::Status ApplyIndexed(size_t depth, const std::string& parent, const FieldDescriptor* field,
                            Message* message) const {
    const int index = steps_[depth].index;
    if (!field->is_repeated() || field->is_map()) return Error(parent, "is not a list");
    const auto* reflection = message->GetReflection();
    const int size = reflection->FieldSize(*message, field);
    const std::string path = StrCat(parent, "[", index, "]");
    if (index > size) {
      return Error(path, StrCat("there are ", size, " elements; the next is [", size, "]"));
    }
    if (depth + 1 == steps_.size()) {
      return SetElement(value_, source_, path, index, field, message);
    }
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
      return Error(path, "is a single value; it has no keys below it");
    }
    Message* element = index == size ? reflection->AddMessage(message, field)
                                     : reflection->MutableRepeatedMessage(message, field, index);
    return Apply(depth + 1, path, element);
  }

  absl::Status Error(const std::string& path, std::string_view problem) const {
    return absl::InvalidArgumentError(StrCat(source_, ": ", path, ": ", problem));
  }

  std::string source_;
  std::vector<Step> steps_;
  YamlNode value_;
};

}  // namespace

absl::Status ApplySet(std::string_view assignment, v1::TrainingJob* job) {
  const std::string source = StrCat("--set ", OneLine(assignment.substr(0, 200)));
  const size_t equals = assignment.find('=');
  if (equals == std::string_view::npos || equals == 0) {
    return absl::InvalidArgumentError(source + ": write it as key.path=value");
  }
  ELA_ASSIGN_OR_RETURN(std::vector<Step> steps, SplitPath(assignment.substr(0, equals), source));
  ELA_ASSIGN_OR_RETURN(YamlNode value, ParseYaml(assignment.substr(equals + 1), source));
  ForgetLines(&value);
  v1::TrainingJob changed = *job;  // an assignment that fails changes nothing
  ELA_RETURN_IF_ERROR(
      Assignment(source, std::move(steps), std::move(value)).Apply(0, "", &changed));
  *job = std::move(changed);
  return absl::OkStatus();
}

}  // namespace ela::job
