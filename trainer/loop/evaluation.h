// Loss on the validation set: the first `batches` global batches of it, in order, the same every
// time and on every mesh.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "trainer/loop/batch_stream.h"
#include "trainer/model/decoder.h"
#include "trainer/parallel/mesh.h"

namespace ela::trainer {

struct EvalResult {
  double loss = 0;  // mean over the valid targets
  int64_t tokens = 0;
};

/// Collective over the mesh's world.
absl::StatusOr<EvalResult> Evaluate(const LayerContext& layer, Decoder* decoder, const Mesh& mesh,
                                    const BatchStream& stream, int64_t batches,
                                    int64_t global_batch_size);

}  // namespace ela::trainer
