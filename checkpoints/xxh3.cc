#include "checkpoints/xxh3.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "checkpoints/kv/files.h"

namespace ela::checkpoints {

absl::StatusOr<FileDigest> DigestFile(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return kv::ErrnoStatus(errno, "open", path);
  absl::Cleanup closer = [fd] { ::close(fd); };
  FileDigest digest;
  Xxh3Stream hash;
  std::vector<char> buffer(size_t{1} << 20);
  while (true) {
    const ssize_t got = ::read(fd, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return kv::ErrnoStatus(errno, "read", path);
    if (got == 0) break;
    hash.Update(buffer.data(), static_cast<size_t>(got));
    digest.bytes += got;
  }
  digest.xxh3 = hash.Digest();
  return digest;
}

}  // namespace ela::checkpoints
