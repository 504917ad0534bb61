// Exact linear attention on the CPU: tokens per second forward and backward, beside the machine's
// own single-precision rate measured in the same run, and how time grows with length.
//
//   ela_bench [--threads N] [--kernel NAME] [--long]
//
// --long: the slope from 16K to 1M tokens, in bf16 (15 GB at 1M), in place of 4K to 64K in float.
// One thread is timed by the CPU, which other work hardly changes, several by the clock.
#include <cblas.h>
#include <omp.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "tests/bench/timing.h"

namespace ela::bench {
namespace {

using kernels::Context;
using kernels::DType;
using kernels::ElaConfig;
using kernels::FeatureMap;
using kernels::Tensor;

struct Shape {
  int64_t batch, length, heads, dim;
  int64_t tokens() const { return batch * length; }
};

/// All the tensors of one attention call; q, k, v, dy N(0, 1). dq and dk, which different passes
/// write, share memory.
class Attention {
 public:
  Attention(const Shape& s, FeatureMap kernel, bool causal, bool decay, DType dtype = DType::kF32)
      : shape_(s), dtype_(dtype) {
    const auto numel = static_cast<size_t>(s.tokens() * s.heads * s.dim);
    for (std::vector<char>& x : memory_) x.resize(numel * kernels::SizeOf(dtype));
    lse_.resize(static_cast<size_t>(s.tokens() * s.heads));
    std::mt19937 engine(1);
    for (size_t i : {0, 1, 2, 4}) Fill(&engine, &memory_[i]);
    config_.kernel = kernel;
    config_.num_heads = s.heads;
    config_.head_dim = config_.value_dim = s.dim;
    config_.causal = causal;
    if (decay) config_.log_decay = kernels::HeadLogDecay(s.heads);
    spans_.begin.push_back(0);
    for (int64_t b = 0; b < s.batch; ++b) {
      spans_.begin.push_back((b + 1) * s.length);
      spans_.sequence.push_back(static_cast<int32_t>(b));
    }
  }

  void Forward(const Context& ctx) {
    kernels::ElaForward(ctx, At(3), Lse(), At(0), At(1), At(2), {}, {}, config_, spans_);
  }
  void Backward(const Context& ctx) {
    kernels::ElaBackward(ctx, At(5), At(5), At(6), At(4), At(0), At(1), At(2), At(3), Lse(), {}, {},
                         {}, {}, config_, spans_);
  }

 private:
  Tensor At(size_t i) {
    return Tensor(memory_[i].data(), dtype_, {shape_.tokens(), shape_.heads, shape_.dim});
  }
  /// A million numbers, over and over.
  void Fill(std::mt19937* engine, std::vector<char>* x) const {
    std::normal_distribution<float> normal;
    const size_t size = kernels::SizeOf(dtype_);
    const size_t numel = std::min<size_t>(x->size() / size, 1 << 20);
    for (size_t i = 0; i < numel; ++i) {
      const auto bits = std::bit_cast<uint32_t>(normal(*engine));  // a bf16 is its upper half
      std::memcpy(x->data() + i * size, reinterpret_cast<const char*>(&bits) + 4 - size, size);
    }
    for (size_t at = numel * size; at < x->size(); at += numel * size) {
      std::memcpy(x->data() + at, x->data(), std::min(numel * size, x->size() - at));
    }
  }
  Tensor Lse() { return Tensor::Of(lse_.data(), {shape_.tokens(), shape_.heads}); }

  Shape shape_;
  DType dtype_;
  ElaConfig config_;
  kernels::Spans spans_;
  std::vector<char> memory_[7];  // q, k, v, y, dy, dq and dk, dv
  std::vector<float> lse_;
};

/// One thread by the CPU, several by the clock: the median of `runs`, or of one run just that.
template <class Work>
double Seconds(int threads, const Work& work, int runs) {
  if (threads > 1) return runs == 1 ? WallSeconds(work) : MedianSeconds(work, runs);
  std::vector<double> seconds;
  for (int i = 0; i < runs; ++i) seconds.push_back(CpuSeconds(work));
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

/// Of plain BLAS, all threads, each on its own 768^3 product: FLOP per second.
double SgemmRate(int threads) {
  openblas_set_num_threads(1);
  constexpr int64_t kSize = 768;
  std::vector<std::vector<float>> memory(static_cast<size_t>(threads));
  for (auto& m : memory) m.assign(3 * kSize * kSize, 0.5f);
  const auto products = [&] {
#pragma omp parallel num_threads(threads)
    {
      float* m = memory[static_cast<size_t>(omp_get_thread_num())].data();
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, kSize, kSize, kSize, 1.0f, m, kSize,
                  m + kSize * kSize, kSize, 0.0f, m + 2 * kSize * kSize, kSize);
    }
  };
  const double seconds = Seconds(threads, products, 9);
  return 2.0 * kSize * kSize * kSize * threads / seconds;
}

struct Options {
  int threads = omp_get_num_procs();
  FeatureMap kernel = FeatureMap::kHadamardExp;
  bool long_slope = false;
};

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options), sgemm_(SgemmRate(options.threads)) {
    ctx_.num_threads = options.threads;
    ctx_.scratch = &arena_;
    ctx_.counters = &counters_;
    arena_.Reserve(size_t{64} << 20, kernels::Backend::kCpu);
    std::printf("%d threads; sgemm %.1f GFLOP/s\n", options.threads, sgemm_ * 1e-9);
  }

