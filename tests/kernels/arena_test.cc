#include <cstdint>

#include "kernels/context.h"
#include "tests/support/op_testing.h"

namespace ela::kernels {
namespace {

TEST(Arena, TakesInStackOrderWithinItsBlock) {
  Arena arena;
  arena.Reserve(4096, Backend::kCpu);
  void* first = arena.Take(10);
  const size_t mark = arena.Mark();
  void* second = arena.Take(300);
  EXPECT_EQ(static_cast<char*>(second) - static_cast<char*>(first), 256);
  arena.Release(mark);
  EXPECT_EQ(arena.Take(1), second);
}

TEST(Arena, AlignsEveryBlockTo256) {
  Arena arena;
  arena.Reserve(512, Backend::kCpu);
  for (int i = 0; i < 8; ++i) EXPECT_EQ(reinterpret_cast<uintptr_t>(arena.Take(1)) % 256, 0u);
}

TEST(Arena, OverflowsWhenTooSmallAndRemembersThePeak) {
  Arena arena;
  {
    ArenaScope scope(&arena);
    std::memset(arena.Take(1000), 1, 1000);
    std::memset(arena.Take(5000), 2, 5000);
  }
  EXPECT_EQ(arena.Mark(), 0u);
  EXPECT_EQ(arena.peak_bytes(), 1024u + 5120u);
}

TEST(Arena, ReservingThePeakEndsTheOverflow) {
  Arena arena;
  arena.Take(3000);
  arena.Release(0);
  arena.Reserve(arena.peak_bytes(), Backend::kCpu);
  char* first = static_cast<char*>(arena.Take(1500));
  EXPECT_EQ(static_cast<char*>(arena.Take(1500)) - first, 1536);
}

TEST(Arena, NestedScopesReleaseOnlyTheirOwn) {
  Arena arena;
  arena.Reserve(1024, Backend::kCpu);
  ArenaScope outer(&arena);
  arena.Take(100);
  const size_t mark = arena.Mark();
  {
    ArenaScope inner(&arena), again(&arena);
    arena.Take(2000);
  }
  EXPECT_EQ(arena.Mark(), mark);
}

}  // namespace
}  // namespace ela::kernels
