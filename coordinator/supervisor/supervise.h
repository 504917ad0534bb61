// Watches over one attempt on this machine, outliving the coordinator: claims it, runs mpirun,
// passes on requests to stop, and leaves exit.json when not one of its processes is left.
#pragma once

#include <string>
#include <vector>

namespace ela::coordinator {

/// Runs the attempt described by `attempt_dir`/launch.json to its end. Must be the leader of its
/// own session. Writes one byte to `ready_fd` once the claim is made (ready_fd < 0: nobody waits).
/// Returns the process's exit code: 0 when exit.json is written, 1 when there was nothing to run, 3
/// when another supervisor has the attempt.
int Supervise(const std::string& attempt_dir, const std::string& self_path, int ready_fd);

/// Becomes `argv`, to be killed by the kernel in the moment its parent dies. With `hold_usr2` the
/// request to checkpoint stays pending until the program takes it, where it would kill a program
/// that is still starting. Returns only on error.
int GuardAndRun(const std::vector<std::string>& argv, bool hold_usr2);

}  // namespace ela::coordinator
