#include "coordinator/cli/cli.h"

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "coordinator/cli/arguments.h"
#include "coordinator/cli/session.h"
#include "proto/program/version.h"

namespace ela::cli {
namespace {

using Handler = int (*)(Session&);

Handler FindHandler(const std::string& name) {
  static constexpr struct {
    const char* name;
    Handler handler;
  } kHandlers[] = {
      {"submit", Submit},
      {"validate", Validate},
      {"list", List},
      {"get", Get},
      {"describe", Describe},
      {"watch", Watch},
      {"logs", Logs},
      {"events", Events},
      {"cancel", Cancel},
      {"pause", Pause},
      {"resume", Resume},
      {"wait", Wait},
      {"cluster", ShowCluster},
      {"version", ShowVersion},
      {"completion", Completion},
  };
  for (const auto& entry : kHandlers) {
    if (name == entry.name) return entry.handler;
  }
  return nullptr;
}

// Becomes `ela-data` and the like, which lie beside this program; their arguments pass through
// untouched.
int RunSibling(const Arguments& arguments, const Io& io) {
  const std::string& program = arguments.command->sibling;
  const std::string path = absl::StrCat(io.program_dir, "/", program);
  std::vector<std::string> argv = {program};
  argv.insert(argv.end(), arguments.passed_on.begin(), arguments.passed_on.end());
  const int error = io.exec(path, argv);
  *io.err << "ela: ela " << arguments.command->name << " needs the program " << path << ": "
          << std::strerror(error)
          << (error == ENOENT
                  ? "; build it with: cmake --build --preset release --target " + program
                  : "")
          << "\n";
  return kFailed;
}

}  // namespace

int Run(const std::vector<std::string>& words, const Io& io) {
  const absl::StatusOr<Arguments> arguments = ParseArguments(words);
  if (!arguments.ok()) {
    *io.err << "ela: " << arguments.status().message() << "\n";
    return kUsage;
  }
  if (arguments->version) {
    *io.out << VersionLine("ela") << "\n";
    return kDone;
  }
  if (arguments->help || arguments->command == nullptr) {
    *io.out << (arguments->command == nullptr ? HelpText() : CommandHelp(*arguments->command));
    return kDone;
  }
  if (!arguments->command->sibling.empty()) return RunSibling(*arguments, io);
  Session session(*arguments, io);
  return FindHandler(arguments->command->name)(session);
}

}  // namespace ela::cli
