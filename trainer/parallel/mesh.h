// The mesh: how the world's ranks share the data, the sequence and the experts.
//
//   rank r of world = data x sequence:  data index r / sequence,  sequence index r % sequence
//   expert groups: `expert` consecutive ranks, expert index r % expert; expert_data group: ranks of
//   equal r % expert experts [i E / expert, (i+1) E / expert) belong to expert index i sequence
//   shard s of P holds rows [s L / P, (s+1) L / P) of every sequence, rounded down: shards are
//   uneven rather than padded, and one may be empty
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "trainer/parallel/communicator.h"

namespace ela::trainer {

struct MeshSizes {
  int data = 1;
  int sequence = 1;
  int expert = 1;
  int world() const { return data * sequence; }
  int expert_data() const { return world() / expert; }
};

/// InvalidArgument, with the keys and numbers, if the sizes don't fit each other, the world or the
/// experts.
absl::Status ValidateMesh(const MeshSizes& sizes, int world_size, int64_t num_experts);

/// First row of sequence shard `shard` of `shards`; ShardBegin(L, shards, shards) = L.
int64_t ShardBegin(int64_t length, int shard, int shards);

class Mesh {
 public:
  /// Collective over `world`, which must outlive the mesh.
  static absl::StatusOr<std::unique_ptr<Mesh>> Create(Communicator* world, const MeshSizes& sizes,
                                                      int64_t num_experts);

  const MeshSizes& sizes() const { return sizes_; }
  int data_index() const { return world_->rank() / sizes_.sequence; }
  int sequence_index() const { return world_->rank() % sizes_.sequence; }
  int expert_index() const { return world_->rank() % sizes_.expert; }
  int expert_data_index() const { return world_->rank() / sizes_.expert; }
  /// Experts [expert_begin, expert_end) are this rank's.
  int64_t expert_begin() const { return num_experts_ / sizes_.expert * expert_index(); }
  int64_t expert_end() const { return expert_begin() + num_experts_ / sizes_.expert; }

  Communicator& world() const { return *world_; }
  Communicator& data() const { return *data_; }          // same sequence shard of every replica
  Communicator& sequence() const { return *sequence_; }  // the shards of one replica, in order
  Communicator& expert() const { return *expert_; }      // ranks that hold different experts
  Communicator& expert_data() const { return *expert_data_; }  // ranks that hold the same experts

 private:
  Mesh() = default;
  MeshSizes sizes_;
  int64_t num_experts_ = 1;
  Communicator* world_ = nullptr;
  std::unique_ptr<Communicator> data_, sequence_, expert_, expert_data_;
};

}  // namespace ela::trainer
