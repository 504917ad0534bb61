// Log-probabilities of given tokens, and held-out loss. Collective over the ranks of the model, and
// the same on all of them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "trainer/inference/loaded_model.h"

namespace ela::trainer {

struct Score {
  double loss = 0;               // mean of -logprobs
  std::vector<double> logprobs;  // [n - 1] natural logarithms, of tokens 1 .. n - 1
};

/// InvalidArgument if the model does not predict a token from those before it.
absl::Status CheckScores(const LoadedModel& model);

/// One sequence of n >= 2 tokens, one document.
absl::StatusOr<Score> ScoreTokens(LoadedModel* model, const std::vector<int32_t>& ids);

struct HeldOutLoss {
  double loss = 0;  // mean over the valid targets
  int64_t tokens = 0, sequences = 0;
};

/// Windows of seq_len tokens of the shards `prefix` in order, at most max_sequences of them (0:
/// all): with a job's seq_len and the number of sequences of its evaluations, their loss.
/// `progress` (may be null) is told how far it is.
absl::StatusOr<HeldOutLoss> EvaluateShards(
    LoadedModel* model, const std::string& prefix, int64_t seq_len, int64_t max_sequences,
    const std::function<void(int64_t done, int64_t all)>& progress);

}  // namespace ela::trainer
