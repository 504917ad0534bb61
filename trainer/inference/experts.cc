#include "trainer/inference/experts.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "kernels/device.h"
#include "proto/status_macros.h"

namespace ela::trainer {
namespace {

struct Tally {
  int64_t drawn = 0;
  double weight = 0;
};

struct Tallies {
  std::vector<std::map<int32_t, Tally>> by_expert;  // [N E]
  std::map<int32_t, int64_t> seen;
  int64_t tokens = 0;
};

absl::Status AddWindow(LoadedModel* model, const std::vector<int32_t>& ids, Tallies* tallies) {
  const v1::ModelSpec& spec = model->spec();
  const int64_t e = spec.moe().num_experts(), k = spec.moe().top_k();
  ELA_ASSIGN_OR_RETURN(const TokenRows rows, model->Rows(ids, /*closed=*/false));
  ELA_RETURN_IF_ERROR(model->Forward(rows));
  const kernels::Context& ctx = model->context().ctx;
  std::vector<int32_t> experts(static_cast<size_t>(rows.count() * k));
  std::vector<float> weights(experts.size(), 1);
  for (int64_t layer = 0; layer < spec.num_layers(); ++layer) {
    const MoeLayer& moe = model->decoder().layer(layer).moe();
    if (!moe.dense()) {
      kernels::CopyOut(ctx, experts.data(), moe.experts());
      kernels::CopyOut(ctx, weights.data(), moe.weights());
    }
    for (size_t slot = 0; slot < experts.size(); ++slot) {
      Tally& tally = tallies->by_expert[static_cast<size_t>(layer * e + experts[slot])]
                                       [ids[slot / static_cast<size_t>(k)]];
      ++tally.drawn;
      tally.weight += weights[slot];
    }
  }
  model->decoder().Forget(model->context());
  for (int32_t id : ids) ++tallies->seen[id];
  tallies->tokens += rows.count();
  return absl::OkStatus();
}

// How characteristic: the log-likelihood that drawing at the token's own rate gains over the
// expert's.
double Keyness(const DrawnToken& token, double share) {
  return static_cast<double>(token.drawn) *
         std::log(static_cast<double>(token.drawn) / static_cast<double>(token.seen) / share);
}

// The characteristic tokens, most first. An expert that draws all tokens alike has none: the most
// drawn then.
void Order(double share, std::vector<DrawnToken>* drawn) {
  const auto characteristic = [share](const DrawnToken& t) { return Keyness(t, share) > 0; };
  const auto chance = std::stable_partition(drawn->begin(), drawn->end(), characteristic);
  const bool any = chance != drawn->begin();
  if (any) drawn->erase(chance, drawn->end());
  std::stable_sort(drawn->begin(), drawn->end(), [=](const DrawnToken& a, const DrawnToken& b) {
    return any ? Keyness(a, share) > Keyness(b, share) : a.drawn > b.drawn;
  });
}

ExpertProfile ProfileOf(const Tallies& tallies, size_t index, int64_t experts, int64_t top_k,
                        int64_t top) {
  ExpertProfile profile;
  profile.layer = static_cast<int64_t>(index) / experts;
  profile.expert = static_cast<int64_t>(index) % experts;
  for (const auto& [id, tally] : tallies.by_expert[index]) {
    profile.tokens += tally.drawn;
    profile.tokens_drawn.push_back({id, tally.drawn, tallies.seen.at(id), tally.weight});
  }
  const double share = static_cast<double>(profile.tokens) / static_cast<double>(tallies.tokens);
  profile.load = share / static_cast<double>(top_k);
  Order(share, &profile.tokens_drawn);
  if (static_cast<int64_t>(profile.tokens_drawn.size()) > top) {
    profile.tokens_drawn.resize(static_cast<size_t>(top));
  }
  return profile;
}

}  // namespace

absl::StatusOr<std::vector<ExpertProfile>> ProfileExperts(LoadedModel* model,
                                                          const std::vector<int32_t>& ids,
                                                          int64_t window, int64_t top) {
  if (model->shards() > 1) {
    return absl::InvalidArgumentError(
        "experts are looked into by one rank: start it without mpirun");
  }
  if (ids.empty()) return absl::InvalidArgumentError("the text holds no token");
  const v1::MoeSpec& moe = model->spec().moe();
  Tallies tallies;
  tallies.by_expert.resize(static_cast<size_t>(model->spec().num_layers() * moe.num_experts()));
  for (size_t begin = 0; begin < ids.size(); begin += static_cast<size_t>(window)) {
    const size_t end = std::min(ids.size(), begin + static_cast<size_t>(window));
    ELA_RETURN_IF_ERROR(AddWindow(
        model,
        {ids.begin() + static_cast<ptrdiff_t>(begin), ids.begin() + static_cast<ptrdiff_t>(end)},
        &tallies));
  }
  std::vector<ExpertProfile> profiles;
  for (size_t i = 0; i < tallies.by_expert.size(); ++i) {
    profiles.push_back(ProfileOf(tallies, i, moe.num_experts(), moe.top_k(), top));
  }
  return profiles;
}

}  // namespace ela::trainer
