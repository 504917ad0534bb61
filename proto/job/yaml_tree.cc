#include "proto/job/yaml_tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <sstream>
#include <utility>

#include "absl/status/status.h"
#include "proto/job/text.h"

namespace ela::job {
namespace {

// Builds the tree from the parser's events. The first problem is kept and the rest of the events
// are ignored.
class TreeBuilder : public YAML::EventHandler {
 public:
  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    YamlNode node = Start(YamlNode::Kind::kNull, mark, "", anchor);
    Add(std::move(node));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    Fail(mark, "aliases (*name) are not accepted; write the value out");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    YamlNode node = Start(YamlNode::Kind::kScalar, mark, tag, anchor);
    node.text = value;
    node.quoted = tag == "!";
    if (!IsPlainText(value)) Fail(mark, "a value holds a control character");
    Add(std::move(node));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Push(Start(YamlNode::Kind::kSequence, mark, tag, anchor), mark);
  }
  void OnSequenceEnd() override { Pop(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    Push(Start(YamlNode::Kind::kMap, mark, tag, anchor), mark);
  }
  void OnMapEnd() override { Pop(); }

  bool failed() const { return !problem_.empty(); }
  const std::string& problem() const { return problem_; }
  int problem_line() const { return problem_line_; }
  YamlNode TakeRoot() { return std::move(root_); }

 private:
  struct Level {
    YamlNode node;
    bool expects_value = false;  // of a map: its newest key has no value yet
  };

  YamlNode Start(YamlNode::Kind kind, const YAML::Mark& mark, const std::string& tag,
                 YAML::anchor_t anchor) {
    if (anchor != 0) Fail(mark, "anchors (&name) are not accepted; write the value out");
    if (!tag.empty() && tag != "?" && tag != "!") {
      Fail(mark, "type tags (!type) are not accepted; write the plain value");
    }
    YamlNode node;
    node.kind = kind;
    node.line = mark.line + 1;
    return node;
  }

  void Push(YamlNode node, const YAML::Mark& mark) {
    if (static_cast<int>(levels_.size()) >= kMaxYamlDepth) {
      Fail(mark, StrCat("more than ", kMaxYamlDepth, " levels deep"));
    }
    if (!levels_.empty() && IsKeyExpected()) Fail(mark, "a key must be a plain word");
    if (failed()) return;
    levels_.push_back({std::move(node)});
  }

  void Pop() {
    if (failed()) return;
    YamlNode node = std::move(levels_.back().node);
    levels_.pop_back();
    Add(std::move(node));
  }

  bool IsKeyExpected() const {
    return levels_.back().node.kind == YamlNode::Kind::kMap && !levels_.back().expects_value;
  }

  void Add(YamlNode node) {
    if (failed()) return;
    if (levels_.empty()) {
      root_ = std::move(node);
    } else if (IsKeyExpected()) {
      AddKey(node);
    } else {
      levels_.back().node.items.push_back(std::move(node));
      levels_.back().expects_value = false;
    }
  }

  void AddKey(const YamlNode& node) {
    YamlNode& map = levels_.back().node;
    if (node.kind != YamlNode::Kind::kScalar) {
      return Fail(node.line, "a key must be a plain word");
    }
    const auto twin = std::find(map.keys.begin(), map.keys.end(), node.text);
    if (twin != map.keys.end()) {
      const int line = map.key_lines[twin - map.keys.begin()];
      return Fail(node.line, StrCat(node.text, ": given twice; first at line ", line));
    }
    if (map.keys.size() >= kMaxKeys) {
      return Fail(node.line, StrCat("more than ", kMaxKeys, " keys in one mapping"));
    }
    map.keys.push_back(node.text);
    map.key_lines.push_back(node.line);
    levels_.back().expects_value = true;
  }

  void Fail(const YAML::Mark& mark, std::string problem) { Fail(mark.line + 1, problem); }
  void Fail(int line, std::string problem) {
    if (failed()) return;
    problem_line_ = line;
    problem_ = std::move(problem);
  }

  static constexpr size_t kMaxKeys = 1000;  // the search for twins is linear

  std::vector<Level> levels_;
  YamlNode root_;
  std::string problem_;
  int problem_line_ = 0;
};

absl::Status ErrorAt(std::string_view file_name, int line, std::string_view problem) {
  return absl::InvalidArgumentError(StrCat(file_name, ":", line, ": ", problem));
}

// yaml-cpp reports by exceptions; they end here.
absl::Status ReadEvents(std::string_view text, std::string_view file_name, TreeBuilder* builder) {
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    if (!parser.HandleNextDocument(*builder) || builder->failed()) return absl::OkStatus();
    TreeBuilder rest;
    if (parser.HandleNextDocument(rest)) {
      return absl::InvalidArgumentError(
          StrCat(file_name, ": holds more than one document; a job file is one"));
    }
    return absl::OkStatus();
  } catch (const YAML::Exception& error) {
    const int line = error.mark.is_null() ? 1 : error.mark.line + 1;
    return ErrorAt(file_name, line, StrCat("not valid YAML: ", OneLine(error.msg)));
  } catch (const std::exception& error) {
    return ErrorAt(file_name, 1, StrCat("not valid YAML: ", OneLine(error.what())));
  }
}

}  // namespace

std::string YamlNode::Describe() const {
  switch (kind) {
    case Kind::kNull:
      return "nothing";
    case Kind::kScalar:
      return StrCat("\"", text.substr(0, 60), text.size() > 60 ? "..." : "", "\"");
    case Kind::kSequence:
      return "a list";
    case Kind::kMap:
      return "a mapping";
  }
  return "";
}

absl::StatusOr<YamlNode> ParseYaml(std::string_view text, std::string_view file_name) {
  if (text.size() > kMaxYamlBytes) {
    return absl::InvalidArgumentError(
        StrCat(file_name, ": ", text.size(), " bytes; at most ", kMaxYamlBytes, " are accepted"));
  }
  if (const std::optional<size_t> bad = FirstInvalidUtf8(text); bad.has_value()) {
    const int line = 1 + static_cast<int>(std::count(text.begin(), text.begin() + *bad, '\n'));
    return ErrorAt(file_name, line, "not valid UTF-8");
  }
  TreeBuilder builder;
  const absl::Status status = ReadEvents(text, file_name, &builder);
  if (builder.failed()) return ErrorAt(file_name, builder.problem_line(), builder.problem());
  if (!status.ok()) return status;
  return builder.TakeRoot();
}

}  // namespace ela::job
