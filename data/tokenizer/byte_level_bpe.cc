#include "data/tokenizer/byte_level_bpe.h"

#include <algorithm>
#include <array>
#include <utility>

#include "data/shards/sidecar.h"
#include "data/tokenizer/byte_level_json.h"
#include "data/tokenizer/id_buffer.h"
#include "data/tokenizer/merge_table.h"
#include "data/tokenizer/scratch_pool.h"
#include "data/tokenizer/utf8.h"
#include "data/tokenizer/word_cache.h"
#include "proto/status_macros.h"

namespace ela::data {
namespace {

struct Scratch {
  WordCache cache;
  IdBuffer buffer;
  Merger merger;
  std::vector<int32_t> symbols;
};

class ByteLevelBpe final : public Tokenizer {
 public:
  ByteLevelBpe(ByteLevelBpeModel model, std::string bytes);
  std::vector<int32_t> Encode(std::string_view text) const override;
  std::string Decode(const std::vector<int32_t>& ids) const override;
  int32_t vocab_size() const override { return model_.vocab_size; }
  int32_t end_of_document() const override { return model_.end_of_document; }
  const std::string& hash() const override { return hash_; }
  const std::string& serialized() const override { return bytes_; }

 private:
  static void AppendId(int32_t id, Scratch* scratch) {
    int32_t* const out = scratch->buffer.Reserve(1);
    *out = id;
    scratch->buffer.Commit(out + 1);
  }
  const ByteLevelBpeModel::AddedToken* AddedTokenAt(std::string_view text) const;
  void EncodePlain(std::string_view text, Scratch* scratch) const;
  void EncodeValid(std::string_view text, size_t step, Scratch* scratch) const;
  int32_t* EncodeWord(std::string_view word, Scratch* scratch, int32_t* out) const;

  ByteLevelBpeModel model_;
  std::string bytes_;
  std::string hash_;
  std::array<int32_t, 256> byte_ids_;
  MergeTable merges_;
  std::vector<std::string> texts_;  // of each token, when decoded
  // Added tokens that text may hold, by their first byte, the longest first.
  std::array<std::vector<const ByteLevelBpeModel::AddedToken*>, 256> added_;
  bool any_added_ = false;
  mutable ScratchPool<Scratch> scratch_;
};

ByteLevelBpe::ByteLevelBpe(ByteLevelBpeModel model, std::string bytes)
    : model_(std::move(model)),
      bytes_(std::move(bytes)),
      hash_(HexHash(bytes_)),
      merges_(model_.merges.size()) {
  for (int b = 0; b < 256; ++b) {
    byte_ids_[b] = model_.vocab.at(std::string(1, static_cast<char>(b)));
  }
  int32_t rank = 0;
  for (const auto& [left, right] : model_.merges) {
    merges_.Add(model_.vocab.at(left), model_.vocab.at(right), rank++,
                model_.vocab.at(left + right));
  }
  texts_.resize(static_cast<size_t>(model_.vocab_size));
  for (const auto& [text, id] : model_.vocab) texts_[id] = text;
  for (const auto& token : model_.added_tokens) {
    if (token.special) continue;
    texts_[token.id] = token.text;
    added_[static_cast<uint8_t>(token.text[0])].push_back(&token);
    any_added_ = true;
  }
  for (auto& tokens : added_) {
    std::stable_sort(tokens.begin(), tokens.end(),
                     [](auto* a, auto* b) { return a->text.size() > b->text.size(); });
  }
}

const ByteLevelBpeModel::AddedToken* ByteLevelBpe::AddedTokenAt(std::string_view text) const {
  for (const auto* token : added_[static_cast<uint8_t>(text[0])]) {
    if (text.substr(0, token->text.size()) == token->text) return token;
  }
  return nullptr;
}

std::vector<int32_t> ByteLevelBpe::Encode(std::string_view text) const {
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3);
  auto scratch = scratch_.Get();
  scratch->buffer.Begin(&ids);
  size_t begin = 0;
  for (size_t i = 0; any_added_ && i < text.size();) {
    const auto* token = AddedTokenAt(text.substr(i));
    if (token == nullptr) {
      ++i;
      continue;
    }
    EncodePlain(text.substr(begin, i - begin), scratch.get());
    AppendId(token->id, scratch.get());
    begin = i += token->text.size();
  }
  EncodePlain(text.substr(begin), scratch.get());
  scratch->buffer.Finish();
  return ids;
}

// Invalid bytes are words of their own; the patterns see valid text.
void ByteLevelBpe::EncodePlain(std::string_view text, Scratch* scratch) const {
  size_t begin = 0;
  for (size_t i = 0; i < text.size();) {
    if (static_cast<uint8_t>(text[i]) < 128) {
      ++i;
      continue;
    }
    const Utf8Char c = DecodeUtf8(text.data() + i, text.size() - i);
    if (c.bytes > 0) {
      i += static_cast<size_t>(c.bytes);
      continue;
    }
    EncodeValid(text.substr(begin, i - begin), 0, scratch);
    AppendId(byte_ids_[static_cast<uint8_t>(text[i])], scratch);
    begin = ++i;
  }
  EncodeValid(text.substr(begin), 0, scratch);
}

void ByteLevelBpe::EncodeValid(std::string_view text, size_t step, Scratch* scratch) const {
  if (text.empty()) return;
  if (step < model_.splits.size()) {
    model_.splits[step]->Split(
        text, [&](std::string_view part) { EncodeValid(part, step + 1, scratch); });
    return;
  }
  const auto encode = [&](std::string_view word, int32_t* out) {
    return EncodeWord(word, scratch, out);
  };
  int32_t* const out = scratch->buffer.Reserve(text.size());
  // A word may be read no further than its own end: what follows may be another text.
  scratch->buffer.Commit(scratch->cache.Append(text, text.data() + text.size(), encode, out));
}

int32_t* ByteLevelBpe::EncodeWord(std::string_view word, Scratch* scratch, int32_t* out) const {
  if (model_.ignore_merges) {
    const auto found = model_.vocab.find(word);
    if (found != model_.vocab.end()) {
      *out = found->second;
      return out + 1;
    }
  }
  std::vector<int32_t>& symbols = scratch->symbols;
  symbols.clear();
  for (const char c : word) symbols.push_back(byte_ids_[static_cast<uint8_t>(c)]);
  scratch->merger.Apply(merges_, &symbols);
  return std::copy(symbols.begin(), symbols.end(), out);
}

std::string ByteLevelBpe::Decode(const std::vector<int32_t>& ids) const {
  std::string text;
  for (const int32_t id : ids) {
    if (id >= 0 && id < model_.vocab_size) text += texts_[id];
  }
  return text;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeByteLevelBpe(std::string bytes) {
  ELA_ASSIGN_OR_RETURN(ByteLevelBpeModel model, ParseByteLevelBpe(bytes));
  return std::make_unique<ByteLevelBpe>(std::move(model), std::move(bytes));
}

}  // namespace ela::data
