// Linear attention over shards of whole chunks has the bits of one rank: the ranks fold their
// states in the tree that one rank folds its chunks in.
#include "trainer/layers/ela_mixer.h"

#include <gtest/gtest.h>

#include <mutex>

#include "proto/status_macros.h"
#include "tests/support/backend_testing.h"
#include "trainer/parallel/local_communicator.h"
#include "trainer/parallel/mesh.h"

namespace ela::trainer {
namespace {

using namespace ela::testing;  // NOLINT
using kernels::ElaConfig;
using kernels::FeatureMap;

constexpr int64_t kLength = 512, kHeads = 2, kDim = 8, kWidth = kHeads * kDim;
constexpr int64_t kChunk = 64;  // rows; 8 chunks

/// One document, and documents that start on chunks, off them and in one another's shard.
const DocumentStarts kStarts = {{0}, {0, 1, 64, 100, 450}, {0, 200, 256}};
constexpr int64_t kSequences = 3;

/// y, dq, dk, dv of all rows [B, L, H, D].
using Results = std::array<std::vector<float>, 4>;

/// Rows of a shard, copied from (or, `back`, to) whole arrays.
void Move(const Tensor& local, std::vector<float>* whole, int shard, int shards, bool back) {
  const int64_t begin = ShardBegin(kLength, shard, shards);
  const int64_t rows = ShardBegin(kLength, shard + 1, shards) - begin;
  for (int64_t row = 0; row < kSequences * rows; ++row) {
    const int64_t at = row / rows * kLength + begin + row % rows;
    float* mine = local.as<float>() + row * kWidth;
    float* all = whole->data() + at * kWidth;
    back ? std::copy_n(mine, kWidth, all) : std::copy_n(all, kWidth, mine);
  }
}

std::vector<float> Whole(uint64_t seed) {
  const Buffer values = Input(DType::kF32, {kSequences * kLength, kWidth}, seed);
  const float* from = values.tensor().as<float>();
  return {from, from + kSequences * kLength * kWidth};
}

absl::Status RunRank(Communicator& sequence, const ElaConfig& config, Results* results,
                     std::mutex* mutex) {
  const int shard = sequence.rank(), shards = sequence.size();
  data::Batch batch;
  batch.sequences = kSequences;
  batch.length = ShardBegin(kLength, shard + 1, shards) - ShardBegin(kLength, shard, shards);
  batch.document_starts = kStarts;
  const TokenRows rows(std::move(batch), kLength, shard, shards);
  kernels::Arena scratch, saved;
  kernels::Counters counters;
  kernels::Context ctx;
  ctx.scratch = &scratch;
  ctx.counters = &counters;
  const LayerContext layer = MakeLayerContext(ctx, &saved);

  std::vector<Buffer> b;  // q, k, v, dy, y, dq, dk, dv
  for (uint64_t i = 0; i < 8; ++i) {
    b.push_back(Buffer(DType::kF32, {rows.count(), kHeads, kDim}));
    if (i >= 4) continue;
    std::vector<float> whole = Whole(i + 1);
    Move(b[i], &whole, shard, shards, /*back=*/false);
  }
  const Qkv in{b[0], b[1], b[2]}, din{b[5], b[6], b[7]};
  ElaMixer mixer(config, &sequence);
  {
    const kernels::ArenaScope scope(&scratch);
    ELA_RETURN_IF_ERROR(mixer.StartForward(layer, in, rows));
    ELA_RETURN_IF_ERROR(mixer.FinishForward(layer, b[4], in, rows));
  }
  {
    const kernels::ArenaScope scope(&scratch);
    ELA_RETURN_IF_ERROR(mixer.StartBackward(layer, b[3], b[4], in, rows));
    ELA_RETURN_IF_ERROR(mixer.FinishBackward(layer, din, b[3], b[4], in, rows));
  }
  const std::lock_guard<std::mutex> lock(*mutex);
  for (size_t i = 0; i < 4; ++i) Move(b[4 + i], &(*results)[i], shard, shards, /*back=*/true);
  return absl::OkStatus();
}

Results OnShards(const ElaConfig& config, int shards) {
  Results results;
  for (auto& values : results) values.resize(kSequences * kLength * kWidth);
  std::mutex mutex;
  const absl::Status status = RunLocalRanks(
      shards, [&](Communicator& world) { return RunRank(world, config, &results, &mutex); });
  EXPECT_TRUE(status.ok()) << status;
  return results;
}

ElaConfig Config(FeatureMap kernel, bool decay, bool causal = true) {
  ElaConfig config;
  config.kernel = kernel;
  config.num_heads = kHeads;
  config.head_dim = config.value_dim = kDim;
  config.causal = causal;
  if (decay) config.log_decay = kernels::HeadLogDecay(kHeads);
  return config;
}

const std::vector<FeatureMap> kKernels = {FeatureMap::kHadamardExp, FeatureMap::kSumSquared,
                                          FeatureMap::kSubSquared, FeatureMap::kModulatedDot};

TEST(ElaMixer, CausalBitsAreTheSameForPowersOfTwoOfWholeChunks) {
  static_assert(kLength % (8 * kChunk) == 0);
  for (const FeatureMap kernel : kKernels) {
    for (const bool decay : {false, true}) {
      const Results one = OnShards(Config(kernel, decay), 1);
      for (const int shards : {2, 4, 8}) {
        EXPECT_TRUE(OnShards(Config(kernel, decay), shards) == one)
            << "kernel " << static_cast<int>(kernel) << " decay " << decay << " on " << shards;
      }
    }
  }
}

TEST(ElaMixer, AnyShardsAreOneToRounding) {
  for (const FeatureMap kernel : kKernels) {
    for (const bool causal : {false, true}) {
      const Results one = OnShards(Config(kernel, false, causal), 1);
      for (const int shards : {2, 3, 5, 7, 8}) {
        const Results many = OnShards(Config(kernel, false, causal), shards);
        for (size_t i = 0; i < 4; ++i) {
          float largest = 0, difference = 0;
          for (size_t j = 0; j < one[i].size(); ++j) {
            largest = std::max(largest, std::fabs(one[i][j]));
            const float d = std::fabs(many[i][j] - one[i][j]);
            if (!(d <= difference)) difference = d;
          }
          EXPECT_LE(difference, 1e-5 * largest)
              << "kernel " << static_cast<int>(kernel) << " causal " << causal << " on " << shards;
        }
      }
    }
  }
}

}  // namespace
}  // namespace ela::trainer
