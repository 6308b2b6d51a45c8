package engine

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

func partyOp(kind record.Kind, verb record.Verb, id string, parties int, gen uint64) record.Op {
	return record.Op{Kind: kind, Verb: verb, ID: id, Lease: record.LeaseOf(id), TTL: 30 * time.Second, Limit: parties, Gen: gen}
}

func arriveOp(id string, parties int, gen uint64) record.Op {
	return partyOp(record.KindBarrier, record.OpArrive, id, parties, gen)
}

func enterOp(id string, parties int) record.Op {
	return partyOp(record.KindGate, record.OpEnter, id, parties, 0)
}

// verb is an operation on a hold of another process.
func (b *bucket) ofHolder(verb record.Verb, id, holder string) record.Op {
	h, _ := b.record("k").Holder(holder)
	kind := record.KindBarrier
	if verb == record.OpLeave {
		kind = record.KindGate
	}
	return record.Op{Kind: kind, Verb: verb, ID: id, Lease: record.LeaseOf(id), Holder: holder, Token: h.Token}
}

// P4: the acknowledgement of the last arrival is lost, and the same process arrives again at once.
func TestP4_LostAcknowledgementOfTheLastArrival(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.apply("k", arriveOp("L9.1", 2, 1))
		b.fault = func(n int) fault {
			if n == 1 {
				return loseReply
			}
			return pass
		}
		last := doAsync(t.Context(), e, arriveOp("L1.1", 2, 1))
		synctest.Wait()
		if f := b.record("k").Facts(); f.Gen != 2 {
			t.Fatalf("%+v", f)
		}
		again := doAsync(t.Context(), e, arriveOp("L1.2", 2, 2))
		got := <-last
		must(t, got.out, got.err)
		pending(t, again)
		if f := b.record("k").Facts(); f.Gen != 2 || f.Arrived != 1 {
			t.Errorf("%+v", f)
		}
		b.apply("k", arriveOp("L9.2", 2, 2))
		got = <-again
		must(t, got.out, got.err)
	})
}

// P7: a cancel and the last arrival, in both orders.
func TestP7_CancelBesideTheLastArrival(t *testing.T) {
	for _, tripFirst := range []bool{true, false} {
		in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			c := doAsync(ctx, e, arriveOp("L1.1", 2, 1))
			pending(t, c)
			b.mu.Lock()
			b.block, b.arrived = make(chan struct{}), make(chan struct{}, 10)
			b.mu.Unlock()
			cancel()
			<-b.arrived // the cancel is on its way
			if tripFirst {
				b.apply("k", arriveOp("L9.1", 2, 1))
			}
			close(b.block)
			got := <-c
			if tripFirst {
				must(t, got.out, got.err)
				return
			}
			var refused *RefusedError
			if !errors.As(got.err, &refused) || refused.Verdict != record.Broken || !errors.Is(refused.Cause, context.Canceled) {
				t.Errorf("%v", got.err)
			}
			if _, results, _ := record.Apply(b.record("k"), 9, []record.Op{arriveOp("L9.1", 2, 1)}, record.Limits{}); results[0].Verdict != record.Stale {
				t.Errorf("the last one is told %s", results[0].Verdict)
			}
		})
	}
}

// P26: an arrival that was given up before it was written, and reported as not done, has no effect
// when it is written late: no generation trips with a party that has left, and no gate opens for one.
func TestP26_LateAfterCancel(t *testing.T) {
	for name, op := range map[string]record.Op{"arrive": arriveOp("L1.1", 2, 1), "enter": enterOp("L1.1", 2)} {
		for _, first := range []bool{true, false} { // on an absent key, or behind another
			t.Run(name, func(t *testing.T) {
				in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
					op := op
					other := op
					other.ID, other.Lease = "L9.1", "L9"
					if !first {
						b.apply("k", other)
						if op.Kind == record.KindGate {
							op.Gen = 1
						}
					}
					b.fault = func(n int) fault {
						if n == 1 {
							return late
						}
						return pass
					}
					ctx, cancel := context.WithCancel(t.Context())
					c := doAsync(ctx, e, op)
					synctest.Wait()
					cancel()
					if got := <-c; got.err == nil || errors.Is(got.err, ErrUncertain) {
						t.Fatalf("given up: %v", got.err)
					}
					b.deliverLate()
					if first {
						rev := b.peek("k").Revision
						other.Life = rev
						if rec := b.record("k"); rec != nil {
							other.Life, other.Gen = rec.Life, rec.Facts().Gen
						}
						b.apply("k", other)
					}
					rec := b.record("k")
					if rec.Has("L1.1") || rec.Facts().Open || name == "arrive" && rec.Facts().Arrived > 1 {
						t.Errorf("it came late: %s", rec.Append(nil))
					}
				})
			})
		}
	}
}

