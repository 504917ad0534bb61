// The real program: what it prints where, and how it exits.
#include <sys/wait.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "gmock/gmock.h"
#include "tests/checkpoints/model_testing.h"
#include "tests/checkpoints/test_folder.h"

namespace ela::checkpoints {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

class ProgramTest : public ::testing::Test {
 protected:
  struct Result {
    int code;
    std::string out, err;
  };
  static std::string Run(const std::string& command, int* code) {
    FILE* pipe = ::popen(command.c_str(), "r");
    std::string out;
    char buffer[4096];
    for (size_t got; (got = ::fread(buffer, 1, sizeof(buffer), pipe)) > 0;) {
      out.append(buffer, got);
    }
    const int status = ::pclose(pipe);
    *code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return out;
  }
  Result Program(const std::string& arguments) {
    Result result;
    const std::string err = folder_.path("stderr");
    // Times are local ones: those of a place five hours behind.
    result.out =
        Run(std::string("TZ=EST5 ") + ELA_CHECKPOINT_PROGRAM + " " + arguments + " 2>" + err,
            &result.code);
    result.err = *kv::ReadFile(err);
    return result;
  }
  void SetUp() override {
    for (const int64_t step : {100, 200}) {
      ASSERT_EQ(SaveModel(path_, ModelJob(), static_cast<uint32_t>(step), step), absl::OkStatus());
    }
  }
  std::string Table() { return FilesEndingWith(path_ + "/steps/000000000200.2", ".sst").front(); }

  TestFolder folder_{FastFolder()};
  const std::string path_ = folder_.path("checkpoints");
};

TEST_F(ProgramTest, ListsSteps) {
  const Result table = Program("list " + path_);
  EXPECT_EQ(table.code, 0);
  EXPECT_THAT(table.out,
              AllOf(HasSubstr("STEP"), HasSubstr("2025-11-24 22:12:32"), HasSubstr("12,345")));
  EXPECT_EQ(table.err, "");
  const json list = json::parse(Program("list -o json " + folder_.path()).out);
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[1]["step"], 200);
  EXPECT_EQ(list[1]["attempt"], 2);
}

TEST_F(ProgramTest, DescribesAStep) {
  const Result text = Program("describe " + path_ + "@100");
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_THAT(text.out, AllOf(HasSubstr("100 of attempt 1"), HasSubstr("Memory Lobe"),
                              HasSubstr("model/layers.1.moe.experts.1.up.weight")));
  const json described = json::parse(Program("describe -o json " + path_).out);
  EXPECT_EQ(described["step"], 200);
  EXPECT_EQ(described["job_file"]["spec"]["model"]["hidden_size"], 16);
}

TEST_F(ProgramTest, VerifiesAndOffersThePreviousStep) {
  EXPECT_EQ(Program("verify --all " + path_).code, 0);
  FlipBit(Table(), 700);
  const Result damaged = Program("verify " + path_);
  EXPECT_EQ(damaged.code, 1);
  EXPECT_THAT(damaged.out,
              AllOf(HasSubstr("DAMAGED"), HasSubstr("elements ["), HasSubstr(Table())));
  EXPECT_THAT(damaged.err, HasSubstr(path_ + "@100"));
  EXPECT_EQ(Program("verify " + path_ + "@100").code, 0);
  const json all = json::parse(Program("verify --all -o json " + path_).out);
  EXPECT_EQ(all[0]["whole"], true);
  EXPECT_EQ(all[1]["whole"], false);
}

TEST_F(ProgramTest, ComparesSteps) {
  EXPECT_EQ(Program("diff " + path_ + " " + path_ + "@200").code, 0);
  const Result differ = Program("diff -o json " + path_ + "@100 " + path_ + "@200");
  EXPECT_EQ(differ.code, 1);
  EXPECT_EQ(json::parse(differ.out).size(), ModelOf(ModelJob(), 1).tensors().size());
}

