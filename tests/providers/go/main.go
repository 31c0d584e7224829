// An application in Go that asks the agent as Go's own clients do: flagd's service through flagd's provider and OpenFeature's
// SDK, Flipt's through grpc-go.
//
//	application flagd SOCKET
//	application flipt SOCKET DESCRIPTORS
//
// DESCRIPTORS is a FileDescriptorSet of Flipt's messages. Questions and answers are lines of JSON.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	flagd "github.com/open-feature/go-sdk-contrib/providers/flagd/pkg"
	"github.com/open-feature/go-sdk/openfeature"
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
	Default any            `json:"default"`
	Context map[string]any `json:"context"`
}

// What is asked, and what is printed for it.
type asker func(ctx context.Context, asked question) any

func main() {
	var ask asker
	switch os.Args[1] {
	case "flagd":
		ask = throughFlagd(os.Args[2])
	case "flipt":
		ask = throughFlipt(os.Args[2], os.Args[3])
	}
	say(map[string]bool{"ready": true})
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var asked question
		check(json.Unmarshal(lines.Bytes(), &asked))
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		found := ask(ctx, asked)
		cancel()
		say(found)
	}
}

func throughFlagd(socket string) asker {
	for _, event := range []openfeature.EventType{
		openfeature.ProviderReady, openfeature.ProviderConfigChange, openfeature.ProviderStale, openfeature.ProviderError,
	} {
		tell := func(details openfeature.EventDetails) {
			// A new handler is told that the SDK's own provider, which is in use until ours is, is ready.
			if details.ProviderName != "flagd" {
				return
			}
			flags := []string{}
			for _, flag := range details.FlagChanges {
				// The provider fills its list up with blanks.
				if flag != "" {
					flags = append(flags, flag)
				}
			}
			slices.Sort(flags)
			say(map[string]any{"event": event, "flags": flags})
		}
		openfeature.AddHandler(event, &tell)
	}
	provider, err := flagd.NewProvider(flagd.WithRPCResolver(), flagd.WithSocketPath(socket))
	check(err)
	check(openfeature.SetProviderAndWait(provider))
	client := openfeature.NewClient("application")
	return func(ctx context.Context, asked question) any {
		entity, _ := asked.Context["targetingKey"].(string)
		delete(asked.Context, "targetingKey")
		about := openfeature.NewEvaluationContext(entity, asked.Context)
		var value any
		var details openfeature.EvaluationDetails
		// The errors are in the details too.
		switch fallback := asked.Default.(type) {
		case bool:
			found, _ := client.BooleanValueDetails(ctx, asked.Key, fallback, about)
			value, details = found.Value, found.EvaluationDetails
		case string:
			found, _ := client.StringValueDetails(ctx, asked.Key, fallback, about)
			value, details = found.Value, found.EvaluationDetails
		case float64:
			if asked.Kind == "integer" {
				found, _ := client.IntValueDetails(ctx, asked.Key, int64(fallback), about)
				value, details = found.Value, found.EvaluationDetails
				break
			}
			found, _ := client.FloatValueDetails(ctx, asked.Key, fallback, about)
			value, details = found.Value, found.EvaluationDetails
		default:
			found, _ := client.ObjectValueDetails(ctx, asked.Key, fallback, about)
			value, details = found.Value, found.EvaluationDetails
		}
		return map[string]any{
			"value": value, "reason": details.Reason, "variant": orNull(details.Variant), "error": orNull(string(details.ErrorCode)),
		}
	}
}

func throughFlipt(socket, descriptors string) asker {
	const service = "flipt.evaluation.EvaluationService"
	connection, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(err)
	found, err := read(descriptors).FindDescriptorByName(protoreflect.FullName(service))
	check(err)
	methods := found.(protoreflect.ServiceDescriptor).Methods()
	return func(ctx context.Context, asked question) any {
		method := methods.ByName(protoreflect.Name(asked.Kind))
		request, response := dynamicpb.NewMessage(method.Input()), dynamicpb.NewMessage(method.Output())
		check(fill(request, asked))
		if err := connection.Invoke(ctx, fmt.Sprintf("/%s/%s", service, asked.Kind), request, response); err != nil {
			return map[string]string{"error": status.Code(err).String(), "message": err.Error()}
		}
		text, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(response)
		check(err)
		return json.RawMessage(text)
	}
}

// Flipt has the entity beside the context.
func fill(request *dynamicpb.Message, asked question) error {
	fields := map[string]any{"flag_key": asked.Key}
	about := map[string]any{}
	for name, value := range asked.Context {
		if name == "targetingKey" {
			fields["entity_id"] = value
		} else {
			about[name] = value
		}
	}
	fields["context"] = about
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

func orNull(text string) any {
	if text == "" {
		return nil
	}
	return text
}

var turn sync.Mutex

// Events come from threads of the SDK's.
func say(document any) {
	turn.Lock()
	defer turn.Unlock()
	check(json.NewEncoder(os.Stdout).Encode(document))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
