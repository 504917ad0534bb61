// Catalog: a small RocksDB that is open only while an operation runs. So its lock guards operations
// and not processes: a newer attempt never waits for an old one that hangs, and fences it.
#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "checkpoints/catalog_state.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/kv/files.h"
#include "checkpoints/kv/key_value_store.h"
#include "checkpoints/layout.h"
#include "checkpoints/tiling.h"
#include "proto/status_macros.h"

namespace ela::checkpoints {
namespace {

constexpr absl::Duration kLockPatience = absl::Seconds(20);
constexpr absl::Duration kPause = absl::Milliseconds(10);
constexpr int kReadTries = 20;
constexpr char kRemoved[] = ".removed-";

using Store = std::unique_ptr<kv::KeyValueStore>;

/// Waits for the operation of another process to end.
absl::StatusOr<Store> OpenStore(const std::string& path) {
  const absl::Time deadline = absl::Now() + kLockPatience;
  while (true) {
    absl::StatusOr<Store> store = kv::OpenRocksDb(CatalogFolder(path), kv::OpenMode::kReadWrite);
    const bool busy = absl::IsUnavailable(store.status()) &&
                      (absl::StrContains(store.status().message(), "in use by another process") ||
                       absl::StrContains(store.status().message(), "already open"));
    if (!busy || absl::Now() >= deadline) return store;
    absl::SleepFor(kPause);
  }
}

/// A writer may replace files while they are being opened for reading: tries again.
absl::StatusOr<CatalogState> ReadState(const std::string& path) {
  absl::Status last;
  for (int i = 0; i < kReadTries; ++i) {
    if (i > 0) absl::SleepFor(kPause);
    if (!kv::Exists(CatalogFolder(path) + "/CURRENT")) {
      CatalogState state;
      if (!AdoptCommits(path, &state).empty()) return state;
      return absl::NotFoundError(absl::StrCat("there is no checkpoint in ", path));
    }
    auto store = kv::OpenRocksDb(CatalogFolder(path), kv::OpenMode::kReadOnly);
    last = store.status();
    if (!last.ok()) continue;
    absl::StatusOr<CatalogState> state = LoadState(path, store->get());
    last = state.status();
    if (!last.ok()) continue;
    AdoptCommits(path, &*state);
    return state;
  }
  if (!absl::IsDataLoss(last)) return last;
  return absl::DataLossError(
      absl::StrCat(last.message(), "; move ", CatalogFolder(path),
                   " away to have it made anew from the COMMIT files of the steps"));
}

/// Renamed first, so that no half-removed folder looks like a step.
absl::Status RemoveStep(const std::string& path, const std::string& name) {
  const std::string folder = absl::StrCat(StepsFolder(path), "/", name);
  if (!kv::Exists(folder)) return absl::OkStatus();
  const std::string renamed = absl::StrCat(StepsFolder(path), "/", kRemoved, name);
  ELA_RETURN_IF_ERROR(kv::RemoveTree(renamed));
  ELA_RETURN_IF_ERROR(kv::RenameDurably(folder, renamed));
  return kv::RemoveTree(renamed);
}

class CatalogImpl : public Catalog {
 public:
  CatalogImpl(std::string path, int64_t attempt) : path_(std::move(path)), attempt_(attempt) {}

  /// Fences, adopts what the catalog has lost, and clears what older attempts left.
  absl::Status Fence(bool choose) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    ELA_RETURN_IF_ERROR(kv::MakeDirectories(StepsFolder(path_)));
    CatalogState state;
    {
      ELA_ASSIGN_OR_RETURN(const Store store, OpenStore(path_));
      ELA_ASSIGN_OR_RETURN(state, LoadState(path_, store.get()));
      if (choose) attempt_ = state.fence + 1;
      ELA_RETURN_IF_ERROR(CheckFence(state.fence));
      kv::Batch batch;
      if (attempt_ != state.fence) batch.Put(std::string(kFenceKey), absl::StrCat(attempt_));
      for (const int64_t step : AdoptCommits(path_, &state)) {
        batch.Put(StepKey(step), Seal(state.steps[step]));
      }
      ForgetRemoved(state, &batch);
      ELA_RETURN_IF_ERROR(store->Write(batch));
    }
    for (const auto& [step, manifest] : state.steps) WriteCopy(manifest);
    return Clear(state);
  }

