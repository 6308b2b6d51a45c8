package coalesce

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/internal/test/sites"
)

// patience is how long a test waits for an event that must come.
const patience = 60 * time.Second

// site is the server of all tests of this package. The first test that needs it starts it.
var site struct {
	once   sync.Once
	err    error
	server *embedded.Server
	store  string
}

func startSite(t testing.TB) *embedded.Server {
	t.Helper()
	site.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		site.server, site.err = embedded.Start(ctx, embedded.WithTempStore(), embedded.WithSync(embedded.SyncInterval(time.Second)), embedded.WithListen("127.0.0.1:0"))
	})
	if site.err != nil {
		t.Fatal(site.err)
	}
	return site.server
}

func TestMain(m *testing.M) {
	code := m.Run()
	if site.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		if err := site.server.Shutdown(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		cancel()
	}
	if code == 0 {
		if err := sites.FindLeaks(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}
