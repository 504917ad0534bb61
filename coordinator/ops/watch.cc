#include "coordinator/ops/watch.h"

#include <algorithm>
#include <utility>

#include "coordinator/background/observer.h"
#include "proto/status_macros.h"

namespace ela::coordinator::ops {
namespace {

constexpr int64_t kMostHistory = 4096;
constexpr size_t kPointsPerUpdate = 512;

}  // namespace

absl::StatusOr<WatchCursor> WatchCursor::Open(const Core& core, const v1::WatchRequest& request) {
  ELA_ASSIGN_OR_RETURN(const RecordPtr record, core.jobs->Resolve(request.job()));
  WatchCursor cursor;
  cursor.job_id_ = record->job().id();
  cursor.history_points_ =
      static_cast<size_t>(std::clamp<int64_t>(request.history_points(), 0, kMostHistory));
  cursor.sequence_ = record->last_sequence();  // events from now on; the older ones are Events'
  return cursor;
}

bool WatchCursor::AddPoints(const Core& core, v1::WatchUpdate* update) {
  core.jobs->ReadLive(job_id_, [&](const Live& live) {
    if (live.history.epoch() != epoch_) {
      epoch_ = live.history.epoch();
      if (!first_) step_ = std::min(step_, live.history.rewound_to());
    }
    const size_t limit = first_ ? history_points_ : kPointsPerUpdate;
    for (v1::StepPoint& point : live.history.After(step_, limit)) {
      step_ = point.step();
      *update->add_points() = std::move(point);
    }
    if (first_) step_ = std::max(step_, live.progress.step());
  });
  return update->points_size() > 0;
}

bool WatchCursor::AddEvent(const Core& core, int64_t last_sequence, v1::WatchUpdate* update) {
  if (sequence_ >= last_sequence) return false;
  absl::StatusOr<std::vector<v1::Event>> events = core.jobs->Events(job_id_, sequence_, 1);
  if (!events.ok() || events->empty()) return false;
  sequence_ = events->front().sequence();
  *update->mutable_event() = std::move(events->front());
  return true;
}

std::optional<v1::WatchUpdate> WatchCursor::Next(const Core& core) {
  const RecordPtr record = core.jobs->Find(job_id_);
  if (record == nullptr || finished_) return std::nullopt;
  if (first_ && record->job().attempts_size() > 0) LoadHistory(core, record->job());
  v1::WatchUpdate update;
  v1::Job job = core.jobs->View(*record);
  bool news = AddPoints(core, &update);
  news |= AddEvent(core, record->last_sequence(), &update);
  if (first_ || version_ != job.version() || reason_ != job.reason()) {
    version_ = job.version();
    reason_ = job.reason();
    *update.mutable_job() = job;
    news = true;
  }
  const std::string progress = job.progress().SerializeAsString();
  if (first_ || progress != progress_) {
    progress_ = progress;
    news = true;
  }
  *update.mutable_progress() = std::move(*job.mutable_progress());
  first_ = false;
  if (news) return update;
  finished_ = IsTerminal(record->job().state());
  return std::nullopt;
}

}  // namespace ela::coordinator::ops
