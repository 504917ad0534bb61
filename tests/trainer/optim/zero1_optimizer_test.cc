#include "trainer/optim/zero1_optimizer.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>

#include "tests/support/op_testing.h"
#include "tests/trainer/optim/optimizer_testing.h"

namespace ela::trainer {
namespace {

using kernels::DType;
using kernels::Tensor;

/// The state of all ranks after `steps` updates.
std::map<std::string, std::map<int64_t, float>> StateAfter(int steps, const MeshSizes& sizes,
                                                           DType dtype = DType::kF32,
                                                           bool zero1 = true) {
  Assembled assembled;
  OptimizerConfig config;
  config.zero1 = zero1;
  OnMesh(sizes, {.dtype = dtype}, config, [&](OptimizerRank& rank) {
    ELA_RETURN_IF_ERROR(rank.Steps(steps));
    assembled.Add(rank.optimizer->Pieces());
    return absl::OkStatus();
  });
  return assembled.tensors();
}

TEST(Zero1Optimizer, PiecesTileEveryTensorOnceOnAnyMesh) {
  const std::vector<v1::TensorRecord> records =
      CheckpointTensors(ParameterStore(job::Parameters(SmallModel()), StoreOptions{}));
  for (const MeshSizes& sizes : ManyMeshes()) {
    const auto tensors = StateAfter(0, sizes);
    ASSERT_EQ(tensors.size(), records.size());
    for (const v1::TensorRecord& record : records) {
      int64_t numel = 1;
      for (const int64_t extent : record.shape()) numel *= extent;
      const auto& elements = tensors.at(record.name());
      EXPECT_EQ(static_cast<int64_t>(elements.size()), numel) << record.name();
      EXPECT_EQ(elements.begin()->first, 0);
      EXPECT_EQ(elements.rbegin()->first, numel - 1);
    }
  }
}

TEST(Zero1Optimizer, StateIsTheSameBitsOnAnyMesh) {
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    const auto expected = StateAfter(3, {1, 1, 1}, dtype);
    for (const MeshSizes& sizes : ManyMeshes()) {
      EXPECT_TRUE(StateAfter(3, sizes, dtype) == expected)
          << sizes.data << " x " << sizes.sequence << " x " << sizes.expert;
    }
  }
}

TEST(Zero1Optimizer, OnAndOffGiveTheSameBits) {
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    for (const MeshSizes& sizes : {MeshSizes{1, 3, 3}, MeshSizes{2, 2, 2}, MeshSizes{4, 1, 2}}) {
      EXPECT_TRUE(StateAfter(3, sizes, dtype, true) == StateAfter(3, sizes, dtype, false));
    }
  }
}

/// The state, and the parameters of every rank, of runs whose sums start early or late.
struct EndOfRun {
  std::map<std::string, std::map<int64_t, float>> state;
  std::map<int, std::vector<std::vector<double>>> parameters;  // by rank and class
};

EndOfRun EndOfThreeSteps(const MeshSizes& sizes, const StoreOptions& options, bool zero1,
                         bool early) {
  EndOfRun end;
  Assembled assembled;
  std::mutex mutex;
  OnMesh(sizes, options, {.zero1 = zero1}, [&](OptimizerRank& rank) {
    ELA_RETURN_IF_ERROR(rank.Steps(3, early));
    assembled.Add(rank.optimizer->Pieces());
    const std::lock_guard<std::mutex> lock(mutex);
    for (const ParameterClass cls : kParameterClasses) {
      const Tensor params = rank.store->flat_params(cls);
      std::vector<double>& values = end.parameters[rank.mesh->world().rank()].emplace_back();
      for (int64_t i = 0; i < params.numel(); ++i) values.push_back(testing::Get(params, i));
    }
    return absl::OkStatus();
  });
  end.state = assembled.tensors();
  return end;
}

TEST(Zero1Optimizer, SumsThatStartInTheBackwardPassHaveTheSameBits) {
  for (const MeshSizes& sizes : ManyMeshes()) {
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      for (const bool lobe_only : {false, true}) {
        const StoreOptions options{
            .dtype = dtype, .lobe_only = lobe_only, .bucket_numel = kManyBuckets};
        const EndOfRun late = EndOfThreeSteps(sizes, options, true, false);
        for (const bool zero1 : {true, false}) {
          const EndOfRun early = EndOfThreeSteps(sizes, options, zero1, true);
          EXPECT_TRUE(early.state == late.state && early.parameters == late.parameters)
              << sizes.data << " x " << sizes.sequence << " x " << sizes.expert << zero1;
        }
      }
    }
  }
}

