package rtt_test

import (
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/lockfabric/lockfabric/internal/rtt"
)

const ms = time.Millisecond

// after returns an estimator that has seen n times each sample of a series.
func after(n int, series ...time.Duration) *rtt.Estimator {
	e := new(rtt.Estimator)
	for range n {
		for _, s := range series {
			e.Observe(s)
		}
	}
	return e
}

func TestNothingMeasured(t *testing.T) {
	e := new(rtt.Estimator)
	if mean, dev := e.RTT(); mean != 0 || dev != 0 || e.Expect() != 0 || e.Timeout() != rtt.Initial || e.Timeouts() != 0 {
		t.Errorf("mean %v, deviation %v, timeout %v", mean, dev, e.Timeout())
	}
	if e.Backoff(0) != rtt.Initial || e.Backoff(1) != rtt.Plateau {
		t.Errorf("backing off with %v, %v", e.Backoff(0), e.Backoff(1))
	}
}

// The numbers of RFC 6298, 2.2 and 2.3.
func TestFirstSamples(t *testing.T) {
	e := after(1, 800*ms)
	if mean, dev := e.RTT(); mean != 800*ms || dev != 400*ms || e.Timeout() != 2400*ms {
		t.Errorf("after one sample: mean %v, deviation %v, timeout %v", mean, dev, e.Timeout())
	}
	e.Observe(400 * ms)
	if mean, dev := e.RTT(); mean != 750*ms || dev != 400*ms {
		t.Errorf("after two samples: mean %v, deviation %v", mean, dev)
	}
}

func TestSteadyLink(t *testing.T) {
	for _, d := range []time.Duration{20 * time.Microsecond, ms, 100 * ms, 700 * ms, 3 * time.Second} {
		e := after(200, d)
		mean, dev := e.RTT()
		if mean != d || dev > d/50+4 {
			t.Errorf("a link of %v: mean %v, deviation %v", d, mean, dev)
		}
		if want := max(d, rtt.Floor); e.Timeout() < want || e.Timeout() > want+want/5 {
			t.Errorf("a link of %v: timeout %v", d, e.Timeout())
		}
	}
}

// One answer over a link that got slower has to be enough for the next request.
func TestStepUp(t *testing.T) {
	for _, d := range []time.Duration{300 * ms, 700 * ms, 2 * time.Second, 8 * time.Second} {
		e := after(1000, ms)
		e.Observe(d)
		if e.Timeout() <= d {
			t.Errorf("after one round trip of %v the timeout is %v", d, e.Timeout())
		}
	}
}

func TestStepDown(t *testing.T) {
	e := after(1000, 700*ms)
	for range 8 {
		e.Observe(ms)
	}
	if e.Timeout() < 300*ms {
		t.Errorf("forgotten after eight round trips: timeout %v", e.Timeout())
	}
	for range 60 {
		e.Observe(ms)
	}
	if e.Timeout() != rtt.Floor {
		t.Errorf("never forgotten: timeout %v", e.Timeout())
	}
}

func TestJitter(t *testing.T) {
	e := new(rtt.Estimator)
	late := 0
	for i := range 10_000 {
		sample := 400*ms + time.Duration(i*7919%200)*ms // 400 to 599 ms, in no order
		if i > 0 && sample > e.Timeout() {
			late++
		}
		e.Observe(sample)
	}
	if late > 100 {
		t.Errorf("%d of 10000 answers come after the timeout", late)
	}
	if d := e.Timeout(); d > 900*ms {
		t.Errorf("timeout %v for at most 599 ms", d)
	}
}

func TestOutliers(t *testing.T) {
	e := after(1000, 5*ms)
	e.Observe(time.Hour) // the process was stopped
	if mean, _ := e.RTT(); mean > 2*time.Second {
		t.Errorf("one outlier moves the mean to %v", mean)
	}
	for range 60 {
		e.Observe(5 * ms)
	}
	if e.Timeout() != rtt.Floor {
		t.Errorf("60 round trips later the timeout is %v", e.Timeout())
	}
}

