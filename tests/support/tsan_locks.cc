// Abseil's locks as ThreadSanitizer needs to see them. The library comes built without it, so that
// all that a lock orders would look like a race: these definitions stand before the library's, call
// it, and say what follows what. Conditions are asked here, as the library would have the thread
// that unlocks ask those of others.
#include <dlfcn.h>
#include <poll.h>
#include <sanitizer/tsan_interface.h>

#include <string>

#include "absl/base/options.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"

#define UNCHECKED __attribute__((no_thread_safety_analysis))
#define TEXT_OF(name) #name
#define EXPANDED_TEXT_OF(name) TEXT_OF(name)

namespace {

/// The library's own function of absl's inline namespace, by the rest of its mangled name.
template <class F>
F* Real(const char* rest) {
  const std::string space = EXPANDED_TEXT_OF(ABSL_OPTION_INLINE_NAMESPACE_NAME);
  const std::string name = "_ZN4absl" + std::to_string(space.size()) + space + rest;
  return reinterpret_cast<F*>(dlsym(RTLD_NEXT, name.c_str()));
}

using Act = void(absl::Mutex*);
using Try = bool(absl::Mutex*);

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

UNCHECKED void Mutex::Lock() {
  static Act* const real = Real<Act>("5Mutex4LockEv");
  real(this);
  __tsan_acquire(this);
}

UNCHECKED void Mutex::Unlock() {
  static Act* const real = Real<Act>("5Mutex6UnlockEv");
  __tsan_release(this);
  real(this);
}

UNCHECKED bool Mutex::TryLock() {
  static Try* const real = Real<Try>("5Mutex7TryLockEv");
  const bool locked = real(this);
  if (locked) __tsan_acquire(this);
  return locked;
}

UNCHECKED void Mutex::ReaderLock() {
  static Act* const real = Real<Act>("5Mutex10ReaderLockEv");
  real(this);
  __tsan_acquire(this);
}

UNCHECKED void Mutex::ReaderUnlock() {
  static Act* const real = Real<Act>("5Mutex12ReaderUnlockEv");
  __tsan_release(this);
  real(this);
}

UNCHECKED bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  while (!condition.Eval()) {
    if (Now() >= deadline) return false;
    Unlock();
    poll(nullptr, 0, 1);
    Lock();
  }
  return true;
}

UNCHECKED void Mutex::Await(const Condition& condition) {
  AwaitWithDeadline(condition, InfiniteFuture());
}

UNCHECKED bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  return AwaitWithDeadline(condition, Now() + timeout);
}

UNCHECKED void Mutex::LockWhen(const Condition& condition) {
  Lock();
  Await(condition);
}

UNCHECKED bool Mutex::LockWhenWithDeadline(const Condition& condition, Time deadline) {
  Lock();
  return AwaitWithDeadline(condition, deadline);
}

UNCHECKED bool Mutex::LockWhenWithTimeout(const Condition& condition, Duration timeout) {
  return LockWhenWithDeadline(condition, Now() + timeout);
}

UNCHECKED void CondVar::Wait(Mutex* mutex) {
  static auto* const real = Real<void(CondVar*, Mutex*)>("7CondVar4WaitEPNS0_5MutexE");
  __tsan_release(mutex);
  real(this, mutex);
  __tsan_acquire(mutex);
}

UNCHECKED bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  static auto* const real =
      Real<bool(CondVar*, Mutex*, Time)>("7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
  __tsan_release(mutex);
  const bool expired = real(this, mutex, deadline);
  __tsan_acquire(mutex);
  return expired;
}

UNCHECKED bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  return WaitWithDeadline(mutex, Now() + timeout);
}

ABSL_NAMESPACE_END
}  // namespace absl
