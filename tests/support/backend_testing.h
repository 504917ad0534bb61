// One op run on several back ends, element types and thread counts with the same numbers.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "tests/support/op_testing.h"

namespace ela::testing {

/// Fills its inputs, runs an op and gives back all its outputs. Activations and parameters are of
/// the given type, statistics and gradients of parameters of StatisticOf it.
using OpRun = std::function<std::vector<Buffer>(const kernels::Context&, DType)>;

inline DType StatisticOf(DType dtype) { return dtype == DType::kF64 ? DType::kF64 : DType::kF32; }

/// N(0, scale^2) rounded to bf16, so that every element type holds the same numbers.
inline Buffer Input(DType dtype, std::initializer_list<int64_t> shape, uint64_t seed,
                    double scale = 1) {
  Buffer buffer = RandomBuffer(dtype, shape, seed, scale);
  const Tensor t = buffer.host();
  for (int64_t i = 0; i < t.numel(); ++i) {
    Set(t, i, static_cast<float>(Bf16(static_cast<float>(Get(t, i)))));
  }
  return buffer;
}

inline Buffer Integers(std::initializer_list<int64_t> shape, const std::vector<int32_t>& values) {
  Buffer buffer(DType::kI32, shape);
  for (size_t i = 0; i < values.size(); ++i) {
    Set(buffer, static_cast<int64_t>(i), values[i]);
  }
  return buffer;
}

/// `count` numbers below `bound`, each as likely.
inline std::vector<int32_t> RandomIntegers(int64_t count, int32_t bound, uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::vector<int32_t> values(static_cast<size_t>(count));
  for (int32_t& value : values) {
    value = static_cast<int32_t>(engine() % static_cast<uint64_t>(bound));
  }
  return values;
}

template <class... Buffers>
std::vector<Buffer> Outputs(Buffers&&... buffers) {
  std::vector<Buffer> outputs;
  (outputs.push_back(std::move(buffers)), ...);
  return outputs;
}

/// Runs the op on the tested back end (f32, bf16) or the reference (f64), and fails if that is not
/// where it ran.
inline std::vector<Buffer> RunAs(DType dtype, int num_threads, const OpRun& run) {
  const bool reference = dtype == DType::kF64;
  const Backend backend = reference ? Backend::kReference : TestBackend();
  OpContext ctx(backend, num_threads);
  std::vector<Buffer> outputs = run(ctx, dtype);
  const auto& ran = backend == Backend::kReference ? ctx.counters().reference_ops
                    : backend == Backend::kCpu     ? ctx.counters().cpu_ops
                                                   : ctx.counters().cuda_ops;
  EXPECT_GT(ran.load(), 0) << "the op ran nowhere";
  return outputs;
}

/// Every output is within `tolerance` of the largest number of the reference's.
inline void ExpectMatchesReference(DType dtype, double tolerance, const OpRun& run) {
  const std::vector<Buffer> actual = RunAs(dtype, 2, run);
  const std::vector<Buffer> expected = RunAs(DType::kF64, 1, run);
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    const double error = RelativeError(actual[i], expected[i]);
    EXPECT_TRUE(error <= tolerance) << "output " << i << ": error " << error;
  }
}

/// The same bits twice, and with 1 and 3 threads.
inline void ExpectSameBits(DType dtype, const OpRun& run) {
  const std::vector<Buffer> first = RunAs(dtype, 1, run);
  for (int num_threads : {1, 3}) {
    const std::vector<Buffer> again = RunAs(dtype, num_threads, run);
    ASSERT_EQ(first.size(), again.size());
    for (size_t i = 0; i < first.size(); ++i) {
      EXPECT_TRUE(BitwiseEqual(first[i], again[i])) << "output " << i << ", " << num_threads;
    }
  }
}

/// Float arithmetic over sums of a few hundred terms; and bf16 results, half a unit in 8 bits of
/// mantissa off the same float arithmetic.
inline constexpr double kFloatTolerance = 2e-6;
inline constexpr double kBf16Tolerance = 4e-3;

/// All of the above on one run.
inline void ExpectGoodOnCpu(const OpRun& run, double float_tolerance = kFloatTolerance,
                            double bf16_tolerance = kBf16Tolerance) {
  ExpectMatchesReference(DType::kF32, float_tolerance, run);
  ExpectMatchesReference(DType::kBf16, bf16_tolerance, run);
  ExpectSameBits(DType::kF32, run);
  ExpectSameBits(DType::kBf16, run);
}

/// `gradient` is d loss() / d x within 1e-6 of its largest number.
inline void ExpectGradient(const Tensor& gradient, const Tensor& x,
                           const std::function<double()>& loss) {
  const double error = RelativeError(gradient, NumericalGradient(x, loss));
  EXPECT_TRUE(error <= 1e-6) << error;
}

}  // namespace ela::testing
