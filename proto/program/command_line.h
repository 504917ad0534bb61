// The command line of a program that is not `ela` itself.
#pragma once

#include <optional>
#include <string>

namespace CLI {
class App;
}

namespace ela {

/// Adds --version and parses. Nothing: the options are set. Otherwise what main returns: 0 after
/// --help or --version; 2 after one line on stderr, "PROGRAM: what is wrong; see ... --help", which
/// names an unknown word before anything that is missing, and the nearest known one. Of the ranks
/// of one mpirun, one `speaks`.
std::optional<int> ParseCommandLine(CLI::App* app, const std::string& program, int argc,
                                    char** argv, bool speaks = true);

}  // namespace ela
