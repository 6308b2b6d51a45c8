package embedded_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/internal/test/testca"
)

// A server for other processes: they need TLS and a password.
func ExampleWithTLS() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ca, err := testca.In(dir)
	if err != nil {
		log.Fatal(err)
	}
	cert, key, err := ca.Sign("server")
	if err != nil {
		log.Fatal(err)
	}

	server, err := embedded.Start(ctx, embedded.WithTempStore(),
		embedded.WithListen("127.0.0.1:0"),
		embedded.WithTLS(cert, key),
		embedded.WithUser("locks", "open sesame"))
	if err != nil {
		log.Fatal(err)
	}
	defer server.Shutdown(ctx)

	nc, err := nats.Connect(server.ClientURL(), nats.RootCAs(ca.File), nats.UserInfo("locks", "open sesame"))
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	scheme, _, _ := strings.Cut(server.ClientURL(), ":")
	fmt.Println("connected by", scheme)

	_, err = nats.Connect(server.ClientURL(), nats.RootCAs(ca.File), nats.UserInfo("locks", "guess"))
	fmt.Println(err)

	// Inside the process neither is needed.
	inside, err := server.Connect()
	if err != nil {
		log.Fatal(err)
	}
	defer inside.Close()
	fmt.Println("connected inside")
	// Output:
	// connected by tls
	// nats: Authorization Violation
	// connected inside
}
