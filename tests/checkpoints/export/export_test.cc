#include "checkpoints/export/exported_folder.h"
#include "checkpoints/export/safetensors.h"
#include "gmock/gmock.h"
#include "tests/checkpoints/model_testing.h"
#include "tests/checkpoints/test_folder.h"

namespace ela::checkpoints {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class ExportTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::ofstream(tokenizer_) << "pieces";
    ASSERT_EQ(SaveModel(path_, ModelJob(tokenizer_), 1), absl::OkStatus());
  }
  absl::StatusOr<ExportResult> Export(const std::string& path, ExportOptions options) {
    auto reader = OpenCheckpoint(path);
    if (!reader.ok()) return reader.status();
    return ExportStep(reader->get(), options);
  }
  ExportOptions To(const std::string& name) {
    ExportOptions options;
    options.to = folder_.path(name);
    return options;
  }
  /// Every parameter's values.
  std::map<std::string, std::vector<float>> Weights(const std::string& path_at_step) {
    std::map<std::string, std::vector<float>> weights;
    const auto reader = OpenCheckpoint(path_at_step);
    EXPECT_TRUE(reader.ok()) << reader.status();
    for (const v1::TensorRecord& tensor : (*reader)->manifest().tensors()) {
      if (!tensor.name().starts_with("model/")) continue;
      int64_t count = 1;
      for (const int64_t size : tensor.shape()) count *= size;
      std::vector<float>& values = weights[tensor.name()];
      values.resize(static_cast<size_t>(count));
      EXPECT_TRUE((*reader)->Read(tensor.name(), 0, count, values.data()).ok()) << tensor.name();
    }
    return weights;
  }

  TestFolder folder_{FastFolder()};
  const std::string path_ = folder_.path("checkpoints");
  const std::string tokenizer_ = folder_.path("demo.model");
};

TEST_F(ExportTest, AnExportedModelReadsLikeTheStep) {
  const auto result = Export(path_, To("out"));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(*kv::ListDirectory(folder_.path("out")),
              ElementsAre("README.md", "config.json", "model.safetensors", "modeling_ela.py",
                          "tokenizer.model"));
  EXPECT_EQ(*kv::ReadFile(folder_.path("out/tokenizer.model")), "pieces");
  EXPECT_EQ(Weights(folder_.path("out")), Weights(path_));
  const auto reader = *OpenCheckpoint(folder_.path("out"));
  EXPECT_EQ(reader->manifest().step(), 100);
  EXPECT_EQ(reader->manifest().state().tokens(), 12345);
  const auto job = JobOf(reader->manifest());
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job::ModelToJson(job->spec().model()), job::ModelToJson(ModelJob().spec().model()));
  EXPECT_EQ(job->spec().tokenizer().path(), folder_.path("out/tokenizer.model"));
}

TEST_F(ExportTest, ALargeModelIsCutIntoParts) {
  ExportOptions options = To("out");
  options.part_bytes = 4096;
  ASSERT_TRUE(Export(path_, options).ok());
  const std::string out = folder_.path("out");
  EXPECT_FALSE(kv::Exists(out + "/model.safetensors"));
  EXPECT_TRUE(kv::Exists(out + "/model.safetensors.index.json"));
  const std::vector<std::string> parts = FilesEndingWith(out, ".safetensors");
  EXPECT_GT(parts.size(), 3u);
  for (const std::string& part : parts) {
    const auto file = SafetensorsFile::Open(part);
    ASSERT_TRUE(file.ok()) << file.status();
    const auto& tensors = (*file)->tensors();
    EXPECT_TRUE(tensors.size() == 1 || tensors.back().end <= 4096) << part;
  }
  EXPECT_EQ(Weights(out), Weights(path_));

  FlipBit(parts.back(), FileBytes(parts.back()) - 1);
  float value;
  EXPECT_TRUE(
      absl::IsDataLoss((*OpenCheckpoint(out))->Read("model/final_norm.weight", 0, 1, &value)));
  EXPECT_TRUE(absl::IsDataLoss(ImportStep({out, "", folder_.path("in")}).status()));
  std::filesystem::remove(parts.back());
  EXPECT_THAT(std::string(OpenCheckpoint(out).status().message()), HasSubstr(parts.back()));
}

