#include "trainer/coordinator_client/coordinator_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "ela/v1/trainer.grpc.pb.h"

namespace ela::trainer {
namespace {

constexpr size_t kQueuedPoints = 4096;     // then every second of the older half is dropped
constexpr size_t kPointsPerReport = 1024;  // about 30 KiB, far below gRPC's message limit
constexpr absl::Duration kReportInterval = absl::Milliseconds(250);
constexpr absl::Duration kCallTimeout = absl::Seconds(5);
constexpr absl::Duration kLongestRetryWait = absl::Seconds(2);

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  // Without keepalive a cut link is never noticed.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
  // A proxy from the environment must never see loopback traffic.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

bool IsFinal(const grpc::Status& status) {
  return status.ok() || status.error_code() == grpc::StatusCode::FAILED_PRECONDITION ||
         status.error_code() == grpc::StatusCode::UNAUTHENTICATED ||
         status.error_code() == grpc::StatusCode::INVALID_ARGUMENT ||
         status.error_code() == grpc::StatusCode::NOT_FOUND;
}

}  // namespace

struct CoordinatorClient::Impl {
  std::string token;
  v1::AttemptKey key;
  std::unique_ptr<v1::TrainerReports::Stub> stub;

  absl::Mutex mutex;
  bool stopping ABSL_GUARDED_BY(mutex) = false;
  bool checkpoint_and_exit ABSL_GUARDED_BY(mutex) = false;
  bool superseded ABSL_GUARDED_BY(mutex) = false;
  bool greeted ABSL_GUARDED_BY(mutex) = false;
  v1::HelloRequest hello ABSL_GUARDED_BY(mutex);
  std::string phase ABSL_GUARDED_BY(mutex) = "init";
  v1::Progress progress ABSL_GUARDED_BY(mutex);
  bool has_progress ABSL_GUARDED_BY(mutex) = false;
  std::deque<v1::StepPoint> points ABSL_GUARDED_BY(mutex);
  absl::Duration interval ABSL_GUARDED_BY(mutex) = absl::Seconds(1);
  std::thread thread;

  /// One call; remembers when the coordinator says that this attempt is over.
  template <typename Request, typename Response>
  grpc::Status Call(grpc::Status (v1::TrainerReports::Stub::*method)(grpc::ClientContext*,
                                                                     const Request&, Response*),
                    const Request& request, Response* response, absl::Duration timeout) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + token);
    context.set_deadline(std::chrono::system_clock::now() +
                         absl::ToChronoMilliseconds(std::min(timeout, kCallTimeout)));
    const grpc::Status status = (stub.get()->*method)(&context, request, response);
    if (status.error_code() == grpc::StatusCode::FAILED_PRECONDITION) {
      absl::MutexLock lock(&mutex);
      superseded = true;
    }
    return status;
  }

  /// Repeats a call until it has a final answer, `patience` is over or the client stops.
  template <typename Request, typename Response>
  grpc::Status CallUntil(grpc::Status (v1::TrainerReports::Stub::*method)(grpc::ClientContext*,
                                                                          const Request&,
                                                                          Response*),
                         const Request& request, Response* response, absl::Duration patience) {
    const absl::Time end = absl::Now() + patience;
    absl::Duration wait = absl::Milliseconds(100);
    while (true) {
      const absl::Duration left = std::max(end - absl::Now(), absl::Milliseconds(50));
      const grpc::Status status = Call(method, request, response, left);
      if (IsFinal(status) || absl::Now() + wait >= end) return status;
      absl::MutexLock lock(&mutex);
      if (mutex.AwaitWithTimeout(absl::Condition(&stopping), wait)) return status;
      wait = std::min(wait * 2, kLongestRetryWait);
    }
  }

  bool SendHello(absl::Duration patience, grpc::Status* status);
  void SendHeartbeat();
  bool SendSteps(absl::Duration patience);
  void Run();
};

