package testserver

import (
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

// startTime bounds the start of a server. Nothing is asserted about speed.
const startTime = 60 * time.Second

// Start runs a server until the test ends, on loopback, silent, and with a store
// that goes with the test. opts is completed in place: a free port and a store,
// unless it names some.
func Start(t testing.TB, opts *natsserver.Options) *natsserver.Server {
	t.Helper()
	opts.Host, opts.NoSigs, opts.NoLog = "127.0.0.1", true, true
	if opts.Port == 0 {
		opts.Port = natsserver.RANDOM_PORT
	}
	if opts.StoreDir == "" {
		opts.StoreDir = t.TempDir()
	}
	srv, err := natsserver.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	if !srv.ReadyForConnections(startTime) {
		t.Fatal("the server does not come up")
	}
	return srv
}

// Bare runs a server of a cluster of this name, without JetStream and without other servers.
func Bare(t testing.TB, cluster string) *natsserver.Server {
	t.Helper()
	return Start(t, &natsserver.Options{Cluster: natsserver.ClusterOpts{Name: cluster, Host: "127.0.0.1", Port: natsserver.RANDOM_PORT}})
}
