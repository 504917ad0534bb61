// A trained model in the memory of a rank, ready to score and to decode: from a checkpoint
// (PATH[@STEP], a checkpoint or a run folder) or from an exported folder. On several ranks each
// holds all parameters and a shard of every sequence, as in training; the last one holds its end,
// and the states with which decoding goes on.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "data/tokenizer.h"
#include "ela/v1/job.pb.h"
#include "trainer/model/decoder.h"
#include "trainer/parallel/mesh.h"

namespace ela::trainer {

/// Where a model is held, and what computes it.
struct ModelPlace {
  int num_threads = 1;                    // of the CPU
  kernels::CudaDevice* device = nullptr;  // null: the CPU
  /// Of parameters and activations, kF32 or kBf16, whatever precision the model was trained in;
  /// states, statistics and sums are float.
  kernels::DType dtype = kernels::DType::kF32;
  Communicator* world = nullptr;  // null: this rank alone
  /// Bytes still to be had there; empty: asks the card or the machine. The ranks of a machine each
  /// see all of its memory.
  std::function<int64_t()> free_bytes;
};

/// What the passes of a model hold in its arenas, in bytes.
struct PassMemory {
  int64_t saved = 0, scratch = 0;
};

class LoadedModel {
 public:
  /// `tokenizer_path` empty: the one the model was trained or exported with, if it is still there.
  /// Collective over the place's world, which, like its device, must outlive the model. Errors:
  /// NotFound, InvalidArgument, DataLoss, ResourceExhausted (a card without the memory), as one
  /// line, the same on all ranks.
  static absl::StatusOr<std::unique_ptr<LoadedModel>> Load(const std::string& path,
                                                           const std::string& tokenizer_path,
                                                           const ModelPlace& place);
  /// The same from parameters in memory, without a tokenizer.
  static absl::StatusOr<std::unique_ptr<LoadedModel>> Create(const v1::TrainingJob& job,
                                                             const ParameterSource& source,
                                                             const ModelPlace& place);

  const v1::ModelSpec& spec() const { return spec_; }
  /// Trained by the masked_token objective.
  bool masked() const { return masked_; }
  /// Documents that share a sequence do not see each other (data.document_mask).
  bool document_mask() const { return document_mask_; }
  /// False: trained on masked tokens or with a lobe that sees the future; it cannot generate.
  bool causal() const { return causal_; }
  /// A loss of this model is made with a look at its targets (model.md 2.2).
  bool leaks_future() const { return leaks_future_; }
  /// NotFound says how to name one.
  absl::StatusOr<const data::Tokenizer*> tokenizer() const;
  const LayerContext& context() const { return context_; }
  Decoder& decoder() { return *decoder_; }
  /// Decoder::Forward of rows that Rows or a loader made, after their memory is there:
  /// ResourceExhausted says what lacks. Collective, like the status.
  absl::Status Forward(const TokenRows& rows);
  /// At least what a pass over so many sequences of so many tokens takes on this rank.
  PassMemory MemoryOf(int64_t sequences, int64_t length) const;
  /// Bytes that `memory` needs beyond what passes hold already.
  int64_t Lacking(const PassMemory& memory) const;
  /// Takes them; only while no pass is kept.
  void Reserve(const PassMemory& memory);
  int64_t FreeBytes() const;
  /// Waits for the card, if there is one.
  void Synchronize() const;
  /// The ranks that share every sequence; null: this one has it whole.
  Communicator* sequence() const { return mesh_ == nullptr ? nullptr : &mesh_->sequence(); }
  int shard() const { return mesh_ == nullptr ? 0 : mesh_->sequence_index(); }
  int shards() const { return mesh_ == nullptr ? 1 : mesh_->sizes().sequence; }
  bool last_shard() const { return shard() == shards() - 1; }

  /// This shard's rows of a sequence of token ids; InvalidArgument if one is not in the vocabulary.
  /// Targets are the following ids. `closed`: the last id is a target only, so every row has one.
  absl::StatusOr<TokenRows> Rows(const std::vector<int32_t>& ids, bool closed) const;

 private:
  LoadedModel() = default;
  void Describe(const v1::TrainingJob& job);
  absl::Status Open(const std::string& resolved_job, const std::string& tokenizer_path);
  absl::Status Build(const ParameterSource& source, const ModelPlace& place);
  absl::Status CheckFits(const std::string& what, int64_t lacking) const;

  v1::ModelSpec spec_;
  bool causal_ = true, leaks_future_ = false, masked_ = false, document_mask_ = true;
  std::string tokenizer_error_;
  std::unique_ptr<data::Tokenizer> tokenizer_;
  std::unique_ptr<Mesh> mesh_;  // null: one rank
  std::unique_ptr<ParameterStore> store_;
  std::unique_ptr<Decoder> decoder_;
  kernels::Arena scratch_, saved_;
  PassMemory held_;
  std::function<int64_t()> free_bytes_;
  kernels::Counters counters_;
  LayerContext context_;
};

}  // namespace ela::trainer
