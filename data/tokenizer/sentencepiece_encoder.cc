#include "data/tokenizer/sentencepiece_encoder.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "data/tokenizer/id_buffer.h"
#include "data/tokenizer/joinable_pairs.h"
#include "data/tokenizer/merge_table.h"
#include "data/tokenizer/scratch_pool.h"
#include "data/tokenizer/string_map.h"
#include "data/tokenizer/utf8.h"
#include "data/tokenizer/word_cache.h"
#include "proto/status_macros.h"

namespace ela::data {
namespace {

using Type = SentencePieceModel::Type;

constexpr uint32_t kSpaceMark = 0x2581;  // stands for a space in pieces
constexpr int32_t kUnknown = -1;

// Characters of a piece, a space for U+2581; empty if it is not valid UTF-8.
std::vector<uint32_t> CharactersOf(std::string_view piece) {
  std::vector<uint32_t> out;
  while (!piece.empty()) {
    const Utf8Char c = DecodeUtf8(piece.data(), piece.size());
    if (c.bytes == 0) return {};
    out.push_back(c.code_point == kSpaceMark ? ' ' : c.code_point);
    piece.remove_prefix(static_cast<size_t>(c.bytes));
  }
  return out;
}

struct Scratch {
  WordCache cache;
  IdBuffer buffer;
  Merger merger;
  std::vector<int32_t> symbols;
};

class Encoder final : public SentencePieceEncoder {
 public:
  absl::Status Build(const SentencePieceModel& model);
  std::vector<int32_t> Encode(std::string_view text) const override;

 private:
  absl::Status AddPieces(const SentencePieceModel& model);
  void AddMerges(const SentencePieceModel& model);
  int32_t SymbolOf(uint32_t c) const {
    if (c < 128) return ascii_symbols_[c];
    const auto found = symbols_.find(c);
    return found == symbols_.end() ? kUnknown : found->second;
  }
  const char* EndOfWord(const char* begin, const char* text_end) const;
  const char* EndOfRest(const char* at, Utf8Char last, const char* text_end) const;
  int32_t* EncodeWord(std::string_view word, Scratch* scratch, int32_t* out) const;
  int32_t* EmitSymbols(Scratch* scratch, int32_t* out) const;
  int32_t* EncodeRaw(std::string_view bytes, int32_t* out) const {
    for (const char c : bytes) *out++ = byte_ids_[static_cast<uint8_t>(c)];
    return out;
  }

