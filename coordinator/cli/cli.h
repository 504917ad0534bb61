// The `ela` program as a function.
#pragma once

#include <string>
#include <vector>

#include "coordinator/cli/io.h"

namespace ela::cli {

/// Runs one command line (without the program's name) and returns its exit code.
int Run(const std::vector<std::string>& words, const Io& io);

}  // namespace ela::cli
