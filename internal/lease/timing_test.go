package lease_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/internal/rtt"
)

// setLink makes every answer take the trip time. A request arrives at once, even
// if it is given up.
func setLink(b *bucket, trip func(n int) time.Duration) {
	b.hooks(func(n int, _ write) fault { return fault{slow: trip(n)} },
		func(n int, _ string) fault { return fault{slow: trip(n)} })
}

func always(d time.Duration) func(int) time.Duration { return func(int) time.Duration { return d } }

func measured(d time.Duration) *rtt.Estimator {
	e := new(rtt.Estimator)
	for range 100 {
		e.Observe(d)
	}
	return e
}

// A link whose round trip is under a third of the TTL loses nothing, from the
// first moment or from one moment to the next, and without a watch's help.
func TestNoLossUnderAThirdOfTheTTL(t *testing.T) {
	for _, ttl := range []time.Duration{100 * ms, 300 * ms, 900 * ms, 5 * sec, 30 * sec} {
		for _, every := range []time.Duration{ttl / 3, ttl / 10, ttl * 9 / 10} {
			for name, trip := range map[string]func(n int) time.Duration{
				"steady":  always(ttl/3 - ms),
				"jitter":  func(n int) time.Duration { return ttl*2/9 + time.Duration(n*7919%100)*ttl/1000 },
				"bursts":  func(n int) time.Duration { return []time.Duration{ms, ttl/3 - ms}[n/5%2] },
				"outlier": func(n int) time.Duration { return []time.Duration{ms, ttl/3 - ms}[min(n%20, 1)^1] },
			} {
				t.Run(fmt.Sprint(ttl, " every ", every, " ", name), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						if every > ttl/2 && name != "steady" && name != "jitter" {
							return // a renewal that late leaves no room for delays
						}
						if ttl == 30*sec && name != "steady" && name != "jitter" {
							trip = always(2*sec - ms) // see minPatience
						}
						b := newBucket()
						setLink(b, trip)
						l := create(t, b, lease.Config{TTL: ttl, RenewEvery: every, AutoRenew: true})
						time.Sleep(50 * ttl)
						if !l.Valid() || l.Renewals() < 40 {
							t.Errorf("%v after %d renewals", l.Err(), l.Renewals())
						}
					})
				})
			}
		}
	}
}

// The link becomes slow at once, whatever it was before, and only an answer within the
// wait counts.
func TestSuddenlySlowLink(t *testing.T) {
	for _, ttl := range []time.Duration{100 * ms, 300 * ms, 900 * ms, 5 * sec} {
		for _, before := range []time.Duration{0, ttl / 10, ttl / 6, ttl / 5, ttl / 4} {
			t.Run(fmt.Sprint(ttl, " from ", before), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := newBucket()
					setLink(b, always(before))
					l := create(t, b, lease.Config{TTL: ttl, AutoRenew: true})
					time.Sleep(50 * ttl)
					setLink(b, always(ttl/3-ms))
					time.Sleep(20 * ttl)
					if !l.Valid() {
						t.Error(l.Err())
					}
					if b.reads() > 0 {
						t.Errorf("%d reads: answers were given up", b.reads())
					}
				})
			})
		}
	}
}

// The watch of its own key shows a renewal whose answer came after it was given
// up. That keeps the lease, and is a sample for the estimator.
func TestSlowLinkWithAWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		b.lag = 9 * sec
		link := new(rtt.Estimator)
		l := create(t, b, lease.Config{AutoRenew: true, RTT: link})
		defer b.Watch(l.ID(), l.Saw)()
		time.Sleep(time.Minute)
		setLink(b, always(9*sec))
		time.Sleep(10 * time.Minute)
		if mean, _ := link.RTT(); !l.Valid() || mean < 8*sec {
			t.Errorf("%v, mean %v", l.Err(), mean)
		}
		if n := b.reads(); n > 3 {
			t.Errorf("%d reads, to find out what the watch had told", n)
		}
	})
}

// A renewal that the watch has shown needs no read.
func TestWatchIsAsGoodAsTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{})
		defer b.Watch(l.ID(), l.Saw)()
		b.hooks(func(int, write) fault { return fault{mute: true} }, nil)
		if err := l.Renew(t.Context()); err != nil || l.Renewals() != 1 || b.reads() != 0 {
			t.Errorf("%v, %d renewals, %d reads", err, l.Renewals(), b.reads())
		}
	})
}

func TestRenewalsMoveEarlierOnASlowLink(t *testing.T) {
	for _, c := range []struct{ every, link, early, least, most time.Duration }{
		{10 * sec, 0, 0, 9 * sec, 10 * sec},
		{10 * sec, 2 * sec, 2 * sec, 7 * sec, 8 * sec},
		{10 * sec, 7 * sec, 5 * sec, 7 * sec, 7 * sec}, // half of it is the maximum; but one takes longer
		{27 * sec, 0, 0, 24 * sec, 27 * sec},
		{27 * sec, 2 * sec, 6500 * ms, 18 * sec, 20500 * ms}, // leaves four round trips before the end
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBucket()
			setLink(b, always(c.link))
			l := create(t, b, lease.Config{AutoRenew: true, RenewEvery: c.every, RTT: measured(c.link)})
			time.Sleep(10 * time.Minute)
			at := b.committed()
			for i := len(at) - 5; i < len(at); i++ {
				if d := at[i].At.Sub(at[i-1].At); d < c.least || d > c.most {
					t.Errorf("every %v on a link of %v: renewed after %v", c.every, c.link, d)
				}
			}
			if got := l.RenewEarly(); got < c.early || got > c.early+100*ms {
				t.Errorf("every %v on a link of %v: says %v early", c.every, c.link, got)
			}
		})
	}
}

