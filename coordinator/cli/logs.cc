// `ela logs`: what the ranks wrote, followed over new attempts and over restarts of the
// coordinator.

#include <chrono>
#include <map>
#include <memory>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "coordinator/cli/session.h"
#include "coordinator/cli/stream.h"
#include "proto/status_macros.h"

namespace ela::cli {
namespace {

using LogStream = Stream<v1::LogChunk>;
constexpr std::chrono::milliseconds kTick(200);

absl::StatusOr<int64_t> NumberOption(const Session& session, const char* name, int64_t least,
                                     int64_t fallback) {
  const std::string text = session.arguments().Get(name);
  if (text.empty()) return fallback;
  int64_t number = 0;
  if (!absl::SimpleAtoi(text, &number) || number < least || number > 1'000'000'000) {
    return absl::InvalidArgumentError(
        absl::StrCat("--", name, ": \"", text, "\" is not a number from ", least));
  }
  return number;
}

class LogFollower {
 public:
  LogFollower(Session& session, Client& client, v1::LogsRequest request, bool newest)
      : session_(session), client_(client), request_(std::move(request)), newest_(newest) {}

  int Run() {
    while (true) {
      const grpc::Status status = ReadAttempt();
      session_.out() << std::flush;
      if (session_.io().interrupted->load()) return Detached();
      if (status.ok()) {
        if (!request_.follow() || !newest_) return kDone;
        const absl::StatusOr<bool> more = NextAttempt();
        if (!more.ok()) return session_.Fail(more.status());
        if (!*more) return session_.io().interrupted->load() ? Detached() : kDone;
        continue;
      }
      const bool transient = status.error_code() == grpc::StatusCode::UNAVAILABLE ||
                             status.error_code() == grpc::StatusCode::CANCELLED ||
                             status.error_code() == grpc::StatusCode::UNKNOWN ||
                             status.error_code() == grpc::StatusCode::INTERNAL;
      if (!request_.follow() || !heard_ || !transient)
        return session_.Fail(client_.ToStatus(status));
      Lost();
    }
  }

 private:
  // Prints one attempt's log from where it was left; OK when the stream is over.
  grpc::Status ReadAttempt() {
    std::map<int, int64_t> skip = printed_;  // a new stream starts from the beginning again
    LogStream stream(client_.NewContext(/*stream=*/true), [this](grpc::ClientContext* context) {
      return client_.stub().Logs(context, request_);
    });
    while (!session_.io().interrupted->load()) {
      v1::LogChunk chunk;
      switch (stream.Wait(&chunk, kTick)) {
        case LogStream::Next::kMessage:
          Print(chunk, &skip[chunk.rank()]);
          break;
        case LogStream::Next::kNothingYet:
          session_.out() << std::flush;
          break;
        case LogStream::Next::kEnded:
          return stream.status();
      }
    }
    return grpc::Status::OK;
  }

  void Print(const v1::LogChunk& chunk, int64_t* skip) {
    if (lost_) session_.Note("connected again");
    lost_ = false;
    heard_ = true;
    const int64_t size = static_cast<int64_t>(chunk.data().size());
    const int64_t known = std::min(*skip, size);
    *skip -= known;
    // With --tail the beginning is unknown, so a new stream cannot be matched with the old one.
    if (request_.tail_lines() == 0) printed_[chunk.rank()] += size - known;
    session_.out().write(chunk.data().data() + known, size - known);
  }

  void Lost() {
    if (!lost_) {
      session_.Note(absl::StrCat("lost the coordinator at ", client_.address(),
                                 "; the job goes on without it. Trying again"));
    }
    lost_ = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
  }

  // After an attempt's log has ended: waits for the next attempt; false when the job is over.
  absl::StatusOr<bool> NextAttempt() {
    v1::GetRequest request;
    request.set_job(request_.job());
    while (!session_.io().interrupted->load()) {
      const absl::StatusOr<v1::Job> job = client_.Call(&v1::Coordinator::Stub::Get, request);
      if (job.ok() && job->attempts_size() > 0) {
        const int newest = job->attempts(job->attempts_size() - 1).number();
        if (newest > request_.attempt()) {
          session_.Note(absl::StrCat("attempt ", newest, " begins"));
          request_.set_attempt(newest);
          request_.set_tail_lines(0);
          printed_.clear();
          return true;
        }
      }
      if (job.ok() && IsTerminal(job->state())) return false;
      if (!job.ok() && !absl::IsUnavailable(job.status())) return job.status();
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
    }
    return false;
  }

  int Detached() const {
    session_.Note(
        absl::StrCat("detached; the job goes on. See it again: ela logs ", request_.job(), " -f"));
    return kDetached;
  }

  Session& session_;
  Client& client_;
  v1::LogsRequest request_;
  bool newest_;                     // no attempt was named: go on with the next one
  std::map<int, int64_t> printed_;  // bytes of the attempt, by rank
  bool heard_ = false;
  bool lost_ = false;
};

absl::StatusOr<v1::LogsRequest> MakeRequest(Session& session) {
  v1::LogsRequest request;
  request.set_job(session.arguments().job());
  request.set_follow(session.arguments().Has("follow"));
  ELA_ASSIGN_OR_RETURN(const int64_t rank, NumberOption(session, "rank", 0, -1));
  ELA_ASSIGN_OR_RETURN(const int64_t attempt, NumberOption(session, "attempt", 1, 0));
  ELA_ASSIGN_OR_RETURN(const int64_t tail, NumberOption(session, "tail", 1, 0));
  request.set_rank(static_cast<int32_t>(rank));
  request.set_attempt(static_cast<int32_t>(attempt));
  request.set_tail_lines(tail);
  return request;
}

// Following needs to know which attempt it follows, so that the next one is noticed; it waits for
// the first.
absl::Status PinAttempt(Session& session, Client& client, v1::LogsRequest* request) {
  v1::GetRequest get;
  get.set_job(request->job());
  while (true) {
    ELA_ASSIGN_OR_RETURN(const v1::Job job, client.Call(&v1::Coordinator::Stub::Get, get));
    request->set_job(job.id());
    if (job.attempts_size() > 0)
      request->set_attempt(job.attempts(job.attempts_size() - 1).number());
    if (job.attempts_size() > 0 || IsTerminal(job.state()) || session.io().interrupted->load()) {
      return absl::OkStatus();
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
  }
}

}  // namespace

int Logs(Session& session) {
  absl::StatusOr<v1::LogsRequest> request = MakeRequest(session);
  if (!request.ok()) return session.Fail(request.status());
  const absl::StatusOr<Client*> client = session.client();
  if (!client.ok()) return session.Fail(client.status());
  const bool newest = request->attempt() == 0;
  if (request->follow() && newest) {
    const absl::Status pinned = PinAttempt(session, **client, &*request);
    if (!pinned.ok()) return session.Fail(pinned);
  }
  return LogFollower(session, **client, *std::move(request), newest).Run();
}

}  // namespace ela::cli
