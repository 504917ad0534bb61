#include "trainer/loop/stop_signal.h"

#include <pthread.h>
#include <signal.h>

namespace ela::trainer {
namespace {

sigset_t StopSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  sigaddset(&set, SIGTERM);
  return set;
}

}  // namespace

StopSignal::StopSignal() {
  const sigset_t set = StopSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  thread_ = std::thread([this, set] {
    while (!ending_) {
      int signal = 0;
      if (sigwait(&set, &signal) == 0 && !ending_) requested_ = true;
    }
  });
}

StopSignal::~StopSignal() {
  ending_ = true;
  pthread_kill(thread_.native_handle(), SIGUSR2);
  thread_.join();
}

}  // namespace ela::trainer
