// What the schema can say and this build cannot do yet.
#pragma once

#include <string>
#include <vector>

#include "ela/v1/job.pb.h"

namespace ela::job {

struct Unsupported {
  std::string path;
  std::string problem;  // what is missing, and what to write instead
};

/// The rows of the table in support.cc that a resolved spec asks for. A feature that lands deletes
/// its row.
std::vector<Unsupported> UnsupportedKeys(const v1::JobSpec& spec);

}  // namespace ela::job
