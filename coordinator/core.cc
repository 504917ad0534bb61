#include "coordinator/core.h"

#include <sys/random.h>

#include <cstdio>
#include <cstdlib>

namespace ela::coordinator {

std::string RandomHex(const std::function<uint64_t()>& random, int digits) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  uint64_t bits = 0;
  for (int i = 0; i < digits; ++i) {
    if (i % 16 == 0) bits = random();
    text.push_back(kDigits[bits & 15]);
    bits >>= 4;
  }
  return text;
}

double RandomUnit(const std::function<uint64_t()>& random) {
  return static_cast<double>(random() >> 11) * 0x1p-53;
}

uint64_t SystemRandom() {
  uint64_t bits = 0;
  if (getrandom(&bits, sizeof bits, 0) != sizeof bits) {
    std::perror("getrandom");
    std::abort();
  }
  return bits;
}

}  // namespace ela::coordinator