TEST(Zero1Optimizer, BucketsOfAnySizeGiveTheSameBits) {
  for (const MeshSizes& sizes : {MeshSizes{1, 1, 1}, MeshSizes{1, 3, 3}, MeshSizes{4, 1, 2}}) {
    const auto expected = StateAfter(3, sizes);
    for (const int64_t numel : {int64_t{1}, kManyBuckets, int64_t{600}}) {
      EXPECT_TRUE(EndOfThreeSteps(sizes, {.bucket_numel = numel}, true, true).state == expected);
    }
  }
}

TEST(Zero1Optimizer, StartsFromTheSourceWithoutMoments) {
  const auto tensors = StateAfter(0, {2, 2, 4});
  for (const job::ParameterInfo& info : job::Parameters(SmallModel())) {
    std::vector<float> expected(static_cast<size_t>(info.numel()));
    InitialValues(info, 2, 3, 0, info.numel(), expected.data());
    for (int64_t i = 0; i < info.numel(); ++i) {
      EXPECT_EQ(tensors.at("model/" + info.name).at(i), expected[static_cast<size_t>(i)]);
      EXPECT_EQ(tensors.at("adam_m/" + info.name).at(i), 0);
      EXPECT_EQ(tensors.at("adam_v/" + info.name).at(i), 0);
    }
  }
}

TEST(Zero1Optimizer, EveryRankHoldsTheParametersOfAllMasters) {
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    const auto masters = StateAfter(2, {1, 1, 1}, dtype);
    OnMesh({2, 3, 6}, {.dtype = dtype}, {}, [&](OptimizerRank& rank) {
      ELA_RETURN_IF_ERROR(rank.Steps(2));
      for (const ParameterClass cls : kParameterClasses) {
        for (const ParameterSegment& segment : rank.store->segments(cls)) {
          const Tensor param = rank.store->param(segment.info.name);
          const auto& master = masters.at("model/" + segment.info.name);
          for (int64_t i = 0; i < param.numel(); ++i) {
            const float x = master.at(i);
            const double rounded = dtype == DType::kBf16 ? float(kernels::Bf16(x)) : x;
            EXPECT_EQ(testing::Get(param, i), rounded) << segment.info.name;
          }
        }
      }
      return absl::OkStatus();
    });
  }
}

/// AdamW as its authors write it, in double, without sharding.
TEST(Zero1Optimizer, StepsAsAdamWDoes) {
  const int kSteps = 3;
  const auto actual = StateAfter(kSteps, {2, 1, 2});
  const std::vector<job::ParameterInfo> parameters = job::Parameters(SmallModel());
  std::array<double, kSteps + 1> clip{};
  for (int step = 1; step <= kSteps; ++step) {
    double squares = 0;
    for (const job::ParameterInfo& info : parameters) {
      for (int64_t i = 0; i < info.numel(); ++i) {
        double g = 0;
        for (int s = 0; s < kSamples; ++s) g += SampleGradient(info, i, s + kSamples * step);
        squares += g * g;
      }
    }
    clip[static_cast<size_t>(step)] = std::fmin(1, 1 / std::sqrt(squares));
  }
  for (const job::ParameterInfo& info : parameters) {
    std::vector<float> initial(static_cast<size_t>(info.numel()));
    InitialValues(info, 2, 3, 0, info.numel(), initial.data());
    for (int64_t i = 0; i < info.numel(); ++i) {
      double w = initial[static_cast<size_t>(i)], m = 0, v = 0;
      for (int step = 1; step <= kSteps; ++step) {
        double g = 0;
        for (int s = 0; s < kSamples; ++s) g += SampleGradient(info, i, s + kSamples * step);
        g *= clip[static_cast<size_t>(step)];
        m = 0.9 * m + 0.1 * g;
        v = 0.95 * v + 0.05 * g * g;
        const double m_hat = m / (1 - std::pow(0.9, step)), v_hat = v / (1 - std::pow(0.95, step));
        w -= 0.01 * (m_hat / (std::sqrt(v_hat) + 1e-8) + (info.decays ? 0.1 : 0) * w);
      }
      EXPECT_NEAR(actual.at("model/" + info.name).at(i), w, 2e-6) << info.name;
    }
  }
}

/// Gradients that are all the same number.
void FillAll(OptimizerRank& rank, float value) {
  for (const ParameterClass cls : kParameterClasses) {
    testing::Fill(rank.store->flat_grads(cls), value);
  }
}

