// A whole model in a test: small jobs, packed documents, and one forward and backward pass of the
// global batch on any mesh, with ranks as threads.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <string>
#include <vector>

#include "data/loader.h"
#include "ela/v1/job.pb.h"
#include "trainer/layers/layer_context.h"
#include "trainer/model/decoder.h"
#include "trainer/optim/parameter_store.h"
#include "trainer/parallel/mesh.h"

namespace ela::trainer {

/// A resolved job of 2 layers of width 16 with 4 experts, top 2, after `sets` ("model.a=b").
v1::TrainingJob TinyJob(const std::vector<std::string>& sets);

/// The parameters of a tiny model, large enough that nothing is near linear, and its gains and
/// biases not all equal. `change` (may be empty) may set element i of a tensor to another value.
using ChangeElement = std::function<float(const std::string& name, int64_t i, float value)>;
ParameterSource WideValues(uint64_t seed, ChangeElement change = {});

/// A global batch [B, L] of packed documents: what the loader gives, for any slice.
struct Documents {
  int64_t length = 0;        // L
  DocumentStarts starts;     // [B]
  std::vector<int32_t> ids;  // [B L]
  int64_t sequences() const { return static_cast<int64_t>(starts.size()); }
};
Documents RandomDocuments(int64_t length, const DocumentStarts& starts, int64_t vocab,
                          uint64_t seed);
data::Batch SliceOf(const Documents& documents, int64_t first_sequence, int64_t sequences,
                    int64_t begin, int64_t end);

struct Passes {
  kernels::Backend backend = kernels::Backend::kReference;
  kernels::DType element = kernels::DType::kF32;  // of the CPU back end
  MeshSizes mesh;
  int num_threads = 1;
  bool backward = true;
  int64_t divisor = 0;  // of the loss sum; 0: the valid targets
};

/// Of the global batch. The loss is the mean over the valid targets, and a fixed linear function of
/// the router's probabilities in place of the balance loss.
struct Outcome {
  double loss = 0;
  std::vector<double> features;                      // [B L d] after the final norm
  std::vector<double> logprobs;                      // [B L]
  std::map<std::string, std::vector<double>> grads;  // of all parameters
  std::vector<int64_t> expert_counts;                // [N E]
  size_t saved_bytes = 0, scratch_bytes = 0;         // the largest of any rank
};
Outcome RunModel(const v1::TrainingJob& job, const Documents& documents,
                 const ParameterSource& parameters, const Passes& passes);

/// One rank with its memory, for tests that call the decoder themselves.
struct LoneModel {
  LoneModel(const v1::TrainingJob& job, const ParameterSource& parameters,
            kernels::Backend backend);
  /// Outcome::loss of the documents, by a forward pass.
  double MeanLoss(const Documents& documents);
  v1::ModelSpec spec;
  kernels::Arena scratch, saved;
  kernels::Counters counters;
  LayerContext layer;
  ParameterStore store;
  Decoder decoder;
};

/// max |a - b| / max |b|; infinite if a number is not finite or the sizes differ.
double RelativeDistance(const std::vector<double>& a, const std::vector<double>& b);
/// The largest over the loss, the features and every gradient, with its name.
std::pair<double, std::string> WorstDistance(const Outcome& a, const Outcome& b);

}  // namespace ela::trainer
