#include "data/loader.h"

#include <gmock/gmock.h>

#include <map>
#include <random>
#include <set>

#include "tests/data/support/corpus.h"

namespace ela::data {
namespace {

using testing::CountingDocuments;
using testing::Documents;
using ::testing::HasSubstr;
using testing::Stream;
using testing::WriteCorpus;

class LoaderTest : public testing::TempFolder {
 protected:
  std::unique_ptr<Loader> Open(const LoaderOptions& options) {
    auto loader = Loader::Open(options);
    EXPECT_TRUE(loader.ok()) << loader.status();
    return loader.ok() ? *std::move(loader) : nullptr;
  }
  LoaderOptions Options(int64_t seq_len, const std::string& name = "corpus") {
    LoaderOptions options;
    options.sources = {{Path(name), 1}};
    options.seq_len = seq_len;
    options.seed = 7;
    return options;
  }
  Batch Fill(const Loader& loader, int64_t first, int64_t count, int64_t begin, int64_t end) {
    Batch batch;
    const absl::Status status = loader.Fill(first, count, begin, end, &batch);
    EXPECT_TRUE(status.ok()) << status;
    return batch;
  }
  std::string OpenError(const LoaderOptions& options) {
    auto loader = Loader::Open(options);
    EXPECT_FALSE(loader.ok());
    return std::string(loader.status().message());
  }
};

// Lengths with empty documents, single tokens, documents longer than two windows, cuts on window
// edges.
Documents AwkwardDocuments() {
  return CountingDocuments({3, 0, 1, 1, 40, 16, 0, 0, 7, 9, 16, 5, 100, 2, 1, 30, 0, 19, 6});
}

std::set<int64_t> DocumentBegins(const Documents& documents) {
  std::set<int64_t> begins;
  int64_t at = 0;
  for (const auto& document : documents) {
    begins.insert(at);
    at += static_cast<int64_t>(document.size());
  }
  begins.erase(at);  // an empty last document starts no token
  return begins;
}

// Computes one row from the definitions alone, token by token.
struct Oracle {
  std::vector<int32_t> stream;
  std::set<int64_t> begins;
  int64_t seq_len;
  bool mask;