TEST(Zero1Optimizer, ClipsByOneNormThatIsTheSameOnAnyMesh) {
  std::mutex mutex;
  std::vector<GradientVerdict> verdicts;
  for (const MeshSizes& sizes : ManyMeshes()) {
    OnMesh(sizes, {}, {}, [&](OptimizerRank& rank) {
      rank.FillGradients(1);
      ELA_ASSIGN_OR_RETURN(const GradientVerdict verdict,
                           rank.optimizer->ReduceGradients(rank.ctx, true));
      const std::lock_guard<std::mutex> lock(mutex);
      verdicts.push_back(verdict);
      return absl::OkStatus();
    });
  }
  double squares = 0;
  for (const job::ParameterInfo& info : job::Parameters(SmallModel())) {
    for (int64_t i = 0; i < info.numel(); ++i) {
      double g = 0;
      for (int s = 0; s < kSamples; ++s) g += SampleGradient(info, i, s + kSamples);
      squares += g * g;
    }
  }
  for (const GradientVerdict& verdict : verdicts) {
    EXPECT_TRUE(verdict.finite);
    EXPECT_DOUBLE_EQ(verdict.norm, std::sqrt(squares));
    EXPECT_DOUBLE_EQ(verdict.clip_scale, 1 / std::sqrt(squares));
  }
}

TEST(Zero1Optimizer, DoesNotScaleWhatIsBelowTheLimitOrUnlimited) {
  for (const double limit : {1e9, 0.0}) {
    OptimizerConfig config;
    config.grad_clip_norm = limit;
    OnMesh({2, 1, 2}, {}, config, [&](OptimizerRank& rank) {
      rank.FillGradients(1);
      ELA_ASSIGN_OR_RETURN(const GradientVerdict verdict,
                           rank.optimizer->ReduceGradients(rank.ctx, true));
      EXPECT_EQ(verdict.clip_scale, 1);
      return absl::OkStatus();
    });
  }
}

TEST(Zero1Optimizer, AZeroGradientHasNormZero) {
  OnMesh({2, 1, 2}, {}, {}, [&](OptimizerRank& rank) {
    FillAll(rank, 0);
    ELA_ASSIGN_OR_RETURN(const GradientVerdict verdict,
                         rank.optimizer->ReduceGradients(rank.ctx, true));
    EXPECT_TRUE(verdict.finite);
    EXPECT_EQ(verdict.norm, 0);
    EXPECT_EQ(verdict.clip_scale, 1);
    return rank.optimizer->Update(rank.ctx, verdict, 0.01, 1);
  });
}

/// Every rank hears of a number on rank `bad` that isn't finite.
void ExpectAgreed(const MeshSizes& sizes, int bad, ParameterClass cls, float value,
                  const StoreOptions& options = {}) {
  OnMesh(sizes, options, {}, [&](OptimizerRank& rank) {
    rank.FillGradients(1);
    const Tensor grads = rank.store->flat_grads(cls);
    // The last element that is none of the padding.
    const ParameterSegment& last = rank.store->segments(cls).back();
    if (rank.mesh->world().rank() == bad) {
      grads.as<float>()[last.offset + last.info.numel() - 1] = value;
    }
    ELA_ASSIGN_OR_RETURN(const GradientVerdict verdict,
                         rank.optimizer->ReduceGradients(rank.ctx, true));
    EXPECT_FALSE(verdict.finite) << "rank " << rank.mesh->world().rank() << ", bad " << bad;
    return absl::OkStatus();
  });
}

TEST(Zero1Optimizer, AllRanksHearOfANumberThatIsNotFinite) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  const MeshSizes sizes{2, 2, 2};
  for (int bad = 0; bad < sizes.world(); ++bad) {
    for (const float value : {nan, inf, -inf}) {
      ExpectAgreed(sizes, bad, ParameterClass::kDense, value);
      ExpectAgreed(sizes, bad, ParameterClass::kExpert, value);
    }
  }
}

TEST(Zero1Optimizer, SumsThatOverflowAreNotFinite) {
  OnMesh({4, 1, 1}, {}, {}, [&](OptimizerRank& rank) {
    FillAll(rank, 0);
    rank.store->flat_grads(ParameterClass::kDense).as<float>()[5] = 2e38f;
    ELA_ASSIGN_OR_RETURN(const GradientVerdict verdict,
                         rank.optimizer->ReduceGradients(rank.ctx, true));
    EXPECT_FALSE(verdict.finite);
    return absl::OkStatus();
  });
}

TEST(Zero1Optimizer, LargeFiniteGradientsHaveAFiniteNorm) {
  OnMesh({2, 1, 1}, {}, {}, [&](OptimizerRank& rank) {
    FillAll(rank, 1e38f);
    ELA_ASSIGN_OR_RETURN(const GradientVerdict verdict,
                         rank.optimizer->ReduceGradients(rank.ctx, true));
    EXPECT_TRUE(verdict.finite);
    const double n = static_cast<double>(job::ParameterCount(SmallModel()));
    EXPECT_NEAR(verdict.norm / (2e38 * std::sqrt(n)), 1, 1e-6);
    return absl::OkStatus();
  });
}

