#include "data/corpus/build.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "data/corpus/encode_pool.h"
#include "data/corpus/journal.h"
#include "data/shards/mapped_file.h"
#include "data/shards/shard_writer.h"
#include "data/text/sample.h"
#include "data/tokenizer.h"
#include "data/tokenizer/train_tokenizer.h"
#include "proto/status_macros.h"

namespace ela::data {
namespace {

constexpr int64_t kMaxDocumentTokens = int64_t{1} << 30;  // longer ones are cut: the index has i32
constexpr int kTrain = 0;
constexpr int kValidation = 1;

class Builder {
 public:
  Builder(const BuildOptions& options, const BuildObserver& observer)
      : options_(options), observer_(observer) {}

  absl::StatusOr<BuildResult> Run() {
    ELA_RETURN_IF_ERROR(Plan());
    ELA_RETURN_IF_ERROR(ObtainTokenizer());
    ELA_RETURN_IF_ERROR(OpenWriters());
    if (!journal_.sealing) {
      ELA_RETURN_IF_ERROR(Encode());
      ELA_RETURN_IF_ERROR(CheckNotEmpty());
      journal_.sealing = true;
      ELA_RETURN_IF_ERROR(Commit());
    }
    return Seal();
  }

 private:
  absl::Status Plan();
  std::string Fingerprint() const;
  absl::StatusOr<std::string> TokenizerBytes();
  absl::Status ObtainTokenizer();
  absl::Status OpenWriters();
  absl::Status Encode();
  absl::Status AddPiece(EncodedPiece piece);
  absl::Status EndOpenDocument();
  int ChooseCorpus(int64_t text_bytes) const;
  absl::Status CheckNotEmpty() const;
  absl::Status Commit();
  absl::StatusOr<BuildResult> Seal();
  void Report(BuildProgress::Phase phase, int64_t input_bytes) const;

