// The process that tests kill. `checkpoint-worker hold PATH` opens a store and waits; `count PATH`
// writes pairs of keys with ascending numbers, each batch acknowledged by one line on stdout after
// it is durable. `save PATH WORLD` saves step after step as a new attempt, with retention; a line
// is the number of a step that is committed.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "checkpoints/kv/key_value_store.h"
#include "tests/checkpoints/step_testing.h"

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

int Save(const std::string& path, int world) {
  auto catalog = Catalog::OpenForWriting(path, 0);
  if (!catalog.ok()) return Fail(catalog.status());
  const auto newest = (*catalog)->Latest();
  if (!newest.ok()) return Fail(newest.status());
  Acknowledge("attempt " + std::to_string((*catalog)->attempt()));
  SaveOptions options;
  options.attempt = (*catalog)->attempt();
  options.world = world;
  for (options.step = newest->has_value() ? (*newest)->step() + 1 : 1;; ++options.step) {
    const Model model(static_cast<uint32_t>(options.step));
    const absl::Status saved = SaveStep(catalog->get(), path, model, options);
    if (!saved.ok()) return Fail(saved);
    Acknowledge(std::to_string(options.step));
    const absl::Status collected = (*catalog)->Collect(2, 10);
    if (!collected.ok()) return Fail(collected);
  }
}

int Run(const std::vector<std::string>& arguments) {
  if (arguments.size() == 2 && arguments[0] == "hold") return Hold(arguments[1]);
  if (arguments.size() == 2 && arguments[0] == "count") return Count(arguments[1]);
  if (arguments.size() == 3 && arguments[0] == "save") {
    return Save(arguments[1], std::atoi(arguments[2].c_str()));
  }
  std::fprintf(stderr, "usage: checkpoint-worker hold|count PATH | save PATH WORLD\n");
  return 2;
}

}  // namespace
}  // namespace ela::checkpoints

int main(int argc, char** argv) {
  return ela::checkpoints::Run(std::vector<std::string>(argv + 1, argv + argc));
}
