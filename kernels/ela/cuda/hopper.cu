// Plans and launches the Hopper scans: one pass where the items fill the card, else states of the
// segments, their fold, and the pass from each segment's prefix. Bidirectional scans of many spans,
// each with a state, take a group of them after the other.
#include <algorithm>

#include "kernels/ela/cuda/hopper.h"
#include "kernels/ela/cuda/hopper_launch.h"
#include "kernels/hopper.h"

namespace ela::kernels::cuda {
namespace {

__device__ unsigned long long slow_path_chunks;

__global__ void TakeCount(int64_t* total, unsigned long long* count) {
  *total += static_cast<int64_t>(*count);
  *count = 0;
}

unsigned long long* SlowPathCounter() {
  void* address = nullptr;
  ELA_CUDA_CHECK(cudaGetSymbolAddress(&address, slow_path_chunks));
  return static_cast<unsigned long long*>(address);
}

/// A row of a panel is 128 bytes; what follows it is another head's, or another panel's, loaded as
/// well.
CUtensorMap MapOf(const Tensor& x) {
  return TensorMapOf(x, hopper::kTileRows, CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
}

int PanelsOf(const ElaConfig& config) { return static_cast<int>(config.head_dim / 64); }

hopper::WalkArgs WalkOf(const DevicePlan& plan, float* states, const ElaConfig& config) {
  hopper::WalkArgs walk;
  walk.plan = plan;
  walk.layout = LayoutOf(config);
  walk.states = states;
  walk.edge_states = nullptr;
  walk.slow_chunks = SlowPathCounter();
  walk.heads = static_cast<int>(config.num_heads);
  walk.decays = !config.log_decay.empty();
  return walk;
}

/// One group of spans. All have the same memory for states.
struct Scan {
  DevicePlan plan;
  float* states = nullptr;
  bool folds = false;  // a chain has several segments
};

ScanPlan PlanOf(const Context& ctx, const ElaConfig& config, const Spans& spans) {
  ScanShape shape;
  shape.num_heads = config.num_heads;
  shape.target_blocks = HopperBlocks(ctx, config);
  shape.chunk = hopper::kTileRows;
  const int64_t state_floats = config.num_heads * LayoutOf(config).size;
  shape.every_span_a_chain = !config.causal;
  if (!config.causal) shape.most_slots = MostSlots(state_floats * 4);
  return PlanScan(spans, {}, shape);
}

int64_t StateFloats(const ScanPlan& plan, const ElaConfig& config) {
  return plan.num_slots * config.num_heads * LayoutOf(config).size;
}

/// `segments`: memory for the states, or empty.
std::vector<Scan> StartScans(const Context& ctx, const ElaConfig& config, const Spans& spans,
                             const Tensor& segments = {}) {
  const ScanPlan plan = PlanOf(ctx, config, spans);
  const DevicePlan whole = Upload(ctx, plan, spans, config);
  float* states =
      segments.empty() ? TakeScratch<float>(ctx, StateFloats(plan, config)) : segments.as<float>();
  std::vector<Scan> scans;
  for (const ScanGroup& group : plan.groups) {
    scans.push_back({PartOf(whole, group), states, group.num_items > group.num_chains});
  }
  return scans;
}

/// Phase 1: each slot becomes its prefix (causal) or its chain's total.
void PrepareStates(const Context& ctx, HopperStates op, const Scan& scan, const ElaConfig& config,
                   const float* before, const float* after) {
  if (scan.plan.num_chains == 0) return;
  op.prefixes = config.causal;
  RunHopperStates(ctx, op, scan.plan, scan.states, config);
  // The total of one segment is its state.
  if (!config.causal && !scan.folds && before == nullptr && after == nullptr) return;
  FoldRequest fold;
  fold.states = scan.states;
  fold.before = before;
  fold.after = after;
  fold.reverse = op.lse != nullptr;
  fold.exclusive = config.causal;
  FoldChains(ctx, scan.plan, config, fold);
}

}  // namespace

bool HopperApplies(const Context& ctx, const ElaConfig& config,
                   std::initializer_list<Tensor> tensors) {
  if (!IsExp(config.kernel) || config.head_dim != config.value_dim) return false;
  if (config.head_dim != 64 && config.head_dim != 128) return false;
  return IsHopper() && std::all_of(tensors.begin(), tensors.end(), HasTensorMap);
}

int64_t HopperBlocks(const Context& ctx, const ElaConfig& config) {
  return int64_t{NumMultiprocessors(ctx)} * (3 - PanelsOf(config));
}

void RunHopperStates(const Context& ctx, const HopperStates& op, const DevicePlan& plan,
                     float* states, const ElaConfig& config) {
  if (plan.num_items == 0) return;  // a tensor map has rows
  hopper::StatesArgs args;
  args.walk = WalkOf(plan, states, config);
  args.keys = MapOf(op.keys);
  args.values = MapOf(op.values);
  args.lse = op.lse;
  args.minus_delta = op.minus_delta;
  args.prefixes = op.prefixes;
  hopper::LaunchStates(StreamOf(ctx), PanelsOf(config), args, op.lse != nullptr);
}

int64_t HopperSegmentFloats(const Context& ctx, const ElaConfig& config, const Spans& spans) {
  // Bidirectional scans have a state for each document: too many to be kept.
  if (!config.causal && spans.count() > spans.sequence.back() + 1) return 0;
  const ScanPlan plan = PlanOf(ctx, config, spans);
  return plan.groups.size() > 1 ? 0 : StateFloats(plan, config);
}

namespace {

void RunForward(const Context& ctx, const HopperForward& op, const ElaConfig& config,
                const Scan& scan) {
  HopperStates states;
  states.keys = op.k;
  states.values = op.v;
  PrepareStates(ctx, states, scan, config, op.before, op.after);
  hopper::ForwardArgs args;
  args.walk = WalkOf(scan.plan, scan.states, config);
  args.walk.edge_states = op.before;
  args.q = MapOf(op.q), args.k = MapOf(op.k), args.v = MapOf(op.v);
  args.y_rows = TensorMapOf(op.y, 16);
  args.y = op.y.data();
  args.y_stride = op.y.stride();
  args.lse = op.lse.as<float>();
  args.read_parts = static_cast<int>(
      PartsOfItem(scan.plan.num_items * config.num_heads,
                  NumMultiprocessors(ctx) * hopper::kReadBlocks / PanelsOf(config)));
  hopper::LaunchForward(StreamOf(ctx), PanelsOf(config), args, config.causal);
}

/// minus_delta [T, H]: of the group's rows it is written, then read.
void RunBackward(const Context& ctx, const HopperBackward& op, float* minus_delta,
                 const ElaConfig& config, const Scan& scan) {
  const int panels = PanelsOf(config);
  HopperStates states;
  hopper::BackwardArgs args;
  args.walk = WalkOf(scan.plan, scan.states, config);
  if (op.segments.empty()) {
    states.keys = op.k;
    states.values = op.v;
    PrepareStates(ctx, states, scan, config, op.before, op.after);
  } else {
    args.walk.states = op.segments.as<float>();
  }
  args.walk.edge_states = op.before;
  args.q = MapOf(op.q), args.k = MapOf(op.k), args.v = MapOf(op.v), args.dy = MapOf(op.dy);
  args.dq = op.dq.data(), args.dk = op.dk.data(), args.dv = op.dv.data();
  args.dq_stride = op.dq.stride(), args.dk_stride = op.dk.stride();
  args.dv_stride = op.dv.stride();
  args.lse = op.lse;
  args.minus_delta = minus_delta;
  hopper::LaunchQueryGradient(StreamOf(ctx), panels, args, config.causal);
  args.walk.states = scan.states;
  states.keys = op.q;
  states.values = op.dy;
  states.lse = op.lse;
  states.minus_delta = minus_delta;
  PrepareStates(ctx, states, scan, config, op.gafter, op.gbefore);
  args.walk.edge_states = op.gafter;
  hopper::LaunchKeyGradients(StreamOf(ctx), panels, args, config.causal);
}

}  // namespace

void RunHopperForward(const Context& ctx, const HopperForward& op, const ElaConfig& config,
                      const Spans& spans) {
  const ArenaScope scope(ctx.scratch);
  for (const Scan& scan : StartScans(ctx, config, spans, op.segments)) {
    RunForward(ctx, op, config, scan);
  }
}

void RunHopperBackward(const Context& ctx, const HopperBackward& op, const ElaConfig& config,
                       const Spans& spans) {
  const ArenaScope scope(ctx.scratch);
  auto* minus_delta = TakeScratch<float>(ctx, spans.begin.back() * config.num_heads);
  for (const Scan& scan : StartScans(ctx, config, spans)) {
    RunBackward(ctx, op, minus_delta, config, scan);
  }
}

void ElaTakeSlowPathChunks(const Context& ctx, Tensor chunks) {
  TakeCount<<<1, 1, 0, StreamOf(ctx)>>>(chunks.as<int64_t>(), SlowPathCounter());
  CheckLaunch("ElaTakeSlowPathChunks");
}

}  // namespace ela::kernels::cuda