  const BuildOptions& options_;
  const BuildObserver& observer_;
  std::vector<InputFile> inputs_;
  int64_t input_bytes_ = 0;
  std::vector<std::string> prefixes_;
  BuildJournal journal_;
  bool resumed_ = false;
  std::string abandoned_tokenizer_;  // hash of the one that an interrupted build left
  std::unique_ptr<Tokenizer> tokenizer_;
  std::string tokenizer_path_;
  std::vector<std::unique_ptr<ShardWriter>> writers_;
  int64_t committed_text_bytes_ = 0;
};

absl::Status Builder::Plan() {
  const std::filesystem::path folder = std::filesystem::path(options_.output).parent_path();
  std::error_code error;
  if (!folder.empty()) std::filesystem::create_directories(folder, error);
  if (error) {
    return absl::UnavailableError(
        absl::StrCat(folder.string(), ": cannot create the folder: ", error.message()));
  }
  ELA_ASSIGN_OR_RETURN(inputs_, ListInputs(options_.inputs, options_.format, observer_.notice));
  for (const InputFile& file : inputs_) input_bytes_ += file.bytes;
  prefixes_ = {options_.output};
  if (options_.validation_fraction > 0) {
    prefixes_ = {options_.output + ".train", options_.output + ".validation"};
  }
  const std::string fingerprint = Fingerprint();
  std::optional<BuildJournal> journal = ReadJournal(options_.output);
  if (journal.has_value() && !options_.restart) {
    if (journal->fingerprint == fingerprint) {
      journal_ = *std::move(journal);
      resumed_ = true;
      observer_.notice("going on with an interrupted build");
      return absl::OkStatus();
    }
    if (!journal->shards.empty()) {
      observer_.notice(
          absl::StrCat(JournalPath(options_.output),
                       ": an interrupted build of other inputs or options; starting anew"));
    }
  }
  if (journal.has_value()) abandoned_tokenizer_ = journal->tokenizer_hash;
  journal_.fingerprint = fingerprint;
  for (const std::string& prefix : prefixes_) {
    if (!options_.replace && access((prefix + ".idx").c_str(), F_OK) == 0) {
      return absl::AlreadyExistsError(
          absl::StrCat(prefix, ".idx: exists; choose another --output, or pass --replace"));
    }
  }
  return absl::OkStatus();
}

// Of all that decides what the shards hold.
std::string Builder::Fingerprint() const {
  std::string parts =
      absl::StrCat("ela.build/v1|", options_.tokenizer, "|", options_.validation_fraction, "|",
                   options_.text_key, "|", options_.skip_bad_lines);
  for (const InputFile& file : inputs_) {
    absl::StrAppend(&parts, "|", file.path, "|", file.bytes, "|", file.modified_ns, "|",
                    static_cast<int>(file.format), "|", file.zstd);
  }
  return HexHash(parts);
}

// Of the model to use: read, trained before, or trained now.
absl::StatusOr<std::string> Builder::TokenizerBytes() {
  ELA_ASSIGN_OR_RETURN(const std::optional<int32_t> vocab_size, VocabToTrain(options_.tokenizer));
  if (!vocab_size) {
    ELA_ASSIGN_OR_RETURN(const auto tokenizer, LoadTokenizer(options_.tokenizer));
    return tokenizer->serialized();
  }
  if (resumed_) {
    const auto trained = MappedFile::Open(options_.output + ".model");
    if (trained.ok() && HexHash(trained->view()) == journal_.tokenizer_hash) {
      return std::string(trained->view());
    }
  }
  Report(BuildProgress::Phase::kTrainTokenizer, 0);
  SampleOptions sample;
  sample.text_key = options_.text_key;
  sample.skip_bad_lines = options_.skip_bad_lines;
  ELA_ASSIGN_OR_RETURN(const auto texts, SampleText(inputs_, sample));
  if (texts.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(absl::StrJoin(options_.inputs, ", "),
                                                   ": no text found to train a tokenizer on"));
  }
  return TrainSentencePiece(texts, *vocab_size);
}

// The tokenizer lies beside the shards, under a name that says its kind.
absl::Status Builder::ObtainTokenizer() {
  ELA_ASSIGN_OR_RETURN(const std::string bytes, TokenizerBytes());
  const std::string hash = HexHash(bytes);
  if (resumed_ && hash != journal_.tokenizer_hash) {
    observer_.notice("the tokenizer is another than the interrupted build's; starting anew");
    journal_ = {journal_.fingerprint};
    resumed_ = false;
  }
  const size_t first = bytes.find_first_not_of(" \t\r\n\xEF\xBB\xBF");
  const bool json = first != std::string::npos && bytes[first] == '{';
  tokenizer_path_ = options_.output + (json ? ".tokenizer.json" : ".model");
  const auto present = MappedFile::Open(tokenizer_path_);
  if (!present.ok() || present->view() != bytes) {
    const bool abandoned = present.ok() && HexHash(present->view()) == abandoned_tokenizer_;
    if (present.ok() && !abandoned && !resumed_ && !options_.replace) {
      return absl::AlreadyExistsError(
          absl::StrCat(tokenizer_path_,
                       ": another tokenizer is there; choose another --output, or pass --replace"));
    }
    ELA_RETURN_IF_ERROR(WriteFileSealed(tokenizer_path_, bytes));
  }
  ELA_ASSIGN_OR_RETURN(tokenizer_, LoadTokenizer(tokenizer_path_));
  journal_.tokenizer_hash = hash;
  if (!resumed_) ELA_RETURN_IF_ERROR(WriteJournal(options_.output, journal_));
  return absl::OkStatus();
}

absl::Status Builder::OpenWriters() {
  for (size_t c = 0; c < prefixes_.size(); ++c) {
    ShardWriterOptions options;
    options.prefix = prefixes_[c];
    options.vocab_size = tokenizer_->vocab_size();
    options.tokenizer_hash = tokenizer_->hash();
    options.end_of_document = tokenizer_->end_of_document();
    options.replace = true;  // Plan has seen to it
    std::unique_ptr<ShardWriter> writer;
    if (journal_.shards.size() == prefixes_.size()) {
      if (journal_.sealing) {
        ELA_ASSIGN_OR_RETURN(const bool sealed, ShardWriter::FinishSeal(options.prefix));
        if (sealed) {
          writers_.push_back(nullptr);
          continue;
        }
      }
      ELA_ASSIGN_OR_RETURN(writer, ShardWriter::Resume(options, journal_.shards[c]));
    } else {
      ELA_ASSIGN_OR_RETURN(writer, ShardWriter::Create(options));
    }
    committed_text_bytes_ += writer->text_bytes();
    writers_.push_back(std::move(writer));
  }
  return absl::OkStatus();
}

void Builder::Report(BuildProgress::Phase phase, int64_t input_bytes) const {
  if (observer_.progress == nullptr) return;
  BuildProgress progress;
  progress.phase = phase;
  for (const auto& writer : writers_) {
    progress.documents += writer->documents();
    progress.tokens += writer->tokens();
    progress.text_bytes += writer->text_bytes();
  }
  progress.input_bytes = input_bytes;
  progress.total_bytes = input_bytes_;
  observer_.progress(progress);
}

absl::Status Builder::Encode() {
  const int64_t files_before = journal_.skipped_files;
  ChunkReader reader(inputs_, journal_.position, observer_.notice);
  EncodeOptions encode;
  encode.text_key = options_.text_key;
  encode.skip_bad_lines = options_.skip_bad_lines;
  encode.cut_long_texts = prefixes_.size() > 1;
  EncodePool pool(&reader, tokenizer_.get(), encode, options_.threads);
  for (;;) {
    ELA_ASSIGN_OR_RETURN(std::optional<EncodedChunk> chunk, pool.Next());
    if (!chunk.has_value()) break;
    for (const std::string& notice : chunk->notices) observer_.notice(notice);
    for (EncodedPiece& piece : chunk->pieces) ELA_RETURN_IF_ERROR(AddPiece(std::move(piece)));
    journal_.position = chunk->next;
    journal_.skipped_lines += chunk->skipped_lines;
    journal_.skipped_files = files_before + chunk->skipped_files;
    int64_t text_bytes = 0;
    for (const auto& writer : writers_) text_bytes += writer->text_bytes();
    if (text_bytes - committed_text_bytes_ >= options_.commit_bytes) {
      ELA_RETURN_IF_ERROR(Commit());
      committed_text_bytes_ = text_bytes;
    }
    Report(BuildProgress::Phase::kEncode, pool.consumed());
  }
  journal_.skipped_files = files_before + reader.skipped_files();
  return EndOpenDocument();
}

// The corpus that lags behind its share of the text; the first text is for training, so that a
// corpus of one document can be trained on.
int Builder::ChooseCorpus(int64_t text_bytes) const {
  if (writers_.size() == 1) return kTrain;
  const int64_t train = writers_[kTrain]->text_bytes();
  const int64_t validation = writers_[kValidation]->text_bytes();
  const double wanted =
      options_.validation_fraction * static_cast<double>(train + validation + text_bytes);
  return train > 0 && static_cast<double>(validation) < wanted ? kValidation : kTrain;
}

absl::Status Builder::AddPiece(EncodedPiece piece) {
  const int corpus = ChooseCorpus(piece.text_bytes);
  if (journal_.open_corpus >= 0 && journal_.open_corpus != corpus) {
    ELA_RETURN_IF_ERROR(EndOpenDocument());
  }
  ShardWriter& writer = *writers_[corpus];
  ELA_RETURN_IF_ERROR(writer.Append(piece.ids, piece.text_bytes));
  journal_.open_corpus = corpus;
  if (piece.ends_document) {
    journal_.open_corpus = -1;
    return writer.EndDocument();
  }
  return writer.open_tokens() >= kMaxDocumentTokens ? EndOpenDocument() : absl::OkStatus();
}

// Ends a document whose last piece did not say that it was.
absl::Status Builder::EndOpenDocument() {
  if (journal_.open_corpus < 0) return absl::OkStatus();
  ShardWriter& writer = *writers_[std::exchange(journal_.open_corpus, -1)];
  ELA_RETURN_IF_ERROR(writer.Append({tokenizer_->end_of_document()}, 0));
  return writer.EndDocument();
}

absl::Status Builder::CheckNotEmpty() const {
  if (writers_[kTrain]->documents() == 0) {
    RemoveJournal(options_.output);
    return absl::InvalidArgumentError(
        absl::StrCat(absl::StrJoin(options_.inputs, ", "), ": no text found in ", inputs_.size(),
                     " files, of which ", journal_.skipped_files, " are not text"));
  }
  if (writers_.size() > 1 && writers_[kValidation]->documents() == 0) {
    observer_.notice("the text is one short document: nothing is left for validation");
  }
  return absl::OkStatus();
}

absl::Status Builder::Commit() {
  std::vector<ShardProgress> shards;
  for (const auto& writer : writers_) {
    ELA_ASSIGN_OR_RETURN(const ShardProgress progress, writer->Commit());
    shards.push_back(progress);
  }
  journal_.shards = std::move(shards);
  return WriteJournal(options_.output, journal_);
}

absl::StatusOr<BuildResult> Builder::Seal() {
  BuildResult result;
  for (size_t c = 0; c < prefixes_.size(); ++c) {
    if (writers_[c] != nullptr) ELA_RETURN_IF_ERROR(writers_[c]->Seal());
    const ShardProgress& done = journal_.shards[c];
    result.corpora.push_back({prefixes_[c], done.documents, done.tokens, done.text_bytes});
  }
  RemoveJournal(options_.output);
  result.tokenizer_path = tokenizer_path_;
  result.vocab_size = tokenizer_->vocab_size();
  result.files = static_cast<int64_t>(inputs_.size());
  result.skipped_files = journal_.skipped_files;
  result.skipped_lines = journal_.skipped_lines;
  result.resumed = resumed_;
  return result;
}

}  // namespace

absl::StatusOr<BuildResult> Build(const BuildOptions& options, const BuildObserver& observer) {
  return Builder(options, observer).Run();
}

}  // namespace ela::data
