// Decoding token by token gives the logits of the forward pass.
#include <gtest/gtest.h>

#include "kernels/ops.h"
#include "tests/trainer/model/model_testing.h"

namespace ela::trainer {
namespace {

using kernels::Backend;
using kernels::Tensor;

constexpr int64_t kLength = 70, kVocab = 31, kSequences = 2;

const std::vector<std::vector<std::string>>& Models() {
  static const std::vector<std::vector<std::string>> models = {
      {"model.attention.decay=head", "model.memory_lobe.enabled=true",
       "model.moe.label_bias=inner"},
      {"model.residual=hyper_link", "model.attention.kernel=sum_squared",
       "model.memory_lobe.enabled=true", "model.final_norm=false"},
      {"model.attention.kernel=sub_squared", "model.attention.decay=head"},
      {"model.attention.kernel=modulated_dot", "model.memory_lobe.enabled=true"},
      {"model.attention.softmax_every=2"},
  };
  return models;
}

/// Logits as doubles, [B V] of one step.
template <class T>
std::vector<double> Logits(LoneModel* model, const Documents& documents, int64_t step,
                           std::vector<LayerCache>* cache) {
  std::vector<T> logits(static_cast<size_t>(kSequences * kVocab));
  std::vector<int32_t> ids, positions(kSequences, static_cast<int32_t>(step));
  for (int64_t b = 0; b < kSequences; ++b) {
    ids.push_back(documents.ids[static_cast<size_t>(b * kLength + step)]);
  }
  model->decoder.Decode(model->layer, Tensor::Of(logits.data(), {kSequences, kVocab}),
                        Tensor::Of(ids.data(), {kSequences}),
                        Tensor::Of(positions.data(), {kSequences}), cache);
  return {logits.begin(), logits.end()};
}

/// Of the forward pass, [B V] at one step.
template <class T>
std::vector<std::vector<double>> ForwardLogits(LoneModel* model, const Documents& documents) {
  const TokenRows rows(SliceOf(documents, 0, kSequences, 0, kLength), kLength, 0, 1);
  EXPECT_EQ(model->decoder.Forward(model->layer, rows, nullptr), absl::OkStatus());
  std::vector<T> logits(static_cast<size_t>(rows.count() * kVocab));
  kernels::LinearForward(model->layer.ctx, Tensor::Of(logits.data(), {rows.count(), kVocab}),
                         model->decoder.features(), model->store.param("embed.weight"));
  std::vector<std::vector<double>> steps(kLength);
  for (int64_t b = 0; b < kSequences; ++b) {
    for (int64_t i = 0; i < kLength; ++i) {
      const auto row = logits.begin() + (b * kLength + i) * kVocab;
      steps[static_cast<size_t>(i)].insert(steps[static_cast<size_t>(i)].end(), row, row + kVocab);
    }
  }
  return steps;
}

/// From `prefill` tokens on: the cache is filled by a forward pass over those.
template <class T>
void ExpectDecodingIsForward(Backend backend, double tolerance, int64_t prefill) {
  for (const std::vector<std::string>& sets : Models()) {
    LoneModel model(TinyJob(sets), WideValues(6), backend);
    const Documents documents = RandomDocuments(kLength, {{0}, {0}}, kVocab, 2);
    const auto expected = ForwardLogits<T>(&model, documents);
    std::vector<LayerCache> cache = model.decoder.NewCache(model.layer, kSequences);
    if (prefill > 0) {
      Documents head{prefill, {{0}, {0}}, {}};
      for (int64_t b = 0; b < kSequences; ++b) {
        const auto first = documents.ids.begin() + b * kLength;
        head.ids.insert(head.ids.end(), first, first + prefill);
      }
      const TokenRows rows(SliceOf(head, 0, kSequences, 0, prefill), prefill, 0, 1);
      std::vector<T> logits(static_cast<size_t>(kSequences * kVocab));
      ASSERT_EQ(model.decoder.Forward(model.layer, rows, nullptr), absl::OkStatus());
      ASSERT_EQ(model.decoder.FillCache(model.layer, rows,
                                        Tensor::Of(logits.data(), {kSequences, kVocab}), &cache),
                absl::OkStatus());
      EXPECT_LE(RelativeDistance({logits.begin(), logits.end()},
                                 expected[static_cast<size_t>(prefill - 1)]),
                tolerance);
    }
    for (LayerCache& layer : cache) layer.Reserve(model.layer, kLength);
    for (int64_t i = prefill; i < kLength; ++i) {
      EXPECT_LE(RelativeDistance(Logits<T>(&model, documents, i, &cache),
                                 expected[static_cast<size_t>(i)]),
                tolerance)
          << sets[0] << ", token " << i;
    }
  }
}

TEST(Decode, TokenByTokenIsForwardInDouble) {
  ExpectDecodingIsForward<double>(Backend::kReference, 1e-10, 0);
}
TEST(Decode, TokenByTokenIsForwardInFloat) {
  ExpectDecodingIsForward<float>(Backend::kCpu, 1e-4, 0);
}
TEST(Decode, GoesOnFromAForwardPass) {
  ExpectDecodingIsForward<double>(Backend::kReference, 1e-10, 45);
  ExpectDecodingIsForward<float>(Backend::kCpu, 1e-4, 45);
}

}  // namespace
}  // namespace ela::trainer
