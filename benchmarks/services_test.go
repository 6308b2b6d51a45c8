package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-redsync/redsync/v4"
	redsyncredis "github.com/go-redsync/redsync/v4/redis"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	recipe "go.etcd.io/etcd/client/v3/experimental/recipes"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

// ttl is how long what is held outlives its client, in all systems.
const ttl = 30 * time.Second

// size is the number of permits of the semaphores.
const size = 3

// servers are those of each system, one or three. If synced, each writes to disk before it acknowledges.
type servers struct {
	nats, etcd, redis, zookeeper []string // addresses; none of what isn't installed
	replicas                     int      // of the floor's bucket
}

func start(t testing.TB, nodes int, synced bool) *servers {
	t.Helper()
	s := &servers{replicas: nodes, etcd: startEtcd(t, nodes, synced), zookeeper: startZooKeeper(t, nodes, synced)}
	for range nodes {
		if addr := startRedis(t, synced); addr != "" {
			s.redis = append(s.redis, addr)
		}
	}
	s.startNATS(t, nodes, synced)
	return s
}

func (s *servers) startNATS(t testing.TB, nodes int, synced bool) {
	t.Helper()
	mode := embedded.SyncAlways
	if !synced {
		mode = embedded.SyncInterval(time.Minute)
	}
	peers := addrs(t, nodes)
	for i, peer := range peers {
		opts := []embedded.Option{embedded.WithStoreDir(t.TempDir()), embedded.WithListen("127.0.0.1:0"), embedded.WithSync(mode)}
		if nodes > 1 {
			opts = append(opts, embedded.WithServerName(fmt.Sprint("n", i)), embedded.WithCluster("benchmarks", peer, peers...))
		}
		srv, err := embedded.Start(t.Context(), opts...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = srv.Shutdown(context.Background()) })
		s.nats = append(s.nats, srv.ClientURL())
	}
	nc, err := nats.Connect(s.nats[nodes-1])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := nc.JetStream()
	for deadline := time.Now().Add(time.Minute); err == nil; time.Sleep(50 * time.Millisecond) {
		if _, err := js.AccountInfo(); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("JetStream does not come up: %v", err)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	standBy(t, nc)
}

// addrs are n addresses of this machine that nobody listens on.
func addrs(t testing.TB, n int) (list []string) {
	for range n {
		list = append(list, freeAddr(t))
	}
	return list
}

func startEtcd(t testing.TB, nodes int, synced bool) (clients []string) {
	t.Helper()
	peers := addrs(t, nodes)
	var members []string
	for i, peer := range peers {
		members = append(members, fmt.Sprintf("n%d=http://%s", i, peer))
	}
	at := func(addr string) []url.URL { return []url.URL{{Scheme: "http", Host: addr}} }
	var started []*embed.Etcd
	for i, peer := range peers {
		client := freeAddr(t)
		cfg := embed.NewConfig()
		cfg.Dir, cfg.Name = t.TempDir(), fmt.Sprint("n", i)
		cfg.ListenClientUrls, cfg.AdvertiseClientUrls = at(client), at(client)
		cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = at(peer), at(peer)
		cfg.InitialCluster = strings.Join(members, ",")
		cfg.LogLevel = "panic"
		cfg.UnsafeNoFsync = !synced
		srv, err := embed.StartEtcd(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(srv.Close)
		started, clients = append(started, srv), append(clients, client)
	}
	for _, srv := range started {
		select {
		case <-srv.Server.ReadyNotify():
		case err := <-srv.Err():
			t.Fatal(err)
		case <-time.After(time.Minute):
			t.Fatal("etcd does not come up")
		}
	}
	return clients
}

// startRedis starts redis-server, and returns "" where there is none.
func startRedis(t testing.TB, synced bool) string {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Log("redis-server is not installed: its columns stay empty")
		return ""
	}
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	fsync := "everysec"
	if synced {
		fsync = "always"
	}
	cmd := exec.Command(path, "--port", port, "--bind", "127.0.0.1", "--dir", t.TempDir(), "--save", "", "--appendonly", "yes", "--appendfsync", fsync)
	run(t, cmd)
	c := redis.NewClient(&redis.Options{Addr: addr})
	defer func() { _ = c.Close() }()
	for deadline := time.Now().Add(time.Minute); c.Ping(t.Context()).Err() != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("redis-server does not come up")
		}
	}
	return addr
}

