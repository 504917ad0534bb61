// Numbers, times and text as people read them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "proto/program/format.h"

namespace ela::cli {

std::string FormatDuration(double seconds);  // "0.4s", "45s", "1m 20s", "2h 05m", "3d 4h"
std::string FormatCompact(double number);    // "950", "12.3k", "1.20M"
std::string FormatSignificant(double number, int digits);  // "4.231", "8.1e-04", "nan"
std::string FormatClock(int64_t unix_ms);                  // local "14:05:09"

/// Columns that UTF-8 text takes, if every character takes one; escape sequences take none.
int DisplayWidth(std::string_view text);
/// The text cut to `columns`, with an ellipsis where something was cut off.
std::string FitToWidth(std::string_view text, int columns);
/// Text from elsewhere, safe to print: no control characters.
std::string Printable(std::string_view text);

}  // namespace ela::cli
