// How numbers and tables read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "proto/program/format.h"

namespace ela::checkpoints {

std::string Isoformat(int64_t unix_ms);  // "2026-11-25T03:12:32Z"; empty for 0

/// A header in capitals, columns two spaces apart. A header that starts with '>' is aligned to the
/// right.
std::string RenderTable(const std::vector<std::string>& headers,
                        const std::vector<std::vector<std::string>>& rows);
/// "key    value" lines.
std::string RenderPairs(const std::vector<std::pair<std::string, std::string>>& pairs);

}  // namespace ela::checkpoints
