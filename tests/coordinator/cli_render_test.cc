#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <ctime>
#include <sstream>

#include "coordinator/cli/curve.h"
#include "coordinator/cli/format.h"
#include "coordinator/cli/job_view.h"
#include "coordinator/cli/screen.h"
#include "coordinator/cli/table.h"
#include "tests/coordinator/cli_testing.h"

namespace ela::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr int64_t kNow = 1'700'000'100'000;

std::string Joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

WatchState Running() {
  WatchState state;
  v1::WatchUpdate update = MakeUpdate(v1::JOB_STATE_RUNNING);
  *update.mutable_progress() = MakeProgress(520);
  for (int step = 1; step <= 520; ++step) {
    v1::StepPoint* point = update.add_points();
    point->set_step(step);
    point->set_loss(3 + 4.6 * std::exp(-step / 120.0));
  }
  state.Apply(update);
  return state;
}

TEST(Format, Durations) {
  EXPECT_EQ(FormatDuration(0.44), "0.4s");
  EXPECT_EQ(FormatDuration(45.9), "45s");
  EXPECT_EQ(FormatDuration(80), "1m 20s");
  EXPECT_EQ(FormatDuration(7500), "2h 05m");
  EXPECT_EQ(FormatDuration(273600), "3d 4h");
  EXPECT_EQ(FormatDuration(-1), "-");
  EXPECT_EQ(FormatDuration(NAN), "-");
}

