package coalesce

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// C31: a record that a newer version has written refuses clients on both roads, and stays as it is.
func TestC31_RecordsOfANewerVersion(t *testing.T) {
	w := newWorld(t)
	o := w.process(RouterConfig{}).serve()
	all := map[string]*process{"direct": w.process(RouterConfig{}), "over the owner": w.process(always), "on both roads": w.process(RouterConfig{Belt: true})}
	all["over the owner"].meet()
	all["on both roads"].meet()
	newer := []byte(`{"v":99,"kind":"lock","holders":[{"shape":"new"}]}`)
	store := o.p.buckets.Locks[0]
	if _, err := store.Update(w.context(), "k", newer, 0, 0); err != nil {
		t.Fatal(err)
	}
	for road, p := range all {
		before := o.Stats().Operations
		for _, verb := range []record.Verb{record.OpAcquire, record.OpTry} {
			_, err := engine.Do(w.context(), p.router, "k", p.op(verb, p.lease.NextOp()), engine.Options{})
			if !errors.Is(err, record.ErrNewerSchema) {
				t.Errorf("%s: %s: %v", road, verb, err)
			}
		}
		if came := o.Stats().Operations > before; came != (road != "direct") {
			t.Errorf("%s: it came to the owner: %v", road, came)
		}
		if e, err := store.Get(w.context(), "k"); err != nil || string(e.Value) != string(newer) {
			t.Errorf("%s: the record is %q, %v", road, e.Value, err)
		}
		p.mustRelease("other", p.mustAcquire("other"))
	}
}

// C32: tokens rise from a hold to the next hold that excludes it, whether the grant comes by a turn, by the record, or by an upgrade.
func TestC32_TokensRiseOnAllWays(t *testing.T) {
	w := newPatientWorld(t)
	o := w.process(RouterConfig{}).serve()
	var mu sync.Mutex
	newest := map[record.Mode]uint64{} // token of a hold, by the mode
	excludes := map[record.Mode][]record.Mode{record.X: {record.S, record.U, record.X}, record.U: {record.U, record.X}, record.S: {record.X}}
	turns, upgrades := 0, 0
	took := func(mode record.Mode, token uint64) {
		mu.Lock()
		defer mu.Unlock()
		for _, other := range excludes[mode] {
			if token <= newest[other] {
				t.Errorf("a hold of mode %s has token %d, and one of mode %s had %d before", mode, token, other, newest[other])
			}
		}
		newest[mode] = max(newest[mode], token)
	}
	hold := func(ctx context.Context, p *process, client, n int) error {
		id := p.lease.NextOp()
		op := p.op(record.OpAcquire, id)
		op.Mode = []record.Mode{record.X, record.X, record.S, record.X, record.U}[(client+n)%5]
		out, err := engine.Do(ctx, p.router, "k", op, engine.Options{Turns: true})
		if err != nil {
			return err
		}
		took(op.Mode, out.Entry.Token)
		end, held := p.op(record.OpRelease, id), true
		end.Token = out.Entry.Token
		mu.Lock()
		if out.Turn {
			turns++
		}
		mu.Unlock()
		if op.Mode == record.U {
			up := record.Op{Kind: record.KindLock, Verb: record.OpConvert, ID: p.lease.NextOp(), Lease: p.lease.ID(), Holder: id, From: record.U, Mode: record.X}
			if out, err = engine.Do(ctx, p.router, "k", up, engine.Options{}); err != nil {
				return err
			}
			took(record.X, out.Entry.Token)
			end.Token, held = out.Entry.Token, false
			mu.Lock()
			upgrades++
			mu.Unlock()
		}
		_, err = engine.Do(ctx, p.router, "k", end, engine.Options{Bound: patience, Held: held})
		return err
	}
	var wg sync.WaitGroup
	var all []*process
	for range 16 {
		p := w.process(always)
		p.meet()
		all = append(all, p)
	}
	for client := range 64 {
		wg.Go(func() {
			for n := range 3 {
				if err := hold(w.context(), all[client%16], client, n); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if turns == 0 || upgrades == 0 || o.Stats().Turns == 0 {
		t.Errorf("%d turns, %d upgrades", turns, upgrades)
	}
	w.clean("k", all...)
}
