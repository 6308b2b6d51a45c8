package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

var _ Doer = (*Engine)(nil)

// asked is a request with a counter of its answers.
type asked struct {
	Request
	answers atomic.Int32
	out     Outcome
	err     error
}

func ask(key string, op record.Op) *asked {
	a := &asked{Request: Request{Key: key, Op: op}}
	a.Done = func(out Outcome, err error) {
		a.out, a.err = out, err
		a.answers.Add(1)
	}
	return a
}

func (a *asked) expect(t *testing.T, want error) {
	t.Helper()
	if n := a.answers.Load(); n != 1 || !errors.Is(a.err, want) {
		t.Errorf("%v of %s: %d answers, %v", a.Op.Verb, a.Op.ID, n, a.err)
	}
}

func TestRequestsOfOneMomentAreOneWrite(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		var all []*asked
		var reqs []*Request
		for i := range 10 {
			a := ask("k", modeOp(record.ID("L1", uint64(i+1)), record.S))
			all, reqs = append(all, a), append(reqs, &a.Request)
		}
		other := ask("other", acquireOp("L1.11"))
		e.Submit(append(reqs, &other.Request)...)
		synctest.Wait()
		for _, a := range append(all, other) {
			a.expect(t, nil)
		}
		if writes, _, reads := b.counts(); writes != 2 || reads != 0 {
			t.Errorf("%d writes and %d reads for two keys", writes, reads)
		}
	})
}

// Callbacks may call the engine: they run without a lock, and nothing that they could wait
// for waits for them.
func TestCallbacksMayCallTheEngine(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		const turns = 100
		var done []string
		var next func(i int) *Request
		next = func(i int) *Request {
			id := record.ID("L1", uint64(i))
			r := &Request{Key: "k", Op: acquireOp(id)}
			r.Done = func(out Outcome, err error) {
				if err != nil || out.Entry.ID != id {
					t.Errorf("%s: %+v, %v", id, out, err)
				}
				done = append(done, id)
				_ = e.Stats()
				e.Withdraw(r, ErrStopped) // has its outcome
				rel := ask("k", releaseOp(id))
				if i < turns {
					e.Submit(&rel.Request, next(i+1))
				} else {
					e.Submit(&rel.Request)
				}
			}
			return r
		}
		e.Submit(next(1))
		synctest.Wait()
		if len(done) != turns || !b.record("k").Idle() {
			t.Errorf("%d turns, %+v", len(done), b.record("k"))
		}
	})
}

// A withdrawn request is answered once, with the cause, and leaves nothing behind, wherever it was.
func TestWithdraw(t *testing.T) {
	cause := errors.New("nobody waits")
	for name, tc := range map[string]struct {
		op      record.Op
		held    bool // by another process
		blocked bool // the write is under way
		want    error
		writes  int
	}{
		"in the queue":                      {acquireOp("L1.1"), true, false, cause, 2},
		"while it is written":               {acquireOp("L1.1"), false, true, cause, 2},
		"before it is written":              {acquireOp("L1.2"), false, true, cause, 1},
		"a release while it is written":     {releaseOp("L1.1"), false, true, ErrUnconfirmed, 1},
		"a removal before it is written":    {record.Op{Verb: record.OpRemove, ID: "L9.9"}, false, true, cause, 1},
		"a release before anything is sent": {releaseOp("L1.2"), false, true, ErrUnconfirmed, 2},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
				switch {
				case tc.held:
					b.apply("k", acquireOp("L9.1"))
				case tc.op.Verb == record.OpRelease:
					b.apply("k", modeOp("L1.1", record.S), modeOp("L1.2", record.S))
					if _, _, err := e.Read(t.Context(), "k"); err != nil {
						t.Fatal(err)
					}
				}
				if tc.blocked {
					b.block, b.arrived = make(chan struct{}), make(chan struct{}, 10)
				}
				before, _, _ := b.counts()
				first := ask("k", modeOp("L3.1", record.S))
				if tc.op.ID != "L1.1" {
					e.Submit(&first.Request) // the other one comes while this is written
					<-b.arrived
				}
				a := ask("k", tc.op)
				e.Submit(&a.Request)
				synctest.Wait()
				e.Withdraw(&a.Request, cause)
				e.Withdraw(&a.Request, cause)
				if errors.Is(tc.want, ErrUnconfirmed) || tc.writes == 1 {
					a.expect(t, tc.want) // at once
				}
				if tc.blocked {
					close(b.block)
				}
				time.Sleep(time.Minute)
				a.expect(t, cause)
				a.expect(t, tc.want)
				if rec := b.record("k"); rec.Has(tc.op.ID) {
					t.Errorf("left behind: %+v", rec)
				}
				if e.Unresolved("L1") > 0 {
					t.Error("unresolved")
				}
				if writes, _, _ := b.counts(); !tc.held && writes-before != tc.writes {
					t.Errorf("%d writes, want %d", writes-before, tc.writes)
				}
			})
		})
	}
}

