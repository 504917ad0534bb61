// Faults made on purpose, for tests and drills: ELA_FAULT=nan:<rank>:<step> puts a NaN into that
// rank's gradients in that step, kill:<rank>:<step> ends that rank with SIGKILL before the step.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace ela::trainer {

struct Fault {
  enum class Kind : uint8_t { kNone, kNan, kKill };
  Kind kind = Kind::kNone;
  int rank = 0;
  int64_t step = 0;

  /// Empty text: none. InvalidArgument says what is wrong with it.
  static absl::StatusOr<Fault> Parse(const std::string& text);
  bool Hits(Kind wanted, int at_rank, int64_t at_step) const {
    return kind == wanted && rank == at_rank && step == at_step;
  }
};

}  // namespace ela::trainer
