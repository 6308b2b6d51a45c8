package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// programs has the same one for several processes.
func programs(program func(p *mortal) error, leases ...string) map[string]func(p *mortal) error {
	all := map[string]func(p *mortal) error{}
	for _, lease := range leases {
		all[lease] = program
	}
	return all
}

// nothingLeft has the last process use the key, so that it cleans up, and checks that the key is deleted.
func nothingLeft(t *testing.T, w *crashWorld, use func() error) {
	t.Helper()
	if err := use(); err != nil {
		t.Errorf("the last process: %v", err)
	}
	if rec := w.read(); rec != nil {
		t.Errorf("left behind: %s", rec.Append(nil))
	}
}

// held returns the number of holders in the record.
func held(rec *record.Record) int {
	if rec == nil {
		return 0
	}
	return len(rec.Holders)
}

// Three processes take one, two and three of three permits.
func semaphoreCrash() *scenario {
	const size = 3
	use := func(p *mortal, n int) error {
		out, err := p.do(record.Op{Kind: record.KindSemaphore, Verb: record.OpAcquire, N: n, Limit: size})
		if err != nil {
			return err
		}
		_, err = Do(p.ctx, p.Engine, "k", record.Op{Verb: record.OpRelease, ID: out.Entry.ID, Lease: p.lease}, Options{})
		return err
	}
	processes := map[string]func(p *mortal) error{}
	for i, lease := range []string{"A", "B", "C"} {
		processes[lease] = func(p *mortal) error { return errors.Join(use(p, i+1), use(p, 2)) }
	}
	return &scenario{
		processes: processes,
		check: func(_, after *record.Record) string {
			if after == nil {
				return ""
			}
			if f := after.Facts(); f.Taken > f.Size || f.Size != size {
				return fmt.Sprintf("%d of %d permits are out", f.Taken, f.Size)
			}
			return ""
		},
		rest: func(t *testing.T, w *crashWorld, p *mortal) {
			nothingLeft(t, w, func() error { return use(p, size) })
		},
	}
}

// oneHolder checks that tokens rise, and that there is one holder at a time.
func oneHolder() func(before, after *record.Record) string {
	newest := uint64(0)
	return func(before, after *record.Record) string {
		if held(after) > 1 {
			return fmt.Sprintf("%d hold", len(after.Holders))
		}
		if held(after) == 0 || held(before) == 1 && before.Holders[0].ID == after.Holders[0].ID {
			return ""
		}
		if term := after.Holders[0].Token; term <= newest {
			return fmt.Sprintf("token %d after %d", term, newest)
		}
		newest = after.Holders[0].Token
		return ""
	}
}

var lockX = record.Op{Kind: record.KindLock, Verb: record.OpAcquire, Mode: record.X}

func (p *mortal) release(id string) error {
	_, err := Do(p.ctx, p.Engine, "k", record.Op{Verb: record.OpRelease, ID: id, Lease: p.lease}, Options{})
	return err
}

// ofHold fills in the fields of an operation on a hold.
func ofHold(op record.Op, hold record.Entry) record.Op {
	op.Holder, op.Token = hold.ID, hold.Token
	return op
}

// Three candidates lead, proclaim and resign.
func electionCrash() *scenario {
	lead := func(p *mortal) error {
		op := lockX
		op.Value = record.Value{Set: true, Data: p.lease}
		out, err := p.do(op)
		if err != nil {
			return err
		}
		_, err = p.do(ofHold(record.Op{Kind: record.KindLock, Verb: record.OpProclaim, Value: record.Value{Set: true, Data: p.lease + " at work"}}, *out.Entry))
		return errors.Join(err, p.release(out.Entry.ID))
	}
	return &scenario{
		processes: programs(lead, "A", "B", "C"), check: oneHolder(),
		rest: func(t *testing.T, w *crashWorld, p *mortal) {
			nothingLeft(t, w, func() error { return lead(p) })
		},
	}
}