  bool dummy_prefix_ = false;
  int32_t pieces_ = 0;  // symbols below are ids of pieces, others are characters without one
  std::array<int32_t, 256> byte_ids_{};
  std::array<int32_t, 128> ascii_symbols_{};
  std::unordered_map<uint32_t, int32_t> symbols_;  // of characters; a space for U+2581
  std::vector<std::string> loose_characters_;      // UTF-8 of symbols from pieces_ on
  JoinablePairs joinable_;
  MergeTable merges_;
  mutable ScratchPool<Scratch> scratch_;
};

absl::Status Unsupported(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(
      what,
      ": only SentencePiece BPE models with byte fallback that keep the text as it is are "
      "supported; train one with ela-data build --tokenizer train:VOCAB"));
}

absl::Status Encoder::Build(const SentencePieceModel& model) {
  if (model.model_type != SentencePieceModel::kBpe) return Unsupported("model type other than bpe");
  if (!model.byte_fallback) return Unsupported("byte_fallback is off");
  if (model.has_normalization_table) return Unsupported("a normalization rule");
  if (model.remove_extra_whitespaces) return Unsupported("remove_extra_whitespaces");
  if (!model.escape_whitespaces) return Unsupported("escape_whitespaces is off");
  if (model.whitespace_as_suffix) return Unsupported("treat_whitespace_as_suffix");
  dummy_prefix_ = model.add_dummy_prefix;
  pieces_ = static_cast<int32_t>(model.pieces.size());
  ELA_RETURN_IF_ERROR(AddPieces(model));
  AddMerges(model);
  return absl::OkStatus();
}

// Byte pieces, and a symbol for every character of every piece.
absl::Status Encoder::AddPieces(const SentencePieceModel& model) {
  byte_ids_.fill(-1);
  for (int32_t id = 0; id < pieces_; ++id) {
    const SentencePieceModel::Piece& piece = model.pieces[id];
    const auto damaged = absl::InvalidArgumentError(absl::StrCat("piece ", id, " is damaged"));
    if (piece.type == Type::kUserDefined || piece.type == Type::kUnused) {
      return Unsupported(absl::StrCat("user-defined or unused piece ", piece.text));
    }
    if (piece.type == Type::kByte) {
      unsigned value = 0;
      if (std::sscanf(piece.text.c_str(), "<0x%2X>", &value) != 1) return damaged;
      byte_ids_[value & 255] = id;
    } else if (piece.type == Type::kNormal) {
      const std::vector<uint32_t> characters = CharactersOf(piece.text);
      if (characters.empty() || piece.text.find(' ') != std::string::npos) return damaged;
      if (characters.size() == 1 && !symbols_.emplace(characters[0], id).second) return damaged;
    } else if (CharactersOf(piece.text).size() < 2) {
      return damaged;  // text of one character could be taken for a control piece
    }
  }
  if (std::count(byte_ids_.begin(), byte_ids_.end(), -1) > 0)
    return Unsupported("bytes without a piece");
  return absl::OkStatus();
}

void Encoder::AddMerges(const SentencePieceModel& model) {
  StringMap<int32_t> by_text;  // symbols, a space for U+2581
  std::vector<std::vector<std::string>> characters(model.pieces.size());
  std::map<float, int32_t, std::greater<>> ranks;  // scores in the order of merging
  for (int32_t id = 0; id < pieces_; ++id) {
    const SentencePieceModel::Piece& piece = model.pieces[id];
    if (piece.type != Type::kNormal) continue;
    ranks[piece.score] = 0;
    const std::vector<uint32_t> codes = CharactersOf(piece.text);
    std::string text;
    for (size_t i = 0; i < codes.size(); ++i) {
      characters[id].push_back(EncodeUtf8(codes[i]));
      text += characters[id].back();
      if (i > 0) joinable_.Add(codes[i - 1], codes[i]);
      // A character inside pieces that is no piece itself: it merges, but alone it is bytes.
      const auto next = static_cast<int32_t>(pieces_ + loose_characters_.size());
      if (symbols_.emplace(codes[i], next).second) loose_characters_.push_back(characters[id][i]);
    }
    by_text.emplace(text, id);
  }
  for (size_t i = 0; i < loose_characters_.size(); ++i) {
    by_text.emplace(loose_characters_[i], pieces_ + static_cast<int32_t>(i));
  }
  int32_t rank = 0;
  for (auto& entry : ranks) entry.second = rank++;
  for (int32_t id = 0; id < pieces_; ++id) {
    std::string text;
    for (const std::string& c : characters[id]) text += c;
    for (size_t i = 0, left_bytes = 0; i + 1 < characters[id].size(); ++i) {
      left_bytes += characters[id][i].size();
      const auto left = by_text.find(text.substr(0, left_bytes));
      const auto right = by_text.find(text.substr(left_bytes));
      if (left != by_text.end() && right != by_text.end()) {
        merges_.Add(left->second, right->second, ranks[model.pieces[id].score], by_text.at(text));
      }
    }
  }
  for (uint32_t c = 0; c < 128; ++c) {
    const auto found = symbols_.find(c);
    ascii_symbols_[c] = found == symbols_.end() ? kUnknown : found->second;
  }
}

// Merges and writes the symbols gathered so far.
int32_t* Encoder::EmitSymbols(Scratch* scratch, int32_t* out) const {
  scratch->merger.Apply(merges_, &scratch->symbols);
  for (const int32_t symbol : scratch->symbols) {
    if (symbol < pieces_) {
      *out++ = symbol;
    } else {
      out = EncodeRaw(loose_characters_[symbol - pieces_], out);
    }
  }
  scratch->symbols.clear();
  return out;
}

int32_t* Encoder::EncodeWord(std::string_view word, Scratch* scratch, int32_t* out) const {
  scratch->symbols.clear();
  for (size_t i = 0; i < word.size();) {
    const Utf8Char c = DecodeUtf8(word.data() + i, word.size() - i);
    const size_t bytes = c.bytes == 0 ? 1 : static_cast<size_t>(c.bytes);
    const int32_t symbol =
        c.bytes == 0 || c.code_point == kSpaceMark ? kUnknown : SymbolOf(c.code_point);
    if (symbol == kUnknown) {
      out = EmitSymbols(scratch, out);
      out = EncodeRaw(word.substr(i, bytes), out);
    } else {
      scratch->symbols.push_back(symbol);
    }
    i += bytes;
  }
  return EmitSymbols(scratch, out);
}

// The end of the word that begins at `begin`: the first place that no merge crosses.
inline const char* Encoder::EndOfWord(const char* begin, const char* text_end) const {
  const char* at = begin;
  auto last = static_cast<uint8_t>(*at);
  if (last < 128) {
    for (++at; at < text_end; ++at) {
      const auto next = static_cast<uint8_t>(*at);
      if (next >= 128) return EndOfRest(at, {last, 1}, text_end);
      if (!joinable_.HasAscii(last, next)) return at;
      last = next;
    }
    return at;
  }
  const Utf8Char first = DecodeUtf8(at, static_cast<size_t>(text_end - at));
  if (first.bytes == 0) return at + 1;
  return EndOfRest(at + first.bytes, first, text_end);
}

// The same from the middle of a word, of any characters; U+2581 is in no pair.
const char* Encoder::EndOfRest(const char* at, Utf8Char last, const char* text_end) const {
  while (at < text_end) {
    const Utf8Char next = DecodeUtf8(at, static_cast<size_t>(text_end - at));
    if (next.bytes == 0 || !joinable_.Has(last.code_point, next.code_point)) break;
    last = next;
    at += next.bytes;
  }
  return at;
}

std::vector<int32_t> Encoder::Encode(std::string_view text) const {
  std::vector<int32_t> ids;
  if (text.empty()) return ids;
  std::string prefixed;
  if (dummy_prefix_) {
    prefixed.reserve(text.size() + 1);
    prefixed.append(" ").append(text);
    text = prefixed;
  }
  ids.reserve(text.size() / 3);
  auto scratch = scratch_.Get();
  const auto encode = [&](std::string_view word, int32_t* out) {
    return EncodeWord(word, scratch.get(), out);
  };
  scratch->buffer.Begin(&ids);
  const char* const text_end = text.data() + text.size();
  for (const char* at = text.data(); at < text_end;) {
    const char* const end = EndOfWord(at, text_end);
    const std::string_view word(at, static_cast<size_t>(end - at));
    int32_t* const out = scratch->buffer.Reserve(word.size());
    scratch->buffer.Commit(scratch->cache.Append(word, text_end, encode, out));
    at = end;
  }
  scratch->buffer.Finish();
  return ids;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SentencePieceEncoder>> SentencePieceEncoder::Create(
    const SentencePieceModel& model) {
  auto encoder = std::make_unique<Encoder>();
  ELA_RETURN_IF_ERROR(encoder->Build(model));
  return encoder;
}

}  // namespace ela::data
