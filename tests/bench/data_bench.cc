// How fast text becomes tokens and tokens become batches, beside the SentencePiece library and
// plain memory on the same core in the same run.
//
//   data_bench [MiB of text]      (default 32: C headers of this machine)
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "data/loader.h"
#include "data/shards/shard_writer.h"
#include "data/text/chunk_reader.h"
#include "data/tokenizer.h"
#include "tests/bench/timing.h"
#include "tests/data/support/byte_level.h"

namespace ela::bench {
namespace {

using data::Tokenizer;

constexpr size_t kShort = size_t{4} << 10;
constexpr size_t kLong = size_t{1} << 20;
constexpr int32_t kVocab = 32000;

class Folder {
 public:
  Folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "ela-bench-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// Text of C headers, files in an order that has nothing to do with their folders.
std::string Headers(size_t bytes) {
  auto files = data::ListInputs({"/usr/include"}, data::FormatChoice::kText, [](auto&) {});
  if (!files.ok()) return "";
  std::sort(files->begin(), files->end(), [](const auto& a, const auto& b) {
    return data::HexHash(a.path) < data::HexHash(b.path);
  });
  data::ChunkReader reader(*files, {}, [](auto&) {});
  std::string text;
  data::Chunk chunk;
  for (absl::StatusOr<bool> more = true; text.size() < bytes;) {
    more = reader.Next(&chunk);
    if (!more.ok() || !*more) break;
    text += chunk.bytes;
  }
  text.resize(std::min(text.size(), bytes));
  return text;
}

std::vector<std::string> Cut(const std::string& text, size_t size) {
  std::vector<std::string> documents;
  for (size_t at = 0; at < text.size(); at += size) documents.push_back(text.substr(at, size));
  return documents;
}

double BestSeconds(const std::function<void()>& work) {
  double best = 1e9;
  for (int run = 0; run < 20; ++run) best = std::min(best, CpuSeconds(work));
  return best;
}

// MB/s of encoding, the best of a few runs: other work on the machine only slows a run down.
double Encode(const Tokenizer& tokenizer, const std::vector<std::string>& documents) {
  size_t bytes = 0;
  for (const std::string& document : documents) bytes += document.size();
  double best = 1e9;
  for (int run = 0; run < 5; ++run) {
    best = std::min(best, CpuSeconds([&] {
                      for (const auto& document : documents) tokenizer.Encode(document);
                    }));
  }
  return static_cast<double>(bytes) / best / 1e6;
}

// The library's MB/s, in a process of its own; 0 if it is not built.
double EncodeByLibrary(const Folder& folder, const std::string& model,
                       const std::vector<std::string>& documents) {
  std::ofstream out(folder / "texts", std::ios::binary);
  size_t bytes = 0;
  for (const std::string& document : documents) {
    const auto size = static_cast<uint32_t>(document.size());
    out.write(reinterpret_cast<const char*>(&size), 4);
    out << document;
    bytes += document.size();
  }
  out.close();
  const std::string program =
      std::filesystem::read_symlink("/proc/self/exe").parent_path() / "sentencepiece_reference";
  const std::string command = program + " time " + model + " " + (folder / "texts");
  double best = 1e9;
  for (int run = 0; run < 3; ++run) {
    double seconds = 0;
    FILE* pipe = popen(command.c_str(), "r");
    if (pipe == nullptr || std::fscanf(pipe, "%lf", &seconds) != 1) seconds = 1e9;
    if (pipe != nullptr) pclose(pipe);
    best = std::min(best, seconds);
  }
  return best >= 1e9 ? 0 : static_cast<double>(bytes) / best / 1e6;
}

void Row(const char* what, double value, const char* unit, const std::string& ratio,
         const char* goal) {
  std::printf("%-52s %10.1f %-9s %-22s %s\n", what, value, unit, ratio.c_str(), goal);
}

std::string Times(double ratio, const char* of) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.2fx %s", ratio, of);
  return text;
}

void BenchSentencePiece(const Folder& folder, const std::string& text) {
  std::ofstream(folder / "text") << text;
  const double training = CpuSeconds([&] {
    const absl::Status trained =
        data::TrainTokenizer({folder / "text"}, kVocab, folder / "m.model");
    if (!trained.ok()) std::fprintf(stderr, "%s\n", std::string(trained.message()).c_str());
  });
  Row("train SentencePiece BPE, vocabulary 32,000", training, "s", "", "");
  const auto tokenizer = data::LoadTokenizer(folder / "m.model");
  if (!tokenizer.ok()) return;
  const std::string some = text.substr(0, size_t{4} << 20);
  const double library = EncodeByLibrary(folder, folder / "m.model", Cut(some, kShort));
  const double library_long = EncodeByLibrary(folder, folder / "m.model", Cut(some, kLong));
  const double own = Encode(**tokenizer, Cut(text, kShort));
  const double own_long = Encode(**tokenizer, Cut(text, kLong));
  Row("SentencePiece's own encoder, 4 KiB documents", library, "MB/s", "", "");
  Row("SentencePiece's own encoder, 1 MiB documents", library_long, "MB/s", "", "");
  Row("this encoder, same ids, 4 KiB documents", own, "MB/s", Times(own / library, "the library"),
      ">= 10x, stretch 100 MB/s");
  Row("this encoder, same ids, 1 MiB documents", own_long, "MB/s", Times(own_long / own, "4 KiB"),
      ">= 0.9x");
}

void BenchByteLevel(const Folder& folder, const std::string& text) {
  const auto samples = Cut(text.substr(0, size_t{8} << 20), kShort);
  for (const auto& [name, pattern] :
       {std::pair{"GPT-2's pattern", ""}, {"Llama 3's pattern", data::testing::kLlama3Pattern}}) {
    std::ofstream(folder / "tokenizer.json")
        << data::testing::MakeByteLevelFile(samples, kVocab, pattern).json;
    const auto tokenizer = data::LoadTokenizer(folder / "tokenizer.json");
    if (!tokenizer.ok()) continue;
    const double own = Encode(**tokenizer, Cut(text, kShort));
    const double own_long = Encode(**tokenizer, Cut(text, kLong));
    Row((std::string("byte-level BPE, ") + name + ", 4 KiB documents").c_str(), own, "MB/s", "",
        "stretch 100 MB/s");
    Row((std::string("byte-level BPE, ") + name + ", 1 MiB documents").c_str(), own_long, "MB/s",
        Times(own_long / own, "4 KiB"), ">= 0.9x");
  }
}

void BenchLoader(const Folder& folder) {
  auto writer = data::ShardWriter::Create({folder / "c", 32000, "", 0});
  if (!writer.ok()) return;
  std::vector<int32_t> document(1000);
  for (size_t i = 0; i < document.size(); ++i) document[i] = static_cast<int32_t>(i * 31 % 32000);
  for (int d = 0; d < 64'000; ++d) {
    if (!(*writer)->Add(document, 0).ok()) return;
  }
  if (!(*writer)->Seal().ok()) return;
  for (const int64_t seq_len : {2048, 32768}) {
    data::LoaderOptions options;
    options.sources = {{folder / "c", 1}};
    options.seq_len = seq_len;
    options.vocab_size = 32000;
    const auto loader = data::Loader::Open(options);
    if (!loader.ok()) return;
    data::Batch batch;
    const int64_t sequences = (1 << 20) / seq_len;
    int64_t sample = 0;
    const double seconds = BestSeconds([&] {
      if (!(*loader)->Fill(sample, sequences, 0, seq_len, &batch).ok()) std::abort();
      sample += sequences;
    });
    std::vector<int32_t> copy(3 * batch.ids.size());
    const double memory = BestSeconds([&] {
      for (int part = 0; part < 3; ++part) {
        std::memcpy(copy.data() + part * static_cast<int64_t>(batch.ids.size()),
                    part == 0   ? batch.ids.data()
                    : part == 1 ? batch.targets.data()
                                : batch.positions.data(),
                    batch.ids.size() * sizeof(int32_t));
      }
    });
    char name[80];
    std::snprintf(name, sizeof(name), "loader, warm, documents of 1,000, seq_len %lld",
                  static_cast<long long>(seq_len));
    Row(name, (1 << 20) / seconds / 1e6, "M tok/s", Times(memory / seconds, "copying a batch"),
        ">= 1,000");
  }
}

// An index of 20 million documents over a .bin that takes no room on disk.
void BenchReady(const Folder& folder) {
  constexpr int64_t kDocuments = 20'000'000, kTokens = 1000;
  std::string idx(data::kIndexMagic);
  const auto append = [&](auto value) {
    idx.append(reinterpret_cast<const char*>(&value), sizeof(value));
  };
  append(uint64_t{1});
  append(uint8_t{8});
  append(static_cast<uint64_t>(kDocuments));
  append(static_cast<uint64_t>(kDocuments + 1));
  idx.reserve(idx.size() + kDocuments * 20 + 8);
  for (int64_t d = 0; d < kDocuments; ++d) append(static_cast<int32_t>(kTokens));
  for (int64_t d = 0; d < kDocuments; ++d) append(d * kTokens * 2);
  for (int64_t d = 0; d <= kDocuments; ++d) append(d);
  std::ofstream(folder / "large.idx", std::ios::binary) << idx;
  idx = {};
  std::ofstream(folder / "large.bin").put(0);
  std::filesystem::resize_file(folder / "large.bin", kDocuments * kTokens * 2);
  data::LoaderOptions options;
  options.sources = {{folder / "large", 1}};
  options.seq_len = 4096;
  data::Batch batch;
  const double seconds = CpuSeconds([&] {
    const auto loader = data::Loader::Open(options);
    if (!loader.ok() || !(*loader)->Fill(0, 1, 0, 4096, &batch).ok()) std::abort();
  });
  Row("loader ready, first batch, 20 G tokens, 20 M documents", seconds * 1e3, "ms", "",
      "<= 1,000");
}

}  // namespace
}  // namespace ela::bench

int main(int argc, char** argv) {
  using namespace ela::bench;  // NOLINT: the program's own
  const int64_t mebibytes = argc > 1 ? std::atoll(argv[1]) : 32;
  if (mebibytes < 1) {
    std::fprintf(stderr, "usage: data_bench [MiB of text]\n");
    return 2;
  }
  const Folder folder;
  const std::string text = Headers(static_cast<size_t>(mebibytes) << 20);
  std::printf("one thread, CPU time; %.1f MB of C headers\n%-52s %20s %-22s goal\n",
              static_cast<double>(text.size()) / 1e6, "", "", "ratio");
  BenchSentencePiece(folder, text);
  BenchByteLevel(folder, text);
  BenchLoader(folder);
  BenchReady(folder);
  return 0;
}
