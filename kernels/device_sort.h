// A stable sort of small integers on the device, for what is then summed or moved in sorted order.
#pragma once

#include <cstdint>

#include "kernels/context.h"

namespace ela::kernels::cuda {

/// order [n]: the indices of keys [n] (i32, each in [0, num_keys)) by (key, index). A key outside
/// ends the process. Device memory; takes scratch and gives it back. Radix passes of 1024 digits:
/// the same bits whatever the card.
void StableSort(const Context& ctx, int32_t* order, const int32_t* keys, int64_t n,
                int64_t num_keys);

/// counts [num_keys] = how often each key occurs.
void CountKeys(const Context& ctx, int64_t* counts, const int32_t* keys, int64_t n,
               int64_t num_keys);

}  // namespace ela::kernels::cuda
