#include <gmock/gmock.h>

#include "data/tokenizer.h"
#include "data/tokenizer/split_pattern.h"
#include "tests/data/support/byte_level.h"
#include "tests/data/support/corpus.h"
#include "tests/data/support/texts.h"

namespace ela::data {
namespace {

using testing::ByteLevelFile;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::MakeByteLevelFile;
using testing::RandomBytes;
using testing::RandomText;
using testing::RealTexts;
using testing::WriteBytes;

class ByteLevelBpeTest : public testing::TempFolder {
 protected:
  absl::StatusOr<std::unique_ptr<Tokenizer>> Open(const nlohmann::json& json) {
    WriteBytes(Path("tokenizer.json"), json.dump());
    return LoadTokenizer(Path("tokenizer.json"));
  }
  std::unique_ptr<Tokenizer> Load(const nlohmann::json& json) {
    auto tokenizer = Open(json);
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return *std::move(tokenizer);
  }
  std::string Error(const nlohmann::json& json) {
    const auto tokenizer = Open(json);
    EXPECT_FALSE(tokenizer.ok());
    return std::string(tokenizer.status().message());
  }
  std::vector<std::string> Words(const std::string& pattern, const std::string& text) {
    std::vector<std::string> words;
    const auto split = SplitPattern::Compile(pattern);
    EXPECT_TRUE(split.ok()) << split.status();
    (*split)->Split(text, [&](std::string_view word) { words.emplace_back(word); });
    return words;
  }
};

TEST_F(ByteLevelBpeTest, WordsOfGpt2) {
  EXPECT_THAT(
      Words(SplitPattern::Gpt2(), "I'll  see 12 x's\n\n  y;) ok "),
      ElementsAre("I", "'ll", " ", " see", " 12", " x", "'s", "\n\n ", " y", ";)", " ok", " "));
  EXPECT_THAT(Words(SplitPattern::Gpt2(), "Größe\t汉字２３ e\xCC\x81"),
              ElementsAre("Größe", "\t", "汉字", "２３", " e", "\xCC\x81"));
}

TEST_F(ByteLevelBpeTest, WordsOfLlama3AndQwen2) {
  EXPECT_THAT(Words(testing::kLlama3Pattern, "x = 12345;\n\n\tfoo(); I'M  "),
              ElementsAre("x", " =", " ", "123", "45", ";\n\n", "\tfoo", "();", " I", "'M", "  "));
  EXPECT_THAT(Words(testing::kQwen2Pattern, "a12 \n  b"),
              ElementsAre("a", "1", "2", " \n", " ", " b"));
}

TEST_F(ByteLevelBpeTest, IdsFollowTheDefinition) {
  for (const std::string pattern : {"", testing::kLlama3Pattern, testing::kQwen2Pattern}) {
    const ByteLevelFile file = MakeByteLevelFile(RealTexts(20'000), 400, pattern);
    const auto tokenizer = Load(file.json);
    std::mt19937 random(1);
    std::vector<std::string> texts = RealTexts(5'000);
    for (int i = 0; i < 50; ++i) texts.push_back(RandomText(&random, 40));
    for (const std::string& text : texts) {
      std::vector<int32_t> expected;
      for (const std::string& word :
           Words(pattern.empty() ? SplitPattern::Gpt2() : pattern, text)) {
        const std::vector<int32_t> ids = file.Ids(word);
        expected.insert(expected.end(), ids.begin(), ids.end());
      }
      ASSERT_EQ(tokenizer->Encode(text), expected);
    }
  }
}

TEST_F(ByteLevelBpeTest, TextComesBackWhateverItsBytes) {
  const auto tokenizer = Load(MakeByteLevelFile(RealTexts(20'000), 400).json);
  std::mt19937 random(2);
  for (int i = 0; i < 200; ++i) {
    const std::string text = RandomText(&random, 50);
    ASSERT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text);
    const std::string bytes = RandomBytes(&random, static_cast<size_t>(i));
    ASSERT_EQ(tokenizer->Decode(tokenizer->Encode(bytes)), bytes);
  }
}

TEST_F(ByteLevelBpeTest, SpecialTokensEndDocumentsAndAreNeverMadeFromText) {
  const ByteLevelFile file = MakeByteLevelFile(RealTexts(20'000), 300);
  const auto tokenizer = Load(file.json);
  const auto end = static_cast<int32_t>(file.vocab.size());
  EXPECT_EQ(tokenizer->end_of_document(), end);
  EXPECT_EQ(tokenizer->vocab_size(), end + 1);
  EXPECT_EQ(tokenizer->Decode({end}), "");
  for (const int32_t id : tokenizer->Encode("<|endoftext|>")) EXPECT_NE(id, end);
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode("<|endoftext|>")), "<|endoftext|>");
}

TEST_F(ByteLevelBpeTest, AddedTokensAreTakenFromTextTheLongestFirst) {
  ByteLevelFile file = MakeByteLevelFile(RealTexts(20'000), 300);
  const auto next = static_cast<int32_t>(file.vocab.size()) + 1;
  for (int spaces = 2; spaces < 5; ++spaces) {
    file.json["added_tokens"].push_back(
        {{"id", next + spaces}, {"content", std::string(spaces, ' ')}, {"special", false}});
  }
  const auto tokenizer = Load(file.json);
  EXPECT_THAT(tokenizer->Encode("       "), ElementsAre(next + 4, next + 3));
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode("x       y")), "x       y");
}

TEST_F(ByteLevelBpeTest, IgnoreMergesTakesWholeWords) {
  ByteLevelFile file = MakeByteLevelFile({"ab ab ab"}, 3);
  file.json["model"]["vocab"]["xyz"] = 900;
  EXPECT_EQ(Load(file.json)->Encode("xyz").size(), 3u);
  file.json["model"]["ignore_merges"] = true;
  EXPECT_THAT(Load(file.json)->Encode("xyz"), ElementsAre(900));
}

TEST_F(ByteLevelBpeTest, MergesMayBePairs) {
  ByteLevelFile file = MakeByteLevelFile(RealTexts(20'000), 300);
  const std::vector<int32_t> ids = Load(file.json)->Encode(RealTexts(3000)[0]);
  nlohmann::json pairs = nlohmann::json::array();
  for (const auto& [left, right] : file.merges) {
    pairs.push_back({testing::ByteLevel(left), testing::ByteLevel(right)});
  }
  file.json["model"]["merges"] = pairs;
  EXPECT_EQ(Load(file.json)->Encode(RealTexts(3000)[0]), ids);
}

TEST_F(ByteLevelBpeTest, WhatIsNotSupportedIsNamed) {
  const nlohmann::json good = MakeByteLevelFile(RealTexts(20'000), 300).json;
  const auto with = [&](const char* pointer, const nlohmann::json& value) {
    nlohmann::json json = good;
    json[nlohmann::json::json_pointer(pointer)] = value;
    return Error(json);
  };
  EXPECT_THAT(with("/model/type", "WordPiece"), HasSubstr("model type \"WordPiece\""));
  EXPECT_THAT(with("/normalizer", {{"type", "Lowercase"}}), HasSubstr("normalizer Lowercase"));
  EXPECT_THAT(with("/pre_tokenizer", nullptr), HasSubstr("without a ByteLevel"));
  EXPECT_THAT(with("/pre_tokenizer/add_prefix_space", true), HasSubstr("add_prefix_space"));
  EXPECT_THAT(with("/model/merges/0", "q zzz"), HasSubstr("merge \"q zzz\""));
  EXPECT_THAT(with("/model/vocab", {{"a", 0}}), HasSubstr("no token for byte 0"));
  EXPECT_THAT(with("/model/vocab", 3), HasSubstr("tokenizer.json: "));
  EXPECT_THAT(with("/model/vocab/a", -1), HasSubstr("token a has id -1"));
  EXPECT_THAT(with("/added_tokens", nlohmann::json::array()),
              HasSubstr("none that ends documents"));
  EXPECT_THAT(with("/pre_tokenizer", nlohmann::json::parse(R"({"type": "Split", "pattern":
      {"Regex": "("}, "behavior": "Isolated"})")),
              HasSubstr("pattern of a pre-tokenizer"));
  WriteBytes(Path("tokenizer.json"), "{ \"model\": ");
  EXPECT_THAT(std::string(LoadTokenizer(Path("tokenizer.json")).status().message()),
              HasSubstr("no tokenizer.json"));
}

}  // namespace
}  // namespace ela::data