// A caller that gives up does not abort a write, even if only its own request is in it: the write gets its answer, and not
// an unknown outcome. The caller waits for it no longer than cleanupTime.
func TestGivingUpDoesNotBreakTheWriteOff(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.release = make(chan struct{})
		b.fault = func(n int) fault {
			if n == 1 {
				return slow
			}
			return pass
		}
		ctx, cancel := context.WithCancel(t.Context())
		caller := doAsync(ctx, e, acquireOp("L1.1"))
		synctest.Wait()
		cancel()
		began := time.Now()
		if got := <-caller; !errors.Is(got.err, context.Canceled) {
			t.Error(got.err)
		}
		if took := time.Since(began); took > cleanupTime {
			t.Errorf("returned after %v", took)
		}
		close(b.release)
		synctest.Wait()
		if st := e.Stats(); st.Unknown != 0 || st.Writes != 2 || !b.record("k").Idle() {
			t.Errorf("%+v, left behind %+v", st, b.record("k"))
		}
	})
}

// The same holds if the caller sends the write itself, as on a fast link, even if no answer comes.
// An answer that comes first counts.
func TestACallerThatSendsItselfGivesUpInTime(t *testing.T) {
	for _, answered := range []bool{true, false} {
		t.Run(fmt.Sprintf("answered %v", answered), func(t *testing.T) {
			in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
				e.cfg.RTT.Observe(time.Millisecond)
				b.release = make(chan struct{})
				b.fault = func(n int) fault {
					if n <= 2 {
						return slow
					}
					return pass
				}
				ctx, cancel := context.WithCancel(t.Context())
				caller := doAsync(ctx, e, acquireOp("L1.1"))
				synctest.Wait()
				other := doAsync(t.Context(), e, releaseOp("L2.1")) // does not wait for the one that sends
				cancel()
				began := time.Now()
				if answered {
					close(b.release)
				}
				if got := <-caller; answered != (got.err == nil) || !answered && !errors.Is(got.err, context.Canceled) {
					t.Error(got.err)
				}
				if took := time.Since(began); took > cleanupTime {
					t.Errorf("returned after %v", took)
				}
				<-other
				time.Sleep(time.Minute)
				if stands := b.record("k").Has("L1.1"); stands != answered {
					t.Errorf("it stands: %v", stands)
				}
			})
		})
	}
}

// Close aborts a request that a caller sends, and waits for it.
func TestCloseWaitsForACallerThatSends(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		e.cfg.RTT.Observe(time.Millisecond)
		b.block, b.release = make(chan struct{}), make(chan struct{})
		b.fault = func(int) fault { return slow }
		caller := doAsync(t.Context(), e, acquireOp("L1.1"))
		synctest.Wait()
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			e.Close()
		}()
		synctest.Wait()
		select {
		case <-closed:
			t.Error("closed while a request was being sent")
		default:
		}
		close(b.block)
		<-closed
		if got := <-caller; !errors.Is(got.err, ErrClosed) {
			t.Error(got.err)
		}
	})
}

// Done is called after Queued even if the grant overtakes it.
func TestDoneWaitsForQueued(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.apply("k", acquireOp("L9.1"))
		var told []string
		a := ask("k", acquireOp("L1.1"))
		entered, leave := make(chan struct{}), make(chan struct{})
		a.Queued = func(record.Place) {
			close(entered)
			<-leave
			told = append(told, "queued")
		}
		done := a.Done
		a.Done = func(out Outcome, err error) {
			told = append(told, "done")
			done(out, err)
		}
		e.Submit(&a.Request)
		<-entered
		b.apply("k", releaseOp("L9.1"))
		if _, _, err := e.Read(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		close(leave)
		synctest.Wait()
		a.expect(t, nil)
		if !slices.Equal(told, []string{"queued", "done"}) {
			t.Error(told)
		}
	})
}

// Ledger entries under a lease end with it, and so do requests that wait for them.
func TestDropLeaseAnswersTheWithdrawn(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.fault = func(int) fault { return lose }
		a, c := ask("k", acquireOp("L1.1")), ask("k", acquireOp("L2.1"))
		e.Submit(&a.Request, &c.Request)
		synctest.Wait()
		e.Withdraw(&a.Request, ErrStopped)
		e.Withdraw(&c.Request, ErrStopped)
		time.Sleep(time.Minute)
		if a.answers.Load()+c.answers.Load() > 0 || e.Unresolved("L1") < time.Minute {
			t.Errorf("answered %d %d, unresolved for %v", a.answers.Load(), c.answers.Load(), e.Unresolved("L1"))
		}
		e.DropLease("L1")
		a.expect(t, ErrStopped)
		if e.Unresolved("L1") > 0 || e.Unresolved("L2") < time.Minute {
			t.Errorf("unresolved for %v and %v", e.Unresolved("L1"), e.Unresolved("L2"))
		}
	})
}
