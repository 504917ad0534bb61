// How many chunks of the Hopper scans were walked in parts because a key grew too much in them.
#pragma once

#include "kernels/context.h"

namespace ela::kernels::cuda {

/// Adds what the current device counted since the last call to ctx.counters; waits for the stream.
/// Not an op: for the place that reports metrics.
void CollectSlowPathChunks(const Context& ctx);

}  // namespace ela::kernels::cuda