// Two processes wait for a condition, and a third signals once, when both wait or one is dead. A woken process signals
// the next. No signal is lost: the signal to a process that died wakes another.
func condCrash() *scenario {
	var waits sync.WaitGroup
	waits.Add(2)
	waiting := func(f record.Facts) (n int) {
		for _, q := range f.Queues {
			n += len(q.Waiters)
		}
		return n
	}
	signalled := func(p *mortal, hold record.Entry, all bool) error {
		_, err := p.do(ofHold(record.Op{Kind: record.KindLock, Verb: record.OpSignal, Queue: "q", All: all}, hold))
		return errors.Join(err, p.release(hold.ID))
	}
	signal := func(p *mortal, all bool) error {
		out, err := p.do(lockX)
		if err != nil {
			return err
		}
		return signalled(p, *out.Entry, all)
	}
	wait := func(p *mortal) error {
		defer waits.Done()
		out, err := p.do(lockX)
		if err != nil {
			return err
		}
		if out, err = p.do(ofHold(record.Op{Kind: record.KindLock, Verb: record.OpWait, Queue: "q"}, *out.Entry)); err != nil {
			return err
		}
		return signalled(p, *out.Entry, false)
	}
	return &scenario{
		processes: map[string]func(p *mortal) error{"A": wait, "B": wait, "C": func(p *mortal) error {
			for ready := 0; ready < 2; time.Sleep(time.Second) {
				f, _, err := p.look()
				if err != nil {
					return err
				}
				if ready = waiting(f); p.w.crashed() == "A" || p.w.crashed() == "B" {
					ready++
				}
			}
			return signal(p, false)
		}, "D": func(p *mortal) error { // completes what C has left
			over := make(chan struct{})
			go func() {
				waits.Wait()
				close(over)
			}()
			for {
				select {
				case <-over:
					return nil
				case <-time.After(crashTTL):
				}
				if f, _, err := p.look(); err != nil || p.w.crashed() == "C" && waiting(f) > 0 {
					if err := errors.Join(err, signal(p, true)); err != nil {
						return err
					}
				}
			}
		}},
		check: oneHolder(),
		rest: func(t *testing.T, w *crashWorld, p *mortal) {
			nothingLeft(t, w, func() error { return signal(p, true) })
		},
	}
}

// Three processes come to a barrier: all parties of a generation pass together, or all learn that it is
// broken.
func barrierCrash() *scenario { return partiesCrash(3) }

// A fourth process never comes: a death is reported before any party gives up.
func missingPartyCrash() *scenario { return partiesCrash(4) }

func partiesCrash(parties int) *scenario {
	var mu sync.Mutex
	passed := map[uint64]map[bool][]string{} // reported outcomes, by generation
	arrive := func(p *mortal) error {
		for range 2 {
			f, life, err := p.look()
			if err != nil {
				return err
			}
			gen := max(f.Gen, 1)
			// A party that waits in vain for another gives up.
			ctx, cancel := context.WithTimeout(p.ctx, 10*crashTTL)
			_, err = Do(ctx, p.Engine, "k", p.op(record.Op{Kind: record.KindBarrier, Verb: record.OpArrive, Limit: parties, Gen: gen, Life: life}), Options{})
			gaveUp := ctx.Err() != nil
			cancel()
			if stood := p.w.crashedIn(2 * crashTTL); gaveUp && stood != nil && stood.Facts().Gen == gen {
				return errors.New("a death in its generation is not told")
			}
			var refused *RefusedError
			broken := errors.As(err, &refused) && refused.Verdict == record.Broken
			if err != nil && !broken || p.dead() {
				return err
			}
			mu.Lock()
			if passed[gen] == nil {
				passed[gen] = map[bool][]string{}
			}
			passed[gen][broken] = append(passed[gen][broken], p.lease)
			mu.Unlock()
			if broken {
				return nil
			}
		}
		return nil
	}
	return &scenario{
		processes: programs(arrive, "A", "B", "C"),
		check: func(_, after *record.Record) string {
			if after == nil {
				return ""
			}
			for _, e := range after.Facts().Ended {
				if !e.Broken && len(e.IDs) != parties {
					return fmt.Sprintf("generation %d ended with %d parties", e.Gen, len(e.IDs))
				}
			}
			return ""
		},
		rest: func(t *testing.T, w *crashWorld, p *mortal) {
			for gen, told := range passed {
				if len(told[true]) > 0 && len(told[false]) > 0 {
					t.Errorf("generation %d passed for %v and is broken for %v", gen, told[false], told[true])
				}
			}
			rec := w.read()
			if rec != nil && (len(rec.Waiters) > 0 || rec.Facts().Arrived > 0) {
				t.Errorf("left behind: %s", rec.Append(nil))
			}
		},
	}
}

