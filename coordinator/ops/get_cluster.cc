#include "coordinator/ops/get_cluster.h"

#include "proto/program/version.h"

namespace ela::coordinator::ops {

absl::StatusOr<v1::Cluster> GetCluster(const Core& core) {
  v1::Cluster cluster;
  v1::Node* node = cluster.add_nodes();
  node->set_name(core.settings.node_name);
  node->set_slots(core.settings.slots);
  node->set_device(core.settings.device);
  for (const RecordPtr& record : core.jobs->Unfinished()) {
    if (HoldsSlots(record->job().state())) {
      node->set_used_slots(node->used_slots() + record->ranks());
      node->add_jobs(record->job().id());
      cluster.set_running_jobs(cluster.running_jobs() + 1);
    } else {
      cluster.set_queued_jobs(cluster.queued_jobs() + 1);
    }
  }
  cluster.set_metrics_address(core.settings.metrics_address);
  cluster.set_state_dir(core.settings.state_dir);
  return cluster;
}

absl::StatusOr<v1::Version> GetVersion() {
  v1::Version version;
  version.set_version(VersionNumber());
  version.set_commit(VersionCommit());
  version.set_build_type(BuildType());
  return version;
}

}  // namespace ela::coordinator::ops