  int32_t Target(int64_t at) const { return mask && begins.count(at + 1) ? -1 : stream[at + 1]; }
  std::vector<int64_t> Starts(int64_t window) const {
    std::vector<int64_t> starts = {0};
    for (int64_t t = 1; mask && t < seq_len; ++t) {
      if (begins.count(window + t)) starts.push_back(t);
    }
    return starts;
  }
  int32_t Position(int64_t window, int64_t t) const {
    int64_t start = t;
    while (start > 0 && !(mask && begins.count(window + start))) --start;
    return static_cast<int32_t>(t - start);
  }
};

void ExpectMatches(const Oracle& oracle, const Batch& batch, int64_t token_begin) {
  int64_t valid = 0;
  for (int64_t row = 0; row < batch.sequences; ++row) {
    // Ids count up, so the first one tells where the window begins.
    const int64_t window = batch.ids[row * batch.length] - token_begin;
    ASSERT_EQ(window % oracle.seq_len, 0);
    ASSERT_EQ(batch.document_starts[row], oracle.Starts(window));
    for (int64_t i = 0; i < batch.length; ++i) {
      const int64_t at = window + token_begin + i;
      ASSERT_EQ(batch.ids[row * batch.length + i], oracle.stream[at]);
      ASSERT_EQ(batch.targets[row * batch.length + i], oracle.Target(at)) << "token " << at;
      ASSERT_EQ(batch.positions[row * batch.length + i], oracle.Position(window, token_begin + i));
      valid += oracle.Target(at) >= 0;
    }
  }
  EXPECT_EQ(batch.valid_targets, valid);
}

TEST_F(LoaderTest, SlicesMatchTheDefinitionsTokenByToken) {
  const Documents documents = AwkwardDocuments();
  WriteCorpus(Path("corpus"), documents);
  for (const int64_t seq_len : {1, 7, 16, 63, 255}) {
    for (const bool mask : {true, false}) {
      LoaderOptions options = Options(seq_len);
      options.document_mask = mask;
      auto loader = Open(options);
      ASSERT_EQ(loader->samples_per_epoch(), 255 / seq_len);
      const Oracle oracle{Stream(documents), DocumentBegins(documents), seq_len, mask};
      for (int64_t begin = 0; begin < seq_len; begin += 1 + begin / 3) {
        const Batch batch = Fill(*loader, 0, loader->samples_per_epoch(), begin, seq_len);
        ExpectMatches(oracle, batch, begin);
        ExpectMatches(oracle, Fill(*loader, 0, loader->samples_per_epoch(), begin, begin + 1),
                      begin);
      }
    }
  }
}

TEST_F(LoaderTest, EndOfDocumentIsPredictedAndPredictsNothing) {
  const int32_t eod = 0;
  WriteCorpus(Path("corpus"), {{5, 6, eod}, {7, eod}, {8, 9, eod}});
  const Batch batch = Fill(*Open(Options(6)), 0, 1, 0, 6);
  EXPECT_EQ(batch.ids, (std::vector<int32_t>{5, 6, eod, 7, eod, 8}));
  EXPECT_EQ(batch.targets, (std::vector<int32_t>{6, eod, -1, eod, -1, 9}));
  EXPECT_EQ(batch.positions, (std::vector<int32_t>{0, 1, 2, 0, 1, 0}));
  EXPECT_EQ(batch.document_starts[0], (std::vector<int64_t>{0, 3, 5}));
  EXPECT_EQ(batch.valid_targets, 4);
}

TEST_F(LoaderTest, LastRowOfAWindowThatEndsADocumentHasNoTarget) {
  WriteCorpus(Path("corpus"), CountingDocuments({4, 4}));
  EXPECT_EQ(Fill(*Open(Options(4)), 0, 1, 0, 4).targets, (std::vector<int32_t>{1, 2, 3, -1}));
}

// Rows of the batches of every rank, put together again.
Batch Gather(const Loader& loader, int64_t first, int64_t count, int64_t seq_len,
             const std::vector<int64_t>& cuts, int64_t replicas) {
  Batch all;
  all.sequences = count;
  all.length = seq_len;
  all.document_starts.resize(count);
  for (auto* rows : {&all.ids, &all.targets, &all.positions}) rows->resize(count * seq_len, -7);
  for (int64_t r = 0; r < replicas; ++r) {
    for (size_t s = 0; s + 1 < cuts.size(); ++s) {
      Batch part;
      const int64_t share = count / replicas;
      EXPECT_TRUE(loader.Fill(first + r * share, share, cuts[s], cuts[s + 1], &part).ok());
      all.valid_targets += part.valid_targets;
      for (int64_t b = 0; b < share; ++b) {
        const int64_t to = (r * share + b) * seq_len + cuts[s];
        std::copy_n(part.ids.begin() + b * part.length, part.length, all.ids.begin() + to);
        std::copy_n(part.targets.begin() + b * part.length, part.length, all.targets.begin() + to);
        std::copy_n(part.positions.begin() + b * part.length, part.length,
                    all.positions.begin() + to);
        all.document_starts[r * share + b] = part.document_starts[b];
      }
    }
  }
  return all;
}

void ExpectSame(const Batch& a, const Batch& b) {
  EXPECT_EQ(a.ids, b.ids);
  EXPECT_EQ(a.targets, b.targets);
  EXPECT_EQ(a.positions, b.positions);
  EXPECT_EQ(a.document_starts, b.document_starts);
  EXPECT_EQ(a.valid_targets, b.valid_targets);
}

TEST_F(LoaderTest, StreamIsTheSameForEveryMeshAndEveryCut) {
  WriteCorpus(Path("corpus"), AwkwardDocuments());
  WriteCorpus(Path("other"), CountingDocuments({50, 60, 1, 9, 33}, 1000));
  LoaderOptions options = Options(13);
  options.sources.push_back({Path("other"), 2.5});
  const auto loader = Open(options);
  const Batch whole = Fill(*loader, 4093, 8, 0, 13);
  for (const int64_t replicas : {1, 2, 4, 8}) {
    for (const int64_t shards : {1, 2, 3, 4, 8, 20}) {  // 20 shards of 13 rows: some are empty
      std::vector<int64_t> cuts;
      for (int64_t s = 0; s <= shards; ++s) cuts.push_back(s * 13 / shards);
      ExpectSame(whole, Gather(*loader, 4093, 8, 13, cuts, replicas));
    }
  }
  ExpectSame(whole, Fill(*Open(options), 4093, 8, 0, 13));
}

TEST_F(LoaderTest, EveryWindowIsDrawnOnceAnEpochInAnotherOrderEach) {
  WriteCorpus(Path("corpus"), CountingDocuments({1001}));
  const auto loader = Open(Options(10));
  std::vector<int32_t> previous;
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::set<int32_t> seen;
    std::vector<int32_t> order = Fill(*loader, epoch * 100, 100, 0, 1).ids;
    EXPECT_EQ(std::set<int32_t>(order.begin(), order.end()).size(), 100u);
    EXPECT_NE(order, previous);
    EXPECT_FALSE(std::is_sorted(order.begin(), order.end()));
    previous = order;
  }
}

TEST_F(LoaderTest, UnshuffledWindowsComeInOrderSourceAfterSourceAndAgain) {
  WriteCorpus(Path("corpus"), CountingDocuments({11}));
  WriteCorpus(Path("other"), CountingDocuments({6}, 100));
  LoaderOptions options = Options(5);
  options.sources.push_back({Path("other"), 9});
  options.shuffle = false;
  EXPECT_EQ(Fill(*Open(options), 0, 5, 0, 1).ids, (std::vector<int32_t>{0, 5, 100, 0, 5}));
}

TEST_F(LoaderTest, SourcesAreDrawnByWeightAndEachDrawsItsWindowsOnceAnEpoch) {
  WriteCorpus(Path("corpus"), CountingDocuments({769}));       // 768 windows of 1
  WriteCorpus(Path("other"), CountingDocuments({257}, 5000));  // 256 windows of 1
  LoaderOptions options = Options(1);
  options.sources[0].weight = 3;
  options.sources.push_back({Path("other"), 1});
  const Batch batch = Fill(*Open(options), 1024, 1024, 0, 1);
  std::map<bool, std::set<int32_t>> seen;
  for (const int32_t id : batch.ids) seen[id >= 5000].insert(id);
  EXPECT_EQ(seen[false].size(), 768u);
  EXPECT_EQ(seen[true].size(), 256u);
}

TEST_F(LoaderTest, FingerprintTellsStreamsApartAndIgnoresTheFolder) {
  WriteCorpus(Path("corpus"), CountingDocuments({100}));
  WriteCorpus(Path("same"), CountingDocuments({100}));
  WriteCorpus(Path("other"), CountingDocuments({99, 1}));
  std::set<std::string> prints = {Open(Options(5))->fingerprint()};
  EXPECT_EQ(prints.count(Open(Options(5, "same"))->fingerprint()), 1u);
  LoaderOptions masked = Options(5), seeded = Options(5), mixed = Options(5);
  masked.document_mask = false;
  seeded.seed = 8;
  mixed.sources.push_back({Path("same"), 1});
  for (const auto& options : {Options(5, "other"), Options(4), masked, seeded, mixed}) {
    EXPECT_TRUE(prints.insert(Open(options)->fingerprint()).second);
  }
}

TEST_F(LoaderTest, TooSmallACorpusIsRefusedWithTheSeqLenThatFits) {
  WriteCorpus(Path("corpus"), CountingDocuments({5, 3}));
  EXPECT_THAT(OpenError(Options(8)),
              HasSubstr("8 tokens are less than one sample of seq_len 8 + 1"));
  EXPECT_THAT(OpenError(Options(8)), HasSubstr("set seq_len to at most 7"));
  EXPECT_EQ(Open(Options(7))->samples_per_epoch(), 1);
  WriteCorpus(Path("empty"), {});
  EXPECT_THAT(OpenError(Options(8, "empty")), HasSubstr("0 tokens"));
}

TEST_F(LoaderTest, RefusesAnotherTokenizerVocabularyWeightOrSlice) {
  WriteCorpus(Path("corpus"), CountingDocuments({50}), 100, "abcd");
  LoaderOptions options = Options(5);
  options.tokenizer_hash = "ef01";
  EXPECT_THAT(OpenError(options), HasSubstr("built with tokenizer abcd, the job's is ef01"));
  options.tokenizer_hash = "abcd";
  options.vocab_size = 99;
  EXPECT_THAT(OpenError(options), HasSubstr("set vocab_size to at least 100"));
  options.vocab_size = 100;
  Batch batch;
  EXPECT_EQ(Open(options)->Fill(0, 1, 3, 6, &batch).code(), absl::StatusCode::kInvalidArgument);
  options.sources[0].weight = -1;
  EXPECT_THAT(OpenError(options), HasSubstr("weight"));
  EXPECT_THAT(OpenError(Options(5, "absent")), HasSubstr("absent.idx: no such file"));
}

TEST_F(LoaderTest, AnIdOutsideTheVocabularyIsNamedWithItsPlace) {
  WriteCorpus(Path("corpus"), CountingDocuments({50}));
  std::filesystem::remove(Path("corpus.json"));  // a corpus of other making
  LoaderOptions options = Options(49);
  options.vocab_size = 30;
  Batch batch;
  const absl::Status status = Open(options)->Fill(0, 1, 0, 49, &batch);
  EXPECT_THAT(std::string(status.message()), HasSubstr("token 30 has id 30"));
}

}  // namespace
}  // namespace ela::data
