// How fast the CPU ops are, beside the machine's own rates taken in the same run: raw
// single-threaded cblas_sgemm on one thread per core (each on its own product) for everything made
// of products, and copying memory for everything else.
//
//   ops_bench [threads]      (default: one per core)
#include <cblas.h>
#include <omp.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "kernels/ops.h"
#include "tests/bench/timing.h"

namespace ela::bench {
namespace {

using kernels::Context;
using kernels::DType;
using kernels::Tensor;

/// A tensor that owns its memory: N(0, 1) or, for integers, zeros.
class Owned {
 public:
  Owned(DType dtype, std::initializer_list<int64_t> shape) : view_(nullptr, dtype, shape) {
    bytes_.resize(static_cast<size_t>(view_.numel()) * kernels::SizeOf(dtype));
    view_ = Tensor(bytes_.data(), dtype, shape);
    std::mt19937 engine(1);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; dtype == DType::kF32 && i < view_.numel(); ++i) {
      view_.as<float>()[i] = normal(engine);
    }
  }
  operator Tensor() const { return view_; }  // NOLINT: passes for a Tensor everywhere
  Tensor operator*() const { return view_; }

 private:
  std::vector<char> bytes_;
  Tensor view_;
};

/// Indices below `bound`, each as likely.
Owned Indices(std::initializer_list<int64_t> shape, int32_t bound) {
  Owned indices(DType::kI32, shape);
  std::mt19937 engine(1);
  for (int64_t i = 0; i < (*indices).numel(); ++i) {
    (*indices).as<int32_t>()[i] = static_cast<int32_t>(engine() % static_cast<uint32_t>(bound));
  }
  return indices;
}

struct Ceilings {
  double flops;       // per second, all threads
  double copy_bytes;  // read + written per second, all threads
};

/// Each thread multiplies its own 768^3 matrices by plain BLAS, and copies its own 64 MiB.
Ceilings MeasureCeilings(int threads) {
  openblas_set_num_threads(1);
  constexpr int64_t kSize = 768, kFloats = 16 << 20;
  std::vector<std::vector<float>> memory(static_cast<size_t>(threads));
  for (auto& m : memory) m.assign(2 * kFloats, 0.5f);
  const auto everywhere = [&](const std::function<void(float*)>& work) {
#pragma omp parallel num_threads(threads)
    work(memory[static_cast<size_t>(omp_get_thread_num())].data());
  };
  const double product = MedianSeconds([&] {
    everywhere([](float* m) {
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, kSize, kSize, kSize, 1.0f, m, kSize,
                  m + kSize * kSize, kSize, 0.0f, m + 2 * kSize * kSize, kSize);
    });
  });
  const double copy = MedianSeconds(
      [&] { everywhere([](float* m) { std::memcpy(m, m + kFloats, kFloats * sizeof(float)); }); });
  return {2.0 * kSize * kSize * kSize * threads / product, 8.0 * kFloats * threads / copy};
}

class Table {
 public:
  Table(const Context& ctx, const Ceilings& ceilings) : ctx_(ctx), ceilings_(ceilings) {}

  /// A line for an op that does `flops` of products.
  void Products(const char* name, double flops, const std::function<void()>& op) const {
    const double seconds = MedianSeconds(op);
    std::printf("%-52s %9.3f ms %8.1f GFLOP/s %6.0f%% of sgemm\n", name, seconds * 1e3,
                flops / seconds * 1e-9, 100 * flops / seconds / ceilings_.flops);
  }
  /// A line for an op that must read and write `bytes`.
  void Moves(const char* name, double bytes, const std::function<void()>& op) const {
    const double seconds = MedianSeconds(op);
    std::printf("%-52s %9.3f ms %8.1f GB/s    %6.0f%% of copy\n", name, seconds * 1e3,
                bytes / seconds * 1e-9, 100 * bytes / seconds / ceilings_.copy_bytes);
  }
  const Context& ctx() const { return ctx_; }

 private:
  const Context& ctx_;
  Ceilings ceilings_;
};

constexpr DType kF32 = DType::kF32;

void Linear(const Table& table, int64_t rows, int64_t in, int64_t out) {
  const Owned x(kF32, {rows, in}), w(kF32, {out, in}), y(kF32, {rows, out}), dx(kF32, {rows, in});
  const Owned dw(kF32, {out, in});
  const double flops = 2.0 * static_cast<double>(rows * in * out);
  char name[64];
  std::snprintf(name, sizeof name, "linear forward  [%ld, %ld] x [%ld, %ld]^T", rows, in, out, in);
  table.Products(name, flops, [&] { LinearForward(table.ctx(), y, x, w); });
  std::snprintf(name, sizeof name, "linear backward [%ld, %ld] x [%ld, %ld]^T", rows, in, out, in);
  table.Products(name, 2 * flops, [&] { LinearBackward(table.ctx(), dx, dw, y, x, w); });
}

void GroupedLinear(const Table& table) {
  constexpr int64_t kExperts = 8, kIn = 512, kOut = 1024;
  const std::vector<int64_t> offsets = {0, 200, 900, 900, 1300, 1400, 1650, 2000, 2048};
  const Owned x(kF32, {2048, kIn}), y(kF32, {2048, kOut});
  std::vector<Owned> weights;
  for (int64_t e = 0; e < kExperts; ++e)
    weights.emplace_back(kF32, std::initializer_list<int64_t>{kOut, kIn});
  const std::vector<Tensor> w(weights.begin(), weights.end());
  table.Products("grouped linear forward 2048 rows, 8 experts, 512>1024", 2.0 * 2048 * kIn * kOut,
                 [&] { GroupedLinearForward(table.ctx(), y, x, w, offsets); });
}

