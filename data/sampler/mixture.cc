#include "data/sampler/mixture.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "data/sampler/permutation.h"

namespace ela::data {
namespace {

constexpr uint64_t kBlockOrderKey = 0x626c6f636b;  // tells this use of the seed from the others

// Whole shares of kUnits by largest remainder; ties go to the earlier source.
std::vector<int64_t> Apportion(const std::vector<double>& weights) {
  const double largest = *std::max_element(weights.begin(), weights.end());
  double sum = 0;  // of weights scaled by the largest, so that no finite weight overflows
  for (const double weight : weights) sum += weight / largest;
  std::vector<int64_t> shares(weights.size());
  std::vector<double> remainders(weights.size());
  for (size_t s = 0; s < weights.size(); ++s) {
    const double exact = weights[s] / largest / sum * Mixture::kUnits;
    shares[s] = weights[s] > 0 ? std::max<int64_t>(1, static_cast<int64_t>(exact)) : 0;
    remainders[s] = weights[s] > 0 ? exact - static_cast<double>(shares[s]) : -2.0;
  }
  std::vector<size_t> order(weights.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return remainders[a] > remainders[b]; });
  int64_t left = Mixture::kUnits - std::accumulate(shares.begin(), shares.end(), int64_t{0});
  for (size_t i = 0; left > 0; i = (i + 1) % order.size()) {
    if (weights[order[i]] > 0) ++shares[order[i]], --left;
  }
  // Raising tiny weights to one unit may overshoot: the largest share pays.
  while (left < 0) --*std::max_element(shares.begin(), shares.end()), ++left;
  return shares;
}

// How many points of [0, x) lie below `residue` modulo the block size.
int64_t PointsBelow(int64_t x, int64_t residue) {
  return x / Mixture::kBlock * residue + std::min(x % Mixture::kBlock, residue);
}

}  // namespace

Mixture::Mixture(const std::vector<double>& weights, uint64_t seed)
    : shares_(Apportion(weights)), seed_(seed) {
  int64_t at = 0;
  for (const int64_t share : shares_) {
    line_begin_.push_back(at);
    at += share % kBlock;
  }
}

int64_t Mixture::DrawsBefore(int source, int64_t block) const {
  const int64_t share = shares_[source];
  const int64_t begin = line_begin_[source];
  const int64_t end = begin + share % kBlock;
  const int64_t residue = block % kBlock;
  return block / kBlock * share + residue * (share / kBlock) + PointsBelow(end, residue) -
         PointsBelow(begin, residue);
}

Mixture::Draw Mixture::At(int64_t k) const {
  if (shares_.size() == 1) return {0, k};
  const int64_t block = k / kBlock;
  const Permutation order(kBlock, CombineKeys(CombineKeys(seed_, kBlockOrderKey), block));
  int64_t slot = order(k % kBlock);
  for (int source = 0;; ++source) {
    const int64_t before = DrawsBefore(source, block);
    const int64_t here = DrawsBefore(source, block + 1) - before;
    if (slot < here) return {source, before + slot};
    slot -= here;
  }
}

}  // namespace ela::data
