#include "data/corpus/progress_line.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace ela::data {
namespace {

using Clock = std::chrono::steady_clock;

std::string Duration(double seconds) {
  const auto s = static_cast<int64_t>(seconds);
  if (s < 60) return absl::StrCat(s, "s");
  if (s < 3600) return absl::StrFormat("%dm%02ds", s / 60, s % 60);
  return absl::StrFormat("%dh%02dm", s / 3600, s % 3600 / 60);
}

std::string EncodeLine(const BuildProgress& now, const BuildProgress& first, double seconds) {
  const auto rate = [&](int64_t a, int64_t b) {
    return seconds > 0 ? static_cast<double>(b - a) / seconds : 0;
  };
  std::string line = absl::StrFormat(
      "%s documents, %s tokens, %.1f MB/s, %s tokens/s",
      HumanCount(static_cast<double>(now.documents)), HumanCount(static_cast<double>(now.tokens)),
      rate(first.text_bytes, now.text_bytes) / 1e6, HumanCount(rate(first.tokens, now.tokens)));
  const double input_rate = rate(first.input_bytes, now.input_bytes);
  if (now.total_bytes > 0 && input_rate > 0) {
    const double share =
        std::min(1.0, static_cast<double>(now.input_bytes) / static_cast<double>(now.total_bytes));
    const double left =
        std::max(0.0, static_cast<double>(now.total_bytes - now.input_bytes) / input_rate);
    line = absl::StrFormat("%3.0f%%  %s, ETA %s", 100 * share, line, Duration(left));
  }
  return line;
}

}  // namespace

std::string HumanCount(double value) {
  const char* const units[] = {"", " k", " M", " G", " T"};
  int unit = 0;
  while (value >= 999.5 && unit < 4) value /= 1000, ++unit;
  const int digits = unit == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return absl::StrFormat("%.*f%s", digits, value, units[unit]);
}

ProgressLine::ProgressLine() : terminal_(isatty(STDERR_FILENO) == 1), start_(Clock::now()) {}

ProgressLine::~ProgressLine() {
  absl::MutexLock lock(&mutex_);
  Clear();
}

double ProgressLine::seconds() const {
  return std::chrono::duration<double>(Clock::now() - start_).count();
}

void ProgressLine::Clear() {
  if (drawn_any_) std::fputs("\r\033[K", stderr);
  drawn_any_ = false;
}

void ProgressLine::Notice(const std::string& message) {
  absl::MutexLock lock(&mutex_);
  Clear();
  std::fprintf(stderr, "ela-data: %s\n", message.c_str());
}

void ProgressLine::Show(const BuildProgress& progress) {
  absl::MutexLock lock(&mutex_);
  const auto now = Clock::now();
  if (progress.phase == BuildProgress::Phase::kEncode && !encoding_) {
    encoding_ = true;
    encoding_since_ = now;
    first_ = progress;
  }
  if (!terminal_ || (drawn_any_ && now - drawn_ < std::chrono::milliseconds(100))) return;
  const std::string line =
      progress.phase == BuildProgress::Phase::kTrainTokenizer
          ? "training the tokenizer"
          : EncodeLine(progress, first_,
                       std::chrono::duration<double>(now - encoding_since_).count());
  Clear();
  std::fputs(line.c_str(), stderr);
  std::fflush(stderr);
  drawn_any_ = true;
  drawn_ = now;
}

}  // namespace ela::data
