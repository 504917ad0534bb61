#include "coordinator/cli/follow.h"

#include <chrono>
#include <memory>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "coordinator/cli/stream.h"

namespace ela::cli {
namespace {

using WatchStream = Stream<v1::WatchUpdate>;
constexpr std::chrono::milliseconds kTick(200);
constexpr absl::Duration kRetry = absl::Milliseconds(500);
constexpr absl::Duration kLastWords =
    absl::Seconds(2);  // after the job's end, for what is still on its way

class Follower {
 public:
  Follower(Client& client, const FollowOptions& options, const Io& io, FollowObserver* observer)
      : client_(client), options_(options), io_(io), observer_(observer), job_(options.job) {
    if (options.longest.has_value()) deadline_ = absl::Now() + *options.longest;
  }

  FollowResult Run() {
    Connect();
    while (true) {
      if (io_.interrupted->load()) return Result(FollowEnd::kInterrupted);
      if (absl::Now() >= deadline_) return Result(FollowEnd::kTimedOut);
      if (stream_ == nullptr && absl::Now() >= retry_at_) Connect();
      if (stream_ == nullptr) {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        observer_->OnTick(state_);
        continue;
      }
      v1::WatchUpdate update;
      switch (stream_->Wait(&update, kTick)) {
        case WatchStream::Next::kMessage:
          Take(update);
          break;
        case WatchStream::Next::kNothingYet:
          observer_->OnTick(state_);
          break;
        case WatchStream::Next::kEnded:
          if (Done()) return Result(FollowEnd::kReached);
          if (!Reconnects(stream_->status())) {
            status_ = client_.ToStatus(stream_->status());
            return Result(FollowEnd::kError);
          }
          stream_ = nullptr;
          retry_at_ = absl::Now() + kRetry;
          break;
      }
      if (Done() && (!IsTerminal(state_.job.state()) || absl::Now() >= leave_at_)) {
        return Result(FollowEnd::kReached);
      }
    }
  }

 private:
  void Connect() {
    v1::WatchRequest request;
    request.set_job(job_);
    request.set_history_points(options_.history_points);
    stream_ = std::make_unique<WatchStream>(client_.NewContext(/*stream=*/true),
                                            [this, request](grpc::ClientContext* context) {
                                              return client_.stub().Watch(context, request);
                                            });
  }

  void Take(const v1::WatchUpdate& update) {
    if (lost_) observer_->OnNotice("connected again");
    lost_ = false;
    heard_ = true;
    state_.Apply(update);
    // A name may mean another job later; the id cannot.
    if (update.has_job() && !update.job().id().empty()) job_ = update.job().id();
    observer_->OnUpdate(state_, update);
    if (IsTerminal(state_.job.state()) && leave_at_ == absl::InfiniteFuture()) {
      leave_at_ = absl::Now() + kLastWords;
    }
  }

  bool Done() const {
    if (!heard_) return false;
    if (IsTerminal(state_.job.state())) return true;
    return options_.reached && options_.reached(state_.job);
  }

  // Whether to try again after the stream ended without the job having ended. Says so the first
  // time.
  bool Reconnects(const grpc::Status& status) {
    if (!heard_) return false;
    switch (status.error_code()) {
      case grpc::StatusCode::NOT_FOUND:
      case grpc::StatusCode::INVALID_ARGUMENT:
      case grpc::StatusCode::UNAUTHENTICATED:
      case grpc::StatusCode::PERMISSION_DENIED:
      case grpc::StatusCode::UNIMPLEMENTED:
        return false;
      default:
        break;
    }
    if (!lost_) {
      observer_->OnNotice(absl::StrCat("lost the coordinator at ", client_.address(),
                                       "; the job goes on without it. Trying again"));
    }
    lost_ = true;
    return true;
  }

  FollowResult Result(FollowEnd end) {
    if (heard_) observer_->OnTick(state_);
    return {end, std::move(state_), status_};
  }

  Client& client_;
  const FollowOptions& options_;
  const Io& io_;
  FollowObserver* observer_;
  std::string job_;
  WatchState state_;
  absl::Status status_;
  std::unique_ptr<WatchStream> stream_;
  bool heard_ = false;
  bool lost_ = false;
  absl::Time deadline_ = absl::InfiniteFuture();
  absl::Time retry_at_ = absl::InfinitePast();
  absl::Time leave_at_ = absl::InfiniteFuture();
};

}  // namespace

FollowResult Follow(Client& client, const FollowOptions& options, const Io& io,
                    FollowObserver* observer) {
  return Follower(client, options, io, observer).Run();
}

}  // namespace ela::cli
