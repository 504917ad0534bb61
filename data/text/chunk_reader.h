// Input files, one after the other, in chunks of about a mebibyte.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "data/text/byte_stream.h"
#include "data/text/input_files.h"

namespace ela::data {

/// Where a chunk begins. Reading from there gives the same chunks as reading on did.
struct ReadPosition {
  int64_t input = 0;   // index of the file
  int64_t offset = 0;  // bytes of its text, decompressed
  int64_t line = 0;    // lines before it, of JSON lines
};

struct Chunk {
  const InputFile* input = nullptr;
  std::string bytes;       // whole lines, except the last of a file or one too long for a chunk
  int64_t first_line = 1;  // of JSON lines
  bool begins_file = true;
  bool ends_file = true;
  ReadPosition next;
  int64_t skipped_files = 0;  // passed over by this reader before it
};

class ChunkReader {
 public:
  static constexpr size_t kChunkBytes = size_t{1} << 20;
  static constexpr size_t kMaxLineBytes = size_t{1} << 30;  // of JSON lines

  /// `files` must outlive the reader. Binary files (a NUL in the first 8 KiB) are skipped with a
  /// notice.
  ChunkReader(const std::vector<InputFile>& files, const ReadPosition& start, const Notice& notice);

  /// False at the end of the last file.
  absl::StatusOr<bool> Next(Chunk* chunk);

  /// Bytes of files consumed, including all of those passed over.
  int64_t consumed() const;
  int64_t skipped_files() const { return skipped_files_; }

 private:
  absl::StatusOr<bool> OpenInput();
  absl::Status Fill(size_t bytes);
  absl::StatusOr<size_t> FindCut(const InputFile& file);

  const std::vector<InputFile>& files_;
  Notice notice_;
  ReadPosition position_;
  std::unique_ptr<ByteStream> stream_;
  std::string pending_;   // read but not given out: begins at position_
  bool at_end_ = false;   // of stream_
  int64_t consumed_ = 0;  // of the files before position_.input
  int64_t skipped_files_ = 0;
};

}  // namespace ela::data
