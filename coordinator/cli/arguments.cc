#include "coordinator/cli/arguments.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/job/job_file.h"
#include "proto/status_macros.h"

namespace ela::cli {
namespace {

const CommandSpec* FindCommand(const std::string& name) {
  for (const CommandSpec& command : Commands()) {
    if (command.name == name) return &command;
  }
  return nullptr;
}

absl::Status Unknown(const std::string& what, const std::string& word,
                     const std::vector<std::string>& known, const std::string& dashes) {
  const std::string nearest = job::Nearest(word, known);
  return absl::InvalidArgumentError(
      absl::StrCat("unknown ", what, " ", dashes, word,
                   nearest.empty() ? "; see ela --help"
                                   : absl::StrCat("; did you mean ", dashes, nearest, "?")));
}

class Parser {
 public:
  explicit Parser(const std::vector<std::string>& words) : words_(words) {}

  absl::StatusOr<Arguments> Parse() {
    while (at_ < words_.size()) {
      const std::string& word = words_[at_++];
      if (word == "--" && !only_positional_) {
        only_positional_ = true;
      } else if (!only_positional_ && word.size() > 1 && word[0] == '-') {
        ELA_RETURN_IF_ERROR(Option(word));
      } else {
        ELA_RETURN_IF_ERROR(Word(word));
      }
      if (arguments_.command != nullptr && !arguments_.command->sibling.empty()) {
        arguments_.passed_on.assign(words_.begin() + at_, words_.end());
        return arguments_;
      }
    }
    if (!arguments_.help && !arguments_.version) ELA_RETURN_IF_ERROR(CheckComplete());
    return arguments_;
  }

 private:
  absl::Status Word(const std::string& word) {
    if (arguments_.command == nullptr) {
      arguments_.command = FindCommand(word);
      if (arguments_.command != nullptr) return absl::OkStatus();
      if (word == "help") {
        arguments_.help = true;
        return absl::OkStatus();
      }
      std::vector<std::string> known;
      for (const CommandSpec& command : Commands()) known.push_back(command.name);
      return Unknown("command", word, known, "");
    }
    if (arguments_.command->argument.empty() || !arguments_.positional.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("ela ", arguments_.command->name, ": unexpected argument \"", word,
                       "\"; see ela ", arguments_.command->name, " --help"));
    }
    arguments_.positional.push_back(word);
    return absl::OkStatus();
  }

  std::vector<const OptionSpec*> KnownOptions() const {
    std::vector<const OptionSpec*> known;
    if (arguments_.command != nullptr) {
      for (const OptionSpec& option : arguments_.command->options) known.push_back(&option);
    }
    for (const OptionSpec& option : GlobalOptions()) known.push_back(&option);
    return known;
  }

  const OptionSpec* FindOption(const std::string& name, bool is_letter) const {
    for (const OptionSpec* option : KnownOptions()) {
      if (is_letter ? option->letter == name[0] : option->name == name) return option;
    }
    return nullptr;
  }

  absl::Status Option(const std::string& word) {
    const bool is_long = word[1] == '-';
    const size_t equals = is_long ? word.find('=') : std::string::npos;
    const std::string name = is_long
                                 ? word.substr(2, equals == std::string::npos ? equals : equals - 2)
                                 : word.substr(1, 1);
    const OptionSpec* option = FindOption(name, !is_long);
    if (option == nullptr) {
      std::vector<std::string> known;
      for (const OptionSpec* candidate : KnownOptions()) known.push_back(candidate->name);
      return is_long ? Unknown("option", name, known, "--") : Unknown("option", name, {}, "-");
    }
    std::string value;
    bool attached = equals != std::string::npos;
    if (attached) value = word.substr(equals + 1);
    if (!is_long && word.size() > 2) {
      value = word.substr(2);
      attached = true;
    }
    return Take(*option, word, attached, value);
  }

