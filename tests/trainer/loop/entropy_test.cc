// What nothing can be learnt of is not learnt: tokens in random order.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/trainer/loop/trainer_run.h"

namespace ela::trainer {
namespace {

/// Tokens that do not depend on each other, low ids more often than high ones.
std::vector<int32_t> IndependentTokens(uint64_t seed, int64_t count) {
  Numbers next(seed);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(static_cast<int32_t>(std::min(next() % kVocab, next() % kVocab)));
  }
  return ids;
}

/// Of the tokens after the first: the mean loss of the best prediction that is always the same.
double EntropyOfTargets(const std::vector<int32_t>& ids) {
  std::vector<double> counts(kVocab);
  for (size_t i = 1; i < ids.size(); ++i) ++counts[static_cast<size_t>(ids[i])];
  const double targets = static_cast<double>(ids.size() - 1);
  double entropy = 0;
  for (const double n : counts) entropy -= n > 0 ? n / targets * std::log(n / targets) : 0;
  return entropy;
}

// The training set is small enough to be learnt by heart in part, which must not show in others.
TEST_F(TrainerRun, HeldOutLossStaysAboveTheEntropyOfShuffledTokens) {
  const std::vector<int32_t> held_out = IndependentTokens(12, 64 * 8 * 16 + 1);
  WriteShards(folder_.path("shuffled"), {IndependentTokens(11, 2049)});
  WriteShards(folder_.path("held_out_shuffled"), {held_out});
  ASSERT_EQ(Train({"data.train=[{path: " + folder_.path("shuffled") + "}]",
                   "data.validation=" + folder_.path("held_out_shuffled"), "training.steps=400",
                   "training.eval_every=20", "training.eval_batches=64", "optimizer.lr=0.01",
                   "model.hidden_size=32"})
                .code,
            kExitDone);
  const double entropy = EntropyOfTargets(held_out);
  double least = 100;
  for (const nlohmann::json& eval : evals_) {
    EXPECT_EQ(eval["eval_tokens"], held_out.size() - 1);
    least = std::min(least, eval["eval_loss"].get<double>());
  }
  EXPECT_GT(least, entropy);
  EXPECT_LT(least, entropy + 0.1) << "not even how frequent the tokens are was learnt";
  EXPECT_LT(steps_.back()["loss"], entropy - 0.2) << "nothing was learnt by heart";
}

}  // namespace
}  // namespace ela::trainer
