#include "data/tokenizer/byte_level_json.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "data/tokenizer/utf8.h"
#include "proto/status_macros.h"

namespace ela::data {
namespace {

using nlohmann::json;

absl::Status Unsupported(const std::string& what) {
  return absl::InvalidArgumentError(
      absl::StrCat(what, " is not supported: only byte-level BPE that keeps the text as it is"));
}

// Byte-level BPE writes each byte as a printable character: bytes that print as Latin-1 stand for
// themselves, the others, in order, for U+0100 on.
std::unordered_map<uint32_t, char> ByteOfCharacter() {
  std::unordered_map<uint32_t, char> out;
  uint32_t next = 0x100;
  for (uint32_t b = 0; b < 256; ++b) {
    const bool prints = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    out[prints ? b : next++] = static_cast<char>(b);
  }
  return out;
}

class Parser {
 public:
  explicit Parser(ByteLevelBpeModel* out) : out_(out), byte_of_(ByteOfCharacter()) {}

  absl::Status Parse(const json& root) {
    const json model = root.at("model");
    if (model.value("type", "BPE") != "BPE") {
      return Unsupported(absl::StrCat("model type ", model.at("type").dump()));
    }
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (model.contains(key) && !model[key].is_null() && model[key] != "") return Unsupported(key);
    }
    if (model.contains("dropout") && model["dropout"].is_number() && model["dropout"] != 0) {
      return Unsupported("dropout");
    }
    ELA_RETURN_IF_ERROR(ParseNormalizer(root.value("normalizer", json())));
    ELA_RETURN_IF_ERROR(ParsePreTokenizer(root.value("pre_tokenizer", json())));
    if (!byte_level_) return Unsupported("a tokenizer without a ByteLevel pre-tokenizer");
    ELA_RETURN_IF_ERROR(ParseAddedTokens(root.value("added_tokens", json::array())));
    ELA_RETURN_IF_ERROR(ParseVocab(model.at("vocab")));
    ELA_RETURN_IF_ERROR(ParseMerges(model.at("merges")));
    out_->ignore_merges = model.value("ignore_merges", false);
    return FindEndOfDocument();
  }

 private:
  absl::Status ParseNormalizer(const json& normalizer) {
    if (normalizer.is_null() || normalizer.value("type", "") == "NFC") return absl::OkStatus();
    if (normalizer.value("type", "") == "Sequence") {
      for (const json& part : normalizer.at("normalizers")) {
        ELA_RETURN_IF_ERROR(ParseNormalizer(part));
      }
      return absl::OkStatus();
    }
    return Unsupported(absl::StrCat("normalizer ", normalizer.value("type", "?")));
  }

  absl::Status AddSplit(const std::string& pattern) {
    ELA_ASSIGN_OR_RETURN(auto split, SplitPattern::Compile(pattern));
    out_->splits.push_back(std::move(split));
    return absl::OkStatus();
  }

