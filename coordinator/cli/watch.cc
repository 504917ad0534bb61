// `ela watch` and `--follow`: a live block on a terminal, plain lines elsewhere.

#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "coordinator/cli/follow.h"
#include "coordinator/cli/format.h"
#include "coordinator/cli/screen.h"
#include "coordinator/cli/session.h"
#include "proto/job/writer.h"

namespace ela::cli {
namespace {

// Redraws in place; what happens to the job is printed above and stays.
class LiveObserver : public FollowObserver {
 public:
  explicit LiveObserver(const Session& session) : session_(session), block_(session.io().out) {}

  void OnUpdate(const WatchState& state, const v1::WatchUpdate& update) override {
    if (update.has_event()) {
      const v1::Event& event = update.event();
      const std::string line =
          absl::StrCat(FormatClock(event.unix_ms()), "  ", Printable(event.message()));
      block_.Print(FitToWidth(line, session_.style().width) + "\n");
      drawn_ = absl::InfinitePast();
    }
    if (absl::Now() - drawn_ >= kFrame) Draw(state);
  }
  void OnTick(const WatchState& state) override { Draw(state); }
  void OnNotice(const std::string& text) override {
    block_.Print(FitToWidth("ela: " + text, session_.style().width) + "\n");
  }

 private:
  void Draw(const WatchState& state) {
    if (state.job.id().empty()) return;
    const ViewStyle style = session_.style();
    block_.Draw(RenderLive(state, style, session_.io().now_unix_ms()), style.width);
    drawn_ = absl::Now();
  }

  static inline const absl::Duration kFrame =
      absl::Milliseconds(80);  // steps may come faster than eyes

  const Session& session_;
  LiveBlock block_;
  absl::Time drawn_ = absl::InfinitePast();
};

// A line when the state changes, an event comes, or some seconds have passed with new progress.
class LineObserver : public FollowObserver {
 public:
  explicit LineObserver(const Session& session) : session_(session) {}

  void OnUpdate(const WatchState& state, const v1::WatchUpdate& update) override {
    const int64_t now = session_.io().now_unix_ms();
    if (update.has_event()) Print(update.event().unix_ms(), Printable(update.event().message()));
    const bool changed = state.job.state() != printed_state_;
    const bool due = state.progress.step() != printed_step_ && now - printed_ms_ >= kEveryMs;
    if (!changed && !due) return;
    printed_state_ = state.job.state();
    printed_step_ = state.progress.step();
    printed_ms_ = now;
    Print(now, RenderLine(state, now));
  }
  void OnNotice(const std::string& text) override { session_.Note(text); }

 private:
  static constexpr int64_t kEveryMs = 5000;

  void Print(int64_t unix_ms, const std::string& text) {
    session_.out() << FormatClock(unix_ms) << "  " << text << std::endl;
  }

  const Session& session_;
  v1::JobState printed_state_ = v1::JOB_STATE_UNSPECIFIED;
  int64_t printed_step_ = -1;
  int64_t printed_ms_ = 0;
};

class SilentObserver : public FollowObserver {};

std::unique_ptr<FollowObserver> MakeObserver(const Session& session) {
  if (session.quiet() || session.structured()) return std::make_unique<SilentObserver>();
  const bool live = session.io().out_is_terminal && session.io().env("TERM") != "dumb";
  if (live) return std::make_unique<LiveObserver>(session);
  return std::make_unique<LineObserver>(session);
}

}  // namespace

int ExitCodeOf(v1::JobState state) {
  if (state == v1::JOB_STATE_FAILED) return kJobFailed;
  if (state == v1::JOB_STATE_CANCELLED) return kJobCancelled;
  return kDone;
}

int WatchJob(Session& session, const std::string& job) {
  const auto longest = session.longest_follow();
  if (!longest.ok()) return session.Fail(longest.status());
  const absl::StatusOr<Client*> client = session.client();
  if (!client.ok()) return session.Fail(client.status());
  FollowOptions options;
  options.job = job;
  options.history_points = 2000;  // a curve 100 columns wide has 200 columns of dots
  options.longest = *longest;
  FollowResult result;
  {
    const std::unique_ptr<FollowObserver> observer = MakeObserver(session);
    result = Follow(**client, options, session.io(), observer.get());
  }
  switch (result.end) {
    case FollowEnd::kError:
      return session.Fail(result.status);
    case FollowEnd::kInterrupted:
      session.Note(absl::StrCat("detached; the job goes on. Watch it again: ela watch ", job,
                                "   Stop it: ela cancel ", job));
      return kDetached;
    case FollowEnd::kTimedOut:
      session.Note(
          absl::StrCat("the time is up; the job goes on. Watch it again: ela watch ", job));
      return kTimedOut;
    case FollowEnd::kReached:
      break;
  }
  if (session.structured()) {
    session.Emit(job::MessageToJson(result.state.job));
  } else if (!session.quiet()) {
    session.out() << "\n" << RenderSummary(result.state) << std::flush;
  }
  return ExitCodeOf(result.state.job.state());
}

int Watch(Session& session) { return WatchJob(session, session.arguments().job()); }

}  // namespace ela::cli
