#include "trainer/loop/gather.h"

#include <algorithm>
#include <cstdint>

#include "proto/status_macros.h"

namespace ela::trainer {

absl::StatusOr<std::vector<std::string>> GatherStrings(Communicator& group,
                                                       const std::string& mine) {
  const size_t ranks = static_cast<size_t>(group.size());
  const int64_t size = static_cast<int64_t>(mine.size());
  std::vector<int64_t> sizes(ranks);
  ELA_RETURN_IF_ERROR(group.AllGather(sizes.data(), &size, sizeof size));
  const size_t most = static_cast<size_t>(*std::max_element(sizes.begin(), sizes.end()));
  std::string padded = mine, all(ranks * most, '\0');
  padded.resize(most);
  ELA_RETURN_IF_ERROR(group.AllGather(all.data(), padded.data(), most));
  std::vector<std::string> strings;
  for (size_t r = 0; r < ranks; ++r) {
    strings.push_back(all.substr(r * most, static_cast<size_t>(sizes[r])));
  }
  return strings;
}

absl::StatusOr<std::string> BroadcastString(Communicator& group, const std::string& of_rank_0) {
  int64_t size = static_cast<int64_t>(of_rank_0.size());
  ELA_RETURN_IF_ERROR(group.Broadcast(&size, sizeof size, /*root=*/0));
  std::string text = of_rank_0;
  text.resize(static_cast<size_t>(size));
  ELA_RETURN_IF_ERROR(group.Broadcast(text.data(), text.size(), /*root=*/0));
  return text;
}

}  // namespace ela::trainer
