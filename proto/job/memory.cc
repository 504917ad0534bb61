// The memory plan: what one rank of a job holds, by kind. The rank with the longest slice of the
// sequence and, where it depends on the data, experts that share the tokens evenly and whatever
// documents need most. A test of the trainer compares it with the real arenas.

#include <algorithm>
#include <vector>

#include "proto/job/memory_sizes.h"

namespace ela::job {
namespace {

// Elements of this rank's two flat buffers (ParameterStore), and what the rank that owns most of
// them keeps (Zero1Optimizer).
struct Classes {
  explicit Classes(const Sizes& s) {
    std::vector<std::vector<ParameterInfo>> parts, experts;
    for (const ParameterInfo& parameter : Parameters(s.model)) {
      parts.resize(static_cast<size_t>(parameter.part) + 1);
      experts.resize(parts.size());
      (parameter.is_expert ? experts : parts).back().push_back(parameter);
    }
    const int64_t expert_data = std::max<int64_t>(1, s.ranks / s.expert);
    Owners dense(s.ranks), own_experts(expert_data);
    for (size_t part = 0; part < parts.size(); ++part) {
      experts[part].resize(experts[part].size() / static_cast<size_t>(s.expert));  // all alike
      const int64_t numel = Add(s, parts[part], &dense),
                    of_experts = Add(s, experts[part], &own_experts);
      const int64_t sent = part == 0 ? std::min(numel, LongestBucket(s.ranks)) : numel;
      received =
          std::max(received, (s.ranks > 1 ? 2 * sent : 0) + (expert_data > 1 ? 2 * of_experts : 0));
    }
    for (int64_t r = 0; r < s.ranks; ++r) {
      const auto d = static_cast<size_t>(r), e = static_cast<size_t>(r / s.expert % expert_data);
      const int64_t moments = dense.trained[d] + own_experts.trained[e];
      trained = std::max(trained, moments);
      staged = std::max(staged, dense.owned[d] + own_experts.owned[e] + 2 * moments);
    }
  }
  // What each rank of a class's group owns, without padding.
  struct Owners {
    explicit Owners(int64_t ranks)
        : owned(static_cast<size_t>(ranks)), trained(static_cast<size_t>(ranks)) {}
    std::vector<int64_t> owned, trained;
  };
  // A part's elements, dealt out bucket by bucket. Returns how many there are with padding.
  int64_t Add(const Sizes& s, const std::vector<ParameterInfo>& part, Owners* owners) {
    const auto ranks = static_cast<int64_t>(owners->owned.size());
    const std::vector<int64_t> offsets = FlatOffsets(part);
    const int64_t padded = PaddedPart(offsets.back(), ranks), longest = LongestBucket(ranks);
    for (size_t i = 0; i < part.size(); ++i) {
      const int64_t end = offsets[i] + part[i].numel();
      const bool trains = !s.lobe_only || IsOfLobe(part[i]);
      for (int64_t at = offsets[i]; at < end;) {
        if (const int64_t whole = at % longest == 0 ? (end - at) / longest : 0; whole > 0) {
          const int64_t each = whole * (longest / ranks);
          for (int64_t& owned : owners->owned) owned += each;
          for (int64_t& trained : owners->trained) trained += trains ? each : 0;
          at += whole * longest;
          continue;
        }
        const int64_t bucket = at / longest * longest;
        const int64_t piece = std::min(longest, padded - bucket) / ranks;
        const int64_t rank = (at - bucket) / piece;
        const int64_t cut = std::min(end, bucket + (rank + 1) * piece);
        owners->owned[static_cast<size_t>(rank)] += cut - at;
        if (trains) owners->trained[static_cast<size_t>(rank)] += cut - at;
        at = cut;
      }
    }
    elements += padded;
    masters += padded / ranks;
    return padded;
  }
  int64_t elements = 0;  // of both buffers
  int64_t masters = 0;   // whose masters live here, with padding
  int64_t trained = 0;   // whose moments live here
  int64_t staged = 0;    // of a snapshot: masters and both moments, without padding
  int64_t received = 0;  // of the others' gradients: of the widest part, and once more
};

// Features of a head of D numbers: hadamard_exp's are its elements, the others add a norm and a 1.
int64_t Features(const Sizes& s, int64_t head_dim) {
  const auto kernel = s.model.attention().kernel();
  const bool exp = kernel == v1::KERNEL_HADAMARD_EXP || kernel == v1::KERNEL_UNSPECIFIED;
  return exp ? head_dim : head_dim + 2;
}

// A state: per head a count, D numbers of the gauge, F x (D + 1) sums, a multiple of 4; in float.
int64_t StateBytes(const Sizes& s, int64_t heads) {
  const int64_t head_dim = s.d / heads;
  return heads * RoundUp(1 + head_dim + Features(s, head_dim) * (head_dim + 1), 4) * kFloat;
}
int64_t StateBlock(const Sizes& s, int64_t heads, int64_t states) {
  return Block(states * StateBytes(s, heads), 1);
}

// Linear attention on Hopper (kernels/ela/cuda): hadamard_exp, bf16, head dims 64 and 128.
bool OnHopper(const Sizes& s, int64_t heads) {
  const int64_t head_dim = s.d / heads;
  return s.device && s.element == 2 && Features(s, head_dim) == head_dim &&
         (head_dim == 64 || head_dim == 128);
}

// States of the segments that linear attention cuts the rows into on a device, where heads alone do
// not fill it (kernels/ela/cuda/plan.h); at most, where that depends on the documents.
struct Segments {
  int64_t saved = 0;  // for the backward pass on Hopper
  int64_t held = 0;   // at once
};
Segments ElaSegments(const Sizes& s, int64_t heads, bool causal) {
  constexpr int64_t kMultiprocessors = 132, kChunk = 64, kStateBytes = 64 << 20;
  const int64_t head_dim = s.d / heads, length = s.t / s.b;
  const bool hopper = OnHopper(s, heads);
  const int64_t item_blocks = heads * (hopper ? 1 : (head_dim + 31) / 32);
  const int64_t blocks = kMultiprocessors * (!hopper ? 8 : head_dim == 128 ? 1 : 2);
  const bool split = 10 * s.b * item_blocks < 7 * blocks;
  if (causal && !split) return {};
  const auto up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t items = split ? std::max<int64_t>(1, blocks / item_blocks) : s.b;
  const int64_t rows = up(std::max<int64_t>(1, up(s.t, items)), kChunk) * kChunk;
  // Of one document a sequence.
  const int64_t each =
      split ? std::clamp<int64_t>(up(length, rows), 1, std::max<int64_t>(1, up(length, kChunk)))
            : 1;
  const int64_t whole = s.b * each;
  if (causal) {
    // Documents longer than 5/4 of an item are cut, into less than 9/5 as many as would fit.
    const int64_t most = std::min(items, up(s.t, kChunk)) * 9 / 5;
    const int64_t all = s.packed ? most : length <= rows + rows / 4 ? 0 : whole;
    return {all, all};
  }
  // Every document has a state; of several groups of them none are saved.
  const int64_t group = std::max<int64_t>(1, kStateBytes / StateBytes(s, heads));
  const int64_t longest = split ? items : 1;
  return {whole <= group || s.b == 1 ? whole : 0, s.packed
                                                      ? std::min(s.t, std::max(group, longest))
                                                      : std::min(whole, std::max(group, each))};
}

// Linear attention between projections: log-denominators, with a sharded sequence the folded
// states, and on Hopper the states of segments.
int64_t ElaSaved(const Sizes& s, int64_t heads, bool causal) {
  const int64_t states = s.sequence > 1 ? (causal ? 1 : 2) * StateBlock(s, heads, s.b) : 0;
  const int64_t segments =
      OnHopper(s, heads) ? StateBlock(s, heads, ElaSegments(s, heads, causal).saved) : 0;
  return Block(s.t * heads, kFloat) + states + segments;
}

// norm, q, k, v and the output between projections; the reciprocal norm; what attention itself
// keeps.
int64_t AttentionSaved(const Sizes& s, bool softmax) {
  const int64_t heads = s.model.num_attention_heads();
  const int64_t mixer = softmax ? Block(s.t * heads, kFloat) : ElaSaved(s, heads, !s.masked);
  return Block(s.t, kFloat) + 2 * Block(s.t * s.d, s.element) + Block(3 * s.t * s.d, s.element) +
         mixer;
}

// Probabilities, weights and three lists of indices of this rank's tokens; input, weight, gate and
// value, hidden and output of the rows routed here. A dense network keeps gate and value, hidden.
int64_t MoeSaved(const Sizes& s) {
  const int64_t rows = s.t * s.k;
  if (s.dense) return Block(2 * s.t * s.f, s.element) + Block(s.t * s.f, s.element);
  return Block(s.t * s.e, kFloat) + Block(rows, kFloat) + 3 * Block(rows, kIndex) +
         2 * Block(rows * s.d, s.element) + Block(rows, kFloat) + Block(2 * rows * s.f, s.element) +
         Block(rows * s.f, s.element);
}

// [norm], q, k, v, output.
int64_t LobeSaved(const Sizes& s) {
  const v1::MemoryLobeSpec& lobe = s.model.memory_lobe();
  if (!lobe.enabled()) return 0;
  const int64_t norm = lobe.norm() ? Block(s.t * s.d, s.element) + Block(s.t, kFloat) : 0;
  const bool causal = lobe.mode() != v1::LOBE_MODE_BIDIRECTIONAL;
  return norm + Block(3 * s.t * s.d, s.element) + Block(s.t * s.d, s.element) +
         ElaSaved(s, lobe.num_heads(), causal);
}

// One layer beside its input: pre_norm keeps x1, n2(x1) and for a lobe f, hyper_link a and f.
int64_t LayerSaved(const Sizes& s, bool softmax) {
  const bool three = s.pre_norm && s.model.memory_lobe().enabled();
  const int64_t stream =
      (three ? 3 : 2) * Block(s.t * s.d, s.element) + (s.pre_norm ? Block(s.t, kFloat) : 0);
  return stream + AttentionSaved(s, softmax) + MoeSaved(s) + LobeSaved(s);
}

// What the device reads of the host's numbers: an index a token.
int64_t Uploaded(const Sizes& s) { return s.device ? Block(s.t, kIndex) : 0; }

// The inputs of all layers, the last one's output and the final norm's; and what the layers keep:
// all together, but those that are recomputed one at a time, when the others have ended.
int64_t Activations(const Sizes& s) {
  const int64_t layers = s.model.num_layers();
  const int64_t every = s.model.attention().softmax_every();
  const auto softmax_in = [&](int64_t first) { return every > 0 ? first / every : 0; };
  const int64_t softmax = softmax_in(layers), again = softmax_in(s.recomputed);
  int64_t bytes = (layers + 1) * Block(s.t * s.d, s.element) + Uploaded(s);  // positions
  if (s.model.final_norm()) bytes += Block(s.t * s.d, s.element) + Block(s.t, kFloat);
  const int64_t kept = (softmax - again) * LayerSaved(s, true) +
                       (layers - s.recomputed - (softmax - again)) * LayerSaved(s, false);
  const int64_t one = std::max(s.recomputed > again ? LayerSaved(s, false) : 0,
                               again > 0 ? LayerSaved(s, true) : 0);
  return bytes + std::max(kept, one);
}

// Backward through products in bf16 runs on copies in float on the CPU: rows of x, dx and dy, and
// the weights [y, x].
int64_t Widened(const Sizes& s, int64_t rows, int64_t x, int64_t y, int64_t weights) {
  return s.element == kFloat || s.device ? 0 : Block(rows * (2 * x + y) + weights * x * y, kFloat);
}

// Linear attention's backward pass on a device (kernels/ela/cuda): a number a row and head, the
// states of the segments that sequences are cut into where heads alone do not fill the card, of the
// polynomial kernels the gradients of the features of some heads, and 64 bytes a span.
int64_t ElaDeviceWork(const Sizes& s, int64_t heads, bool causal) {
  constexpr int64_t kRawBytes = 64 << 20;
  const int64_t head_dim = s.d / heads, features = Features(s, head_dim);
  const int64_t head_bytes = s.t * features * kFloat;
  const int64_t raw =
      features == head_dim ? 0 : head_bytes * std::clamp<int64_t>(kRawBytes / head_bytes, 1, heads);
  return Block(s.t * heads, kFloat) + raw + Block(s.packed ? s.t : s.b, 64) +
         StateBlock(s, heads, ElaSegments(s, heads, causal).held);
}

// Linear attention at work: states of all shards, of what is around, and on the CPU one state for
// each 64 tokens both ways.
int64_t ElaWork(const Sizes& s, int64_t heads, bool causal) {
  constexpr int64_t kChunk = 64;
  const int64_t edges = causal ? 1 : 2;
  const int64_t exchange =
      s.sequence > 1 ? (s.sequence + 2) * edges * StateBlock(s, heads, s.b) : 0;
  if (s.device) return exchange + ElaDeviceWork(s, heads, causal);
  const int64_t chunks = 2 * ((s.t + kChunk - 1) / kChunk + s.b);
  return exchange + StateBlock(s, heads, chunks);
}

// Softmax attention on P shards: what this rank sends around the ring; up to two buffers of what
// comes, and of results each way; sums in float where elements aren't.
int64_t SoftmaxRing(const Sizes& s) {
  const int64_t steps = s.masked ? s.sequence - 1 : s.sequence / 2;
  if (steps == 0) return 0;
  const int64_t width = s.t * s.d, statistics = 2 * s.t * s.model.num_attention_heads() * kFloat;
  const int64_t message = Block(2 * width * s.element + statistics, 1);
  const int64_t sent = Block(2 * width, s.element) + (s.masked ? 0 : message);
  const int64_t sums = s.element == kFloat ? 0 : 3 * Block(width, kFloat);
  return sent + std::min<int64_t>(steps, 2) * (message + 2 * Block(2 * width, kFloat)) + sums;
}

// Its backward pass on a device (kernels/softmax_attention): what tiles hold, and on Hopper the
// sums of dq of whole tiles of queries, their statistics and turns.
int64_t SoftmaxDeviceWork(const Sizes& s) {
  const int64_t heads = s.model.num_attention_heads(), head_dim = s.d / heads;
  const auto tiles = [&](int64_t rows) { return (s.t + rows - 1) / rows; };
  if (s.element != 2 || (head_dim != 64 && head_dim != 128)) return 2 * Block(tiles(32), 16);
  const int64_t key_tile = 128, query_tile = head_dim == 64 ? 128 : 64;
  const auto places = [&](int64_t rows) {
    return Block(tiles(rows) * rows, 8) + Block(tiles(rows), 32) + Block(tiles(rows), 12);
  };
  const int64_t padded = tiles(query_tile) * query_tile;
  return places(query_tile) + places(key_tile) + Block(padded * heads, 8) +
         Block(padded * s.d, kFloat) + Block(1 + tiles(query_tile) * heads, kIndex);
}

// Its backward pass: the ring, delta, and on the CPU parts of dq of runs of key tiles and the tiles
// of one thread.
int64_t SoftmaxWork(const Sizes& s) {
  constexpr int64_t kQueryTile = 64, kKeyTile = 256, kItems = 8;
  const int64_t heads = s.model.num_attention_heads(), head_dim = s.d / heads;
  const int64_t delta = Block(s.t * heads, kFloat);
  if (s.device) return SoftmaxRing(s) + delta + SoftmaxDeviceWork(s);
  const int64_t runs =
      std::max<int64_t>(1, std::min((kItems + heads - 1) / heads, (s.t + kKeyTile - 1) / kKeyTile));
  const bool in_place = runs == 1 && (s.element == kFloat || s.sequence > 1);
  const int64_t parts = in_place ? 0 : Block(runs * s.t * s.d, kFloat);
  const int64_t wide = s.element == kFloat ? 0 : 2 * (kQueryTile + kKeyTile) * head_dim;
  const int64_t tiles = 2 * kQueryTile * kKeyTile + 2 * kKeyTile * head_dim + wide;
  return SoftmaxRing(s) + delta + parts + Block(tiles, kFloat);
}

// Backward through W_o, the mixer, q, k, v and the norm; the lobe is the same without W_o.
int64_t AttentionWork(const Sizes& s) {
  const int64_t heads = s.model.num_attention_heads();
  int64_t mixer = ElaWork(s, heads, !s.masked);
  if (s.model.attention().softmax_every() > 0) mixer = std::max(mixer, SoftmaxWork(s));
  if (const v1::MemoryLobeSpec& lobe = s.model.memory_lobe(); lobe.enabled()) {
    mixer = std::max(mixer, ElaWork(s, lobe.num_heads(), lobe.mode() == v1::LOBE_MODE_CAUSAL));
  }
  return 5 * Block(s.t * s.d, s.element) +
         std::max(mixer, Widened(s, s.t, s.d, 3 * s.d, /*weights=*/1));
}

// Backward through the experts: rows and their gradients by expert and by token.
int64_t MoeWork(const Sizes& s) {
  const int64_t rows = s.t * s.k;
  if (s.dense) {
    return Block(s.t * s.f, s.element) + Block(2 * s.t * s.f, s.element) +
           Widened(s, s.t, s.d, 2 * s.f, /*weights=*/1);
  }
  const int64_t by_expert = 3 * Block(rows * s.d, s.element) + Block(rows * s.f, s.element) +
                            Block(2 * rows * s.f, s.element) +
                            Widened(s, rows, s.d, 2 * s.f, std::max<int64_t>(1, s.e / s.expert));
  const int64_t by_token =
      2 * Block(rows * s.d, s.element) + 3 * Block(rows, kFloat) + Block(s.t * s.d, s.element);
  const int64_t router = Block(s.t * s.e, kFloat) + Widened(s, s.t, s.d, s.e, /*weights=*/1);
  return by_token + std::max(by_expert, router);
}

// On a device (kernels/loss/tiles.h) tiles of logits, and of their gradients with more rows.
int64_t LossDeviceWork(const Sizes& s) {
  constexpr int64_t kBytes = 384 << 20, kLogitBytes = 128 << 20;
  const int64_t stride = RoundUp(s.model.vocab_size(), 8), logit_row = stride * kFloat;
  const int64_t logits = std::max(256 / s.element, kLogitBytes / logit_row / 128 * 128);
  const int64_t left = (kBytes - logits * logit_row) / (stride * s.element);
  const int64_t gradients = std::min(s.t, std::max<int64_t>(1, left / logits) * logits);
  return Block(std::min(s.t, logits) * stride, kFloat) + Block(gradients * stride, s.element) +
         Block(gradients, 2 * kFloat);
}

// On the CPU logits by tiles of about 4 MiB, at least a thousand rows of a vocabulary that is cut
// or 128 of one that is not.
int64_t LossWork(const Sizes& s) {
  if (s.device) return LossDeviceWork(s);
  constexpr int64_t kTileFloats = 1 << 20;
  constexpr int64_t kRows = 1024, kRowState = 24;  // bytes of a row's running statistics
  const int64_t rows = std::min(s.t, std::max(kRows, kTileFloats / s.model.vocab_size()));
  const int64_t tile = std::min(rows * s.model.vocab_size(), kTileFloats);
  const int64_t columns =
      std::min(s.model.vocab_size(), std::max<int64_t>(kTileFloats / kRows, tile));
  return Block(tile, kFloat) + Block(rows, kRowState) + Widened(s, rows, s.d, 0, 0) +
         (s.element == kFloat ? 0 : Block(columns * s.d, kFloat));
}

// The widest moment of a step: the loss, or one layer's backward pass between the gradients that it
// takes and gives.
int64_t Workspace(const Sizes& s) {
  constexpr int64_t kSmall = 1 << 16;  // sums of gains, angles, counts
  const int64_t stream = 2 * Block(s.t * s.d, s.element) + Uploaded(s);
  const int64_t between = (s.pre_norm ? 2 : 1) + (s.model.memory_lobe().enabled() ? 1 : 0);
  const int64_t layer =
      between * Block(s.t * s.d, s.element) + std::max(AttentionWork(s), MoeWork(s));
  return kSmall + stream + std::max(layer, LossWork(s));
}

}  // namespace

MemoryPlan PlanMemory(const v1::TrainingJob& resolved) {
  return PlanMemory(resolved, resolved.spec().resources().device() == v1::DEVICE_KIND_CUDA);
}

MemoryPlan PlanMemory(const v1::TrainingJob& resolved, bool on_device) {
  const Sizes sizes(resolved, on_device);
  const Classes classes(sizes);
  const bool masters = sizes.element != kFloat;
  MemoryPlan plan;
  plan.parameters = classes.elements * sizes.element;
  plan.gradients = (classes.elements + classes.received) * kFloat;
  plan.optimizer = (classes.trained * 2 + (masters ? classes.masters : 0)) * kFloat;
  plan.activations = Activations(sizes);
  plan.workspace = Workspace(sizes);
  // Masters and both moments, copied so that training can go on while they are written.
  if (resolved.spec().checkpoint().async()) {
    plan.staging = classes.staged * kFloat;
  }
  return plan;
}

int64_t RecomputedLayers(const v1::JobSpec& spec) {
  const v1::TrainingSpec& training = spec.training();
  if (!training.recompute()) return 0;
  const int64_t layers = spec.model().num_layers();
  return training.has_recompute_layers() ? std::min(layers, training.recompute_layers()) : layers;
}

int64_t FewestRecomputedLayers(const v1::TrainingJob& resolved, bool on_device, int64_t bytes) {
  const MemoryPlan plan = PlanMemory(resolved, on_device);
  const int64_t besides = plan.taken(on_device) - plan.activations;
  Sizes sizes(resolved, on_device);
  const int64_t layers = sizes.model.num_layers();
  for (sizes.recomputed = 0; sizes.recomputed < layers; ++sizes.recomputed) {
    if (besides + Activations(sizes) <= bytes) break;
  }
  return sizes.recomputed;
}

int64_t LargestMicroBatch(const v1::TrainingJob& resolved, bool on_device, int64_t bytes) {
  v1::TrainingJob job = resolved;
  v1::TrainingSpec& training = *job.mutable_spec()->mutable_training();
  int64_t fits = 0, too_large = training.micro_batch_size() + 1;
  while (too_large - fits > 1) {
    const int64_t size = fits + (too_large - fits) / 2;
    training.set_micro_batch_size(size);
    (PlanMemory(job, on_device).taken(on_device) <= bytes ? fits : too_large) = size;
  }
  const int64_t share = training.global_batch_size() / job.spec().parallelism().data();
  while (fits > 0 && share % fits != 0) --fits;
  return fits;
}

}  // namespace ela::job
