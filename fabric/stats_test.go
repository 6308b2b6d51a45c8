package fabric_test

import (
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// Counters go on when the buckets are replaced, and when the manager is closed.
func TestStatsGoOn(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		own, key := s.fabric(t), s.key(t)
		m := s.manager(t, fabric.WithFabric(own), fabric.WithTTL(time.Second))
		l := acquire(t, m, key)
		for range 20 {
			release(t, acquire(t, m, key+"/more"))
		}
		last := m.Stats()
		rises := func() bool {
			now := m.Stats()
			ok := now.Operations >= last.Operations && now.Writes >= last.Writes && now.Reads >= last.Reads &&
				now.Conflicts >= last.Conflicts && now.Unknown >= last.Unknown && now.Timeouts >= last.Timeouts
			last = now
			return ok
		}
		if err := s.jetStream(t).DeleteStream(waitContext(t), "KV_"+own+"-locks"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "loss", func() bool {
			if !rises() {
				t.Fatalf("a counter went back: %+v", last)
			}
			return l.Err() != nil
		})
		before := last
		again := acquireAsync(waitContext(t), m, key)
		for done := false; !done; {
			select {
			case g := <-again:
				if g.err != nil {
					t.Fatal(g.err)
				}
				done = true
			case <-time.After(time.Millisecond):
			}
			if !rises() {
				t.Fatalf("a counter went back: %+v", last)
			}
		}
		if last.Operations <= before.Operations || last.Writes <= before.Writes {
			t.Errorf("%+v, before %+v", last, before)
		}
		if err := m.Close(); err != nil || !rises() || last.Waiting != 0 {
			t.Errorf("%+v, %v", last, err)
		}
	})
}
