// A server stream read on its own thread, so that the command can draw, notice Ctrl-C and keep a
// deadline meanwhile.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

namespace ela::cli {

template <typename Message>
class Stream {
 public:
  using Open = std::function<std::unique_ptr<grpc::ClientReader<Message>>(grpc::ClientContext*)>;

  Stream(std::unique_ptr<grpc::ClientContext> context, Open open) : context_(std::move(context)) {
    thread_ = std::thread([this, open = std::move(open)] { Read(open); });
  }
  ~Stream() {
    context_->TryCancel();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      abandoned_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  enum class Next { kMessage, kNothingYet, kEnded };

  /// The next message, waiting at most so long; kEnded after the last one.
  Next Wait(Message* message, std::chrono::milliseconds longest) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_for(lock, longest, [this] { return !queue_.empty() || ended_; });
    if (!queue_.empty()) {
      *message = std::move(queue_.front());
      queue_.pop_front();
      changed_.notify_all();
      return Next::kMessage;
    }
    return ended_ ? Next::kEnded : Next::kNothingYet;
  }

  /// Why it ended; only after kEnded.
  const grpc::Status& status() const { return status_; }

 private:
  static constexpr size_t kMostQueued =
      256;  // a slow terminal slows the stream down, it fills no memory

  void Read(const Open& open) {
    const auto reader = open(context_.get());
    for (Message message; reader->Read(&message);) {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return queue_.size() < kMostQueued || abandoned_; });
      if (abandoned_) break;
      queue_.push_back(std::move(message));
      lock.unlock();
      changed_.notify_all();
    }
    const grpc::Status status = reader->Finish();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      status_ = status;
      ended_ = true;
    }
    changed_.notify_all();
  }

  std::unique_ptr<grpc::ClientContext> context_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Message> queue_;
  bool ended_ = false;
  bool abandoned_ = false;
  grpc::Status status_;
  std::thread thread_;
};

}  // namespace ela::cli
