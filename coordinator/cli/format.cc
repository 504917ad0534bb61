#include "coordinator/cli/format.h"

#include <cmath>
#include <cstdio>

#include "proto/job/text.h"

namespace ela::cli {
namespace {

template <typename... Args>
std::string Print(const char* format, Args... args) {
  char buffer[96];
  std::snprintf(buffer, sizeof(buffer), format, args...);
  return buffer;
}

bool IsContinuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

// Length of the escape sequence that starts at `i`, 0 if none does.
size_t EscapeLength(std::string_view text, size_t i) {
  if (text[i] != '\x1b') return 0;
  size_t end = i + 1;
  if (end < text.size() && text[end] == '[') ++end;
  while (end < text.size() && (text[end] < '@' || text[end] > '~')) ++end;
  return end + 1 - i;
}

}  // namespace

std::string FormatDuration(double seconds) {
  if (!(seconds >= 0) || seconds > 1e10) return "-";
  if (seconds < 10) return Print("%.1fs", std::floor(seconds * 10) / 10);
  const auto total = static_cast<long long>(seconds);
  if (total < 60) return Print("%llds", total);
  if (total < 3600) return Print("%lldm %02llds", total / 60, total % 60);
  if (total < 86400) return Print("%lldh %02lldm", total / 3600, total / 60 % 60);
  return Print("%lldd %lldh", total / 86400, total / 3600 % 24);
}

std::string FormatCompact(double number) {
  static constexpr const char* kUnits[] = {"", "k", "M", "G", "T", "P"};
  if (!std::isfinite(number)) return "-";
  int unit = 0;
  while (std::abs(number) >= 999.5 && unit < 5) {
    number /= 1000;
    ++unit;
  }
  if (unit == 0) return Print("%.0f", number);
  const int decimals = std::abs(number) < 9.995 ? 2 : std::abs(number) < 99.95 ? 1 : 0;
  return Print("%.*f%s", decimals, number, kUnits[unit]);
}

std::string FormatSignificant(double number, int digits) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number > 0 ? "inf" : "-inf";
  if (number == 0) return "0";
  const int exponent = static_cast<int>(std::floor(std::log10(std::abs(number))));
  if (exponent < -3 || exponent > 6) return Print("%.*e", digits > 2 ? 2 : digits - 1, number);
  const int decimals = digits - 1 - exponent;
  return Print("%.*f", decimals < 0 ? 0 : decimals, number);
}

std::string FormatClock(int64_t unix_ms) {
  const std::string time = FormatTime(unix_ms);
  return time.substr(time.find(' ') + 1);
}

int DisplayWidth(std::string_view text) {
  int width = 0;
  for (size_t i = 0; i < text.size();) {
    if (const size_t escape = EscapeLength(text, i); escape > 0) {
      i += escape;
      continue;
    }
    if (!IsContinuation(text[i])) ++width;
    ++i;
  }
  return width;
}

std::string FitToWidth(std::string_view text, int columns) {
  if (columns <= 0) return "";
  if (DisplayWidth(text) <= columns) return std::string(text);
  std::string cut;
  int width = 0;
  bool styled = false;
  for (size_t i = 0; i < text.size();) {
    if (const size_t escape = EscapeLength(text, i); escape > 0) {
      cut += text.substr(i, escape);
      styled = true;
      i += escape;
      continue;
    }
    if (width == columns - 1 && !IsContinuation(text[i])) break;
    if (!IsContinuation(text[i])) ++width;
    cut += text[i++];
  }
  cut += "…";
  return styled ? cut + "\x1b[0m" : cut;
}

std::string Printable(std::string_view text) {
  std::string line = job::OneLine(text);
  // C1 controls (U+0080 to U+009F) move the cursor on some terminals too.
  for (size_t i = 0; i + 1 < line.size(); ++i) {
    const bool c1 = line[i] == '\xc2' && static_cast<unsigned char>(line[i + 1]) < 0xA0;
    if (c1) line.replace(i, 2, "?");
  }
  return line;
}

}  // namespace ela::cli