// standBy has this process serve as the coalescer of who asks for one, as `lockfabric serve` does.
func standBy(t testing.TB, nc *nats.Conn) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- fabric.StandBy(ctx, nc) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// round is one use of a primitive by one client. Its n is that of the client's earlier rounds.
type round func(ctx context.Context, n int) error

func (s *servers) manager(t testing.TB, opts ...fabric.Option) *fabric.Manager {
	t.Helper()
	m, err := fabric.Connect(t.Context(), strings.Join(s.nats, ","), append(opts, fabric.WithTTL(ttl), fabric.WithNATS(nats.ReconnectBufSize(-1)))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func (s *servers) session(t testing.TB) *concurrency.Session {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: s.etcd, DialTimeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	session, err := concurrency.NewSession(c, concurrency.WithTTL(int(ttl/time.Second)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.Close() })
	return session
}

func (s *servers) redisClient(t testing.TB) *redis.Client {
	t.Helper()
	return redisAt(t, s.redis[0])
}

func redisAt(t testing.TB, addr string) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// floor is two compare-and-set writes: what can't be avoided to take something and to give it back.
func floor(t testing.TB, s *servers, key string, _ int) round {
	t.Helper()
	nc, err := nats.Connect(strings.Join(s.nats, ","))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.CreateOrUpdateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "floor", LimitMarkerTTL: time.Minute, Replicas: s.replicas})
	if err != nil {
		t.Fatal(err)
	}
	value := make([]byte, 120)
	last := uint64(0)
	return func(ctx context.Context, _ int) (err error) {
		for range 2 {
			if last, err = kv.Update(ctx, key, value, last); err != nil {
				return err
			}
		}
		return nil
	}
}

type releaser interface {
	Release(ctx context.Context) error
}

// taking takes something and gives it back.
func taking[H releaser](take func(ctx context.Context) (H, error)) round {
	return func(ctx context.Context, _ int) error {
		h, err := take(ctx)
		if err != nil {
			return err
		}
		return h.Release(ctx)
	}
}

func ourMutex(t testing.TB, s *servers, key string, _ int) round {
	return taking(primitives.NewMutex(s.manager(t), key).Lock)
}

// mutexWith is ourMutex of managers with these options.
func mutexWith(opts ...fabric.Option) maker {
	return func(t testing.TB, s *servers, key string, _ int) round {
		return taking(primitives.NewMutex(s.manager(t, opts...), key).Lock)
	}
}

// mixed is ten uses of which one writes.
func mixed(read, write round) round {
	first := rand.N(10)
	return func(ctx context.Context, n int) error {
		if n%10 == first {
			return write(ctx, n)
		}
		return read(ctx, n)
	}
}

func ourRWMutex(t testing.TB, s *servers, key string, _ int) round {
	mu := primitives.NewRWMutex(s.manager(t), key)
	return mixed(taking(mu.RLock), taking(mu.Lock))
}

func ourSemaphore(t testing.TB, s *servers, key string, _ int) round {
	return taking(primitives.NewSemaphore(s.manager(t), key, size).Acquire)
}

func ourElection(t testing.TB, s *servers, key string, _ int) round {
	e := primitives.NewElection(s.manager(t), key)
	return taking(func(ctx context.Context) (*primitives.Leadership, error) { return e.Campaign(ctx, []byte("me")) })
}

func ourBarrier(t testing.TB, s *servers, key string, clients int) round {
	b := primitives.NewBarrier(s.manager(t), key, clients)
	return func(ctx context.Context, _ int) error { _, err := b.Wait(ctx); return err }
}

func ourDoubleBarrier(t testing.TB, s *servers, key string, clients int) round {
	m := s.manager(t)
	return func(ctx context.Context, n int) error {
		in, err := primitives.NewDoubleBarrier(m, fmt.Sprint(key, "/", n), clients).Enter(ctx)
		if err != nil {
			return err
		}
		return in.Leave(ctx)
	}
}

