#include "trainer/optim/parameter_store.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "tests/support/op_testing.h"

namespace ela::trainer {
namespace {

using kernels::DType;
using kernels::Tensor;

v1::ModelSpec TinyModel() {
  v1::ModelSpec model;
  model.set_vocab_size(17);
  model.set_hidden_size(8);
  model.set_num_layers(2);
  model.set_num_attention_heads(1);
  model.set_residual(v1::RESIDUAL_PRE_NORM);
  model.set_final_norm(true);
  model.mutable_moe()->set_num_experts(3);
  model.mutable_moe()->set_intermediate_size(5);
  model.mutable_memory_lobe()->set_enabled(true);
  model.mutable_memory_lobe()->set_norm(true);
  return model;
}

std::vector<job::ParameterInfo> TinyParameters() { return job::Parameters(TinyModel()); }

ParameterStore TinyStore(StoreOptions options = {}) { return {TinyParameters(), options}; }

int64_t OffsetIn(const Tensor& flat, const Tensor& part) {
  return (static_cast<char*>(part.data()) - static_cast<char*>(flat.data())) /
         static_cast<int64_t>(SizeOf(flat.dtype()));
}

TEST(ParameterStore, LaysEachClassOutAlignedInTheOrderOfTheModel) {
  const ParameterStore store = TinyStore();
  int64_t total = 0;
  for (const ParameterClass cls : kParameterClasses) {
    int64_t at = 0;
    for (const ParameterSegment& segment : store.segments(cls)) {
      const std::string& name = segment.info.name;
      const bool continues = name.ends_with("attn.k.weight") || name.ends_with("attn.v.weight") ||
                             name.ends_with("attn.out.weight") || name.ends_with("lobe.k.weight") ||
                             name.ends_with("lobe.v.weight");
      EXPECT_GE(segment.offset, at) << name;
      EXPECT_LT(segment.offset, at + job::kParameterAlignment) << name;
      EXPECT_TRUE(continues ? segment.offset == at : segment.offset % job::kParameterAlignment == 0)
          << name << " at " << segment.offset;
      EXPECT_EQ(segment.info.is_expert, cls == ParameterClass::kExpert) << name;
      at = segment.offset + segment.info.numel();
      total += segment.info.numel();
    }
    EXPECT_EQ(store.numel(cls), at);
  }
  EXPECT_EQ(total, job::ParameterCount(TinyModel()));
}

TEST(ParameterStore, BucketsTileThePartsOfTheModel) {
  for (const int64_t numel : {int64_t{1}, int64_t{130}, job::kBucketNumel}) {
    const ParameterStore store = TinyStore({.bucket_numel = numel});
    for (const ParameterClass cls : kParameterClasses) {
      int64_t at = 0;
      std::map<int64_t, std::pair<int64_t, int64_t>> parts;  // their first and last elements
      for (const ParameterBucket& bucket : store.buckets(cls)) {
        EXPECT_EQ(bucket.begin, at);
        EXPECT_GT(bucket.end, bucket.begin);
        EXPECT_LE(bucket.end - bucket.begin, std::max<int64_t>(numel, 64));
        EXPECT_EQ(bucket.end % 64, 0);
        at = bucket.end;
        parts.emplace(bucket.part, std::make_pair(bucket.begin, bucket.end)).first->second.second =
            bucket.end;
      }
      EXPECT_EQ(at, store.flat_params(cls).numel());
      for (const ParameterSegment& segment : store.segments(cls)) {
        const auto [begin, end] = parts.at(segment.info.part);
        EXPECT_GE(segment.offset, begin) << segment.info.name;
        EXPECT_LE(segment.offset + segment.info.numel(), end) << segment.info.name;
      }
    }
  }
}

TEST(ParameterStore, TheFinalNormIsOfTheLastLayersPart) {
  const ParameterStore store = TinyStore();
  for (const ParameterSegment& segment : store.segments(ParameterClass::kDense)) {
    const std::string& name = segment.info.name;
    EXPECT_EQ(segment.info.part, name == "embed.weight" ? 0 : name.find("layers.0.") == 0 ? 1 : 2);
  }
}

TEST(ParameterStore, ViewsLieInTheFlatBuffers) {
  const ParameterStore store = TinyStore();
  for (const ParameterClass cls : kParameterClasses) {
    for (const ParameterSegment& segment : store.segments(cls)) {
      const std::string& name = segment.info.name;
      EXPECT_EQ(OffsetIn(store.flat_params(cls), store.param(name)), segment.offset) << name;
      EXPECT_EQ(OffsetIn(store.flat_grads(cls), store.grad(name)), segment.offset) << name;
      EXPECT_EQ(store.param(name).numel(), segment.info.numel());
      EXPECT_EQ(store.param(name).dim(0), segment.info.shape[0]);
    }
  }
}

TEST(ParameterStore, FusesQueriesKeysAndValues) {
  const ParameterStore store = TinyStore();
  const Tensor qkv = store.FusedParam("layers.1.attn.q.weight", "layers.1.attn.v.weight");
  EXPECT_EQ(qkv.dim(0), 24);
  EXPECT_EQ(qkv.dim(1), 8);
  EXPECT_EQ(qkv.data(), store.param("layers.1.attn.q.weight").data());
  EXPECT_EQ(qkv.Rows(16, 24).data(), store.param("layers.1.attn.v.weight").data());
  EXPECT_EQ(store.FusedGrad("layers.1.attn.q.weight", "layers.1.attn.v.weight").Rows(8, 16).data(),
            store.grad("layers.1.attn.k.weight").data());
}

TEST(ParameterStoreDeathTest, DoesNotFuseWhatIsNoMatrixOfOneWidth) {
  const ParameterStore store = TinyStore();
  EXPECT_DEATH(store.FusedParam("layers.1.attn.v.weight", "layers.1.norm2.weight"), "norm2");
  EXPECT_DEATH(store.FusedParam("layers.1.attn.v.weight", "layers.1.attn.q.weight"), "precede");
  EXPECT_DEATH(store.param("layers.9.attn.v.weight"), "holds no parameter");
}

TEST(ParameterStore, KeepsElementTypesAsAsked) {
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF64}) {
    const ParameterStore store = TinyStore({.dtype = dtype});
    EXPECT_EQ(store.param("embed.weight").dtype(), dtype);
    EXPECT_EQ(store.grad("embed.weight").dtype(), dtype == DType::kF64 ? DType::kF64 : DType::kF32);
  }
}

