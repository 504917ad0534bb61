// What each expert's label vector draws: for a model and a text, which tokens the router sends to
// which expert, layer by layer.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "trainer/inference/loaded_model.h"

namespace ela::trainer {

struct DrawnToken {
  int32_t id = 0;
  int64_t drawn = 0;  // occurrences that chose the expert
  int64_t seen = 0;   // occurrences in the text
  double weight = 0;  // sum of the gate weights of the drawn ones
};

struct ExpertProfile {
  int64_t layer = 0, expert = 0;
  int64_t tokens = 0;                    // occurrences that chose it
  double load = 0;                       // share of the T K slots; balanced: 1 / E
  std::vector<DrawnToken> tokens_drawn;  // most characteristic first
};

/// [N x E] profiles in order of layer and expert. Tokens are ordered by drawn x ln(share drawn /
/// share of this expert over all tokens): often and more than chance. At most `top` of each, none
/// that are drawn less than chance; the most drawn ones of an expert that draws none more than
/// that, as one that draws every token does. `ids` is cut into windows of at most `window` tokens.
absl::StatusOr<std::vector<ExpertProfile>> ProfileExperts(LoadedModel* model,
                                                          const std::vector<int32_t>& ids,
                                                          int64_t window, int64_t top);

}  // namespace ela::trainer
