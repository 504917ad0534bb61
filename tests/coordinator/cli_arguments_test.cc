#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "coordinator/cli/arguments.h"

namespace ela::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string ErrorOf(const std::vector<std::string>& words) {
  const auto arguments = ParseArguments(words);
  return arguments.ok() ? "no error" : std::string(arguments.status().message());
}

TEST(ParseArguments, TakesOptionsInEveryFormAndPlace) {
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"-o", "json", "logs", "demo", "-f", "--rank", "2"},
        {"logs", "--follow", "--rank=2", "--output=json", "--", "demo"},
        {"logs", "demo", "-f", "--rank", "2", "-ojson"}}) {
    const auto arguments = ParseArguments(words);
    ASSERT_TRUE(arguments.ok()) << arguments.status();
    EXPECT_EQ(arguments->command->name, "logs");
    EXPECT_EQ(arguments->job(), "demo");
    EXPECT_EQ(arguments->Get("rank"), "2");
    EXPECT_EQ(arguments->Get("output"), "json");
    EXPECT_TRUE(arguments->Has("follow"));
  }
}

TEST(ParseArguments, RepeatsOnlyWhatMayRepeat) {
  const auto arguments = ParseArguments({"submit", "--set", "a=1", "--set", "b=2"});
  ASSERT_TRUE(arguments.ok());
  EXPECT_THAT(arguments->options.at("set"), ElementsAre("a=1", "b=2"));
  EXPECT_EQ(ErrorOf({"submit", "-f", "a", "--file", "b"}), "--file is given twice");
}

TEST(ParseArguments, SuggestsTheNearestWord) {
  EXPECT_EQ(ErrorOf({"wacth", "x"}), "unknown command wacth; did you mean watch?");
  EXPECT_EQ(ErrorOf({"submit", "--folow"}), "unknown option --folow; did you mean --follow?");
  EXPECT_EQ(ErrorOf({"zzzzzz"}), "unknown command zzzzzz; see ela --help");
  EXPECT_EQ(ErrorOf({"list", "-x"}), "unknown option -x; see ela --help");
}

TEST(ParseArguments, RefusesMissingAndSurplusArguments) {
  EXPECT_EQ(ErrorOf({"get"}), "ela get needs an argument: ela get JOB");
  EXPECT_THAT(ErrorOf({"get", "a", "b"}), HasSubstr("unexpected argument \"b\""));
  EXPECT_THAT(ErrorOf({"list", "a"}), HasSubstr("unexpected argument"));
  EXPECT_EQ(ErrorOf({"submit", "--file"}), "--file needs a value: FILE");
  EXPECT_THAT(ErrorOf({"list", "--quiet=1"}), HasSubstr("takes no value"));
  EXPECT_THAT(ErrorOf({"list", "-o", "xml"}), HasSubstr("\"xml\" is not one of table, wide"));
}

TEST(ParseArguments, SiblingsGetTheirArgumentsUntouched) {
  const auto arguments = ParseArguments({"data", "build", "--help", "-x", "--", "y"});
  ASSERT_TRUE(arguments.ok());
  EXPECT_THAT(arguments->passed_on, ElementsAre("build", "--help", "-x", "--", "y"));
}

TEST(ParseArguments, HelpNeedsNothingElse) {
  EXPECT_TRUE(ParseArguments({"get", "--help"})->help);
  EXPECT_TRUE(ParseArguments({"help", "get"})->help);
  EXPECT_EQ(ParseArguments({"help", "get"})->command->name, "get");
}

TEST(ParseArguments, VersionNeedsNothingElse) {
  EXPECT_TRUE(ParseArguments({"--version"})->version);
  EXPECT_TRUE(ParseArguments({"get", "--version"})->version);
  EXPECT_EQ(ErrorOf({"get", "--version=1"}), "--version=1: --version takes no value");
}

TEST(Completion, NamesEveryCommandAndOption) {
  for (const std::string& script : {BashCompletion(), ZshCompletion()}) {
    for (const CommandSpec& command : Commands()) {
      EXPECT_THAT(script, HasSubstr(command.name));
      for (const OptionSpec& option : command.options)
        EXPECT_THAT(script, HasSubstr("--" + option.name));
    }
    for (const OptionSpec& option : GlobalOptions())
      EXPECT_THAT(script, HasSubstr("--" + option.name));
  }
}

// Commands and options are a promise to users and their scripts: the list changes only on purpose.
// After such a change, set ELA_UPDATE_GOLDEN=1 and run this test once.
TEST(Options, AreThoseThatWerePromised) {
  const char* const golden = ELA_SOURCE_DIR "/tests/coordinator/cli_options.golden";
  if (std::getenv("ELA_UPDATE_GOLDEN") != nullptr) std::ofstream(golden) << DescribeOptions();
  std::stringstream expected;
  expected << std::ifstream(golden).rdbuf();
  EXPECT_EQ(DescribeOptions(), expected.str());
}

}  // namespace
}  // namespace ela::cli
