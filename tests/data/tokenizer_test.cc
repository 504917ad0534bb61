#include "data/tokenizer.h"

#include <gmock/gmock.h>

#include <thread>

#include "data/tokenizer/train_tokenizer.h"
#include "tests/data/support/programs.h"
#include "tests/data/support/texts.h"

namespace ela::data {
namespace {

using ::testing::HasSubstr;
using testing::RandomBytes;
using testing::RandomText;
using testing::ReadBytes;
using testing::RealTexts;
using testing::WriteBytes;

std::vector<std::string> RandomTexts(int count, int words) {
  std::mt19937 random(11);
  std::vector<std::string> texts;
  for (int i = 0; i < count; ++i) texts.push_back(RandomText(&random, words));
  return texts;
}

class TokenizerTest : public testing::ProgramTest {
 protected:
  std::unique_ptr<Tokenizer> Train(const std::vector<std::string>& texts, int32_t vocab_size) {
    const auto model = TrainSentencePiece(texts, vocab_size);
    EXPECT_TRUE(model.ok()) << model.status();
    WriteBytes(Path("m.model"), *model);
    return Load("m.model");
  }
  std::unique_ptr<Tokenizer> Load(const std::string& name) {
    auto tokenizer = LoadTokenizer(Path(name));
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return *std::move(tokenizer);
  }
  std::string LoadError(const std::string& name) {
    const auto tokenizer = LoadTokenizer(Path(name));
    EXPECT_FALSE(tokenizer.ok());
    return std::string(tokenizer.status().message());
  }
  // U+2581 aside, which the library takes for a space.
  void ExpectIdsOfTheLibrary(const Tokenizer& tokenizer, const std::string& model,
                             std::vector<std::string> texts) {
    for (std::string& text : texts) {
      for (size_t at; (at = text.find("\xE2\x96\x81")) != std::string::npos;) text.erase(at, 3);
    }
    const auto expected = LibraryIds(Path(model), texts);
    ASSERT_EQ(expected.size(), texts.size());
    for (size_t i = 0; i < texts.size(); ++i) {
      ASSERT_EQ(tokenizer.Encode(texts[i]), expected[i]) << "text " << i;
    }
  }
};

TEST_F(TokenizerTest, TextComesBackWhateverItsBytes) {
  const auto tokenizer = Train(RealTexts(), 600);
  std::mt19937 random(5);
  for (const std::string& text : RandomTexts(200, 60)) {
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text);
  }
  for (size_t size = 0; size < 300; ++size) {
    const std::string bytes = RandomBytes(&random, size);
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(bytes)), bytes);
  }
  for (const std::string& text : RealTexts()) {
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text);
  }
}

