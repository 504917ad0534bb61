#include <gmock/gmock.h>

#include "data/shards/shard_reader.h"
#include "tests/data/support/corpus.h"

namespace ela::data {
namespace {

using testing::CountingDocuments;
using testing::Documents;
using ::testing::HasSubstr;
using testing::ReadBytes;
using testing::WriteBytes;
using testing::WriteCorpus;

class ShardsTest : public testing::TempFolder {
 protected:
  // Opens "corpus" after writing `value` over its .idx at `offset`; returns the error.
  template <typename T>
  std::string ErrorAfterPatch(int64_t offset, T value) {
    WriteCorpus(Path("bad"), CountingDocuments({3, 0, 4}), 1000);
    std::string idx = ReadBytes(Path("bad.idx"));
    std::memcpy(idx.data() + offset, &value, sizeof(T));
    WriteBytes(Path("bad.idx"), idx);
    std::string error = OpenError("bad");
    for (const char* suffix : {".idx", ".bin", ".json"})
      std::filesystem::remove(Path("bad") + suffix);
    return error;
  }
  std::string OpenError(const std::string& name) {
    auto shard = ShardReader::Open(Path(name));
    EXPECT_FALSE(shard.ok());
    EXPECT_EQ(std::string(shard.status().message()).find('\n'), std::string::npos);
    return std::string(shard.status().message());
  }
};

TEST_F(ShardsTest, RoundTripsBothElementTypes) {
  for (const int64_t vocab_size : {int64_t{65499}, int64_t{65500}}) {
    const std::string prefix = Path("corpus" + std::to_string(vocab_size));
    const auto last = static_cast<int32_t>(vocab_size - 1);
    WriteCorpus(prefix, {{1, 2, last}, {}, {4}}, vocab_size, "cafe");
    auto shard = ShardReader::Open(prefix);
    ASSERT_TRUE(shard.ok()) << shard.status();
    EXPECT_EQ((*shard)->type(), vocab_size < 65500 ? TokenType::kU16 : TokenType::kI32);
    EXPECT_EQ((*shard)->tokens(), 4);
    EXPECT_EQ((*shard)->documents(), 3);
    std::vector<int32_t> ids(4);
    ASSERT_TRUE((*shard)->Read(0, 4, vocab_size, ids.data()).ok());
    EXPECT_EQ(ids, (std::vector<int32_t>{1, 2, last, 4}));
    EXPECT_EQ((*shard)->sidecar()->tokenizer_hash, "cafe");
    EXPECT_EQ((*shard)->sidecar()->vocab_size, vocab_size);
  }
}

TEST_F(ShardsTest, BytesAreMegatrons) {
  WriteCorpus(Path("corpus"), {{258, 3}, {4}}, 1000);
  EXPECT_EQ(ReadBytes(Path("corpus.bin")), std::string("\x02\x01\x03\x00\x04\x00", 6));
  const std::string idx = ReadBytes(Path("corpus.idx"));
  const std::string expected(
      "MMIDIDX\0\0"       // magic
      "\1\0\0\0\0\0\0\0"  // version
      "\x08"              // u16
      "\2\0\0\0\0\0\0\0"
      "\3\0\0\0\0\0\0\0"  // counts
      "\2\0\0\0"
      "\1\0\0\0"  // lengths
      "\0\0\0\0\0\0\0\0"
      "\4\0\0\0\0\0\0\0"  // pointers
      "\0\0\0\0\0\0\0\0"
      "\1\0\0\0\0\0\0\0"
      "\2\0\0\0\0\0\0\0",
      9 + 8 + 1 + 16 + 8 + 16 + 24);
  EXPECT_EQ(idx, expected);
}

TEST_F(ShardsTest, ReadsDocumentsOfSeveralSequences) {
  WriteCorpus(Path("corpus"), CountingDocuments({2, 3, 4}), 1000);
  std::filesystem::remove(Path("corpus.json"));
  std::string idx = ReadBytes(Path("corpus.idx"));
  idx.replace(kIndexHeaderBytes + 3 * 12, std::string::npos,
              std::string("\0\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0", 24));
  idx[18 + 8] = 3;  // entries: 0, 2, 3
  WriteBytes(Path("corpus.idx"), idx);
  auto shard = ShardReader::Open(Path("corpus"));
  ASSERT_TRUE(shard.ok()) << shard.status();
  EXPECT_EQ((*shard)->documents(), 2);
  EXPECT_EQ((*shard)->DocumentBegin(1), 5);
  EXPECT_EQ((*shard)->FirstDocumentAfter(0), 1);
  EXPECT_EQ((*shard)->FirstDocumentAfter(5), 2);
}

TEST_F(ShardsTest, EveryDamagedFieldOfTheIndexIsNamed) {
  EXPECT_THAT(ErrorAfterPatch(0, 'X'), HasSubstr("bad.idx: not an index"));
  EXPECT_THAT(ErrorAfterPatch<uint64_t>(9, 2), HasSubstr("bad.idx: version 2"));
  EXPECT_THAT(ErrorAfterPatch<uint8_t>(17, 7), HasSubstr("element type 7 (f32)"));
  EXPECT_THAT(ErrorAfterPatch<uint8_t>(17, 77), HasSubstr("element type 77"));
  EXPECT_THAT(ErrorAfterPatch<uint64_t>(18, UINT64_MAX / 12 + 2), HasSubstr("do not hold"));
  EXPECT_THAT(ErrorAfterPatch<uint64_t>(18, 2), HasSubstr("do not hold"));
  EXPECT_THAT(ErrorAfterPatch<uint64_t>(26, 5), HasSubstr("do not hold"));
  EXPECT_THAT(ErrorAfterPatch<int32_t>(34, -1), HasSubstr("sequence 0: negative length -1"));
  EXPECT_THAT(ErrorAfterPatch<int32_t>(38, 1), HasSubstr("sequence 2: pointer 6, expected 8"));
  EXPECT_THAT(ErrorAfterPatch<int32_t>(42, 5),
              HasSubstr("bad.bin: 14 bytes, but the index ends at 16"));
  EXPECT_THAT(ErrorAfterPatch<int64_t>(46, 2), HasSubstr("sequence 0: pointer 2, expected 0"));
  EXPECT_THAT(ErrorAfterPatch<int64_t>(62, INT64_MAX), HasSubstr("out of range"));
  EXPECT_THAT(ErrorAfterPatch<int64_t>(70, 1), HasSubstr("document entries must go from 0"));
  EXPECT_THAT(ErrorAfterPatch<int64_t>(78, 3), HasSubstr("document entry 2"));
  EXPECT_THAT(ErrorAfterPatch<int64_t>(94, 2), HasSubstr("document entries must go from 0"));
}

TEST_F(ShardsTest, TruncationAtEveryLengthIsAnError) {
  WriteCorpus(Path("corpus"), CountingDocuments({3, 4}), 1000);
  const std::string idx = ReadBytes(Path("corpus.idx"));
  for (size_t size = 0; size < idx.size(); ++size) {
    WriteBytes(Path("corpus.idx"), idx.substr(0, size));
    EXPECT_THAT(OpenError("corpus"), HasSubstr("corpus.idx: truncated"));
  }
  WriteBytes(Path("corpus.idx"), idx);
  WriteBytes(Path("corpus.bin"), "abc");
  EXPECT_THAT(OpenError("corpus"), HasSubstr("truncated?"));
}

TEST_F(ShardsTest, SidecarMustFitItsShards) {
  WriteCorpus(Path("corpus"), CountingDocuments({3, 4}), 1000);
  const std::string json = ReadBytes(Path("corpus.json"));
  WriteBytes(Path("corpus.json"), "{");
  EXPECT_THAT(OpenError("corpus"), HasSubstr("corpus.json: damaged sidecar"));
  std::string other = json;
  other.replace(other.find("\"tokens\": 7"), 11, "\"tokens\": 8");
  WriteBytes(Path("corpus.json"), other);
  EXPECT_THAT(OpenError("corpus"), HasSubstr("says 8 tokens"));
  std::filesystem::remove(Path("corpus.json"));
  EXPECT_TRUE(ShardReader::Open(Path("corpus")).ok());
}

TEST_F(ShardsTest, MissingFilesAreNamedWithTheRemedy) {
  auto shard = ShardReader::Open(Path("absent"));
  EXPECT_TRUE(absl::IsNotFound(shard.status()));
  EXPECT_THAT(OpenError("absent"), HasSubstr("ela-data build --output"));
  WriteCorpus(Path("corpus"), CountingDocuments({3}));
  std::filesystem::remove(Path("corpus.bin"));
  EXPECT_THAT(OpenError("corpus"), HasSubstr("corpus.bin: no such file"));
}

TEST_F(ShardsTest, NothingIsVisibleBeforeSealAndNothingStaysWithoutIt) {
  auto writer = ShardWriter::Create({Path("corpus"), 10, "", 0});
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE((*writer)->Add({1, 2}, 2).ok());
  EXPECT_FALSE(std::filesystem::exists(Path("corpus.bin")));
  writer->reset();
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

TEST_F(ShardsTest, ASealedCorpusIsReplacedOnlyOnRequest) {
  WriteCorpus(Path("corpus"), CountingDocuments({3}));
  ShardWriterOptions options{Path("corpus"), 10, "", 0};
  EXPECT_TRUE(absl::IsAlreadyExists(ShardWriter::Create(options).status()));
  options.replace = true;
  auto writer = ShardWriter::Create(options);
  ASSERT_TRUE(writer.ok() && (*writer)->Add({1, 2}, 2).ok() && (*writer)->Seal().ok());
  EXPECT_EQ((*ShardReader::Open(Path("corpus")))->tokens(), 2);
}

TEST_F(ShardsTest, WriterRefusesIdsOutsideTheVocabularyAndMissingFolders) {
  auto writer = ShardWriter::Create({Path("corpus"), 10, "", 0});
  EXPECT_FALSE((*writer)->Add({10}, 1).ok());
  EXPECT_FALSE((*writer)->Add({-1}, 1).ok());
  EXPECT_TRUE(absl::IsNotFound(ShardWriter::Create({Path("no/corpus"), 10, "", 0}).status()));
}

}  // namespace
}  // namespace ela::data
