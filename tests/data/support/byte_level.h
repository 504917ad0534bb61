// Makes tokenizer.json files, and encodes with them by the definition.
#pragma once

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "data/tokenizer/bpe_trainer.h"
#include "data/tokenizer/utf8.h"

namespace ela::data::testing {

/// The character that stands for a byte.
inline std::string ByteLevelCharacter(int byte) {
  static const auto* const table = [] {
    auto* characters = new std::array<std::string, 256>;
    uint32_t next = 0x100;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool prints = (b > 0x20 && b < 0x7F) || (b > 0xA0 && b != 0xAD);
      (*characters)[b] = EncodeUtf8(prints ? b : next++);
    }
    return characters;
  }();
  return (*table)[static_cast<size_t>(byte)];
}

inline std::string ByteLevel(const std::string& bytes) {
  std::string out;
  for (const char c : bytes) out += ByteLevelCharacter(static_cast<uint8_t>(c));
  return out;
}

struct ByteLevelFile {
  std::map<std::string, int32_t> vocab;                     // bytes to id
  std::vector<std::pair<std::string, std::string>> merges;  // bytes
  nlohmann::json json;

  /// The ids of one word by the definition: the pair of the lowest rank first, again and again.
  std::vector<int32_t> Ids(const std::string& word) const {
    std::vector<std::string> parts;
    for (const char c : word) parts.emplace_back(1, c);
    for (;;) {
      size_t best = merges.size(), at = 0;
      for (size_t i = 0; i + 1 < parts.size(); ++i) {
        const auto pair = std::pair(parts[i], parts[i + 1]);
        const size_t rank = std::find(merges.begin(), merges.end(), pair) - merges.begin();
        if (rank < best) best = rank, at = i;
      }
      if (best == merges.size()) break;
      parts[at] += parts[at + 1];
      parts.erase(parts.begin() + static_cast<int64_t>(at) + 1);
    }
    std::vector<int32_t> ids;
    for (const std::string& part : parts) ids.push_back(vocab.at(part));
    return ids;
  }
};

/// Byte-level BPE with merges learnt from `texts` and <|endoftext|> as the last id. An empty
/// pattern leaves the splitting to ByteLevel.
inline ByteLevelFile MakeByteLevelFile(const std::vector<std::string>& texts, int64_t pieces,
                                       const std::string& pattern = "") {
  ByteLevelFile file;
  for (int b = 0; b < 256; ++b) file.vocab[std::string(1, static_cast<char>(b))] = b;
  const auto trained = TrainBpe(texts, pieces);
  for (const std::string& piece : trained->merged) {
    // Any cut into two known parts will do.
    for (size_t cut = piece.size() - 1; cut > 0; --cut) {
      if (!file.vocab.count(piece.substr(0, cut)) || !file.vocab.count(piece.substr(cut))) continue;
      file.merges.emplace_back(piece.substr(0, cut), piece.substr(cut));
      file.vocab.emplace(piece, static_cast<int32_t>(file.vocab.size()));
      break;
    }
  }
  using nlohmann::json;
  json vocab = json::object(), merges = json::array();
  for (const auto& [bytes, id] : file.vocab) vocab[ByteLevel(bytes)] = id;
  for (const auto& [left, right] : file.merges) {
    merges.push_back(ByteLevel(left) + " " + ByteLevel(right));
  }
  json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  if (!pattern.empty()) {
    byte_level["use_regex"] = false;
    byte_level = {{"type", "Sequence"},
                  {"pretokenizers",
                   {{{"type", "Split"},
                     {"pattern", {{"Regex", pattern}}},
                     {"behavior", "Isolated"},
                     {"invert", false}},
                    byte_level}}};
  }
  const auto end = static_cast<int32_t>(file.vocab.size());
  file.json = {{"version", "1.0"},
               {"normalizer", nullptr},
               {"pre_tokenizer", byte_level},
               {"decoder", {{"type", "ByteLevel"}}},
               {"added_tokens", {{{"id", end}, {"content", "<|endoftext|>"}, {"special", true}}}},
               {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}};
  return file;
}

inline constexpr char kLlama3Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr char kQwen2Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";

}  // namespace ela::data::testing