// Two processes count a latch of two down, and one waits for it. Each count counts once, even if its process crashes right
// after it.
func latchCrash() *scenario {
	const counts = 2
	var mu sync.Mutex
	counted := 0 // by those that live
	var opens sync.WaitGroup
	opens.Add(1)
	down := func(p *mortal, n int) error {
		_, life, err := p.look()
		if err == nil {
			_, err = p.do(record.Op{Kind: record.KindLatch, Verb: record.OpCount, N: n, Limit: counts, Life: life, Base: p.seen})
		}
		return err
	}
	count := func(p *mortal) error {
		err := down(p, 1)
		var refused *RefusedError
		for errors.As(err, &refused) && refused.Verdict == record.OtherLife { // another process was first
			err = down(p, 1)
		}
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			counted++
		}
		return err
	}
	left := func(rec *record.Record) int {
		if rec == nil {
			return counts
		}
		return rec.Facts().Count
	}
	return &scenario{
		processes: map[string]func(p *mortal) error{"A": count, "B": count, "C": func(p *mortal) error {
			defer opens.Done()
			for {
				f, life, err := p.look()
				if err != nil || f.Open {
					return err
				}
				_, err = p.do(record.Op{Kind: record.KindLatch, Verb: record.OpAwait, Limit: counts, Life: life})
				var refused *RefusedError
				if !errors.As(err, &refused) || refused.Verdict != record.OtherLife {
					return err
				}
			}
		}, "D": func(p *mortal) error { // counts instead of a crashed process
			over := make(chan struct{})
			go func() {
				opens.Wait()
				close(over)
			}()
			select {
			case <-over:
				return nil
			case <-time.After(3 * crashTTL):
			}
			mu.Lock()
			missing := counts - counted
			mu.Unlock()
			now := left(p.w.read())
			if now != missing && !(p.w.after && now == missing-1) {
				return fmt.Errorf("the count is %d, and %d have counted", now, counts-missing)
			}
			return down(p, now)
		}},
		check: func(before, after *record.Record) string {
			if left(after) > left(before) {
				return fmt.Sprintf("the count rises from %d to %d", left(before), left(after))
			}
			return ""
		},
		rest: func(t *testing.T, w *crashWorld, p *mortal) {
			if rec := w.read(); rec == nil || !rec.Facts().Open || held(rec)+len(rec.Waiters) > 0 {
				t.Errorf("left behind: %v", rec)
			}
		},
	}
}

// Three processes want the result of a function that runs once. All get the same, even if the runner has crashed.
func onceCrash() *scenario {
	var mu sync.Mutex
	results := map[string]bool{}
	do := func(p *mortal) error {
		for {
			f, life, err := p.look()
			if err != nil {
				return err
			}
			result := f.Value.Data
			if f.By == "" {
				out, err := p.do(record.Op{Kind: record.KindOnce, Verb: record.OpAcquire, Life: life})
				var refused *RefusedError
				switch {
				case errors.As(err, &refused) && (refused.Verdict == record.Finished || refused.Verdict == record.OtherLife):
					continue
				case err != nil:
					return err
				}
				result = "of " + p.lease
				if _, err := p.do(ofHold(record.Op{
					Kind: record.KindOnce, Verb: record.OpFinish, Value: record.Value{Set: true, Data: result}, Life: life,
				}, *out.Entry)); err != nil {
					return err
				}
			}
			mu.Lock()
			defer mu.Unlock()
			results[result] = true
			return nil
		}
	}
	return &scenario{
		processes: programs(do, "A", "B", "C"),
		check: func(before, after *record.Record) string {
			if before != nil && before.Facts().By != "" && (after == nil || after.Facts().Value != before.Facts().Value) {
				return "the result changes"
			}
			return ""
		},
		rest: func(t *testing.T, w *crashWorld, p *mortal) {
			if err := do(p); err != nil || len(results) != 1 {
				t.Errorf("results %v, %v", results, err)
			}
			if rec := w.read(); rec == nil || held(rec)+len(rec.Waiters) > 0 {
				t.Errorf("left behind: %v", rec)
			}
		},
	}
}
