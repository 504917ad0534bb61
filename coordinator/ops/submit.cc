#include "coordinator/ops/submit.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "coordinator/ops/validate.h"
#include "proto/status_macros.h"

namespace ela::coordinator::ops {
namespace {

constexpr size_t kLongestClientKey = 200;

}  // namespace

std::string Fingerprint(const v1::SubmitRequest& request) {
  v1::SubmitRequest compared = request;
  compared.clear_client_key();
  std::string text;
  google::protobuf::io::StringOutputStream stream(&text);
  google::protobuf::io::CodedOutputStream coded(&stream);
  coded.SetSerializationDeterministic(true);  // maps in key order
  compared.SerializeToCodedStream(&coded);
  coded.Trim();
  return text;
}

Change DecideSubmit(const NewJob& job, int64_t queue_number, Instant now) {
  Transition transition(v1::JobRecord(), now, "user");
  v1::JobRecord& record = transition.record();
  record.set_queue_number(queue_number);
  record.set_ranks(static_cast<int32_t>(RanksOf(job.resolved)));
  v1::Job& shown = transition.job();
  shown.set_id(job.id);
  *shown.mutable_spec() = job.resolved;
  shown.set_created_unix_ms(now.unix_ms);
  shown.set_run_dir(job.run_dir);
  shown.set_client_key(job.client_key);
  shown.mutable_progress()->set_total_steps(job.resolved.spec().training().steps());
  transition.MoveTo(v1::JOB_STATE_ACCEPTED, absl::StrCat("submitted as ", job.id));
  transition.MoveTo(v1::JOB_STATE_QUEUED, "waits for slots");
  return std::move(transition).Done();
}

absl::StatusOr<v1::SubmitResponse> Submit(const Core& core, const v1::SubmitRequest& request) {
  if (request.client_key().size() > kLongestClientKey) {
    return absl::InvalidArgumentError("client_key is longer than 200 characters");
  }
  NewJob job;
  job.client_key = request.client_key();
  Checked checked = Check(core, request.job(), request.source_dir());
  if (!checked.problems.empty()) {
    return absl::InvalidArgumentError(absl::StrJoin(checked.problems, "\n"));
  }
  job.resolved = std::move(checked.resolved);
  do {
    job.id = "j-" + RandomHex(core.random, 12);
  } while (core.jobs->Find(job.id) != nullptr);
  job.run_dir = absl::StrCat(core.settings.state_dir, "/jobs/", job.id);
  v1::SubmitResponse response;
  bool existed = false;
  ELA_ASSIGN_OR_RETURN(
      const RecordPtr record,
      core.jobs->Create(
          job.client_key, Fingerprint(request),
          [&](int64_t number, Instant now) { return DecideSubmit(job, number, now); }, &existed));
  *response.mutable_job() = core.jobs->View(*record);
  response.set_existed(existed);
  return response;
}

}  // namespace ela::coordinator::ops
