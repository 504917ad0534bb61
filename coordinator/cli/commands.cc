// The table itself.

#include "coordinator/cli/arguments.h"

namespace ela::cli {
namespace {

OptionSpec File() { return {"file", 'f', "FILE", "Job file; - reads standard input", false, {}}; }
OptionSpec Set() {
  return {"set", 0, "KEY=VALUE", "Set one key of the job, such as model.num_layers=6", true, {}};
}

std::vector<CommandSpec> MakeCommands() {
  return {
      {"submit",
       "",
       "Submit a job; prints its id",
       {File(),
        Set(),
        {"follow", 0, "", "Watch the job until it ends", false, {}},
        {"client-key", 0, "KEY", "Submit at most once under this key", false, {}}},
       ""},
      {"validate",
       "",
       "Check a job file; prints the resolved job and the memory it needs",
       {File(), Set()},
       ""},
      {"list",
       "",
       "List jobs, newest first",
       {{"state", 0, "STATE", "Only jobs in this state", true, {}},
        {"limit", 0, "N", "At most so many", false, {}}},
       ""},
      {"get", "JOB", "Show one job in a line", {}, ""},
      {"describe", "JOB", "Show all there is to know about a job", {}, ""},
      {"watch",
       "JOB",
       "Follow a job live: progress, loss curve, speed, checkpoints",
       {{"width", 0, "COLUMNS", "Draw for this width", false, {}}},
       ""},
      {"logs",
       "JOB",
       "Print what the ranks of a job wrote",
       {{"follow", 'f', "", "Go on until the job ends", false, {}},
        {"rank", 0, "N", "One rank; not given: all, each line with its rank", false, {}},
        {"attempt", 0, "N", "An attempt; not given: the newest", false, {}},
        {"tail", 0, "LINES", "Only the last lines", false, {}}},
       ""},
      {"events", "JOB", "Print what happened to a job", {}, ""},
      {"cancel",
       "JOB",
       "Stop a job for good",
       {{"reason", 0, "TEXT", "Kept with the job", false, {}}},
       ""},
      {"pause", "JOB", "Save a checkpoint and give the machine back", {}, ""},
      {"resume", "JOB", "Let a paused job go on", {}, ""},
      {"wait",
       "JOB",
       "Wait until a job reaches a state",
       {{"for", 0, "STATE", "completed (default), ended, or any state", false, {}}},
       ""},
      {"cluster", "", "Show nodes and slots", {}, ""},
      {"version", "", "Show the versions of this program and of the coordinator", {}, ""},
      {"completion", "SHELL", "Print a completion script: bash or zsh", {}, ""},
      {"data", "", "Build, inspect and verify token shards", {}, "ela-data"},
      {"checkpoint",
       "",
       "List, inspect, verify, compare, export and import checkpoints",
       {},
       "ela-checkpoint"},
      {"model", "", "Score, evaluate and generate with a trained model", {}, "ela-model"},
  };
}

}  // namespace

const std::vector<CommandSpec>& Commands() {
  static const auto* const commands = new std::vector<CommandSpec>(MakeCommands());
  return *commands;
}

const std::vector<OptionSpec>& GlobalOptions() {
  static const auto* const options = new std::vector<OptionSpec>{
      {"address", 0, "HOST:PORT", "Coordinator; else $ELA_ADDRESS, else 127.0.0.1:7070", false, {}},
      {"ca", 0, "FILE", "Use TLS and trust this certificate authority", false, {}},
      {"cert", 0, "FILE", "This client's certificate", false, {}},
      {"key", 0, "FILE", "The certificate's private key", false, {}},
      {"token-file", 0, "FILE", "File that holds a bearer token", false, {}},
      {"output",
       'o',
       "FORMAT",
       "table, wide, json, yaml or name",
       false,
       {"table", "wide", "json", "yaml", "name"}},
      {"quiet", 'q', "", "No messages, only data and errors", false, {}},
      {"timeout",
       0,
       "DURATION",
       "Longest wait for an answer (30s); wait, watch, --follow: for the end",
       false,
       {}},
      {"version",
       0,
       "",
       "Show the version of this program; the coordinator's too: ela version",
       false,
       {}},
      {"help", 'h', "", "Explain", false, {}},
  };
  return *options;
}

}  // namespace ela::cli
