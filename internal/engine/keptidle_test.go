package engine

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

func TestIdleKeptLocksGo(t *testing.T) {
	asKeeper(t, func(t *testing.T, p *keeper, b *bucket) {
		p.linger = 10 * time.Second
		first := p.keep()
		for range 5 { // used meanwhile
			time.Sleep(4 * time.Second)
			e, joined := p.hold()
			if !joined || e.ID != first.ID {
				t.Fatal("not joined")
			}
			p.leave(e)
		}
		time.Sleep(9 * time.Second)
		synctest.Wait()
		if b.record("k").Idle() {
			t.Error("gone too early")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if !b.record("k").Idle() || !slices.Equal(p.ended, []error{nil}) {
			t.Errorf("%+v, told %v", b.record("k").Holders, p.ended)
		}
	})
}

func TestTooManyKeptLocksGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t)
		e := New(Config{Store: b, Watcher: b, Observer: &observer{}, MaxKept: 3})
		defer e.Close()
		p := &keeper{t: t, e: e, lease: "L1"}
		for i := range 5 {
			key := fmt.Sprint("k", i)
			for range 2 {
				id := p.id()
				if _, err := Do(t.Context(), e, key, acquireOp(id), Options{Keeper: p}); err != nil {
					t.Fatal(err)
				}
				if !e.Leave(key, id, 0, time.Minute) {
					_, _ = Do(t.Context(), e, key, releaseOp(id), Options{})
				}
				time.Sleep(time.Millisecond)
			}
		}
		synctest.Wait()
		for i := range 5 {
			if stands, want := !b.record(fmt.Sprint("k", i)).Idle(), i >= 2; stands != want {
				t.Errorf("%d stands: %v", i, stands)
			}
		}
	})
}

// 0 passes an entry on to requests that wait in the process, and never leaves it unused.
func TestLocalHandoff(t *testing.T) {
	asKeeper(t, func(t *testing.T, p *keeper, b *bucket) {
		p.linger = 0
		for range 5 {
			if e, _ := p.hold(); p.leave(e) {
				t.Fatal("it stays unused")
			}
		}
		e, _ := p.hold()
		next := make(chan *record.Entry)
		go func() {
			e, joined := p.hold()
			if !joined {
				t.Error("not passed on")
			}
			next <- e
		}()
		synctest.Wait()
		if !p.leave(e) {
			t.Error("not passed on")
		}
		if p.leave(<-next) {
			t.Error("it stays unused")
		}
		if !b.record("k").Idle() {
			t.Error("it stands")
		}
	})
}
