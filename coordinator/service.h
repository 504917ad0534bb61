// The gRPC services, callback API. A method runs its operation on the executor and maps the status;
// counting, timing and logging are wrapped once around all of them.
#pragma once

#include <grpcpp/grpcpp.h>

#include <string>

#include "coordinator/core.h"
#include "coordinator/executor.h"
#include "coordinator/metrics/metrics.h"
#include "coordinator/streams.h"
#include "ela/v1/coordinator.grpc.pb.h"
#include "ela/v1/trainer.grpc.pb.h"

namespace ela::coordinator {

/// What both services share; all of it outlives them.
struct ServiceContext {
  const Core* core = nullptr;
  Executor* executor = nullptr;
  StreamHub* streams = nullptr;
  Metrics* metrics = nullptr;
};

class CoordinatorService : public v1::Coordinator::CallbackService {
 public:
  explicit CoordinatorService(ServiceContext context) : context_(context) {}

  grpc::ServerUnaryReactor* Submit(grpc::CallbackServerContext* call,
                                   const v1::SubmitRequest* request,
                                   v1::SubmitResponse* response) override;
  grpc::ServerUnaryReactor* Validate(grpc::CallbackServerContext* call,
                                     const v1::ValidateRequest* request,
                                     v1::ValidateResponse* response) override;
  grpc::ServerUnaryReactor* List(grpc::CallbackServerContext* call, const v1::ListRequest* request,
                                 v1::ListResponse* response) override;
  grpc::ServerUnaryReactor* Get(grpc::CallbackServerContext* call, const v1::GetRequest* request,
                                v1::Job* response) override;
  grpc::ServerUnaryReactor* Events(grpc::CallbackServerContext* call,
                                   const v1::EventsRequest* request,
                                   v1::EventsResponse* response) override;
  grpc::ServerWriteReactor<v1::WatchUpdate>* Watch(grpc::CallbackServerContext* call,
                                                   const v1::WatchRequest* request) override;
  grpc::ServerWriteReactor<v1::LogChunk>* Logs(grpc::CallbackServerContext* call,
                                               const v1::LogsRequest* request) override;
  grpc::ServerUnaryReactor* Cancel(grpc::CallbackServerContext* call,
                                   const v1::CancelRequest* request, v1::Job* response) override;
  grpc::ServerUnaryReactor* Pause(grpc::CallbackServerContext* call,
                                  const v1::PauseRequest* request, v1::Job* response) override;
  grpc::ServerUnaryReactor* Resume(grpc::CallbackServerContext* call,
                                   const v1::ResumeRequest* request, v1::Job* response) override;
  grpc::ServerUnaryReactor* GetCluster(grpc::CallbackServerContext* call,
                                       const v1::GetClusterRequest* request,
                                       v1::Cluster* response) override;
  grpc::ServerUnaryReactor* GetVersion(grpc::CallbackServerContext* call,
                                       const v1::GetVersionRequest* request,
                                       v1::Version* response) override;

 private:
  const ServiceContext context_;
};

/// Every call carries the attempt's token.
class TrainerReportsService : public v1::TrainerReports::CallbackService {
 public:
  explicit TrainerReportsService(ServiceContext context) : context_(context) {}

  grpc::ServerUnaryReactor* Hello(grpc::CallbackServerContext* call,
                                  const v1::HelloRequest* request,
                                  v1::HelloResponse* response) override;
  grpc::ServerUnaryReactor* Heartbeat(grpc::CallbackServerContext* call,
                                      const v1::HeartbeatRequest* request,
                                      v1::HeartbeatResponse* response) override;
  grpc::ServerUnaryReactor* ReportSteps(grpc::CallbackServerContext* call,
                                        const v1::ReportStepsRequest* request,
                                        v1::ReportStepsResponse* response) override;
  grpc::ServerUnaryReactor* CommitCheckpoint(grpc::CallbackServerContext* call,
                                             const v1::CommitCheckpointRequest* request,
                                             v1::CommitCheckpointResponse* response) override;
  grpc::ServerUnaryReactor* Goodbye(grpc::CallbackServerContext* call,
                                    const v1::GoodbyeRequest* request,
                                    v1::GoodbyeResponse* response) override;

 private:
  const ServiceContext context_;
};

/// The same code, the message in at most 4 KiB (it travels in a header).
grpc::Status ToGrpc(const absl::Status& status);

}  // namespace ela::coordinator
