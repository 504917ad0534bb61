// States as they travel between ranks: the identity, folds, totals of an edge span.
#include "kernels/ela/cuda/scan.cuh"

namespace ela::kernels::cuda {
namespace {

constexpr int kThreads = 256;

struct StatesArgs {
  StateLayout layout;
  float* states;
  int64_t count;  // states of one head: B H
  bool exp_kernel;
};

__global__ void Identity(const StatesArgs p) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.count * p.layout.size) return;
  const int64_t at = i % p.layout.size;
  const bool gauge = p.exp_kernel && at >= p.layout.m && at < p.layout.m + p.layout.features;
  p.states[i] = gauge ? kEmptyMax : 0.0f;
}

struct FoldArgs {
  StateLayout layout;
  float* acc;
  const float* later;
  const int64_t* take;  // [B] or null
  int heads;
  bool exp_kernel;
};

/// Block: a feature of a head of a sequence; thread: a column, the last one the normaliser.
__global__ void FoldPair(const FoldArgs p) {
  const int f = static_cast<int>(blockIdx.x), column = static_cast<int>(threadIdx.x);
  const StateLayout& l = p.layout;
  const int64_t b = blockIdx.z;
  if (p.take != nullptr && p.take[b] == 0) return;
  float* acc = p.acc + (b * p.heads + blockIdx.y) * l.size;
  const float* later = p.later + (b * p.heads + blockIdx.y) * l.size;
  const bool live = column <= l.values;
  const int at = OffsetOf(l, f, column);
  const float shift = later[l.shift];
  const StateElement x{p.exp_kernel ? acc[l.m + f] : 0.0f, live ? acc[at] : 0.0f};
  const StateElement y{p.exp_kernel ? later[l.m + f] : 0.0f, live ? later[at] : 0.0f};
  const StateElement sum = Combine(x, y, shift, p.exp_kernel);
  __syncthreads();  // every thread has read the row's maximum
  if (live) acc[at] = sum.x;
  if (p.exp_kernel && column == 0) acc[l.m + f] = sum.m;
  if (f == 0 && column == 0) acc[l.shift] += shift;
}

struct ExportArgs {
  StateLayout layout;
  DevicePlan plan;
  const float* slots;
  float* states;
  int heads;
};

/// Block: part of a head of a chain's total.
__global__ void Export(const ExportArgs p) {
  const DeviceChain chain = p.plan.chains[blockIdx.z];
  const SpanEdges edges = p.plan.edges[chain.span];
  const int64_t b = max(edges.first, edges.last), h = blockIdx.y;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= p.layout.size) return;
  float x = 0.0f;  // padding
  if (at < p.layout.shift) {
    x = p.slots[(chain.first_slot * static_cast<int64_t>(p.heads) + h) * p.layout.size + at];
  } else if (at == p.layout.shift) {
    const int64_t* begin = p.plan.span_begin + chain.span;
    x = p.plan.log_decay[h] * static_cast<float>(begin[1] - begin[0]);
  }
  p.states[(b * p.heads + h) * p.layout.size + at] = x;
}

unsigned Blocks(int64_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

}  // namespace

void FillIdentity(const Context& ctx, const Tensor& states, const ElaConfig& config) {
  StatesArgs p;
  p.layout = LayoutOf(config);
  p.states = states.as<float>();
  p.count = states.dim(0) * config.num_heads;
  p.exp_kernel = IsExp(config.kernel);
  if (p.count == 0) return;
  Identity<<<Blocks(p.count * p.layout.size), kThreads, 0, StreamOf(ctx)>>>(p);
  CheckLaunch("Identity");
}

void FoldStates(const Context& ctx, const Tensor& acc, const Tensor& later, const ElaConfig& config,
                const std::vector<uint8_t>& take) {
  if (acc.dim(0) == 0) return;
  const ArenaScope scope(ctx.scratch);
  FoldArgs p;
  p.layout = LayoutOf(config);
  p.acc = acc.as<float>();
  p.later = later.as<const float>();
  const std::vector<int64_t> words(take.begin(), take.end());
  p.take =
      take.empty() ? nullptr : UploadWords(ctx, words.data(), static_cast<int64_t>(words.size()));
  p.heads = static_cast<int>(config.num_heads);
  p.exp_kernel = IsExp(config.kernel);
  const dim3 grid(static_cast<unsigned>(p.layout.features), static_cast<unsigned>(p.heads),
                  static_cast<unsigned>(acc.dim(0)));
  const auto threads = static_cast<unsigned>((p.layout.values + 1 + 31) / 32 * 32);
  FoldPair<<<grid, threads, 0, StreamOf(ctx)>>>(p);
  CheckLaunch("FoldPair");
}

void ExportTotals(const Context& ctx, const DevicePlan& plan, const ElaConfig& config,
                  const float* slots, const Tensor& states) {
  FillIdentity(ctx, states, config);
  if (plan.num_chains == 0) return;
  ExportArgs p;
  p.layout = LayoutOf(config);
  p.plan = plan;
  p.slots = slots;
  p.states = states.as<float>();
  p.heads = static_cast<int>(config.num_heads);
  const dim3 grid(Blocks(p.layout.size), static_cast<unsigned>(p.heads),
                  static_cast<unsigned>(plan.num_chains));
  Export<<<grid, kThreads, 0, StreamOf(ctx)>>>(p);
  CheckLaunch("Export");
}

}  // namespace ela::kernels::cuda
