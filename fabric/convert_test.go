package fabric_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

var modes = []fabric.Mode{"IS", "IX", "S", "SIX", "U", "X"}

// beside says which modes may be held beside each, as the documents promise it.
var beside = map[fabric.Mode]string{"IS": "IS IX S SIX U", "IX": "IS IX", "S": "IS S U", "SIX": "IS", "U": "IS S", "X": ""}

func compatible(a, b fabric.Mode) bool { return slices.Contains(strings.Fields(beside[a]), string(b)) }

// covers: whoever holds a keeps out everybody whom b keeps out.
func covers(a, b fabric.Mode) bool {
	return !slices.ContainsFunc(modes, func(m fabric.Mode) bool { return compatible(a, m) && !compatible(b, m) })
}

func TestModesAndConversions(t *testing.T) {
	runBehaviours(t, []behaviour{
		{"every pair of modes", everyPair},
		{"every conversion, alone and beside every mode", everyConversion},
		{"an upgrade from U waits for readers, and nobody passes it", upgradeWaits},
		{"two readers who both want to write", upgradesDeadlock},
		{"a downgrade keeps the hold and lets readers in", downgradeLetsIn},
		{"a contended downgrade keeps to the queue", contendedDowngrade},
		{"a cancelled upgrade keeps the old mode", upgradeCancelled},
		{"one conversion at a time", oneConversion},
		{"a conversion ends with its hold", conversionEndsWithHold},
		{"a dead reader in the way is replaced", upgradePastTheDead},
		{"a lease lost during a conversion", leaseLostConverting},
		{"a connection closed during a conversion", connectionClosedConverting},
		{"what is no mode", convertToNonsense},
	})
}

func acquireMode(t testing.TB, m *fabric.Manager, key string, mode fabric.Mode) *fabric.Lock {
	t.Helper()
	return acquire(t, m, key, fabric.WithMode(mode))
}

func convert(t testing.TB, l *fabric.Lock, mode fabric.Mode) {
	t.Helper()
	if err := l.Convert(waitContext(t), mode); err != nil {
		t.Fatalf("convert to %s: %v", mode, err)
	}
}

// convertAsync converts in the background and returns when the conversion waits.
func convertAsync(t testing.TB, ctx context.Context, m *fabric.Manager, l *fabric.Lock, mode fabric.Mode) <-chan error {
	t.Helper()
	out := make(chan error, 1)
	go func() { out <- l.Convert(ctx, mode) }()
	eventually(t, "the conversion waits", func() bool { return partyOf(t, m, l).Converting == mode })
	return out
}

// converted waits for a conversion in the background.
func converted(t testing.TB, c <-chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(patience):
		t.Fatal("the conversion never ends")
		return nil
	}
}

// partyOf is the hold as inspection shows it.
func partyOf(t testing.TB, m *fabric.Manager, l *fabric.Lock) fabric.Party {
	t.Helper()
	for _, p := range inspect(t, m, l.Key()).Holders {
		if p.ID == l.ID() {
			return p
		}
	}
	return fabric.Party{}
}

func expectMode(t testing.TB, m *fabric.Manager, l *fabric.Lock, mode fabric.Mode) {
	t.Helper()
	if p := partyOf(t, m, l); p.Mode != mode || p.Converting != "" || l.Mode() != mode || l.Err() != nil {
		t.Errorf("the handle says %s and %v, the record %+v, want %s", l.Mode(), l.Err(), p, mode)
	}
}

// takenBack waits until a conversion that was given up is gone from the record: after half a second its caller waits no longer.
func takenBack(t testing.TB, m *fabric.Manager, l *fabric.Lock) {
	t.Helper()
	eventually(t, "the conversion is taken back", func() bool { return partyOf(t, m, l).Converting == "" })
}

func expectConvertError(t testing.TB, err error, to, held fabric.Mode, cause error) {
	t.Helper()
	var failed *fabric.ConvertError
	if !errors.As(err, &failed) || !errors.Is(err, fabric.ErrNotConverted) || !errors.Is(err, cause) || failed.To != to || failed.Held != held {
		t.Errorf("%+v, want %v converting to %s with %q held", err, cause, to, held)
	}
}

