#include "proto/program/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>

#include <string>

#include "absl/strings/numbers.h"

namespace ela {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

std::vector<HttpPage> OnePage() {
  return {{"/page", kPrometheusText, [] { return std::string("text\n"); }}};
}

int PortOf(const HttpServer& server) {
  int port = 0;
  EXPECT_TRUE(absl::SimpleAtoi(server.address().substr(server.address().rfind(':') + 1), &port));
  return port;
}

TEST(HttpServerTest, AnswersItsPagesAlone) {
  const auto server = HttpServer::Start("127.0.0.1:0", OnePage());
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_THAT((*server)->address(), StartsWith("127.0.0.1:"));
  httplib::Client client("127.0.0.1", PortOf(**server));
  const auto page = client.Get("/page");
  ASSERT_TRUE(page);
  EXPECT_EQ(page->status, 200);
  EXPECT_EQ(page->body, "text\n");
  EXPECT_EQ(page->get_header_value("Content-Type"), kPrometheusText);
  EXPECT_EQ(client.Get("/page/other")->status, 404);
  EXPECT_EQ(client.Post("/page")->status, 404);
}

TEST(HttpServerTest, IdleConnectionsKeepNobodyWaiting) {
  const auto server = HttpServer::Start("127.0.0.1:0", OnePage());
  ASSERT_TRUE(server.ok()) << server.status();
  for (int i = 0; i < 8; ++i) {
    httplib::Client client("127.0.0.1", PortOf(**server));
    client.set_keep_alive(true);
    const auto page = client.Get("/page");
    ASSERT_TRUE(page);
    EXPECT_EQ(page->get_header_value("Connection"), "close");
  }
}

TEST(HttpServerTest, TakesNoPortThatAnotherHas) {
  const auto first = HttpServer::Start("127.0.0.1:0", OnePage());
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = HttpServer::Start((*first)->address(), OnePage());
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(second.status().message(), HasSubstr((*first)->address() + " cannot be listened on"));
}

TEST(HttpServerTest, PortsAreFreeAgain) {
  std::string address = "127.0.0.1:0";
  for (int i = 0; i < 3; ++i) {
    const auto server = HttpServer::Start(address, OnePage());
    ASSERT_TRUE(server.ok()) << server.status();
    address = (*server)->address();
  }
}

TEST(HttpServerTest, RefusesWhatIsNoAddress) {
  for (const char* address : {"", "127.0.0.1", "127.0.0.1:http", "192.0.2.1:0"}) {
    EXPECT_FALSE(HttpServer::Start(address, OnePage()).ok()) << address;
  }
}

}  // namespace
}  // namespace ela
