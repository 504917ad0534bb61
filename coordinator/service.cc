#include "coordinator/service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "coordinator/ops/cancel.h"
#include "coordinator/ops/commit_checkpoint.h"
#include "coordinator/ops/events.h"
#include "coordinator/ops/get.h"
#include "coordinator/ops/get_cluster.h"
#include "coordinator/ops/goodbye.h"
#include "coordinator/ops/heartbeat.h"
#include "coordinator/ops/hello.h"
#include "coordinator/ops/list.h"
#include "coordinator/ops/logs.h"
#include "coordinator/ops/pause.h"
#include "coordinator/ops/report_steps.h"
#include "coordinator/ops/resume.h"
#include "coordinator/ops/submit.h"
#include "coordinator/ops/validate.h"
#include "coordinator/ops/watch.h"
#include "spdlog/spdlog.h"

namespace ela::coordinator {
namespace {

constexpr size_t kLongestMessage = 4096;

/// Runs `operation` on the executor, counts and times it, and finishes the call with what it
/// returned.
template <typename Response, typename Operation>
grpc::ServerUnaryReactor* Run(const ServiceContext& context, grpc::CallbackServerContext* call,
                              const char* method, Response* response, Operation operation) {
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  const int64_t began_ms = context.core->jobs->Now().mono_ms;
  context.executor->Post([=, operation = std::move(operation)] {
    absl::StatusOr<Response> result = operation();
    const int64_t took_ms = context.core->jobs->Now().mono_ms - began_ms;
    context.metrics->CountCall(method, result.status(), static_cast<double>(took_ms) / 1000);
    if (result.ok()) *response = *std::move(result);
    if (!result.ok() && result.status().code() != absl::StatusCode::kNotFound) {
      spdlog::info("{}: {}", method, result.status().ToString());
    }
    reactor->Finish(ToGrpc(result.status()));
  });
  return reactor;
}

template <typename Cursor, typename Message, typename Request>
grpc::ServerWriteReactor<Message>* OpenStream(const ServiceContext& context, const char* method,
                                              const Request& request) {
  absl::StatusOr<Cursor> cursor = Cursor::Open(*context.core, request);
  context.metrics->CountCall(method, cursor.status(), 0);
  if (!cursor.ok()) return new FailedStream<Message>(ToGrpc(cursor.status()));
  return new CursorStream<Cursor, Message>(context.core, context.streams, *std::move(cursor));
}

std::string BearerToken(const grpc::CallbackServerContext& call) {
  const auto it = call.client_metadata().find("authorization");
  if (it == call.client_metadata().end()) return "";
  absl::string_view value(it->second.data(), it->second.size());
  return absl::ConsumePrefix(&value, "Bearer ") ? std::string(value) : "";
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                      std::string(status.message().substr(0, kLongestMessage)));
}

grpc::ServerUnaryReactor* CoordinatorService::Submit(grpc::CallbackServerContext* call,
                                                     const v1::SubmitRequest* request,
                                                     v1::SubmitResponse* response) {
  return Run(context_, call, "Submit", response,
             [core = context_.core, request] { return ops::Submit(*core, *request); });
}

grpc::ServerUnaryReactor* CoordinatorService::Validate(grpc::CallbackServerContext* call,
                                                       const v1::ValidateRequest* request,
                                                       v1::ValidateResponse* response) {
  return Run(context_, call, "Validate", response,
             [core = context_.core, request] { return ops::Validate(*core, *request); });
}

grpc::ServerUnaryReactor* CoordinatorService::List(grpc::CallbackServerContext* call,
                                                   const v1::ListRequest* request,
                                                   v1::ListResponse* response) {
  return Run(context_, call, "List", response,
             [core = context_.core, request] { return ops::List(*core, *request); });
}

grpc::ServerUnaryReactor* CoordinatorService::Get(grpc::CallbackServerContext* call,
                                                  const v1::GetRequest* request,
                                                  v1::Job* response) {
  return Run(context_, call, "Get", response,
             [core = context_.core, request] { return ops::Get(*core, *request); });
}

grpc::ServerUnaryReactor* CoordinatorService::Events(grpc::CallbackServerContext* call,
                                                     const v1::EventsRequest* request,
                                                     v1::EventsResponse* response) {
  return Run(context_, call, "Events", response,
             [core = context_.core, request] { return ops::Events(*core, *request); });
}

grpc::ServerWriteReactor<v1::WatchUpdate>* CoordinatorService::Watch(
    grpc::CallbackServerContext* call, const v1::WatchRequest* request) {
  return OpenStream<ops::WatchCursor, v1::WatchUpdate>(context_, "Watch", *request);
}

grpc::ServerWriteReactor<v1::LogChunk>* CoordinatorService::Logs(grpc::CallbackServerContext* call,
                                                                 const v1::LogsRequest* request) {
  return OpenStream<ops::LogCursor, v1::LogChunk>(context_, "Logs", *request);
}

grpc::ServerUnaryReactor* CoordinatorService::Cancel(grpc::CallbackServerContext* call,
                                                     const v1::CancelRequest* request,
                                                     v1::Job* response) {
  return Run(context_, call, "Cancel", response,
             [core = context_.core, request] { return ops::Cancel(*core, *request); });
}

grpc::ServerUnaryReactor* CoordinatorService::Pause(grpc::CallbackServerContext* call,
                                                    const v1::PauseRequest* request,
                                                    v1::Job* response) {
  return Run(context_, call, "Pause", response,
             [core = context_.core, request] { return ops::Pause(*core, *request); });
}

grpc::ServerUnaryReactor* CoordinatorService::Resume(grpc::CallbackServerContext* call,
                                                     const v1::ResumeRequest* request,
                                                     v1::Job* response) {
  return Run(context_, call, "Resume", response,
             [core = context_.core, request] { return ops::Resume(*core, *request); });
}

grpc::ServerUnaryReactor* CoordinatorService::GetCluster(grpc::CallbackServerContext* call,
                                                         const v1::GetClusterRequest* request,
                                                         v1::Cluster* response) {
  return Run(context_, call, "GetCluster", response,
             [core = context_.core] { return ops::GetCluster(*core); });
}

grpc::ServerUnaryReactor* CoordinatorService::GetVersion(grpc::CallbackServerContext* call,
                                                         const v1::GetVersionRequest* request,
                                                         v1::Version* response) {
  return Run(context_, call, "GetVersion", response, [] { return ops::GetVersion(); });
}

grpc::ServerUnaryReactor* TrainerReportsService::Hello(grpc::CallbackServerContext* call,
                                                       const v1::HelloRequest* request,
                                                       v1::HelloResponse* response) {
  return Run(context_, call, "Hello", response,
             [core = context_.core, request, token = BearerToken(*call)] {
               return ops::Hello(*core, *request, token);
             });
}

grpc::ServerUnaryReactor* TrainerReportsService::Heartbeat(grpc::CallbackServerContext* call,
                                                           const v1::HeartbeatRequest* request,
                                                           v1::HeartbeatResponse* response) {
  return Run(context_, call, "Heartbeat", response,
             [core = context_.core, request, token = BearerToken(*call)] {
               return ops::Heartbeat(*core, *request, token);
             });
}

grpc::ServerUnaryReactor* TrainerReportsService::ReportSteps(grpc::CallbackServerContext* call,
                                                             const v1::ReportStepsRequest* request,
                                                             v1::ReportStepsResponse* response) {
  return Run(context_, call, "ReportSteps", response,
             [core = context_.core, request, token = BearerToken(*call)] {
               return ops::ReportSteps(*core, *request, token);
             });
}

grpc::ServerUnaryReactor* TrainerReportsService::CommitCheckpoint(
    grpc::CallbackServerContext* call, const v1::CommitCheckpointRequest* request,
    v1::CommitCheckpointResponse* response) {
  return Run(context_, call, "CommitCheckpoint", response,
             [core = context_.core, request, token = BearerToken(*call)] {
               return ops::CommitCheckpoint(*core, *request, token);
             });
}

grpc::ServerUnaryReactor* TrainerReportsService::Goodbye(grpc::CallbackServerContext* call,
                                                         const v1::GoodbyeRequest* request,
                                                         v1::GoodbyeResponse* response) {
  return Run(context_, call, "Goodbye", response,
             [core = context_.core, request, token = BearerToken(*call)] {
               return ops::Goodbye(*core, *request, token);
             });
}

}  // namespace ela::coordinator
