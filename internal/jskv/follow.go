package jskv

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/kv"
)

// Follow calls fn with the latest entry of every key that matches the KV filter, delete
// markers too, and then with every change, until ctx ends or fn returns an error, which
// is Follow's then. Entries that have come together are given together. complete is false
// while first values are still to come, and true from the call on that has the last of
// them, which may have none.
//
// It is what one KV watcher tells, see group: a replica may be behind, and after the
// loss of the consumer nothing comes for up to 20 s. Who has to miss nothing for longer
// than a time begins anew after it. Errors: kv.ErrUnavailable, and the context's.
func (b *Bucket) Follow(ctx context.Context, filter string, fn func(entries []Entry, complete bool) error) error {
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	slow := time.AfterFunc(initGrace, cancel)
	defer slow.Stop()
	w, err := b.kv.Watch(wctx, filter)
	if err != nil {
		return fmt.Errorf("%w: changes of %s: %w", kv.ErrUnavailable, b.name, errors.Join(err, ctx.Err()))
	}
	defer func() { _ = w.Stop() }()
	complete := false
	for {
		var batch []Entry
		take := func(e jetstream.KeyValueEntry) {
			if e == nil {
				complete = true
				slow.Stop()
				return
			}
			if !complete {
				slow.Reset(initGrace)
			}
			batch = append(batch, newEntry(e))
		}
		select {
		case <-wctx.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("%w: changes of %s: the first values do not come", kv.ErrUnavailable, b.name)
		case e, ok := <-w.Updates():
			if !ok {
				return fmt.Errorf("%w: changes of %s: watcher closed", kv.ErrUnavailable, b.name)
			}
			take(e)
		}
		for more := true; more; {
			select {
			case e, ok := <-w.Updates():
				if more = ok; ok { // else it is met again above
					take(e)
				}
			default:
				more = false
			}
		}
		if err := fn(batch, complete); err != nil {
			return err
		}
	}
}

func newEntry(e jetstream.KeyValueEntry) Entry {
	entry := Entry{Key: e.Key(), Revision: e.Revision(), Created: e.Created()}
	if e.Operation() == jetstream.KeyValuePut {
		entry.Value = e.Value()
	} else {
		entry.Deleted = true
	}
	return entry
}
