#include "trainer/parallel/local_world.h"

#include <cctype>
#include <cstring>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/status_macros.h"

namespace ela::trainer {
namespace {

/// An error that the ranks agreed on names its rank already.
bool NamesRank(std::string_view text) {
  if (text.substr(0, 5) != "rank ") return false;
  size_t i = 5;
  while (i < text.size() && std::isdigit(static_cast<unsigned char>(text[i])) != 0) ++i;
  return i > 5 && text.substr(i, 2) == ": ";
}

}  // namespace

LocalWorld::LocalWorld(int ranks) {
  absl::MutexLock lock(&mutex_);
  ranks_.resize(static_cast<size_t>(ranks));
}

void LocalWorld::Begin(int rank) {
  absl::MutexLock lock(&mutex_);
  ranks_[static_cast<size_t>(rank)].thread = std::this_thread::get_id();
}

void LocalWorld::End(int rank, const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  ranks_[static_cast<size_t>(rank)].ended = true;
  if (!status.ok()) FailLocked(rank, status);
  changed_.SignalAll();
}

void LocalWorld::Fail(int rank, const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  FailLocked(rank, status);
}

void LocalWorld::FailLocked(int rank, const absl::Status& status) {
  if (!fault_.ok()) return;
  const std::string text(status.message());
  fault_ =
      absl::Status(status.code(), NamesRank(text) ? text : absl::StrCat("rank ", rank, ": ", text));
  changed_.SignalAll();
}

absl::Status LocalWorld::fault() {
  absl::MutexLock lock(&mutex_);
  return fault_;
}

absl::Status LocalWorld::Result() {
  absl::MutexLock lock(&mutex_);
  for (const auto& [channel, mailbox] : mailboxes_) {
    if (mailbox.messages.empty()) continue;
    FailLocked(channel.from,
               absl::InternalError(absl::StrCat("called ", mailbox.messages.begin()->second.op,
                                                ", and rank ", channel.to, " ended without it")));
  }
  return fault_;
}

absl::Status LocalWorld::Send(const Channel& channel, const char* op, const void* data,
                              size_t bytes) {
  Message message{op, std::vector<char>(bytes)};
  if (bytes > 0) std::memcpy(message.bytes.data(), data, bytes);
  absl::MutexLock lock(&mutex_);
  if (!fault_.ok()) return fault_;
  Mailbox& mailbox = mailboxes_[channel];
  mailbox.messages.emplace(mailbox.sent++, std::move(message));
  changed_.SignalAll();
  return absl::OkStatus();
}

LocalWorld::Receipt LocalWorld::Expect(const Channel& channel, void* recv, size_t bytes) {
  absl::MutexLock lock(&mutex_);
  return {channel, mailboxes_[channel].expected++, recv, bytes};
}

bool LocalWorld::Stuck() const {
  if (!own_threads_) return false;
  for (const Rank& rank : ranks_) {
    if (rank.ended) continue;
    if (!rank.waits_for.has_value()) return false;
    if (mailboxes_.at(rank.waits_for->channel).Has(rank.waits_for->index)) return false;
  }
  return true;
}

absl::Status LocalWorld::Await(const Receipt& receipt, const std::string& call, Message* message) {
  const auto [group, from, to] = receipt.channel;
  absl::MutexLock lock(&mutex_);
  Rank& me = ranks_[static_cast<size_t>(to)];
  Mailbox& mailbox = mailboxes_[receipt.channel];
  if (me.thread != std::this_thread::get_id()) own_threads_ = false;
  while (fault_.ok() && !mailbox.Has(receipt.index)) {
    me.waits_for = receipt;
    if (ranks_[static_cast<size_t>(from)].ended) {
      FailLocked(to, absl::InternalError(
                         absl::StrCat("waits in ", call, " for rank ", from, ", which has ended")));
    } else if (Stuck()) {
      FailLocked(to, absl::InternalError(absl::StrCat("waits in ", call, " for rank ", from,
                                                      ", while every other rank waits too")));
    } else {
      changed_.Wait(&mutex_);
    }
  }
  me.waits_for.reset();
  if (!fault_.ok()) return fault_;
  *message = std::move(mailbox.messages.extract(receipt.index).mapped());
  return absl::OkStatus();
}

absl::Status LocalWorld::Receive(const Receipt& receipt, const char* op, const std::string& axis) {
  const auto [group, from, to] = receipt.channel;
  const std::string call = absl::StrCat(op, " of ", axis);
  Message message;
  ELA_RETURN_IF_ERROR(Await(receipt, call, &message));
  if (std::strcmp(message.op, op) != 0) {
    Fail(to, absl::InternalError(
                 absl::StrCat("calls ", call, " where rank ", from, " calls ", message.op)));
    return fault();
  }
  if (message.bytes.size() != receipt.bytes) {
    Fail(to,
         absl::InternalError(absl::StrCat(call, ": expects ", receipt.bytes, " bytes from rank ",
                                          from, ", which sent ", message.bytes.size())));
    return fault();
  }
  if (receipt.bytes > 0) std::memcpy(receipt.recv, message.bytes.data(), receipt.bytes);
  return absl::OkStatus();
}

int LocalWorld::GroupOf(int parent, int split, int color) {
  absl::MutexLock lock(&mutex_);
  const int next = static_cast<int>(groups_.size()) + 1;  // 0: the world
  return groups_.emplace(std::make_tuple(parent, split, color), next).first->second;
}

}  // namespace ela::trainer
