// Plans in device memory, and folds along the chains of a plan.
#include <cstring>

#include "kernels/ela/cuda/scan.cuh"

namespace ela::kernels::cuda {
namespace {

/// Appends `count` objects of whole words; returns the index of the first word.
template <class T>
size_t Append(std::vector<int64_t>* words, const T* objects, size_t count) {
  static_assert(sizeof(T) % sizeof(int64_t) == 0);
  const size_t at = words->size();
  words->insert(words->end(), count * sizeof(T) / sizeof(int64_t), 0);
  if (count > 0) std::memcpy(words->data() + at, objects, count * sizeof(T));
  return at;
}

std::vector<SpanEdges> EdgesOf(const Spans& spans) {
  std::vector<SpanEdges> edges(static_cast<size_t>(spans.count()), SpanEdges{-1, -1});
  for (int32_t s : EdgeSpanIndices(spans, SpanEdge::kFirst)) {
    edges[static_cast<size_t>(s)].first = spans.sequence[static_cast<size_t>(s)];
  }
  for (int32_t s : EdgeSpanIndices(spans, SpanEdge::kLast)) {
    edges[static_cast<size_t>(s)].last = spans.sequence[static_cast<size_t>(s)];
  }
  return edges;
}

struct FoldParams {
  StateLayout layout;
  DevicePlan plan;
  float* states;
  const float* before;
  const float* after;
  int heads;
  bool exp_kernel, reverse, exclusive;
};

constexpr int kFoldBatch = 8;  // segments read at once

/// Block: one feature of one head of one chain; thread: a column, the last one the normaliser.
__global__ void Fold(const FoldParams p) {
  const int f = static_cast<int>(blockIdx.x), h = static_cast<int>(blockIdx.y);
  const int column = static_cast<int>(threadIdx.x);
  const DeviceChain chain = p.plan.chains[blockIdx.z];
  const SpanEdges edges = p.plan.edges[chain.span];
  const StateLayout& l = p.layout;
  const bool live = column <= l.values;
  const int at = OffsetOf(l, f, column);
  const auto read = [&](const float* states, int64_t slot) {
    const float* state = states + (slot * p.heads + h) * l.size;
    return StateElement{p.exp_kernel ? state[l.m + f] : 0.0f, live ? state[at] : 0.0f};
  };
  const auto write = [&](int64_t slot, StateElement e) {
    float* state = p.states + (slot * p.heads + h) * l.size;
    if (p.exp_kernel && column == 0) state[l.m + f] = e.m;
    if (live) state[at] = e.x;
  };
  const int32_t from = p.reverse ? edges.last : edges.first;
  const int32_t to = p.reverse ? edges.first : edges.last;
  StateElement acc{kEmptyMax, 0.0f};
  if (p.before != nullptr && from >= 0) acc = read(p.before, from);
  const auto slot_of = [&](int i) {
    return chain.first_slot + (p.reverse ? chain.count - 1 - i : i);
  };
  // Of an exclusive fold the last segment is in no prefix: its slot may hold nothing yet.
  const int count = p.exclusive ? chain.count - 1 : chain.count;
  for (int first = 0; first < count; first += kFoldBatch) {
    StateElement tails[kFoldBatch];
    float shifts[kFoldBatch];
#pragma unroll
    for (int i = 0; i < kFoldBatch; ++i) {
      if (first + i >= count) break;
      const int slot = slot_of(first + i);
      tails[i] = read(p.states, slot);
      shifts[i] = p.states[(static_cast<int64_t>(slot) * p.heads + h) * l.size + l.shift];
    }
    __syncthreads();  // every thread has read the rows' maxima
#pragma unroll
    for (int i = 0; i < kFoldBatch; ++i) {
      if (first + i >= count) break;
      if (p.exclusive) write(slot_of(first + i), acc);
      acc = Combine(acc, tails[i], shifts[i], p.exp_kernel);
    }
  }
  if (p.exclusive) write(slot_of(count), acc);
  if (p.exclusive) return;
  if (p.after != nullptr && to >= 0) acc = Combine(acc, read(p.after, to), 0.0f, p.exp_kernel);
  __syncthreads();
  write(chain.first_slot, acc);
}

}  // namespace

StateLayout LayoutOf(const ElaConfig& config) {
  StateLayout l;
  l.features = NumFeatures(config);
  l.values = static_cast<int>(config.value_dim);
  l.c = l.features * l.values;
  l.m = l.c + l.features;
  l.shift = l.m + (IsExp(config.kernel) ? l.features : 0);
  l.size = ElaStateSize(config) / config.num_heads;
  ELA_CHECK(l.shift < l.size, "a head's state is %lld floats", static_cast<long long>(l.size));
  return l;
}

DevicePlan Upload(const Context& ctx, const ScanPlan& plan, const Spans& spans,
                  const ElaConfig& config) {
  std::vector<DeviceItem> items;
  for (const ScanItem& item : plan.items) {
    const ScanChain chain =
        item.chain < 0 ? ScanChain{-1, 0, 0} : plan.chains[static_cast<size_t>(item.chain)];
    items.push_back({item.begin, item.end, item.span, item.slot, chain.first_slot,
                     chain.first_slot + chain.count - 1});
  }
  std::vector<DeviceChain> chains;
  for (const ScanChain& c : plan.chains) chains.push_back({c.first_slot, c.count, c.span, 0});
  std::vector<float> decay(static_cast<size_t>((config.num_heads + 1) / 2 * 2), 0.0f);
  for (size_t h = 0; h < config.log_decay.size(); ++h) {
    decay[h] = static_cast<float>(config.log_decay[h]);
  }
  const std::vector<SpanEdges> edges = EdgesOf(spans);
  std::vector<int64_t> words;
  const size_t at_begin = Append(&words, spans.begin.data(), spans.begin.size());
  const size_t at_edges = Append(&words, edges.data(), edges.size());
  const size_t at_items = Append(&words, items.data(), items.size());
  const size_t at_chains = Append(&words, chains.data(), chains.size());
  struct FloatPair {
    float pair[2];
  };
  const size_t at_decay =
      Append(&words, reinterpret_cast<const FloatPair*>(decay.data()), decay.size() / 2);

  const int64_t* device = UploadWords(ctx, words.data(), static_cast<int64_t>(words.size()));
  DevicePlan result;
  result.span_begin = device + at_begin;
  result.edges = reinterpret_cast<const SpanEdges*>(device + at_edges);
  result.items = reinterpret_cast<const DeviceItem*>(device + at_items);
  result.chains = reinterpret_cast<const DeviceChain*>(device + at_chains);
  result.log_decay = reinterpret_cast<const float*>(device + at_decay);
  result.num_items = static_cast<int>(plan.items.size());
  result.num_chains = static_cast<int>(plan.chains.size());
  return result;
}

HeadDecay HeadDecayOf(const Context& ctx, const ElaConfig& config) {
  HeadDecay decay = {};
  if (config.num_heads > 64) {
    decay.many = Upload(ctx, ScanPlan(), Spans(), config).log_decay;
  } else {
    for (size_t h = 0; h < config.log_decay.size(); ++h) {
      decay.few[h] = static_cast<float>(config.log_decay[h]);
    }
  }
  return decay;
}

void FoldChains(const Context& ctx, const DevicePlan& plan, const ElaConfig& config,
                const FoldRequest& request) {
  if (plan.num_chains == 0) return;
  FoldParams p;
  p.layout = LayoutOf(config);
  p.plan = plan;
  p.states = request.states;
  p.before = request.before;
  p.after = request.after;
  p.heads = static_cast<int>(config.num_heads);
  p.exp_kernel = IsExp(config.kernel);
  p.reverse = request.reverse;
  p.exclusive = request.exclusive;
  const int threads = (p.layout.values + 1 + 31) / 32 * 32;
  constexpr int kMaxGridZ = 65535;
  for (int z = 0; z < plan.num_chains; z += kMaxGridZ) {
    p.plan.chains = plan.chains + z;
    const dim3 grid(static_cast<unsigned>(p.layout.features), static_cast<unsigned>(p.heads),
                    static_cast<unsigned>(std::min(kMaxGridZ, plan.num_chains - z)));
    Fold<<<grid, static_cast<unsigned>(threads), 0, StreamOf(ctx)>>>(p);
  }
  CheckLaunch("Fold");
}

}  // namespace ela::kernels::cuda