func everyPair(t *testing.T, s *site) {
	one, two := s.manager(t), s.manager(t)
	for _, a := range modes {
		for _, b := range modes {
			key := s.key(t)
			l := acquireMode(t, one, key, a)
			other, err := two.TryAcquire(waitContext(t), key, fabric.WithMode(b))
			var held *fabric.HeldError
			switch {
			case compatible(a, b) && err != nil:
				t.Errorf("%s beside %s: %v", b, a, err)
			case compatible(a, b):
				expectMode(t, one, other, b)
				release(t, other)
			case !errors.As(err, &held) || held.Mode != a:
				t.Errorf("%s beside %s: %v", b, a, err)
			}
			expectMode(t, two, l, a)
			release(t, l)
		}
	}
}

func everyConversion(t *testing.T, s *site) {
	one, two := s.manager(t), s.manager(t)
	for _, from := range modes {
		for _, to := range modes {
			for _, beside := range append([]fabric.Mode{""}, modes...) {
				if beside != "" && !compatible(from, beside) {
					continue
				}
				key := s.key(t)
				l := acquireMode(t, one, key, from)
				before := l.Token()
				if beside == "" || compatible(beside, to) {
					if beside != "" {
						before = max(before, acquireMode(t, two, key, beside).Token())
					}
					was := l.Token()
					convert(t, l, to)
					expectMode(t, two, l, to)
					if covers(from, to) && l.Token() != was || !covers(from, to) && l.Token() <= before || partyOf(t, two, l).Token != l.Token() {
						t.Errorf("%s to %s beside %q: token %d after %d, and %d beside", from, to, beside, l.Token(), was, before)
					}
					continue
				}
				other := acquireMode(t, two, key, beside)
				ctx, cancel := context.WithCancel(waitContext(t))
				wait := convertAsync(t, ctx, two, l, to)
				if !covers(from, l.Mode()) || !covers(to, l.Mode()) || l.Token() != before {
					t.Errorf("%s to %s: the handle has %s with token %d while it waits", from, to, l.Mode(), l.Token())
				}
				cancel()
				expectConvertError(t, converted(t, wait), to, l.Mode(), context.Canceled)
				takenBack(t, two, l)
				expectMode(t, two, l, l.Mode())
				if covers(to, from) && l.Mode() != from {
					t.Errorf("%s to %s: cancelled, and %s is held", from, to, l.Mode())
				}
				release(t, other)
				expectMode(t, two, l, l.Mode())
			}
		}
	}
}

func upgradeWaits(t *testing.T, s *site) {
	key, m, other := s.key(t), s.manager(t), s.manager(t)
	l := acquireMode(t, m, key, fabric.Update)
	first := l.Token()
	readers := []*fabric.Lock{acquireMode(t, m, key, fabric.Shared), acquireMode(t, other, key, fabric.Shared)}
	wait := convertAsync(t, waitContext(t), other, l, fabric.Exclusive)
	if _, err := other.TryAcquire(waitContext(t), key, shared); !errors.Is(err, fabric.ErrHeld) {
		t.Errorf("a reader passed the waiting upgrade: %v", err)
	}
	late := queue(t, waitContext(t), other, key, shared)
	for _, r := range readers {
		select {
		case err := <-wait:
			t.Fatalf("upgraded beside a reader: %v", err)
		case g := <-late:
			t.Fatalf("a reader passed the waiting upgrade: %+v", g)
		default:
		}
		if l.Mode() != fabric.Update || l.Token() != first {
			t.Errorf("stronger before it was granted: %s, token %d", l.Mode(), l.Token())
		}
		release(t, r)
	}
	if err := converted(t, wait); err != nil {
		t.Fatal(err)
	}
	expectMode(t, other, l, fabric.Exclusive)
	if l.Token() <= max(first, readers[0].Token(), readers[1].Token()) {
		t.Errorf("the writer's token %d is not above the readers'", l.Token())
	}
	expectHolder(t, other, key, l)
	release(t, l)
	release(t, granted(t, late))
}

