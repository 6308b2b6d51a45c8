package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// keeper is a process that keeps locks, with one lease and one engine.
type keeper struct {
	t      *testing.T
	e      *Engine
	lease  string
	linger time.Duration

	mu    sync.Mutex
	void  bool
	seq   uint64
	ended []error // of kept entries
}

func newKeeper(t *testing.T, b *bucket, lease string) *keeper {
	e := newEngine(t, b, nil)
	t.Cleanup(e.Close)
	return &keeper{t: t, e: e, lease: lease, linger: time.Minute}
}

func (p *keeper) Keeps() bool { return true }

func (p *keeper) Valid() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.void
}

func (p *keeper) Ended(_, _ string, _ bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = append(p.ended, err)
}

func (p *keeper) set(void bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.void = void
}

func (p *keeper) id() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seq++
	return record.ID(p.lease, p.seq)
}

// acquire acquires with a Keeper, and reports whether it joined a kept entry.
func (p *keeper) acquire(ctx context.Context) (e *record.Entry, joined bool, err error) {
	if e, _, _, ok := p.e.Join("k", p.lease); ok {
		return e, true, nil
	}
	out, err := Do(ctx, p.e, "k", acquireOp(p.id()), Options{Keeper: p})
	return out.Entry, out.Uses > 1, err
}

func (p *keeper) hold() (*record.Entry, bool) {
	p.t.Helper()
	e, joined, err := p.acquire(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	return e, joined
}

// leave releases, and reports whether the entry stays.
func (p *keeper) leave(e *record.Entry) bool {
	p.t.Helper()
	if p.e.Leave("k", e.ID, time.Millisecond, p.linger) {
		return true
	}
	if _, err := Do(p.t.Context(), p.e, "k", releaseOp(e.ID), Options{Bound: time.Hour}); err != nil {
		p.t.Error(err)
	}
	return false
}

// keep makes the process keep the key, unused.
func (p *keeper) keep() *record.Entry {
	p.t.Helper()
	for range 3 {
		if e, _ := p.hold(); p.leave(e) {
			synctest.Wait()
			return e
		}
	}
	p.t.Fatal("not kept after three acquires")
	return nil
}

func asKeeper(t *testing.T, fn func(t *testing.T, p *keeper, b *bucket)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t)
		fn(t, newKeeper(t, b, "L1"), b)
	})
}

func TestK1_AJoinIsInMemory(t *testing.T) {
	asKeeper(t, func(t *testing.T, p *keeper, b *bucket) {
		first := p.keep()
		writes, _, reads := b.counts()
		for range 100 {
			e, joined := p.hold()
			if !joined || e.ID != first.ID || e.Token != first.Token || !p.leave(e) {
				t.Fatalf("joined %v, %s after %s", joined, e.ID, first.ID)
			}
		}
		if w, _, r := b.counts(); w != writes || r != reads {
			t.Errorf("%d writes, %d reads", w-writes, r-reads)
		}
	})
}

// A process that was stopped for longer than its lease joins nothing, and another lease's request does not release
// its kept entry.
func TestK1_NothingIsJoinedUnderALeaseThatIsVoid(t *testing.T) {
	for name, wait := range map[string]bool{"on its way": false, "waiting here": true} {
		t.Run(name, func(t *testing.T) {
			asKeeper(t, func(t *testing.T, p *keeper, b *bucket) {
				first := p.keep()
				var joins = make(chan bool, 1)
				join := func() {
					_, joined, err := p.acquire(t.Context())
					joins <- err == nil && joined
				}
				if !wait {
					p.set(true)
					go join()
				} else {
					first, _ = p.hold()
					go join()
					synctest.Wait()
					p.set(true)
					p.leave(first)
				}
				if <-joins {
					t.Error("joined under a void lease")
				}
				synctest.Wait()
				if rec := b.record("k"); len(rec.Holders) != 1 || rec.Holders[0].ID == first.ID {
					t.Errorf("held by %+v", rec.Holders)
				}
			})
		})
	}
}

