// A training run in a test: the real step, optimizer and batches on ranks as threads, over tokens
// that are made up.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "data/loader.h"
#include "ela/v1/job.pb.h"
#include "trainer/optim/zero1_optimizer.h"
#include "trainer/parallel/mesh.h"

namespace ela::trainer {

/// A resolved job of 2 layers of width 16 (the second with softmax attention), 4 experts top 2 with
/// inner label bias, decay, a causal lobe, 8 sequences of 16 tokens a step; after `sets`
/// ("training.recompute=true").
v1::TrainingJob TrainingJobWith(const std::vector<std::string>& sets = {});

/// Sequences that follow a rule with exceptions, in documents of many lengths: how many targets a
/// sequence has differs much. Sample k is a pure function of k modulo `period` (0: of k).
class MadeUpLoader : public data::Loader {
 public:
  MadeUpLoader(int64_t seq_len, int64_t vocab, int64_t period = 0)
      : seq_len_(seq_len), vocab_(vocab), period_(period) {}
  absl::Status Fill(int64_t first_sample, int64_t sequences, int64_t token_begin, int64_t token_end,
                    data::Batch* batch) const override;
  int64_t samples_per_epoch() const override { return int64_t{1} << 40; }
  const std::string& fingerprint() const override { return fingerprint_; }

 private:
  void FillRow(int64_t sample, int64_t begin, int64_t end, data::Batch* batch) const;
  int64_t seq_len_, vocab_, period_;
  std::string fingerprint_ = "made up";
};

struct RunOptions {
  int64_t steps = 1;
  MeshSizes mesh;
  int num_threads = 1;
  int64_t period = 0;     // of the loader's samples
  bool update = true;     // false: gradients only
  bool logprobs = false;  // of the first step's tokens
  bool overlap = true;    // sums start in the backward pass; not where gradients are tampered with
  int64_t bucket_numel = job::kBucketNumel;
  /// Called on every rank before the gradients are reduced.
  std::function<void(int rank, int64_t step, ParameterStore* store)> tamper;
};

/// What a run was, the same on all ranks (which is checked).
struct Course {
  std::vector<double> losses, aux_losses, norms;
  std::vector<bool> finite;
  std::vector<int64_t> valid_targets;
  std::vector<int64_t> expert_counts;                   // of the last step, [N, E]
  std::map<std::string, std::vector<float>> weights;    // masters, at the end
  std::map<std::string, std::vector<float>> gradients;  // summed, of the last step
  std::vector<double> logprobs;                         // [G, L], before the first step
  int64_t planned_scratch = 0, planned_saved = 0;       // bytes
  int64_t scratch = 0, saved = 0;                       // the largest of any rank
};
Course RunTraining(const v1::TrainingJob& job, const RunOptions& options);

/// The largest |a - b|; infinite if the lengths differ or a number is not finite.
double LargestDifference(const std::vector<double>& a, const std::vector<double>& b);
/// |a - b| / |b| in the Euclidean norm, all tensors as one vector.
double RelativeDifference(const std::map<std::string, std::vector<float>>& a,
                          const std::map<std::string, std::vector<float>>& b);
/// Over all tensors: the largest |a - b| over the largest |b| of the tensor.
double LargestRelativeDifference(const std::map<std::string, std::vector<float>>& a,
                                 const std::map<std::string, std::vector<float>>& b);
/// The same bits: losses, norms, weights and gradients.
bool SameBits(const Course& a, const Course& b);

}  // namespace ela::trainer
