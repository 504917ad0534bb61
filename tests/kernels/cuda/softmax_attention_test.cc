// Softmax attention on CUDA in bf16 at the head dims of the Hopper kernels, against its definition
// in double. On other cards the same tests run the portable kernels.
//
// Tolerances, rms: outputs are rounded to 8 bits (1.7e-3 at most), weights and their gradients
// enter products as rounded: 3e-3 forward, 6e-3 for gradients. lse is a sum in float of weights
// that are not rounded: 2e-5, and 2^-22 of its size.
#include "kernels/softmax_attention/softmax_attention.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "tests/kernels/cuda/cuda_testing.h"
#include "tests/kernels/cuda/softmax_attention_oracle.h"

namespace ela::kernels::cuda {

// The CUDA back end, called without the dispatch: a test of it cannot run another.
decltype(::ela::kernels::SoftmaxAttentionForward) SoftmaxAttentionForward;
decltype(::ela::kernels::SoftmaxAttentionBackward) SoftmaxAttentionBackward;

namespace {

using namespace ela::testing::device;  // NOLINT

constexpr double kForward = 3e-3, kGradient = 6e-3, kLse = 2e-5;

/// Integers on the device.
class Indices {
 public:
  explicit Indices(const std::vector<int32_t>& values)
      : count_(static_cast<int64_t>(values.size())) {
    EXPECT_EQ(cudaMalloc(&memory_, std::max<size_t>(1, values.size()) * 4), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(memory_, values.data(), values.size() * 4, cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  ~Indices() { (void)cudaFree(memory_); }
  Indices(const Indices&) = delete;
  Indices& operator=(const Indices&) = delete;
  Tensor Rows(int64_t begin, int64_t end) const {
    return Tensor(memory_, DType::kI32, {count_}).Rows(begin, end);
  }

 private:
  int64_t count_;
  void* memory_ = nullptr;
};

/// An oracle's problem on the device. q, k and v are columns of one buffer, as a fused projection
/// leaves them, and so are their gradients where they are of bf16.
class OnDevice {
 public:
  explicit OnDevice(const SoftmaxOracle& oracle, DType sums = DType::kBf16)
      : config_{oracle.heads, oracle.dim, oracle.causal},
        rows_(oracle.places.rows()),
        width_(oracle.heads * oracle.dim),
        q_(DType::kBf16, rows_, width_, 3 * width_),
        k_(DType::kBf16, rows_, width_, 2 * width_ + 8),
        v_(DType::kBf16, rows_, width_, 3 * width_),
        dy_(DType::kBf16, rows_, width_),
        y_(sums, rows_, width_),
        lse_(DType::kF32, rows_, oracle.heads),
        delta_(DType::kF32, rows_, oracle.heads),
        dq_(sums, rows_, width_, 3 * width_),
        dk_(sums, rows_, width_, 2 * width_),
        dv_(sums, rows_, width_),
        documents_(oracle.places.documents),
        positions_(oracle.places.positions) {
    q_.Set(oracle.q), k_.Set(oracle.k), v_.Set(oracle.v), dy_.Set(oracle.dy);
    const std::vector<double> zeros(oracle.q.size(), 0);
    for (DeviceBuffer* x : {&y_, &dq_, &dk_, &dv_}) x->Set(zeros);
    lse_.Set(std::vector<double>(oracle.lse.size(), -INFINITY));
    delta_.Set(oracle.delta);
  }

  void Forward(int64_t q_begin, int64_t q_end, int64_t k_begin, int64_t k_end) {
    cuda::SoftmaxAttentionForward(
        ctx_, Part(y_, q_begin, q_end), lse_.tensor().Rows(q_begin, q_end),
        Part(q_, q_begin, q_end), Part(k_, k_begin, k_end), Part(v_, k_begin, k_end),
        documents_.Rows(q_begin, q_end), documents_.Rows(k_begin, k_end),
        positions_.Rows(q_begin, q_end), positions_.Rows(k_begin, k_end), config_);
    ctx_.Synchronize();
  }
  void Forward() { Forward(0, rows_, 0, rows_); }
  /// With the lse that the oracle or Forward gave.
  void Backward(int64_t q_begin, int64_t q_end, int64_t k_begin, int64_t k_end) {
    cuda::SoftmaxAttentionBackward(
        ctx_, Part(dq_, q_begin, q_end), Part(dk_, k_begin, k_end), Part(dv_, k_begin, k_end),
        Part(dy_, q_begin, q_end), Part(q_, q_begin, q_end), Part(k_, k_begin, k_end),
        Part(v_, k_begin, k_end), lse_.tensor().Rows(q_begin, q_end),
        delta_.tensor().Rows(q_begin, q_end), documents_.Rows(q_begin, q_end),
        documents_.Rows(k_begin, k_end), positions_.Rows(q_begin, q_end),
        positions_.Rows(k_begin, k_end), config_);
    ctx_.Synchronize();
  }
  void Backward() { Backward(0, rows_, 0, rows_); }

  std::vector<std::vector<double>> Outputs() const {
    return {y_.Get(), lse_.Get(), dq_.Get(), dk_.Get(), dv_.Get()};
  }
  DeviceBuffer& y() { return y_; }
  DeviceBuffer& k() { return k_; }
  DeviceBuffer& lse() { return lse_; }

  void ExpectClose(const SoftmaxOracle& o, const std::string& what, double gradient = kGradient) {
    const double y = RmsError(y_.Get(), o.y, {}), dq = RmsError(dq_.Get(), o.dq, {});
    const double dk = RmsError(dk_.Get(), o.dk, {}), dv = RmsError(dv_.Get(), o.dv, {});
    const double lse = LseError(lse_.Get(), o.lse);
    std::printf("%-40s y %.1e lse %.1e dq %.1e dk %.1e dv %.1e\n", what.c_str(), y, lse, dq, dk,
                dv);
    EXPECT_TRUE(y <= kForward) << what;
    EXPECT_TRUE(lse <= kLse) << what;
    EXPECT_TRUE(std::max({dq, dk, dv}) <= gradient) << what;
  }

 private:
  Tensor Part(const DeviceBuffer& x, int64_t begin, int64_t end) const {
    return x.Heads(config_.num_heads).Rows(begin, end);
  }
  static double LseError(const std::vector<double>& actual, const std::vector<double>& expected) {
    double worst = 0;
    for (size_t i = 0; i < actual.size(); ++i) {
      const double error = std::abs(actual[i] - expected[i]);
      if (!(error <= INFINITY)) return INFINITY;
      worst = std::max(worst, error - std::ldexp(std::abs(expected[i]), -22));
    }
    return worst;
  }

  CudaContext ctx_;
  SoftmaxAttentionConfig config_;
  int64_t rows_, width_;
  DeviceBuffer q_, k_, v_, dy_, y_, lse_, delta_, dq_, dk_, dv_;
  Indices documents_, positions_;
};

class SoftmaxAttentionOnCuda : public CudaTest {};

void ExpectRight(const Places& places, int64_t heads, int64_t dim, bool causal,
                 const std::string& what, double scale = 1) {
  SoftmaxOracle oracle(places, heads, dim, causal, scale);
  oracle.Solve();
  OnDevice device(oracle);
  device.Forward();
  device.Backward();
  device.ExpectClose(oracle, what + " D" + std::to_string(dim) + (causal ? " causal" : ""));
}

TEST_F(SoftmaxAttentionOnCuda, IsRightAtTheEdgesOfTiles) {
  for (const int64_t dim : {64, 128}) {
    for (const int32_t length : {2, 63, 64, 65, 127, 128, 129, 191, 192, 193, 257, 500}) {
      for (const bool causal : {true, false}) {
        ExpectRight(Places::Of(1, length), 2, dim, causal, "length " + std::to_string(length));
      }
    }
  }
}

TEST_F(SoftmaxAttentionOnCuda, IsRightForPackedDocuments) {
  for (const int64_t dim : {64, 128}) {
    for (const bool causal : {true, false}) {
      ExpectRight(Places::Of(2, 450, {1, 2, 63, 64, 65, 128, 300, 449}), 3, dim, causal, "packed");
    }
  }
}

TEST_F(SoftmaxAttentionOnCuda, IsRightForMoreTilesThanBlocks) {
  for (const int64_t dim : {64, 128}) {
    ExpectRight(Places::Of(30, 200, {77}), 8, dim, true, "30 sequences of 200");
  }
}

TEST_F(SoftmaxAttentionOnCuda, IsRightForManyHeads) {
  for (const bool causal : {true, false}) {
    ExpectRight(Places::Of(2, 150, {70}), 11, 128, causal, "11 heads");
  }
}

TEST_F(SoftmaxAttentionOnCuda, IsRightForRowsInAnyOrder) {
  Places places = Places::Of(3, 130, {50});
  for (size_t i = 0; i < 195; i += 2) {
    std::swap(places.documents[i], places.documents[389 - i]);
    std::swap(places.positions[i], places.positions[389 - i]);
  }
  for (const int64_t dim : {64, 128}) {
    for (const bool causal : {true, false}) ExpectRight(places, 2, dim, causal, "shuffled");
  }
}

TEST_F(SoftmaxAttentionOnCuda, SurvivesLargeScores) {
  for (const int64_t dim : {64, 128}) {
    // Scores of +-1000 and more: nearly every row is one key's.
    SoftmaxOracle oracle(Places::Of(1, 300), 2, dim, true, 10);
    oracle.Solve();
    OnDevice device(oracle);
    device.Forward();
    EXPECT_LE(RmsError(device.y().Get(), oracle.y, {}), kForward);
    device.Backward();
    for (const auto& output : device.Outputs()) {
      for (const double x : output) ASSERT_TRUE(std::isfinite(x));
    }
  }
}

TEST_F(SoftmaxAttentionOnCuda, FollowsScoresThatGrowFromTileToTile) {
  for (const int64_t dim : {64, 128}) {
    for (const bool late : {true, false}) {
      SoftmaxOracle oracle(Places::Of(1, 700), 1, dim, false);
      for (size_t i = 0; i < oracle.k.size(); ++i) {
        const auto part = static_cast<int>(i / static_cast<size_t>(100 * dim));
        oracle.k[i] = std::ldexp(oracle.k[i], late ? part : 6 - part);
      }
      oracle.Solve();
      OnDevice device(oracle);
      device.Forward();
      EXPECT_LE(RmsError(device.y().Get(), oracle.y, {}), kForward) << dim << late;
    }
  }
}

TEST_F(SoftmaxAttentionOnCuda, FoldsBlocksOfKeysInAnyOrder) {
  using Blocks = std::vector<std::pair<int64_t, int64_t>>;
  SoftmaxOracle oracle(Places::Of(1, 400, {40, 41, 300}), 2, 128, true);
  oracle.Solve();
  for (const Blocks& blocks :
       {Blocks{{0, 200}, {200, 400}}, Blocks{{130, 400}, {1, 130}, {0, 1}}}) {
    OnDevice device(oracle, DType::kF32);
    for (const auto& [begin, end] : blocks) device.Forward(0, 400, begin, end);
    for (const auto& [begin, end] : blocks) device.Backward(0, 400, begin, end);
    device.ExpectClose(oracle, "blocks of keys");
  }
}

TEST_F(SoftmaxAttentionOnCuda, TakesQueriesInAnySplit) {
  for (const int64_t dim : {64, 128}) {
    SoftmaxOracle oracle(Places::Of(2, 250), 2, dim, true);
    oracle.Solve();
    OnDevice device(oracle, DType::kF32);
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 70}, {70, 71}, {71, 500}}) {
      device.Forward(begin, end, 0, 500);
      device.Backward(begin, end, 0, 500);
    }
    device.ExpectClose(oracle, "splits of queries");
  }
}

TEST_F(SoftmaxAttentionOnCuda, RowsThatMeetNothingKeepTheirBits) {
  for (const int64_t dim : {64, 128}) {
    SoftmaxOracle oracle(Places::Of(2, 200), 1, dim, true);
    oracle.Solve();
    OnDevice device(oracle);
    device.y().Set(oracle.dy);
    device.Forward(0, 400, 150, 200);  // the first sequence's last keys
    const std::vector<double> y = device.y().Get(), lse = device.lse().Get();
    for (int64_t i = 0; i < 400; ++i) {
      const bool meets = i >= 150 && i < 200;
      const auto at = static_cast<size_t>(i * dim);
      EXPECT_EQ(std::equal(&y[at], &y[at] + dim, &oracle.dy[at]), !meets) << i;
      EXPECT_EQ(std::isfinite(lse[static_cast<size_t>(i)]), meets) << i;
    }
  }
}

TEST_F(SoftmaxAttentionOnCuda, FutureKeysChangeNoBit) {
  SoftmaxOracle oracle(Places::Of(1, 300), 2, 128, true);
  oracle.Solve();
  OnDevice a(oracle), b(oracle);
  std::vector<double> other = oracle.k;
  for (size_t i = 201 * 256; i < other.size(); ++i) other[i] = 1e4;
  b.k().Set(other);
  a.Forward();
  b.Forward();
  const std::vector<double> x = a.y().Get(), y = b.y().Get();
  EXPECT_TRUE(std::equal(x.begin(), x.begin() + 201 * 256, y.begin()));
  EXPECT_FALSE(std::equal(x.begin(), x.end(), y.begin()));
}

TEST_F(SoftmaxAttentionOnCuda, NotANumberReachesTheRowsThatSeeIt) {
  SoftmaxOracle oracle(Places::Of(1, 300), 1, 128, true);
  oracle.Solve();
  OnDevice device(oracle);
  std::vector<double> keys = oracle.k;
  keys[150 * 128 + 3] = NAN;
  device.k().Set(keys);
  device.Forward();
  const std::vector<double> y = device.y().Get();
  for (size_t i = 0; i < 300; ++i) EXPECT_EQ(std::isfinite(y[i * 128]), i < 150) << i;
}

TEST_F(SoftmaxAttentionOnCuda, SameResultTwice) {
  for (const int64_t dim : {64, 128}) {
    SoftmaxOracle oracle(Places::Of(10, 400, {130}), 8, dim, true);
    oracle.lse.assign(static_cast<size_t>(oracle.places.rows() * 8), 0);
    oracle.delta = oracle.lse;
    std::vector<std::vector<double>> first;
    for (int run = 0; run < 4; ++run) {
      OnDevice device(oracle);
      device.Forward();
      device.Backward();
      if (run == 0) first = device.Outputs();
      EXPECT_TRUE(device.Outputs() == first) << run;
    }
  }
}

}  // namespace
}  // namespace ela::kernels::cuda
