// Sequences under way: the prompt in one forward pass, then a token of each at a time. On a card
// the step is recorded once it has run (CudaGraph) and replayed from then on, with the same bits:
// its launches, some hundreds, would take longer than a small model's arithmetic.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "trainer/inference/loaded_model.h"

namespace ela::trainer {

struct DecodingOptions {
  int64_t samples = 1;  // B
  int64_t most_tokens =
      1;              // of a sequence with its prompt: caches that grow have at most this room
  bool graph = true;  // on a card: replay the step
};

class Decoding {
 public:
  /// Reads the prompt, once for all samples. InvalidArgument if it holds no id or one out of the
  /// vocabulary; ResourceExhausted if the card lacks memory. Collective over the ranks of the
  /// model; only the last one's goes on. One at a time on a model, which outlives it.
  static absl::StatusOr<std::unique_ptr<Decoding>> Start(LoadedModel* model,
                                                         const std::vector<int32_t>& prompt,
                                                         const DecodingOptions& options);

  /// One token of each sample, ids [B]. ResourceExhausted if caches outgrow the card.
  absl::Status Step(const std::vector<int32_t>& ids);

  /// What follows: logits [B, V], and the likeliest token of each, the lower id of equals.
  const std::vector<float>& Logits();
  const std::vector<int32_t>& Likeliest();

  int64_t seen() const { return seen_; }  // tokens of each sample
  /// Of all samples: states, the same at any length, and key-value caches so far.
  int64_t state_bytes() const { return CacheBytes(0); }
  int64_t cache_bytes() const { return CacheBytes(seen_) - CacheBytes(0); }
  /// The next Step replays a graph.
  bool replays() const { return !graph_.empty(); }

 private:
  Decoding(LoadedModel* model, const DecodingOptions& options);
  absl::Status ReadPrompt(const std::vector<int32_t>& prompt);
  absl::Status MakeRoom();
  void RunStep();
  absl::Status Record();
  int64_t CacheBytes(int64_t tokens) const;

  LoadedModel* model_;
  DecodingOptions options_;
  std::vector<LayerCache> cache_;
  int64_t seen_ = 0;
  int64_t room_ = 0;  // tokens of a sequence that the caches can hold
  // Where the step reads and writes: ids and positions [2 B] and the likeliest [B] (i32), logits
  // [B, V] (float).
  kernels::BackendMemory inputs_memory_, likeliest_memory_, logits_memory_;
  kernels::Tensor inputs_, likeliest_, logits_;
  std::vector<int32_t> host_inputs_, host_likeliest_;
  std::vector<float> host_logits_;
  kernels::CudaGraph graph_;
};

}  // namespace ela::trainer
