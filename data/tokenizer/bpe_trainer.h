// Training of byte-pair encoding: which pairs of neighbouring pieces to merge, the most frequent
// first.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ela::data {

/// Pieces as bytes of UTF-8.
struct TrainedBpe {
  std::vector<std::string> merged;      // in the order of merging, the most frequent first
  std::vector<std::string> characters;  // by falling frequency
};

/// `pieces`: how many merged pieces and characters together. Characters are ASCII that occurs and
/// the most frequent others, so that 99.95% of the text is covered; the rest is left to bytes.
///
/// A piece is a word or a part of one (`_` counts as a letter) with at most one space before it, a
/// run of punctuation that may end in newlines, or a run of one kind of whitespace; digits stay
/// alone. At most 16 characters. Ties go to the pair of pieces that came up first: the same texts
/// give the same result. InvalidArgument, with what would fit, if `pieces` is too small or too
/// large.
absl::StatusOr<TrainedBpe> TrainBpe(const std::vector<std::string>& texts, int64_t pieces);

}  // namespace ela::data
