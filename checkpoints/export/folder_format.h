// Names in an exported folder, and in the metadata of its weights.
#pragma once

namespace ela::checkpoints {

inline constexpr char kModelPrefix[] = "model/";  // of a step's tensors; an exported one has none
inline constexpr char kWeightsName[] = "model.safetensors";
inline constexpr char kIndexName[] = "model.safetensors.index.json";  // instead, of many parts
inline constexpr char kConfigName[] = "config.json";
inline constexpr char kModuleName[] = "modeling_ela.py";
inline constexpr char kCardName[] = "README.md";
inline constexpr const char* kTokenizerNames[] = {"tokenizer.model", "tokenizer.json"};

inline constexpr char kOnlyKey[] = "ela.only";  // "memory_lobe": nothing but the lobes
inline constexpr char kObjectiveKey[] = "ela.objective";
inline constexpr char kNextToken[] = "next_token";
inline constexpr char kMaskedToken[] = "masked_token";
inline constexpr char kDocumentMaskKey[] = "ela.document_mask";  // data.document_mask
inline constexpr char kStepKey[] = "ela.step";
inline constexpr char kTokensKey[] = "ela.tokens";
inline constexpr char kJobKey[] = "ela.job";
inline constexpr char kCodeVersionKey[] = "ela.code_version";

}  // namespace ela::checkpoints
