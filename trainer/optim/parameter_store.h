// The parameters and gradients of one rank: one flat buffer per class, in the order of
// job::Parameters().
//
// Classes: dense (replicated on all ranks; everything but the experts) and expert (this rank's own
// experts). Tensors are aligned, and adjacent ones of a part of the model (the embedding, a layer)
// can be seen as one (q, k, v; job::FlatOffsets). What lies between them is zero; so is the end of
// a part, which makes it a size that the ranks share evenly (job::PaddedPart): a part's gradients
// are final at one moment of the backward pass, and buckets of them are summed from then on.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/tensor.h"
#include "proto/job/plan.h"
#include "trainer/optim/initial_values.h"
#include "trainer/parallel/mesh.h"

namespace ela::trainer {

enum class ParameterClass : uint8_t { kDense = 0, kExpert = 1 };
inline constexpr std::array<ParameterClass, 2> kParameterClasses = {ParameterClass::kDense,
                                                                    ParameterClass::kExpert};

/// One tensor in its class's flat buffer: elements [offset, offset + numel).
struct ParameterSegment {
  job::ParameterInfo info;
  int64_t offset = 0;
  bool trainable = true;
};

/// Elements [begin, end) of a class's flat buffer, all of one part of the model: dealt to the ranks
/// of the class's group in equal pieces.
struct ParameterBucket {
  int64_t begin = 0, end = 0;
  int64_t part = 0;  // job::ParameterInfo::part
};

struct StoreOptions {
  kernels::DType dtype =
      kernels::DType::kF32;  // of the parameters: kF32, kBf16, or kF64 (gradient checks)
  bool gradients = true;     // false: inference
  bool lobe_only = false;    // train_only: memory_lobe. Everything else is frozen
  kernels::CudaDevice* device = nullptr;     // whose memory holds them; null: the host's
  int64_t bucket_numel = job::kBucketNumel;  // elements of a bucket, at most
};

class ParameterStore {
 public:
  /// `parameters`: all of the model's. Keeps the dense ones and experts [mesh.expert_begin(),
  /// expert_end()).
  ParameterStore(const std::vector<job::ParameterInfo>& parameters, const Mesh& mesh,
                 const StoreOptions& options);
  /// A whole model on one rank.
  ParameterStore(const std::vector<job::ParameterInfo>& parameters, const StoreOptions& options);

  bool Has(std::string_view name) const;
  /// Views of a tensor that this rank holds; asking for another is a programmer error. Gradients
  /// are float (kF64 stores: double).
  kernels::Tensor param(std::string_view name) const;
  kernels::Tensor grad(std::string_view name) const;
  /// Matrices [r_i, n] that are adjacent in the buffer, first .. last, as one [sum r_i, n].
  kernels::Tensor FusedParam(std::string_view first, std::string_view last) const;
  kernels::Tensor FusedGrad(std::string_view first, std::string_view last) const;

  /// The whole padded buffer of a class [padded_numel].
  kernels::Tensor flat_params(ParameterClass cls) const;
  kernels::Tensor flat_grads(ParameterClass cls) const;
  const std::vector<ParameterSegment>& segments(ParameterClass cls) const;  // ascending offsets
  const std::vector<ParameterBucket>& buckets(ParameterClass cls) const;    // ascending, no gaps
  int64_t numel(ParameterClass cls) const;  // up to the end of the last segment

  /// All parameters of the model, on whatever rank.
  const std::vector<job::ParameterInfo>& all() const { return all_; }
  /// Whether a parameter is trained; the others are frozen.
  bool Trains(const job::ParameterInfo& info) const;
  const StoreOptions& options() const { return options_; }
  /// Where the buffers are: for copies to and from them.
  kernels::Context memory() const;

  void ZeroGrads();
  /// Fills every tensor that this rank holds. For inference and tests; training fills the masters
  /// (Zero1Optimizer).
  absl::Status Fill(const ParameterSource& source);

 private:
  struct Buffer {
    std::vector<ParameterSegment> segments;
    std::vector<ParameterBucket> buckets;
    int64_t numel = 0, padded = 0;
    kernels::BackendMemory params, grads;
  };
  struct Place {
    ParameterClass cls;
    size_t segment;
  };
  void Build(int64_t expert_begin, int64_t expert_end, int dense_shards, int expert_shards);
  /// The segments since the last bucket are a whole part: cuts it into buckets.
  void ClosePart(int64_t ranks, Buffer* buffer) const;
  const Place& Find(std::string_view name) const;
  kernels::Tensor View(const Place& place, bool grad) const;
  kernels::Tensor Fused(std::string_view first, std::string_view last, bool grad) const;
  kernels::DType grad_dtype() const;

  std::vector<job::ParameterInfo> all_;
  StoreOptions options_;
  std::array<Buffer, 2> buffers_;
  std::unordered_map<std::string, Place> places_;
};

/// Index e of "layers.3.moe.experts.<e>.up.weight"; -1 for any other name.
int64_t ExpertOf(std::string_view name);

}  // namespace ela::trainer
