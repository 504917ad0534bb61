// The optimizer's state through real checkpoint shards, from one mesh to another.
#include <gtest/gtest.h>

#include "tests/checkpoints/test_folder.h"
#include "tests/trainer/optim/optimizer_testing.h"
#include "trainer/loop/gather.h"
#include "trainer/parallel/agreement.h"

namespace ela::trainer {
namespace {

using kernels::DType;

constexpr int64_t kStep = 2;

/// Collective: writes and commits the state of all ranks; rank 0 opens the catalog.
absl::Status Save(const OptimizerRank& rank, const std::string& path) {
  Communicator& world = rank.mesh->world();
  std::unique_ptr<checkpoints::Catalog> catalog;
  int64_t attempt = 0;
  if (world.rank() == 0) {
    ELA_ASSIGN_OR_RETURN(catalog, checkpoints::Catalog::OpenForWriting(path, 0));
    attempt = catalog->attempt();
  }
  ELA_RETURN_IF_ERROR(world.Broadcast(&attempt, sizeof attempt, 0));
  checkpoints::WriteOptions write;
  write.path = path;
  write.step = kStep;
  write.attempt = attempt;
  write.writer = world.rank();
  write.chunk_bytes = 512;
  ELA_ASSIGN_OR_RETURN(const v1::WriterManifest shard,
                       checkpoints::WriteShard(write, rank.optimizer->Pieces()));
  ELA_ASSIGN_OR_RETURN(const std::vector<std::string> shards,
                       GatherStrings(world, shard.SerializeAsString()));
  if (world.rank() != 0) return absl::OkStatus();
  v1::StepManifest manifest;
  manifest.set_step(kStep);
  manifest.set_attempt(attempt);
  for (const v1::TensorRecord& record : CheckpointTensors(*rank.store)) {
    *manifest.add_tensors() = record;
  }
  for (const std::string& text : shards) {
    if (!manifest.add_writers()->ParseFromString(text)) return absl::InternalError("manifest");
  }
  return catalog->Commit(manifest);
}

/// The state of a mesh that trained `steps` and saved, or that loaded and trained on.
std::map<std::string, std::map<int64_t, float>> TrainAndSave(const MeshSizes& sizes, DType dtype,
                                                             const std::string& path) {
  Assembled state;
  OnMesh(sizes, {.dtype = dtype}, {}, [&](OptimizerRank& rank) {
    ELA_RETURN_IF_ERROR(rank.Steps(kStep));
    state.Add(rank.optimizer->Pieces());
    return Save(rank, path);
  });
  return state.tensors();
}

absl::Status LoadNewest(OptimizerRank& rank, const std::string& path) {
  ELA_ASSIGN_OR_RETURN(const auto reader, checkpoints::OpenCheckpoint(path));
  return rank.optimizer->Load(rank.ctx, reader.get());
}

TEST(OptimizerCheckpoint, LoadsTheSameStateOnAnyOtherMesh) {
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    const checkpoints::TestFolder folder;
    const auto saved = TrainAndSave({2, 3, 2}, dtype, folder.path());
    for (const MeshSizes& sizes : {MeshSizes{1, 1, 1}, MeshSizes{2, 2, 4}, MeshSizes{5, 1, 1}}) {
      for (const bool zero1 : {true, false}) {
        Assembled loaded;
        OnMesh(sizes, {.dtype = dtype}, {.zero1 = zero1}, [&](OptimizerRank& rank) {
          ELA_RETURN_IF_ERROR(LoadNewest(rank, folder.path()));
          loaded.Add(rank.optimizer->Pieces());
          return absl::OkStatus();
        });
        EXPECT_TRUE(loaded.tensors() == saved) << sizes.data << " x " << sizes.sequence;
      }
    }
  }
}

TEST(OptimizerCheckpoint, GoesOnAsIfItHadNeverStopped) {
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    const checkpoints::TestFolder folder;
    TrainAndSave({1, 3, 3}, dtype, folder.path());
    Assembled resumed, never_stopped;
    const auto two_more = [&](OptimizerRank& rank, Assembled* state) -> absl::Status {
      for (int step = kStep + 1; step <= kStep + 2; ++step) {
        rank.FillGradients(step);
        ELA_ASSIGN_OR_RETURN(const GradientVerdict verdict,
                             rank.optimizer->ReduceGradients(rank.ctx, true));
        ELA_RETURN_IF_ERROR(rank.optimizer->Update(rank.ctx, verdict, 0.01, step));
      }
      state->Add(rank.optimizer->Pieces());
      return absl::OkStatus();
    };
    OnMesh({2, 1, 2}, {.dtype = dtype}, {}, [&](OptimizerRank& rank) {
      ELA_RETURN_IF_ERROR(LoadNewest(rank, folder.path()));
      return two_more(rank, &resumed);
    });
    OnMesh({2, 2, 1}, {.dtype = dtype}, {}, [&](OptimizerRank& rank) {
      ELA_RETURN_IF_ERROR(rank.Steps(kStep));
      return two_more(rank, &never_stopped);
    });
    EXPECT_TRUE(resumed.tensors() == never_stopped.tensors());
  }
}

