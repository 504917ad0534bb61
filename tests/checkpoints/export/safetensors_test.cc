#include "checkpoints/export/safetensors.h"

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <random>

#include "gmock/gmock.h"
#include "tests/checkpoints/test_folder.h"

namespace ela::checkpoints {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class SafetensorsTest : public ::testing::Test {
 protected:
  const std::string& Write(const std::vector<SafetensorsEntry>& entries, const std::string& data) {
    auto writer = SafetensorsWriter::Create(path_, entries, {{"format", "pt"}});
    EXPECT_TRUE(writer.ok()) << writer.status();
    EXPECT_TRUE((*writer)->Append(data.data(), static_cast<int64_t>(data.size())).ok());
    const absl::Status finished = (*writer)->Finish();
    EXPECT_TRUE(finished.ok()) << finished;
    return path_;
  }
  /// A file with any header.
  void WriteRaw(const std::string& header, const std::string& data) {
    const uint64_t length = header.size();
    std::ofstream file(path_, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&length), 8);
    file << header << data;
  }
  absl::Status Open() { return SafetensorsFile::Open(path_).status(); }

  TestFolder folder_{FastFolder()};
  const std::string path_ = folder_.path("model.safetensors");
};

std::string Bytes(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

TEST_F(SafetensorsTest, ReadsBackWhatItWrote) {
  const std::vector<float> values = {1, 2, 3, 4, 5, 6, 7};
  Write({{"b.weight", "F32", {2, 3}}, {"a \"quoted\" name", "F32", {}}, {"none", "F32", {0, 5}}},
        Bytes(values));
  const auto file = *SafetensorsFile::Open(path_);
  EXPECT_EQ(file->metadata().at("format"), "pt");
  ASSERT_EQ(file->tensors().size(), 3u);
  EXPECT_THAT(file->Find("b.weight")->shape, ElementsAre(2, 3));
  std::vector<float> read(4);
  ASSERT_TRUE(file->Read("b.weight", 1, 5, read.data()).ok());
  EXPECT_THAT(read, ElementsAre(2, 3, 4, 5));
  ASSERT_TRUE(file->Read("a \"quoted\" name", 0, 1, read.data()).ok());
  EXPECT_EQ(read[0], 7);
  EXPECT_TRUE(file->Read("none", 0, 0, nullptr).ok());
  EXPECT_TRUE(absl::IsNotFound(file->Read("c", 0, 0, nullptr)));
  EXPECT_TRUE(absl::IsInvalidArgument(file->Read("b.weight", 0, 7, read.data())));
  EXPECT_TRUE(file->CheckHash().ok());
}

TEST_F(SafetensorsTest, TheDataIsAligned) {
  for (const char* name : {"a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg"}) {
    Write({{name, "F32", {1}}}, Bytes({1}));
    EXPECT_EQ((FileBytes(path_) - 4) % 8, 0) << name;
  }
}

TEST_F(SafetensorsTest, ConvertsOtherFloats) {
  const std::vector<uint16_t> half = {0x3c00, 0xc000, 0x0001, 0x7c00, 0x83ff, 0x7bff, 0x8000};
  const std::vector<uint16_t> brain = {0x3f80, 0xc000, 0x7f80};
  const std::vector<double> wide = {0.1, -1e300};
  std::string data(reinterpret_cast<const char*>(wide.data()), 16);
  data.append(reinterpret_cast<const char*>(half.data()), 14);
  data.append(reinterpret_cast<const char*>(brain.data()), 6);
  Write({{"wide", "F64", {2}}, {"half", "F16", {7}}, {"brain", "BF16", {3}}}, data);
  const auto file = *SafetensorsFile::Open(path_);
  std::vector<float> read(7);
  const float infinity = std::numeric_limits<float>::infinity();
  ASSERT_TRUE(file->Read("half", 0, 7, read.data()).ok());
  EXPECT_THAT(read, ElementsAre(1, -2, 0x1p-24f, infinity, -1023 * 0x1p-24f, 65504, -0.0f));
  EXPECT_TRUE(std::signbit(read[6]));
  ASSERT_TRUE(file->Read("brain", 0, 3, read.data()).ok());
  EXPECT_THAT(std::vector<float>(read.begin(), read.begin() + 3), ElementsAre(1, -2, infinity));
  ASSERT_TRUE(file->Read("wide", 0, 2, read.data()).ok());
  EXPECT_EQ(read[0], 0.1f);
}

TEST_F(SafetensorsTest, IntegersAreListedAndNotReadAsFloats) {
  Write({{"ids", "I64", {1}}}, std::string(8, '\1'));
  float value;
  EXPECT_THAT(std::string((*SafetensorsFile::Open(path_))->Read("ids", 0, 1, &value).message()),
              HasSubstr("I64, not a floating type"));
}

TEST_F(SafetensorsTest, AFlippedBitInTheDataIsFound) {
  Write({{"a", "F32", {100}}}, Bytes(std::vector<float>(100, 0.5f)));
  for (const int64_t back : {1, 100, 400}) {
    FlipBit(path_, FileBytes(path_) - back);
    EXPECT_TRUE(absl::IsDataLoss((*SafetensorsFile::Open(path_))->CheckHash()));
    FlipBit(path_, FileBytes(path_) - back);
  }
  EXPECT_TRUE((*SafetensorsFile::Open(path_))->CheckHash().ok());
}

TEST_F(SafetensorsTest, AnUnfinishedFileIsNotThere) {
  {
    auto writer = *SafetensorsWriter::Create(path_, {{"a", "F32", {2}}}, {});
    const float one = 1;
    EXPECT_TRUE(writer->Append(&one, 4).ok());
    EXPECT_TRUE(absl::IsFailedPrecondition(writer->Finish()));
    const std::vector<float> many(2);
    EXPECT_TRUE(absl::IsFailedPrecondition(writer->Append(many.data(), 8)));
  }
  EXPECT_TRUE(kv::ListDirectory(folder_.path())->empty());
  EXPECT_TRUE(absl::IsNotFound(Open()));
}

TEST_F(SafetensorsTest, SaysWhatIsWrongWithAHeader) {
  const std::pair<std::string, std::string> kCases[] = {
      {"[]", "no JSON object"},
      {"{\"a\":", "no JSON object"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}})", "repeated keys"},
      {R"({"a":{"dtype":"F32","shape":[1]}})", "exactly dtype, shape and data_offsets"},
      {R"({"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}})", "unknown dtype F99"},
      {R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", "impossible shape"},
      {R"({"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}})", "impossible shape"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}})",
       "impossible shape"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", "its shape takes 8"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", "impossible data_offsets"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})", "instead of 0"},
      {R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})", "its tensors take 0"},
      {R"({"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}})", "its tensors take 36"},
      {R"({"__metadata__":{"n":1}})", "more than strings"},
  };
  for (const auto& [header, why] : kCases) {
    WriteRaw(header, "1234");
    const absl::Status status = Open();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << header;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path_), HasSubstr(why))) << header;
  }
  WriteRaw(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}  )", "1234");
  EXPECT_TRUE(Open().ok());
}

