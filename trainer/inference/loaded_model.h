// A trained model in the memory of one rank, ready to score and to decode: from a checkpoint
// (PATH[@STEP], a checkpoint or a run folder) or from an exported folder.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "data/tokenizer.h"
#include "ela/v1/job.pb.h"
#include "trainer/model/decoder.h"

namespace ela::trainer {

class LoadedModel {
 public:
  /// `tokenizer_path` empty: the one the model was trained or exported with, if it is still there.
  /// Arithmetic is in float, whatever precision the model was trained in. Errors: NotFound,
  /// InvalidArgument, DataLoss, as one line.
  static absl::StatusOr<std::unique_ptr<LoadedModel>> Load(const std::string& path,
                                                           const std::string& tokenizer_path,
                                                           int num_threads);

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

  /// Rows of `copies` equal sequences of token ids; InvalidArgument if one is not in the
  /// vocabulary. Targets are the following ids. `closed`: the last id is a target only, so every
  /// row has one.
  absl::StatusOr<TokenRows> Rows(const std::vector<int32_t>& ids, bool closed,
                                 int64_t copies = 1) const;

 private:
  LoadedModel() = default;
  absl::Status Build(const ParameterSource& source, int num_threads);

  v1::ModelSpec spec_;
  bool causal_ = true, leaks_future_ = false, masked_ = false, document_mask_ = true;
  std::string tokenizer_error_;
  std::unique_ptr<data::Tokenizer> tokenizer_;
  std::unique_ptr<ParameterStore> store_;
  std::unique_ptr<Decoder> decoder_;
  kernels::Arena scratch_, saved_;
  kernels::Counters counters_;
  LayerContext context_;
};

}  // namespace ela::trainer