// Counted renewals are not early if one answer has room, since each early one would take time from the
// holder.
func TestCountedRenewalsAreNotEarly(t *testing.T) {
	for name, limit := range map[string]func(*lease.Config) func(*lease.Lease){
		"from the beginning": func(c *lease.Config) func(*lease.Lease) {
			c.MaxRenewals = 5
			return func(*lease.Lease) {}
		},
		"from the grant": func(*lease.Config) func(*lease.Lease) { return func(l *lease.Lease) { l.Limit(true, 5) } },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBucket()
				setLink(b, always(sec))
				cfg := lease.Config{TTL: 10 * sec, RenewEvery: 3 * sec, AutoRenew: true, RTT: measured(sec)}
				granted := limit(&cfg)
				l := create(t, b, cfg)
				granted(l)
				start := b.committed()[0].At
				<-l.Lost()
				if d := time.Since(start); d < 5*2700*ms+9500*ms || l.Renewals() != 5 {
					t.Errorf("lost after %v and %d renewals", d, l.Renewals())
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		setLink(b, always(sec))
		l := create(t, b, lease.Config{TTL: 10 * sec, RenewEvery: 9 * sec, MaxRenewals: 5, AutoRenew: true, RTT: measured(sec)})
		if <-l.Lost(); l.Renewals() != 5 {
			t.Errorf("lost after %d renewals: %v", l.Renewals(), l.Err())
		}
	})
}

// On a slow link, and with late renewals, there is still time for a second one:
// every second request is lost.
func TestSecondAttemptHasRoom(t *testing.T) {
	for _, every := range []time.Duration{sec, 2700 * ms} {
		synctest.Test(t, func(t *testing.T) {
			b := newBucket()
			b.hooks(func(n int, _ write) fault { return fault{slow: 400 * ms, lost: n%2 == 0} },
				func(int, string) fault { return fault{slow: 400 * ms} })
			l := create(t, b, lease.Config{TTL: 3 * sec, RenewEvery: every, AutoRenew: true, RTT: measured(400 * ms)})
			time.Sleep(5 * time.Minute)
			if !l.Valid() {
				t.Errorf("renewed every %v: %v", every, l.Err())
			}
		})
	}
}

// An idle process has no other samples than its renewals.
func TestRenewalsAreMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		link := new(rtt.Estimator)
		l := create(t, b, lease.Config{AutoRenew: true, RTT: link})
		time.Sleep(time.Minute)
		setLink(b, always(700*ms))
		time.Sleep(10 * time.Minute)
		if mean, _ := link.RTT(); mean < 690*ms || mean > 700*ms || link.Timeouts() != 0 {
			t.Errorf("mean %v, %d timeouts", mean, link.Timeouts())
		}
		b.hooks(func(n int, _ write) fault { return fault{lost: n <= 2} }, nil)
		time.Sleep(time.Minute)
		if link.Timeouts() != 2 || !l.Valid() {
			t.Errorf("%d timeouts, %v", link.Timeouts(), l.Err())
		}
	})
}

// Refusals come at once, whatever a write takes that is accepted.
func TestRefusedRenewalsAreNotMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		link := measured(600 * ms)
		b.hooks(func(n int, _ write) fault {
			if n%10 != 0 {
				return fault{err: jskv.ErrBusy}
			}
			return fault{slow: 600 * ms}
		}, nil)
		create(t, b, lease.Config{AutoRenew: true, RTT: link})
		time.Sleep(10 * time.Minute)
		if mean, _ := link.RTT(); mean < 590*ms {
			t.Errorf("mean %v", mean)
		}
	})
}

// Rules of the patience, whatever was measured: never beyond the end of the validity; if possible, never
// less than minPatience, or than an answer of the longest timeout; beyond
// minPatience, if possible, with room for a read and a write, and else not to the
// end either, if answers usually came sooner.
func TestPatience(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		link := new(rtt.Estimator)
		for _, s := range rapid.SliceOfN(rapid.Int64Range(1, int64(10*sec)), 0, 20).Draw(t, "samples") {
			link.Observe(time.Duration(s))
		}
		ttl := time.Duration(rapid.Int64Range(100, 60_000).Draw(t, "ttl")) * ms
		remaining := time.Duration(rapid.Int64Range(int64(ms), int64(ttl)).Draw(t, "remaining"))
		n := rapid.IntRange(0, 20).Draw(t, "unanswered")
		every := []time.Duration{ttl / 10, ttl / 3, ttl / 2, ttl * 9 / 10}[rapid.IntRange(0, 3).Draw(t, "interval")]
		got := lease.Config{TTL: ttl, RenewEvery: every, RTT: link}.Patience(remaining, n)
		answer, promised := max(link.Expect(), lease.LeastRoom), min(ttl/3, 2*sec)
		if every > ttl/2 {
			promised = 0 // a renewal that late leaves no room for delays
		}
		mean, _ := link.RTT()
		switch {
		case got <= 0 || got > remaining || got < min(promised, remaining):
			t.Fatalf("%v of %v", got, remaining)
		case remaining < 3*answer && got < min(remaining, max(remaining/2, mean)):
			t.Fatalf("%v of %v, which is too little for more than one of %v", got, remaining, answer)
		case remaining < 3*answer && got > max(remaining/2, ttl/3, mean*3/2):
			t.Fatalf("all of %v, although an answer takes %v and not %v", remaining, mean, answer)
		case remaining >= 4*answer && (got < min(answer, rtt.Ceiling) || got > promised && remaining-got < 2*answer):
			t.Fatalf("%v of %v, an answer takes %v", got, remaining, answer)
		}
	})
}