func upgradesDeadlock(t *testing.T, s *site) {
	key, m, other := s.key(t), s.manager(t), s.manager(t)
	a, b := acquireMode(t, m, key, fabric.Shared), acquireMode(t, other, key, fabric.Shared)
	wait := convertAsync(t, waitContext(t), other, a, fabric.Exclusive)
	err := b.Convert(waitContext(t), fabric.Exclusive)
	expectConvertError(t, err, fabric.Exclusive, fabric.Shared, fabric.ErrConvertDeadlock)
	if !strings.Contains(err.Error(), a.ID()) {
		t.Errorf("does not say who: %v", err)
	}
	expectMode(t, m, b, fabric.Shared)
	release(t, b)
	if err := converted(t, wait); err != nil {
		t.Fatal(err)
	}
	expectMode(t, other, a, fabric.Exclusive)
	release(t, a)
	expectFree(t, m, key)
}

func downgradeLetsIn(t *testing.T, s *site) {
	key, m, other := s.key(t), s.manager(t), s.manager(t)
	l := acquire(t, m, key)
	token := l.Token()
	wait := queue(t, waitContext(t), other, key, shared)
	convert(t, l, fabric.Shared)
	r := granted(t, wait)
	expectMode(t, other, l, fabric.Shared)
	if l.Token() != token || r.Token() <= token {
		t.Errorf("token %d, now %d, the reader's is %d", token, l.Token(), r.Token())
	}
	var g fabric.Guard
	for _, st := range []*fabric.Lock{l, r, l, r} {
		if err := g.Admit(st.Mode(), st.Token()); err != nil {
			t.Error(err)
		}
	}
	release(t, l)
	expectHolder(t, m, key, r)
	release(t, r)
}

func contendedDowngrade(t *testing.T, s *site) {
	key, m, other := s.key(t), s.manager(t), s.manager(t)
	l := acquire(t, m, key)
	reader := queue(t, waitContext(t), other, key, shared)
	writer := queue(t, waitContext(t), s.manager(t), key)
	late := queue(t, waitContext(t), m, key, shared)
	convert(t, l, fabric.Shared)
	r := granted(t, reader)
	waitQueue(t, m, key, 2) // the writer, and the reader behind it
	// Up again, past the writer in the queue, when the reader has left.
	up := convertAsync(t, waitContext(t), other, l, fabric.Exclusive)
	release(t, r)
	if err := converted(t, up); err != nil {
		t.Fatal(err)
	}
	expectHolder(t, other, key, l)
	release(t, l)
	w := granted(t, writer)
	convert(t, w, fabric.IntentShared)
	release(t, granted(t, late))
	release(t, w)
	expectFree(t, m, key)
}

func upgradeCancelled(t *testing.T, s *site) {
	key, m, other := s.key(t), s.manager(t), s.manager(t)
	l, r := acquireMode(t, m, key, fabric.Update), acquireMode(t, other, key, fabric.Shared)
	token := l.Token()
	ctx, cancel := context.WithCancel(waitContext(t))
	up := convertAsync(t, ctx, other, l, fabric.Exclusive)
	late := queue(t, waitContext(t), other, key, shared)
	cancel()
	expectConvertError(t, converted(t, up), fabric.Exclusive, fabric.Update, context.Canceled)
	takenBack(t, other, l)
	expectMode(t, other, l, fabric.Update)
	release(t, granted(t, late)) // what the upgrade kept out is let in
	expectConvertError(t, l.Convert(ctx, fabric.Exclusive), fabric.Exclusive, fabric.Update, context.Canceled)
	expectConvertError(t, l.Convert(ctx, fabric.Shared), fabric.Shared, fabric.Update, context.Canceled)
	release(t, r)
	expectHolder(t, other, key, l)
	if l.Token() != token {
		t.Errorf("token %d, was %d", l.Token(), token)
	}
	convert(t, l, fabric.Exclusive)
	expectMode(t, other, l, fabric.Exclusive)
}

func oneConversion(t *testing.T, s *site) {
	key, m, other := s.key(t), s.manager(t), s.manager(t)
	l, r := acquireMode(t, m, key, fabric.Update), acquireMode(t, other, key, fabric.Shared)
	up := convertAsync(t, waitContext(t), other, l, fabric.Exclusive)
	for _, mode := range modes {
		expectConvertError(t, l.Convert(waitContext(t), mode), mode, fabric.Update, fabric.ErrConverting)
	}
	release(t, r)
	if err := converted(t, up); err != nil {
		t.Fatal(err)
	}
	convert(t, l, fabric.Exclusive) // as it is
	expectMode(t, other, l, fabric.Exclusive)
}

