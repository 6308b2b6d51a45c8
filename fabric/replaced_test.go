package fabric_test

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
	"github.com/lockfabric/lockfabric/internal/test/testserver"
	"github.com/lockfabric/lockfabric/kv"
)

// unaware returns a manager that hears of no bucket's deletion or change. Else it is
// like any other.
func (s *site) unaware(t *testing.T, opts ...fabric.Option) *fabric.Manager {
	t.Helper()
	m, p := s.behindProxy(t, opts...)
	p.DropReplies(faultproxy.Subject("$JS.EVENT.ADVISORY.>"))
	return m
}

// cutOff returns a manager, and what cuts it off: it neither hears nor says anything
// from then on until the end of the test.
func (s *site) cutOff(t *testing.T, opts ...fabric.Option) (m *fabric.Manager, cut func()) {
	t.Helper()
	m, p := s.behindProxy(t, opts...)
	t.Cleanup(func() { p.Stall(false) })
	return m, func() { p.Stall(true) }
}

func (s *site) behindProxy(t *testing.T, opts ...fabric.Option) (*fabric.Manager, *faultproxy.Proxy) {
	t.Helper()
	var server interface{ ClientURL() string } = s.server
	if s.cluster != nil {
		server = s.cluster.Node(0)
	}
	p := faultproxy.New(t, server.ClientURL())
	nc, err := nats.Connect(p.URL(), nats.ReconnectBufSize(-1), nats.Timeout(patience))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return newManager(t, nc, opts...), p
}

// A write that expects no record fits a bucket that was made since. So a manager that
// does not know of it yet would take a lock whose holder is cut off and still valid.
func TestReplaced_NoGrantInABucketThatWasNotOpened(t *testing.T) {
	t.Parallel()
	onBothSites(t, func(t *testing.T, s *site) {
		t.Parallel()
		own := s.fabric(t)
		opts := []fabric.Option{fabric.WithFabric(own), fabric.WithTTL(2 * time.Second)}
		cutOff, cut := s.cutOff(t, opts...)
		unaware := s.unaware(t, opts...)
		held := acquire(t, cutOff, "k")
		release(t, acquire(t, unaware, "other"))
		cut()
		if err := s.jetStream(t).DeleteStream(waitContext(t), "KV_"+own+"-locks"); err != nil {
			t.Fatal(err)
		}
		next := s.manager(t, opts...) // makes the bucket again, and waits
		l := acquire(t, unaware, "k")
		if err := held.Err(); !errors.Is(err, fabric.ErrLost) {
			t.Errorf("granted in the new bucket while the holder of before says %v", err)
		}
		if l.Token() <= held.Token() {
			t.Errorf("token %d after %d", l.Token(), held.Token())
		}
		release(t, l)
		release(t, acquire(t, next, "k"))
	})
}

// setBack puts a bucket in the place of the locks bucket that is like it, identity
// included, but begins at revision 1 and has the given keys' markers, as one has that
// was restored from a backup or made by hand.
func setBack(t *testing.T, s *site, own string, markers ...string) {
	t.Helper()
	js, ctx := s.jetStream(t), waitContext(t)
	stream, err := js.Stream(ctx, "KV_"+own+"-locks")
	if err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	cfg.FirstSeq = 1
	testserver.Replace(t, js, cfg)
	b := s.bucket(t, own+"-locks")
	for _, key := range markers {
		enc, err := kv.EncodeName(key)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Purge(ctx, enc); err != nil {
			t.Fatal(err)
		}
	}
}

// H15: tokens are tickets, and a bucket that takes the place of another begins above all of them.
func TestH15_TokensRiseInABucketThatWasSetBack(t *testing.T) {
	t.Parallel()
	onBothSites(t, func(t *testing.T, s *site) {
		t.Parallel()
		for name, c := range map[string]struct {
			unaware, marked bool
		}{
			"heard of":           {},
			"unheard of":         {unaware: true},
			"unheard of, marked": {unaware: true, marked: true}, // reads find less than was seen
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				usedAfterSetBack(t, s, c.unaware, c.marked)
			})
		}
	})
}

func usedAfterSetBack(t *testing.T, s *site, unaware, marked bool) {
	own := s.fabric(t)
	opts := []fabric.Option{fabric.WithFabric(own), fabric.WithTTL(time.Second)}
	m := s.manager(t, opts...)
	if unaware {
		m = s.unaware(t, opts...)
	}
	cutOff, cut := s.cutOff(t, opts...)
	held := acquire(t, cutOff, "held")
	used := acquire(t, m, "k")
	release(t, used)
	cut()
	var markers []string
	if marked {
		markers = []string{"k", "held"}
	}
	setBack(t, s, own, markers...)

	l := acquire(t, m, "k")
	if l.Token() <= max(used.Token(), held.Token()) {
		t.Errorf("token %d, %d and %d before", l.Token(), used.Token(), held.Token())
	}
	if err := held.Err(); !errors.Is(err, fabric.ErrLost) {
		t.Errorf("granted while a holder of before says %v", err)
	}
	release(t, l)
	if again := acquire(t, s.manager(t, opts...), "held"); again.Token() <= l.Token() {
		t.Errorf("token %d after %d", again.Token(), l.Token())
	}
}

// Who did not see what was before learns of it from the fabric's note.
func TestSetBack_NewcomersKnow(t *testing.T) {
	t.Parallel()
	onBothSites(t, func(t *testing.T, s *site) {
		t.Parallel()
		own := s.fabric(t)
		opts := []fabric.Option{fabric.WithFabric(own), fabric.WithTTL(time.Second)}
		m := s.manager(t, opts...)
		quiet := acquire(t, m, "k")
		setBack(t, s, own)
		l := acquire(t, s.manager(t, opts...), "k")
		if l.Token() <= quiet.Token() {
			t.Errorf("token %d after %d", l.Token(), quiet.Token())
		}
		if err := quiet.Err(); !errors.Is(err, fabric.ErrLost) {
			t.Errorf("granted while the holder of before says %v", err)
		}
		release(t, l)
	})
}

// Many writes by others, or a sequence that was moved up, look like another bucket
// and are none.
func TestReplaced_AJumpInTheSameBucketIsOnlyALook(t *testing.T) {
	t.Parallel()
	onBothSites(t, func(t *testing.T, s *site) {
		t.Parallel()
		own := s.fabric(t)
		m := s.manager(t, fabric.WithFabric(own))
		first := acquire(t, m, "k")
		release(t, first)
		ctx := waitContext(t)
		stream, err := s.jetStream(t).Stream(ctx, "KV_"+own+"-locks")
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Purge(ctx, jetstream.WithPurgeSequence(record.RevisionOf(first.Token())+10*jskv.MaxStep)); err != nil {
			t.Fatal(err)
		}
		var l *fabric.Lock
		inAHurry(t, m, func() (err error) { l, err = m.Acquire(ctx, "k2", fabric.WithFailFast()); return err })
		if l.Token() < record.RevisionOf(first.Token())+10*jskv.MaxStep {
			t.Errorf("token %d after %d and the purge", l.Token(), first.Token())
		}
		release(t, l)
		inAHurry(t, m, func() error { return second(m.Acquire(ctx, "k", fabric.WithFailFast())) })
	})
}
