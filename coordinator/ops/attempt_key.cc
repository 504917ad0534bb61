#include "coordinator/ops/attempt_key.h"

#include "absl/strings/str_cat.h"
#include "proto/status_macros.h"

namespace ela::coordinator::ops {
namespace {

/// In time that does not depend on where they differ.
bool SameSecret(const std::string& a, const std::string& b) {
  if (a.size() != b.size() || a.empty()) return false;
  unsigned char difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned char>(a[i] ^ b[i]);
  return difference == 0;
}

}  // namespace

absl::Status CheckAttempt(const v1::JobRecord& record, const v1::AttemptKey& key,
                          const std::string& token) {
  const v1::Attempt* active = ActiveAttempt(record);
  if (active == nullptr || active->number() != key.attempt()) {
    return absl::FailedPreconditionError(
        absl::StrCat("attempt ", key.attempt(), " of job ", key.job(), " is over"));
  }
  const auto it = record.tokens().find(key.attempt());
  if (it == record.tokens().end() || !SameSecret(it->second, token)) {
    return absl::UnauthenticatedError(
        absl::StrCat("the token is not that of attempt ", key.attempt(), " of job ", key.job()));
  }
  return absl::OkStatus();
}

absl::StatusOr<RecordPtr> FindAttempt(const Core& core, const v1::AttemptKey& key,
                                      const std::string& token) {
  RecordPtr record = core.jobs->Find(key.job());
  if (record == nullptr) return absl::NotFoundError(absl::StrCat("no job ", key.job()));
  ELA_RETURN_IF_ERROR(CheckAttempt(*record, key, token));
  return record;
}

}  // namespace ela::coordinator::ops