TEST_F(ExportTest, AnIndexStaysWithinItsFolder) {
  ASSERT_TRUE(Export(path_, To("out")).ok());
  const std::string out = folder_.path("out");
  std::filesystem::rename(out + "/model.safetensors", folder_.path("model.safetensors"));
  for (const char* index : {"", "{}", R"({"weight_map":{}})", R"({"weight_map":{"a":1}})",
                            R"({"weight_map":{"embed.weight":"../model.safetensors"}})",
                            R"({"weight_map":{"embed.weight":".."}})"}) {
    std::ofstream(out + "/model.safetensors.index.json") << index;
    EXPECT_TRUE(absl::IsInvalidArgument(OpenCheckpoint(out).status())) << index;
  }
}

TEST_F(ExportTest, TheReadmeTellsOfAnotherTokensLook) {
  v1::TrainingJob leaky = ModelJob(tokenizer_);
  v1::MemoryLobeSpec* lobe = leaky.mutable_spec()->mutable_model()->mutable_memory_lobe();
  lobe->set_mode(v1::LOBE_MODE_BIDIRECTIONAL);
  ASSERT_EQ(SaveModel(folder_.path("leaky"), leaky, 1), absl::OkStatus());
  ASSERT_TRUE(Export(folder_.path("leaky"), To("out")).ok());
  EXPECT_THAT(
      *kv::ReadFile(folder_.path("out/README.md")),
      AllOf(HasSubstr("looks at tokens that it predicts"), HasSubstr("12,345 tokens"),
            HasSubstr("| memory_lobe.mode | bidirectional |"), Not(HasSubstr("model generate"))));
  ASSERT_TRUE(Export(path_, To("sound")).ok());
  EXPECT_THAT(*kv::ReadFile(folder_.path("sound/README.md")),
              AllOf(Not(HasSubstr("looks at tokens")), HasSubstr("model generate")));
}

TEST_F(ExportTest, AnImportedModelIsTheExportedOne) {
  ASSERT_TRUE(Export(path_, To("out")).ok());
  const auto imported = ImportStep({folder_.path("out"), "", folder_.path("in")});
  ASSERT_TRUE(imported.ok()) << imported.status();
  EXPECT_EQ(imported->step(), 100);
  EXPECT_EQ(Weights(folder_.path("in")), Weights(path_));
  float value;
  EXPECT_TRUE(absl::IsNotFound(
      (*OpenCheckpoint(folder_.path("in")))->Read("adam_m/embed.weight", 0, 1, &value)));
  EXPECT_TRUE(absl::IsFailedPrecondition(
      ImportStep({folder_.path("out"), "", folder_.path("in")}).status()));
}

TEST_F(ExportTest, Bf16IsRoundedToNearestEven) {
  ExportOptions options = To("out");
  options.bf16 = true;
  ASSERT_TRUE(Export(path_, options).ok());
  const auto exact = Weights(path_), rounded = Weights(folder_.path("out"));
  for (const auto& [name, values] : exact) {
    for (size_t i = 0; i < values.size(); ++i) {
      EXPECT_NEAR(rounded.at(name)[i], values[i], std::fabs(values[i]) * 0x1p-8f) << name;
    }
  }
}

TEST_F(ExportTest, ALobeMovesToAnotherModelOfTheSameWidth) {
  const std::string other = folder_.path("other");
  ASSERT_EQ(SaveModel(other, ModelJob(), 1000, 7), absl::OkStatus());
  ExportOptions options = To("lobe");
  options.lobe_only = true;
  const auto result = Export(path_, options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->parameters, 2 * (16 + 3 * 16 * 16));
  const auto merged = ImportStep({other, folder_.path("lobe"), folder_.path("merged")});
  ASSERT_TRUE(merged.ok()) << merged.status();
  EXPECT_EQ(merged->step(), 7);
  const auto base = Weights(other), lobe = Weights(path_);
  int moved = 0;
  for (const auto& [name, values] : Weights(folder_.path("merged"))) {
    const bool of_lobe = IsLobeParameter(name);
    EXPECT_EQ(values, of_lobe ? lobe.at(name) : base.at(name)) << name;
    moved += of_lobe ? 1 : 0;
  }
  EXPECT_EQ(moved, 8);
}

TEST_F(ExportTest, ALobeCanBeAddedToAModelWithoutOne) {
  v1::TrainingJob plain = ModelJob();
  plain.mutable_spec()->mutable_model()->mutable_memory_lobe()->set_enabled(false);
  ASSERT_EQ(SaveModel(folder_.path("plain"), plain, 5), absl::OkStatus());
  ExportOptions no_lobe = To("none");
  no_lobe.lobe_only = true;
  EXPECT_TRUE(absl::IsNotFound(Export(folder_.path("plain"), no_lobe).status()));
  const auto merged = ImportStep({folder_.path("plain"), path_, folder_.path("merged")});
  ASSERT_TRUE(merged.ok()) << merged.status();
  EXPECT_TRUE(JobOf(*merged)->spec().model().memory_lobe().enabled());
  EXPECT_EQ(Weights(folder_.path("merged")).size(), Weights(path_).size());
}