TEST_F(SafetensorsTest, RefusesAHeaderThatDoesNotFit) {
  for (const uint64_t length : {uint64_t{100}, uint64_t{1} << 40, ~uint64_t{0}}) {
    std::ofstream file(path_, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&length), 8);
    file << "{}";
    file.close();
    EXPECT_THAT(std::string(Open().message()), HasSubstr("does not fit"));
  }
  std::ofstream(path_) << "short";
  EXPECT_THAT(std::string(Open().message()), HasSubstr("too short"));
  EXPECT_FALSE(SafetensorsFile::Open(folder_.path()).ok()) << "a folder";
}

TEST_F(SafetensorsTest, RefusesDeepNesting) {
  const std::string deep(1 << 20, '[');
  WriteRaw("{\"a\":" + deep, "");
  EXPECT_TRUE(absl::IsInvalidArgument(Open()));
}

// Damaged headers either read as headers that add up, or are refused; nothing crashes.
TEST_F(SafetensorsTest, NoDamagedHeaderGetsThrough) {
  const std::string good =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
      R"("b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}})";
  ASSERT_TRUE(ParseSafetensorsHeader(good, 32, "f").ok());
  std::mt19937 random(1);
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string bad = good;
    for (uint32_t edits = 1 + random() % 4; edits > 0; --edits) {
      const size_t at = random() % bad.size();
      switch (random() % 4) {
        case 0:
          bad[at] = static_cast<char>(random());
          break;
        case 1:
          bad.erase(at, 1 + random() % 5);
          break;
        case 2:
          bad.insert(at, bad.substr(random() % bad.size(), 1 + random() % 9));
          break;
        default:
          bad[at] = "0123456789{}[]\",:-e."[random() % 20];
          break;
      }
    }
    const auto parsed = ParseSafetensorsHeader(bad, 32, "f");
    if (!parsed.ok()) {
      ++refused;
      EXPECT_TRUE(absl::IsInvalidArgument(parsed.status()));
      continue;
    }
    int64_t at = 0;
    for (const SafetensorsEntry& entry : parsed->tensors) {
      ASSERT_EQ(entry.begin, at);
      ASSERT_EQ(entry.numel() * SafetensorsElementBytes(entry.dtype), entry.end - entry.begin);
      at = entry.end;
    }
    ASSERT_EQ(at, 32);
  }
  EXPECT_GT(refused, 10000);
}

}  // namespace
}  // namespace ela::checkpoints