  absl::Status Take(const OptionSpec& option, const std::string& word, bool attached,
                    std::string value) {
    const std::string name = absl::StrCat("--", option.name);
    if (option.value.empty() && attached) {
      return absl::InvalidArgumentError(absl::StrCat(word, ": ", name, " takes no value"));
    }
    if (!option.value.empty() && !attached) {
      if (at_ >= words_.size()) {
        return absl::InvalidArgumentError(absl::StrCat(name, " needs a value: ", option.value));
      }
      value = words_[at_++];
    }
    if (option.name == "help") arguments_.help = true;
    if (option.name == "version") arguments_.version = true;
    const auto& choices = option.choices;
    if (!choices.empty() && std::find(choices.begin(), choices.end(), value) == choices.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": \"", value, "\" is not one of ", absl::StrJoin(choices, ", ")));
    }
    std::vector<std::string>& values = arguments_.options[option.name];
    if (!values.empty() && !option.repeats && !option.value.empty()) {
      return absl::InvalidArgumentError(name + " is given twice");
    }
    values.push_back(std::move(value));
    return absl::OkStatus();
  }

  absl::Status CheckComplete() const {
    const CommandSpec* command = arguments_.command;
    if (command == nullptr || command->argument.empty()) return absl::OkStatus();
    if (!arguments_.positional.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "ela ", command->name, " needs an argument: ela ", command->name, " ", command->argument));
  }

  const std::vector<std::string>& words_;
  size_t at_ = 0;
  bool only_positional_ = false;
  Arguments arguments_;
};

std::string OptionForms(const OptionSpec& option) {
  std::string forms =
      option.letter != 0 ? absl::StrCat("-", std::string(1, option.letter), ", ") : "";
  absl::StrAppend(&forms, "--", option.name, option.value.empty() ? "" : " ", option.value);
  return forms;
}

void AppendOptions(const std::vector<OptionSpec>& options, std::string* text) {
  for (const OptionSpec& option : options) {
    const std::string forms = OptionForms(option);
    const size_t padding = forms.size() < 24 ? 24 - forms.size() : 1;
    absl::StrAppend(text, "  ", forms, std::string(padding, ' '), option.doc, "\n");
  }
}

std::string Usage(const CommandSpec& command) {
  const std::string argument = command.argument.empty() ? "" : " " + command.argument;
  return absl::StrCat(command.name, argument, command.sibling.empty() ? "" : " ...");
}

}  // namespace

std::string Arguments::Get(const std::string& name, const std::string& fallback) const {
  const auto found = options.find(name);
  return found == options.end() ? fallback : found->second.back();
}

absl::StatusOr<Arguments> ParseArguments(const std::vector<std::string>& words) {
  return Parser(words).Parse();
}

std::string HelpText() {
  std::string text =
      "ela: pretraining of Exact Linear Attention models\n\n"
      "  ela submit -f job.yaml --follow     train, and watch it\n"
      "  ela validate -f job.yaml            check a job without a coordinator\n\n"
      "Commands\n";
  for (const CommandSpec& command : Commands()) {
    const std::string usage = Usage(command);
    const size_t padding = usage.size() < 18 ? 18 - usage.size() : 1;
    absl::StrAppend(&text, "  ", usage, std::string(padding, ' '), command.doc, "\n");
  }
  absl::StrAppend(&text, "\nOptions of every command\n");
  AppendOptions(GlobalOptions(), &text);
  absl::StrAppend(
      &text,
      "\nA JOB is an id, the start of one, or a name (the newest job so named).\n"
      "Exit codes: 0 done, 1 failed, 2 usage or bad job file, 3 not found, 4 unreachable or "
      "not allowed,\n5 timed out; with --follow, watch and wait: 10 job failed, 11 job "
      "cancelled, 130 detached by Ctrl-C.\n");
  return text;
}

std::string CommandHelp(const CommandSpec& command) {
  std::string text = absl::StrCat("ela ", Usage(command), "\n  ", command.doc, "\n");
  if (!command.options.empty()) text += "\nOptions\n";
  AppendOptions(command.options, &text);
  absl::StrAppend(&text, "\nOptions of every command\n");
  AppendOptions(GlobalOptions(), &text);
  return text;
}

std::string DescribeOptions() {
  std::string text;
  const auto describe = [&](const std::string& owner, const std::vector<OptionSpec>& options) {
    for (const OptionSpec& option : options) {
      absl::StrAppend(&text, owner, " ", OptionForms(option), option.repeats ? " ..." : "",
                      option.choices.empty() ? "" : " = ", absl::StrJoin(option.choices, "|"),
                      "\n");
    }
  };
  for (const CommandSpec& command : Commands()) {
    absl::StrAppend(&text, "ela ", Usage(command), "\n");
    describe("ela " + command.name, command.options);
  }
  describe("ela", GlobalOptions());
  return text;
}

}  // namespace ela::cli