TEST_F(ExportTest, ALobeOfAnotherWidthIsRefused) {
  ASSERT_EQ(SaveModel(folder_.path("wide"), ModelJob("", 32), 5), absl::OkStatus());
  const auto merged = ImportStep({folder_.path("wide"), path_, folder_.path("merged")});
  EXPECT_TRUE(absl::IsFailedPrecondition(merged.status()));
  EXPECT_THAT(std::string(merged.status().message()),
              AllOf(HasSubstr("width 16"), HasSubstr("width 32")));
  EXPECT_FALSE(kv::Exists(folder_.path("merged")));
}

TEST_F(ExportTest, RefusesAFolderWithContent) {
  std::filesystem::create_directory(folder_.path("full"));
  std::ofstream(folder_.path("full/notes")) << "mine";
  EXPECT_TRUE(absl::IsAlreadyExists(Export(path_, To("full")).status()));
  EXPECT_TRUE(kv::Exists(folder_.path("full/notes")));
  std::filesystem::create_directory(folder_.path("empty"));
  EXPECT_TRUE(Export(path_, To("empty/")).ok());
  EXPECT_TRUE(kv::Exists(folder_.path("empty/config.json")));
}

TEST_F(ExportTest, AMissingTokenizerLeavesNothingBehind) {
  std::filesystem::remove(tokenizer_);
  const auto result = Export(path_, To("out"));
  EXPECT_TRUE(absl::IsNotFound(result.status()));
  EXPECT_THAT(std::string(result.status().message()),
              AllOf(HasSubstr(tokenizer_), HasSubstr("--without-tokenizer")));
  EXPECT_FALSE(kv::Exists(folder_.path("out")));
  ExportOptions without = To("out");
  without.tokenizer = false;
  EXPECT_TRUE(Export(path_, without).ok());
}

TEST_F(ExportTest, DamageIsNotExported) {
  const std::string table = FilesEndingWith(path_ + "/steps/000000000100.1/w00002", ".sst").front();
  FlipBit(table, 700);
  ExportOptions options = To("out");
  EXPECT_TRUE(absl::IsDataLoss(Export(path_, options).status()));
  EXPECT_FALSE(kv::Exists(options.to));
}

TEST_F(ExportTest, SaysWhatIsWrongWithAFolder) {
  ASSERT_TRUE(Export(path_, To("out")).ok());
  const std::string config = folder_.path("out/config.json");
  const std::string text = *kv::ReadFile(config);
  const auto opened = [&] { return OpenCheckpoint(folder_.path("out")).status(); };

  v1::ModelSpec wide = ModelJob("", 32).spec().model();
  ASSERT_TRUE(kv::WriteFileDurably(config, job::ModelToJson(wide)).ok());
  EXPECT_THAT(std::string(opened().message()),
              AllOf(HasSubstr("embed.weight"), HasSubstr("config.json asks for [50, 32]")));
  ASSERT_TRUE(kv::WriteFileDurably(config, "{}x").ok());
  EXPECT_FALSE(opened().ok());
  std::filesystem::remove(config);
  EXPECT_TRUE(absl::IsNotFound(opened()));
  ASSERT_TRUE(kv::WriteFileDurably(config, text).ok());
  EXPECT_TRUE(opened().ok());
  EXPECT_TRUE(absl::IsInvalidArgument(OpenCheckpoint(folder_.path("out") + "@5").status()));
}

TEST_F(ExportTest, RefusesWeightsThatAreIntegers) {
  ASSERT_TRUE(Export(path_, To("out")).ok());
  const std::string weights = folder_.path("out/model.safetensors");
  std::string bytes = *kv::ReadFile(weights);
  bytes.replace(bytes.find("\"F32\""), 5, "\"I32\"");  // of the first tensor
  ASSERT_TRUE(kv::WriteFileDurably(weights, bytes).ok());
  const absl::Status opened = OpenCheckpoint(folder_.path("out")).status();
  EXPECT_TRUE(absl::IsInvalidArgument(opened)) << opened;
  EXPECT_THAT(std::string(opened.message()),
              AllOf(HasSubstr("tensor "), HasSubstr("model.safetensors is I32, not a floating")));
}

}  // namespace
}  // namespace ela::checkpoints