// The watch delivers nothing. The known state is good for a second, and then read again.
func TestK1_WhatIsNotConfirmedIsReadFirst(t *testing.T) {
	asKeeper(t, func(t *testing.T, p *keeper, b *bucket) {
		first := p.keep()
		b.mute = true
		_, _, reads := b.counts()
		time.Sleep(2 * time.Second)
		e, joined := p.hold()
		if _, _, r := b.counts(); !joined || r != reads+1 {
			t.Fatalf("joined %v with %d reads, want one", joined, r-reads)
		}
		b.apply("k", acquireOp("L9.1"))
		time.Sleep(2 * time.Second)
		if !p.leave(e) {
			t.Fatal("what could not be known was known")
		}
		synctest.Wait()
		if rec := b.record("k"); len(rec.Holders) != 1 || rec.Holders[0].ID != "L9.1" {
			t.Errorf("held by %+v, want the one who waited", rec.Holders)
		}
		go func() { _, _, _ = p.acquire(t.Context()) }()
		synctest.Wait()
		if rec := b.record("k"); len(rec.Waiters) != 1 || first.ID == rec.Waiters[0].ID {
			t.Errorf("%+v wait, want another entry of the process", rec.Waiters)
		}
		b.mute = false
		b.apply("k", releaseOp("L9.1"))
	})
}

func TestK1_WhoIsRevokedOrRemovedIsNotJoined(t *testing.T) {
	for _, verb := range []record.Verb{record.OpRevoke, record.OpRemove} {
		for _, used := range []bool{true, false} {
			t.Run(fmt.Sprint(verb, used), func(t *testing.T) {
				asKeeper(t, func(t *testing.T, p *keeper, b *bucket) {
					first := p.keep()
					if used {
						p.hold()
					}
					b.apply("k", record.Op{Verb: verb, ID: first.ID})
					synctest.Wait()
					if len(p.ended) != 1 || !errors.Is(p.ended[0], ErrRevoked) && !errors.Is(p.ended[0], ErrRemoved) {
						t.Errorf("told %v", p.ended)
					}
					if verb == record.OpRevoke { // the user releases it
						p.e.ReleaseInBackground("k", "L1", first.ID, 0)
					}
					if e, joined := p.hold(); joined || e.ID == first.ID {
						t.Errorf("%s after it was taken away: joined %v", e.ID, joined)
					}
				})
			})
		}
	}
}

// Once another process is known to wait, no request joins.
func TestK3_AWaiterEndsIt(t *testing.T) {
	for _, used := range []bool{true, false} {
		t.Run(fmt.Sprint("used ", used), func(t *testing.T) {
			asKeeper(t, func(t *testing.T, p *keeper, b *bucket) {
				e := p.keep()
				var local []<-chan string
				if used {
					p.hold()
					for range 3 {
						c := make(chan string, 1)
						local = append(local, c)
						go func() {
							e, _ := p.hold()
							c <- e.ID
						}()
						synctest.Wait()
					}
					if rec := b.record("k"); len(rec.Waiters) > 0 {
						t.Errorf("%d wait in the record", len(rec.Waiters))
					}
				}
				b.apply("k", acquireOp("L9.1"))
				synctest.Wait()
				if used {
					if p.leave(e) {
						t.Error("it was passed on")
					}
				}
				synctest.Wait()
				rec := b.record("k")
				if len(rec.Holders) != 1 || rec.Holders[0].ID != "L9.1" || len(rec.Waiters) != len(local) {
					t.Fatalf("held by %+v, %d wait", rec.Holders, len(rec.Waiters))
				}
				b.apply("k", releaseOp("L9.1"))
				for i, c := range local {
					id := <-c
					if id != rec.Waiters[i].ID {
						t.Errorf("%s is granted, %s was first", id, rec.Waiters[i].ID)
					}
					p.leave(&record.Entry{ID: id})
				}
			})
		})
	}
}