TEST_F(TokenizerTest, IdsAreThoseOfTheLibraryOnOurModels) {
  for (const int32_t vocab_size : {400, 2048}) {
    const auto tokenizer = Train(RealTexts(), vocab_size);
    EXPECT_EQ(tokenizer->vocab_size(), vocab_size);
    ExpectIdsOfTheLibrary(*tokenizer, "m.model", RealTexts(30'000));
    ExpectIdsOfTheLibrary(*tokenizer, "m.model", RandomTexts(100, 100));
  }
}

TEST_F(TokenizerTest, IdsAreThoseOfTheLibraryOnItsModels) {
  const std::vector<std::string> common = {"model_type=bpe",
                                           "byte_fallback=true",
                                           "normalization_rule_name=identity",
                                           "remove_extra_whitespaces=false",
                                           "minloglevel=3",
                                           "max_sentence_length=1000000",
                                           "character_coverage=0.98"};
  std::vector<std::string> texts = RandomTexts(40, 400);
  for (const std::string& text : RealTexts(40'000)) texts.push_back(text);
  std::vector<std::string> learned;  // short: the library's trainer can crash on words of 10 KB
  for (const std::string& text : texts) {
    for (size_t at = 0; at < text.size();) {
      const size_t end = std::min(text.size(), text.find('\n', std::min(text.size(), at + 500)));
      learned.push_back(text.substr(at, end - at));
      at = end;
    }
  }
  const std::vector<std::vector<std::string>> variants = {
      {"vocab_size=800", "add_dummy_prefix=false"},
      {"vocab_size=1500", "add_dummy_prefix=true", "allow_whitespace_only_pieces=true"},
      // Pieces that reach over words, scripts and numbers.
      {"vocab_size=1500", "split_by_whitespace=false", "split_by_unicode_script=false",
       "split_by_number=false", "add_dummy_prefix=false"}};
  for (const auto& variant : variants) {
    std::vector<std::string> settings = common;
    settings.insert(settings.end(), variant.begin(), variant.end());
    TrainByLibrary(learned, Path("theirs.model"), settings);
    const auto tokenizer = Load("theirs.model");
    ExpectIdsOfTheLibrary(*tokenizer, "theirs.model", texts);
    for (const std::string& text : texts) {
      ASSERT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text);
    }
  }
}

TEST_F(TokenizerTest, LongWordsMergeAsShortOnesDo) {
  std::mt19937 random(3);
  std::string text;
  for (int i = 0; i < 20'000; ++i) text += "abcd"[random() % 4];
  const auto tokenizer = Train({text.substr(0, 8000), "a b c d"}, 300);
  ExpectIdsOfTheLibrary(*tokenizer, "m.model",
                        {text, text.substr(0, 31), text.substr(0, 33), text.substr(7, 300)});
}

TEST_F(TokenizerTest, InvalidBytesAndTheSpaceMarkKeepTheirBytes) {
  const auto tokenizer = Train({"some text to train on, some more"}, 280);
  EXPECT_EQ(tokenizer->Encode("\xFF").size(), 1u);
  EXPECT_EQ(tokenizer->Encode("\xE2\x96\x81").size(), 3u);
  EXPECT_EQ(tokenizer->Encode("\xE2\x96").size(), 2u);
}

TEST_F(TokenizerTest, WhitespaceMakesPieces) {
  static const char* const kParts[] = {"\t\t", "\n\n", "    ", " y", "x", "call", "=", "12", ";"};
  std::mt19937 random(2);
  std::string text;
  for (int i = 0; i < 3000; ++i) text += kParts[random() % std::size(kParts)];
  const auto tokenizer = Train({text}, 320);
  EXPECT_EQ(tokenizer->Encode("\t\t").size(), 1u);
  EXPECT_EQ(tokenizer->Encode("\n\n").size(), 1u);
  EXPECT_EQ(tokenizer->Encode("    ").size(), 1u);
  EXPECT_EQ(tokenizer->Encode(" y").size(), 1u);
  EXPECT_EQ(tokenizer->Encode("12").size(), 2u);
}

TEST_F(TokenizerTest, EndOfDocumentDecodesToNothing) {
  const auto tokenizer = Train(RealTexts(), 500);
  EXPECT_EQ(tokenizer->end_of_document(), 1);
  std::vector<int32_t> ids = tokenizer->Encode("int main");
  ids.push_back(tokenizer->end_of_document());
  EXPECT_EQ(tokenizer->Decode(ids), "int main");
  EXPECT_EQ(tokenizer->Decode({-5, 500, 1 << 30}), "");
  for (const int32_t id : tokenizer->Encode("</s> <unk> <0x41>")) EXPECT_GT(id, 1);
}

TEST_F(TokenizerTest, TrainingTwiceGivesTheSameBytes) {
  const auto once = TrainSentencePiece(RealTexts(), 1000);
  ASSERT_TRUE(once.ok());
  EXPECT_EQ(*once, *TrainSentencePiece(RealTexts(), 1000));
  const auto tokenizer = Train(RealTexts(), 1000);
  EXPECT_EQ(tokenizer->serialized(), *once);
  EXPECT_EQ(tokenizer->hash().size(), 16u);
}

TEST_F(TokenizerTest, ThreadsShareATokenizer) {
  const auto tokenizer = Train(RealTexts(), 700);
  const std::vector<std::string> texts = RandomTexts(64, 200);
  std::vector<std::vector<int32_t>> ids(texts.size());
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < texts.size(); i += 4) ids[i] = tokenizer->Encode(texts[i]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < texts.size(); ++i) EXPECT_EQ(ids[i], tokenizer->Encode(texts[i]));
}

TEST_F(TokenizerTest, TrainTokenizerReadsFiles) {
  WriteBytes(Path("a.txt"), RealTexts()[0]);
  WriteBytes(Path("b.jsonl"), "{\"text\": \"a line of text\"}\n");
  const absl::Status trained =
      TrainTokenizer({Path("a.txt"), Path("b.jsonl")}, 400, Path("f.model"));
  ASSERT_TRUE(trained.ok()) << trained;
  EXPECT_EQ(Load("f.model")->vocab_size(), 400);
  EXPECT_EQ(TrainTokenizer({Path("absent")}, 400, Path("g.model")).code(),
            absl::StatusCode::kNotFound);
}

TEST_F(TokenizerTest, VocabulariesThatDoNotFitTheTextAreRefusedWithTheRemedy) {
  const std::vector<std::string> texts = {"a small text"};
  EXPECT_THAT(std::string(TrainSentencePiece(texts, 1000).status().message()),
              HasSubstr("1000 is too large: the text gives"));
  EXPECT_THAT(std::string(TrainSentencePiece(texts, 260).status().message()),
              HasSubstr("260 is too small: the characters alone need 6 more"));
  EXPECT_THAT(std::string(TrainSentencePiece(texts, 100).status().message()),
              HasSubstr("more than 258"));
  EXPECT_FALSE(TrainSentencePiece({}, 1000).ok());
}

TEST_F(TokenizerTest, FilesThatAreNoTokenizersAreNamed) {
  EXPECT_THAT(LoadError("absent.model"), HasSubstr("absent.model: no such file"));
  WriteBytes(Path("junk.model"), "this is no model");
  EXPECT_THAT(LoadError("junk.model"), HasSubstr("junk.model: no SentencePiece model"));
  WriteBytes(Path("empty.model"), "");
  EXPECT_THAT(LoadError("empty.model"), HasSubstr("empty.model: no SentencePiece model"));
  Train(RealTexts(), 400);
  const std::string model = ReadBytes(Path("m.model"));
  for (size_t size = 0; size < model.size(); size += 97) {  // never crashes
    WriteBytes(Path("cut.model"), model.substr(0, size));
    (void)LoadTokenizer(Path("cut.model"));
  }
}

TEST_F(TokenizerTest, ModelsOfOtherKindsAreRefusedWithTheReason) {
  const std::vector<std::string> common = {"vocab_size=600", "minloglevel=3",
                                           "hard_vocab_limit=false", "max_sentence_length=1000000"};
  auto with = [&](std::vector<std::string> settings) {
    settings.insert(settings.end(), common.begin(), common.end());
    TrainByLibrary(RealTexts(20'000), Path("other.model"), settings);
    return LoadError("other.model");
  };
  EXPECT_THAT(with({"model_type=unigram"}), HasSubstr("model type other than bpe"));
  EXPECT_THAT(with({"model_type=bpe"}), HasSubstr("byte_fallback is off"));
  EXPECT_THAT(with({"model_type=bpe", "byte_fallback=true"}), HasSubstr("a normalization rule"));
  EXPECT_THAT(with({"model_type=bpe", "byte_fallback=true", "normalization_rule_name=identity"}),
              HasSubstr("remove_extra_whitespaces"));
}

}  // namespace
}  // namespace ela::data
