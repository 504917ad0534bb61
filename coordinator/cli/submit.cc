// `ela submit` and `ela validate`: what starts from a job file.

#include <sstream>

#include "absl/strings/str_cat.h"
#include "coordinator/cli/format.h"
#include "coordinator/cli/session.h"
#include "coordinator/cli/table.h"
#include "data/vocabulary.h"
#include "proto/job/job_file.h"
#include "proto/job/plan.h"
#include "proto/job/writer.h"
#include "proto/job/yaml_tree.h"
#include "proto/status_macros.h"

namespace ela::cli {
namespace {

absl::StatusOr<v1::TrainingJob> ReadStandardInput(const Io& io) {
  std::string text(job::kMaxYamlBytes + 1, '\0');
  io.in->read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(io.in->gcount()));
  return job::ParseJob(text, "standard input");
}

// The job as the user wrote it, overrides applied.
absl::StatusOr<v1::TrainingJob> ReadJob(const Session& session) {
  const Arguments& arguments = session.arguments();
  if (!arguments.Has("file")) {
    return absl::InvalidArgumentError(
        absl::StrCat("ela ", arguments.command->name, " needs a job file: -f job.yaml"));
  }
  const std::string file = arguments.Get("file");
  absl::StatusOr<v1::TrainingJob> job =
      file == "-" ? ReadStandardInput(session.io()) : job::LoadJobFile(file);
  // A job file that is not there is a wrong command line; code 3 is for jobs.
  if (absl::IsNotFound(job.status())) return absl::InvalidArgumentError(job.status().message());
  ELA_RETURN_IF_ERROR(job.status());
  const auto overrides = arguments.options.find("set");
  if (overrides != arguments.options.end()) {
    for (const std::string& assignment : overrides->second) {
      ELA_RETURN_IF_ERROR(job::ApplySet(assignment, &*job));
    }
  }
  return job;
}

// What the file, and those that it names as far as they are here, show to be wrong needs no
// coordinator to be said. False: it is said.
bool IsRight(const Session& session, const v1::TrainingJob& resolved) {
  std::vector<std::string> problems = job::Validate(resolved);
  if (problems.empty()) problems = data::VocabularyProblems(resolved.spec());
  for (const std::string& problem : problems) {
    *session.io().err << "ela: " << session.arguments().Get("file") << ": " << problem << "\n";
  }
  return problems.empty();
}

std::string MemoryTable(const job::MemoryPlan& plan) {
  Table table({"MEMORY OF A RANK", ">BYTES", ">"});
  const auto add = [&](const char* name, int64_t bytes) {
    table.AddRow({name, FormatCount(bytes), FormatBytes(bytes)});
  };
  add("parameters", plan.parameters);
  add("gradients", plan.gradients);
  add("optimizer", plan.optimizer);
  add("activations", plan.activations);
  add("workspace", plan.workspace);
  add("staging", plan.staging);
  add("total", plan.total());
  return table.Render(0);
}

std::string PlanText(const v1::TrainingJob& resolved) {
  const v1::ModelSpec& model = resolved.spec().model();
  const v1::JobSpec& spec = resolved.spec();
  const int64_t ranks = spec.parallelism().data() * spec.parallelism().sequence();
  const double tokens = static_cast<double>(spec.training().steps()) *
                        static_cast<double>(spec.training().global_batch_size()) *
                        static_cast<double>(spec.data().seq_len());
  return absl::StrCat(
      FormatCount(job::ParameterCount(model)), " parameters, ",
      FormatCount(job::ActiveParameterCount(model)), " in products of each token\n", ranks,
      ranks == 1 ? " rank, " : " ranks, ", FormatCompact(tokens), " tokens, ",
      FormatSignificant(tokens * job::ModelFlopsPerToken(model, spec.data().seq_len()), 3),
      " model FLOPs\n\n", MemoryTable(job::PlanMemory(resolved)));
}

}  // namespace

int Validate(Session& session) {
  const absl::StatusOr<v1::TrainingJob> job = ReadJob(session);
  if (!job.ok()) return session.Fail(job.status());
  const v1::TrainingJob resolved = job::Resolve(*job, session.io().working_dir);
  if (!IsRight(session, resolved)) return kUsage;
  if (session.format() == "name") {
    session.out() << resolved.metadata().name() << "\n";
  } else if (session.structured()) {
    session.Emit(job::PlanToJson(resolved));
  } else {
    session.out() << job::ToYaml(resolved) << std::flush;
    if (!session.quiet()) *session.io().err << "\n" << PlanText(resolved) << std::flush;
  }
  return kDone;
}

int Submit(Session& session) {
  absl::StatusOr<v1::TrainingJob> job = ReadJob(session);
  if (!job.ok()) return session.Fail(job.status());
  const std::string& dir = session.io().working_dir;
  if (!IsRight(session, job::Resolve(*job, dir))) return kUsage;

  const absl::StatusOr<Client*> client = session.client();
  if (!client.ok()) return session.Fail(client.status());
  v1::SubmitRequest request;
  *request.mutable_job() = *std::move(job);
  request.set_client_key(session.arguments().Get("client-key"));
  request.set_source_dir(dir);
  const auto response = (*client)->Call(&v1::Coordinator::Stub::Submit, request);
  if (!response.ok()) return session.Fail(response.status());
  const std::string& id = response->job().id();
  if (session.structured()) {
    session.Emit(job::MessageToJson(response->job()));
  } else {
    session.out() << id << std::endl;
  }
  const std::string name = Printable(response->job().spec().metadata().name());
  if (response->existed()) session.Note(name + " was submitted under this key before");
  if (session.arguments().Has("follow")) return WatchJob(session, id);
  if (!response->existed())
    session.Note(absl::StrCat("submitted ", name, "; watch it with: ela watch ", id));
  return kDone;
}

}  // namespace ela::cli
