package peerbench_test

import (
	"context"
	"net/url"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
)

// ttl is how long a lock outlives its client, in both services.
const ttl = 30 * time.Second

// client is one process's access to a lock: a connection and a lease of its own.
// Its methods are called by one goroutine at a time.
type client interface {
	lock(ctx context.Context) error
	unlock(ctx context.Context) error
}

// service is a lock service with one server in this process, reached over TCP.
type service interface {
	client(b *testing.B, key string) client
}

// start returns a service. If synced, it writes to disk before it acknowledges.
type start func(b *testing.B, synced bool) service

type lockfabric struct{ url string }

func startLockfabric(b *testing.B, synced bool) service {
	b.Helper()
	mode := embedded.SyncAlways
	if !synced {
		mode = embedded.SyncInterval(time.Minute)
	}
	srv, err := embedded.Start(b.Context(), embedded.WithStoreDir(b.TempDir()), embedded.WithListen("127.0.0.1:0"), embedded.WithSync(mode))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = srv.Shutdown(context.Background()) })
	return lockfabric{srv.ClientURL()}
}

func (s lockfabric) client(b *testing.B, key string) client {
	b.Helper()
	m, err := fabric.Connect(b.Context(), s.url, fabric.WithNATS(nats.ReconnectBufSize(-1)))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = m.Close() })
	return &lockfabricClient{m: m, key: key}
}

type lockfabricClient struct {
	m    *fabric.Manager
	key  string
	held *fabric.Lock
}

func (c *lockfabricClient) lock(ctx context.Context) (err error) {
	c.held, err = c.m.Acquire(ctx, c.key, fabric.WithTTL(ttl))
	return err
}

func (c *lockfabricClient) unlock(ctx context.Context) error { return c.held.Release(ctx) }

type etcd struct{ endpoint string }

func startEtcd(b *testing.B, synced bool) service {
	b.Helper()
	anyPort := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	cfg := embed.NewConfig()
	cfg.Dir = b.TempDir()
	cfg.ListenClientUrls, cfg.ListenPeerUrls = anyPort, anyPort
	cfg.LogLevel = "panic"
	cfg.UnsafeNoFsync = !synced
	srv, err := embed.StartEtcd(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(srv.Close)
	select {
	case <-srv.Server.ReadyNotify():
	case err := <-srv.Err():
		b.Fatal(err)
	case <-b.Context().Done():
		b.Fatal(b.Context().Err())
	}
	return etcd{srv.Clients[0].Addr().String()}
}

func (s etcd) client(b *testing.B, key string) client {
	b.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.endpoint}, DialTimeout: 10 * time.Second})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	session, err := concurrency.NewSession(c, concurrency.WithTTL(int(ttl/time.Second)))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = session.Close() })
	return &etcdClient{concurrency.NewMutex(session, "/lock/"+key)}
}

type etcdClient struct{ m *concurrency.Mutex }

func (c *etcdClient) lock(ctx context.Context) error   { return c.m.Lock(ctx) }
func (c *etcdClient) unlock(ctx context.Context) error { return c.m.Unlock(ctx) }
