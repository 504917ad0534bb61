// How a scan over packed rows is cut into work for a GPU. Pure: printable and tested without a
// card.
//
// An item is what one thread block walks, for one head: either a run of whole spans or a segment of
// one long span. The segments of a span form a chain: their states are computed first, folded along
// the chain in a fixed order, and each segment then starts from its own prefix (two-phase split).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/ela/ela.h"

namespace ela::kernels::cuda {

struct ScanItem {
  int64_t begin = 0, end = 0;  // rows
  int32_t span = 0;            // that row `begin` belongs to
  int32_t slot = -1;           // state of a segment; -1: whole spans, which start from nothing
  int32_t chain = -1;
};

struct ScanChain {
  int32_t first_slot = 0;  // slots of a chain are consecutive, in row order
  int32_t count = 0;       // >= 1; segments other than the chain's last are whole chunks
  int32_t span = 0;
};

/// Items and chains whose states are in memory at once. Slots are numbered within a group.
struct ScanGroup {
  int32_t first_item = 0, num_items = 0;
  int32_t first_chain = 0, num_chains = 0;
  int64_t begin = 0, end = 0;  // rows
};

struct ScanPlan {
  std::vector<ScanItem> items;  // in row order; empty spans have none
  std::vector<ScanChain> chains;
  std::vector<ScanGroup> groups;  // in row order
  int64_t num_slots = 0;          // of the group with most
};

/// Which spans a scan covers, and how.
struct ScanShape {
  int64_t num_heads = 1;
  int64_t blocks_per_item = 1;  // thread blocks for one item and head
  int64_t target_blocks = 132;  // that fill the card
  int64_t chunk = 64;           // rows; segments are whole chunks
  bool every_span_a_chain = false;
  int64_t most_slots = int64_t{1} << 40;  // of a group of several chains
};

/// That many states of `state_bytes`, of all heads, a scan in groups holds at once; at least 1. A
/// memory plan of jobs counts on it (proto/job/memory.cc).
int64_t MostSlots(int64_t state_bytes);

/// Cuts spans `which` (ascending indices; empty: all) into items. If the spans alone, one block per
/// span and head, reach 70% of `target_blocks` nothing is split; else rows are shared out evenly.
/// Groups are as few as `most_slots` allows, and about alike.
ScanPlan PlanScan(const Spans& spans, const std::vector<int32_t>& which, const ScanShape& shape);

/// Parts of each item, read on their own, so that `blocks` blocks of one item and head become as
/// many as are `resident` at once, but no more; at least 1.
int64_t PartsOfItem(int64_t blocks, int64_t resident);

/// Index of the first or last span of each sequence.
std::vector<int32_t> EdgeSpanIndices(const Spans& spans, SpanEdge edge);

/// One line a person can read: items, chains, rows of the longest item.
std::string ToString(const ScanPlan& plan);

}  // namespace ela::kernels::cuda
