// A sample of the text of a corpus, to train a tokenizer on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "data/text/input_files.h"

namespace ela::data {

struct SampleOptions {
  int64_t max_bytes = int64_t{8} << 20;
  std::string text_key = "text";
  bool skip_bad_lines = false;
};

/// Texts of up to 4 KiB, whole lines where lines are shorter, of about max_bytes together. The same
/// files give the same sample. If the files hold more, blocks of 16 KiB spread evenly over them are
/// taken; of compressed files and pipes, the beginnings of some.
absl::StatusOr<std::vector<std::string>> SampleText(const std::vector<InputFile>& files,
                                                    const SampleOptions& options);

}  // namespace ela::data
