// Softmax attention in double for tests of the device: any rows of queries against any rows of
// keys.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/tensor.h"

namespace ela::testing::device {

/// Sequences one after another, with documents in them.
struct Places {
  std::vector<int32_t> documents, positions;

  int64_t rows() const { return static_cast<int64_t>(documents.size()); }
  /// `sequences` of `length` rows; a document starts at 0 and at each of `starts`.
  static Places Of(int32_t sequences, int32_t length, const std::vector<int32_t>& starts = {}) {
    Places places;
    int32_t document = -1;
    for (int32_t s = 0; s < sequences; ++s) {
      for (int32_t i = 0; i < length; ++i) {
        bool starts_here = i == 0;
        for (const int32_t start : starts) starts_here |= i == start;
        document += starts_here ? 1 : 0;
        places.documents.push_back(document);
        places.positions.push_back(i);
      }
    }
    return places;
  }
};

/// A problem and its answer. Tensors are [T, H, D], statistics [T, H].
struct SoftmaxOracle {
  Places places;
  int64_t heads, dim;
  bool causal;
  std::vector<double> q, k, v, dy;
  std::vector<double> y, lse, delta, dq, dk, dv;

  /// N(0, scale^2) for q and k, N(0, 1) for v and dy, rounded to bf16.
  SoftmaxOracle(const Places& rows, int64_t num_heads, int64_t head_dim, bool is_causal,
                double scale = 1)
      : places(rows), heads(num_heads), dim(head_dim), causal(is_causal) {
    std::mt19937_64 engine(7);
    for (auto* x : {&q, &k, &v, &dy}) {
      std::normal_distribution<double> normal(0, x == &q || x == &k ? scale : 1);
      x->resize(static_cast<size_t>(places.rows() * heads * dim));
      for (double& value : *x) value = Rounded(normal(engine));
    }
  }

  static double Rounded(double x) {
    return static_cast<float>(kernels::Bf16(static_cast<float>(x)));
  }
  static double Dot(const double* a, const double* b, int64_t n) {
    double sum = 0;
    for (int64_t c = 0; c < n; ++c) sum += a[c] * b[c];
    return sum;
  }
  size_t At(int64_t row, int64_t head) const {
    return static_cast<size_t>((row * heads + head) * dim);
  }
  bool Meet(int64_t i, int64_t j) const {
    const auto a = static_cast<size_t>(i), b = static_cast<size_t>(j);
    return places.documents[a] == places.documents[b] &&
           (!causal || places.positions[b] <= places.positions[a]);
  }

  /// Of all queries against all keys.
  void Solve() {
    y.assign(q.size(), 0);
    lse.assign(static_cast<size_t>(places.rows() * heads), -INFINITY);
    delta.assign(lse.size(), 0);
    dq = dk = dv = y;
    for (int64_t i = 0; i < places.rows(); ++i) {
      for (int64_t h = 0; h < heads; ++h) SolveRow(i, h);
    }
  }

 private:
  void SolveRow(int64_t i, int64_t h) {
    const double scale = 1 / std::sqrt(static_cast<double>(dim));
    const auto at = static_cast<size_t>(i * heads + h);
    std::vector<int64_t> met;
    std::vector<double> scores;
    double largest = -INFINITY, sum = 0;
    for (int64_t j = 0; j < places.rows(); ++j) {
      if (!Meet(i, j)) continue;
      met.push_back(j);
      scores.push_back(scale * Dot(&q[At(i, h)], &k[At(j, h)], dim));
      largest = std::max(largest, scores.back());
    }
    for (const double s : scores) sum += std::exp(s - largest);
    lse[at] = largest + std::log(sum);
    for (size_t n = 0; n < met.size(); ++n) {
      const double p = std::exp(scores[n] - lse[at]);
      for (int64_t c = 0; c < dim; ++c) y[At(i, h) + c] += p * v[At(met[n], h) + c];
    }
    delta[at] = Dot(&dy[At(i, h)], &y[At(i, h)], dim);
    for (size_t n = 0; n < met.size(); ++n) {
      const size_t key = At(met[n], h), query = At(i, h);
      const double p = std::exp(scores[n] - lse[at]);
      const double ds = scale * p * (Dot(&dy[query], &v[key], dim) - delta[at]);
      for (int64_t c = 0; c < dim; ++c) {
        dq[query + c] += ds * k[key + c];
        dk[key + c] += ds * q[query + c];
        dv[key + c] += p * dy[query + c];
      }
    }
  }
};

}  // namespace ela::testing::device
