#include "trainer/layers/softmax_mixer.h"

#include <gtest/gtest.h>

#include <mutex>

#include "kernels/elementwise/elementwise.h"
#include "proto/status_macros.h"
#include "tests/support/backend_testing.h"
#include "trainer/parallel/local_communicator.h"
#include "trainer/parallel/mesh.h"

namespace ela::trainer {
namespace {

using namespace ela::testing;  // NOLINT

/// Packed sequences, and what runs over them.
struct Case {
  int64_t length = 0;
  DocumentStarts starts;  // [B]
  bool causal = true;
  Backend backend = Backend::kReference;
  DType element = DType::kF64;
  int num_threads = 1;
  int64_t heads = 2, head_dim = 4;
  int64_t sequences() const { return static_cast<int64_t>(starts.size()); }
};

/// Values of all rows [B, L, H, D], and what scratch the largest rank took.
struct Results {
  std::vector<double> y, dq, dk, dv;
  size_t scratch_bytes = 0;
};

TokenRows RowsOf(const Case& c, int shard, int shards) {
  data::Batch batch;
  batch.sequences = c.sequences();
  batch.length = ShardBegin(c.length, shard + 1, shards) - ShardBegin(c.length, shard, shards);
  batch.document_starts = c.starts;
  return TokenRows(std::move(batch), c.length, shard, shards);
}

/// One rank's rows of a whole [B, L, width] array, and back.
class Slice {
 public:
  Slice(const Case& c, int shard, int shards)
      : begin_(ShardBegin(c.length, shard, shards)),
        end_(ShardBegin(c.length, shard + 1, shards)),
        length_(c.length),
        sequences_(c.sequences()) {}
  int64_t rows() const { return sequences_ * (end_ - begin_); }

  void Take(const Tensor& local, const Tensor& whole) const {
    ForEach(local, [&](int64_t mine, int64_t all) { Set(local, mine, Get(whole, all)); });
  }
  void Give(std::vector<double>* whole, const Tensor& local) const {
    ForEach(local, [&](int64_t mine, int64_t all) {
      (*whole)[static_cast<size_t>(all)] = Get(local, mine);
    });
  }

 private:
  template <class Body>
  void ForEach(const Tensor& local, const Body& body) const {
    const int64_t width = local.row_numel();
    for (int64_t i = 0; i < local.numel(); ++i) {
      const int64_t row = i / width, l = end_ - begin_;
      const int64_t global = row / l * length_ + begin_ + row % l;
      body(i, global * width + i % width);
    }
  }
  int64_t begin_, end_, length_, sequences_;
};

struct RankMemory {
  kernels::Arena scratch, saved;
  kernels::Counters counters;
  LayerContext layer;
  explicit RankMemory(const Case& c) {
    kernels::Context ctx;
    ctx.backend = c.backend;
    ctx.num_threads = c.num_threads;
    ctx.scratch = &scratch;
    ctx.counters = &counters;
    layer = MakeLayerContext(ctx, &saved, c.element);
  }
};

Tensor Heads(const Buffer& qkv, const Case& c, int64_t i) {
  const int64_t width = c.heads * c.head_dim;
  return qkv.tensor()
      .Columns(i * width, (i + 1) * width)
      .View({qkv.tensor().dim(0), c.heads, c.head_dim});
}

absl::Status RunRank(Communicator& sequence, const Case& c, Results* results, std::mutex* mutex) {
  const int shard = sequence.rank(), shards = sequence.size();
  const Slice slice(c, shard, shards);
  const int64_t t = slice.rows(), width = c.heads * c.head_dim;
  const int64_t all = c.sequences() * c.length;
  RankMemory memory(c);
  const LayerContext& layer = memory.layer;
  const TokenRows rows = RowsOf(c, shard, shards);
  Buffer qkv(c.element, {t, 3 * width}), dqkv(c.element, {t, 3 * width});
  Buffer y(c.element, {t, c.heads, c.head_dim}), dy(c.element, {t, c.heads, c.head_dim});
  slice.Take(qkv, Input(c.element, {all, 3 * width}, 1));
  slice.Take(dy, Input(c.element, {all, width}, 2));
  const Qkv in{Heads(qkv, c, 0), Heads(qkv, c, 1), Heads(qkv, c, 2)};
  const Qkv din{Heads(dqkv, c, 0), Heads(dqkv, c, 1), Heads(dqkv, c, 2)};

  SoftmaxMixer mixer({c.heads, c.head_dim, c.causal}, &sequence);
  {
    const kernels::ArenaScope scope(layer.ctx.scratch);
    ELA_RETURN_IF_ERROR(mixer.StartForward(layer, in, rows));
    ELA_RETURN_IF_ERROR(mixer.FinishForward(layer, y, in, rows));
  }
  {
    const kernels::ArenaScope scope(layer.ctx.scratch);
    ELA_RETURN_IF_ERROR(mixer.StartBackward(layer, dy, y, in, rows));
    ELA_RETURN_IF_ERROR(mixer.FinishBackward(layer, din, dy, y, in, rows));
  }
  const std::lock_guard<std::mutex> lock(*mutex);
  slice.Give(&results->y, y);
  slice.Give(&results->dq, din.q);
  slice.Give(&results->dk, din.k);
  slice.Give(&results->dv, din.v);
  results->scratch_bytes = std::max(results->scratch_bytes, memory.scratch.peak_bytes());
  return absl::OkStatus();
}

Results OnShards(const Case& c, int shards) {
  const size_t numel = static_cast<size_t>(c.sequences() * c.length * c.heads * c.head_dim);
  Results results;
  for (auto* values : {&results.y, &results.dq, &results.dk, &results.dv}) values->resize(numel);
  std::mutex mutex;
  const absl::Status status = RunLocalRanks(
      shards, [&](Communicator& world) { return RunRank(world, c, &results, &mutex); });
  EXPECT_TRUE(status.ok()) << status;
  return results;
}

double Distance(const std::vector<double>& a, const std::vector<double>& b) {
  double diff = 0, scale = 1e-30;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i]) || !std::isfinite(b[i])) return 1e30;
    diff = std::fmax(diff, std::fabs(a[i] - b[i]));
    scale = std::fmax(scale, std::fabs(b[i]));
  }
  return diff / scale;
}