func TestK3_ThoseWhoWaitHereAreServedInOrder(t *testing.T) {
	asKeeper(t, func(t *testing.T, p *keeper, b *bucket) {
		p.keep()
		e, _ := p.hold()
		writes, _, _ := b.counts()
		const n = 40
		order := make(chan int, n)
		var all sync.WaitGroup
		for i := range n {
			all.Go(func() {
				e, joined := p.hold()
				if !joined {
					t.Errorf("%d is not a join", i)
				}
				order <- i
				p.leave(e)
			})
			synctest.Wait()
		}
		p.leave(e)
		all.Wait()
		for i := range n {
			if got := <-order; got != i {
				t.Fatalf("%d after %d", got, i)
			}
		}
		if w, _, _ := b.counts(); w != writes {
			t.Errorf("%d writes", w-writes)
		}
	})
}

// A request that can't join drains the entry, even if others wait in the process.
func TestK3_WhoCantJoinEndsIt(t *testing.T) {
	for name, op := range map[string]record.Op{"acquire": acquireOp("L2.1"), "try": tryOp("L2.1")} {
		t.Run(name, func(t *testing.T) {
			asKeeper(t, func(t *testing.T, p *keeper, b *bucket) {
				first := p.keep()
				writes, _, _ := b.counts()
				out, err := Do(t.Context(), p.e, "k", op, Options{})
				if e := must(t, out, err).Entry; e.ID != "L2.1" || e.Token <= first.Token {
					t.Errorf("granted %+v", e)
				}
				if w, _, _ := b.counts(); w != writes+1 {
					t.Errorf("%d writes, want one for both", w-writes)
				}
			})
		})
	}
}

func TestK4_KeepingAdapts(t *testing.T) {
	asKeeper(t, func(t *testing.T, p *keeper, b *bucket) {
		isKept := func() bool {
			e, _ := p.hold()
			stays := p.leave(e)
			synctest.Wait()
			return stays
		}
		if isKept() {
			t.Fatal("a name that is used for the first time is kept")
		}
		if !isKept() {
			t.Fatal("the second acquire in a row is not kept")
		}
		callBack := func() {
			b.apply("k", acquireOp("L9.1"))
			synctest.Wait()
			b.apply("k", releaseOp("L9.1"))
			synctest.Wait()
		}
		until := func() (n int) {
			for n = 1; !isKept(); n++ {
			}
			return n
		}
		for _, want := range []int{5, 17, 65} { // the first finds what another one left
			if callBack(); true {
				if got := until(); got != want {
					t.Errorf("kept again after %d, want %d", got, want)
				}
			}
		}
		for range 10 {
			isKept()
		}
		callBack()
		if got := until(); got != 2 {
			t.Errorf("kept again after %d, though it was worth it", got)
		}
	})
}

func TestK7_NobodyWaitsHereForLong(t *testing.T) {
	asKeeper(t, func(t *testing.T, p *keeper, b *bucket) {
		p.keep()
		e, _ := p.hold()
		for range 3 {
			go func() { _, _, _ = p.acquire(t.Context()) }()
			synctest.Wait()
		}
		time.Sleep(900 * time.Millisecond)
		if rec := b.record("k"); len(rec.Waiters) > 0 {
			t.Errorf("%d wait in the record at once", len(rec.Waiters))
		}
		time.Sleep(200 * time.Millisecond)
		if rec := b.record("k"); len(rec.Waiters) != 3 {
			t.Errorf("%d wait in the record", len(rec.Waiters))
		}
		if p.leave(e) {
			t.Error("it is passed on beside those")
		}
	})
}

// Operations on the entry end with it.
func TestK7_AnEntryWithMoreToItIsReleased(t *testing.T) {
	asKeeper(t, func(t *testing.T, p *keeper, b *bucket) {
		p.keep()
		e, _ := p.hold()
		to := record.Op{Kind: record.KindLock, Verb: record.OpConvert, ID: p.id(), Lease: "L1", Holder: e.ID, From: record.X, Mode: record.S}
		_, err := Do(t.Context(), p.e, "k", to, Options{Bound: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		if p.leave(e) {
			t.Error("it is kept")
		}
		if !b.record("k").Idle() {
			t.Error("it stands")
		}
	})
}
