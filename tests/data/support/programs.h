// Runs the built programs.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "tests/data/support/corpus.h"

namespace ela::data::testing {

/// Starts a program of the build; its output goes to files. The caller waits for it.
inline pid_t StartProgram(const std::string& name, const std::vector<std::string>& arguments,
                          const std::string& out, const std::string& err) {
  const std::string path = std::string(ELA_PROGRAM_DIR) + "/" + name;
  std::vector<char*> argv = {const_cast<char*>(path.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const pid_t pid = fork();
  if (pid == 0) {
    if (std::freopen(out.c_str(), "w", stdout) == nullptr) _exit(126);
    if (std::freopen(err.c_str(), "w", stderr) == nullptr) _exit(126);
    execv(path.c_str(), argv.data());
    _exit(127);
  }
  return pid;
}

struct Ran {
  int code = -1;  // -1: ended by a signal
  std::string out;
  std::string err;
};

inline int WaitFor(pid_t pid) {
  int status = 0;
  EXPECT_EQ(waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/// Texts or ids, each behind its length, as sentencepiece_reference reads and writes them.
template <typename T>
void WriteRecords(const std::string& path, const std::vector<T>& records) {
  std::string bytes;
  for (const T& record : records) {
    const auto count = static_cast<uint32_t>(record.size());
    bytes.append(reinterpret_cast<const char*>(&count), 4);
    bytes.append(reinterpret_cast<const char*>(record.data()),
                 record.size() * sizeof(typename T::value_type));
  }
  WriteBytes(path, bytes);
}

template <typename T>
std::vector<T> ReadRecords(const std::string& path) {
  const std::string bytes = ReadBytes(path);
  std::vector<T> records;
  for (size_t at = 0; at + 4 <= bytes.size();) {
    uint32_t count = 0;
    std::memcpy(&count, bytes.data() + at, 4);
    T record(count, {});
    const size_t size = count * sizeof(typename T::value_type);
    std::memcpy(record.data(), bytes.data() + at + 4, size);
    records.push_back(std::move(record));
    at += 4 + size;
  }
  return records;
}

class ProgramTest : public TempFolder {
 protected:
  Ran Run(const std::string& name, const std::vector<std::string>& arguments) {
    Ran ran;
    ran.code = WaitFor(StartProgram(name, arguments, Path("stdout"), Path("stderr")));
    ran.out = ReadBytes(Path("stdout"));
    ran.err = ReadBytes(Path("stderr"));
    return ran;
  }
  /// The ids that the SentencePiece library gives.
  std::vector<std::vector<int32_t>> LibraryIds(const std::string& model,
                                               const std::vector<std::string>& texts) {
    WriteRecords(Path("texts"), texts);
    const Ran ran = Run("sentencepiece_reference", {"encode", model, Path("texts"), Path("ids")});
    EXPECT_EQ(ran.code, 0) << ran.err;
    return ReadRecords<std::vector<int32_t>>(Path("ids"));
  }
  void TrainByLibrary(const std::vector<std::string>& texts, const std::string& model,
                      const std::vector<std::string>& settings) {
    WriteRecords(Path("texts"), texts);
    std::vector<std::string> arguments = {"train", Path("texts"), model};
    arguments.insert(arguments.end(), settings.begin(), settings.end());
    const Ran ran = Run("sentencepiece_reference", arguments);
    ASSERT_EQ(ran.code, 0) << ran.err;
  }
};

}  // namespace ela::data::testing