  int64_t attempt() const override { return attempt_; }

  absl::Status Commit(const v1::StepManifest& manifest) override ABSL_LOCKS_EXCLUDED(mutex_) {
    if (attempt_ < 0) return absl::FailedPreconditionError("the catalog is open for reading only");
    if (manifest.attempt() != attempt_) {
      return absl::InvalidArgumentError(absl::StrCat(
          "attempt ", attempt_, " cannot commit a step of attempt ", manifest.attempt()));
    }
    ELA_RETURN_IF_ERROR(CheckTiling(manifest));
    absl::MutexLock lock(&mutex_);
    {
      ELA_ASSIGN_OR_RETURN(const Store store, OpenStore(path_));
      ELA_ASSIGN_OR_RETURN(const int64_t fence, LoadFence(path_, store.get()));
      ELA_RETURN_IF_ERROR(CheckFence(fence));
      ELA_ASSIGN_OR_RETURN(const std::optional<v1::StepManifest> replaced,
                           LoadStep(path_, store.get(), manifest.step()));
      kv::Batch batch;
      batch.Put(StepKey(manifest.step()), Seal(manifest));
      if (replaced.has_value() && replaced->attempt() != attempt_) {
        batch.Put(GoneKey(StepName(manifest.step(), replaced->attempt())), "");
      }
      ELA_RETURN_IF_ERROR(store->Write(batch));
      committed_ = manifest.step();
    }
    WriteCopy(manifest);
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<v1::StepManifest>> List() override {
    ELA_ASSIGN_OR_RETURN(CatalogState state, ReadState(path_));
    std::vector<v1::StepManifest> steps;
    for (auto& [step, manifest] : state.steps) steps.push_back(std::move(manifest));
    return steps;
  }

  absl::StatusOr<v1::StepManifest> Get(int64_t step) override {
    ELA_ASSIGN_OR_RETURN(CatalogState state, ReadState(path_));
    const auto it = state.steps.find(step);
    if (it != state.steps.end()) return std::move(it->second);
    std::string known;
    for (const auto& [number, manifest] : state.steps) absl::StrAppend(&known, " ", number);
    return absl::NotFoundError(absl::StrCat("no step ", step, " is committed in ", path_, "; ",
                                            known.empty() ? "none is" : "these are:", known));
  }

  absl::StatusOr<std::optional<v1::StepManifest>> Latest() override {
    ELA_ASSIGN_OR_RETURN(CatalogState state, ReadState(path_));
    if (state.steps.empty()) return std::optional<v1::StepManifest>();
    return std::optional<v1::StepManifest>(std::move(state.steps.rbegin()->second));
  }

  absl::Status Collect(int64_t keep_last, int64_t keep_every) override ABSL_LOCKS_EXCLUDED(mutex_) {
    if (attempt_ < 0) return absl::FailedPreconditionError("the catalog is open for reading only");
    absl::MutexLock lock(&mutex_);
    CatalogState state;
    {
      ELA_ASSIGN_OR_RETURN(const Store store, OpenStore(path_));
      ELA_ASSIGN_OR_RETURN(state, LoadState(path_, store.get()));
      ELA_RETURN_IF_ERROR(CheckFence(state.fence));
      kv::Batch batch;
      ForgetRemoved(state, &batch);
      GiveUp(keep_last, keep_every, committed_, &state, &batch);
      ELA_RETURN_IF_ERROR(store->Write(batch));
    }
    return Clear(state);
  }

 private:
  absl::Status CheckFence(int64_t fence) const {
    if (attempt_ >= fence) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat("attempt ", attempt_,
                                                      " may no longer write to ", path_,
                                                      ": attempt ", fence, " has taken over"));
  }