void ExpectNear(const Results& a, const Results& b, double tolerance) {
  EXPECT_LE(Distance(a.y, b.y), tolerance);
  EXPECT_LE(Distance(a.dq, b.dq), tolerance);
  EXPECT_LE(Distance(a.dk, b.dk), tolerance);
  EXPECT_LE(Distance(a.dv, b.dv), tolerance);
}

/// Lengths that do not divide, shards without rows, documents that end on, before and after cuts.
std::vector<Case> Cases(Backend backend, DType element) {
  std::vector<Case> cases;
  for (const bool causal : {true, false}) {
    for (Case c : {Case{.length = 16, .starts = {{0}, {0}}}, Case{.length = 13, .starts = {{0}}},
                   Case{.length = 3, .starts = {{0}, {0, 1}}},
                   Case{.length = 29, .starts = {{0, 1, 14, 15, 28}, {0}, {0, 7, 22}}}}) {
      c.causal = causal;
      c.backend = backend;
      c.element = element;
      cases.push_back(c);
    }
  }
  return cases;
}

TEST(SoftmaxMixer, ShardedIsUnshardedInDouble) {
  for (const Case& c : Cases(Backend::kReference, DType::kF64)) {
    const Results one = OnShards(c, 1);
    for (const int shards : {2, 3, 4, 5, 8}) {
      SCOPED_TRACE(::testing::Message() << c.length << " rows, " << shards << " shards");
      ExpectNear(OnShards(c, shards), one, 1e-13);
    }
  }
}

TEST(SoftmaxMixer, ShardedIsUnshardedInFloat) {
  for (Case c : Cases(Backend::kCpu, DType::kF32)) {
    const Results one = OnShards(c, 1);
    c.num_threads = 2;
    for (const int shards : {2, 3, 4}) ExpectNear(OnShards(c, shards), one, 2e-6);
  }
}

// y is rounded to bf16 before delta is taken from it, on one shard as on many.
TEST(SoftmaxMixer, ShardedRoundsToBf16Once) {
  for (const Case& c : Cases(Backend::kCpu, DType::kBf16)) {
    const Results one = OnShards(c, 1);
    for (const int shards : {2, 3, 4}) ExpectNear(OnShards(c, shards), one, 1.0 / 128);
  }
}

