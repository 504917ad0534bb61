// The ops of ela.h on CUDA: plans the scan, chooses the path, runs its phases in stream order.
//
// Causal: segments of split spans first add up their states (phase 1), which are folded along each
// chain into prefixes; then every item is scanned from its prefix. Bidirectional: every span is a
// chain, whose total each item reads, some chains after the other where their states are many.
// Gradient scans are the same, reversed.
#include <algorithm>

#include "kernels/ela/cuda/hopper.h"
#include "kernels/ela/cuda/portable.h"

namespace ela::kernels::cuda {
namespace {

constexpr int64_t kRawGradientBytes = 64
                                      << 20;  // of the polynomial kernels, unless a head needs more
constexpr int64_t kBlocksPerMultiprocessor = 8;  // of the portable scans

void CheckDims(const ElaConfig& config) {
  const auto fits = [](int64_t n) { return n > 0 && n <= 256 && n % 8 == 0; };
  ELA_CHECK(fits(config.head_dim) && fits(config.value_dim),
            "head dims must be multiples of 8 up to 256: %lld, %lld",
            static_cast<long long>(config.head_dim), static_cast<long long>(config.value_dim));
  ELA_CHECK(config.log_decay.empty() || config.causal, "decay needs causal attention");
}

const float* StatesOf(const Tensor& states) {
  return states.empty() ? nullptr : states.as<const float>();
}

/// A plan on the device, with memory for the states of a group of its chains.
struct Scan {
  DevicePlan plan;
  std::vector<ScanGroup> groups;
  float* states = nullptr;
};

/// Of spans `which`, or of all in groups.
Scan PlanPortable(const Context& ctx, const ElaConfig& config, const Spans& spans,
                  const std::vector<int32_t>& which, bool every_span_a_chain) {
  const int64_t state = config.num_heads * LayoutOf(config).size;
  ScanShape shape;
  shape.num_heads = config.num_heads;
  shape.blocks_per_item = (config.value_dim + 31) / 32;
  shape.target_blocks = kBlocksPerMultiprocessor * NumMultiprocessors(ctx);
  shape.every_span_a_chain = every_span_a_chain;
  if (every_span_a_chain && which.empty()) shape.most_slots = MostSlots(state * 4);
  const ScanPlan plan = PlanScan(spans, which, shape);
  Scan scan;
  scan.plan = Upload(ctx, plan, spans, config);
  scan.groups = plan.groups;
  scan.states = static_cast<float*>(
      ctx.scratch->Take(static_cast<size_t>(plan.num_slots * state) * sizeof(float)));
  return scan;
}

ScanArgs ArgsOf(const ElaConfig& config, const Scan& scan, bool reverse) {
  ScanArgs args;
  args.plan = scan.plan;
  args.states = scan.states;
  args.layout = LayoutOf(config);
  args.kernel = config.kernel;
  args.heads = static_cast<int>(config.num_heads);
  args.num_heads = args.heads;
  args.dim = static_cast<int>(config.head_dim);
  args.reverse = reverse;
  return args;
}

/// Phase 1 and the fold: afterwards each slot holds its prefix (causal) or its chain's total.
void PrepareStates(const Context& ctx, DType dtype, const ElaConfig& config, ScanArgs args,
                   const float* before, const float* after) {
  if (args.plan.num_chains == 0) return;
  args.first_head = 0;
  args.num_heads = args.heads;
  LaunchRowScan(ctx, dtype, ScanMode::kStates, args);
  FoldRequest fold;
  fold.states = args.states;
  fold.before = before;
  fold.after = after;
  fold.reverse = args.reverse;
  fold.exclusive = config.causal;
  FoldChains(ctx, args.plan, config, fold);
}

ScanMode ReadMode(const ElaConfig& config) {
  return config.causal ? ScanMode::kScan : ScanMode::kRead;
}

/// Runs a feature scan whose output is the gradient of `x`; the polynomial kernels go through the
/// gradient of their features, some heads at a time. Of the group's rows.
void GradientOf(const Context& ctx, DType dtype, const ElaConfig& config, ScanArgs args,
                const Tensor& d, int64_t rows, const ScanGroup& of) {
  args.out = ViewOf(d);
  if (IsExp(config.kernel)) {
    LaunchFeatureScan(ctx, dtype, ReadMode(config), args);
    return;
  }
  const ArenaScope scope(ctx.scratch);
  const int64_t head_bytes = std::max<int64_t>(1, rows) * args.layout.features * 4;
  const int group =
      static_cast<int>(std::clamp<int64_t>(kRawGradientBytes / head_bytes, 1, config.num_heads));
  args.raw = static_cast<float*>(ctx.scratch->Take(static_cast<size_t>(head_bytes * group)));
  for (int h = 0; h < args.heads; h += group) {
    args.first_head = h;
    args.num_heads = std::min(group, args.heads - h);
    LaunchFeatureScan(ctx, dtype, ReadMode(config), args);
    LaunchFeatureGradient(ctx, dtype, args.out, args.queries, args.raw, of.begin, of.end, args);
  }
}

/// Totals of one span of each sequence, by a scan whose keys and values `args` names.
void LocalStates(const Context& ctx, const Tensor& states, const Tensor& keys, const Tensor& values,
                 const ElaConfig& config, const Spans& spans, SpanEdge edge, ScanArgs args) {
  const bool reverse = args.keys.phi;
  const std::vector<int32_t> which = EdgeSpanIndices(spans, edge);
  const Scan scan = PlanPortable(ctx, config, spans, which, true);
  const ScanArgs own = ArgsOf(config, scan, reverse);
  args.plan = own.plan, args.states = own.states, args.layout = own.layout;
  args.kernel = own.kernel, args.heads = own.heads, args.num_heads = own.num_heads;
  args.dim = own.dim, args.reverse = reverse;
  HopperStates hopper;
  hopper.keys = keys, hopper.values = values;
  hopper.lse = args.keys.lse, hopper.minus_delta = args.value_extra;
  if (HopperApplies(ctx, config, {keys, values})) {
    RunHopperStates(ctx, hopper, scan.plan, scan.states, config);
  } else {
    LaunchRowScan(ctx, keys.dtype(), ScanMode::kStates, args);
  }
  FoldRequest fold;
  fold.states = scan.states;
  fold.reverse = reverse;
  FoldChains(ctx, scan.plan, config, fold);
  ExportTotals(ctx, scan.plan, config, scan.states, states);
}

struct Gradients {
  Tensor dq, dk, dv;
};

/// Edge states: before, after, gbefore, gafter.
void BackwardScans(const Context& ctx, const Gradients& d, const Tensor& dy, const Tensor& q,
                   const Tensor& k, const Tensor& v, const float* delta, const float* lse,
                   const float* const edges[4], const ElaConfig& config, const Spans& spans) {
  const int64_t rows = spans.begin.back();
  const FeatureRows keys{ViewOf(k), nullptr, false}, queries{ViewOf(q), lse, true};
  for (const bool reverse : {false, true}) {
    const ArenaScope scope(ctx.scratch);
    const Scan scan = PlanPortable(ctx, config, spans, {}, !config.causal);
    for (const ScanGroup& group : scan.groups) {
      ScanArgs args = ArgsOf(config, scan, reverse);
      args.plan = PartOf(scan.plan, group);
      args.keys = reverse ? queries : keys;
      args.queries = reverse ? keys : queries;
      args.values = ViewOf(reverse ? dy : v);
      args.value_extra = reverse ? delta : nullptr;
      const float* start = edges[reverse ? 3 : 0];
      PrepareStates(ctx, q.dtype(), config, args, start, edges[reverse ? 2 : 1]);
      args.edge_states = start;
      args.probes = ViewOf(reverse ? v : dy);
      args.probe_extra = reverse ? nullptr : delta;
      GradientOf(ctx, q.dtype(), config, args, reverse ? d.dk : d.dq, rows, group);
      if (!reverse) continue;
      args.out = ViewOf(d.dv);
      LaunchRowScan(ctx, q.dtype(), ReadMode(config), args);
    }
  }
}

}  // namespace

void ElaStateIdentity(const Context& ctx, Tensor state, const ElaConfig& config) {
  FillIdentity(ctx, state, config);
}

void ElaFold(const Context& ctx, Tensor acc, Tensor later, const ElaConfig& config,
             const std::vector<uint8_t>& take, bool reverse) {
  FoldStates(ctx, acc, later, config, take);
}

void ElaLocalState(const Context& ctx, Tensor state, Tensor k, Tensor v, const ElaConfig& config,
                   const Spans& spans, SpanEdge edge) {
  CheckDims(config);
  const ArenaScope scope(ctx.scratch);
  ScanArgs args;
  args.keys = {ViewOf(k), nullptr, false};
  args.values = ViewOf(v);
  LocalStates(ctx, state, k, v, config, spans, edge, args);
}

void ElaLocalGradState(const Context& ctx, Tensor gstate, Tensor dy, Tensor q, Tensor y, Tensor lse,
                       const ElaConfig& config, const Spans& spans, SpanEdge edge) {
  CheckDims(config);
  const ArenaScope scope(ctx.scratch);
  const int heads = static_cast<int>(config.num_heads);
  const int64_t rows = spans.begin.back();
  auto* delta = static_cast<float*>(
      ctx.scratch->Take(static_cast<size_t>(rows * config.num_heads) * sizeof(float)));
  LaunchHeadDots(ctx, q.dtype(), delta, -1.0f, ViewOf(dy), ViewOf(y), rows, heads,
                 static_cast<int>(config.value_dim));
  ScanArgs args;
  args.keys = {ViewOf(q), StatesOf(lse), true};
  args.values = ViewOf(dy);
  args.value_extra = delta;
  LocalStates(ctx, gstate, q, dy, config, spans, edge, args);
}

void PortableForward(const Context& ctx, Tensor y, Tensor lse, Tensor q, Tensor k, Tensor v,
                     Tensor before, Tensor after, const ElaConfig& config, const Spans& spans,
                     Tensor /*segments*/) {
  const ArenaScope scope(ctx.scratch);
  const Scan scan = PlanPortable(ctx, config, spans, {}, !config.causal);
  for (const ScanGroup& group : scan.groups) {
    ScanArgs args = ArgsOf(config, scan, false);
    args.plan = PartOf(scan.plan, group);
    args.keys = {ViewOf(k), nullptr, false};
    args.queries = {ViewOf(q), nullptr, true};
    args.values = ViewOf(v);
    args.out = ViewOf(y);
    PrepareStates(ctx, q.dtype(), config, args, StatesOf(before), StatesOf(after));
    args.edge_states = StatesOf(before);
    args.lse_out = lse.as<float>();
    LaunchRowScan(ctx, q.dtype(), ReadMode(config), args);
  }
}

void PortableBackward(const Context& ctx, Tensor dq, Tensor dk, Tensor dv, Tensor dy, Tensor q,
                      Tensor k, Tensor v, Tensor y, Tensor lse, Tensor before, Tensor after,
                      Tensor gbefore, Tensor gafter, const ElaConfig& config, const Spans& spans,
                      Tensor /*segments*/) {
  const ArenaScope scope(ctx.scratch);
  const int64_t rows = spans.begin.back();
  auto* minus_delta = TakeScratch<float>(ctx, rows * config.num_heads);
  const float* edges[4] = {StatesOf(before), StatesOf(after), StatesOf(gbefore), StatesOf(gafter)};
  LaunchHeadDots(ctx, q.dtype(), minus_delta, -1.0f, ViewOf(dy), ViewOf(y), rows,
                 static_cast<int>(config.num_heads), static_cast<int>(config.value_dim));
  BackwardScans(ctx, {dq, dk, dv}, dy, q, k, v, minus_delta, StatesOf(lse), edges, config, spans);
}

void ElaForward(const Context& ctx, Tensor y, Tensor lse, Tensor q, Tensor k, Tensor v,
                Tensor before, Tensor after, const ElaConfig& config, const Spans& spans,
                Tensor segments) {
  CheckDims(config);
  if (spans.begin.back() == 0) return;
  if (HopperApplies(ctx, config, {y, q, k, v})) {
    const HopperForward op = {y, lse, q, k, v, StatesOf(before), StatesOf(after), segments};
    RunHopperForward(ctx, op, config, spans);
  } else {
    PortableForward(ctx, y, lse, q, k, v, before, after, config, spans, segments);
  }
}

int64_t ElaSegmentFloats(const Context& ctx, Tensor y, Tensor q, Tensor k, Tensor v,
                         const ElaConfig& config, const Spans& spans) {
  if (!HopperApplies(ctx, config, {y, q, k, v})) return 0;
  return HopperSegmentFloats(ctx, config, spans);
}

void ElaBackward(const Context& ctx, Tensor dq, Tensor dk, Tensor dv, Tensor dy, Tensor q, Tensor k,
                 Tensor v, Tensor y, Tensor lse, Tensor before, Tensor after, Tensor gbefore,
                 Tensor gafter, const ElaConfig& config, const Spans& spans, Tensor segments) {
  CheckDims(config);
  if (spans.begin.back() == 0) return;
  if (HopperApplies(ctx, config, {dq, dk, dv, dy, q, k, v})) {
    const HopperBackward op = {dq,
                               dk,
                               dv,
                               dy,
                               q,
                               k,
                               v,
                               StatesOf(lse),
                               StatesOf(before),
                               StatesOf(after),
                               StatesOf(gbefore),
                               StatesOf(gafter),
                               segments};
    RunHopperBackward(ctx, op, config, spans);
  } else {
    PortableBackward(ctx, dq, dk, dv, dy, q, k, v, y, lse, before, after, gbefore, gafter, config,
                     spans, segments);
  }
}

void ElaDecode(const Context& ctx, Tensor y, Tensor state, Tensor q, Tensor k, Tensor v,
               const ElaConfig& config) {
  CheckDims(config);
  auto* states = state.as<float>();
  if (HopperApplies(ctx, config, {y, q, k, v}) && reinterpret_cast<uintptr_t>(states) % 16 == 0) {
    RunHopperDecode(ctx, y, states, q, k, v, config);
  } else {
    LaunchDecode(ctx, q.dtype(), y, states, q, k, v, config);
  }
}

}  // namespace ela::kernels::cuda
