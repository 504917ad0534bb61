#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "trainer/inference/generate.h"

namespace ela::trainer {
namespace {

// Tokens are bytes. What is not whole UTF-8 decodes to bytes, or to U+FFFD as SentencePiece has it.
class ByteTokenizer : public data::Tokenizer {
 public:
  explicit ByteTokenizer(bool replaces) : replaces_(replaces) {}
  std::vector<int32_t> Encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    for (char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string Decode(const std::vector<int32_t>& ids) const override {
    std::string text(ids.begin(), ids.end());
    if (!replaces_) return text;
    size_t at = text.size();
    while (at > 0 && (text[at - 1] & 0xc0) == 0x80) --at;
    const bool whole =
        at == text.size() || (at > 0 && Length(text[at - 1]) == text.size() - at + 1);
    if (whole && (text.empty() || Length(text.back()) <= 1 || at < text.size())) return text;
    return text.substr(0, at == 0 ? 0 : at - 1) + "\xef\xbf\xbd";
  }
  int32_t vocab_size() const override { return 256; }
  int32_t end_of_document() const override { return 0; }
  const std::string& hash() const override { return empty_; }
  const std::string& serialized() const override { return empty_; }

 private:
  static size_t Length(char lead) {
    const auto c = static_cast<unsigned char>(lead);
    return c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
  }
  bool replaces_;
  std::string empty_;
};

TEST(TextStream, GivesOutWholeCharactersOnly) {
  const std::string text = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80z";
  for (bool replaces : {false, true}) {
    const ByteTokenizer tokenizer(replaces);
    TextStream stream(&tokenizer);
    std::vector<std::string> parts;
    for (int32_t id : tokenizer.Encode(text)) {
      if (std::string part = stream.Push(id); !part.empty()) parts.push_back(part);
    }
    EXPECT_EQ(parts,
              (std::vector<std::string>{"a", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "z"}));
    EXPECT_EQ(stream.Finish(), "");
  }
}

TEST(TextStream, FinishesWithWhatNeverBecameWhole) {
  const ByteTokenizer tokenizer(/*replaces=*/false);
  TextStream stream(&tokenizer);
  EXPECT_EQ(stream.Push('a'), "a");
  EXPECT_EQ(stream.Push(0xe2), "");
  EXPECT_EQ(stream.Finish(), "\xe2");
}

}  // namespace
}  // namespace ela::trainer
