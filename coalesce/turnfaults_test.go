package coalesce

import (
	"context"
	"sync"
	"testing"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// C9: a late turn whose wait is withdrawn is dropped, and the record grants the next waiter. A turn that
// comes twice counts once.
func TestC9_TurnsComeLateAndTwice(t *testing.T) {
	l := lineUp(t, 4)
	late, writes := l.proxy.HoldRequests(turns), l.holdWrites()
	replies := func(i int) uint64 { return l.all[i].client.Stats().Replies }
	l.release(0)
	if err := late.Wait(l.context(), 1); err != nil {
		t.Fatal(err)
	}
	l.all[1].router.Withdraw(l.waits[1], context.Canceled)
	before := replies(1)
	if err := late.Release(); err != nil {
		t.Fatal(err)
	}
	l.until("the late turn has come", func() bool { return replies(1) > before })
	l.waiting(1)
	writes.Remove()
	l.wait("the withdrawn one", l.failed[1], context.Canceled)
	if out := l.holds(2); out.Turn {
		t.Errorf("its turn was not passed on, and it holds as %+v", out)
	}
	twice := l.proxy.DuplicateRequests(turns)
	before = replies(3)
	l.release(2)
	l.holds(3)
	l.until("the turn has come again", func() bool { return replies(3) >= before+2 })
	if n := l.all[3].client.Stats().Turns; twice.Count() != 1 || n != 1 {
		t.Errorf("a turn that was sent %d times twice counts %d times", twice.Count(), n)
	}
	l.waiting(3)
	l.release(3)
	l.clean("k", l.all...)
}

// C11: a client that has cancelled, a reader, and a hold that was converted pass no turn on, whatever the release says.
func TestC11_WhoPassesNoTurnOn(t *testing.T) {
	hold := func(l *lineup, mode record.Mode) (*process, record.Op) {
		p := l.process(always)
		p.meet()
		op := p.op(record.OpAcquire, p.lease.NextOp())
		op.Mode = mode
		out, err := engine.Do(l.context(), p.router, "k", op, engine.Options{Turns: true})
		if err != nil {
			t.Fatal(err)
		}
		op.Token = out.Entry.Token
		return p, op
	}
	release := func(l *lineup, p *process, held record.Op) {
		before := l.o.Stats().Operations
		op := p.op(record.OpRelease, held.ID)
		op.Token = held.Token
		done := make(chan error, 1)
		p.router.Submit(&engine.Request{Key: "k", Op: op, Held: true, Done: func(_ engine.Outcome, err error) { done <- err }})
		l.until("the release has come", func() bool { return l.o.Stats().Operations > before })
		if st := l.o.Stats(); st.Turns != 0 {
			t.Errorf("%d turns", st.Turns)
		}
		l.wait("the release", done, nil)
	}
	for what, run := range map[string]func(l *lineup){
		"a reader": func(l *lineup) {
			p, held := hold(l, record.S)
			l.queue(1)
			release(l, p, held)
		},
		"one that was converted": func(l *lineup) {
			p, held := hold(l, record.U)
			up := record.Op{Kind: record.KindLock, Verb: record.OpConvert, ID: p.lease.NextOp(), Lease: p.lease.ID(), Holder: held.ID, From: record.U, Mode: record.X}
			out, err := engine.Do(l.context(), p.router, "k", up, engine.Options{})
			if err != nil {
				t.Fatal(err)
			}
			held.Token = out.Entry.Token
			l.queue(1)
			release(l, p, held)
		},
		"a canceller": func(l *lineup) {
			p, held := hold(l, record.X)
			l.queue(2)
			l.o.mu.Lock()
			forced := &item{key: "k", passesTurn: true, op: l.all[0].op(record.OpRelease, l.ids[0])}
			if on, _ := l.o.passTurn(l.o.sessions[l.all[0].manager], forced, 1); on {
				t.Error("passed on")
			}
			l.o.mu.Unlock()
			l.all[0].router.Withdraw(l.waits[0], context.Canceled)
			l.wait("the canceller", l.failed[0], context.Canceled)
			l.waiting(1)
			if st := l.o.Stats(); st.Turns != 0 {
				t.Errorf("%d turns", st.Turns)
			}
			p.tokens.Store(held.ID, held.Token)
			p.mustRelease("k", held.ID)
		},
	} {
		t.Run(what, func(t *testing.T) {
			l := begin(t)
			run(l)
			last := len(l.all) - 1
			if out := l.holds(last); what != "a canceller" && out.Turn {
				t.Errorf("it holds as %+v", out)
			}
			l.release(last)
			l.clean("k", l.all...)
		})
	}
}

// C12: either a wait is withdrawn or its turn comes, whichever is first, never both. The next waiter gets its turn.
func TestC12_ACancelAndATurnAtOnce(t *testing.T) {
	for what, both := range map[string]func(cancel, turn func()){
		"cancel first": func(cancel, turn func()) { cancel(); turn() },
		"turn first":   func(cancel, turn func()) { turn(); cancel() },
		"at once": func(cancel, turn func()) {
			var wg sync.WaitGroup
			wg.Go(cancel)
			wg.Go(turn)
			wg.Wait()
		},
	} {
		t.Run(what, func(t *testing.T) {
			l := lineUp(t, 3)
			come := l.turnOf(1)
			writes := l.holdWrites()
			l.release(0) // the turn goes to client 1, too
			both(func() { l.all[1].router.Withdraw(l.waits[1], context.Canceled) }, func() { l.tell(1, come) })
			writes.Remove()
			select {
			case <-l.granted[1]:
				l.until("the owner is at rest", func() bool { return l.o.Stats().UnderWay == 0 })
				if rec := l.looker.record("k"); !rec.Has(l.ids[1]) || len(l.granted[2]) > 0 {
					t.Errorf("its hold is taken back: %+v", rec)
				}
				l.release(1)
			case err := <-l.failed[1]:
				if what == "turn first" {
					t.Errorf("it was granted, and then told %v", err)
				}
			case <-l.context().Done():
				t.Fatal("neither")
			}
			if len(l.granted[1])+len(l.failed[1]) > 0 {
				t.Error("both")
			}
			l.holds(2)
			l.release(2)
			l.clean("k", l.all...)
		})
	}
}

// C33: a stopped owner that wakes has written the entry of a hold again that is long over. The late release of that entry passes no
// turn to the entry behind it, and removes no entry before it, although the first one holds.
func TestC33_AnIdThatStandsInTheRecordAgain(t *testing.T) {
	l := lineUp(t, 2)
	first, other := l.all[0], l.process(RouterConfig{})
	token, _ := first.tokens.Load(l.ids[0])
	late := l.paths[0].HoldRequests(faultproxy.Times(1, frames))
	over := first.op(record.OpRelease, l.ids[0])
	over.Token = token.(uint64)
	q := &engine.Request{Key: "k", Op: over, Held: true, Done: func(engine.Outcome, error) {}}
	first.router.Submit(q)
	if err := late.Wait(l.context(), 1); err != nil {
		t.Fatal(err)
	}
	if _, err := engine.Do(l.context(), other.engine, "k", over, engine.Options{}); err != nil {
		t.Fatal(err)
	}
	l.holds(1)
	again := first.op(record.OpAcquire, l.ids[0])
	other.engine.Submit(&engine.Request{Key: "k", Op: again, Done: func(engine.Outcome, error) {}})
	l.until("the id waits", func() bool { return len(other.record("k").Waiters) == 1 })
	l.queue(1)
	l.until("the owner knows all of them", func() bool {
		rec, _, _ := l.o.p.engine.Known("k")
		return rec != nil && len(rec.Waiters) == 2
	})
	done := l.o.Stats().Operations
	if err := late.Release(); err != nil {
		t.Fatal(err)
	}
	l.until("the late release has been written", func() bool {
		return l.o.Stats().Operations > done && !other.record("k").Has(l.ids[0])
	})
	l.waiting(2)
	if rec := other.record("k"); len(rec.Holders) != 1 || rec.Holders[0].ID != l.ids[1] || len(rec.Waiters) != 1 || rec.Waiters[0].ID != l.ids[2] {
		t.Errorf("record: %+v", rec)
	}
	if st := l.o.Stats(); st.Turns != 0 {
		t.Errorf("%d turns", st.Turns)
	}
	l.release(1)
	l.holds(2)
	l.release(2)
	l.clean("k", l.all...)
}