TEST(OptimizerCheckpoint, OfALobeLoadsWhereAllIsTrainedWithoutTheOthersMoments) {
  const checkpoints::TestFolder folder;
  Assembled saved, loaded;
  OnMesh({2, 1, 2}, {.lobe_only = true}, {}, [&](OptimizerRank& rank) {
    ELA_RETURN_IF_ERROR(rank.Steps(kStep));
    saved.Add(rank.optimizer->Pieces());
    return Save(rank, folder.path());
  });
  OnMesh({1, 3, 1}, {}, {}, [&](OptimizerRank& rank) {
    ELA_RETURN_IF_ERROR(rank.Steps(1));  // moments that must not stay
    ELA_RETURN_IF_ERROR(LoadNewest(rank, folder.path()));
    loaded.Add(rank.optimizer->Pieces());
    return absl::OkStatus();
  });
  for (const auto& [name, elements] : loaded.tensors()) {
    if (saved.tensors().count(name) > 0) {
      EXPECT_TRUE(elements == saved.tensors().at(name)) << name;
    } else {
      for (const auto& [at, moment] : elements) ASSERT_EQ(moment, 0) << name;
    }
  }
}

TEST(OptimizerCheckpoint, IsASourceOfParametersForAnotherRun) {
  const checkpoints::TestFolder folder;
  const auto saved = TrainAndSave({2, 1, 2}, DType::kF32, folder.path());
  Assembled filled;
  OnMesh({1, 2, 1}, {}, {}, [&](OptimizerRank& rank) {
    ELA_ASSIGN_OR_RETURN(const auto reader, checkpoints::OpenCheckpoint(folder.path()));
    ELA_RETURN_IF_ERROR(rank.optimizer->Fill(rank.ctx, CheckpointSource(reader.get())));
    filled.Add(rank.optimizer->Pieces());
    return absl::OkStatus();
  });
  for (const auto& [name, elements] : filled.tensors()) {
    if (name.starts_with("model/")) {
      EXPECT_TRUE(elements == saved.at(name)) << name;
    } else {
      for (const auto& [i, value] : elements) EXPECT_EQ(value, 0) << name;
    }
  }
}

TEST(OptimizerCheckpoint, OfAnotherModelIsRefusedWithTheSizes) {
  const checkpoints::TestFolder folder;
  TrainAndSave({1, 1, 1}, DType::kF32, folder.path());
  const auto reader = checkpoints::OpenCheckpoint(folder.path());
  ASSERT_TRUE(reader.ok()) << reader.status();
  const ParameterSource source = CheckpointSource(reader->get());
  float out[8];
  const absl::Status wrong_shape = source({"embed.weight", {30, 8}, false, true}, 0, 8, out);
  EXPECT_TRUE(absl::IsInvalidArgument(wrong_shape)) << wrong_shape;
  EXPECT_NE(wrong_shape.message().find("f32 [29, 8], this model's is f32 [30, 8]"),
            std::string::npos)
      << wrong_shape;
  EXPECT_TRUE(absl::IsNotFound(source({"layers.7.norm1.weight", {8}, false, false}, 0, 8, out)));
}

TEST(OptimizerCheckpoint, DamageIsToldToAllRanks) {
  const checkpoints::TestFolder folder;
  TrainAndSave({1, 1, 1}, DType::kF32, folder.path());
  for (const std::string& file : checkpoints::FilesEndingWith(folder.path(), ".sst")) {
    if (file.find("/steps/") != std::string::npos) std::filesystem::resize_file(file, 100);
  }
  std::mutex mutex;
  int told = 0;
  const absl::Status status = RunLocalRanks(3, [&](Communicator& world) {
    OptimizerRank rank;
    ELA_RETURN_IF_ERROR(rank.Build(world, {3, 1, 1}, {}, {}));
    auto reader = checkpoints::OpenCheckpoint(folder.path());
    absl::Status loaded = AgreeOk(world, reader.status());
    if (loaded.ok()) loaded = rank.optimizer->Load(rank.ctx, reader->get());
    const std::lock_guard<std::mutex> lock(mutex);
    told += !loaded.ok();
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(told, 3);
}

}  // namespace
}  // namespace ela::trainer