  // FLOP of the products, chunks of 64 without the masked half: forward state in and out 4 D^2,
  // within the chunk 2 * 2 * 32 D; backward five state products and six within the chunk.
  void Row(const Shape& s, bool causal, bool decay) {
    Attention a(s, options_.kernel, causal, decay);
    const double forward = Seconds(
        options_.threads, [&] { a.Forward(ctx_); }, 9);
    const double backward = Seconds(
        options_.threads, [&] { a.Backward(ctx_); }, 9);
    const double d = static_cast<double>(s.dim);
    const double rows = static_cast<double>(s.tokens() * s.heads), chunk = causal ? 32 : 0;
    const double forward_flops = rows * (4 * d * d + 4 * chunk * d);
    const double backward_flops = rows * (10 * d * d + 12 * chunk * d);
    std::printf("B%-3ld L%-7ld H%-3ld D%-4ld %-13s %-6s %10.0f %6.0f%% %10.0f %6.0f%%\n", s.batch,
                s.length, s.heads, s.dim, causal ? "causal" : "bidirectional", decay ? "decay" : "",
                static_cast<double>(s.tokens()) / forward, 100 * forward_flops / forward / sgemm_,
                static_cast<double>(s.tokens()) / backward,
                100 * backward_flops / backward / sgemm_);
    std::fflush(stdout);
  }

  void Table() {
    std::printf("\n%-45s %12s %7s %10s %7s\n", "tokens per second", "forward", "sgemm", "backward",
                "sgemm");
    for (bool decay : {false, true}) Row({1, 4096, 16, 64}, true, decay);
    Row({1, 4096, 16, 64}, false, false);
    Row({1, 4096, 8, 128}, true, true);
    for (int64_t dim : {32, 48, 64}) Row({8, 256, 4, dim}, true, true);
    Row({1, 16384, 1, 64}, true, true);
  }

  // The exponent of time in length, by least squares; one run each.
  void Slope() {
    std::printf("\nforward + backward, 16 heads of 64, causal with decay, by length\n");
    const int64_t shortest = options_.long_slope ? 1 << 14 : 1 << 12;
    const DType dtype = options_.long_slope ? DType::kBf16 : DType::kF32;
    double n = 0, sx = 0, sy = 0, sxx = 0, sxy = 0;
    for (int64_t length = shortest; length <= 64 * shortest; length *= 4) {
      if (!options_.long_slope && length > 1 << 16) break;
      Attention a({1, length, 16, 64}, options_.kernel, true, true, dtype);
      const double seconds = Seconds(
          options_.threads,
          [&] {
            a.Forward(ctx_);
            a.Backward(ctx_);
          },
          length > 1 << 15 ? 1 : 5);
      std::printf("L %-8ld %9.3f s %8.3f us a token, workspace %.1f MB\n", length, seconds,
                  seconds * 1e6 / static_cast<double>(length),
                  static_cast<double>(arena_.peak_bytes()) * 1e-6);
      std::fflush(stdout);
      const double x = std::log(static_cast<double>(length)), y = std::log(seconds);
      n += 1, sx += x, sy += y, sxx += x * x, sxy += x * y;
    }
    std::printf("time ~ L^%.3f\n", (n * sxy - sx * sy) / (n * sxx - sx * sx));
  }

 private:
  Options options_;
  kernels::Arena arena_;
  kernels::Counters counters_;
  Context ctx_;
  double sgemm_;
};

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--long") {
      options.long_slope = true;
    } else if (option == "--threads" && i + 1 < argc) {
      options.threads = std::max(1, std::atoi(argv[++i]));
    } else if (option == "--kernel" && i + 1 < argc) {
      const std::string name = argv[++i];
      const char* const names[] = {"hadamard_exp", "sum_squared", "sub_squared", "modulated_dot"};
      for (size_t k = 0; k < 4; ++k) {
        if (name == names[k]) options.kernel = static_cast<FeatureMap>(k);
      }
    } else {
      std::fprintf(stderr, "ela_bench [--threads N] [--kernel NAME] [--long]\n");
      return 64;
    }
  }
  Bench bench(options);
  bench.Table();
  bench.Slope();
  return 0;
}

}  // namespace
}  // namespace ela::bench

int main(int argc, char** argv) { return ela::bench::Main(argc, argv); }
