#include <cmath>
#include <limits>
#include <vector>

#include "kernels/matrix.h"
#include "kernels/softmax_attention/softmax_attention.h"

namespace ela::kernels::reference {
namespace {

constexpr double kNothing = -std::numeric_limits<double>::infinity();

/// Scores of one query row in one head against all keys; -inf where they don't meet.
class Scores {
 public:
  Scores(const Tensor& q, const Tensor& k, const Tensor& q_document, const Tensor& k_document,
         const Tensor& q_position, const Tensor& k_position, const SoftmaxAttentionConfig& config)
      : q_(q),
        k_(k),
        q_document_(q_document),
        k_document_(k_document),
        q_position_(q_position),
        k_position_(k_position),
        config_(config) {}

  std::vector<double> Of(int64_t i, int64_t h) const {
    const int64_t d = config_.head_dim;
    std::vector<double> scores(static_cast<size_t>(k_.rows()), kNothing);
    for (int64_t j = 0; j < k_.rows(); ++j) {
      if (q_document_(i, 0) != k_document_(j, 0)) continue;
      if (config_.causal && k_position_(j, 0) > q_position_(i, 0)) continue;
      double dot = 0;
      for (int64_t c = h * d; c < (h + 1) * d; ++c) dot += q_(i, c) * k_(j, c);
      scores[static_cast<size_t>(j)] = dot / std::sqrt(static_cast<double>(d));
    }
    return scores;
  }
  const Matrix& q() const { return q_; }
  const Matrix& k() const { return k_; }

 private:
  Matrix q_, k_, q_document_, k_document_, q_position_, k_position_;
  SoftmaxAttentionConfig config_;
};

}  // namespace

void SoftmaxAttentionForward(const Context& ctx, Tensor y_inout, Tensor lse_inout, Tensor q,
                             Tensor k, Tensor v_in, Tensor q_document, Tensor k_document,
                             Tensor q_position, Tensor k_position,
                             const SoftmaxAttentionConfig& config) {
  const int64_t d = config.head_dim;
  const Scores scores_of(q, k, q_document, k_document, q_position, k_position, config);
  const Matrix v(v_in);
  Matrix y(y_inout), lse(lse_inout);
  for (int64_t i = 0; i < y.rows(); ++i) {
    for (int64_t h = 0; h < config.num_heads; ++h) {
      const std::vector<double> scores = scores_of.Of(i, h);
      double largest = lse(i, h);
      for (const double s : scores) largest = std::fmax(largest, s);
      if (largest == kNothing) continue;
      const double before = std::exp(lse(i, h) - largest);  // the weight of what was seen
      double sum = before;
      for (const double s : scores) sum += std::exp(s - largest);
      for (int64_t c = h * d; c < (h + 1) * d; ++c) {
        double value = before * y(i, c);
        for (int64_t j = 0; j < v.rows(); ++j) {
          value += std::exp(scores[static_cast<size_t>(j)] - largest) * v(j, c);
        }
        y(i, c) = value / sum;
      }
      lse(i, h) = largest + std::log(sum);
    }
  }
  y.StoreTo(y_inout);
  lse.StoreTo(lse_inout);
}

void SoftmaxAttentionDecode(const Context& ctx, Tensor y, Tensor keys, Tensor values, Tensor q,
                            Tensor k, Tensor v, Tensor positions,
                            const SoftmaxAttentionConfig& config) {
  CheckDecodeShapes(y, keys, values, q, k, v, positions, config);
  const int64_t room = keys.dim(1), heads = config.num_heads, d = config.head_dim;
  for (int64_t b = 0; b < q.dim(0); ++b) {
    const int64_t first = b * room, seen = positions.as<int32_t>()[b] + 1;
    const auto rows = [&](const Tensor& cache) {
      return cache.View({cache.dim(0) * room, heads, d}).Rows(first, first + seen);
    };
    Matrix(k.Rows(b, b + 1)).StoreTo(rows(keys).Rows(seen - 1, seen));
    Matrix(v.Rows(b, b + 1)).StoreTo(rows(values).Rows(seen - 1, seen));
    const std::vector<int32_t> zeros(static_cast<size_t>(seen));  // one document, all of it past
    const Tensor places = Tensor::Of(zeros.data(), {seen});
    std::vector<double> lse(static_cast<size_t>(heads), kNothing);
    Matrix(1, heads * d).StoreTo(y.Rows(b, b + 1));
    reference::SoftmaxAttentionForward(
        ctx, y.Rows(b, b + 1), Tensor::Of(lse.data(), {1, heads}), q.Rows(b, b + 1), rows(keys),
        rows(values), places.Rows(0, 1), places, places.Rows(0, 1), places, config);
  }
}

void SoftmaxAttentionMerge(const Context& ctx, Tensor y_inout, Tensor lse_inout, Tensor part_y_in,
                           Tensor part_lse_in) {
  Matrix y(y_inout), lse(lse_inout);
  const Matrix part_y(part_y_in), part_lse(part_lse_in);
  const int64_t d = y_inout.dim(2);
  for (int64_t i = 0; i < y.rows(); ++i) {
    for (int64_t h = 0; h < lse.columns(); ++h) {
      if (part_lse(i, h) == kNothing) continue;
      const double largest = std::fmax(lse(i, h), part_lse(i, h));
      const double sum = std::exp(lse(i, h) - largest) + std::exp(part_lse(i, h) - largest);
      const double share = std::exp(part_lse(i, h) - largest) / sum;
      for (int64_t c = h * d; c < (h + 1) * d; ++c) {
        y(i, c) += share * (part_y(i, c) - y(i, c));
      }
      lse(i, h) = largest + std::log(sum);
    }
  }
  y.StoreTo(y_inout);
  lse.StoreTo(lse_inout);
}

void SoftmaxAttentionBackward(const Context& ctx, Tensor dq_inout, Tensor dk_inout, Tensor dv_inout,
                              Tensor dy_in, Tensor q, Tensor k, Tensor v_in, Tensor lse_in,
                              Tensor delta_in, Tensor q_document, Tensor k_document,
                              Tensor q_position, Tensor k_position,
                              const SoftmaxAttentionConfig& config) {
  const int64_t d = config.head_dim;
  const double scale = 1 / std::sqrt(static_cast<double>(d));
  const Scores scores_of(q, k, q_document, k_document, q_position, k_position, config);
  const Matrix v(v_in), dy(dy_in), lse(lse_in), delta(delta_in);
  Matrix dq(dq_inout), dk(dk_inout), dv(dv_inout);
  for (int64_t i = 0; i < dq.rows(); ++i) {
    for (int64_t h = 0; h < config.num_heads; ++h) {
      const std::vector<double> scores = scores_of.Of(i, h);
      for (int64_t j = 0; j < dk.rows(); ++j) {
        const double score = scores[static_cast<size_t>(j)];
        if (score == kNothing) continue;
        const double p = std::exp(score - lse(i, h));
        double dp = 0;
        for (int64_t c = h * d; c < (h + 1) * d; ++c) dp += dy(i, c) * v(j, c);
        const double ds = scale * p * (dp - delta(i, h));
        for (int64_t c = h * d; c < (h + 1) * d; ++c) {
          dq(i, c) += ds * scores_of.k()(j, c);
          dk(j, c) += ds * scores_of.q()(i, c);
          dv(j, c) += p * dy(i, c);
        }
      }
    }
  }
  dq.StoreTo(dq_inout);
  dk.StoreTo(dk_inout);
  dv.StoreTo(dv_inout);
}

}  // namespace ela::kernels::reference
