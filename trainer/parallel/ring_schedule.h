// Who attends what, and when, as keys and queries travel a ring of P shards (model.md 1.6).
//
// In step t rank r sends to r + t and receives from r - t (mod P). Bidirectional: keys, in steps 1
// .. P - 1. Causal: shard i's queries see the keys of the shards j <= i, so early ranks would have
// little to do and late ones much. Instead the queries' owner computes the pairs with i - j <= P/2,
// from keys that it receives, and the keys' owner those further apart, from queries that it
// receives, and sends the result back. With P even, both share the pairs of distance P/2: the
// first half of the queries is computed by their owner, the second half by the keys'. So every rank
// computes (P - 1) / 2 whole pairs beside its own diagonal one, in P/2 (rounded down) steps, and
// tokens stay where the other layers want them.
#pragma once

#include <cstdint>

namespace ela::trainer {

/// Steps beside the rank's own pair; 0 for one shard.
int RingSteps(int shards, bool causal);

/// Step t of rank r: what it sends to rank `to`, and what it receives from rank `from` and
/// computes.
struct RingStep {
  int to = 0, from = 0;
  bool sends_keys = true;  // else queries
  bool gets_keys = true;   // else queries
  bool halved = false;     // the pairs of this step are shared by both owners

  /// Of `rows` queries: those that their owner computes are [0, OwnersEnd), those that the keys'
  /// owner computes are [HelpersBegin, rows).
  int64_t OwnersEnd(int64_t rows) const { return halved ? rows / 2 : rows; }
  int64_t HelpersBegin(int64_t rows) const { return halved ? rows / 2 : 0; }
};
RingStep RingStepOf(int t, int rank, int shards, bool causal);

}  // namespace ela::trainer
