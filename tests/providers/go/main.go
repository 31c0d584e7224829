// An application in Go that asks the agent as Go's SDKs do: Flipt's service through grpc-go, flagd's through connect-go.
//
//	application grpc|connect SOCKET DESCRIPTORS
//
// DESCRIPTORS is a FileDescriptorSet of the services' messages. Questions and answers are lines of JSON.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

const patience = 10 * time.Second

type question struct {
	Kind    string         `json:"kind"`
	Key     string         `json:"key"`
	Context map[string]any `json:"context"`
}

// One call: its path, its request and the message that its response is read into.
type caller func(ctx context.Context, path string, request, response *dynamicpb.Message) (code string, err error)

func main() {
	protocol, socket := os.Args[1], os.Args[2]
	files := read(os.Args[3])
	call, service := byGrpc(socket), "flipt.evaluation.EvaluationService"
	if protocol == "connect" {
		call, service = byConnect(socket), "flagd.evaluation.v2.Service"
	}
	found, err := files.FindDescriptorByName(protoreflect.FullName(service))
	check(err)
	methods := found.(protoreflect.ServiceDescriptor).Methods()

	out := json.NewEncoder(os.Stdout)
	check(out.Encode(map[string]bool{"ready": true}))
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var asked question
		check(json.Unmarshal(lines.Bytes(), &asked))
		method := methods.ByName(protoreflect.Name(asked.Kind))
		request, response := dynamicpb.NewMessage(method.Input()), dynamicpb.NewMessage(method.Output())
		check(fill(request, asked))
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		code, err := call(ctx, fmt.Sprintf("/%s/%s", service, asked.Kind), request, response)
		cancel()
		if err != nil {
			check(out.Encode(map[string]string{"error": code, "message": err.Error()}))
			continue
		}
		text, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(response)
		check(err)
		check(out.Encode(json.RawMessage(text)))
	}
}

func byGrpc(socket string) caller {
	connection, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(err)
	return func(ctx context.Context, path string, request, response *dynamicpb.Message) (string, error) {
		err := connection.Invoke(ctx, path, request, response)
		return status.Code(err).String(), err
	}
}

func byConnect(socket string) caller {
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	return func(ctx context.Context, path string, request, response *dynamicpb.Message) (string, error) {
		calls := connect.NewClient[dynamicpb.Message, dynamicpb.Message](
			client, "http://localhost"+path,
			connect.WithResponseInitializer(func(_ connect.Spec, message any) error {
				*message.(*dynamicpb.Message) = *dynamicpb.NewMessage(response.Descriptor())
				return nil
			}),
		)
		answer, err := calls.CallUnary(ctx, connect.NewRequest(request))
		if err != nil {
			return connect.CodeOf(err).String(), err
		}
		proto.Merge(response, answer.Msg)
		return "", nil
	}
}

// Flipt's requests and flagd's have the same words for what is asked, but for the entity.
func fill(request *dynamicpb.Message, asked question) error {
	fields := map[string]any{"flag_key": asked.Key, "context": asked.Context}
	if request.Descriptor().Fields().ByName("entity_id") != nil {
		context := map[string]any{}
		for name, value := range asked.Context {
			if name == "targetingKey" {
				fields["entity_id"] = value
			} else {
				context[name] = value
			}
		}
		fields["context"] = context
	}
	text, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	return protojson.Unmarshal(text, request)
}

func read(path string) *protoregistry.Files {
	data, err := os.ReadFile(path)
	check(err)
	set := &descriptorpb.FileDescriptorSet{}
	check(proto.Unmarshal(data, set))
	files, err := protodesc.NewFiles(set)
	check(err)
	return files
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
