#include "data/vocabulary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>

#include "data/loader.h"
#include "data/shards/shard_writer.h"
#include "tests/data/support/byte_level.h"
#include "tests/data/support/corpus.h"

namespace ela::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class VocabularyTest : public testing::TempFolder {
 protected:
  VocabularyTest() {
    std::ofstream(folder_ + "/tokenizer.json") << testing::MakeByteLevelFile({"aa ab aa"}, 4).json;
    tokenizer_ = *LoadTokenizer(folder_ + "/tokenizer.json");
    spec_.mutable_tokenizer()->set_path(folder_ + "/tokenizer.json");
    spec_.mutable_model()->set_vocab_size(tokenizer_->vocab_size());
    spec_.mutable_data()->add_train()->set_path(Shards("train", tokenizer_->vocab_size()));
  }

  std::string Shards(const std::string& name, int64_t vocab_size, std::string hash = "") {
    if (hash.empty()) hash = tokenizer_->hash();
    auto writer = ShardWriter::Create({.prefix = folder_ + "/" + name,
                                       .vocab_size = vocab_size,
                                       .tokenizer_hash = hash,
                                       .end_of_document = 1});
    EXPECT_TRUE(writer.ok() && (*writer)->Add({1, 2, 3, 4, 5}, 5).ok() && (*writer)->Seal().ok());
    return folder_ + "/" + name;
  }

  /// What the ranks would say of the shards.
  std::string OfLoader(const std::string& prefix) const {
    LoaderOptions options;
    options.sources = {{prefix, 1}};
    options.seq_len = 2;
    options.vocab_size = spec_.model().vocab_size();
    options.tokenizer_hash = tokenizer_->hash();
    return std::string(Loader::Open(options).status().message());
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  v1::JobSpec spec_;
};

TEST_F(VocabularyTest, OfFilesThatFitThereIsNoProblem) {
  EXPECT_THAT(VocabularyProblems(spec_), IsEmpty());
  spec_.mutable_data()->set_validation(Shards("held_out", 6));
  EXPECT_THAT(VocabularyProblems(spec_), IsEmpty());
}

TEST_F(VocabularyTest, AnotherNumberOfPiecesIsAProblem) {
  spec_.mutable_model()->set_vocab_size(100);
  EXPECT_THAT(VocabularyProblems(spec_),
              ElementsAre(HasSubstr("spec.model.vocab_size is 100, but the tokenizer ")));
}

TEST_F(VocabularyTest, ShardsAreRefusedInTheWordsOfTheLoader) {
  const std::string larger = Shards("larger", 1000), other = Shards("other", 6, "0123456789abcdef");
  spec_.mutable_data()->add_train()->set_path(larger);
  spec_.mutable_data()->set_validation(other);
  EXPECT_THAT(OfLoader(larger), HasSubstr("built with a vocabulary of 1000"));
  EXPECT_THAT(OfLoader(other), HasSubstr("built with tokenizer 0123456789abcdef"));
  EXPECT_THAT(VocabularyProblems(spec_), ElementsAre(OfLoader(larger), OfLoader(other)));
}

TEST_F(VocabularyTest, FilesThatAreNotHereOrDamagedSayNothing) {
  spec_.mutable_tokenizer()->set_path("/nowhere/tokenizer.model");
  spec_.mutable_data()->mutable_train(0)->set_path("/nowhere/train");
  EXPECT_THAT(VocabularyProblems(spec_), IsEmpty());
  std::ofstream(folder_ + "/damaged.json") << "{";
  spec_.mutable_tokenizer()->set_path(folder_ + "/damaged.json");
  spec_.mutable_data()->mutable_train(0)->set_path(folder_ + "/damaged");
  EXPECT_THAT(VocabularyProblems(spec_), IsEmpty());
}

TEST_F(VocabularyTest, APipeIsNotWaitedFor) {
  const std::string pipe = folder_ + "/pipe.json";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(LoadTokenizer(pipe).status().code(), absl::StatusCode::kInvalidArgument);
  spec_.mutable_data()->mutable_train(0)->set_path(folder_ + "/pipe");
  EXPECT_THAT(VocabularyProblems(spec_), IsEmpty());
}

}  // namespace
}  // namespace ela::data
