#include "data/text/sample.h"

#include <algorithm>
#include <memory>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "data/text/byte_stream.h"
#include "data/text/json_lines.h"
#include "data/tokenizer/utf8.h"
#include "proto/status_macros.h"

namespace ela::data {
namespace {

constexpr int64_t kBlockBytes = 16 << 10;
constexpr size_t kTextBytes = 4 << 10;
constexpr int64_t kCompression = 4;  // assumed of zstd, to weigh compressed files

class Sampler {
 public:
  explicit Sampler(const SampleOptions& options) : options_(options) {}

  absl::StatusOr<std::vector<std::string>> Run(const std::vector<InputFile>& files) {
    for (const InputFile& file : files) total_ += Weight(file);
    for (const InputFile& file : files) {
      if (!file.regular) {
        return absl::InvalidArgumentError(
            absl::StrCat(file.path,
                         ": a tokenizer cannot be trained on a pipe, which can be read only once; "
                         "pass --tokenizer PATH, or name files"));
      }
      ELA_RETURN_IF_ERROR(file.zstd ? SampleHead(file) : SampleBlocks(file));
    }
    return std::move(texts_);
  }

 private:
  static int64_t Weight(const InputFile& file) {
    return file.bytes * (file.zstd ? kCompression : 1);
  }

  // Whether a block of this size is to be taken, so that the bytes taken keep up with their share.
  bool Take(int64_t bytes) {
    seen_ += bytes;
    const double target =
        static_cast<double>(seen_) *
        std::min(1.0, static_cast<double>(options_.max_bytes) / static_cast<double>(total_));
    if (static_cast<double>(taken_) + static_cast<double>(bytes) / 2 > target) return false;
    taken_ += bytes;
    return true;
  }

  absl::Status SampleBlocks(const InputFile& file) {
    std::unique_ptr<ByteStream> stream;
    int64_t at = 0;  // where the stream is
    std::string block;
    for (int64_t offset = 0; offset < file.bytes; offset += kBlockBytes) {
      if (!Take(std::min(kBlockBytes, file.bytes - offset))) continue;
      if (stream == nullptr) {
        ELA_ASSIGN_OR_RETURN(stream, ByteStream::Open(file));
      }
      ELA_RETURN_IF_ERROR(stream->Skip(offset - at));
      block.clear();
      ELA_RETURN_IF_ERROR(stream->Read(kBlockBytes, &block));
      at = offset + static_cast<int64_t>(block.size());
      if (block.find('\0') != std::string::npos) return absl::OkStatus();  // not text
      ELA_RETURN_IF_ERROR(AddBlock(file, block, offset > 0, at < file.bytes));
    }
    return absl::OkStatus();
  }

  absl::Status SampleHead(const InputFile& file) {
    const double share = static_cast<double>(options_.max_bytes) / static_cast<double>(total_);
    seen_ += Weight(file);
    const double target = static_cast<double>(seen_) * std::min(1.0, share);
    const auto room = static_cast<int64_t>(target) - taken_;
    if (room < kBlockBytes && share < 1) return absl::OkStatus();
    ELA_ASSIGN_OR_RETURN(const auto stream, ByteStream::Open(file));
    std::string block;
    // A file that holds everything is read whole, however well it compresses.
    const int64_t wanted = share < 1 ? room : options_.max_bytes - taken_;
    ELA_RETURN_IF_ERROR(stream->Read(static_cast<size_t>(std::max<int64_t>(0, wanted)), &block));
    taken_ += static_cast<int64_t>(block.size());
    if (block.find('\0') != std::string::npos) return absl::OkStatus();
    return AddBlock(file, block, false, static_cast<int64_t>(block.size()) == wanted);
  }

  // `block` may begin and end inside a line.
  absl::Status AddBlock(const InputFile& file, std::string_view block, bool cut_head,
                        bool cut_tail) {
    if (cut_head) block.remove_prefix(std::min(block.find('\n') + 1, block.size()));
    const size_t last = block.rfind('\n');
    if (cut_tail && last != std::string_view::npos) block = block.substr(0, last + 1);
    if (file.format == TextFormat::kText) {
      AddText(block);
      return absl::OkStatus();
    }
    while (!block.empty()) {
      const size_t newline = block.find('\n');
      const std::string_view line = block.substr(0, newline);
      const bool whole = newline != std::string_view::npos || !cut_tail;
      block.remove_prefix(whole && newline != std::string_view::npos ? newline + 1 : block.size());
      if (!whole || line.empty()) continue;
      const auto text = TextOfJsonLine(line, options_.text_key);
      if (text.ok()) AddText(*text);  // bad lines are reported when they are encoded
    }
    return absl::OkStatus();
  }

  // Valid stretches only, in pieces cut behind lines where they can be.
  void AddText(std::string_view text) {
    size_t begin = 0;
    for (size_t i = 0; i < text.size();) {
      const Utf8Char c = DecodeUtf8(text.data() + i, text.size() - i);
      if (c.bytes > 0 && c.code_point != 0x2581) {
        i += static_cast<size_t>(c.bytes);
        continue;
      }
      AddPieces(text.substr(begin, i - begin));
      begin = i += static_cast<size_t>(std::max(1, c.bytes));
    }
    AddPieces(text.substr(begin));
  }

  void AddPieces(std::string_view text) {
    while (!text.empty()) {
      size_t cut = std::min(kTextBytes, text.size());
      if (cut < text.size()) {
        const size_t newline = text.rfind('\n', cut - 1);
        if (newline != std::string_view::npos) {
          cut = newline + 1;
        } else {
          while ((text[cut] & 0xC0) == 0x80) --cut;
        }
      }
      texts_.emplace_back(text.substr(0, cut));
      text.remove_prefix(cut);
    }
  }

  const SampleOptions options_;
  int64_t total_ = 0;
  int64_t seen_ = 0;
  int64_t taken_ = 0;
  std::vector<std::string> texts_;
};

}  // namespace

absl::StatusOr<std::vector<std::string>> SampleText(const std::vector<InputFile>& files,
                                                    const SampleOptions& options) {
  return Sampler(options).Run(files);
}

}  // namespace ela::data
