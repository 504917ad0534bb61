// Commands that change a job, and the one that waits for a change: cancel, pause, resume, wait.

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "coordinator/cli/follow.h"
#include "coordinator/cli/format.h"
#include "coordinator/cli/session.h"
#include "proto/job/job_file.h"
#include "proto/job/schema.h"
#include "proto/job/writer.h"

namespace ela::cli {
namespace {

int PrintJob(const Session& session, const absl::StatusOr<v1::Job>& job) {
  if (!job.ok()) return session.Fail(job.status());
  if (session.structured()) {
    session.Emit(job::MessageToJson(*job));
  } else {
    session.out() << job->id() << "\n";
    session.Note(absl::StrCat(Printable(job->spec().metadata().name()), " is ",
                              StateName(job->state()), job->reason().empty() ? "" : ": ",
                              Printable(job->reason())));
  }
  return kDone;
}

template <typename Request>
int Change(Session& session,
           grpc::Status (v1::Coordinator::Stub::*method)(grpc::ClientContext*, const Request&,
                                                         v1::Job*),
           Request request) {
  const absl::StatusOr<Client*> client = session.client();
  if (!client.ok()) return session.Fail(client.status());
  request.set_job(session.arguments().job());
  return PrintJob(session, (*client)->Call(method, request));
}

// What --for names: a set of states.
struct Goal {
  std::string name;
  bool any_end = false;
  v1::JobState state = v1::JOB_STATE_SUCCEEDED;

  bool IsReached(v1::JobState now) const { return any_end ? IsTerminal(now) : now == state; }
};

absl::StatusOr<Goal> ParseGoal(const std::string& name) {
  if (name == "completed") return Goal{name};
  if (name == "ended") return Goal{name, /*any_end=*/true};
  const auto* type = v1::JobState_descriptor();
  const auto* value = job::FindEnumKey(type, name);
  if (value == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("--for: \"", name,
                                                   "\" is not one of completed, ended, ",
                                                   absl::StrJoin(job::EnumKeys(type), ", ")));
  }
  return Goal{name, false, static_cast<v1::JobState>(value->number())};
}

class NoticeOnly : public FollowObserver {
 public:
  explicit NoticeOnly(const Session& session) : session_(session) {}
  void OnNotice(const std::string& text) override { session_.Note(text); }

 private:
  const Session& session_;
};

}  // namespace

int Cancel(Session& session) {
  v1::CancelRequest request;
  request.set_reason(session.arguments().Get("reason"));
  return Change(session, &v1::Coordinator::Stub::Cancel, request);
}

int Pause(Session& session) {
  return Change(session, &v1::Coordinator::Stub::Pause, v1::PauseRequest());
}

int Resume(Session& session) {
  return Change(session, &v1::Coordinator::Stub::Resume, v1::ResumeRequest());
}

int Wait(Session& session) {
  const absl::StatusOr<Goal> goal = ParseGoal(session.arguments().Get("for", "completed"));
  if (!goal.ok()) return session.Fail(goal.status());
  const auto longest = session.longest_follow();
  if (!longest.ok()) return session.Fail(longest.status());
  const absl::StatusOr<Client*> client = session.client();
  if (!client.ok()) return session.Fail(client.status());

  FollowOptions options;
  options.job = session.arguments().job();
  options.longest = *longest;
  options.reached = [&](const v1::Job& job) { return goal->IsReached(job.state()); };
  NoticeOnly observer(session);
  const FollowResult result = Follow(**client, options, session.io(), &observer);
  const v1::Job& job = result.state.job;
  switch (result.end) {
    case FollowEnd::kError:
      return session.Fail(result.status);
    case FollowEnd::kInterrupted:
      session.Note("no longer waiting; the job goes on");
      return kDetached;
    case FollowEnd::kTimedOut:
      session.Note(absl::StrCat(options.job, " is ",
                                job.id().empty() ? "unknown" : StateName(job.state()), ", not ",
                                goal->name, ", after ", session.arguments().Get("timeout")));
      return kTimedOut;
    case FollowEnd::kReached:
      break;
  }
  PrintJob(session, job);
  if (goal->IsReached(job.state())) return kDone;
  const int code = ExitCodeOf(job.state());
  return code == kDone ? kFailed : code;  // it succeeded, but that is not what was waited for
}

}  // namespace ela::cli
