// `ela describe`: a job in sections.

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "coordinator/cli/format.h"
#include "coordinator/cli/job_view.h"
#include "coordinator/cli/table.h"
#include "proto/job/job_file.h"
#include "proto/job/plan.h"

namespace ela::cli {
namespace {

std::string Line(const std::string& name, const std::string& value) {
  if (value.empty()) return "";
  return absl::StrCat("  ", name, std::string(name.size() < 16 ? 16 - name.size() : 1, ' '), value,
                      "\n");
}

std::string Since(int64_t unix_ms, int64_t now_ms) {
  if (unix_ms == 0) return "";
  const double age = static_cast<double>(now_ms - unix_ms) / 1000;
  return absl::StrCat(FormatTime(unix_ms), "  (", FormatDuration(age < 0 ? 0 : age), " ago)");
}

std::string Overview(const v1::Job& job, const ViewStyle& style, int64_t now_ms) {
  std::string text = Line("name", Printable(job.spec().metadata().name())) + Line("id", job.id()) +
                     Line("state", StyledState(job.state(), style)) +
                     Line("why", Printable(job.reason())) +
                     Line("submitted", Since(job.created_unix_ms(), now_ms)) +
                     Line("first step", Since(job.started_unix_ms(), now_ms)) +
                     Line("ended", Since(job.ended_unix_ms(), now_ms));
  if (job.state() == v1::JOB_STATE_BACKOFF && job.next_retry_unix_ms() > now_ms) {
    text += Line("next try in",
                 FormatDuration(static_cast<double>(job.next_retry_unix_ms() - now_ms) / 1000));
  }
  if (job.contact_lost_unix_ms() > 0) {
    text += Line("no word since", Since(job.contact_lost_unix_ms(), now_ms));
  }
  if (job.failures() > 0) {
    text += Line("failures", absl::StrCat(job.failures(), " since the last progress, ",
                                          job.spec().spec().restart().max_failures(), " allowed"));
  }
  std::string labels;
  for (const auto& [key, value] : job.spec().metadata().labels()) {
    absl::StrAppend(&labels, labels.empty() ? "" : ", ", Printable(key), "=", Printable(value));
  }
  return text + Line("labels", labels) + Line("client key", Printable(job.client_key())) +
         Line("run folder", Printable(job.run_dir()));
}

std::string ProgressSection(const WatchState& state, const ViewStyle& style, int64_t now_ms) {
  if (state.progress.step() == 0) return "";
  std::string text = "\nProgress\n";
  ViewStyle plain = style;
  plain.colour = false;
  const std::vector<std::string> lines = RenderLive(state, plain, now_ms);
  // The heading and the reason stand above already.
  for (size_t i = state.job.reason().empty() ? 1 : 2; i < lines.size(); ++i) {
    absl::StrAppend(&text, "  ", lines[i], "\n");
  }
  return text;
}

std::string SpecSection(const v1::TrainingJob& job) {
  const v1::JobSpec& spec = job.spec();
  if (!spec.has_model()) return "";
  const v1::ParallelismSpec& mesh = spec.parallelism();
  return absl::StrCat(
      "\nJob\n",
      Line("model",
           absl::StrCat(FormatCount(job::ParameterCount(spec.model())),
                        " parameters: ", spec.model().num_layers(), " layers of ",
                        spec.model().hidden_size(), ", ", spec.model().num_attention_heads(),
                        " heads, ", spec.model().moe().num_experts(), " experts, vocabulary ",
                        FormatCount(spec.model().vocab_size()))),
      Line("batch", absl::StrCat(spec.training().global_batch_size(), " x ",
                                 FormatCount(spec.data().seq_len()), " tokens, ",
                                 FormatCount(spec.training().steps()), " steps")),
      Line("ranks",
           absl::StrCat(mesh.data() * mesh.sequence(), ": data ", mesh.data(), " x sequence ",
                        mesh.sequence(), ", experts over ", mesh.expert())),
      Line("priority", absl::StrCat(spec.resources().priority())));
}

std::string OutcomeText(const v1::Attempt& attempt) {
  if (attempt.outcome() == v1::OUTCOME_UNSPECIFIED) {
    const auto* state = v1::AttemptState_descriptor()->FindValueByNumber(attempt.state());
    return state == nullptr ? "?" : job::EnumKey(state);
  }
  const auto* outcome = v1::Outcome_descriptor()->FindValueByNumber(attempt.outcome());
  return outcome == nullptr ? "?" : job::EnumKey(outcome);
}

std::string AttemptsSection(const v1::Job& job, int64_t now_ms) {
  if (job.attempts().empty()) return "";
  Table table({">  #", "OUTCOME", "STARTED", ">LASTED", ">FROM STEP", ">EXIT", "RANKS", "WHY"});
  for (const v1::Attempt& attempt : job.attempts()) {
    const int64_t end = attempt.ended_unix_ms() > 0 ? attempt.ended_unix_ms() : now_ms;
    const bool has_exit =
        attempt.ended_unix_ms() > 0 && attempt.outcome() != v1::OUTCOME_LAUNCH_FAILED;
    const std::string exit = attempt.signal() != 0 ? absl::StrCat("signal ", attempt.signal())
                             : has_exit            ? absl::StrCat(attempt.exit_code())
                                                   : "";
    std::string why = Printable(attempt.reason());
    const bool rank_known = attempt.failed_rank() > 0 ||
                            (attempt.failed_rank() == 0 && attempt.outcome() > v1::OUTCOME_OK);
    if (rank_known && why.empty()) why = absl::StrCat("rank ", attempt.failed_rank());
    table.AddRow({absl::StrCat(attempt.number()), OutcomeText(attempt),
                  FormatTime(attempt.started_unix_ms()),
                  attempt.started_unix_ms() == 0
                      ? ""
                      : FormatDuration(static_cast<double>(end - attempt.started_unix_ms()) / 1000),
                  FormatCount(attempt.first_step()), exit,
                  attempt.ranks().empty() ? "" : absl::StrCat(attempt.ranks_size()), why});
  }
  std::string text = "\nAttempts\n" + table.Render(0);
  const v1::Attempt& newest = job.attempts(job.attempts_size() - 1);
  if (newest.ranks().empty() || newest.ended_unix_ms() > 0) return text;
  Table ranks({">  RANK", "HOST", ">PID", "METRICS", ">HEARTBEAT"});
  for (const v1::RankInfo& rank : newest.ranks()) {
    const double silence = static_cast<double>(now_ms - rank.last_heartbeat_unix_ms()) / 1000;
    ranks.AddRow({absl::StrCat(rank.rank()), Printable(rank.host()), absl::StrCat(rank.pid()),
                  Printable(rank.metrics_address()),
                  rank.last_heartbeat_unix_ms() == 0
                      ? ""
                      : absl::StrCat(FormatDuration(silence < 0 ? 0 : silence), " ago")});
  }
  return text + "\nRanks\n" + ranks.Render(0);
}

std::string EventsSection(const std::vector<v1::Event>& events) {
  if (events.empty()) return "";
  Table table({"  TIME", "TYPE", "EVENT"});
  for (const v1::Event& event : events) {
    table.AddRow(
        {"  " + FormatTime(event.unix_ms()), Printable(event.type()), Printable(event.message())});
  }
  return "\nEvents\n" + table.Render(0);
}

}  // namespace

std::string RenderDescription(const v1::Job& job, const std::vector<v1::Event>& events,
                              const ViewStyle& style, int64_t now_ms) {
  WatchState state;
  state.job = job;
  state.progress = job.progress();
  return Overview(job, style, now_ms) + ProgressSection(state, style, now_ms) +
         SpecSection(job.spec()) + AttemptsSection(job, now_ms) + EventsSection(events);
}

}  // namespace ela::cli
