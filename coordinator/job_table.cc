#include "coordinator/job_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/status_macros.h"

namespace ela::coordinator {
namespace {

constexpr size_t kShortestPrefix = 3;

std::string JobKey(const std::string& id) { return "job/" + id; }
std::string EventPrefix(const std::string& id) { return "event/" + id + "/"; }
std::string EventKey(const std::string& id, int64_t sequence) {
  return absl::StrCat(EventPrefix(id), absl::StrFormat("%016d", sequence));
}
/// The newest report, but of checkpoints what transitions have made durable.
v1::Progress Merged(v1::Progress reported, const v1::Progress& durable) {
  reported.set_last_checkpoint_step(durable.last_checkpoint_step());
  reported.set_last_checkpoint_unix_ms(durable.last_checkpoint_unix_ms());
  reported.set_checkpoint_failing_since_step(durable.checkpoint_failing_since_step());
  reported.set_checkpoint_error(durable.checkpoint_error());
  return reported;
}

std::string ClientKey(const std::string& key) { return "client-key/" + key; }

}  // namespace

absl::StatusOr<std::unique_ptr<JobTable>> JobTable::Open(kv::KeyValueStore* store,
                                                         const Clock* clock) {
  std::unique_ptr<JobTable> table(new JobTable(store, clock));
  ELA_RETURN_IF_ERROR(table->Load());
  return table;
}

absl::Status JobTable::Load() {
  absl::Status damaged;
  absl::MutexLock lock(&mutex_);
  const absl::Status scanned =
      store_->Scan("job/", "", [&](std::string_view key, std::string_view value) {
        mutex_.AssertHeld();
        auto record = std::make_shared<v1::JobRecord>();
        if (!record->ParseFromArray(value.data(), static_cast<int>(value.size()))) {
          damaged = absl::DataLossError(
              absl::StrCat("the store's record ", std::string(key), " is damaged"));
          return false;
        }
        const std::string id = record->job().id();
        const int64_t number = record->queue_number();
        order_[number] = id;
        if (!IsTerminal(record->job().state())) unfinished_[number] = id;
        Live& live = jobs_[id].live;
        live.progress = record->job().progress();
        live.productive_seconds = record->productive_seconds();
        jobs_[id].record = std::move(record);
        return true;
      });
  ELA_RETURN_IF_ERROR(scanned);
  return damaged;
}

void JobTable::SetListener(std::function<void(const std::string&)> listener) {
  listener_ = std::move(listener);
}

absl::Status JobTable::Persist(const Change& change, const v1::ClientKeyRecord* key,
                               const std::string& client_key) {
  kv::Batch batch;
  const std::string& id = change.after.job().id();
  batch.Put(JobKey(id), change.after.SerializeAsString());
  for (const v1::Event& event : change.events) {
    batch.Put(EventKey(id, event.sequence()), event.SerializeAsString());
  }
  if (key != nullptr) batch.Put(ClientKey(client_key), key->SerializeAsString());
  return store_->Write(batch);
}

RecordPtr JobTable::Show(Change change) {
  auto record = std::make_shared<const v1::JobRecord>(std::move(change.after));
  const std::string& id = record->job().id();
  {
    absl::MutexLock lock(&mutex_);
    jobs_[id].record = record;
    order_[record->queue_number()] = id;
    if (IsTerminal(record->job().state())) {
      unfinished_.erase(record->queue_number());
    } else {
      unfinished_[record->queue_number()] = id;
    }
  }
  return record;
}

absl::StatusOr<RecordPtr> JobTable::Update(
    const std::string& id, const std::function<Decision(const v1::JobRecord&, Instant)>& decide) {
  RecordPtr shown;
  {
    absl::MutexLock lock(&commit_mutex_);
    const RecordPtr before = Find(id);
    if (before == nullptr) return absl::NotFoundError(absl::StrCat("no job ", id));
    ELA_ASSIGN_OR_RETURN(std::optional<Change> change, decide(*before, clock_->Now()));
    if (!change) return before;
    ReadLive(id, [&](const Live& live) {
      // A transition is also when the newest progress becomes durable.
      v1::Progress* progress = change->after.mutable_job()->mutable_progress();
      *progress = Merged(live.progress, *progress);
      change->after.set_productive_seconds(live.productive_seconds);
    });
    ELA_RETURN_IF_ERROR(Persist(*change, nullptr, ""));
    shown = Show(*std::move(change));
  }
  Notify(id);
  return shown;
}

absl::StatusOr<RecordPtr> JobTable::Create(const std::string& client_key,
                                           const std::string& fingerprint,
                                           const std::function<Change(int64_t, Instant)>& decide,
                                           bool* existed) {
  RecordPtr shown;
  {
    absl::MutexLock lock(&commit_mutex_);
    *existed = false;
    if (!client_key.empty()) {
      ELA_ASSIGN_OR_RETURN(const std::optional<std::string> text,
                           store_->Get(ClientKey(client_key)));
      v1::ClientKeyRecord known;
      if (text && known.ParseFromString(*text)) {
        if (known.fingerprint() != fingerprint) {
          return absl::AlreadyExistsError(absl::StrCat(
              "client key ", client_key, " was used for another job, ", known.job_id()));
        }
        *existed = true;
        return Find(known.job_id());
      }
    }
    int64_t number = 1;
    {
      absl::MutexLock memory(&mutex_);
      if (!order_.empty()) number = order_.rbegin()->first + 1;
    }
    Change change = decide(number, clock_->Now());
    v1::ClientKeyRecord key;
    key.set_job_id(change.after.job().id());
    key.set_fingerprint(fingerprint);
    ELA_RETURN_IF_ERROR(Persist(change, client_key.empty() ? nullptr : &key, client_key));
    shown = Show(std::move(change));
  }
  Notify(shown->job().id());
  return shown;
}

RecordPtr JobTable::Find(const std::string& id) const {
  absl::MutexLock lock(&mutex_);
  const auto it = jobs_.find(id);
  return it == jobs_.end() ? nullptr : it->second.record;
}

absl::StatusOr<RecordPtr> JobTable::Resolve(const std::string& what) const {
  if (what.empty()) return absl::InvalidArgumentError("no job was named");
  if (RecordPtr exact = Find(what)) return exact;
  absl::MutexLock lock(&mutex_);
  for (auto it = order_.rbegin(); it != order_.rend(); ++it) {
    const Entry& entry = jobs_.at(it->second);
    if (entry.record->job().spec().metadata().name() == what) return entry.record;
  }
  std::vector<RecordPtr> matches;
  if (what.size() >= kShortestPrefix) {
    for (auto it = jobs_.lower_bound(what); it != jobs_.end(); ++it) {
      if (!absl::StartsWith(it->first, what)) break;
      matches.push_back(it->second.record);
    }
  }
  if (matches.size() == 1) return matches[0];
  if (matches.empty())
    return absl::NotFoundError(absl::StrCat("no job ", what, "; see `ela list`"));
  return absl::InvalidArgumentError(absl::StrCat(what, " stands for ", matches.size(), " jobs, ",
                                                 matches[0]->job().id(), " and ",
                                                 matches[1]->job().id(), " among them"));
}

std::vector<RecordPtr> JobTable::All() const {
  absl::MutexLock lock(&mutex_);
  std::vector<RecordPtr> records;
  for (const auto& [number, id] : order_) records.push_back(jobs_.at(id).record);
  return records;
}

std::vector<RecordPtr> JobTable::Unfinished() const {
  absl::MutexLock lock(&mutex_);
  std::vector<RecordPtr> records;
  for (const auto& [number, id] : unfinished_) records.push_back(jobs_.at(id).record);
  return records;
}

v1::Job JobTable::View(const v1::JobRecord& record) const {
  v1::Job job = record.job();
  if (const std::string failure = CheckpointFailure(job.progress());
      !failure.empty() && HoldsSlots(job.state())) {
    job.set_reason(job.state() == v1::JOB_STATE_RUNNING ? failure : job.reason() + "; " + failure);
  }
  ReadLive(job.id(), [&](const Live& live) {
    *job.mutable_progress() = Merged(live.progress, job.progress());
    if (!HoldsSlots(job.state())) job.mutable_progress()->clear_eta_seconds();
    if (job.state() == v1::JOB_STATE_QUEUED && !live.queue_reason.empty()) {
      job.set_reason(live.queue_reason);
    }
    if (job.attempts_size() == 0 || live.heartbeat_unix_ms == 0) return;
    v1::Attempt* newest = job.mutable_attempts(job.attempts_size() - 1);
    if (newest->number() != live.attempt) return;
    for (v1::RankInfo& rank : *newest->mutable_ranks()) {
      rank.set_last_heartbeat_unix_ms(live.heartbeat_unix_ms);
    }
  });
  return job;
}

absl::StatusOr<std::vector<v1::Event>> JobTable::Events(const std::string& id,
                                                        int64_t after_sequence,
                                                        size_t limit) const {
  std::vector<v1::Event> events;
  absl::Status damaged;
  ELA_RETURN_IF_ERROR(
      store_->Scan(EventPrefix(id), EventKey(id, std::max<int64_t>(after_sequence, 0) + 1),
                   [&](std::string_view key, std::string_view value) {
                     v1::Event& event = events.emplace_back();
                     if (!event.ParseFromArray(value.data(), static_cast<int>(value.size()))) {
                       damaged = absl::DataLossError(
                           absl::StrCat("the store's record ", std::string(key), " is damaged"));
                     }
                     return damaged.ok() && events.size() < limit;
                   }));
  ELA_RETURN_IF_ERROR(damaged);
  return events;
}

bool JobTable::WithLive(const std::string& id, const std::function<void(Live&)>& use) {
  absl::MutexLock lock(&mutex_);
  const auto it = jobs_.find(id);
  if (it == jobs_.end()) return false;
  use(it->second.live);
  return true;
}

bool JobTable::ReadLive(const std::string& id, const std::function<void(const Live&)>& use) const {
  absl::MutexLock lock(&mutex_);
  const auto it = jobs_.find(id);
  if (it == jobs_.end()) return false;
  use(it->second.live);
  return true;
}

void JobTable::Notify(const std::string& id) const {
  if (listener_) listener_(id);
}

}  // namespace ela::coordinator
