// Commands that print what the coordinator knows: list, get, describe, events, cluster, version.

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "coordinator/cli/format.h"
#include "coordinator/cli/session.h"
#include "coordinator/cli/table.h"
#include "proto/job/job_file.h"
#include "proto/job/schema.h"
#include "proto/job/writer.h"
#include "proto/program/version.h"
#include "proto/status_macros.h"

namespace ela::cli {
namespace {

using nlohmann::ordered_json;

std::string Age(int64_t unix_ms, int64_t now_ms) {
  if (unix_ms == 0) return "";
  return FormatDuration(static_cast<double>(std::max<int64_t>(0, now_ms - unix_ms)) / 1000);
}

std::vector<std::string> JobRow(const v1::Job& job, bool wide, const ViewStyle& style,
                                int64_t now_ms) {
  const v1::Progress& progress = job.progress();
  const bool started = progress.step() > 0;
  std::vector<std::string> row = {
      job.id(),
      Printable(job.spec().metadata().name()),
      StyledState(job.state(), style),
      progress.total_steps() > 0
          ? absl::StrCat(FormatCount(progress.step()), "/", FormatCount(progress.total_steps()))
          : "",
      started ? FormatSignificant(progress.loss(), 4) + (progress.leaks_future() ? " (leaks)" : "")
              : "",
      started ? FormatCompact(progress.tokens_per_second()) : "",
      Age(job.created_unix_ms(), now_ms)};
  if (wide) {
    row.push_back(absl::StrCat(Restarts(job)));
    row.push_back(progress.last_checkpoint_step() > 0 ? FormatCount(progress.last_checkpoint_step())
                                                      : "");
    row.push_back(Printable(job.run_dir()));
  }
  row.push_back(Printable(job.reason()));
  return row;
}

// One row a job, in the format that was asked for.
void PrintJobs(const Session& session, const std::vector<v1::Job>& jobs) {
  const bool wide = session.format() == "wide";
  std::vector<std::string> headers = {"ID",     "NAME",       "STATE", ">STEP",
                                      "?>LOSS", "?>TOKENS/S", "?>AGE"};
  if (wide) headers.insert(headers.end(), {">RESTARTS", ">CHECKPOINT", "RUN FOLDER"});
  headers.push_back("WHY");
  Table table(headers);
  const ViewStyle style = session.style();
  for (const v1::Job& job : jobs) {
    table.AddRow(JobRow(job, wide, style, session.io().now_unix_ms()));
  }
  session.out() << table.Render(session.table_columns());
}

absl::StatusOr<v1::JobState> ParseState(const std::string& name) {
  const auto* value = job::FindEnumKey(v1::JobState_descriptor(), name);
  if (value == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("--state: \"", name, "\" is not one of ",
                     absl::StrJoin(job::EnumKeys(v1::JobState_descriptor()), ", ")));
  }
  return static_cast<v1::JobState>(value->number());
}

absl::StatusOr<std::vector<v1::Job>> FetchJobs(Session& session) {
  v1::ListRequest request;
  const auto states = session.arguments().options.find("state");
  if (states != session.arguments().options.end()) {
    for (const std::string& name : states->second) {
      ELA_ASSIGN_OR_RETURN(const v1::JobState state, ParseState(name));
      request.add_states(state);
    }
  }
  int limit = 0;
  const std::string limit_text = session.arguments().Get("limit");
  if (!limit_text.empty() && (!absl::SimpleAtoi(limit_text, &limit) || limit < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--limit: \"", limit_text, "\" is not a number from 1"));
  }
  ELA_ASSIGN_OR_RETURN(Client * client, session.client());
  std::vector<v1::Job> jobs;
  do {
    request.set_page_size(limit > 0 ? std::min<int>(1000, limit - static_cast<int>(jobs.size()))
                                    : 0);
    ELA_ASSIGN_OR_RETURN(v1::ListResponse response,
                         client->Call(&v1::Coordinator::Stub::List, request));
    for (v1::Job& job : *response.mutable_jobs()) jobs.push_back(std::move(job));
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty() && (limit == 0 || static_cast<int>(jobs.size()) < limit));
  return jobs;
}

absl::StatusOr<v1::Job> FetchJob(Session& session) {
  ELA_ASSIGN_OR_RETURN(Client * client, session.client());
  v1::GetRequest request;
  request.set_job(session.arguments().job());
  return client->Call(&v1::Coordinator::Stub::Get, request);
}

absl::StatusOr<std::vector<v1::Event>> FetchEvents(Session& session, const std::string& job) {
  ELA_ASSIGN_OR_RETURN(Client * client, session.client());
  v1::EventsRequest request;
  request.set_job(job);
  std::vector<v1::Event> events;
  // An answer may hold only a part; the next question starts after its last event.
  while (true) {
    ELA_ASSIGN_OR_RETURN(v1::EventsResponse response,
                         client->Call(&v1::Coordinator::Stub::Events, request));
    if (response.events().empty()) return events;
    for (v1::Event& event : *response.mutable_events()) events.push_back(std::move(event));
    if (events.back().sequence() <= request.after_sequence()) return events;
    request.set_after_sequence(events.back().sequence());
  }
}

