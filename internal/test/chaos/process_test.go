package chaos_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
)

// holderTTL is that of the holder processes, holderMargin its margin.
const (
	holderTTL    = 2 * time.Second
	holderMargin = holderTTL / 20
)

// replacedIn is how long it takes at most until the waiter has the lock of a holder that was killed or stopped. atOnce bounds what
// waits for nobody's TTL, where that is the default one.
const (
	replacedIn = holderTTL + holderMargin + 2*time.Second
	atOnce     = fabric.DefaultTTL / 10
)

// attempts is how often a bound on time is tried. The best attempt has to keep the
// bound, since on a busy machine any single one can wait for the processor. Every
// attempt checks safety.
const attempts = 3

// within runs fn until it takes at most limit, and fails when it never does.
func within(t *testing.T, limit time.Duration, fn func() time.Duration) {
	t.Helper()
	var took []time.Duration
	for range attempts {
		d := fn()
		took = append(took, d)
		if d <= limit {
			break
		}
	}
	t.Logf("took %v, allowed %v", took, limit)
	if slices.Min(took) > limit {
		t.Errorf("took %v, allowed %v", took, limit)
	}
}

func startServer(t *testing.T) *embedded.Server {
	t.Helper()
	s, err := embedded.Start(testContext(t), embedded.WithTempStore(), embedded.WithListen("127.0.0.1:0"),
		embedded.WithSync(embedded.SyncInterval(time.Minute)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	return s
}

// queued waits until n acquires wait for the lock.
func queued(t *testing.T, m *fabric.Manager, lock string, n int) {
	t.Helper()
	ctx := testContext(t)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		info, err := m.Inspect(ctx, lock)
		if err != nil {
			t.Fatal(err)
		}
		if len(info.Waiters) == n {
			return
		}
		<-tick.C
	}
}

// grant is a result of acquireLater.
type grant struct {
	lock *fabric.Lock
	at   time.Time
}

// acquireLater queues for the lock, and returns once its entry is in the queue.
func acquireLater(t *testing.T, m *fabric.Manager, lock string) <-chan grant {
	t.Helper()
	ctx := testContext(t)
	granted := make(chan grant, 1)
	go func() {
		l, err := m.Acquire(ctx, lock)
		if err != nil {
			t.Errorf("waiter: %v", err)
		}
		granted <- grant{l, time.Now()}
	}()
	queued(t, m, lock, 1)
	return granted
}

func awaitGrant(t *testing.T, granted <-chan grant) grant {
	t.Helper()
	g := <-granted
	if g.lock == nil {
		t.FailNow()
	}
	return g
}

func release(t *testing.T, l *fabric.Lock) {
	t.Helper()
	if err := l.Release(context.Background()); err != nil {
		t.Error(err)
	}
}

// one connects to a server as this process.
func one(t *testing.T, s *embedded.Server) (*fabric.Manager, *nats.Conn) {
	t.Helper()
	nc, err := nats.Connect(s.ClientURL(), connOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	m, err := fabric.New(testContext(t), nc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m, nc
}

// A killed holder can't tell the others that it is gone.
func TestKilledHolderIsReplaced(t *testing.T) {
	s := startServer(t)
	m, _ := one(t, s)
	within(t, replacedIn, func() time.Duration {
		p := startHolder(t, s.ClientURL(), "killed", holderTTL)
		granted := acquireLater(t, m, "killed")
		killed := time.Now()
		p.kill()
		g := awaitGrant(t, granted)
		release(t, g.lock)
		return g.at.Sub(killed)
	})
}

// A manager that closes tells the others.
func TestClosedHolderIsReplacedAtOnce(t *testing.T) {
	s := startServer(t)
	m, _ := one(t, s)
	within(t, atOnce, func() time.Duration {
		holder, _ := one(t, s)
		if _, err := holder.Acquire(testContext(t), "closed"); err != nil {
			t.Fatal(err)
		}
		granted := acquireLater(t, m, "closed")
		closed := time.Now()
		if err := holder.Close(); err != nil {
			t.Error(err)
		}
		g := awaitGrant(t, granted)
		release(t, g.lock)
		return g.at.Sub(closed)
	})
}

// The same when the holder is a process that ends as a program should.
func TestProcessThatClosesIsReplacedAtOnce(t *testing.T) {
	s := startServer(t)
	m, _ := one(t, s)
	within(t, atOnce, func() time.Duration {
		p := startHolder(t, s.ClientURL(), "ended", fabric.DefaultTTL)
		granted := acquireLater(t, m, "ended")
		told := time.Now()
		p.say("close")
		g := awaitGrant(t, granted)
		release(t, g.lock)
		return g.at.Sub(told)
	})
}
