#include "coordinator/cli/job_view.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "coordinator/cli/curve.h"
#include "coordinator/cli/format.h"
#include "proto/job/job_file.h"

namespace ela::cli {
namespace {

constexpr const char* kBold = "\x1b[1m";
constexpr const char* kDim = "\x1b[2m";
constexpr const char* kReset = "\x1b[0m";

std::string Styled(const std::string& text, const char* code, const ViewStyle& style) {
  return style.colour ? absl::StrCat(code, text, kReset) : text;
}

const char* ColourOf(v1::JobState state) {
  switch (state) {
    case v1::JOB_STATE_RUNNING:
    case v1::JOB_STATE_SUCCEEDED:
      return "\x1b[32m";
    case v1::JOB_STATE_FAILED:
      return "\x1b[31m";
    case v1::JOB_STATE_CANCELLED:
    case v1::JOB_STATE_CANCELLING:
    case v1::JOB_STATE_PREEMPTING:
    case v1::JOB_STATE_RECOVERING:
    case v1::JOB_STATE_BACKOFF:
      return "\x1b[33m";
    default:
      return "\x1b[36m";
  }
}

// Pieces joined by three spaces, over as many lines as the width needs.
std::vector<std::string> Flow(const std::vector<std::string>& pieces, int width) {
  std::vector<std::string> lines;
  for (const std::string& piece : pieces) {
    if (piece.empty()) continue;
    const bool fits =
        !lines.empty() && DisplayWidth(lines.back()) + 3 + DisplayWidth(piece) <= width;
    if (fits) {
      lines.back() += "   " + piece;
    } else {
      lines.push_back(FitToWidth(piece, width));
    }
  }
  return lines;
}

double ShareDone(const v1::Progress& progress) {
  if (progress.total_steps() <= 0) return 0;
  return static_cast<double>(progress.step()) / static_cast<double>(progress.total_steps());
}

std::string Percent(const v1::Progress& progress) {
  return absl::StrCat(static_cast<int>(100 * ShareDone(progress)), "%");
}

std::string StepText(const v1::Progress& progress) {
  return absl::StrCat("step ", FormatCount(progress.step()), "/",
                      FormatCount(progress.total_steps()));
}

std::string LossText(const v1::Progress& progress) {
  const std::string leaks = progress.leaks_future() ? " (sees its targets: leaks the future)" : "";
  return absl::StrCat("loss ", FormatSignificant(progress.loss(), 4), leaks);
}

std::vector<std::string> NumberPieces(const v1::Progress& progress) {
  std::vector<std::string> pieces = {LossText(progress)};
  if (progress.eval_step() > 0) {
    pieces.push_back(absl::StrCat("eval ", FormatSignificant(progress.eval_loss(), 4), " at ",
                                  FormatCount(progress.eval_step())));
  }
  pieces.push_back(absl::StrCat("lr ", FormatSignificant(progress.learning_rate(), 3)));
  pieces.push_back(absl::StrCat("grad norm ", FormatSignificant(progress.grad_norm(), 3)));
  pieces.push_back(absl::StrCat(FormatCompact(progress.tokens_per_second()), " tokens/s"));
  return pieces;
}

std::string CheckpointText(const v1::Progress& progress, int64_t now_ms) {
  if (progress.last_checkpoint_step() == 0) return "no checkpoint yet";
  const double age = static_cast<double>(now_ms - progress.last_checkpoint_unix_ms()) / 1000;
  return absl::StrCat("checkpoint at step ", FormatCount(progress.last_checkpoint_step()), ", ",
                      FormatDuration(std::max(0.0, age)), " ago");
}

std::vector<CurvePoint> CurvePoints(const WatchState& state) {
  std::vector<CurvePoint> points;
  for (const v1::StepPoint& point : state.points) {
    points.push_back({static_cast<double>(point.step()), point.loss()});
  }
  return points;
}

void Append(std::vector<std::string> more, std::vector<std::string>* lines) {
  lines->insert(lines->end(), std::make_move_iterator(more.begin()),
                std::make_move_iterator(more.end()));
}

std::string Heading(const WatchState& state, const ViewStyle& style, int64_t now_ms) {
  const v1::Job& job = state.job;
  std::string line = absl::StrCat(Styled(Printable(job.spec().metadata().name()), kBold, style),
                                  "  ", job.id(), "  ", StyledState(job.state(), style));
  if (job.started_unix_ms() > 0) {
    const int64_t end = job.ended_unix_ms() > 0 ? job.ended_unix_ms() : now_ms;
    absl::StrAppend(&line, " for ",
                    FormatDuration(static_cast<double>(end - job.started_unix_ms()) / 1000));
  }
  if (const int restarts = Restarts(job); restarts > 0) {
    absl::StrAppend(&line, ", ", restarts, restarts == 1 ? " restart" : " restarts");
  }
  return line;
}

std::string BarLine(const v1::Progress& progress, const ViewStyle& style) {
  const std::string eta = progress.eta_seconds() > 0 && progress.step() < progress.total_steps()
                              ? absl::StrCat("  ETA ", FormatDuration(progress.eta_seconds()))
                              : "";
  const std::string text = absl::StrCat(" ", Percent(progress), "  ", StepText(progress), eta);
  const int bar = style.width - DisplayWidth(text);
  if (bar < 10) return FitToWidth(text.substr(1), style.width);
  return ProgressBar(ShareDone(progress), std::min(bar, 50), style.unicode) + text;
}

}  // namespace

void WatchState::Apply(const v1::WatchUpdate& update) {
  if (update.has_job()) {
    job = update.job();
    if (job.has_progress()) progress = job.progress();
  }
  if (update.has_progress()) progress = update.progress();
  for (const v1::StepPoint& point : update.points()) {
    while (!points.empty() && points.back().step() >= point.step()) points.pop_back();
    points.push_back(point);
  }
}

bool IsTerminal(v1::JobState state) {
  return state == v1::JOB_STATE_SUCCEEDED || state == v1::JOB_STATE_FAILED ||
         state == v1::JOB_STATE_CANCELLED;
}

std::string StateName(v1::JobState state) {
  const auto* value = v1::JobState_descriptor()->FindValueByNumber(state);
  return value == nullptr ? absl::StrCat("state ", static_cast<int>(state)) : job::EnumKey(value);
}

std::string StyledState(v1::JobState state, const ViewStyle& style) {
  return Styled(StateName(state), ColourOf(state), style);
}

int Restarts(const v1::Job& job) { return std::max(0, job.attempts_size() - 1); }

std::vector<std::string> RenderLive(const WatchState& state, const ViewStyle& style,
                                    int64_t now_ms) {
  std::vector<std::string> lines = {FitToWidth(Heading(state, style, now_ms), style.width)};
  const v1::Job& job = state.job;
  if (!job.reason().empty()) {
    lines.push_back(FitToWidth(Styled(Printable(job.reason()), kDim, style), style.width));
  }
  if (job.contact_lost_unix_ms() > 0 && !IsTerminal(job.state())) {
    const double silence = static_cast<double>(now_ms - job.contact_lost_unix_ms()) / 1000;
    lines.push_back(FitToWidth(
        absl::StrCat("no word from the ranks for ", FormatDuration(std::max(0.0, silence))),
        style.width));
  }
  if (state.progress.total_steps() > 0 && state.progress.step() > 0) {
    lines.push_back(BarLine(state.progress, style));
    Append(Flow(NumberPieces(state.progress), style.width), &lines);
    std::vector<std::string> rest = {
        CheckpointText(state.progress, now_ms),
        FormatCompact(static_cast<double>(state.progress.tokens())) + " tokens"};
    if (state.progress.skipped_steps() > 0) {
      rest.push_back(absl::StrCat(state.progress.skipped_steps(), " steps skipped"));
    }
    Append(Flow(rest, style.width), &lines);
  }
  // The curve takes what is left of the terminal, but no more than reads well; one line stays for
  // the cursor.
  const int room = std::min(14, style.height - static_cast<int>(lines.size()) - 1);
  if (state.points.size() >= 2) {
    Append(DrawCurve(CurvePoints(state), std::min(style.width, 100), room, style.unicode), &lines);
  }
  if (static_cast<int>(lines.size()) > style.height - 1)
    lines.resize(std::max(1, style.height - 1));
  return lines;
}

std::string RenderLine(const WatchState& state, int64_t now_ms) {
  std::string line = StateName(state.job.state());
  const v1::Progress& progress = state.progress;
  if (progress.step() > 0) {
    absl::StrAppend(&line, "  ", StepText(progress), " (", Percent(progress), ")");
    for (const std::string& piece : NumberPieces(progress)) absl::StrAppend(&line, "  ", piece);
    if (progress.eta_seconds() > 0 && progress.step() < progress.total_steps()) {
      absl::StrAppend(&line, "  ETA ", FormatDuration(progress.eta_seconds()));
    }
    if (progress.last_checkpoint_step() > 0) {
      absl::StrAppend(&line, "  ", CheckpointText(progress, now_ms));
    }
  }
  if (!state.job.reason().empty()) absl::StrAppend(&line, "  ", Printable(state.job.reason()));
  return line;
}

std::string RenderSummary(const WatchState& state) {
  const v1::Job& job = state.job;
  std::string text =
      absl::StrCat(Printable(job.spec().metadata().name()), " ", StateName(job.state()));
  if (job.started_unix_ms() > 0 && job.ended_unix_ms() > 0) {
    absl::StrAppend(
        &text, " after ",
        FormatDuration(static_cast<double>(job.ended_unix_ms() - job.started_unix_ms()) / 1000));
  }
  if (!job.reason().empty()) absl::StrAppend(&text, ": ", Printable(job.reason()));
  if (!state.points.empty()) {
    absl::StrAppend(&text, "\n  loss            ",
                    FormatSignificant(state.points.front().loss(), 4), " at step ",
                    FormatCount(state.points.front().step()), ", ",
                    FormatSignificant(state.points.back().loss(), 4), " at step ",
                    FormatCount(state.points.back().step()),
                    state.progress.leaks_future() ? " (leaks the future)" : "");
  }
  if (state.progress.last_checkpoint_step() > 0) {
    absl::StrAppend(&text, "\n  last checkpoint step ",
                    FormatCount(state.progress.last_checkpoint_step()));
  }
  if (!job.run_dir().empty())
    absl::StrAppend(&text, "\n  run folder      ", Printable(job.run_dir()));
  if (job.state() == v1::JOB_STATE_FAILED) {
    absl::StrAppend(&text, "\n  see             ela logs ", job.id(), "   ela describe ", job.id());
  }
  return text + "\n";
}

}  // namespace ela::cli