// acting returns an arrival of L1.1 whose generation's action is run by L9.
func acting(t *testing.T, ctx context.Context, e *Engine, b *bucket) <-chan result {
	t.Helper()
	c := doAsync(ctx, e, arriveOp("L1.1", 2, 1))
	pending(t, c)
	b.apply("k", partyOp(record.KindBarrier, record.OpArriveToAct, "L9.1", 2, 1))
	pending(t, c)
	return c
}

// P8, P26: a party that gives up while an action runs learns how it ended, and leaves nothing in the ledger meanwhile.
func TestP26_CancelWaitsForTheEndOfTheAction(t *testing.T) {
	for _, fail := range []bool{false, true} {
		in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
			ctx, cancel := context.WithCancel(t.Context())
			c := acting(t, ctx, e, b)
			cancel()
			time.Sleep(5 * time.Second)
			pending(t, c)
			if d := e.Unresolved("L1"); d != 0 {
				t.Errorf("unresolved for %v", d)
			}
			trip := b.ofHolder(record.OpTrip, "L9.2", "L9.1")
			trip.Fail = fail
			b.apply("k", trip)
			got := <-c
			if broken := errors.Is(got.err, context.Canceled); broken != fail || errors.Is(got.err, ErrUncertain) {
				t.Errorf("failed %v: %v", fail, got.err)
			}
		})
	}
}

func TestP26_CancelOfALongActionIsUncertain(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		ctx, cancel := context.WithCancel(t.Context())
		c := acting(t, ctx, e, b)
		cancel()
		began := time.Now()
		if got := <-c; !errors.Is(got.err, ErrUncertain) || !errors.Is(got.err, context.Canceled) || time.Since(began) != proofTimeout {
			t.Errorf("after %v: %v", time.Since(began), got.err)
		}
		b.apply("k", b.ofHolder(record.OpTrip, "L9.2", "L9.1"))
		synctest.Wait()
		w := e.lock("k")
		defer w.mu.Unlock()
		if n := len(w.waiting); n != 0 {
			t.Errorf("%d still wait", n)
		}
	})
}

// Nothing waits for an arrival under a lost lease.
func TestArrivalOfALostLeaseEndsAtOnce(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		stop := make(chan struct{})
		c := make(chan error, 1)
		go func() {
			_, err := Do(t.Context(), e, "k", arriveOp("L1.1", 2, 1), Options{Stop: stop})
			c <- err
		}()
		synctest.Wait()
		b.mu.Lock()
		b.fault = func(int) fault { return lose }
		b.mu.Unlock()
		began := time.Now()
		close(stop)
		if err := <-c; !errors.Is(err, ErrStopped) || errors.Is(err, ErrUncertain) || time.Since(began) > time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

// A member that has left can stop waiting for the others, and leaves nothing in the ledger.
func TestLeaveThatStandsIsNoDebt(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		c := doAsync(t.Context(), e, enterOp("L1.1", 2))
		pending(t, c)
		enter := enterOp("L9.1", 2)
		enter.Gen = 1
		b.apply("k", enter)
		got := <-c
		must(t, got.out, got.err)
		ctx, cancel := context.WithCancel(t.Context())
		leave := b.ofHolder(record.OpLeave, "L1.2", "L1.1")
		left := doAsync(ctx, e, leave)
		pending(t, left)
		cancel()
		if got := <-left; !errors.Is(got.err, context.Canceled) || errors.Is(got.err, ErrUnconfirmed) || e.Unresolved("L1") != 0 {
			t.Errorf("%v, unresolved for %v", got.err, e.Unresolved("L1"))
		}
		again := doAsync(t.Context(), e, leave)
		pending(t, again)
		b.apply("k", b.ofHolder(record.OpLeave, "L9.2", "L9.1"))
		got = <-again
		must(t, got.out, got.err)
		if rec := b.record("k"); !rec.Idle() {
			t.Errorf("%s", rec.Append(nil))
		}
	})
}
