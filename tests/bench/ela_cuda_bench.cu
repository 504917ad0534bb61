// Exact linear attention on the device at the shapes of the project's table of goals: time, the
// share of the floor (each input read once and each output written once, at copy speed), the goal.
//
// Median of 20 timed runs after 3 of warm-up, device events, random data that no cache holds.
//
//   ela_cuda_bench [--quick] [--softmax] [--json]
//
// --quick leaves the long sequences out, --softmax all but softmax attention. --json prints an
// object a line in place of the table:
// {"shape", "sequences", "length", "heads", "dim", "causal", "forward", "backward", "copy"},
// seconds and bytes a second, {"decode": "state", "batch", "heads", "dim", "seconds",
// "state_bytes"}, and softmax attention's (softmax_cuda_bench.cu) (peers.py).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "kernels/ela/ela.h"
#include "tests/bench/cuda_bench.h"

namespace ela::kernels::cuda {

decltype(::ela::kernels::ElaForward) ElaForward;
decltype(::ela::kernels::ElaSegmentFloats) ElaSegmentFloats;
decltype(::ela::kernels::ElaBackward) ElaBackward;
decltype(::ela::kernels::ElaDecode) ElaDecode;
decltype(::ela::kernels::ElaStateIdentity) ElaStateIdentity;

namespace {

struct Row : Shape {
  bool decay = false, backward = true;
  int64_t document = 0;  // rows of a packed document; 0: the sequence
  double forward_goal = 0.69, backward_goal = 0.62;
};

/// `backward` 0: not run.
void Print(const Row& row, double forward, double backward, double copy, bool json) {
  const auto units = static_cast<double>(row.sequences * row.length * row.heads);
  const auto d = static_cast<double>(row.dim);
  if (json) return PrintJson("shape", row, forward, backward, "copy", copy);
  std::printf("%-34s %9.3f ms %5.1f%% (%.0f%%)", row.name, forward * 1e3,
              100 * units * (8 * d + 4) / copy / forward, 100 * row.forward_goal);
  if (backward > 0) {
    std::printf(" %10.3f ms %5.1f%% (%.0f%%)", backward * 1e3,
                100 * units * (22 * d + 16) / copy / backward, 100 * row.backward_goal);
  }
  std::printf("\n");
}

void Run(Bench* bench, const Row& row, double copy, bool json) {
  const int64_t rows = row.sequences * row.length;
  ElaConfig config;
  config.num_heads = row.heads;
  config.head_dim = config.value_dim = row.dim;
  config.causal = row.causal;
  for (int64_t h = 0; row.decay && h < row.heads; ++h) {
    const double x = 2.0 + 7.0 * static_cast<double>(h) / (static_cast<double>(row.heads) - 1.0);
    config.log_decay.push_back(std::log1p(-std::exp2(-x)));
  }
  Spans spans;
  const int64_t document = row.document == 0 ? row.length : row.document;
  for (int64_t at = 0; at < rows; at += document) {
    spans.begin.push_back(at);
    spans.sequence.push_back(static_cast<int32_t>(at / row.length));
  }
  spans.begin.push_back(rows);
  std::vector<Memory> memory;
  const Tensor q = bench->Random(&memory, rows, row.heads, row.dim);
  const Tensor k = bench->Random(&memory, rows, row.heads, row.dim);
  const Tensor v = bench->Random(&memory, rows, row.heads, row.dim);
  const Tensor y = bench->Random(&memory, rows, row.heads, row.dim);
  const Tensor lse = bench->Floats(&memory, rows, row.heads);
  const int64_t floats = cuda::ElaSegmentFloats(bench->ctx(), y, q, k, v, config, spans);
  const Tensor segments = floats > 0 ? bench->Floats(&memory, 1, floats) : Tensor();
  const double forward = bench->MedianSeconds([&] {
    cuda::ElaForward(bench->ctx(), y, lse, q, k, v, Tensor(), Tensor(), config, spans, segments);
  });
  double backward = 0;
  if (row.backward) {
    const Tensor dy = bench->Random(&memory, rows, row.heads, row.dim);
    const Tensor dq = bench->Random(&memory, rows, row.heads, row.dim);
    const Tensor dk = bench->Random(&memory, rows, row.heads, row.dim);
    const Tensor dv = bench->Random(&memory, rows, row.heads, row.dim);
    const Tensor none;
    backward = bench->MedianSeconds([&] {
      cuda::ElaBackward(bench->ctx(), dq, dk, dv, dy, q, k, v, y, lse, none, none, none, none,
                        config, spans, segments);
    });
  }
  Print(row, forward, backward, copy, json);
}

void RunDecode(Bench* bench, int64_t batch, int64_t heads, int64_t dim, double copy, bool json) {
  ElaConfig config;
  config.num_heads = heads;
  config.head_dim = config.value_dim = dim;
  std::vector<Memory> memory;
  const Tensor q = bench->Random(&memory, batch, heads, dim);
  const Tensor k = bench->Random(&memory, batch, heads, dim);
  const Tensor v = bench->Random(&memory, batch, heads, dim);
  const Tensor y = bench->Random(&memory, batch, heads, dim);
  const Tensor state = bench->Floats(&memory, batch, ElaStateSize(config));
  cuda::ElaStateIdentity(bench->ctx(), state, config);
  const double seconds =
      bench->MedianSeconds([&] { cuda::ElaDecode(bench->ctx(), y, state, q, k, v, config); });
  const int64_t state_bytes = 4 * batch * ElaStateSize(config);
  const double bytes = 2.0 * static_cast<double>(state_bytes);  // read and written
  if (json) {
    std::printf(
        "{\"decode\": \"state\", \"batch\": %lld, \"heads\": %lld, \"dim\": %lld, \"seconds\": "
        "%.9f, "
        "\"state_bytes\": %lld}\n",
        static_cast<long long>(batch), static_cast<long long>(heads), static_cast<long long>(dim),
        seconds, static_cast<long long>(state_bytes));
    return;
  }
  std::printf("decode, batch %lld, H %lld, D %lld: %.3f ms, state bytes at %.1f%% of copy (80%%)\n",
              static_cast<long long>(batch), static_cast<long long>(heads),
              static_cast<long long>(dim), seconds * 1e3, 100 * bytes / seconds / copy);
}

int Main(int argc, char** argv) {
  bool quick = false, json = false, softmax = false;
  for (int i = 1; i < argc; ++i) {
    quick |= std::string(argv[i]) == "--quick";
    json |= std::string(argv[i]) == "--json";
    softmax |= std::string(argv[i]) == "--softmax";
  }
  Bench bench;
  if (!bench.ok()) return 0;
  cudaDeviceProp card;
  Check(cudaGetDeviceProperties(&card, 0));
  if (softmax) {
    RunSoftmax(&bench, json);
    return 0;
  }
  const double copy = bench.CopySpeed();
  if (!json) {
    std::printf("%s, %d multiprocessors; copy %.0f GB/s (read + written)\n", card.name,
                card.multiProcessorCount, copy * 1e-9);
    std::printf("%-34s forward (8D+4 bytes a row and head), backward (22D+16); share (goal)\n", "");
  }
  std::vector<Row> rows = {
      {"B8 L4096 H16 D128", 8, 4096, 16, 128},
      {"B8 L4096 H32 D64", 8, 4096, 32, 64},
      {"B8 L4096 H16 D128 decay", 8, 4096, 16, 128, true, true},
      {"B8 L4096 H16 D128 documents of 512", 8, 4096, 16, 128, true, false, true, 512},
      {"B8 L4096 H16 D128 bidirectional", 8, 4096, 16, 128, false, false, true, 0, 0.77},
      {"B1 L32768 H16 D128", 1, 32768, 16, 128},
  };
  const std::vector<Row> more = {
      {"B1 L262144 H16 D128", 1, 262144, 16, 128},
      {"B1 L1048576 H32 D128", 1, 1048576, 32, 128, true, false, false},
      {"B1 L1048576 H32 D64", 1, 1048576, 32, 64, true, false, false},
      {"B1 L8388608 H4 D64", 1, 8388608, 4, 64, true, false, false},
  };
  if (!quick) rows.insert(rows.end(), more.begin(), more.end());
  for (const Row& row : rows) Run(&bench, row, copy, json);
  RunDecode(&bench, 256, 16, 128, copy, json);
  RunDecode(&bench, 256, 32, 64, copy, json);
  RunDecode(&bench, 1, 16, 128, copy, json);
  RunSoftmax(&bench, json);
  if (json) return 0;
  std::printf("scratch at most %.1f MB\n", static_cast<double>(bench.scratch_bytes()) * 1e-6);
  return 0;
}

}  // namespace
}  // namespace ela::kernels::cuda

int main(int argc, char** argv) { return ela::kernels::cuda::Main(argc, argv); }
