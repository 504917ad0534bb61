// Optimizers on ranks as threads, with gradients that add up to the same on every mesh.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "proto/status_macros.h"
#include "trainer/optim/zero1_optimizer.h"
#include "trainer/parallel/local_communicator.h"

namespace ela::trainer {

/// Two layers of width 8 with 12 experts and a lobe: tensors of 8 to 240 elements.
inline v1::ModelSpec SmallModel() {
  v1::ModelSpec model;
  model.set_vocab_size(29);
  model.set_hidden_size(8);
  model.set_num_layers(2);
  model.set_num_attention_heads(1);
  model.set_residual(v1::RESIDUAL_PRE_NORM);
  model.set_final_norm(true);
  model.mutable_moe()->set_num_experts(12);
  model.mutable_moe()->set_intermediate_size(5);
  model.mutable_memory_lobe()->set_enabled(true);
  model.mutable_memory_lobe()->set_norm(true);
  return model;
}

/// data x sequence x expert.
inline const std::vector<MeshSizes>& ManyMeshes() {
  static const std::vector<MeshSizes> meshes = {{1, 1, 1}, {2, 1, 1}, {2, 1, 2}, {1, 2, 2},
                                                {3, 1, 1}, {1, 3, 3}, {4, 1, 2}, {2, 2, 4},
                                                {5, 1, 1}, {2, 3, 6}, {2, 3, 2}};
  return meshes;
}

/// Few elements a bucket, so that parts are cut: the embedding and layers, also in the middle of a
/// tensor.
inline constexpr int64_t kManyBuckets = 128;

/// Gradient of one element from one of 30 samples: a small dyadic number, so that sums and norms
/// are exact in any order. Expert 7 gets no token.
inline float SampleGradient(const job::ParameterInfo& info, int64_t element, int sample) {
  if (ExpertOf(info.name) == 7) return 0;
  uint64_t h = std::hash<std::string>()(info.name) + 0x9e3779b97f4a7c15u * (element * 31 + sample);
  h = (h ^ (h >> 29)) * 0xbf58476d1ce4e5b9u;
  return static_cast<float>(static_cast<int64_t>(h >> 57) - 64) / 1024.0f;
}
inline constexpr int kSamples = 30;

/// One rank: everything an optimizer needs.
struct OptimizerRank {
  kernels::Arena arena;
  kernels::Counters counters;
  kernels::Context ctx;
  std::unique_ptr<Mesh> mesh;
  std::unique_ptr<ParameterStore> store;
  std::unique_ptr<Zero1Optimizer> optimizer;

  absl::Status Build(Communicator& world, const MeshSizes& sizes, const StoreOptions& options,
                     const OptimizerConfig& config) {
    ctx.scratch = &arena;
    ctx.counters = &counters;
    ctx.num_threads = 1 + world.rank() % 2;
    const v1::ModelSpec model = SmallModel();
    ELA_ASSIGN_OR_RETURN(mesh, Mesh::Create(&world, sizes, model.moe().num_experts()));
    store = std::make_unique<ParameterStore>(job::Parameters(model), *mesh, options);
    optimizer = std::make_unique<Zero1Optimizer>(mesh.get(), store.get(), config);
    return optimizer->Fill(ctx, InitialSource(model.num_layers(), 3));
  }

  /// This rank's share of the samples' gradients; `step` makes them others.
  void FillGradients(int step) {
    store->ZeroGrads();
    for (const ParameterClass cls : kParameterClasses) {
      const bool dense = cls == ParameterClass::kDense;
      const Communicator& group = dense ? mesh->world() : mesh->expert_data();
      float* grads = store->flat_grads(cls).as<float>();
      for (const ParameterSegment& segment : store->segments(cls)) {
        for (int64_t i = 0; i < segment.info.numel(); ++i) {
          for (int s = group.rank(); s < kSamples; s += group.size()) {
            grads[segment.offset + i] += SampleGradient(segment.info, i, s + kSamples * step);
          }
        }
      }
    }
  }

  /// `early`: sums start part by part, as in a backward pass, and parameters are waited for part by
  /// part, as in a forward pass.
  absl::Status Steps(int steps, bool early = false) {
    const int64_t last = SmallModel().num_layers();
    for (int step = 1; step <= steps; ++step) {
      for (int64_t part = 0; early && part <= last; ++part) {
        ELA_RETURN_IF_ERROR(optimizer->AwaitParameters(part));
      }
      FillGradients(step);
      for (int64_t part = last; early && part > 0; --part) {
        ELA_RETURN_IF_ERROR(optimizer->StartReducing(ctx, part));
      }
      ELA_ASSIGN_OR_RETURN(const GradientVerdict verdict, optimizer->ReduceGradients(ctx, true));
      ELA_RETURN_IF_ERROR(optimizer->Update(ctx, verdict, 0.01, step));
    }
    return optimizer->AwaitParameters();
  }
};

/// Of both flat buffers of a rank together, in elements.
struct BufferSizes {
  int64_t padded = 0, numel = 0;  // with and without what aligns the tensors
  int64_t shards = 0;             // this rank's
};

inline BufferSizes SizesOf(const OptimizerRank& rank) {
  BufferSizes out;
  for (const ParameterClass cls : kParameterClasses) {
    const bool dense = cls == ParameterClass::kDense;
    const int64_t padded = rank.store->flat_params(cls).numel();
    out.padded += padded;
    out.shards += padded / (dense ? rank.mesh->world() : rank.mesh->expert_data()).size();
    for (const ParameterSegment& segment : rank.store->segments(cls)) {
      out.numel += segment.info.numel();
    }
  }
  return out;
}

/// Whole tensors put together from the pieces of all ranks.
class Assembled {
 public:
  void Add(const std::vector<checkpoints::Piece>& pieces) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const checkpoints::Piece& piece : pieces) {
      EXPECT_EQ(piece.element_bytes, sizeof(float));
      const float* from = static_cast<const float*>(piece.data);
      for (int64_t i = piece.begin; i < piece.end; ++i) {
        EXPECT_TRUE(tensors_[piece.tensor].emplace(i, from[i - piece.begin]).second)
            << piece.tensor << " has element " << i << " twice";
      }
    }
  }
  /// Element -> value, by tensor. Comparing two compares bits, but for NaN.
  const std::map<std::string, std::map<int64_t, float>>& tensors() const { return tensors_; }

 private:
  std::mutex mutex_;
  std::map<std::string, std::map<int64_t, float>> tensors_;
};

/// Runs `body` on every rank of a mesh.
inline void OnMesh(const MeshSizes& sizes, const StoreOptions& options,
                   const OptimizerConfig& config,
                   const std::function<absl::Status(OptimizerRank& rank)>& body) {
  const absl::Status status = RunLocalRanks(sizes.world(), [&](Communicator& world) {
    OptimizerRank rank;
    ELA_RETURN_IF_ERROR(rank.Build(world, sizes, options, config));
    return body(rank);
  });
  EXPECT_TRUE(status.ok()) << sizes.data << " x " << sizes.sequence << " x " << sizes.expert << ": "
                           << status;
}

}  // namespace ela::trainer