template <typename Message>
ordered_json JsonList(const std::vector<Message>& messages) {
  ordered_json list = ordered_json::array();
  for (const Message& message : messages) list.push_back(job::MessageToJson(message));
  return list;
}

}  // namespace

int List(Session& session) {
  const auto jobs = FetchJobs(session);
  if (!jobs.ok()) return session.Fail(jobs.status());
  if (session.structured()) {
    session.Emit(JsonList(*jobs));
  } else if (session.format() == "name") {
    for (const v1::Job& job : *jobs) session.out() << job.id() << "\n";
  } else if (jobs->empty()) {
    session.Note("no jobs; submit one with: ela submit -f job.yaml");
  } else {
    PrintJobs(session, *jobs);
  }
  return kDone;
}

int Get(Session& session) {
  const auto job = FetchJob(session);
  if (!job.ok()) return session.Fail(job.status());
  if (session.structured()) {
    session.Emit(job::MessageToJson(*job));
  } else if (session.format() == "name") {
    session.out() << job->id() << "\n";
  } else {
    PrintJobs(session, {*job});
  }
  return kDone;
}

int Describe(Session& session) {
  const auto job = FetchJob(session);
  if (!job.ok()) return session.Fail(job.status());
  const auto events = FetchEvents(session, job->id());
  if (!events.ok()) return session.Fail(events.status());
  if (session.structured()) {
    ordered_json json = job::MessageToJson(*job);
    json["events"] = JsonList(*events);
    session.Emit(json);
  } else {
    session.out() << RenderDescription(*job, *events, session.style(), session.io().now_unix_ms());
  }
  return kDone;
}

int Events(Session& session) {
  const auto events = FetchEvents(session, session.arguments().job());
  if (!events.ok()) return session.Fail(events.status());
  if (session.structured()) {
    session.Emit(JsonList(*events));
    return kDone;
  }
  const bool wide = session.format() == "wide";
  std::vector<std::string> headers = {">#", "TIME", "TYPE", ">ATTEMPT"};
  if (wide) headers.push_back("BY");
  headers.push_back("EVENT");
  Table table(headers);
  for (const v1::Event& event : *events) {
    std::vector<std::string> row = {absl::StrCat(event.sequence()), FormatTime(event.unix_ms()),
                                    Printable(event.type()),
                                    event.attempt() > 0 ? absl::StrCat(event.attempt()) : ""};
    if (wide) row.push_back(Printable(event.actor()));
    row.push_back(Printable(event.message()));
    table.AddRow(std::move(row));
  }
  session.out() << table.Render(session.table_columns());
  return kDone;
}

int ShowCluster(Session& session) {
  const absl::StatusOr<Client*> client = session.client();
  if (!client.ok()) return session.Fail(client.status());
  const auto cluster = (*client)->Call(&v1::Coordinator::Stub::GetCluster, v1::GetClusterRequest());
  if (!cluster.ok()) return session.Fail(cluster.status());
  if (session.structured()) {
    session.Emit(job::MessageToJson(*cluster));
    return kDone;
  }
  Table table({"NODE", "DEVICE", ">SLOTS", ">USED", "JOBS"});
  for (const v1::Node& node : cluster->nodes()) {
    table.AddRow({Printable(node.name()), Printable(node.device()), absl::StrCat(node.slots()),
                  absl::StrCat(node.used_slots()), absl::StrJoin(node.jobs(), ", ")});
  }
  session.out() << table.Render(session.table_columns()) << "\n"
                << cluster->running_jobs() << " running, " << cluster->queued_jobs() << " queued\n";
  if (!cluster->metrics_address().empty()) {
    session.out() << "metrics  http://" << Printable(cluster->metrics_address()) << "/metrics\n";
  }
  if (!cluster->state_dir().empty())
    session.out() << "state    " << Printable(cluster->state_dir()) << "\n";
  return kDone;
}

int ShowVersion(Session& session) {
  const absl::StatusOr<Client*> client = session.client();
  if (!client.ok()) return session.Fail(client.status());
  const auto version = (*client)->Call(&v1::Coordinator::Stub::GetVersion, v1::GetVersionRequest());
  if (session.structured()) {
    ordered_json json = {
        {"client",
         {{"version", VersionNumber()}, {"commit", VersionCommit()}, {"build_type", BuildType()}}}};
    json["coordinator"] = version.ok() ? job::MessageToJson(*version) : ordered_json(nullptr);
    session.Emit(json);
  } else {
    session.out() << "ela              " << VersionText() << "\n";
    if (version.ok()) {
      session.out() << "ela-coordinator  " << Printable(version->version()) << " ("
                    << Printable(version->commit()) << ", " << Printable(version->build_type())
                    << ")\n";
    }
  }
  // This program's own version is an answer even where no coordinator runs; the code tells scripts
  // that none does.
  return version.ok() ? kDone : session.Fail(version.status());
}

int Completion(Session& session) {
  const std::string shell = session.arguments().job();
  if (shell == "bash") {
    session.out() << BashCompletion();
  } else if (shell == "zsh") {
    session.out() << ZshCompletion();
  } else {
    return session.Fail(absl::InvalidArgumentError(
        absl::StrCat("completion: \"", shell, "\" is not one of bash, zsh")));
  }
  return kDone;
}

}  // namespace ela::cli
