#include "proto/program/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <cstdio>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/job/job_file.h"
#include "proto/program/version.h"

namespace ela {
namespace {

struct Place {
  const CLI::App* command;  // the innermost one that was named
  std::string path;         // how to type it: "ela data build"
};

Place Innermost(const CLI::App& app) {
  Place place{&app, app.get_name()};
  for (auto below = app.get_subcommands(); !below.empty();
       below = place.command->get_subcommands()) {
    place.command = below.front();
    absl::StrAppend(&place.path, " ", place.command->get_name());
  }
  return place;
}

std::vector<std::string> OptionNames(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options(nullptr)) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

std::vector<std::string> CommandNames(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::App* below : command.get_subcommands(nullptr)) names.push_back(below->get_name());
  return names;
}

std::string Unknown(const char* what, const std::string& word,
                    const std::vector<std::string>& known, const std::string& otherwise) {
  const std::string nearest = job::Nearest(word, known);
  return absl::StrCat("unknown ", what, " ", word,
                      nearest.empty() ? otherwise : absl::StrCat("; did you mean ", nearest, "?"));
}

std::string Problem(const CLI::App& app, const CLI::ParseError& error) {
  const Place place = Innermost(app);
  const std::string see = absl::StrCat("; see ", place.path, " --help");
  for (const std::string& word : app.remaining(/*recurse=*/true)) {
    if (word == "--") continue;
    if (word.size() > 1 && word[0] == '-') {
      return Unknown("option", word.substr(0, word.find('=')), OptionNames(*place.command), see);
    }
    const std::vector<std::string> commands = CommandNames(*place.command);
    if (!commands.empty()) return Unknown("command", word, commands, see);
    return absl::StrCat("unexpected argument ", word, see);
  }
  std::string what = error.what();
  if (what.size() > 1 && std::islower(static_cast<unsigned char>(what[1])) != 0) {
    what[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(what[0])));
  }
  return what + see;
}

}  // namespace

std::optional<int> ParseCommandLine(CLI::App* app, const std::string& program, int argc,
                                    char** argv, bool speaks) {
  app->set_version_flag("--version", VersionLine(program));
  try {
    app->parse(argc, argv);
  } catch (const CLI::Success& help_or_version) {
    return speaks ? app->exit(help_or_version) : 0;
  } catch (const CLI::ParseError& error) {
    std::string line = absl::StrCat(program, ": ", Problem(*app, error));
    std::replace(line.begin(), line.end(), '\n', ' ');
    if (speaks) std::fprintf(stderr, "%s\n", line.c_str());
    return 2;
  }
  return std::nullopt;
}

}  // namespace ela
