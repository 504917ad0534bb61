// The process that tests kill. `checkpoint-worker hold PATH` opens a store and waits; `count PATH`
// writes pairs of keys with ascending numbers, each batch acknowledged by one line on stdout after
// it is durable.
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "checkpoints/kv/key_value_store.h"

namespace ela::checkpoints {
namespace {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return 1;
}

void Acknowledge(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

int Hold(const std::string& path) {
  auto store = kv::OpenRocksDb(path, kv::OpenMode::kReadWrite);
  if (!store.ok()) return Fail(store.status());
  Acknowledge("open");
  ::pause();
  return 0;
}

int Count(const std::string& path) {
  auto store = kv::OpenRocksDb(path, kv::OpenMode::kReadWrite);
  if (!store.ok()) return Fail(store.status());
  for (int i = 1;; ++i) {
    kv::Batch batch;
    batch.Put("a", std::to_string(i));
    batch.Put("b", std::to_string(i));
    const absl::Status written = (*store)->Write(batch);
    if (!written.ok()) return Fail(written);
    Acknowledge(std::to_string(i));
  }
}

int Run(const std::vector<std::string>& arguments) {
  if (arguments.size() == 2 && arguments[0] == "hold") return Hold(arguments[1]);
  if (arguments.size() == 2 && arguments[0] == "count") return Count(arguments[1]);
  std::fprintf(stderr, "usage: checkpoint-worker hold|count PATH\n");
  return 2;
}

}  // namespace
}  // namespace ela::checkpoints

int main(int argc, char** argv) {
  return ela::checkpoints::Run(std::vector<std::string>(argv + 1, argv + argc));
}
