#include "proto/program/version.h"

namespace ela {

const char* VersionNumber() { return ELA_VERSION; }
const char* VersionCommit() { return ELA_COMMIT; }
const char* BuildType() { return ELA_BUILD_TYPE; }

std::string VersionText() { return ELA_VERSION " (" ELA_COMMIT ", " ELA_BUILD_TYPE ")"; }
std::string VersionLine(const std::string& program) { return program + " " + VersionText(); }

}  // namespace ela
