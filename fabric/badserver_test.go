package fabric_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/testserver"
	"github.com/lockfabric/lockfabric/kv"
)

func TestServerWithoutJetStream(t *testing.T) {
	t.Parallel()
	srv := testserver.Start(t, &natsserver.Options{})
	_, err := fabric.Connect(waitContext(t), srv.ClientURL())
	if !errors.Is(err, kv.ErrNoJetStream) {
		t.Errorf("Connect: %v", err)
	}
}

func TestServerTooOld(t *testing.T) {
	t.Parallel()
	srv := testserver.Start(t, &natsserver.Options{})
	nc, err := nats.Connect(srv.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	// As a server of 2.11 or older answers, which knows no API level.
	_, err = nc.Subscribe("$JS.API.>", func(msg *nats.Msg) {
		answer := `{"type":"io.nats.jetstream.api.v1.stream_info_response","error":{"code":404,"err_code":10059,"description":"stream not found"}}`
		if msg.Subject == "$JS.API.INFO" {
			answer = `{"type":"io.nats.jetstream.api.v1.account_info_response","memory":0,"storage":0,"streams":0,"consumers":0,"limits":{"max_memory":-1,"max_storage":-1,"max_streams":-1,"max_consumers":-1},"api":{"total":1,"errors":0}}`
		}
		_ = msg.Respond([]byte(answer))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := fabric.Connect(waitContext(t), srv.ClientURL()); !errors.Is(err, kv.ErrServerTooOld) {
		t.Errorf("Connect: %v", err)
	}
}

// A URL is quoted without what stands before the host, readable or not.
func TestSecretsInURLs(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"nats://user:hush@127.0.0.1:1", "hush@127.0.0.1:1", "nats://hush@127.0.0.1:1,nats://127.0.0.1:1", "nats://user:%hush@127.0.0.1:1",
		"user:a/hush@127.0.0.1:1", "nats://user:hu@hush@127.0.0.1:1",
	} {
		_, err := fabric.Connect(waitContext(t), url)
		if !errors.Is(err, fabric.ErrUnavailable) || strings.Contains(err.Error(), "hush") || !strings.Contains(err.Error(), "@127.0.0.1:1") {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestServerOutOfReach(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	addr := "nats://" + silent.Addr().String()
	for name, url := range map[string]string{
		"nobody there": "nats://127.0.0.1:1", "nobody answers": addr,
		"nobody answers anywhere": strings.Join([]string{addr, addr + "/2", addr + "/3", addr + "/4", addr + "/5", addr + "/6", addr + "/7", addr + "/8"}, ","),
	} {
		const limit = time.Second
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		start := time.Now()
		_, err := fabric.Connect(ctx, url)
		if !errors.Is(err, fabric.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(start); took > 10*limit {
			t.Errorf("%s: %v, with a deadline of %v", name, took, limit)
		}
		cancel()
		if _, err := fabric.Connect(ctx, url); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s, ended before: %v", name, err)
		}
	}
	onSite(t, singleSite, func(t *testing.T, s *site) {
		nc := s.conn(t)
		nc.Close()
		if _, err := fabric.New(waitContext(t), nc); !errors.Is(err, fabric.ErrConnectionClosed) {
			t.Errorf("New on a closed connection: %v", err)
		}
		m, w := s.wired(t)
		key := s.key(t)
		l := acquire(t, m, key)
		w.fault(-1, anything, notSent)
		_, acquireErr := m.Acquire(waitContext(t), key+"2", fabric.WithFailFast())
		_, tryErr := m.TryAcquire(waitContext(t), key+"3", fabric.WithFailFast())
		for op, err := range map[string]error{"Acquire": acquireErr, "TryAcquire": tryErr} {
			if !errors.Is(err, fabric.ErrUnavailable) || !errors.Is(err, fabric.ErrNotAcquired) {
				t.Errorf("%s with fail-fast: %v", op, err)
			}
		}
		if _, err := m.Acquire(waitContext(t), key+"4", fabric.WithWaitLimit(200*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Acquire: %v", err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		if !l.IsValid(ctx) {
			t.Error("a hold ends before its time because nobody answers")
		}
	})
}

// needed is all that a user who makes no buckets must be allowed. What is
// helpful can be left out, at the price of time: flow control of watchers, and
// news of a deleted bucket.
func needed(name string) (publish, helpful, subscribe []string) {
	all, err := fabric.Permissions(name, fabric.RoleClient, "_INBOX", 1)
	if err != nil {
		panic(err)
	}
	for _, p := range all {
		switch {
		case p.Subscribe:
			subscribe = append(subscribe, p.Subject)
		case p.Helpful:
			helpful = append(helpful, p.Subject)
		default:
			publish = append(publish, p.Subject)
		}
	}
	return publish, helpful, subscribe
}

// Every subject that a user with few rights needs is needed, and nothing else.
func TestCredentialsThatMayNotCreateStreams(t *testing.T) {
	t.Parallel()
	publish, helpful, subscribe := needed("lockfabric")
	user := func(name string, publish []string) *natsserver.User {
		return &natsserver.User{Username: name, Password: "x", Permissions: &natsserver.Permissions{
			Publish:   &natsserver.SubjectPermission{Allow: append(slices.Clone(publish), helpful...)},
			Subscribe: &natsserver.SubjectPermission{Allow: subscribe},
		}}
	}
	users := []*natsserver.User{{Username: "admin", Password: "x"}, user("worker", publish), user("asks", append(slices.Clone(publish), "$JS.API.INFO"))}
	for i := range publish {
		users = append(users, user("without-"+string(rune('a'+i)), slices.Delete(slices.Clone(publish), i, i+1)))
	}
	srv := testserver.Start(t, &natsserver.Options{JetStream: true, StoreDir: t.TempDir(), Users: users})
	connect := func(name string, opts ...nats.Option) *nats.Conn {
		opts = append(opts, nats.UserInfo(name, "x"), nats.ReconnectBufSize(-1))
		nc, err := nats.Connect(srv.ClientURL(), opts...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}
	ignore := nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})
	if _, err := fabric.New(waitContext(t), connect("asks", ignore)); !errors.Is(err, kv.ErrNoBucket) {
		t.Errorf("before the buckets exist: %v", err)
	}
	admin := newManager(t, connect("admin"))

	// work does all that a manager does; it goes wrong in different places.
	work := func(ctx context.Context, t *testing.T, name string, violation func(error)) {
		nc := connect(name, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { violation(err) }))
		m, err := fabric.New(ctx, nc)
		if err != nil {
			return
		}
		defer func() { _ = m.Close() }()
		key := "k-" + name
		l, err := m.Acquire(ctx, key)
		if err != nil {
			return
		}
		held, err := admin.Acquire(ctx, key+"2")
		if err != nil {
			return
		}
		wait := acquireAsync(ctx, m, key+"2")
		_, _ = m.TryAcquire(ctx, key)
		_, _ = m.List(ctx, "")
		_ = m.Do(ctx, key+"3", func(context.Context, *fabric.Lock) error { return nil })
		_ = l.Release(ctx)
		waiting := time.NewTicker(5 * time.Millisecond)
		defer waiting.Stop()
		for info := (fabric.Info{}); ctx.Err() == nil && len(info.Waiters) == 0; <-waiting.C {
			info, _ = admin.Inspect(ctx, key+"2")
		}
		_ = held.Release(ctx)
		<-wait
	}
	t.Run("worker", func(t *testing.T) {
		work(waitContext(t), t, "worker", func(err error) { t.Errorf("not allowed: %v", err) })
		if info := inspect(t, admin, "k-worker2"); len(info.Holders)+len(info.Waiters) != 0 || info.Revision == 0 {
			t.Errorf("%+v", info)
		}
	})
	for i, subject := range publish {
		t.Run("not without "+subject, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(waitContext(t))
			defer cancel()
			missed := make(chan error, 100)
			work(ctx, t, "without-"+string(rune('a'+i)), func(err error) {
				missed <- err
				cancel()
			})
			if ctx.Err() == nil {
				t.Fatal("it is not needed")
			}
			if err := receive(t, missed); !errors.Is(err, nats.ErrPermissionViolation) {
				t.Error(err)
			}
		})
	}
}
