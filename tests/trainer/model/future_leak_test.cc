// No token sees a later one: whatever follows token t, the features up to t keep their bits.
#include <gtest/gtest.h>

#include "tests/trainer/model/model_testing.h"

namespace ela::trainer {
namespace {

using kernels::Backend;

constexpr int64_t kLength = 150;  // longer than two chunks of the CPU kernels

Documents Packed() { return RandomDocuments(kLength, {{0, 1, 70, 71}, {0}}, 31, 6); }

Documents WithOtherTokensAfter(Documents documents, int64_t t) {
  for (int64_t i = t + 1; i < kLength; ++i) {
    int32_t& id = documents.ids[static_cast<size_t>(i)];
    id = (id + 7) % 31;
  }
  return documents;
}

int64_t EqualTokens(const Outcome& a, const Outcome& b, int64_t d) {
  for (size_t i = 0; i < a.features.size(); ++i) {
    if (a.features[i] != b.features[i]) return static_cast<int64_t>(i) / d;
  }
  return static_cast<int64_t>(a.features.size()) / d;
}

/// The first sequence's tokens after t change; how many of its first tokens keep their features.
void ExpectNoLeak(const std::vector<std::string>& sets, const MeshSizes& mesh) {
  const v1::TrainingJob job = TinyJob(sets);
  const Passes passes = {.backend = Backend::kCpu, .mesh = mesh, .backward = false};
  const Outcome before = RunModel(job, Packed(), WideValues(3), passes);
  for (int64_t t : {0, 1, 49, 63, 64, 69, 70, 100, 127, 148}) {
    const Outcome after = RunModel(job, WithOtherTokensAfter(Packed(), t), WideValues(3), passes);
    EXPECT_EQ(EqualTokens(before, after, job.spec().model().hidden_size()), t + 1) << sets[0];
  }
}

const std::vector<std::vector<std::string>>& Models() {
  static const std::vector<std::vector<std::string>> models = {
      {"model.memory_lobe.enabled=true", "model.attention.decay=head"},
      {"model.residual=hyper_link", "model.memory_lobe.enabled=true", "model.moe.label_bias=outer"},
      {"model.attention.kernel=sum_squared", "model.memory_lobe.enabled=true"},
      {"model.attention.kernel=sub_squared", "model.memory_lobe.enabled=true"},
      {"model.attention.kernel=modulated_dot", "model.memory_lobe.enabled=true"},
      {"model.attention.softmax_every=2", "model.memory_lobe.enabled=true"},
  };
  return models;
}

TEST(FutureLeak, NoneOnOneRank) {
  for (const std::vector<std::string>& sets : Models()) ExpectNoLeak(sets, {1, 1, 1});
}

TEST(FutureLeak, NoneAcrossShards) {
  for (const std::vector<std::string>& sets : Models()) ExpectNoLeak(sets, {1, 3, 1});
}

TEST(FutureLeak, ABidirectionalLobeLeaks) {
  const v1::TrainingJob job =
      TinyJob({"model.memory_lobe.enabled=true", "model.memory_lobe.mode=bidirectional",
               "model.memory_lobe.allow_future_leak=true"});
  const Passes passes = {.backend = Backend::kCpu, .backward = false};
  const Outcome before = RunModel(job, Packed(), WideValues(3), passes);
  const Outcome after = RunModel(job, WithOtherTokensAfter(Packed(), 100), WideValues(3), passes);
  EXPECT_EQ(EqualTokens(before, after, job.spec().model().hidden_size()), 71);  // its document
}

/// Where the documents begin in the ids of all sequences, and where the last one ends.
std::vector<int64_t> Bounds(const Documents& documents) {
  std::vector<int64_t> bounds;
  for (int64_t b = 0; b < documents.sequences(); ++b) {
    for (const int64_t start : documents.starts[static_cast<size_t>(b)]) {
      bounds.push_back(b * documents.length + start);
    }
  }
  bounds.push_back(documents.sequences() * documents.length);
  return bounds;
}

void Append(const std::vector<double>& more, std::vector<double>* all) {
  all->insert(all->end(), more.begin(), more.end());
}

/// Every document by a run of its own: what they have by token one after the other, and the sums of
/// what they share. The loss is divided by the targets of all.
Outcome OneByOne(const v1::TrainingJob& job, const Documents& packed) {
  const std::vector<int64_t> bounds = Bounds(packed);
  const int64_t documents = static_cast<int64_t>(bounds.size()) - 1;
  Outcome all;
  for (size_t i = 0; i + 1 < bounds.size(); ++i) {
    const std::vector<int32_t> ids(packed.ids.begin() + bounds[i],
                                   packed.ids.begin() + bounds[i + 1]);
    const Outcome one = RunModel(job, {bounds[i + 1] - bounds[i], {{0}}, ids}, WideValues(3),
                                 {.divisor = bounds.back() - documents});
    all.loss += one.loss;
    Append(one.features, &all.features);
    Append(one.logprobs, &all.logprobs);
    for (const auto& [name, grad] : one.grads) {
      std::vector<double>& sum = all.grads[name];
      sum.resize(grad.size());
      for (size_t k = 0; k < grad.size(); ++k) sum[k] += grad[k];
    }
  }
  return all;
}

TEST(PackedDocuments, AreWhatTheyAreAlone) {
  std::vector<std::vector<std::string>> models = Models();
  models.push_back({"training.objective=masked_token", "model.memory_lobe.enabled=true",
                    "model.memory_lobe.mode=bidirectional", "model.attention.softmax_every=2"});
  for (const std::vector<std::string>& sets : models) {
    const v1::TrainingJob job = TinyJob(sets);
    const Outcome alone = OneByOne(job, Packed());
    for (const int shards : {1, 3, 8}) {  // cut at 50 and 100, and within every long document
      const Outcome together =
          RunModel(job, Packed(), WideValues(3), {.mesh = {.sequence = shards}});
      const auto [distance, name] = WorstDistance(together, alone);
      EXPECT_LE(distance, 1e-10) << name << ", " << sets[0] << ", shards: " << shards;
    }
  }
}

}  // namespace
}  // namespace ela::trainer
