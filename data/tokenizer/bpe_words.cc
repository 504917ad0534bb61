#include "data/tokenizer/bpe_words.h"

#include "data/tokenizer/utf8.h"

namespace ela::data {
namespace {

// Kinds of characters; values from kLetter on are letters, one value a script, by and large.
enum Kind : uint32_t { kOut, kSpace, kTab, kNewline, kDigit, kPunctuation, kMark, kLetter };

Kind AsciiKind(uint32_t c) {
  if (c == ' ') return kSpace;
  if (c == '\t') return kTab;
  if (c == '\n' || c == '\r') return kNewline;
  if (c < ' ' || c == 0x7F) return kOut;
  if (c >= '0' && c <= '9') return kDigit;
  const uint32_t lower = c | 0x20;
  return (lower >= 'a' && lower <= 'z') || c == '_' ? kLetter : kPunctuation;
}

// Blocks of Unicode stand for its scripts: it only matters that words of different writing do not
// become one piece.
Kind KindOf(uint32_t c) {
  if (c < 0x80) return AsciiKind(c);
  if (c < 0xA0) return kOut;
  if (c < 0xC0 || c == 0xD7 || c == 0xF7) return kPunctuation;
  if (c >= 0x300 && c < 0x370) return kMark;
  if (c < 0x250) return kLetter;
  if (c == 0x2581) return kOut;  // SentencePiece's own sign for a space
  if ((c >= 0x2000 && c < 0x2C00) || (c >= 0x3000 && c < 0x3040) || (c >= 0xFE00 && c < 0xFE70) ||
      (c >= 0xFF00 && c < 0xFF21) || c >= 0xFFF0) {
    return kPunctuation;
  }
  if (c >= 0x2E80 && c < 0xA000) return static_cast<Kind>(kLetter + 0x100);  // Han and Kana
  if (c >= 0xAC00 && c < 0xD7B0) return static_cast<Kind>(kLetter + 0x101);  // Hangul
  return static_cast<Kind>(kLetter + 1 + (c >> 8));
}

}  // namespace

void WordCounter::Add(std::string_view text) {
  size_t begin = 0;
  Kind last = kOut;  // of the word so far
  const auto end_word = [&](size_t end) {
    if (end == begin) return;
    const std::string_view word = text.substr(begin, end - begin);
    const auto found = words_.find(word);
    if (found != words_.end()) {
      ++found->second;
    } else {
      words_.emplace(word, 1);
    }
  };
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = DecodeUtf8(text.data() + i, text.size() - i);
    const Kind kind = c.bytes == 0 ? kOut : KindOf(c.code_point);
    const bool joins = (kind == last && kind != kDigit) || (last == kSpace && kind > kNewline) ||
                       (kind == kMark && last >= kPunctuation) ||
                       (last == kPunctuation && kind == kNewline);
    if (!joins || kind == kOut) {
      end_word(i);
      begin = i;
    }
    if (kind == kOut) {
      begin = i += static_cast<size_t>(c.bytes == 0 ? 1 : c.bytes);
    } else {
      ++characters_[c.code_point];
      i += static_cast<size_t>(c.bytes);
    }
    if (kind != kMark) last = kind;
  }
  end_word(text.size());
}

}  // namespace ela::data
