// q, k, v, their gradients, y and dy are float or bf16, each on its own; arithmetic, states and
// lse are float. Work is shared by sequence and group of heads; the bits do not depend on how
// (cpu_scan.h).
#include "kernels/ela/cpu_scan.h"
#include "kernels/parallel.h"
#include "kernels/rows.h"

namespace ela::kernels::cpu {
namespace {

float* SequenceState(const Tensor& states, int64_t sequence) {
  return states.as<float>() + sequence * states.stride();
}

/// Heads that one thread runs together: as many as keep all threads about equally busy.
int64_t HeadsTogether(int64_t sequences, int64_t heads, int64_t threads) {
  constexpr int64_t kMost = 16;
  int64_t best = 1, best_time = INT64_MAX;
  for (int64_t group = std::min(kMost, heads); group >= 1; --group) {
    const int64_t tasks = sequences * ((heads + group - 1) / group);
    const int64_t time = (tasks + threads - 1) / threads * group;
    // A few percent of imbalance cost less than rows that are visited more often.
    if (time < best_time - best_time / 16) best = group, best_time = time;
  }
  return best;
}

/// A pass over all sequences and heads.
class ElaPass {
 public:
  /// `before` and `after` as in the headers: the states of the side that is written.
  ElaPass(const Context& ctx, const ElaConfig& config, const Spans& spans,
          const PassTensors& tensors, int64_t tokens, Tensor before, Tensor after)
      : ctx_(ctx),
        config_(config),
        tensors_(tensors),
        sequences_(SequencesOf(spans, tokens)),
        before_(tensors.reverse() ? after : before),
        after_(tensors.reverse() ? before : after),
        group_(HeadsTogether(static_cast<int64_t>(sequences_.size()), config.num_heads,
                             ctx.num_threads)),
        state_floats_(group_ * PaddedState(StateSizesOf(config)).floats()),
        pass_floats_(HeadPass::WorkFloats(config)),
        buffers_(ctx, pass_floats_ + (2 + HeadScan::WorkStates(MostChunks())) * state_floats_) {}

  void Run() const {
    ForEach([&](const SequenceRows& rows, Worker& w) {
      if (rows.begin == rows.end) return;
      config_.causal ? RunCausal(rows, w) : RunBothWays(rows, w);
    });
  }

  /// One row a sequence: each is taken into its state, and reads that.
  void Decode(Tensor states) const {
    ForEach([&](const SequenceRows& rows, Worker& w) {
      float* at = SequenceState(states, rows.sequence);
      w.pass.Load(w.state, at);
      w.pass.Write(w.other, rows.begin, rows.end);
      w.pass.Fold(w.state, w.other);
      w.pass.Read(w.state, rows.begin, rows.end);
      w.pass.Store(at, w.state);
    });
  }

  /// out [B, S] = the sum over one span of each sequence.
  void Sum(Tensor out, SpanEdge edge) const {
    ForEach([&](const SequenceRows& rows, Worker& w) {
      w.pass.Clear(w.state);
      const SpanRange* span = EdgeSpan(rows, edge);
      if (span != nullptr) w.scan.Sum(w.state, {0, rows.chunks()}, span->begin, span->end);
      w.pass.Store(SequenceState(out, rows.sequence), w.state);
    });
  }

 private:
  /// One thread's tools for some heads of one sequence.
  struct Worker {
    Worker(const ElaPass& p, const SequenceRows& rows, int64_t head)
        : state(p.buffers_.Get()),
          other(state + p.state_floats_),
          pass(p.ctx_, p.config_, p.tensors_, head, std::min(p.group_, p.config_.num_heads - head),
               other + p.state_floats_),
          scan(&pass, rows, p.tensors_.reverse(), other + p.state_floats_ + p.pass_floats_) {}
    float *state, *other;
    HeadPass pass;
    HeadScan scan;
  };

  /// body(rows, worker) for every sequence and group of heads.
  template <class Body>
  void ForEach(const Body& body) const {
    const int64_t groups = (config_.num_heads + group_ - 1) / group_;
    ParallelFor(ctx_, static_cast<int64_t>(sequences_.size()) * groups, [&](int64_t i) {
      const SequenceRows& rows = sequences_[static_cast<size_t>(i / groups)];
      Worker worker(*this, rows, i % groups * group_);
      body(rows, worker);
    });
  }

