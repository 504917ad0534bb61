// What a program says of itself.
#pragma once

#include <string>

namespace ela {

/// "0.1.0"; checkpoints and metrics carry it too.
const char* VersionNumber();
/// The commit that was configured, 12 digits; "unknown commit" outside a git checkout.
const char* VersionCommit();
/// As CMake calls it, such as "Release".
const char* BuildType();

/// "0.1.0 (0123456789ab, Release)", and the same behind a program's name, as --version prints it.
std::string VersionText();
std::string VersionLine(const std::string& program);

}  // namespace ela
