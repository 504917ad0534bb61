#include <gmock/gmock.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <zstd.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "data/shards/shard_reader.h"
#include "data/tokenizer.h"
#include "tests/data/support/programs.h"
#include "tests/data/support/texts.h"

namespace ela::data {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::Ran;
using testing::ReadBytes;
using testing::WriteBytes;

std::string Compress(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), 0);
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 1));
  return out;
}

std::string JsonLines(const std::vector<std::string>& texts) {
  std::string out;
  for (const std::string& text : texts) {
    const json line = {{"meta", {{"text", "not this one"}}}, {"text", text}};
    out += line.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
  }
  return out;
}

/// A folder `in` with text and a tokenizer `t.model` that fits it.
class BuildTest : public testing::ProgramTest {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(Path("in/sub"));
    const std::vector<std::string> texts = testing::RealTexts(60'000);
    for (size_t i = 0; i < texts.size(); ++i) WriteBytes(Path("in/" + std::to_string(i)), texts[i]);
    WriteBytes(Path("in/sub/long"), texts[4] + texts[5] + texts[6] + texts[7]);
    const absl::Status trained = TrainTokenizer({Path("in")}, 600, Path("t.model"));
    ASSERT_TRUE(trained.ok()) << trained;
  }
  std::vector<std::string> BuildArguments(const std::string& input, const std::string& output,
                                          const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"build",         "--input",  Path(input), "--tokenizer",
                                          Path("t.model"), "--output", Path(output)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  Ran Build(const std::string& input, const std::string& output,
            const std::vector<std::string>& more = {}) {
    return Run("ela-data", BuildArguments(input, output, more));
  }
  void BuildOk(const std::string& input, const std::string& output,
               const std::vector<std::string>& more = {}) {
    const Ran ran = Build(input, output, more);
    ASSERT_EQ(ran.code, 0) << ran.err;
  }
  std::string Shards(const std::string& prefix) {
    return ReadBytes(Path(prefix + ".bin")) + ReadBytes(Path(prefix + ".idx"));
  }
  std::vector<std::string> Documents(const std::string& prefix) {
    const auto tokenizer = LoadTokenizer(Path("t.model"));
    const auto shard = ShardReader::Open(Path(prefix));
    EXPECT_TRUE(shard.ok()) << shard.status();
    std::vector<std::string> texts;
    for (int64_t d = 0; shard.ok() && d < (*shard)->documents(); ++d) {
      const int64_t begin = (*shard)->DocumentBegin(d);
      std::vector<int32_t> ids(static_cast<size_t>((*shard)->DocumentBegin(d + 1) - begin));
      EXPECT_TRUE((*shard)->Read(begin, static_cast<int64_t>(ids.size()), 600, ids.data()).ok());
      EXPECT_EQ(ids.back(), (*tokenizer)->end_of_document());
      texts.push_back((*tokenizer)->Decode(ids));
    }
    return texts;
  }
  void ExpectOneLine(const Ran& ran, int code, const std::string& what) {
    EXPECT_EQ(ran.code, code);
    EXPECT_THAT(ran.err, HasSubstr(what));
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
    EXPECT_EQ(ran.out, "");
  }
};

TEST_F(BuildTest, EveryFileIsADocumentInOrder) {
  BuildOk("in", "out/corpus");  // the folder is made
  const std::vector<std::string> documents = Documents("out/corpus");
  size_t d = 0;
  for (size_t i = 0; std::filesystem::exists(Path("in/" + std::to_string(i))); ++i, ++d) {
    EXPECT_EQ(documents[d], ReadBytes(Path("in/" + std::to_string(i))));
  }
  ASSERT_EQ(documents.size(), d + 1);
  EXPECT_EQ(documents[d], ReadBytes(Path("in/sub/long")));
  EXPECT_EQ(ReadBytes(Path("out/corpus.model")), ReadBytes(Path("t.model")));
  EXPECT_FALSE(std::filesystem::exists(Path("out/corpus.build.json")));
  EXPECT_EQ(Run("ela-data", {"verify", Path("out/corpus")}).code, 0);
}

TEST_F(BuildTest, ThreadsDoNotChangeTheShards) {
  BuildOk("in", "one", {"--threads", "1", "--validation-fraction", "0.1"});
  BuildOk("in", "five", {"--threads", "5", "--validation-fraction", "0.1", "--commit-bytes", "1"});
  for (const std::string part : {".train", ".validation"}) {
    EXPECT_EQ(Shards("one" + part), Shards("five" + part));
  }
}

TEST_F(BuildTest, ValidationIsHeldOutWithItsShareOfTheText) {
  BuildOk("in", "c", {"--validation-fraction", "0.2"});
  size_t bytes[2] = {0, 0};
  for (const std::string& text : Documents("c.train")) bytes[0] += text.size();
  for (const std::string& text : Documents("c.validation")) bytes[1] += text.size();
  const double share = static_cast<double>(bytes[1]) / static_cast<double>(bytes[0] + bytes[1]);
  EXPECT_GE(share, 0.2);
  EXPECT_LT(share, 0.32);  // one document more, of at most 128 KiB
}

TEST_F(BuildTest, ALongFileAloneLeavesSomethingForValidation) {
  BuildOk("in/sub/long", "c", {"--validation-fraction", "0.02"});
  EXPECT_FALSE(Documents("c.validation").empty());
  std::string all;
  const std::vector<std::string> held_out = Documents("c.validation");
  for (const std::string& text : Documents("c.train")) {
    all += text;
    if (all.size() == Documents("c.train")[0].size()) all += held_out[0];
  }
  EXPECT_EQ(all, ReadBytes(Path("in/sub/long")));
}

TEST_F(BuildTest, JsonLinesAndZstdGiveTheSameDocuments) {
  std::vector<std::string> texts = testing::RealTexts(20'000);
  texts.push_back("quotes \" \\ \n\t \x01 Größe 汉字 🙂");
  std::filesystem::create_directories(Path("mixed"));
  WriteBytes(Path("mixed/a.jsonl"), JsonLines(texts));
  BuildOk("mixed/a.jsonl", "plain");
  EXPECT_EQ(Documents("plain"), texts);
  WriteBytes(Path("mixed/b.jsonl.zst"), Compress(JsonLines(texts)));
  BuildOk("mixed/b.jsonl.zst", "packed");
  EXPECT_EQ(Shards("plain"), Shards("packed"));
  const std::string text = ReadBytes(Path("in/sub/long"));
  WriteBytes(Path("mixed/c.txt.zst"), Compress(text.substr(0, 5)) + Compress(text.substr(5)));
  BuildOk("mixed/c.txt.zst", "text");
  EXPECT_EQ(Documents("text"), std::vector<std::string>{text});
}

TEST_F(BuildTest, FilesLongerThanAChunkAreOneDocument) {
  std::string text;
  while (text.size() < 3'500'000) text += ReadBytes(Path("in/sub/long"));
  WriteBytes(Path("long"), text);
  BuildOk("long", "c");
  EXPECT_EQ(Documents("c"), std::vector<std::string>{text});
  const std::string dense(2'500'000, 'x');  // no place to cut but between characters
  WriteBytes(Path("dense"), dense);
  BuildOk("dense", "d");
  EXPECT_EQ(Documents("d"), std::vector<std::string>{dense});
  WriteBytes(Path("long.jsonl"), JsonLines({text, "short", text}));
  BuildOk("long.jsonl", "e");
  EXPECT_EQ(Documents("e"), (std::vector<std::string>{text, "short", text}));
}

TEST_F(BuildTest, WhatIsNotTextIsSkippedWithANotice) {
  WriteBytes(Path("in/binary"), std::string("ELF\0\1\2", 6));
  WriteBytes(Path("in/empty"), "");
  WriteBytes(Path("in/.hidden"), "unseen");
  const Ran ran = Build("in", "c", {"-o", "json"});
  EXPECT_EQ(ran.code, 0);
  EXPECT_THAT(ran.err, HasSubstr("in/binary: skipped, not text"));
  EXPECT_EQ(json::parse(ran.out)["skipped_files"], 1);
  for (const std::string& text : Documents("c")) EXPECT_NE(text, "unseen");
}

TEST_F(BuildTest, BadLinesStopABuildOrAreSkipped) {
  WriteBytes(Path("bad.jsonl"),
             "{\"text\": \"one\"}\n\nnot json\n{\"text\": 3}\n{\"text\": \"two\"}");
  ExpectOneLine(Build("bad.jsonl", "c"), 1, "bad.jsonl:3: not JSON");
  const Ran ran = Build("bad.jsonl", "c", {"--skip-bad-lines", "-o", "json"});
  EXPECT_EQ(ran.code, 0);
  EXPECT_THAT(ran.err, HasSubstr("bad.jsonl:4: no JSON object with a string \"text\"; skipped"));
  EXPECT_EQ(json::parse(ran.out)["skipped_lines"], 2);
  EXPECT_EQ(Documents("c"), (std::vector<std::string>{"one", "two"}));
}

TEST_F(BuildTest, TrainsATokenizerAndKeepsItBesideTheShards) {
  const Ran ran = Run("ela-data", {"build", "--input", Path("in"), "--tokenizer", "train:500",
                                   "--output", Path("c"), "-o", "json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const json out = json::parse(ran.out);
  EXPECT_EQ(out["tokenizer"], Path("c.model"));
  EXPECT_EQ(out["vocab_size"], 500);
  const auto tokenizer = LoadTokenizer(Path("c.model"));
  ASSERT_TRUE(tokenizer.ok());
  const json info = json::parse(Run("ela-data", {"inspect", Path("c"), "-o", "json"}).out);
  EXPECT_EQ(info["tokenizer_hash"], (*tokenizer)->hash());
  EXPECT_EQ(info["tokens"], out["corpora"][0]["tokens"]);
  EXPECT_EQ(Run("ela-data", {"inspect", Path("c"), "--document", "0"}).out,
            ReadBytes(Path("in/0")));
}

// A build whose last input is a pipe has written everything before it and waits.
class InterruptedBuildTest : public BuildTest {
 protected:
  void SetUp() override {
    BuildTest::SetUp();
    ASSERT_EQ(mkfifo(Path("pipe").c_str(), 0600), 0);
  }
  std::vector<std::string> Arguments(const std::string& output) {
    return BuildArguments("in", output,
                          {"--input", Path("pipe"), "--commit-bytes", "1", "--threads", "2",
                           "--validation-fraction", "0.1"});
  }
  void KillOnceAllFilesAreCommitted(const std::string& output) {
    const pid_t pid = testing::StartProgram("ela-data", Arguments(output), Path("o"), Path("e"));
    const auto committed = [&] {
      std::ifstream in(Path(output + ".build.json"));
      const json journal = json::parse(in, nullptr, false);
      return !journal.is_discarded() && journal.value("input", -1) >= files();
    };
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(120);
    while (!committed() && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    ASSERT_TRUE(committed()) << ReadBytes(Path("e"));
    kill(pid, SIGKILL);
    EXPECT_EQ(testing::WaitFor(pid), -1);
  }
  Ran RunFeedingThePipe(const std::vector<std::string>& arguments) {
    std::thread feeder([&] { WriteBytes(Path("pipe"), "the end comes through a pipe\n"); });
    Ran ran = Run("ela-data", arguments);
    feeder.join();
    return ran;
  }
  int files() {
    int count = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(Path("in"))) {
      count += entry.is_regular_file();
    }
    return count;
  }
};

TEST_F(InterruptedBuildTest, GoesOnAfterAKillAndEqualsAnUninterruptedBuild) {
  const Ran whole = RunFeedingThePipe(Arguments("whole"));
  ASSERT_EQ(whole.code, 0) << whole.err;
  KillOnceAllFilesAreCommitted("cut");
  EXPECT_FALSE(std::filesystem::exists(Path("cut.train.idx")));
  std::ofstream(Path("cut.train.bin.partial"), std::ios::app) << "written, but not committed";
  const Ran resumed = RunFeedingThePipe(Arguments("cut"));
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_THAT(resumed.err, HasSubstr("going on with an interrupted build"));
  for (const std::string part : {".train", ".validation"}) {
    EXPECT_EQ(Shards("cut" + part), Shards("whole" + part));
    EXPECT_EQ(ReadBytes(Path("cut" + part + ".json")), ReadBytes(Path("whole" + part + ".json")));
    EXPECT_FALSE(std::filesystem::exists(Path("cut" + part + ".bin.partial")));
    EXPECT_FALSE(std::filesystem::exists(Path("cut" + part + ".lengths.partial")));
  }
}

TEST_F(InterruptedBuildTest, OtherInputsStartAnew) {
  KillOnceAllFilesAreCommitted("cut");
  WriteBytes(Path("in/0"), "changed");
  const Ran resumed = RunFeedingThePipe(Arguments("cut"));
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_THAT(resumed.err, HasSubstr("starting anew"));
  EXPECT_EQ(Documents("cut.train")[0], "changed");
}

TEST_F(InterruptedBuildTest, ASecondBuildOfThePrefixIsRefused) {
  const pid_t pid = testing::StartProgram("ela-data", Arguments("c"), Path("o"), Path("e"));
  const auto begun = [&] { return std::filesystem::exists(Path("c.validation.bin.partial")); };
  while (!begun() && waitpid(pid, nullptr, WNOHANG) == 0) std::this_thread::yield();
  const Ran second = Run("ela-data", Arguments("c"));
  EXPECT_EQ(second.code, 1);
  EXPECT_THAT(second.err, HasSubstr("another build is writing it"));
  kill(pid, SIGKILL);
  testing::WaitFor(pid);
}

TEST_F(BuildTest, AFullDiskIsNamedAndTheBuildGoesOnOnceThereIsRoom) {
  std::string text;
  while (text.size() < 6'000'000) text += ReadBytes(Path("in/sub/long"));
  WriteBytes(Path("large"), text);
  rlimit limit;
  getrlimit(RLIMIT_FSIZE, &limit);
  const rlimit small = {1'500'000, limit.rlim_max};
  signal(SIGXFSZ, SIG_IGN);  // as if the disk were full: write() fails; the child inherits both
  setrlimit(RLIMIT_FSIZE, &small);
  const Ran full = Build("large", "c", {"--commit-bytes", "1"});
  setrlimit(RLIMIT_FSIZE, &limit);
  signal(SIGXFSZ, SIG_DFL);
  EXPECT_EQ(full.code, 1);
  EXPECT_THAT(full.err, HasSubstr("c.bin.partial: cannot write: File too large"));
  const Ran resumed = Build("large", "c");
  EXPECT_THAT(resumed.err, HasSubstr("going on"));
  EXPECT_EQ(Documents("c"), std::vector<std::string>{text});
}

TEST_F(BuildTest, ErrorsAreOneLineWithTheDocumentedExitCode) {
  ExpectOneLine(Build("absent", "c"), 3, "absent: No such file or directory");
  std::filesystem::create_directories(Path("void"));
  ExpectOneLine(Build("void", "c"), 1, "void: no files in there");
  WriteBytes(Path("empty"), "");
  ExpectOneLine(Build("empty", "c"), 1, "empty: no text found");
  const std::vector<std::string> train = {"build",    "--input", Path("in/0"),
                                          "--output", Path("c"), "--tokenizer"};
  auto with = [&](const std::string& tokenizer) {
    std::vector<std::string> arguments = train;
    arguments.push_back(tokenizer);
    return Run("ela-data", arguments);
  };
  ExpectOneLine(with("train:100000"), 1, "too large: the text gives");
  ExpectOneLine(with("train:many"), 2, "train:VOCAB: VOCAB is not a number: many");
  ExpectOneLine(with("train:200"), 2, "a vocabulary of 200: choose more than 258");
  ExpectOneLine(with(Path("gone.model")), 3, "gone.model: no such file");
  ExpectOneLine(Run("ela-data", {"build"}), 2, "--input is required; see ela data build --help");
  ExpectOneLine(Run("ela-data", {"build", "-o", "xml"}), 2, "xml not in {table,json}");
  ExpectOneLine(Run("ela-data", {}), 2, "subcommand is required");
  EXPECT_EQ(Run("ela-data", {"--help"}).code, 0);
  BuildOk("in", "c");
  ExpectOneLine(Build("in", "c"), 1, "c.idx: exists; choose another --output, or pass --replace");
  BuildOk("in", "c", {"--replace"});
}

TEST_F(BuildTest, VerifyNamesDamagedFiles) {
  BuildOk("in", "c");
  const auto damaged = [&](const std::string& name, size_t at) {
    const std::string good = ReadBytes(Path(name));
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 1);
    WriteBytes(Path(name), bad);
    const Ran ran = Run("ela-data", {"verify", Path("c")});
    WriteBytes(Path(name), good);
    EXPECT_EQ(ran.code, 1);
    return ran.err;
  };
  EXPECT_THAT(damaged("c.bin", 1000), HasSubstr("c.bin: bytes 0 to "));
  EXPECT_THAT(damaged("c.idx", 34), HasSubstr("c.idx: sequence 1"));
  EXPECT_THAT(damaged("c.idx", 0), HasSubstr("c.idx: not an index"));
  EXPECT_THAT(damaged("c.model", 100), HasSubstr("c.model: not the tokenizer"));
  std::filesystem::resize_file(Path("c.bin"), 1000);
  EXPECT_THAT(Run("ela-data", {"verify", Path("c")}).err, HasSubstr("c.bin: 1000 bytes"));
  EXPECT_THAT(Run("ela-data", {"inspect", Path("c")}).err, HasSubstr("c.bin: 1000 bytes"));
  EXPECT_EQ(Run("ela-data", {"verify", Path("absent")}).code, 3);
}

TEST_F(BuildTest, DamagedZstdIsNamed) {
  std::string packed = Compress(ReadBytes(Path("in/sub/long")));
  WriteBytes(Path("cut.zst"), packed.substr(0, packed.size() / 2));
  ExpectOneLine(Build("cut.zst", "c"), 1, "cut.zst: damaged zstd file: it is cut off");
  packed[packed.size() / 2] ^= 0x55;
  packed[3] ^= 0x55;
  WriteBytes(Path("bad.zst"), packed);
  ExpectOneLine(Build("bad.zst", "c"), 1, "bad.zst: damaged zstd file");
}

}  // namespace
}  // namespace ela::data