func TestBackoff(t *testing.T) {
	for _, c := range []struct {
		link time.Duration
		want []time.Duration
	}{
		{ms, []time.Duration{250 * ms, 500 * ms, 1000 * ms, 2000 * ms, 2000 * ms, 2000 * ms, 2000 * ms, 4000 * ms, 8000 * ms, rtt.Ceiling, rtt.Ceiling}},
		{1500 * ms, []time.Duration{1500 * ms, 3000 * ms, 3000 * ms, 3000 * ms, 3000 * ms, 3000 * ms, 3000 * ms, 6000 * ms, rtt.Ceiling}},
	} {
		e := after(10_000, c.link)
		for n, want := range c.want {
			if got := e.Backoff(n); got < want || got > want+ms {
				t.Errorf("a link of %v, %d without an answer: %v, want %v", c.link, n, got, want)
			}
		}
		if e.Backoff(1_000_000) != rtt.Ceiling || e.Backoff(-1) != e.Timeout() {
			t.Errorf("a link of %v: %v, %v", c.link, e.Backoff(1_000_000), e.Backoff(-1))
		}
	}
}

// Reads and refusals, which are answered out of memory, don't hide that writes take long.
func TestQuickAnswers(t *testing.T) {
	e := new(rtt.Estimator)
	e.ObserveQuick(2 * ms)
	if mean, _ := e.RTT(); mean != 2*ms {
		t.Errorf("the first sample is a read: mean %v", mean)
	}
	e = after(1000, 600*ms)
	before := e.Timeout()
	for range 1000 {
		e.ObserveQuick(ms)
	}
	if e.Timeout() != before {
		t.Errorf("timeout %v after many fast reads, %v before", e.Timeout(), before)
	}
	e.ObserveQuick(2 * time.Second)
	if e.Timeout() <= 2*time.Second {
		t.Errorf("after a read of two seconds the timeout is %v", e.Timeout())
	}
}

// Whatever was measured, all results stay within their bounds, and
// the estimate converges to later samples.
func TestBoundsAndConvergence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := new(rtt.Estimator)
		sample := rapid.Int64Range(-int64(time.Second), int64(time.Hour))
		for _, s := range rapid.SliceOfN(sample, 0, 100).Draw(t, "samples") {
			e.Observe(time.Duration(s))
			mean, dev := e.RTT()
			if mean <= 0 || mean > rtt.Ceiling || dev < 0 || dev > rtt.Ceiling {
				t.Fatalf("mean %v, deviation %v", mean, dev)
			}
			if d := e.Timeout(); d < rtt.Floor || d > rtt.Ceiling {
				t.Fatalf("timeout %v", d)
			}
			last := time.Duration(0)
			for n := range 20 {
				d := e.Backoff(n)
				if d < last || d < e.Timeout() || d > rtt.Ceiling {
					t.Fatalf("%d without an answer: %v, before %v", n, d, last)
				}
				last = d
			}
			if p := e.Patience(); p < rtt.Plateau || p > rtt.Ceiling {
				t.Fatalf("patience %v", p)
			}
		}
		link := time.Duration(rapid.Int64Range(1, int64(rtt.Ceiling)).Draw(t, "link"))
		for range 250 {
			e.Observe(link)
		}
		// Whole nanoseconds: the filter stops within 8 of the mean.
		if mean, dev := e.RTT(); max(mean-link, link-mean) > 8 || dev > 12 {
			t.Fatalf("a link of %v: mean %v, deviation %v", link, mean, dev)
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	e := new(rtt.Estimator)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				e.Observe(ms)
				e.TimedOut()
				_ = e.Timeout()
			}
		})
	}
	wg.Wait()
	if mean, _ := e.RTT(); mean != ms || e.Timeouts() != 8000 {
		t.Errorf("mean %v, %d timeouts", mean, e.Timeouts())
	}
}

func TestNoAllocations(t *testing.T) {
	e := new(rtt.Estimator)
	if n := testing.AllocsPerRun(100, func() { e.Observe(ms); _ = e.Backoff(1) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