  absl::Status ParsePreTokenizer(const json& step) {
    if (step.is_null()) return absl::OkStatus();
    const std::string type = step.value("type", "?");
    if (type == "Sequence") {
      for (const json& part : step.at("pretokenizers")) {
        ELA_RETURN_IF_ERROR(ParsePreTokenizer(part));
      }
      return absl::OkStatus();
    }
    if (byte_level_) return Unsupported(absl::StrCat("pre-tokenizer ", type, " after ByteLevel"));
    if (type == "ByteLevel") {
      byte_level_ = true;
      if (step.value("add_prefix_space", true)) return Unsupported("add_prefix_space");
      return step.value("use_regex", true) ? AddSplit(SplitPattern::Gpt2()) : absl::OkStatus();
    }
    if (type == "Digits")
      return AddSplit(step.value("individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)");
    if (type != "Split") return Unsupported(absl::StrCat("pre-tokenizer ", type));
    const std::string behavior = step.value("behavior", "?");
    const bool invert = step.value("invert", false);
    if (!(behavior == "Isolated" && !invert) && !(behavior == "Removed" && invert)) {
      return Unsupported(
          absl::StrCat("pre-tokenizer Split with behavior ", behavior, invert ? ", inverted" : ""));
    }
    const json& pattern = step.at("pattern");
    if (pattern.contains("Regex")) return AddSplit(pattern["Regex"].get<std::string>());
    std::string quoted;
    for (const char c : pattern.at("String").get<std::string>()) {
      const bool word = static_cast<uint8_t>(c) >= 0x80 || std::isalnum(static_cast<uint8_t>(c));
      absl::StrAppend(&quoted, word ? "" : "\\", std::string(1, c));
    }
    return AddSplit(quoted);
  }

  absl::Status ParseAddedTokens(const json& tokens) {
    for (const json& token : tokens) {
      ByteLevelBpeModel::AddedToken added;
      added.text = token.at("content").get<std::string>();
      added.special = token.value("special", false);
      ELA_ASSIGN_OR_RETURN(added.id, CheckId(token.at("id"), added.text));
      if (added.text.empty()) return absl::InvalidArgumentError("an added token is empty");
      const bool plain = !token.value("lstrip", false) && !token.value("rstrip", false) &&
                         !token.value("single_word", false);
      if (!added.special && !plain) {
        return Unsupported(absl::StrCat("lstrip, rstrip or single_word of ", added.text));
      }
      out_->added_tokens.push_back(std::move(added));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<int32_t> CheckId(const json& value, const std::string& token) {
    const int64_t id = value.get<int64_t>();
    if (id < 0 || id >= int64_t{1} << 24) {
      return absl::InvalidArgumentError(absl::StrCat("token ", token, " has id ", id));
    }
    out_->vocab_size = std::max(out_->vocab_size, static_cast<int32_t>(id) + 1);
    return static_cast<int32_t>(id);
  }

  // False if a character stands for no byte.
  bool ToBytes(std::string_view token, std::string* bytes) const {
    bytes->clear();
    while (!token.empty()) {
      const Utf8Char c = DecodeUtf8(token.data(), token.size());
      const auto found = byte_of_.find(c.code_point);
      if (c.bytes == 0 || found == byte_of_.end()) return false;
      bytes->push_back(found->second);
      token.remove_prefix(static_cast<size_t>(c.bytes));
    }
    return !bytes->empty();
  }

  absl::Status ParseVocab(const json& vocab) {
    std::unordered_map<int32_t, bool> added;
    for (const auto& token : out_->added_tokens) added[token.id] = true;
    std::string bytes;
    for (const auto& [token, value] : vocab.items()) {
      ELA_ASSIGN_OR_RETURN(const int32_t id, CheckId(value, token));
      if (added.contains(id)) continue;
      if (!ToBytes(token, &bytes)) {
        return absl::InvalidArgumentError(
            absl::StrCat("token ", token, " is not written in byte-level characters"));
      }
      out_->vocab.emplace(bytes, id);
    }
    for (int b = 0; b < 256; ++b) {
      if (!out_->vocab.contains(std::string(1, static_cast<char>(b)))) {
        return absl::InvalidArgumentError(
            absl::StrCat("the vocabulary has no token for byte ", b, ", so some text has no ids"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status ParseMerges(const json& merges) {
    std::pair<std::string, std::string> merge;
    for (const json& entry : merges) {
      std::string left, right;
      if (entry.is_string()) {
        const auto text = entry.get<std::string>();
        const size_t space = text.find(' ');
        left = text.substr(0, space);
        right = space == std::string::npos ? "" : text.substr(space + 1);
      } else {
        left = entry.at(0).get<std::string>();
        right = entry.at(1).get<std::string>();
      }
      const bool parsed = ToBytes(left, &merge.first) && ToBytes(right, &merge.second);
      if (!parsed || !out_->vocab.contains(merge.first) || !out_->vocab.contains(merge.second) ||
          !out_->vocab.contains(merge.first + merge.second)) {
        return absl::InvalidArgumentError(
            absl::StrCat("merge ", entry.dump(), " is not of tokens of the vocabulary"));
      }
      out_->merges.push_back(merge);
    }
    return absl::OkStatus();
  }

  // tokenizer.json does not say which token ends a document: one of the usual names, or the only
  // special token there is.
  absl::Status FindEndOfDocument() {
    std::vector<std::string> special;
    for (const char* name : {"<|endoftext|>", "<|end_of_text|>", "</s>", "<|eot_id|>", "<|im_end|>",
                             "<eos>", "<|end_of_document|>", "<｜end▁of▁sentence｜>"}) {
      for (const auto& token : out_->added_tokens) {
        if (token.text == name && out_->end_of_document < 0) out_->end_of_document = token.id;
      }
    }
    int32_t last = -1;
    for (const auto& token : out_->added_tokens) {
      if (token.special) special.push_back(token.text), last = token.id;
    }
    if (out_->end_of_document < 0 && special.size() == 1) out_->end_of_document = last;
    if (out_->end_of_document >= 0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        "added_tokens has none that ends documents: add a special token <|endoftext|>");
  }

  ByteLevelBpeModel* out_;
  std::unordered_map<uint32_t, char> byte_of_;
  bool byte_level_ = false;
};

}  // namespace

absl::StatusOr<ByteLevelBpeModel> ParseByteLevelBpe(std::string_view text) {
  try {
    ByteLevelBpeModel model;
    ELA_RETURN_IF_ERROR(Parser(&model).Parse(json::parse(text)));
    return model;
  } catch (const json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("no tokenizer.json: ", error.what()));
  }
}

}  // namespace ela::data