TEST(Zero1Optimizer, AllRanksHearOfALossThatIsNotFinite) {
  const MeshSizes sizes{2, 2, 4};
  for (int bad = 0; bad < sizes.world(); ++bad) {
    OnMesh(sizes, {}, {}, [&](OptimizerRank& rank) {
      rank.FillGradients(1);
      const bool locally_finite = rank.mesh->world().rank() != bad;
      ELA_ASSIGN_OR_RETURN(const GradientVerdict verdict,
                           rank.optimizer->ReduceGradients(rank.ctx, locally_finite));
      EXPECT_FALSE(verdict.finite);
      return absl::OkStatus();
    });
  }
}

TEST(Zero1OptimizerDeathTest, RefusesToUpdateWithWhatIsNotFinite) {
  GradientVerdict verdict;
  verdict.finite = false;
  OptimizerRank rank;
  const std::unique_ptr<Communicator> world = MakeSingleRank({});
  ASSERT_TRUE(rank.Build(*world, {1, 1, 1}, {}, {}).ok());
  EXPECT_DEATH(rank.optimizer->Update(rank.ctx, verdict, 0.01, 1).IgnoreError(), "not finite");
}

TEST(Zero1Optimizer, AFrozenBaseKeepsItsBitsAndCountsInNoNorm) {
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    Assembled before, after;
    const StoreOptions lobe_only{.dtype = dtype, .lobe_only = true};
    OnMesh({2, 2, 2}, lobe_only, {}, [&](OptimizerRank& rank) {
      before.Add(rank.optimizer->Pieces());
      FillAll(rank, 1);
      ELA_ASSIGN_OR_RETURN(const GradientVerdict verdict,
                           rank.optimizer->ReduceGradients(rank.ctx, true));
      EXPECT_DOUBLE_EQ(verdict.norm, 4 * std::sqrt(2 * (8 + 3 * 64)));
      ELA_RETURN_IF_ERROR(rank.optimizer->Update(rank.ctx, verdict, 0.01, 1));
      ELA_RETURN_IF_ERROR(rank.Steps(2));
      after.Add(rank.optimizer->Pieces());
      return absl::OkStatus();
    });
    for (const auto& [name, elements] : before.tensors()) {
      const bool lobe = name.find(".lobe.") != std::string::npos;
      EXPECT_EQ(after.tensors().at(name) == elements, !lobe) << name;
    }
  }
}

TEST(Zero1Optimizer, ALobeOverAFrozenBaseStepsAsItDoesAnywhere) {
  std::map<std::string, std::map<int64_t, float>> expected;
  for (const bool zero1 : {true, false}) {
    for (const MeshSizes& sizes : ManyMeshes()) {
      Assembled state;
      OnMesh(sizes, {.lobe_only = true}, {.zero1 = zero1}, [&](OptimizerRank& rank) {
        ELA_RETURN_IF_ERROR(rank.Steps(3));
        state.Add(rank.optimizer->Pieces());
        return absl::OkStatus();
      });
      if (expected.empty()) expected = state.tensors();
      EXPECT_TRUE(state.tensors() == expected) << sizes.data << " x " << sizes.sequence << zero1;
    }
  }
}

TEST(Zero1Optimizer, AFrozenGradientThatIsNotFiniteIsHeardOfToo) {
  ExpectAgreed({2, 1, 2}, 1, ParameterClass::kExpert, std::numeric_limits<float>::quiet_NaN(),
               {.lobe_only = true});
}

TEST(Zero1Optimizer, AnErrorOfTheSourceOnOneRankIsReturnedByAll) {
  std::mutex mutex;
  int failed = 0;
  const absl::Status status = RunLocalRanks(4, [&](Communicator& world) {
    OptimizerRank rank;
    ELA_RETURN_IF_ERROR(rank.Build(world, {4, 1, 1}, {}, {}));
    const absl::Status filled =
        rank.optimizer->Fill(rank.ctx, [&](const job::ParameterInfo&, int64_t, int64_t, float*) {
          return world.rank() == 2 ? absl::DataLossError("torn") : absl::OkStatus();
        });
    EXPECT_TRUE(absl::IsDataLoss(filled)) << filled;
    const std::lock_guard<std::mutex> lock(mutex);
    ++failed;
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(failed, 4);
}

}  // namespace
}  // namespace ela::trainer
