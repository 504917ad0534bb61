#include "trainer/parallel/ring_schedule.h"

namespace ela::trainer {

int RingSteps(int shards, bool causal) { return causal ? shards / 2 : shards - 1; }

RingStep RingStepOf(int t, int rank, int shards, bool causal) {
  RingStep step;
  step.to = (rank + t) % shards;
  step.from = (rank - t + shards) % shards;
  if (causal) {
    // What wraps around would be keys of the future: queries go there instead.
    step.sends_keys = rank + t < shards;
    step.gets_keys = rank - t >= 0;
    step.halved = 2 * t == shards;
  }
  return step;
}

}  // namespace ela::trainer