  int64_t MostChunks() const {
    int64_t most = 1;
    for (const SequenceRows& rows : sequences_) most = std::max(most, rows.chunks());
    return most;
  }

  /// Null where that span holds no row.
  static const SpanRange* EdgeSpan(const SequenceRows& rows, SpanEdge edge) {
    if (rows.spans.empty()) return nullptr;
    const SpanRange& span = edge == SpanEdge::kFirst ? rows.spans.front() : rows.spans.back();
    return (edge == SpanEdge::kFirst ? span.first : span.last) ? &span : nullptr;
  }

  /// The states that come to a sequence from other ranks, in `memory`; null if none do.
  static const float* LoadState(const Tensor& states, const HeadPass& pass,
                                const SequenceRows& rows, float* memory) {
    if (states.empty()) return nullptr;
    pass.Load(memory, SequenceState(states, rows.sequence));
    return memory;
  }

  void RunCausal(const SequenceRows& rows, Worker& w) const {
    const float* before = LoadState(before_, w.pass, rows, w.state);
    w.scan.Run(nullptr, before, {0, rows.chunks()});
  }

  void RunBothWays(const SequenceRows& rows, Worker& w) const {
    const bool reverse = tensors_.reverse();
    for (const SpanRange& span : rows.spans) {
      w.pass.Clear(w.state);
      if (reverse ? span.last : span.first) LoadState(before_, w.pass, rows, w.state);
      w.scan.Sum(w.other, {0, rows.chunks()}, span.begin, span.end);
      w.pass.Fold(w.state, w.other);
      if ((reverse ? span.first : span.last) &&
          LoadState(after_, w.pass, rows, w.other) != nullptr) {
        w.pass.Fold(w.state, w.other);
      }
      for (int64_t at = span.begin; at < span.end; at += kChunk) {
        w.pass.Read(w.state, at, std::min(span.end, at + kChunk));
      }
    }
  }

