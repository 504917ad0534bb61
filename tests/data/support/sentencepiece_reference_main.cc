// What the SentencePiece library itself makes of a text, in a process of its own: the
// distribution's library carries a protobuf that cannot live beside ours.
//
//   sentencepiece_reference encode MODEL TEXTS IDS      TEXTS: (u32 bytes, bytes)...
//   sentencepiece_reference decode MODEL IDS TEXTS      IDS: (u32 count, i32 ids)...
//   sentencepiece_reference train TEXTS MODEL KEY=VALUE...
//   sentencepiece_reference time MODEL TEXTS            prints the CPU seconds that encoding takes
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iterator>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

std::string ReadFile(const char* path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<std::string> ReadRecords(const char* path, size_t unit) {
  const std::string all = ReadFile(path);
  std::vector<std::string> records;
  for (size_t at = 0; at + 4 <= all.size();) {
    uint32_t count = 0;
    std::memcpy(&count, all.data() + at, 4);
    records.push_back(all.substr(at + 4, count * unit));
    at += 4 + count * unit;
  }
  return records;
}

void WriteRecord(const void* data, size_t count, size_t unit, std::ofstream* out) {
  const auto size = static_cast<uint32_t>(count);
  out->write(reinterpret_cast<const char*>(&size), 4);
  out->write(static_cast<const char*>(data), static_cast<std::streamsize>(count * unit));
}

int Check(const sentencepiece::util::Status& status) {
  if (!status.ok()) std::fprintf(stderr, "sentencepiece: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

class Iterator final : public sentencepiece::SentenceIterator {
 public:
  explicit Iterator(std::vector<std::string> texts) : texts_(std::move(texts)) {}
  bool done() const override { return next_ >= texts_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return texts_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  std::vector<std::string> texts_;
  size_t next_ = 0;
};

int Train(int argc, char** argv) {
  std::unordered_map<std::string, std::string> arguments;
  for (int i = 4; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    arguments[argument.substr(0, equals)] = argument.substr(equals + 1);
  }
  Iterator texts(ReadRecords(argv[2], 1));
  std::string model;
  const int error = Check(sentencepiece::SentencePieceTrainer::Train(arguments, &texts, &model));
  std::ofstream(argv[3], std::ios::binary) << model;
  return error;
}

int Encode(const sentencepiece::SentencePieceProcessor& model, char** argv) {
  std::ofstream out(argv[4], std::ios::binary);
  for (const std::string& text : ReadRecords(argv[3], 1)) {
    std::vector<int> ids;
    if (Check(model.Encode(text, &ids)) != 0) return 1;
    WriteRecord(ids.data(), ids.size(), sizeof(int), &out);
  }
  return 0;
}

int Decode(const sentencepiece::SentencePieceProcessor& model, char** argv) {
  std::ofstream out(argv[4], std::ios::binary);
  for (const std::string& record : ReadRecords(argv[3], sizeof(int))) {
    std::vector<int> ids(record.size() / sizeof(int));
    std::memcpy(ids.data(), record.data(), record.size());
    std::string text;
    if (Check(model.Decode(ids, &text)) != 0) return 1;
    WriteRecord(text.data(), text.size(), 1, &out);
  }
  return 0;
}

int Time(const sentencepiece::SentencePieceProcessor& model, char** argv) {
  const std::vector<std::string> texts = ReadRecords(argv[3], 1);
  const clock_t start = clock();
  for (const std::string& text : texts) {
    std::vector<int> ids;
    if (Check(model.Encode(text, &ids)) != 0) return 1;
  }
  std::printf("%.6f\n", static_cast<double>(clock() - start) / CLOCKS_PER_SEC);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string verb = argc > 3 ? argv[1] : "";
  if (verb == "train") return Train(argc, argv);
  sentencepiece::SentencePieceProcessor model;
  if (argc > 3 && Check(model.Load(argv[2])) != 0) return 1;
  if (verb == "encode" && argc == 5) return Encode(model, argv);
  if (verb == "decode" && argc == 5) return Decode(model, argv);
  if (verb == "time") return Time(model, argv);
  std::fprintf(stderr, "usage: see the head of the source\n");
  return 2;
}
