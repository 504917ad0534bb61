// A job as the command line shows it: pure functions of what the coordinator said.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ela/v1/coordinator.pb.h"

namespace ela::cli {

/// What a watcher knows: the job, its newest progress, its curve so far.
struct WatchState {
  v1::Job job;
  v1::Progress progress;
  std::vector<v1::StepPoint> points;  // ascending steps

  /// A point that goes back (a restart from a checkpoint, a curve sent anew) replaces what came
  /// after it.
  void Apply(const v1::WatchUpdate& update);
};

struct ViewStyle {
  int width = 80;
  int height = 24;
  bool colour = false;
  bool unicode = true;
};

bool IsTerminal(v1::JobState state);
std::string StateName(v1::JobState state);  // "running"
/// "running" in its colour, if colours are on.
std::string StyledState(v1::JobState state, const ViewStyle& style);

/// Attempts beyond the first.
int Restarts(const v1::Job& job);

/// The live block: name and state, bar with ETA, numbers, checkpoint, curve. At most `height` lines
/// of `width` columns.
std::vector<std::string> RenderLive(const WatchState& state, const ViewStyle& style,
                                    int64_t now_ms);

/// The same as one plain line: "running  step 120/1000 (12%)  loss 4.231 ...".
std::string RenderLine(const WatchState& state, int64_t now_ms);

/// After the end: what came out, where it is and what can be done next.
std::string RenderSummary(const WatchState& state);

/// Everything: `ela describe`.
std::string RenderDescription(const v1::Job& job, const std::vector<v1::Event>& events,
                              const ViewStyle& style, int64_t now_ms);

}  // namespace ela::cli
