package embedded_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/embedded"
)

func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	server, err := embedded.Start(ctx, embedded.WithTempStore())
	if err != nil {
		log.Fatal(err)
	}
	defer server.Shutdown(ctx)

	nc, err := server.Connect()
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		log.Fatal(err)
	}
	kv, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "greetings"})
	if err != nil {
		log.Fatal(err)
	}
	revision, err := kv.PutString(ctx, "hello", "world")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("revision", revision)
	fmt.Printf("listener: %q\n", server.ClientURL())
	// Output:
	// revision 1
	// listener: ""
}