TEST(Format, BytesCountsAndNumbers) {
  EXPECT_EQ(FormatBytes(512), "512 B");
  EXPECT_EQ(FormatBytes(1024), "1.0 KiB");
  EXPECT_EQ(FormatBytes((1 << 20) - 1), "1.0 MiB");
  EXPECT_EQ(FormatBytes(5'557'452), "5.3 MiB");
  EXPECT_EQ(FormatCount(1234567), "1,234,567");
  EXPECT_EQ(FormatCount(-1234), "-1,234");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCompact(950), "950");
  EXPECT_EQ(FormatCompact(12345), "12.3k");
  EXPECT_EQ(FormatCompact(999'999), "1.00M");
  EXPECT_EQ(FormatSignificant(4.2314, 4), "4.231");
  EXPECT_EQ(FormatSignificant(0.00081, 3), "8.10e-04");
  EXPECT_EQ(FormatSignificant(NAN, 3), "nan");
  EXPECT_EQ(FormatSignificant(0, 3), "0");
}

TEST(Format, TimesAreLocal) {
  setenv("TZ", "EST5", /*overwrite=*/1);
  tzset();
  EXPECT_EQ(FormatTime(1'000), "1969-12-31 19:00:01");
  EXPECT_EQ(FormatClock(1'000), "19:00:01");
  unsetenv("TZ");
  tzset();
  EXPECT_EQ(FormatTime(0), "-");
}

TEST(Format, TextIsCutByColumnsAndEscapesTakeNone) {
  EXPECT_EQ(FitToWidth("abcdef", 6), "abcdef");
  EXPECT_EQ(FitToWidth("abcdef", 4), "abc…");
  EXPECT_EQ(FitToWidth("éèê", 3), "éèê");
  EXPECT_EQ(DisplayWidth("\x1b[32mok\x1b[0m"), 2);
  EXPECT_EQ(FitToWidth("\x1b[32mlonger\x1b[0m", 4), "\x1b[32mlon…\x1b[0m");
  EXPECT_EQ(FitToWidth("abc", 0), "");
}

TEST(Format, TextFromElsewhereCannotMoveTheCursor) {
  EXPECT_EQ(Printable("a\x1b[2Jb\nc\x7f"), "a?[2Jb?c?");
  EXPECT_EQ(Printable("a\xc2\x9b"), "a?");
}

TEST(TableTest, AlignsAndCuts) {
  Table table({"NAME", ">COUNT", "WHY"});
  table.AddRow({"a", "1,000", "because of something long"});
  table.AddRow({"longer", "2", ""});
  EXPECT_EQ(table.Render(0),
            "NAME    COUNT  WHY\n"
            "a       1,000  because of something long\n"
            "longer      2  -\n");
  EXPECT_THAT(table.Render(20), HasSubstr("a       1,000  beca…\n"));
}

TEST(TableTest, ANarrowScreenKeepsSomeWordsOfTheLastColumn) {
  Table table({"ID", "?>LOSS", "?>AGE", "WHY"});
  table.AddRow({"j-0123456789ab", "2.5", "10s", "no space for the checkpoint shard of this rank"});
  EXPECT_EQ(table.Render(70),
            "ID              LOSS  AGE  WHY\n"
            "j-0123456789ab   2.5  10s  no space for the checkpoint shard of this …\n");
  EXPECT_EQ(table.Render(54),
            "ID              LOSS  WHY\n"
            "j-0123456789ab   2.5  no space for the checkpoint sha…\n");
  EXPECT_EQ(table.Render(50),
            "ID              WHY\n"
            "j-0123456789ab  no space for the checkpoint shard…\n");
}

TEST(ProgressBarTest, FillsInEighths) {
  EXPECT_EQ(ProgressBar(0, 6, true), "▕    ▏");
  EXPECT_EQ(ProgressBar(1, 6, true), "▕████▏");
  EXPECT_EQ(ProgressBar(0.5 + 1.0 / 32, 6, true), "▕██▏ ▏");
  EXPECT_EQ(ProgressBar(0.5, 6, false), "[##..]");
  EXPECT_EQ(ProgressBar(7, 6, false), "[####]");
  EXPECT_EQ(ProgressBar(NAN, 6, false), "[....]");
  for (int width : {3, 10, 33, 80}) {
    for (double share = 0; share < 1.01; share += 0.07) {
      EXPECT_EQ(DisplayWidth(ProgressBar(share, width, true)), width) << share;
    }
  }
}

TEST(Curve, FallingLossFallsFromTheUpperLeftToTheLowerRight) {
  const auto lines = DrawCurve({{1, 8}, {2, 6}, {3, 4}, {4, 2}}, 20, 6, false);
  EXPECT_EQ(Joined(lines),
            "8.000 +**\n"
            "      |  ****\n"
            "      |      ****\n"
            "2.000 +          ***\n"
            "      +-------------\n"
            "       1   step    4\n");
}

TEST(Curve, BrailleDotsStandWhereTheValuesAre) {
  const auto lines = DrawCurve({{0, 1}, {1, 0}}, 16, 4, true);
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_THAT(lines[0], HasSubstr("1.000 ┤⠉"));  // the two highest dots of the first character
  EXPECT_THAT(lines[1], HasSubstr("⣀"));         // the two lowest of the last one
}

TEST(Curve, FitsEveryWidthAndLeavesOutWhatIsNotFinite) {
  std::vector<CurvePoint> points = {{0, NAN}, {1, 5}, {2, INFINITY}, {3, 2}, {900, 1}};
  for (int width = 0; width < 120; width += 7) {
    for (const std::string& line : DrawCurve(points, width, 10, true)) {
      EXPECT_LE(DisplayWidth(line), width);
    }
  }
  EXPECT_THAT(DrawCurve({{0, NAN}}, 80, 10, true), IsEmpty());
  EXPECT_THAT(DrawCurve({}, 80, 10, true), IsEmpty());
  EXPECT_THAT(DrawCurve(points, 80, 3, true), IsEmpty());
}

TEST(Curve, FlatAndSinglePointCurvesAreDrawn) {
  EXPECT_EQ(DrawCurve({{0, 3}, {5, 3}}, 30, 8, false).size(), 8u);
  EXPECT_EQ(DrawCurve({{7, 3}}, 30, 8, true).size(), 8u);
  EXPECT_EQ(DrawCurve({{7, 0}}, 30, 8, true).size(), 8u);
}

TEST(WatchStateTest, ARestartReplacesWhatCameAfterItsCheckpoint) {
  WatchState state;
  v1::WatchUpdate update;
  for (int step : {10, 20, 30, 40}) update.add_points()->set_step(step);
  state.Apply(update);
  v1::WatchUpdate restart;
  restart.add_points()->set_step(25);
  state.Apply(restart);
  std::vector<int64_t> steps;
  for (const v1::StepPoint& point : state.points) steps.push_back(point.step());
  EXPECT_THAT(steps, ElementsAre(10, 20, 25));
}

TEST(LiveView, ShowsEverythingThatMatters) {
  const std::string text = Joined(RenderLive(Running(), {100, 30, false, true}, kNow));
  for (const char* piece :
       {"demo  j-0123456789ab  running for 1m 30s", "52%  step 520/1,000  ETA 1m 12s", "loss 4.231",
        "lr 8.10e-04", "grad norm 0.913", "12.3k tokens/s", "checkpoint at step 500, 12s ago",
        "1.10M tokens", "7.5", "step"}) {
    EXPECT_THAT(text, HasSubstr(piece));
  }
  EXPECT_THAT(text, Not(HasSubstr("\x1b")));
}

TEST(LiveView, FitsEveryTerminal) {
  for (int width : {10, 24, 40, 79, 200}) {
    for (int height : {2, 5, 12, 50}) {
      const auto lines = RenderLive(Running(), {width, height, true, true}, kNow);
      EXPECT_LT(static_cast<int>(lines.size()), height);
      for (const std::string& line : lines) EXPECT_LE(DisplayWidth(line), width) << line;
    }
  }
}

TEST(LiveView, SaysWhyAJobWaitsAndThatContactIsLost) {
  WatchState state;
  state.job = MakeJob(v1::JOB_STATE_QUEUED);
  state.job.set_reason("needs 4 slots, 2 are free; behind j-1");
  state.job.set_contact_lost_unix_ms(kNow - 30'000);
  const std::string text = Joined(RenderLive(state, {}, kNow));
  EXPECT_THAT(text, HasSubstr("behind j-1"));
  EXPECT_THAT(text, HasSubstr("no word from the ranks for 30s"));
}

TEST(LiveView, ALeakingLossIsLabelledEverywhere) {
  WatchState state = Running();
  state.progress.set_leaks_future(true);
  EXPECT_THAT(Joined(RenderLive(state, {120, 30, false, true}, kNow)),
              HasSubstr("leaks the future"));
  EXPECT_THAT(RenderLine(state, kNow), HasSubstr("leaks the future"));
  EXPECT_THAT(RenderSummary(state), HasSubstr("leaks the future"));
}

TEST(Description, HoldsAttemptsEventsAndTheReason) {
  v1::Job job = MakeJob(v1::JOB_STATE_BACKOFF);
  job.set_reason("rank 1 was killed");
  job.set_next_retry_unix_ms(kNow + 4000);
  v1::Attempt* attempt = job.add_attempts();
  attempt->set_number(1);
  attempt->set_outcome(v1::OUTCOME_INFRA);
  attempt->set_signal(9);
  attempt->set_started_unix_ms(kNow - 60'000);
  attempt->set_ended_unix_ms(kNow - 10'000);
  v1::Event event;
  event.set_type("attempt");
  event.set_message("attempt 1 ended");
  const std::string text = RenderDescription(job, {event}, {}, kNow);
  for (const char* piece : {"backoff", "rank 1 was killed", "next try in     4.0s", "infra",
                            "signal 9", "50s", "attempt 1 ended"}) {
    EXPECT_THAT(text, HasSubstr(piece));
  }
}

TEST(LiveBlockTest, RedrawsInPlaceAndClearsWhatIsLeftOver) {
  std::ostringstream out;
  {
    LiveBlock block(&out);
    block.Draw({"one", "two"}, 80);
    EXPECT_EQ(out.str(), "\x1b[?25lone\x1b[K\ntwo\x1b[K\n");
    out.str("");
    block.Draw({"three"}, 80);
    EXPECT_EQ(out.str(), "\x1b[2A\rthree\x1b[K\n\x1b[J");
    out.str("");
    block.Print("event\n");
    EXPECT_EQ(out.str(), "\x1b[1A\r\x1b[Jevent\n");
    out.str("");
  }
  EXPECT_EQ(out.str(), "\x1b[?25h");
}

TEST(LiveBlockTest, ANarrowerTerminalHasBrokenTheLines) {
  std::ostringstream out;
  LiveBlock block(&out);
  block.Draw({std::string(50, 'x')}, 80);
  out.str("");
  block.Draw({"short"}, 20);
  EXPECT_EQ(out.str(), "\x1b[3A\r\x1b[Jshort\x1b[K\n");
}

}  // namespace
}  // namespace ela::cli
