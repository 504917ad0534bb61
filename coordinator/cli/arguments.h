// The one table of commands and options. Parsing, help, completion and the frozen list of options
// are made from it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ela::cli {

struct OptionSpec {
  std::string name;   // without the dashes
  char letter = 0;    // the few short forms that everybody knows
  std::string value;  // placeholder of its value, empty: a switch
  std::string doc;    // one line
  bool repeats = false;
  std::vector<std::string> choices;  // legal values, empty: any
};

struct CommandSpec {
  std::string name;
  std::string argument;  // placeholder of its one argument, empty: none
  std::string doc;
  std::vector<OptionSpec> options;
  std::string sibling;  // program that takes everything after the command's name
};

const std::vector<CommandSpec>& Commands();
const std::vector<OptionSpec>& GlobalOptions();

/// A parsed command line. Options that were not given are absent.
struct Arguments {
  const CommandSpec* command = nullptr;  // null: none was given
  bool help = false;
  bool version = false;
  std::vector<std::string> positional;
  std::map<std::string, std::vector<std::string>> options;
  std::vector<std::string> passed_on;  // to a sibling program

  bool Has(const std::string& name) const { return options.count(name) > 0; }
  std::string Get(const std::string& name, const std::string& fallback = "") const;
  std::string job() const { return positional.empty() ? "" : positional[0]; }
};

/// `words` without the program's name. Global options may stand anywhere. InvalidArgument: an
/// unknown command or option with the nearest one, a missing or surplus argument, a value that is
/// not among the choices.
absl::StatusOr<Arguments> ParseArguments(const std::vector<std::string>& words);

std::string HelpText();
std::string CommandHelp(const CommandSpec& command);
/// One line a command and option: what users and scripts rely on.
std::string DescribeOptions();

/// Completion scripts for bash and zsh.
std::string BashCompletion();
std::string ZshCompletion();

}  // namespace ela::cli