TEST(ParameterStore, FillsEveryTensorFromTheSource) {
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF64}) {
    ParameterStore store = TinyStore({.dtype = dtype, .gradients = false});
    ASSERT_TRUE(store.Fill(InitialSource(2, 9)).ok());
    for (const job::ParameterInfo& info : store.all()) {
      std::vector<float> expected(static_cast<size_t>(info.numel()));
      InitialValues(info, 2, 9, 0, info.numel(), expected.data());
      const Tensor actual = store.param(info.name);
      const double tolerance = dtype == DType::kBf16 ? 1.0 / 256 : 0;
      for (int64_t i = 0; i < actual.numel(); ++i) {
        const double x = expected[static_cast<size_t>(i)];
        EXPECT_NEAR(testing::Get(actual, i), x, std::fabs(x) * tolerance) << info.name;
      }
    }
  }
}

TEST(ParameterStore, ReturnsTheErrorOfASource) {
  ParameterStore store = TinyStore();
  const absl::Status filled =
      store.Fill([](const job::ParameterInfo& parameter, int64_t, int64_t, float*) {
        return parameter.name == "layers.1.attn.k.weight" ? absl::DataLossError("torn")
                                                          : absl::OkStatus();
      });
  EXPECT_TRUE(absl::IsDataLoss(filled)) << filled;
}

TEST(ParameterStore, ZeroesAllGradients) {
  ParameterStore store = TinyStore();
  for (const ParameterClass cls : kParameterClasses) testing::Fill(store.flat_grads(cls), 3);
  store.ZeroGrads();
  for (const ParameterClass cls : kParameterClasses) {
    EXPECT_EQ(testing::MaxAbs(store.flat_grads(cls)), 0);
  }
}

TEST(ParameterStore, TrainsTheLobeAloneWhenAsked) {
  const ParameterStore store = TinyStore({.lobe_only = true});
  int trainable = 0;
  for (const ParameterClass cls : kParameterClasses) {
    for (const ParameterSegment& segment : store.segments(cls)) {
      EXPECT_EQ(segment.trainable, segment.info.name.find(".lobe.") != std::string::npos);
      trainable += segment.trainable;
    }
  }
  EXPECT_EQ(trainable, 2 * 4);  // norm, q, k, v of two layers
}

TEST(ParameterStore, ReadsExpertsOffNames) {
  EXPECT_EQ(ExpertOf("layers.3.moe.experts.0.up.weight"), 0);
  EXPECT_EQ(ExpertOf("layers.3.moe.experts.117.down.weight"), 117);
  EXPECT_EQ(ExpertOf("layers.3.moe.router.weight"), -1);
  EXPECT_EQ(ExpertOf("layers.3.moe.experts.x.up.weight"), -1);
  EXPECT_EQ(ExpertOf("layers.3.moe.experts.1"), -1);
}

}  // namespace
}  // namespace ela::trainer
