package jskv_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/internal/test/cluster"
	"github.com/lockfabric/lockfabric/internal/test/sites"
)

// Servers of all tests that leave them as they are, started by the first one, and what stops them.
var (
	stopServer, stopServers = func() error { return nil }, func() error { return nil }

	oneServer = sync.OnceValues(func() (*embedded.Server, error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		srv, err := embedded.Start(ctx, embedded.WithTempStore(), embedded.WithSync(embedded.SyncInterval(time.Minute)))
		if err == nil {
			stopServer = func() error { return srv.Shutdown(context.Background()) }
		}
		return srv, err
	})
	threeServers = sync.OnceValues(func() (*cluster.Cluster, error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c, err := cluster.Start(ctx, 3)
		if err == nil {
			stopServers = c.Shutdown
		}
		return c, err
	})
)

func TestMain(m *testing.M) {
	sites.RunMoreAtOnce()
	code := m.Run()
	if err := errors.Join(stopServer(), stopServers()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}
