// What every back end of Communicator must do, as functions that each rank of a world calls. A
// check returns an error that says what was wrong; the world ends with it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/device.h"
#include "trainer/parallel/communicator.h"

namespace ela::trainer {

#define ELA_EXPECT_THAT(condition, ...)                                       \
  do {                                                                        \
    if (!(condition)) {                                                       \
      return absl::DataLossError(                                             \
          absl::StrCat(__func__, ": ", #condition, " fails", ##__VA_ARGS__)); \
    }                                                                         \
  } while (false)

/// The bytes that rank `from` has for rank `to`: differ by rank, place and salt.
inline std::vector<uint8_t> Pattern(size_t bytes, int from, int to, int salt) {
  std::vector<uint8_t> pattern(bytes);
  uint64_t x = static_cast<uint64_t>((from * 64 + to) * 64 + salt) * 0x9e3779b97f4a7c15;
  for (uint8_t& byte : pattern) {
    x = x * 6364136223846793005 + 1442695040888963407;
    byte = static_cast<uint8_t>(x >> 56);
  }
  return pattern;
}

using Check = std::function<absl::Status(Communicator& world)>;
struct NamedCheck {
  std::string name;
  Check run;
};

/// Of the collectives (collective_checks.cc).
std::vector<NamedCheck> CollectiveChecks();
/// Of what stands on them: meshes, sums, dispatch, agreement (group_checks.cc).
std::vector<NamedCheck> GroupChecks();
/// Of an optimizer over them (optimizer_checks.cc).
std::vector<NamedCheck> OptimizerChecks();
inline std::vector<NamedCheck> AllChecks() {
  std::vector<NamedCheck> all;
  for (const std::vector<NamedCheck>& checks :
       {CollectiveChecks(), GroupChecks(), OptimizerChecks()}) {
    all.insert(all.end(), checks.begin(), checks.end());
  }
  return all;
}

/// The one of OptimizerChecks with parameters and gradients in the memory of a card (null: of the
/// host), which `world` must be able to move.
absl::Status SumsBesideAndAfterGiveTheSameBits(Communicator& world, kernels::CudaDevice* device);

}  // namespace ela::trainer
