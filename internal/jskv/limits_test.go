package jskv_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/test/testserver"
	"github.com/lockfabric/lockfabric/kv"
)

// limitedServer runs a server whose accounts, each with a user of the same name, have
// these limits of JetStream.
func limitedServer(t *testing.T, limits map[string]string) *embedded.Server {
	t.Helper()
	var accounts strings.Builder
	for name, lim := range limits {
		fmt.Fprintf(&accounts, "%[1]s: { jetstream: { %[2]s }, users: [ {user: %[1]s, password: %[1]s} ] }\n", name, lim)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "nats.conf")
	text := fmt.Sprintf("listen: \"127.0.0.1:-1\"\njetstream { store_dir: %q, sync_interval: \"1m\" }\naccounts {\n%s}\n", dir, accounts.String())
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	srv, err := embedded.Start(testContext(t), embedded.WithConfigFile(path))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return srv
}

// What is asked for fits what the account has, and where it can't the limit is named
// with its figure.
func TestLimitsOfTheAccount(t *testing.T) {
	cases := map[string]struct {
		limits string
		says   string // of the error; "" where the buckets can be created
		check  func(t *testing.T, sc jetstream.StreamConfig)
	}{
		"consumers": {"max_consumers: 1000", "", func(t *testing.T, sc jetstream.StreamConfig) {
			if sc.MaxConsumers != 1000 {
				t.Errorf("max_consumers of %s is %d", sc.Name, sc.MaxConsumers)
			}
		}},
		"fewconsumers": {"max_consumers: 1", "consumers: the account may have 1", nil},
		"twostreams":   {"max_streams: 2", "", nil},
		"onestream":    {"max_streams: 1", "streams: the account may have 1 and has 0; 2 more needed", nil},
		"nostorage":    {"max_file: 0", "file storage: the account may use 0 bytes", nil},
		"bytes": {"max_file: 1000000000, max_bytes_required: true", "", func(t *testing.T, sc jetstream.StreamConfig) {
			if sc.MaxBytes < 400_000_000 || sc.MaxBytes > 500_000_000 {
				t.Errorf("max_bytes of %s is %d", sc.Name, sc.MaxBytes)
			}
		}},
		"streambytes": {"max_bytes_required: true, disk_max_stream_bytes: 50000000", "", func(t *testing.T, sc jetstream.StreamConfig) {
			if sc.MaxBytes != 50_000_000 {
				t.Errorf("max_bytes of %s is %d", sc.Name, sc.MaxBytes)
			}
		}},
		"fewbytes": {"max_bytes_required: true, max_file: 1000000", "leaves 500000 bytes", nil},
	}
	limits := map[string]string{}
	for name, c := range cases {
		limits[name] = c.limits
	}
	srv := limitedServer(t, limits)
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			nc := connect(t, func(opts ...nats.Option) (*nats.Conn, error) {
				return nats.Connect(srv.ClientURL(), append(opts, nats.UserInfo(name, name))...)
			})
			x, err := jskv.NewExaminer(nc, jskv.Config{Fabric: "f"})
			if err != nil {
				t.Fatal(err)
			}
			account, err := x.Account(testContext(t))
			if err != nil {
				t.Fatal(err)
			}
			foreseen := x.Room(account, 2)
			b, err := jskv.Open(testContext(t), nc, jskv.Config{Fabric: "f"})
			if c.says != "" {
				for _, err := range []error{err, foreseen} {
					if !errors.Is(err, kv.ErrLimit) || !strings.Contains(err.Error(), c.says) {
						t.Errorf("got %v, want ErrLimit with %q", err, c.says)
					}
				}
				return
			}
			if err != nil || foreseen != nil {
				t.Fatal(err, foreseen)
			}
			js, err := jetstream.New(nc)
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range []*jskv.Bucket{b.Leases, b.Locks[0]} {
				s, err := js.Stream(testContext(t), b.Stream())
				if err != nil {
					t.Fatal(err)
				}
				if c.check != nil {
					c.check(t, s.CachedInfo().Config)
				}
			}
		})
	}
}

// The servers of a cluster tell each other of themselves each ten seconds. Until then, streams are refused.
func TestOpeningWaitsForServersThatJoin(t *testing.T) {
	t.Parallel()
	srv := testserver.Bare(t, "c") // the test plays JetStream
	dial := func(opts ...nats.Option) (*nats.Conn, error) { return nats.Connect(srv.ClientURL(), opts...) }
	var asked atomic.Int64
	api := connect(t, dial)
	_, err := api.Subscribe("$JS.API.>", func(msg *nats.Msg) {
		answer := `{"error":{"code":404,"err_code":10059,"description":"stream not found"}}`
		switch {
		case msg.Subject == "$JS.API.INFO":
			answer = `{"limits":{"max_storage":-1},"api":{"level":5}}`
		case strings.HasPrefix(msg.Subject, "$JS.API.STREAM.CREATE."):
			answer = `{"error":{"code":400,"err_code":10005,"description":"no suitable peers for placement, peer offline"}}`
			if asked.Add(1) > 6 { // more than there is time for in five seconds
				answer = `{"error":{"code":400,"err_code":10027,"description":"maximum number of streams reached"}}`
			}
		}
		_ = msg.Respond([]byte(answer))
	})
	if err == nil {
		err = api.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jskv.Open(testContext(t), connect(t, dial), jskv.Config{Fabric: "f"}); !errors.Is(err, kv.ErrLimit) || !strings.Contains(err.Error(), "streams of the account") {
		t.Errorf("after %d refusals: %v", asked.Load(), err)
	}
}
