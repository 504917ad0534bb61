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
  /// Of a sequence with its prompt: caches that grow have at most this room.
  int64_t most_tokens = 1;
  bool graph = true;  // on a card: replay the step
};

class Decoding {
 public:
  /// Reads the prompt, once for all samples. InvalidArgument if it holds no id or one out of the
  /// vocabulary; ResourceExhausted, with what would fit, if a rank lacks memory to read it and to
  /// take a step. Collective over the ranks of the model, like the status; only the last one's goes
  /// on. One at a time on a model, which outlives it.
  static absl::StatusOr<std::unique_ptr<Decoding>> Start(LoadedModel* model,
                                                         const std::vector<int32_t>& prompt,
                                                         const DecodingOptions& options);

  /// One token of each sample, ids [B]. ResourceExhausted, with what would fit, if caches outgrow
  /// the memory.
  absl::Status Step(const std::vector<int32_t>& ids);

  /// What follows: logits [B, V], and the likeliest token of each, the lower id of equals.
  const std::vector<float>& Logits();
  const std::vector<int32_t>& Likeliest();

  int64_t seen() const { return seen_; }  // tokens of each sample
  /// Of all samples: states, the same at any length, and key-value caches so far.
  int64_t state_bytes() const { return SizeOf(options_.samples, 0).all; }
  int64_t cache_bytes() const { return SizeOf(options_.samples, seen_).all - state_bytes(); }
  /// The next Step replays a graph.
  bool replays() const { return !graph_.empty(); }

 private:
  Decoding(LoadedModel* model, const DecodingOptions& options);
  /// Bytes of all layers' caches, and of the largest of those that grow.
  struct CacheSize {
    int64_t all = 0, largest = 0;
  };
  CacheSize SizeOf(int64_t samples, int64_t tokens) const;
  PassMemory PassesOf(int64_t samples, int64_t rows) const;
  int64_t BytesToStart(int64_t samples, int64_t rows, int64_t room) const;
  int64_t BytesToGrow(int64_t samples, int64_t room) const;
  absl::Status ChooseRoom(int64_t prompt, int64_t rows);
  absl::Status ReadPrompt(const TokenRows& rows);
  absl::Status MakeRoom();
  void RunStep();
  absl::Status Record();

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
