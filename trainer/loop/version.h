// The version that a run writes into its checkpoints and metrics.
#pragma once

#ifndef ELA_VERSION
#define ELA_VERSION "0.1.0"
#endif

namespace ela::trainer {

inline const char* CodeVersion() { return ELA_VERSION; }

}  // namespace ela::trainer