func conversionEndsWithHold(t *testing.T, s *site) {
	for name, c := range map[string]struct {
		end  func(l *fabric.Lock) error
		want error
	}{
		"released": {func(l *fabric.Lock) error { return l.Release(waitContext(t)) }, fabric.ErrReleased},
		"revoked": {func(l *fabric.Lock) error {
			_, err := s.manager(t).ForceRelease(waitContext(t), l.Key(), fabric.ForceHolder(l.ID()))
			return err
		}, fabric.ErrRevoked},
		"removed": {func(l *fabric.Lock) error {
			_, err := s.manager(t).ForceRelease(waitContext(t), l.Key(), fabric.ForceHolder(l.ID()), fabric.ForceNow())
			return err
		}, fabric.ErrLost},
	} {
		key, m, other := s.key(t), s.manager(t), s.manager(t)
		l, r := acquireMode(t, m, key, fabric.Update), acquireMode(t, other, key, fabric.Shared)
		up := convertAsync(t, waitContext(t), other, l, fabric.Exclusive)
		if err := c.end(l); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		expectConvertError(t, converted(t, up), fabric.Exclusive, "", c.want)
		expectConvertError(t, l.Convert(waitContext(t), fabric.Shared), fabric.Shared, "", c.want)
		eventually(t, name+": the reader alone", func() bool { return len(inspect(t, other, key).Holders) == 1 })
		expectHolder(t, other, key, r)
	}
}

func upgradePastTheDead(t *testing.T, s *site) {
	const ttl = 4 * time.Second
	key, m := s.key(t), s.manager(t)
	l := acquireMode(t, m, key, fabric.Update)
	nc := s.conn(t)
	dead := acquire(t, newManager(t, nc, fabric.WithTTL(ttl)), key, shared)
	up := convertAsync(t, waitContext(t), m, l, fabric.Exclusive)
	nc.Close()
	if err := converted(t, up); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(dead.Err(), fabric.ErrLost) {
		t.Errorf("upgraded beside a valid reader: %v", dead.Err())
	}
	expectHolder(t, m, key, l)
	if l.Token() <= dead.Token() {
		t.Errorf("token %d after %d", l.Token(), dead.Token())
	}
}

func leaseLostConverting(t *testing.T, s *site) {
	key, other := s.key(t), s.manager(t)
	m := s.manager(t, fabric.WithTTL(4*time.Second))
	l, r := acquireMode(t, m, key, fabric.Update), acquireMode(t, other, key, fabric.Shared)
	up := convertAsync(t, waitContext(t), other, l, fabric.Exclusive)
	late := queue(t, waitContext(t), other, key, shared)
	lease, _, _ := strings.Cut(l.ID(), ".")
	if err := s.bucket(t, fabric.DefaultFabric+"-leases").Purge(waitContext(t), lease); err != nil {
		t.Fatal(err)
	}
	expectConvertError(t, converted(t, up), fabric.Exclusive, "", fabric.ErrLost)
	release(t, granted(t, late))
	release(t, r)
}

func connectionClosedConverting(t *testing.T, s *site) {
	key, other := s.key(t), s.manager(t)
	nc := s.conn(t)
	m := newManager(t, nc, fabric.WithTTL(4*time.Second))
	l, r := acquireMode(t, m, key, fabric.Update), acquireMode(t, other, key, fabric.Shared)
	up := convertAsync(t, waitContext(t), other, l, fabric.Exclusive)
	late := queue(t, waitContext(t), other, key, shared)
	nc.Close()
	expectConvertError(t, converted(t, up), fabric.Exclusive, fabric.Update, fabric.ErrConnectionClosed)
	release(t, granted(t, late)) // the dead converter keeps nobody out for ever
	expectHolder(t, other, key, r)
}

func convertToNonsense(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	l := acquire(t, m, key)
	for _, bad := range []fabric.Mode{"", "x", "Q", "None"} {
		expectConvertError(t, l.Convert(waitContext(t), bad), bad, fabric.Exclusive, fabric.ErrInvalidOption)
	}
	expectHolder(t, m, key, l)
}
