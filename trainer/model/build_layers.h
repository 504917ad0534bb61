// From a job's model section and a parameter store to layers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "ela/v1/job.pb.h"
#include "trainer/layers/residual_layer.h"
#include "trainer/optim/parameter_store.h"
#include "trainer/parallel/mesh.h"

namespace ela::trainer {

/// A tensor of the store, with its gradient where the store keeps gradients.
Parameter ParameterOf(const ParameterStore& store, const std::string& name);

/// Layer i of the model; mesh null: one rank. `causal` is false for the masked_token objective.
std::unique_ptr<ResidualLayer> BuildLayer(const v1::ModelSpec& model, const ParameterStore& store,
                                          const Mesh* mesh, bool causal, int64_t i);

kernels::FeatureMap FeatureMapOf(v1::Kernel kernel);
kernels::LabelBias LabelBiasOf(v1::LabelBias bias);

}  // namespace ela::trainer
