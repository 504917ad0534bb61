// A model on a mesh computes what it computes on one rank: forward and every gradient.
#include <gtest/gtest.h>

#include "tests/trainer/model/model_testing.h"

namespace ela::trainer {
namespace {

using kernels::Backend;

constexpr double kDouble = 1e-10;
// Of the largest number of a tensor. Weights are ten times those of training, so that nothing is
// near linear, and gradients of a few tokens are differences that cancel: some hundred roundings.
constexpr double kFloat = 5e-5;

struct Layout {
  const char* name;
  int64_t length;
  DocumentStarts starts;
};

const char* const kLobe = "model.memory_lobe.enabled=true";

/// Documents of one token, cut by shards, on their boundaries, and longer than two of them; lengths
/// that no number of shards divides; a sequence shorter than the number of shards.
std::vector<Layout> Layouts() {
  return {{"whole", 13, {{0}, {0}}},
          {"packed", 13, {{0, 1, 2, 12}, {0, 6}}},
          {"long", 29, {{0, 3}, {0, 25, 26}}},
          {"short", 3, {{0}, {0, 2}}}};
}

const std::vector<std::vector<std::string>>& Models() {
  static const std::vector<std::vector<std::string>> models = {
      {"model.attention.decay=head", "model.memory_lobe.enabled=true",
       "model.moe.label_bias=inner"},
      {"model.residual=hyper_link", "model.attention.kernel=sum_squared",
       "model.memory_lobe.enabled=true", "model.memory_lobe.num_heads=4"},
      {"model.attention.kernel=sub_squared", "model.attention.decay=head",
       "model.attention.softmax_every=2"},
      {"model.attention.kernel=modulated_dot", "model.moe.label_bias=outer"},
      {"training.objective=masked_token", "model.memory_lobe.enabled=true",
       "model.memory_lobe.mode=bidirectional", "model.attention.softmax_every=2"},
      {"training.objective=masked_token", "model.attention.kernel=modulated_dot",
       "model.memory_lobe.enabled=true", "model.memory_lobe.mode=bidirectional"},
  };
  return models;
}

/// Every kernel, causal without and with decay, and bidirectional, in attention and lobe alike.
std::vector<std::vector<std::string>> EveryKernel() {
  std::vector<std::vector<std::string>> models;
  for (const char* kernel : {"hadamard_exp", "sum_squared", "sub_squared", "modulated_dot"}) {
    const std::string of = std::string("model.attention.kernel=") + kernel;
    models.push_back({of, "model.attention.decay=none", kLobe});
    models.push_back({of, "model.attention.decay=head", kLobe});
    models.push_back(
        {of, "training.objective=masked_token", kLobe, "model.memory_lobe.mode=bidirectional"});
  }
  return models;
}

void ExpectSameOnEveryMesh(Backend backend, double tolerance, const std::vector<MeshSizes>& meshes,
                           const std::vector<Layout>& layouts,
                           const std::vector<std::vector<std::string>>& models = Models()) {
  for (const std::vector<std::string>& sets : models) {
    const v1::TrainingJob job = TinyJob(sets);
    for (const Layout& layout : layouts) {
      const Documents documents = RandomDocuments(layout.length, layout.starts, 31, 5);
      const Outcome alone = RunModel(job, documents, WideValues(2), {.backend = backend});
      for (const MeshSizes& mesh : meshes) {
        const Outcome meshed =
            RunModel(job, documents, WideValues(2), {.backend = backend, .mesh = mesh});
        const auto [distance, name] = WorstDistance(meshed, alone);
        EXPECT_LE(distance, tolerance)
            << name << ", " << ::testing::PrintToString(sets) << ", " << layout.name << ", data "
            << mesh.data << " sequence " << mesh.sequence << " expert " << mesh.expert;
        EXPECT_EQ(meshed.expert_counts, alone.expert_counts);
      }
    }
  }
}

const std::vector<MeshSizes> kShards = {{1, 2, 1}, {1, 3, 1}, {1, 4, 1}, {1, 8, 1}};

TEST(SequenceSharded, IsTheWholeSequenceInDouble) {
  ExpectSameOnEveryMesh(Backend::kReference, kDouble, kShards, Layouts());
}

TEST(SequenceSharded, IsTheWholeSequenceInFloat) {
  ExpectSameOnEveryMesh(Backend::kCpu, kFloat, kShards, Layouts());
}

TEST(SequenceSharded, IsTheWholeSequenceForEveryKernelInDouble) {
  ExpectSameOnEveryMesh(Backend::kReference, kDouble, kShards, {Layouts()[0], Layouts()[1]},
                        EveryKernel());
}

TEST(SequenceSharded, IsTheWholeSequenceForEveryKernelInFloat) {
  ExpectSameOnEveryMesh(Backend::kCpu, kFloat, kShards, {Layouts()[0], Layouts()[1]},
                        EveryKernel());
}

TEST(Mesh, EveryFactorisationOfFourRanksIsOneRank) {
  ExpectSameOnEveryMesh(Backend::kCpu, kFloat,
                        {{2, 2, 1}, {2, 2, 2}, {2, 2, 4}, {1, 4, 4}, {2, 1, 2}, {1, 4, 2}},
                        {Layouts()[1], Layouts()[2]});
}

}  // namespace
}  // namespace ela::trainer