void Loss(const Table& table, int64_t vocabulary) {
  constexpr int64_t kTokens = 1024, kWidth = 512;
  const Owned x(kF32, {kTokens, kWidth}), weights(kF32, {vocabulary, kWidth});
  const Owned dx(kF32, {kTokens, kWidth}), dtable(kF32, {vocabulary, kWidth});
  const Owned loss(DType::kF64, {1});
  const Owned targets = Indices({kTokens}, static_cast<int32_t>(vocabulary));
  char name[64];
  std::snprintf(name, sizeof name, "loss and gradients, 1024 tokens, d 512, V %ld", vocabulary);
  table.Products(name, 6.0 * kTokens * kWidth * static_cast<double>(vocabulary), [&] {
    LossForwardBackward(table.ctx(), loss, dx, dtable, x, weights, targets, 1.0);
  });
}

void AdamW(const Table& table) {
  constexpr int64_t kCount = 16 << 20;
  const Owned w(kF32, {kCount}), m(kF32, {kCount}), v(kF32, {kCount}), grad(kF32, {kCount});
  std::memset((*v).data(), 0, kCount * sizeof(float));
  const Owned sum(DType::kF64, {1});
  const kernels::AdamWConfig config = {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8};
  table.Moves("adamw, 16M parameters", 28.0 * kCount,
              [&] { AdamWUpdate(table.ctx(), w, w, m, v, grad, config); });
  table.Moves("sum of squares, 16M", 4.0 * kCount, [&] { SumOfSquares(table.ctx(), sum, grad); });
}

void Rowwise(const Table& table) {
  constexpr int64_t kRows = 8192, kWidth = 1024, kHeads = 8;
  constexpr double kBytes = 4.0 * kRows * kWidth;
  const Context& ctx = table.ctx();
  const Owned x(kF32, {kRows, kWidth}), y(kF32, {kRows, kWidth}), gain(kF32, {kWidth});
  const Owned dx(kF32, {kRows, kWidth}), dgain(kF32, {kWidth}), rstd(kF32, {kRows});
  const Owned gu(kF32, {kRows, 2 * kWidth}), dgu(kF32, {kRows, 2 * kWidth});
  const Owned positions = Indices({kRows}, 100000), ids = Indices({kRows}, 32000);
  const Owned weights(kF32, {32000, kWidth});
  table.Moves("rms_norm forward, 8192 x 1024", 2 * kBytes,
              [&] { RmsNormForward(ctx, y, rstd, x, gain); });
  table.Moves("rms_norm backward", 3 * kBytes,
              [&] { RmsNormBackward(ctx, dx, dgain, y, x, gain, rstd); });
  table.Moves("swiglu forward", 3 * kBytes, [&] { SwigluForward(ctx, y, gu); });
  table.Moves("swiglu backward", 5 * kBytes, [&] { SwigluBackward(ctx, dgu, y, gu); });
  table.Moves("rope, 8 heads", 2 * kBytes, [&] {
    Rope(ctx, (*y).View({kRows, kHeads, kWidth / kHeads}), positions, 10000, false);
  });
  table.Moves("embedding forward, V 32000", 2 * kBytes,
              [&] { EmbeddingForward(ctx, y, ids, weights); });
  table.Moves("embedding backward", 3 * kBytes, [&] { EmbeddingBackward(ctx, weights, dx, ids); });
  table.Moves("add", 3 * kBytes, [&] { Add(ctx, y, x, dx); });
}

void Router(const Table& table) {
  constexpr int64_t kRows = 8192, kWidth = 512, kExperts = 64, kChoices = 2;
  const Owned x(kF32, {kRows, kWidth}), w(kF32, {kExperts, kWidth}), b(kF32, {kExperts});
  const Owned probs(kF32, {kRows, kExperts}), weights(kF32, {kRows, kChoices});
  const Owned experts(DType::kI32, {kRows, kChoices}), slots(DType::kI32, {kRows * kChoices});
  const Owned rows(DType::kI32, {kRows, kChoices}), counts(DType::kI64, {kExperts});
  const Context& ctx = table.ctx();
  table.Products("router forward, 8192 x 512, 64 experts, top 2", 2.0 * kRows * kWidth * kExperts,
                 [&] { RouterForward(ctx, probs, weights, experts, x, w, b); });
  table.Moves("sort slots", 3 * 4.0 * kRows * kChoices,
              [&] { SortSlots(ctx, slots, rows, counts, experts); });
}

int Main(int argc, char** argv) {
  const int threads = argc > 1 ? std::max(1, std::atoi(argv[1])) : omp_get_num_procs();
  const Ceilings ceilings = MeasureCeilings(threads);
  std::printf("%d threads; sgemm %.1f GFLOP/s, copy %.1f GB/s (read + written)\n\n", threads,
              ceilings.flops * 1e-9, ceilings.copy_bytes * 1e-9);
  kernels::Arena arena;
  kernels::Counters counters;
  arena.Reserve(size_t{64} << 20, kernels::Backend::kCpu);
  const Context ctx{.num_threads = threads, .scratch = &arena, .counters = &counters};
  const Table table(ctx, ceilings);
  Linear(table, 256, 256, 256);
  Linear(table, 512, 256, 768);
  Linear(table, 4096, 1024, 1024);
  GroupedLinear(table);
  Loss(table, 2000);
  Loss(table, 32000);
  Router(table);
  Rowwise(table);
  AdamW(table);
  return 0;
}

}  // namespace
}  // namespace ela::bench

int main(int argc, char** argv) { return ela::bench::Main(argc, argv); }
