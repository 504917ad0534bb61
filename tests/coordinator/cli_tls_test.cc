// `ela --ca --cert --key` against a server with TLS that demands a client certificate. The
// certificates are made here.

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "tests/coordinator/cli_testing.h"

namespace ela::cli {
namespace {

std::string ReadAll(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// A self-signed certificate of 127.0.0.1 and its key: authority, server and client in one.
bool MakeCertificate(const std::string& prefix) {
  const std::string command =
      "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ela-test -addext "
      "subjectAltName=IP:127.0.0.1 -keyout '" +
      prefix + ".key' -out '" + prefix + ".crt' 2>/dev/null";
  return std::system(command.c_str()) == 0;
}

TEST(CliTls, ConnectsWithItsCertificateAndOnlyWithIt) {
  const std::string prefix = ::testing::TempDir() + "cli_tls";
  if (!MakeCertificate(prefix)) GTEST_SKIP() << "no openssl program here";
  grpc::SslServerCredentialsOptions options(
      GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = ReadAll(prefix + ".crt");
  options.pem_key_cert_pairs.push_back({ReadAll(prefix + ".key"), ReadAll(prefix + ".crt")});
  FakeCoordinator coordinator;
  coordinator.job = MakeJob(v1::JOB_STATE_RUNNING);
  const FakeServer server(&coordinator, 0, grpc::SslServerCredentials(options));
  Cli cli;
  cli.env["ELA_ADDRESS"] = server.address();

  const std::string ca = prefix + ".crt", key = prefix + ".key";
  const Outcome good =
      cli.Run({"get", "demo", "-o", "name", "--ca", ca, "--cert", ca, "--key", key});
  EXPECT_EQ(good.code, kDone) << good.err;
  EXPECT_EQ(good.out, "j-0123456789ab\n");
  EXPECT_EQ(cli.Run({"get", "demo", "--ca", ca}).code, kUnreachable);
  EXPECT_EQ(cli.Run({"get", "demo"}).code, kUnreachable);
}

}  // namespace
}  // namespace ela::cli
