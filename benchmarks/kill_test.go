package benchmarks

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/go-redsync/redsync/v4"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/go-zookeeper/zk"
	"github.com/nats-io/nats.go"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/grpc"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

// shortTTL is how long what is held outlives a client that is killed: the shortest that ZooKeeper allows.
const shortTTL = 4 * time.Second

// line is the network of a client that can be killed: then all its connections are closed, and no other is made.
type line struct {
	mu     sync.Mutex
	conns  []net.Conn
	killed bool
}

func (l *line) dial(ctx context.Context, addr string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil && l.killed {
		_ = c.Close()
		return nil, errors.New("killed")
	}
	l.conns = append(l.conns, c)
	return c, err
}

// Dial is dial for the client of NATS.
func (l *line) Dial(_, addr string) (net.Conn, error) { return l.dial(context.Background(), addr) }

func (l *line) kill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.killed = true
	for _, c := range l.conns {
		if c != nil {
			_ = c.Close()
		}
	}
}

// afterKill is a round in which one client takes a lock and another one waits for it; a moment later the first one is
// killed. hold takes the lock with a new client on a line, next waits for it, and gives it back.
func afterKill(hold func(l *line) (end func(), err error), next func(ctx context.Context) error) round {
	return func(ctx context.Context, _ int) error {
		l := &line{}
		end, err := hold(l)
		if err != nil {
			return err
		}
		defer func() { go end() }() // which takes its time without a connection
		waited := make(chan error, 1)
		go func() { waited <- next(ctx) }()
		time.Sleep(100 * time.Millisecond)
		l.kill()
		return <-waited
	}
}

func ourKill(t testing.TB, s *servers, key string, _ int) round {
	t.Helper()
	next := taking(primitives.NewMutex(s.manager(t), key).Lock)
	return afterKill(func(l *line) (func(), error) {
		m, err := fabric.Connect(t.Context(), s.nats[0], fabric.WithTTL(shortTTL), fabric.WithNATS(nats.SetCustomDialer(l)))
		if err != nil {
			return nil, err
		}
		_, err = primitives.NewMutex(m, key).Lock(t.Context())
		return func() { _ = m.Close() }, err
	}, func(ctx context.Context) error { return next(ctx, 0) })
}

func etcdKill(t testing.TB, s *servers, key string, _ int) round {
	t.Helper()
	next := etcdMutex(t, s, key, 1)
	return afterKill(func(l *line) (func(), error) {
		c, err := clientv3.New(clientv3.Config{Endpoints: s.etcd, DialTimeout: 10 * time.Second, DialOptions: []grpc.DialOption{grpc.WithContextDialer(l.dial)}})
		if err != nil {
			return nil, err
		}
		session, err := concurrency.NewSession(c, concurrency.WithTTL(int(shortTTL/time.Second)))
		if err != nil {
			return nil, err
		}
		return func() { _ = c.Close() }, concurrency.NewMutex(session, "/"+key).Lock(t.Context())
	}, func(ctx context.Context) error { return next(ctx, 0) })
}

func redisKill(t testing.TB, s *servers, key string, _ int) round {
	t.Helper()
	next := redisMutex(t, s, key, 1)
	holder := redsync.New(goredis.NewPool(s.redisClient(t))) // nothing renews what it holds
	return afterKill(func(*line) (func(), error) {
		return func() {}, holder.NewMutex(key, redsync.WithExpiry(shortTTL)).LockContext(t.Context())
	}, func(ctx context.Context) error { return next(ctx, 0) })
}

func zookeeperKill(t testing.TB, s *servers, key string, _ int) round {
	t.Helper()
	next := zookeeperMutex(t, s, key, 1)
	return afterKill(func(l *line) (func(), error) {
		c, _, err := zk.Connect(s.zookeeper, shortTTL, zk.WithLogInfo(false), zk.WithLogger(silent{}), zk.WithDialer(func(_, addr string, _ time.Duration) (net.Conn, error) {
			return l.dial(t.Context(), addr)
		}))
		if err != nil {
			return nil, err
		}
		return c.Close, zk.NewLock(c, "/"+key, zk.WorldACL(zk.PermAll)).Lock()
	}, func(ctx context.Context) error { return next(ctx, 0) })
}
