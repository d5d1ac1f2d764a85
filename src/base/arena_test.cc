#include "base/arena.h"

#include <gtest/gtest.h>

namespace foresight {
namespace {

TEST(Arena, AllocationsAreAlignedAndApart) {
  Arena arena(1 << 20);
  auto* a = arena.Allocate<char>(1);
  auto* b = arena.Allocate<double>(3);
  auto* c = arena.Allocate<char>(65);
  for (const void* p : {static_cast<void*>(a), static_cast<void*>(b), static_cast<void*>(c)}) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(p) % 64, 0u);
  }
  EXPECT_GE(reinterpret_cast<char*>(b), a + 1);
  EXPECT_GE(c, reinterpret_cast<char*>(b + 3));
}

TEST(Arena, AScopeGivesBackWhatWasAllocatedWithin) {
  Arena arena(1 << 20);
  arena.Allocate<char>(100);
  const size_t before = arena.used();
  float* first = nullptr;
  {
    ArenaScope scope(arena);
    first = arena.Allocate<float>(1000);
  }
  EXPECT_EQ(arena.used(), before);
  EXPECT_GE(arena.high_water(), before + 4000);
  EXPECT_EQ(arena.Allocate<float>(10), first);
}

TEST(Arena, AHoldKeepsWhatIsGivenBackWithinApart) {
  Arena arena(1 << 20);
  const size_t before = arena.used();
  {
    ArenaHold hold(arena);
    float* first = nullptr;
    {
      ArenaScope scope(arena);
      first = arena.Allocate<float>(1000);
    }
    EXPECT_GE(arena.Allocate<float>(10), first + 1000);
  }
  EXPECT_EQ(arena.used(), before);
}

TEST(Arena, AKeepLeavesAllocatedWhatWasInUseWithin) {
  Arena arena(1 << 20);
  {
    ArenaScope scope(arena);
    arena.Allocate<float>(5000);  // given back before: the keep knows nothing of it
  }
  const size_t before = arena.used();
  float* first = nullptr;
  {
    ArenaKeep keep(arena);
    {
      ArenaScope scope(arena);
      first = arena.Allocate<float>(1000);
    }
    EXPECT_EQ(arena.Allocate<float>(10), first);
  }
  EXPECT_GE(arena.used(), before + 4000);
  EXPECT_LT(arena.used(), before + 5000);
  EXPECT_GE(arena.Allocate<float>(10), first + 1000);
}

TEST(ArenaDeathTest, RunningPastTheReservationIsABug) {
  Arena arena(4096);
  EXPECT_DEATH(arena.Allocate<char>(5000), "too small");
}

#if defined(__SANITIZE_ADDRESS__)
TEST(Arena, AddressSanitizerSeesItsBounds) {
  Arena arena(1 << 20);
  arena.Allocate<char>(8);
  const size_t before = arena.used();
  char* p = arena.Allocate<char>(100);
  EXPECT_FALSE(__asan_address_is_poisoned(p + 99));
  EXPECT_TRUE(__asan_address_is_poisoned(p - 1));
  EXPECT_TRUE(__asan_address_is_poisoned(p + 100));
  arena.Rewind(before);
  EXPECT_TRUE(__asan_address_is_poisoned(p));
}
#endif

}  // namespace
}  // namespace foresight
