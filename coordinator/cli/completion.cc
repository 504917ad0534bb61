// Completion scripts, from the command table. Static words only: pressing Tab never waits for a
// coordinator.

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "coordinator/cli/arguments.h"

namespace ela::cli {
namespace {

std::vector<std::string> CommandNames() {
  std::vector<std::string> names;
  for (const CommandSpec& command : Commands()) names.push_back(command.name);
  return names;
}

std::string OptionWords(const std::vector<OptionSpec>& options) {
  std::vector<std::string> words;
  for (const OptionSpec& option : options) {
    words.push_back("--" + option.name);
    if (option.letter != 0) words.push_back(absl::StrCat("-", std::string(1, option.letter)));
  }
  return absl::StrJoin(words, " ");
}

// Text inside single quotes and a [description] of zsh.
std::string ZshText(const std::string& text) {
  return absl::StrReplaceAll(text, {{"'", "'\\''"}, {"[", "\\["}, {"]", "\\]"}, {":", "\\:"}});
}

std::string ZshOption(const OptionSpec& option) {
  std::string line;
  const std::string value =
      option.value.empty()     ? ""
      : option.value == "FILE" ? ":file:_files"
      : option.choices.empty()
          ? absl::StrCat(":", option.value, ":")
          : absl::StrCat(":", option.value, ":(", absl::StrJoin(option.choices, " "), ")");
  const std::string repeat = option.repeats ? "*" : "";
  absl::StrAppend(&line, " '", repeat, "--", option.name, "[", ZshText(option.doc), "]", value,
                  "'");
  if (option.letter != 0) {
    absl::StrAppend(&line, " '", repeat, "-", std::string(1, option.letter), "[",
                    ZshText(option.doc), "]", value, "'");
  }
  return line;
}

}  // namespace

std::string BashCompletion() {
  std::string cases;
  for (const CommandSpec& command : Commands()) {
    if (!command.sibling.empty()) continue;
    const std::string extra = command.name == "completion" ? "bash zsh " : "";
    absl::StrAppend(&cases, "    ", command.name, ") words=\"", extra, OptionWords(command.options),
                    " ", OptionWords(GlobalOptions()), "\" ;;\n");
  }
  return absl::StrCat(
      "# bash completion of ela; load it with: source <(ela completion bash)\n"
      "_ela() {\n"
      "  local current=\"${COMP_WORDS[COMP_CWORD]}\" previous=\"${COMP_WORDS[COMP_CWORD-1]}\"\n"
      "  local command=\"\" words=\"\" i\n"
      "  case \"$previous\" in\n"
      "    -f|--file|--ca|--cert|--key|--token-file)\n"
      "      COMPREPLY=($(compgen -f -- \"$current\")); return ;;\n"
      "    -o|--output) COMPREPLY=($(compgen -W \"table wide json yaml name\" -- \"$current\")); "
      "return "
      ";;\n"
      "  esac\n"
      "  for ((i = 1; i < COMP_CWORD; i++)); do\n"
      "    case \"${COMP_WORDS[i]}\" in -*) ;; *) command=\"${COMP_WORDS[i]}\"; break ;; esac\n"
      "  done\n"
      "  case \"$command\" in\n",
      cases, "    \"\") words=\"", absl::StrJoin(CommandNames(), " "), " ",
      OptionWords(GlobalOptions()),
      "\" ;;\n"
      "  esac\n"
      "  COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
      "}\n"
      "complete -o default -F _ela ela\n");
}

std::string ZshCompletion() {
  std::string commands, cases, globals;
  for (const OptionSpec& option : GlobalOptions()) globals += ZshOption(option);
  for (const CommandSpec& command : Commands()) {
    absl::StrAppend(&commands, "    '", command.name, ":", ZshText(command.doc), "'\n");
    if (!command.sibling.empty()) continue;
    std::string options;
    for (const OptionSpec& option : command.options) options += ZshOption(option);
    const std::string argument = command.name == "completion" ? " '1:shell:(bash zsh)'"
                                 : command.argument.empty()   ? ""
                                                              : " '1:job:'";
    absl::StrAppend(&cases, "    ", command.name, ") _arguments", options, argument,
                    " $globals ;;\n");
  }
  return absl::StrCat(
      "#compdef ela\n# zsh completion of ela; load it with: source <(ela completion zsh)\n",
      "_ela() {\n  local -a commands globals\n  commands=(\n", commands, "  )\n  globals=(",
      globals,
      ")\n  local context state state_descr line\n  typeset -A opt_args\n"
      "  _arguments -C $globals '1:command:->command' '*::argument:->argument'\n"
      "  if [[ $state == command ]]; then _describe command commands; return; fi\n"
      "  case $line[1] in\n",
      cases, "  esac\n}\ncompdef _ela ela\n");
}

}  // namespace ela::cli
