// training.init_from: which weights a run takes from a checkpoint or an exported model, and which
// begin afresh.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "checkpoints/checkpoint.h"
#include "ela/v1/job.pb.h"
#include "ela/v1/manifest.pb.h"
#include "trainer/optim/initial_values.h"

namespace ela::trainer {

struct InitPlan {
  std::set<std::string> fresh;     // parameters that get initial values
  std::vector<std::string> notes;  // what a user should know, a line each
};

/// Every parameter of `model` must be in `source` with its shape, and the other way round. Two
/// things may be left out, and begin with initial values: all Memory Lobes, by a model without one;
/// all but the lobes, by an exported lobe. Lobes of the source are dropped if `model` has none.
/// InvalidArgument names the tensors that are missing, too many or of another shape. Keys of the
/// model section with other values (say, the kernel) are allowed, and noted. With `train_only` the
/// lobe an exported lobe is refused: the rest would stay at its initial values.
absl::StatusOr<InitPlan> PlanInit(const v1::StepManifest& source, const v1::ModelSpec& model,
                                  v1::TrainOnly train_only = v1::TRAIN_ONLY_ALL);

/// Weights as planned; `reader` must outlive it.
ParameterSource InitFromSource(checkpoints::StepReader* reader, InitPlan plan, int64_t num_layers,
                               uint64_t seed);

}  // namespace ela::trainer
