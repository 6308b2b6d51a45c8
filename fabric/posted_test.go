package fabric_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// posting is a manager whose releases are posted, behind a proxy.
func (o *office) posting(t *testing.T, opts ...fabric.Option) (*fabric.Manager, *faultproxy.Proxy) {
	t.Helper()
	return o.behind(t, append(opts, fabric.WithPostedRelease())...)
}

func (o *office) records() faultproxy.Match { return faultproxy.Subject("$KV." + o.name + "-locks.>") }

func TestPosted_ReturnsBeforeTheWrite(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		o, other := s.inOffice(t)
		rec := &recorder{}
		m, proxy := o.posting(t, fabric.WithEvents(rec.hook))
		l := acquire(t, m, "k")
		held := proxy.HoldRequests(o.records())
		release(t, l)
		if !errors.Is(l.Err(), fabric.ErrReleased) {
			t.Errorf("the handle says %v", l.Err())
		}
		if err := held.Wait(waitContext(t), 1); err != nil {
			t.Fatal(err)
		}
		if _, err := other.TryAcquire(waitContext(t), "k"); !errors.Is(err, fabric.ErrHeld) {
			t.Errorf("before the write: %v", err)
		}
		wait := acquireAsync(waitContext(t), other, "k")
		held.Remove()
		release(t, granted(t, wait))
		release(t, l) // what became of it
		if ev := rec.await(t, fabric.EventReleased); ev.Reason != nil || ev.ID != l.ID() {
			t.Errorf("%+v", ev)
		}
	})
}

// Who posts is not told that the hold was lost meanwhile. The hook is, and who releases again.
func TestPosted_LossIsAnEvent(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		o, other := s.inOffice(t)
		rec := &recorder{}
		m, _ := o.posting(t, fabric.WithEvents(rec.hook))
		l := acquire(t, m, "k")
		if n, err := other.ForceRelease(waitContext(t), "k", fabric.ForceNow()); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		theirs := acquire(t, other, "k")
		if err := l.Release(waitContext(t)); err != nil && !errors.Is(err, fabric.ErrLost) { // if it was seen by now
			t.Error(err)
		}
		if ev := rec.await(t, fabric.EventLost); !errors.Is(ev.Reason, fabric.ErrRemoved) || ev.ID != l.ID() {
			t.Errorf("%+v", ev)
		}
		if err := l.Release(waitContext(t)); !errors.Is(err, fabric.ErrLost) {
			t.Errorf("released again: %v", err)
		}
		expectHolder(t, other, "k", theirs)
		release(t, theirs)
	})
}

// What a process wants next of a name comes after its own release, on every road.
func TestPosted_OwnReleaseComesFirst(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		o, _ := s.inOffice(t)
		o.manager(t, fabric.WithCoalescer())
		o.owned(t, record.Entry{})
		for _, road := range []fabric.Road{fabric.RoadDirect, fabric.RoadAutomatic, fabric.RoadCoalesced, fabric.RoadBoth} {
			m := o.manager(t, fabric.WithRoad(road))
			key, last := string(road), uint64(0)
			for i := range 60 { // tries in turns with acquires
				get := m.Acquire
				if i%2 == 0 {
					get = m.TryAcquire
				}
				l, err := get(waitContext(t), key, fabric.WithOwner("me"), fabric.WithPostedRelease())
				if err != nil {
					t.Fatalf("%s, %d: %v", road, i, err)
				}
				if l.Token() <= last {
					t.Errorf("%s, %d: token %d after %d", road, i, l.Token(), last)
				}
				last = l.Token()
				release(t, l)
			}
		}
	})
}

// Close hands on what was posted, also what did not reach the server yet.
func TestPosted_Close(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		o, other := s.inOffice(t)
		o.manager(t, fabric.WithCoalescer())
		o.owned(t, record.Entry{})
		for road, way := range map[fabric.Road]faultproxy.Match{fabric.RoadDirect: o.records(), fabric.RoadCoalesced: faultproxy.Subject("lf." + o.name + ".*.*.op")} {
			m, proxy := o.posting(t, fabric.WithRoad(road), fabric.WithTTL(time.Minute))
			eventually(t, "the owner is known", func() bool {
				o.hello(t)
				return road == fabric.RoadDirect || m.Stats().CoalescerTerm > 0
			})
			l := acquire(t, m, "k")
			wait := queue(t, waitContext(t), other, "k")
			lost := proxy.DropRequests(faultproxy.Times(1, way))
			release(t, l)
			if err := lost.Wait(waitContext(t), 1); err != nil {
				t.Fatal(err)
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			ctx, cancel := context.WithTimeout(waitContext(t), 50*time.Second) // within the TTL
			defer cancel()
			select {
			case g := <-wait:
				if g.err != nil {
					t.Fatal(g.err)
				}
				release(t, g.lock)
			case <-ctx.Done():
				t.Fatalf("%s: the lock was not handed on", road)
			}
		}
	})
}

// A process that dies with its release not sent has crashed with the lock: its lease frees it.
func TestPosted_Crash(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		o, other := s.inOffice(t)
		m, proxy := o.posting(t, fabric.WithTTL(3*time.Second))
		l := acquire(t, m, "k")
		wait := queue(t, waitContext(t), other, "k")
		held := proxy.HoldRequests(o.records())
		release(t, l)
		if err := held.Wait(waitContext(t), 1); err != nil {
			t.Fatal(err)
		}
		proxy.Close()
		next := granted(t, wait)
		if next.Token() <= l.Token() {
			t.Errorf("token %d after %d", next.Token(), l.Token())
		}
		release(t, next)
	})
}
