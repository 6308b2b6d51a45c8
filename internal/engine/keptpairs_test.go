package engine

import (
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
)

// events is a process that keeps a key, with the effects of two events of the same moment.
type events struct {
	t    *testing.T
	p    *keeper
	b    *bucket
	used *record.Entry // the entry as used before, or as joined
	over bool          // the lease has ended, or the engine is closed
}

// happens are the events that a kept entry can have.
var happens = []struct {
	name string
	used bool // the entry is used before
	do   func(x *events)
}{
	{"join", false, func(x *events) {
		if e, _, _, ok := x.p.e.Join("k", "L1"); ok {
			if x.used != nil {
				x.t.Error("joined while it is used")
			}
			x.used = e
		}
	}},
	{"release", true, func(x *events) { x.leave() }},
	{"drain", false, func(x *events) { x.apply(acquireOp("L9.1")) }},
	{"poke", false, func(x *events) { x.p.e.GiveUp("k", x.b.kept(), func(bool) {}) }},
	{"idle timer", false, func(x *events) {
		w := x.p.e.lock("k")
		k := w.kept
		w.mu.Unlock()
		if k != nil {
			k.linger = 0
			w.onTimer(k)
		}
	}},
	{"loss", false, func(x *events) {
		x.p.set(true)
		x.p.e.EndKeeping("L1", true)
		x.over = true
		x.apply(record.Op{Verb: record.OpEvict, Leases: []string{"L1"}})
	}},
	{"Close", false, func(x *events) {
		x.over = true
		x.p.e.Close()
	}},
}

// apply has another process apply an operation, by a compare-and-set.
func (x *events) apply(op record.Op) {
	for {
		at, rec := x.b.peek("k").Revision, x.b.record("k")
		if x.b.peek("k").Revision != at {
			continue
		}
		if rec.Idle() {
			rec = nil
		}
		next, _, changed := record.Apply(rec, at, []record.Op{op}, record.DefaultLimits())
		err := error(nil)
		if changed && next.Idle() {
			_, err = x.b.Purge(x.t.Context(), "k", at, jskv.MarkerTTL)
		} else if changed {
			_, err = x.b.Update(x.t.Context(), "k", next.Append(nil), at, 0)
		}
		if err == nil {
			return
		}
	}
}

func (x *events) leave() {
	if e := x.used; e != nil {
		x.used = nil
		if !x.p.e.Leave("k", e.ID, time.Millisecond, time.Hour) {
			x.p.e.ReleaseInBackground("k", "L1", e.ID, 0)
		}
	}
}

// kept returns the id of the key's holder.
func (b *bucket) kept() string {
	if h := b.record("k").Holders; len(h) == 1 {
		return h[0].ID
	}
	return "L1.0"
}

// For each pair of events at the same time, in either order, used or not: the entry has one user,
// nobody joins an entry that has gone, and it neither stays behind nor blocks a waiter for ever.
func TestK13_PairsOfEvents(t *testing.T) {
	for _, first := range happens {
		for _, second := range happens {
			for _, used := range []bool{false, true} {
				if used || !first.used && !second.used {
					t.Run(fmt.Sprintf("%s, %s, used %v", first.name, second.name, used), func(t *testing.T) {
						asKeeper(t, func(t *testing.T, p *keeper, b *bucket) {
							x := &events{t: t, p: p, b: b}
							p.keep()
							if used {
								x.used, _ = p.hold()
							}
							first.do(x)
							second.do(x)
							x.settle()
						})
					})
				}
			}
		}
	}
}

func (x *events) settle() {
	synctest.Wait()
	if x.used != nil && !x.over {
		if h := x.b.record("k").Holders; len(h) != 1 || h[0].ID != x.used.ID {
			x.t.Errorf("%s is used, and %+v hold", x.used.ID, h)
		}
	}
	if x.over {
		if _, _, _, ok := x.p.e.Join("k", "L1"); ok {
			x.t.Error("joined after its end")
		}
		x.apply(record.Op{Verb: record.OpEvict, Leases: []string{"L1"}})
	}
	x.leave()
	time.Sleep(time.Second) // acquires have waited for a try
	x.apply(acquireOp("L8.1"))
	synctest.Wait()
	for _, id := range []string{"L9.1", "L8.1"} {
		if x.b.kept() == id {
			x.apply(releaseOp(id))
			synctest.Wait()
		}
	}
	if rec := x.b.record("k"); !rec.Idle() {
		x.t.Errorf("left behind: %+v, %+v wait", rec.Holders, rec.Waiters)
	}
	if n := x.p.e.keptSet.idle.Load(); n != 0 || len(x.p.e.keptSet.under("L1")) > 0 {
		x.t.Errorf("%d kept unused, of %d", n, len(x.p.e.keptSet.under("L1")))
	}
}

// A kept and unused key takes at most 2 KiB of an engine's memory, with its record. The fake store adds its value
// and a watch.
func TestK12_MemoryOfAKeptKey(t *testing.T) {
	b := newBucket(t)
	const n = 4000
	e := New(Config{Store: b, Watcher: b, Observer: &observer{}, MaxKept: n})
	defer e.Close()
	p := &keeper{t: t, e: e, lease: "L1"}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range n {
		key := fmt.Sprint("k", i)
		for range 2 {
			out, err := Do(t.Context(), p.e, key, acquireOp(p.id()), Options{Keeper: p})
			id := must(t, out, err).Entry.ID
			if !p.e.Leave(key, id, 0, time.Hour) {
				out, err := Do(t.Context(), p.e, key, releaseOp(id), Options{})
				must(t, out, err)
			}
		}
	}
	if got := len(p.e.Unused("L1")); got != n {
		t.Fatalf("%d kept, want %d", got, n)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n
	t.Logf("%d bytes for each of %d", each, n)
	const fake = 600
	if each > 2<<10+fake {
		t.Errorf("%d bytes for each of %d kept keys", each, n)
	}
	runtime.KeepAlive(p)
}