  const Context& ctx_;
  const ElaConfig& config_;
  PassTensors tensors_;
  std::vector<SequenceRows> sequences_;
  Tensor before_, after_;  // in scan order
  int64_t group_;          // heads
  int64_t state_floats_, pass_floats_;
  ThreadBuffers buffers_;
};

void CheckRows(const ElaConfig& config, int64_t tokens, std::initializer_list<Tensor> keys,
               std::initializer_list<Tensor> values) {
  for (const Tensor& x : keys) CheckShape("q or k", x, tokens, config.num_heads * config.head_dim);
  for (const Tensor& x : values)
    CheckShape("v or y", x, tokens, config.num_heads * config.value_dim);
}

}  // namespace

void ElaStateIdentity(const Context&, Tensor state, const ElaConfig& config) {
  CheckState("state", state, config, state.dim(0), false);
  for (int64_t b = 0; b < state.dim(0); ++b) {
    std::fill_n(state.as<float>() + b * state.stride(), state.dim(1), 0.0f);
  }
}

void ElaFold(const Context& ctx, Tensor acc, Tensor later, const ElaConfig& config,
             const std::vector<uint8_t>& take, bool) {
  CheckState("acc", acc, config, acc.dim(0), false);
  CheckState("later", later, config, acc.dim(0), false);
  const FeatureMath<float>& math = MathOf<float>(config);
  const StateSizes sizes = StateSizesOf(config);
  const int64_t size = HeadStateSize(sizes);
  ParallelFor(ctx, acc.dim(0) * config.num_heads, [&](int64_t i) {
    const int64_t b = i / config.num_heads, head = i % config.num_heads;
    if (!take.empty() && take[static_cast<size_t>(b)] == 0) return;
    float* to = SequenceState(acc, b) + head * size;
    float* from = SequenceState(later, b) + head * size;
    if (*from == 0) return;
    if (*to == 0) {
      std::copy_n(from, size, to);
    } else {
      math.Fold(sizes, ViewState(to, sizes), ViewState(from, sizes),
                static_cast<float>(LogDecayOf(config, head)));
    }
  });
}

void ElaLocalState(const Context& ctx, Tensor state, Tensor k, Tensor v, const ElaConfig& config,
                   const Spans& spans, SpanEdge edge) {
  const int64_t tokens = k.dim(0);
  CheckState("state", state, config, CheckEla(config, spans, tokens), false);
  CheckRows(config, tokens, {k}, {v});
  ArenaScope scope(ctx.scratch);
  const PassTensors tensors{.kind = PassKind::kForward, .k = k, .v = v};
  ElaPass(ctx, config, spans, tensors, tokens, {}, {}).Sum(state, edge);
}

void ElaForward(const Context& ctx, Tensor y, Tensor lse, Tensor q, Tensor k, Tensor v,
                Tensor before, Tensor after, const ElaConfig& config, const Spans& spans,
                Tensor /*segments*/) {
  const int64_t tokens = q.dim(0), sequences = CheckEla(config, spans, tokens);
  CheckRows(config, tokens, {q, k}, {v, y});
  CheckShape("lse", lse, tokens, config.num_heads);
  for (const Tensor& state : {before, after}) CheckState("state", state, config, sequences, true);
  ArenaScope scope(ctx.scratch);
  const PassTensors tensors{
      .kind = PassKind::kForward, .q = q, .k = k, .v = v, .out = y, .out_lse = lse};
  ElaPass(ctx, config, spans, tensors, tokens, before, after).Run();
}

void ElaLocalGradState(const Context& ctx, Tensor gstate, Tensor dy, Tensor q, Tensor y, Tensor lse,
                       const ElaConfig& config, const Spans& spans, SpanEdge edge) {
  const int64_t tokens = q.dim(0);
  CheckState("gstate", gstate, config, CheckEla(config, spans, tokens), false);
  CheckRows(config, tokens, {q}, {dy, y});
  CheckShape("lse", lse, tokens, config.num_heads);
  ArenaScope scope(ctx.scratch);
  const PassTensors tensors{.kind = PassKind::kKeyGradient, .q = q, .dy = dy, .y = y, .lse = lse};
  ElaPass(ctx, config, spans, tensors, tokens, {}, {}).Sum(gstate, edge);
}

void ElaBackward(const Context& ctx, Tensor dq, Tensor dk, Tensor dv, Tensor dy, Tensor q, Tensor k,
                 Tensor v, Tensor y, Tensor lse, Tensor before, Tensor after, Tensor gbefore,
                 Tensor gafter, const ElaConfig& config, const Spans& spans, Tensor /*segments*/) {
  const int64_t tokens = q.dim(0), sequences = CheckEla(config, spans, tokens);
  CheckRows(config, tokens, {q, k, dq, dk}, {v, y, dy, dv});
  CheckShape("lse", lse, tokens, config.num_heads);
  for (const Tensor& state : {before, after, gbefore, gafter}) {
    CheckState("state", state, config, sequences, true);
  }
  PassTensors tensors{.q = q, .k = k, .v = v, .dy = dy, .y = y, .lse = lse};
  {
    ArenaScope scope(ctx.scratch);
    tensors.kind = PassKind::kQueryGradient;
    tensors.out = dq;
    ElaPass(ctx, config, spans, tensors, tokens, before, after).Run();
  }
  ArenaScope scope(ctx.scratch);
  tensors.kind = PassKind::kKeyGradient;
  tensors.out = dk;
  tensors.dv = dv;
  ElaPass(ctx, config, spans, tensors, tokens, gbefore, gafter).Run();
}

void ElaDecode(const Context& ctx, Tensor y, Tensor state, Tensor q, Tensor k, Tensor v,
               const ElaConfig& config) {
  const int64_t sequences = q.dim(0);
  CheckState("state", state, config, sequences, false);
  Spans spans;
  for (int64_t b = 0; b <= sequences; ++b) spans.begin.push_back(b);
  for (int64_t b = 0; b < sequences; ++b) spans.sequence.push_back(static_cast<int32_t>(b));
  CheckRows(config, sequences, {q, k}, {v, y});
  ArenaScope scope(ctx.scratch);
  const size_t floats = static_cast<size_t>(sequences * config.num_heads);
  const Tensor lse = Tensor::Of(static_cast<float*>(ctx.scratch->Take(floats * sizeof(float))),
                                {sequences, config.num_heads});
  PassTensors tensors{.kind = PassKind::kForward, .q = q, .k = k, .v = v, .out = y, .out_lse = lse};
  ElaPass(ctx, config, spans, tensors, sequences, state, {}).Decode(state);
}

void ElaTakeSlowPathChunks(const Context& ctx, Tensor chunks) {
  *chunks.as<int64_t>() += ctx.counters->slow_path_chunks.exchange(0);
}

}  // namespace ela::kernels::cpu