func ourLatch(t testing.TB, s *servers, key string, _ int) round {
	a, b := s.manager(t), s.manager(t)
	return func(ctx context.Context, n int) error {
		key := fmt.Sprint(key, "/", n)
		waited := make(chan error, 1)
		go func() { waited <- primitives.NewLatch(b, key, 1).Wait(ctx) }()
		return errors.Join(primitives.NewLatch(a, key, 1).CountDown(ctx), <-waited)
	}
}

func ourOnce(t testing.TB, s *servers, key string, _ int) round {
	m := s.manager(t)
	return func(ctx context.Context, n int) error {
		_, err := primitives.NewOnce(m, fmt.Sprint(key, "/", n)).Do(ctx, func(context.Context, uint64) ([]byte, error) { return nil, nil })
		return err
	}
}

func etcdMutex(t testing.TB, s *servers, key string, _ int) round {
	m := concurrency.NewMutex(s.session(t), "/"+key)
	return func(ctx context.Context, _ int) error {
		if err := m.Lock(ctx); err != nil {
			return err
		}
		return m.Unlock(ctx)
	}
}

func etcdRWMutex(t testing.TB, s *servers, key string, _ int) round {
	mu := recipe.NewRWMutex(s.session(t), "/"+key)
	return mixed(
		func(context.Context, int) error { return errors.Join(mu.RLock(), mu.RUnlock()) },
		func(context.Context, int) error { return errors.Join(mu.Lock(), mu.Unlock()) },
	)
}

func etcdElection(t testing.TB, s *servers, key string, _ int) round {
	e := concurrency.NewElection(s.session(t), "/"+key)
	return func(ctx context.Context, _ int) error {
		if err := e.Campaign(ctx, "me"); err != nil {
			return err
		}
		return e.Resign(ctx)
	}
}

func etcdDoubleBarrier(t testing.TB, s *servers, key string, clients int) round {
	session := s.session(t)
	return func(_ context.Context, n int) error {
		b := recipe.NewDoubleBarrier(session, fmt.Sprint("/", key, "/", n), clients)
		if err := b.Enter(); err != nil {
			return err
		}
		return b.Leave()
	}
}

func etcdBarrier(t testing.TB, s *servers, key string, _ int) round {
	a, b := s.session(t), s.session(t)
	return func(_ context.Context, n int) error {
		key := fmt.Sprint("/", key, "/", n)
		if err := recipe.NewBarrier(a.Client(), key).Hold(); err != nil {
			return err
		}
		waited := make(chan error, 1)
		go func() { waited <- recipe.NewBarrier(b.Client(), key).Wait() }()
		return errors.Join(recipe.NewBarrier(a.Client(), key).Release(), <-waited)
	}
}

func redisMutex(t testing.TB, s *servers, key string, _ int) round {
	var pools []redsyncredis.Pool
	for _, addr := range s.redis {
		pools = append(pools, goredis.NewPool(redisAt(t, addr)))
	}
	m := redsync.New(pools...).NewMutex(key, redsync.WithExpiry(ttl), redsync.WithTries(1<<20))
	return func(ctx context.Context, _ int) error {
		if err := m.LockContext(ctx); err != nil {
			return err
		}
		_, err := m.UnlockContext(ctx)
		return err
	}
}

// acquirePermit removes whose time is up, and adds one if there is room.
var acquirePermit = redis.NewScript(`
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
if redis.call('ZCARD', KEYS[1]) < tonumber(ARGV[2]) then
	return redis.call('ZADD', KEYS[1], ARGV[3], ARGV[4])
end
return 0`)

func redisSemaphore(t testing.TB, s *servers, key string, _ int) round {
	c, me := s.redisClient(t), fmt.Sprintf("%p", t)+strconv.FormatInt(time.Now().UnixNano(), 36)
	return func(ctx context.Context, _ int) error {
		for {
			now := time.Now()
			n, err := acquirePermit.Run(ctx, c, []string{key}, now.Add(-ttl).UnixMilli(), size, now.UnixMilli(), me).Int()
			if err != nil {
				return err
			}
			if n == 1 {
				return c.ZRem(ctx, key, me).Err()
			}
			time.Sleep(time.Millisecond)
		}
	}
}
