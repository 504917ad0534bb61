// Softmax attention on the device: time, TFLOP/s, and the share of the rate of a bf16 product of
// 8192^3 measured first. FLOP: 4 B H L^2 D forward, half of that where causal, and 2.5 times as
// much backward; what a kernel computes twice or masks does not count.
//
// With --json an object a line: {"softmax", "sequences", "length", "heads", "dim", "causal",
// "forward", "backward", "products"}, seconds and FLOP a second.
#include <cmath>
#include <cstdio>
#include <vector>

#include "kernels/device_gemm.h"
#include "kernels/softmax_attention/softmax_attention.h"
#include "tests/bench/cuda_bench.h"

namespace ela::kernels::cuda {

decltype(::ela::kernels::SoftmaxAttentionForward) SoftmaxAttentionForward;
decltype(::ela::kernels::SoftmaxAttentionBackward) SoftmaxAttentionBackward;

namespace {

/// FLOP a second.
double ProductRate(Bench* bench) {
  constexpr int64_t n = 8192;
  std::vector<Memory> memory;
  DeviceGemm product;
  product.m = product.n = product.k = product.lda = product.ldb = product.ldc = n;
  product.a = bench->Random(&memory, n, 1, n).data();
  product.b = bench->Random(&memory, n, 1, n).data();
  product.c = bench->Random(&memory, n, 1, n).data();
  product.input = product.output = DType::kBf16;
  const double seconds = bench->MedianSeconds([&] { Gemm(bench->ctx(), product); });
  return 2.0 * n * n * n / seconds;
}

struct Row : Shape {
  int64_t document = 0;  // rows of a packed document; 0: the sequence
};

Tensor Integers(std::vector<Memory>* memory, const std::vector<int32_t>& values) {
  const size_t bytes = values.size() * sizeof(int32_t);
  memory->emplace_back(bytes);
  Check(cudaMemcpy(memory->back().data, values.data(), bytes, cudaMemcpyHostToDevice));
  return Tensor(memory->back().data, DType::kI32, {static_cast<int64_t>(values.size())});
}

/// FLOP of a forward pass.
double FlopOf(const Row& row) {
  const int64_t document = row.document == 0 ? row.length : row.document;
  return 4.0 * static_cast<double>(row.sequences * row.length * row.heads * row.dim) *
         static_cast<double>(document) * (row.causal ? 0.5 : 1.0);
}

void Print(double seconds, double flop, double rate) {
  std::printf(" %9.3f ms %5.0f TFLOP/s %5.1f%%", seconds * 1e3, flop / seconds * 1e-12,
              100 * flop / seconds / rate);
  std::fflush(stdout);
}

void Run(Bench* bench, const Row& row, double rate, bool json) {
  const int64_t rows = row.sequences * row.length;
  const SoftmaxAttentionConfig config{row.heads, row.dim, row.causal};
  const int64_t document = row.document == 0 ? row.length : row.document;
  std::vector<int32_t> documents, positions;
  for (int64_t i = 0; i < rows; ++i) {
    documents.push_back(static_cast<int32_t>(i / document));
    positions.push_back(static_cast<int32_t>(i % row.length));
  }
  std::vector<Memory> memory;
  const Tensor doc = Integers(&memory, documents), pos = Integers(&memory, positions);
  const auto random = [&] { return bench->Random(&memory, rows, row.heads, row.dim); };
  const Tensor q = random(), k = random(), v = random(), y = random(), dy = random();
  const Tensor dq = random(), dk = random(), dv = random();
  const Tensor lse = bench->Floats(&memory, rows, row.heads);
  const Tensor delta = bench->Floats(&memory, rows, row.heads);
  const Tensor nothing = bench->Floats(&memory, rows, row.heads);
  const std::vector<float> empty(static_cast<size_t>(rows * row.heads), -INFINITY);
  const size_t bytes = empty.size() * sizeof(float);
  Check(cudaMemcpy(nothing.data(), empty.data(), bytes, cudaMemcpyHostToDevice));
  Check(cudaMemset(delta.data(), 0, bytes));
  Check(cudaDeviceSynchronize());
  // What was folded in before is forgotten each time; those 4 bytes a row and head are timed too.
  const double forward = bench->MedianSeconds([&] {
    Check(cudaMemcpyAsync(lse.data(), nothing.data(), bytes, cudaMemcpyDeviceToDevice,
                          static_cast<cudaStream_t>(bench->ctx().stream)));
    cuda::SoftmaxAttentionForward(bench->ctx(), y, lse, q, k, v, doc, doc, pos, pos, config);
  });
  if (!json) {
    std::printf("%-34s", row.name);
    Print(forward, FlopOf(row), rate);
  }
  const double backward = bench->MedianSeconds([&] {
    cuda::SoftmaxAttentionBackward(bench->ctx(), dq, dk, dv, dy, q, k, v, lse, delta, doc, doc, pos,
                                   pos, config);
  });
  if (json) {
    PrintJson("softmax", row, forward, backward, "products", rate);
  } else {
    Print(backward, 2.5 * FlopOf(row), rate);
    std::printf("\n");
  }
}

}  // namespace

void RunSoftmax(Bench* bench, bool json) {
  const double rate = ProductRate(bench);
  if (!json) {
    std::printf("softmax attention, forward and backward; of products at %.0f TFLOP/s\n",
                rate * 1e-12);
  }
  const std::vector<Row> rows = {
      {"B8 L4096 H16 D128", 8, 4096, 16, 128},
      {"B8 L4096 H32 D64", 8, 4096, 32, 64},
      {"B1 L32768 H16 D128", 1, 32768, 16, 128},
      {"B8 L4096 H16 D128 bidirectional", 8, 4096, 16, 128, false},
      {"B8 L4096 H16 D128 documents of 512", 8, 4096, 16, 128, true, 512},
  };
  for (const Row& row : rows) Run(bench, row, rate, json);
}

}  // namespace ela::kernels::cuda
