// How sizes, counts and times read in every program.
#pragma once

#include <cstdint>
#include <string>

namespace ela {

std::string FormatBytes(int64_t bytes);   // "512 B", "5.3 MiB"
std::string FormatCount(int64_t count);   // "1,234,567"
std::string FormatTime(int64_t unix_ms);  // "2026-11-25 03:12:32", local, as logs are; "-" for 0

}  // namespace ela