TEST_F(ProgramTest, ExportsAndImports) {
  const std::string out = folder_.path("out"), in = folder_.path("in");
  const Result exported = Program("export " + path_ + "@100 --to " + out);
  EXPECT_EQ(exported.code, 0) << exported.err;
  EXPECT_EQ(exported.out, out + "\n");
  const Result imported = Program("import " + out + " --to " + in);
  EXPECT_EQ(imported.code, 0) << imported.err;
  EXPECT_EQ(imported.out, in + "@100\n");
  EXPECT_EQ(Program("diff " + in + " " + out).code, 0);
  EXPECT_EQ(Program("verify " + out).code, 0);
  const json differences = json::parse(Program("diff -o json " + path_ + "@100 " + in).out);
  for (const json& difference : differences)
    EXPECT_EQ(difference["difference"], "only in the first");
}

TEST_F(ProgramTest, CarriesALobe) {
  const std::string lobe = folder_.path("lobe"), merged = folder_.path("merged");
  EXPECT_EQ(Program("export " + path_ + "@100 --only memory_lobe --to " + lobe).code, 0);
  const Result import = Program("import " + path_ + " --lobe " + lobe + " --to " + merged);
  EXPECT_EQ(import.code, 0) << import.err;
  const json differences = json::parse(Program("diff -o json " + path_ + " " + merged).out);
  int lobes = 0;
  for (const json& difference : differences) {
    if (difference["elements"] == 0) continue;
    EXPECT_THAT(difference["tensor"].get<std::string>(), HasSubstr(".lobe."));
    ++lobes;
  }
  EXPECT_EQ(lobes, 8);
}

TEST_F(ProgramTest, ExitsAsDocumented) {
  EXPECT_EQ(Program("--help").code, 0);
  EXPECT_EQ(Program("").code, 2);
  EXPECT_EQ(Program("lst " + path_).code, 2);
  EXPECT_EQ(Program("list --nosuch " + path_).code, 2);
  EXPECT_EQ(Program("list -o yaml " + path_).code, 2);
  EXPECT_EQ(Program("describe " + path_ + "@last").code, 2);
  EXPECT_EQ(Program("export " + path_).code, 2);
  const Result missing = Program("describe " + path_ + "@150");
  EXPECT_EQ(missing.code, 3);
  EXPECT_EQ(missing.out, "");
  EXPECT_THAT(missing.err, HasSubstr("100 200"));
  EXPECT_EQ(Program("list " + folder_.path("nowhere")).code, 3);
  EXPECT_EQ(Program("verify " + folder_.path("nowhere")).code, 3);
}

TEST_F(ProgramTest, PythonReadsTheHeader) {
  const std::string out = folder_.path("out");
  ASSERT_EQ(Program("export " + path_ + " --to " + out).code, 0);
  const std::string script = folder_.path("read.py");
  std::ofstream(script) << R"(import json, struct, sys
with open(sys.argv[1], "rb") as file:
    header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    data = file.read()
meta = header.pop("__metadata__")
begin, end = header["final_norm.weight"]["data_offsets"]
print(meta["format"], meta["ela.step"], header["embed.weight"]["shape"], len(header))
print(max(t["data_offsets"][1] for t in header.values()) == len(data))
print(struct.unpack("<%df" % ((end - begin) // 4), data[begin:end])[3])
)";
  int code = -1;
  const std::string printed = Run("python3 " + script + " " + out + "/model.safetensors", &code);
  if (code == 127) GTEST_SKIP() << "no python3";
  const Model model = ModelOf(ModelJob(), 200);
  char value[32];
  std::snprintf(value, sizeof(value), "%.17g",
                static_cast<double>(model.values().at("model/final_norm.weight")[3]));
  EXPECT_EQ(code, 0);
  EXPECT_THAT(printed, HasSubstr("pt 200 [50, 16] " + std::to_string(model.tensors().size() / 3) +
                                 "\nTrue\n"));
  EXPECT_EQ(std::stod(printed.substr(printed.rfind('\n', printed.size() - 2) + 1)),
            std::stod(value));
}

}  // namespace
}  // namespace ela::checkpoints
