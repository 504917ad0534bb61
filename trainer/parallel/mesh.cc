#include "trainer/parallel/mesh.h"

#include "absl/strings/str_cat.h"
#include "proto/status_macros.h"

namespace ela::trainer {

absl::Status ValidateMesh(const MeshSizes& sizes, int world_size, int64_t num_experts) {
  if (sizes.data < 1 || sizes.sequence < 1 || sizes.expert < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("parallelism.data ", sizes.data, ", parallelism.sequence ", sizes.sequence,
                     ", parallelism.expert ", sizes.expert, ": every size must be at least 1"));
  }
  const int64_t world = int64_t{sizes.data} * sizes.sequence;
  if (world != world_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "parallelism.data ", sizes.data, " x parallelism.sequence ", sizes.sequence, " = ", world,
        " ranks, but the world has ", world_size, ": start ", world, " ranks, or change the mesh"));
  }
  if (world % sizes.expert != 0) {
    return absl::InvalidArgumentError(absl::StrCat("parallelism.expert ", sizes.expert,
                                                   " does not divide the world of ", world,
                                                   " ranks (data x sequence)"));
  }
  if (num_experts < 1 || num_experts % sizes.expert != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "parallelism.expert ", sizes.expert, " does not divide moe.num_experts ", num_experts));
  }
  return absl::OkStatus();
}

int64_t ShardBegin(int64_t length, int shard, int shards) { return shard * length / shards; }

absl::StatusOr<std::unique_ptr<Mesh>> Mesh::Create(Communicator* world, const MeshSizes& sizes,
                                                   int64_t num_experts) {
  ELA_RETURN_IF_ERROR(ValidateMesh(sizes, world->size(), num_experts));
  auto mesh = std::unique_ptr<Mesh>(new Mesh());
  mesh->sizes_ = sizes;
  mesh->num_experts_ = num_experts;
  mesh->world_ = world;
  ELA_ASSIGN_OR_RETURN(mesh->data_, world->Split(mesh->sequence_index(), "data"));
  ELA_ASSIGN_OR_RETURN(mesh->sequence_, world->Split(mesh->data_index(), "sequence"));
  ELA_ASSIGN_OR_RETURN(mesh->expert_, world->Split(mesh->expert_data_index(), "expert"));
  ELA_ASSIGN_OR_RETURN(mesh->expert_data_, world->Split(mesh->expert_index(), "expert_data"));
  return mesh;
}

}  // namespace ela::trainer