bool CoordinatorClient::Impl::SendHello(absl::Duration patience, grpc::Status* status) {
  v1::HelloRequest request;
  {
    absl::MutexLock lock(&mutex);
    request = hello;
  }
  v1::HelloResponse response;
  *status = CallUntil(&v1::TrainerReports::Stub::Hello, request, &response, patience);
  if (!status->ok()) return false;
  absl::MutexLock lock(&mutex);
  greeted = true;
  if (response.heartbeat_interval_ms() > 0) {
    interval =
        absl::Milliseconds(std::clamp<int64_t>(response.heartbeat_interval_ms(), 50, 60'000));
  }
  return true;
}

void CoordinatorClient::Impl::SendHeartbeat() {
  v1::HeartbeatRequest request;
  *request.mutable_key() = key;
  {
    absl::MutexLock lock(&mutex);
    request.set_step(has_progress ? progress.step() : hello.first_step());
    request.set_phase(phase);
  }
  v1::HeartbeatResponse response;
  const grpc::Status status =
      Call(&v1::TrainerReports::Stub::Heartbeat, request, &response, kCallTimeout);
  if (!status.ok() || !response.checkpoint_and_exit()) return;
  absl::MutexLock lock(&mutex);
  checkpoint_and_exit = true;
}

/// Sends queued points, oldest first, until none is left. What could not be sent stays queued.
bool CoordinatorClient::Impl::SendSteps(absl::Duration patience) {
  while (true) {
    v1::ReportStepsRequest request;
    *request.mutable_key() = key;
    {
      absl::MutexLock lock(&mutex);
      if (points.empty()) return true;
      *request.mutable_progress() = progress;
      const size_t count = std::min(points.size(), kPointsPerReport);
      for (size_t i = 0; i < count; ++i) *request.add_points() = points[i];
    }
    v1::ReportStepsResponse response;
    const grpc::Status status =
        CallUntil(&v1::TrainerReports::Stub::ReportSteps, request, &response, patience);
    if (!status.ok()) return false;
    const int64_t last_step = request.points(request.points_size() - 1).step();
    absl::MutexLock lock(&mutex);  // points may have been thinned meanwhile, so go by the step
    while (!points.empty() && points.front().step() <= last_step) points.pop_front();
  }
}

void CoordinatorClient::Impl::Run() {
  absl::Time next_heartbeat = absl::InfinitePast();
  std::string told_phase;
  while (true) {
    bool known = false;
    bool other_phase = false;
    absl::Duration heartbeat_interval;
    {
      absl::MutexLock lock(&mutex);
      const bool first = told_phase.empty();
      if (mutex.AwaitWithTimeout(absl::Condition(&stopping),
                                 first ? absl::ZeroDuration() : kReportInterval)) {
        return;
      }
      if (superseded) {  // nothing more to say; the trainer is on its way out
        mutex.Await(absl::Condition(&stopping));
        return;
      }
      known = greeted;
      other_phase = phase != told_phase;  // a hang is judged by it, so it is told at once
      told_phase = phase;
      heartbeat_interval = interval;
    }
    grpc::Status status;
    if (!known && !SendHello(kCallTimeout, &status)) continue;
    if (other_phase || absl::Now() >= next_heartbeat) {
      next_heartbeat = absl::Now() + heartbeat_interval;
      SendHeartbeat();
    }
    SendSteps(kCallTimeout);
  }
}

CoordinatorClient::CoordinatorClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<std::unique_ptr<CoordinatorClient>> CoordinatorClient::Connect(
    const std::string& address, const std::string& job, int32_t attempt,
    const std::string& token_file) {
  std::ifstream file(token_file);
  if (!file)
    return absl::NotFoundError(absl::StrCat(token_file, ": cannot read the attempt's token"));
  std::stringstream text;
  text << file.rdbuf();
  auto impl = std::make_unique<Impl>();
  impl->token = std::string(absl::StripAsciiWhitespace(text.str()));
  if (impl->token.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(token_file, ": the token is empty"));
  }
  impl->key.set_job(job);
  impl->key.set_attempt(attempt);
  impl->stub = v1::TrainerReports::NewStub(MakeChannel(address));
  return std::unique_ptr<CoordinatorClient>(new CoordinatorClient(std::move(impl)));
}

CoordinatorClient::~CoordinatorClient() {
  {
    absl::MutexLock lock(&impl_->mutex);
    impl_->stopping = true;
  }
  if (impl_->thread.joinable()) impl_->thread.join();
}

absl::Status CoordinatorClient::Hello(const std::vector<v1::RankInfo>& ranks, int64_t first_step,
                                      absl::Duration patience) {
  {
    absl::MutexLock lock(&impl_->mutex);
    *impl_->hello.mutable_key() = impl_->key;
    impl_->hello.set_first_step(first_step);
    impl_->hello.mutable_ranks()->Assign(ranks.begin(), ranks.end());
  }
  grpc::Status status;
  impl_->SendHello(patience, &status);
  if (!status.ok() && IsFinal(status)) return FromGrpc(status);
  if (!impl_->thread.joinable()) impl_->thread = std::thread([impl = impl_.get()] { impl->Run(); });
  return absl::OkStatus();
}

void CoordinatorClient::SetPhase(std::string_view phase) {
  absl::MutexLock lock(&impl_->mutex);
  impl_->phase = std::string(phase);
}

void CoordinatorClient::ReportStep(const v1::Progress& progress) {
  v1::StepPoint point;
  point.set_step(progress.step());
  point.set_loss(progress.loss());
  point.set_tokens_per_second(progress.tokens_per_second());
  absl::MutexLock lock(&impl_->mutex);
  impl_->progress = progress;
  impl_->has_progress = true;
  std::deque<v1::StepPoint>& points = impl_->points;
  while (!points.empty() && points.back().step() >= point.step()) points.pop_back();  // a rewind
  points.push_back(point);
  if (points.size() <= kQueuedPoints) return;
  std::deque<v1::StepPoint> thinned;
  for (size_t i = 0; i < points.size(); ++i) {
    if (i % 2 == 0 || i > points.size() / 2) thinned.push_back(points[i]);
  }
  points.swap(thinned);
}

bool CoordinatorClient::checkpoint_and_exit() const {
  absl::MutexLock lock(&impl_->mutex);
  return impl_->checkpoint_and_exit;
}

bool CoordinatorClient::superseded() const {
  absl::MutexLock lock(&impl_->mutex);
  return impl_->superseded;
}

absl::Status CoordinatorClient::CommitCheckpoint(int64_t step, int64_t bytes, bool committed,
                                                 absl::Duration deadline) {
  v1::CommitCheckpointRequest request;
  *request.mutable_key() = impl_->key;
  request.set_step(step);
  request.set_bytes(bytes);
  request.set_committed(committed);
  v1::CommitCheckpointResponse response;
  const grpc::Status status =
      impl_->CallUntil(&v1::TrainerReports::Stub::CommitCheckpoint, request, &response, deadline);
  if (status.ok()) return absl::OkStatus();
  if (IsFinal(status)) return FromGrpc(status);
  return absl::DeadlineExceededError(
      absl::StrCat("the coordinator did not answer about the checkpoint of step ", step, ": ",
                   status.error_message()));
}

void CoordinatorClient::Goodbye(v1::Outcome outcome, std::string_view reason,
                                absl::Duration patience) {
  impl_->SendSteps(patience);
  v1::GoodbyeRequest request;
  *request.mutable_key() = impl_->key;
  request.set_outcome(outcome);
  request.set_reason(std::string(reason));
  v1::GoodbyeResponse response;
  impl_->CallUntil(&v1::TrainerReports::Stub::Goodbye, request, &response, patience);
}

}  // namespace ela::trainer