  /// The copy is for those who find the folder, and for a catalog that is lost. That the step is
  /// committed does not hang on it: the next attempt writes it if this one could not.
  void WriteCopy(const v1::StepManifest& manifest) {
    const std::string folder = StepFolder(path_, manifest.step(), manifest.attempt());
    const std::string file = CommitFile(folder);
    if (!kv::Exists(folder)) return;
    const auto there = kv::ReadFile(file);
    if (there.ok() && Unseal(*there, file).ok()) return;
    kv::WriteFileDurably(file, Seal(manifest)).IgnoreError();
  }

  /// Tombstones whose folders no longer exist have served.
  void ForgetRemoved(const CatalogState& state, kv::Batch* batch) const {
    for (const std::string& name : state.gone) {
      if (!kv::Exists(absl::StrCat(StepsFolder(path_), "/", name))) batch->Delete(GoneKey(name));
    }
  }

  /// Steps after `newest`, which a run that went on from an earlier one could not read, do not
  /// count.
  static void GiveUp(int64_t keep_last, int64_t keep_every, int64_t newest, CatalogState* state,
                     kv::Batch* batch) {
    keep_last = std::max<int64_t>(keep_last, 1);
    const auto end = state->steps.upper_bound(newest);
    int64_t newer = std::distance(state->steps.begin(), end);
    for (auto it = state->steps.begin(); it != end;) {
      const bool keep = newer-- <= keep_last || (keep_every > 0 && it->first % keep_every == 0);
      if (keep) {
        ++it;
        continue;
      }
      const std::string name = StepName(it->first, it->second.attempt());
      batch->Delete(StepKey(it->first));
      batch->Put(GoneKey(name), "");
      state->gone.insert(name);
      it = state->steps.erase(it);
    }
  }

  /// Whether a step folder holds nothing that anyone will ever want: given up, or never committed
  /// by an attempt that is over, or by this one before its newest commit.
  bool IsLeftover(const CatalogState& state, const std::string& name) const {
    if (state.gone.count(name) > 0) return true;
    const std::optional<StepAttempt> parsed = ParseStepName(name);
    if (!parsed.has_value() || parsed->attempt > attempt_) return false;
    const auto committed = state.steps.find(parsed->step);
    if (committed != state.steps.end() && committed->second.attempt() == parsed->attempt) {
      return false;
    }
    // Committed once, as its COMMIT says, damaged or not: not ours to remove.
    if (kv::Exists(CommitFile(StepFolder(path_, parsed->step, parsed->attempt)))) return false;
    if (parsed->attempt < attempt_) return true;
    return !state.steps.empty() && parsed->step < std::min(committed_, state.steps.rbegin()->first);
  }

  absl::Status Clear(const CatalogState& state) {
    ELA_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                         kv::ListDirectory(StepsFolder(path_)));
    for (const std::string& name : names) {
      if (absl::StartsWith(name, kRemoved)) {
        ELA_RETURN_IF_ERROR(kv::RemoveTree(absl::StrCat(StepsFolder(path_), "/", name)));
      } else if (IsLeftover(state, name)) {
        ELA_RETURN_IF_ERROR(RemoveStep(path_, name));
      }
    }
    return absl::OkStatus();
  }

  const std::string path_;
  int64_t attempt_;    // -1: for reading only
  absl::Mutex mutex_;  // one operation of this process at a time
  // The step that this attempt committed last.
  int64_t committed_ = std::numeric_limits<int64_t>::max();
};

}  // namespace

absl::StatusOr<std::unique_ptr<Catalog>> Catalog::OpenForWriting(const std::string& path,
                                                                 int64_t attempt) {
  if (path.empty() || attempt < 0) {
    return absl::InvalidArgumentError("a catalog needs a path, and an attempt of 0 or more");
  }
  auto catalog = std::make_unique<CatalogImpl>(path, attempt);
  ELA_RETURN_IF_ERROR(catalog->Fence(/*choose=*/attempt == 0));
  return catalog;
}

absl::StatusOr<std::unique_ptr<Catalog>> Catalog::OpenForReading(const std::string& path) {
  ELA_RETURN_IF_ERROR(ReadState(path).status());
  return std::make_unique<CatalogImpl>(path, -1);
}

}  // namespace ela::checkpoints
