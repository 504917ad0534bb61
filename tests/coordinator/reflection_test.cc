// What gRPC's own tools ask of a server: whether it serves, and what. Messages of
// grpc.health.v1 and grpc.reflection.v1alpha, whose headers are not installed, are read by field
// number.
#include <gmock/gmock.h>
#include <google/protobuf/empty.pb.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/generic/generic_stub.h>

#include "tests/coordinator/service_testing.h"

namespace ela::coordinator {
namespace {

using google::protobuf::Empty;
using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;
using testing::IsSupersetOf;

/// A message by its field numbers.
Empty Message(int number, const std::string& value) {
  Empty message;
  message.GetReflection()->MutableUnknownFields(&message)->AddLengthDelimited(number, value);
  return message;
}

/// The fields `number` of a serialized message.
std::vector<std::string> Fields(const std::string& message, int number) {
  UnknownFieldSet fields;
  EXPECT_TRUE(fields.ParseFromString(message));
  std::vector<std::string> values;
  for (int i = 0; i < fields.field_count(); ++i) {
    if (fields.field(i).number() == number) values.push_back(fields.field(i).length_delimited());
  }
  return values;
}

class ReflectionTest : public ServiceTest {
 protected:
  /// One request and its reply; a unary call is a stream of one message each way.
  grpc::Status Call(const std::string& method, const Empty& request, Empty* reply) {
    grpc::TemplatedGenericStub<Empty, Empty> stub(
        grpc::CreateChannel(server_->address(), grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    SetDeadline(&context, 30);
    grpc::CompletionQueue queue;
    const auto call = stub.PrepareCall(&context, method, &queue);
    const auto await = [&queue] {
      void* tag = nullptr;
      bool ok = false;
      return queue.Next(&tag, &ok) && ok;
    };
    call->StartCall(nullptr);
    EXPECT_TRUE(await());
    call->WriteLast(request, {}, nullptr);
    EXPECT_TRUE(await());
    call->Read(reply, nullptr);
    await();  // false where the call fails: the status says why
    grpc::Status status;
    call->Finish(&status, nullptr);
    EXPECT_TRUE(await());
    return status;
  }
};

TEST_F(ReflectionTest, SaysThatItServes) {
  StartServer();
  const std::string check = "/grpc.health.v1.Health/Check";
  Empty reply;
  const grpc::Status whole = Call(check, Message(1, ""), &reply);
  ASSERT_TRUE(whole.ok()) << whole.error_message();
  EXPECT_EQ(reply.SerializeAsString(), std::string("\x08\x01"));  // status: SERVING
  const grpc::Status part = Call(check, Message(1, "ela.v1.Nothing"), &reply);
  EXPECT_EQ(part.error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ReflectionTest, ListsItsServices) {
  StartServer();
  Empty reply;
  const grpc::Status status = Call("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                                   Message(7, ""), &reply);  // list_services
  ASSERT_TRUE(status.ok()) << status.error_message();
  const std::vector<std::string> lists = Fields(reply.SerializeAsString(), 6);
  ASSERT_EQ(lists.size(), 1u);
  std::vector<std::string> names;
  for (const std::string& service : Fields(lists[0], 1)) {
    names.push_back(Fields(service, 1).at(0));
  }
  EXPECT_THAT(names, IsSupersetOf(
                         {"ela.v1.Coordinator", "ela.v1.TrainerReports", "grpc.health.v1.Health"}));
}

}  // namespace
}  // namespace ela::coordinator
