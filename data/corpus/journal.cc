#include "data/corpus/journal.h"

#include <unistd.h>

#include <nlohmann/json.hpp>

#include "data/shards/mapped_file.h"

namespace ela::data {
namespace {

using nlohmann::json;

constexpr char kFormatName[] = "ela.build/v1";

}  // namespace

std::string JournalPath(const std::string& prefix) { return prefix + ".build.json"; }

absl::Status WriteJournal(const std::string& prefix, const BuildJournal& journal) {
  json shards = json::array();
  for (const ShardProgress& shard : journal.shards) {
    shards.push_back({{"documents", shard.documents},
                      {"tokens", shard.tokens},
                      {"text_bytes", shard.text_bytes},
                      {"open_tokens", shard.open_tokens}});
  }
  const json out = {{"format", kFormatName},
                    {"fingerprint", journal.fingerprint},
                    {"tokenizer_hash", journal.tokenizer_hash},
                    {"input", journal.position.input},
                    {"offset", journal.position.offset},
                    {"line", journal.position.line},
                    {"shards", shards},
                    {"open_corpus", journal.open_corpus},
                    {"skipped_files", journal.skipped_files},
                    {"skipped_lines", journal.skipped_lines},
                    {"sealing", journal.sealing}};
  return WriteFileSealed(JournalPath(prefix), out.dump(2) + "\n");
}

std::optional<BuildJournal> ReadJournal(const std::string& prefix) {
  const auto file = MappedFile::Open(JournalPath(prefix));
  if (!file.ok()) return std::nullopt;
  try {
    const json in = json::parse(file->view());
    if (in.at("format") != kFormatName) return std::nullopt;
    BuildJournal journal;
    journal.fingerprint = in.at("fingerprint");
    journal.tokenizer_hash = in.at("tokenizer_hash");
    journal.position = {in.at("input"), in.at("offset"), in.at("line")};
    for (const json& shard : in.at("shards")) {
      journal.shards.push_back({shard.at("documents"), shard.at("tokens"), shard.at("text_bytes"),
                                shard.at("open_tokens")});
    }
    journal.open_corpus = in.at("open_corpus");
    journal.skipped_files = in.at("skipped_files");
    journal.skipped_lines = in.at("skipped_lines");
    journal.sealing = in.at("sealing");
    return journal;
  } catch (const json::exception&) {
    return std::nullopt;
  }
}

void RemoveJournal(const std::string& prefix) { unlink(JournalPath(prefix).c_str()); }

}  // namespace ela::data