TEST(SoftmaxMixer, GivesTheSameBitsTwice) {
  Case c{.length = 300, .starts = {{0, 100}}, .backend = Backend::kCpu, .element = DType::kF32};
  for (const int shards : {1, 3, 4}) {
    c.num_threads = 1;
    const Results first = OnShards(c, shards);
    c.num_threads = 3;
    const Results second = OnShards(c, shards);
    EXPECT_TRUE(first.y == second.y && first.dq == second.dq && first.dk == second.dk &&
                first.dv == second.dv);
  }
}

/// Buffers do not grow with the number of shards: the rank's own rows count.
TEST(SoftmaxMixer, HoldsNoMoreThanTwoOtherShards) {
  Case c{.length = 512, .starts = {{0}}, .backend = Backend::kCpu, .element = DType::kF32};
  c.head_dim = 64;
  const size_t four = OnShards(c, 4).scratch_bytes;
  c.length = 1024;
  const size_t eight = OnShards(c, 8).scratch_bytes;
  EXPECT_EQ(four, eight);
}

/// A decoded token sees what a forward pass over the same tokens sees.
absl::Status DecodeAfterPrefill(Communicator& sequence, const Case& c, const Results& expected) {
  const int shard = sequence.rank(), shards = sequence.size();
  const int64_t prefix = c.length - 1, width = c.heads * c.head_dim, b = c.sequences();
  Case before = c;
  before.length = prefix;
  const Slice slice(before, shard, shards);
  RankMemory memory(c);
  const Buffer whole = Input(c.element, {b * c.length, 3 * width}, 1);
  Buffer qkv(c.element, {slice.rows(), 3 * width}), last(c.element, {b, 3 * width});
  const int64_t begin = ShardBegin(prefix, shard, shards);
  const int64_t l = ShardBegin(prefix, shard + 1, shards) - begin;
  for (int64_t s = 0; s < b; ++s) {
    const Tensor all = whole, mine = qkv, one = last;
    ela::testing::Copy(mine.Rows(s * l, (s + 1) * l),
                       all.Rows(s * c.length + begin, s * c.length + begin + l));
    ela::testing::Copy(one.Rows(s, s + 1), all.Rows((s + 1) * c.length - 1, (s + 1) * c.length));
  }
  SoftmaxMixer mixer({c.heads, c.head_dim, true}, &sequence);
  const auto cache = mixer.NewCache(memory.layer, b);
  const Qkv in{Heads(qkv, c, 0), Heads(qkv, c, 1), Heads(qkv, c, 2)};
  ELA_RETURN_IF_ERROR(
      mixer.FillCache(memory.layer, in, RowsOf(before, shard, shards), cache.get()));
  if (shard != shards - 1) return absl::OkStatus();
  cache->Reserve(memory.layer, c.length + 3);
  Buffer y(c.element, {b, c.heads, c.head_dim});
  const Buffer positions =
      Integers({b}, std::vector<int32_t>(static_cast<size_t>(b), static_cast<int32_t>(prefix)));
  mixer.Decode(memory.layer, y, {Heads(last, c, 0), Heads(last, c, 1), Heads(last, c, 2)},
               positions, cache.get());
  EXPECT_EQ(mixer.CacheBytes(memory.layer, b, c.length),
            b * c.length * 2 * width * static_cast<int64_t>(SizeOf(c.element)));
  for (int64_t s = 0; s < b; ++s) {
    for (int64_t i = 0; i < width; ++i) {
      const size_t at = static_cast<size_t>(((s + 1) * c.length - 1) * width + i);
      EXPECT_NEAR(Get(y, s * width + i), expected.y[at], 1e-13);
    }
  }
  return absl::OkStatus();
}

TEST(SoftmaxMixer, DecodesWhatAForwardPassGives) {
  for (const int64_t length : {2, 12, 13}) {
    const Case c{.length = length, .starts = {{0}, {0}, {0}}};
    const Results whole = OnShards(c, 1);
    for (const int shards : {1, 2, 3}) {
      const absl::Status status = RunLocalRanks(
          shards, [&](Communicator& world) { return DecodeAfterPrefill(world, c, whole); });
      EXPECT_TRUE(status.ok()) << status;
    }
  }
}

}  // namespace
}  // namespace ela::trainer
