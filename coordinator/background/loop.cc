#include "coordinator/background/loop.h"

#include <utility>

namespace ela::coordinator {

Loop::Loop(absl::Duration period, std::function<void()> tick)
    : period_(period), tick_(std::move(tick)), thread_([this] { Run(); }) {}

Loop::~Loop() { Stop(); }

void Loop::Wake() {
  absl::MutexLock lock(&mutex_);
  woken_ = true;
}

void Loop::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    woken_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void Loop::Run() {
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      mutex_.AwaitWithTimeout(absl::Condition(&woken_), period_);
      if (stopping_) return;
      woken_ = false;
    }
    tick_();
  }
}

}  // namespace ela::coordinator
