#include "coordinator/cli/client.h"

#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "coordinator/cli/format.h"
#include "proto/job/job_file.h"
#include "proto/status_macros.h"

namespace ela::cli {
namespace {

absl::StatusOr<std::string> ReadFile(const std::string& option, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  if (!file || text.str().empty()) {
    return absl::InvalidArgumentError(absl::StrCat("--", option, ": ", path, ": cannot be read"));
  }
  return text.str();
}

bool IsLoopback(const std::string& address) {
  return absl::StartsWith(address, "127.") || absl::StartsWith(address, "localhost:") ||
         absl::StartsWith(address, "[::1]:") || absl::StartsWith(address, "unix:");
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> Credentials(const Arguments& arguments) {
  if (!arguments.Has("ca")) {
    if (arguments.Has("cert") || arguments.Has("key")) {
      return absl::InvalidArgumentError("--cert and --key need --ca, which turns TLS on");
    }
    return grpc::InsecureChannelCredentials();
  }
  if (arguments.Has("cert") != arguments.Has("key")) {
    return absl::InvalidArgumentError("--cert and --key belong together; give both or none");
  }
  grpc::SslCredentialsOptions options;
  ELA_ASSIGN_OR_RETURN(options.pem_root_certs, ReadFile("ca", arguments.Get("ca")));
  if (arguments.Has("cert")) {
    ELA_ASSIGN_OR_RETURN(options.pem_cert_chain, ReadFile("cert", arguments.Get("cert")));
    ELA_ASSIGN_OR_RETURN(options.pem_private_key, ReadFile("key", arguments.Get("key")));
  }
  return grpc::SslCredentials(options);
}

absl::StatusOr<std::string> Token(const Arguments& arguments, const std::string& address) {
  if (!arguments.Has("token-file")) return std::string();
  if (!arguments.Has("ca") && !IsLoopback(address)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--token-file: ", address, " is not this machine and TLS is off; add --ca"));
  }
  ELA_ASSIGN_OR_RETURN(const std::string text, ReadFile("token-file", arguments.Get("token-file")));
  const std::string token(absl::StripAsciiWhitespace(text));
  for (char c : token) {
    if (!absl::ascii_isgraph(c)) {
      return absl::InvalidArgumentError(
          "--token-file: the token holds a space or a control character");
    }
  }
  return token;
}

// The library's account of a failed connection is long; what it comes to is at its end.
std::string WhyUnreachable(const std::string& said) {
  if (absl::StrContains(said, "Connection refused"))
    return "connection refused: nothing listens there";
  const size_t last = said.rfind("last error: ");
  return last == std::string::npos ? said : said.substr(last + 12);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Client>> Client::Create(const Arguments& arguments, const Io& io) {
  auto client = std::unique_ptr<Client>(new Client());
  const std::string from_env = io.env("ELA_ADDRESS");
  client->address_ = arguments.Get("address", from_env.empty() ? "127.0.0.1:7070" : from_env);
  if (!absl::StrContains(client->address_, ':')) {
    return absl::InvalidArgumentError(
        absl::StrCat("--address: \"", client->address_, "\" has no port; write HOST:PORT"));
  }
  if (arguments.Has("timeout")) {
    const auto timeout = job::ParseDurationMs(arguments.Get("timeout"));
    if (!timeout.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--timeout: ", timeout.status().message()));
    }
    client->timeout_ = std::chrono::milliseconds(*timeout);
  }
  ELA_ASSIGN_OR_RETURN(client->token_, Token(arguments, client->address_));
  ELA_ASSIGN_OR_RETURN(const auto credentials, Credentials(arguments));
  grpc::ChannelArguments channel;
  // A cut link is noticed by pings; a coordinator that comes back is found within a second.
  channel.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20000);
  channel.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  channel.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  channel.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // Proxies of the environment are for the web, not for a coordinator.
  channel.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  client->stub_ =
      v1::Coordinator::NewStub(grpc::CreateCustomChannel(client->address_, credentials, channel));
  return client;
}

std::unique_ptr<grpc::ClientContext> Client::NewContext(bool stream) const {
  auto context = std::make_unique<grpc::ClientContext>();
  if (!token_.empty()) context->AddMetadata("authorization", "Bearer " + token_);
  if (!stream) context->set_deadline(std::chrono::system_clock::now() + timeout_);
  return context;
}

absl::Status Client::ToStatus(const grpc::Status& status) const {
  // A refused job is one line a problem; every other message is one line.
  std::string said;
  const std::vector<std::string> lines =
      absl::StrSplit(status.error_message(), '\n', absl::SkipEmpty());
  for (const std::string& line : lines) {
    absl::StrAppend(&said, said.empty() ? "" : "\n", Printable(line));
  }
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
      if (absl::StrContains(said, "andshake failed")) {
        return absl::Status(code,
                            absl::StrCat("no TLS connection to the coordinator at ", address_, " (",
                                         WhyUnreachable(said), "); check --ca, --cert and --key"));
      }
      return absl::Status(
          code,
          absl::StrCat("cannot reach the coordinator at ", address_, " (", WhyUnreachable(said),
                       "); start ela-coordinator, or name another with --address"));
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return absl::Status(code, absl::StrCat("the coordinator at ", address_,
                                             " did not answer in time; see --timeout"));
    case grpc::StatusCode::UNAUTHENTICATED:
      return absl::Status(code, absl::StrCat("the coordinator does not know you (", said,
                                             "); give --token-file or --cert and --key"));
    case grpc::StatusCode::PERMISSION_DENIED:
      return absl::Status(code, absl::StrCat("not allowed: ", said));
    case grpc::StatusCode::UNIMPLEMENTED:
      return absl::Status(code, absl::StrCat("the coordinator at ", address_,
                                             " does not know this call; compare ela version"));
    default:
      return absl::Status(code, said);
  }
}

int ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kDone;
    case absl::StatusCode::kInvalidArgument:
      return kUsage;
    case absl::StatusCode::kNotFound:
      return kNotFound;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kDeadlineExceeded:
      return kUnreachable;
    default:
      return kFailed;
  }
}

}  // namespace ela::cli
