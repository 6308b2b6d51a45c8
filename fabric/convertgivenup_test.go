package fabric_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
)

// endsAfter is a context that ends when it was asked n times.
type endsAfter struct {
	context.Context
	left atomic.Int32
}

func (c *endsAfter) Err() error {
	if c.left.Add(-1) < 0 {
		return context.Canceled
	}
	return nil
}

// A conversion that is given up before anything of it was written leaves the handle
// with what both modes have in common. The record follows, so that nobody waits for
// nothing, and what the hold gets after that is a new grant.
func TestConversionGivenUpAtOnceLowersTheRecord(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, other, key := s.manager(t), s.manager(t), s.key(t)
		l := acquire(t, m, key, fabric.WithMode("IX"))
		before := l.Token()
		ctx := &endsAfter{Context: waitContext(t)}
		ctx.left.Store(1) // the handle asks once, then the engine
		if err := l.Convert(ctx, "S"); !errors.Is(err, context.Canceled) {
			t.Fatalf("Convert: %v", err)
		}
		if l.Mode() != "IS" {
			t.Fatalf("the handle has %s", l.Mode())
		}
		reader := acquire(t, other, key, shared)
		release(t, reader)
		if err := l.Convert(waitContext(t), "IX"); err != nil {
			t.Fatal(err)
		}
		if l.Token() <= before || l.Token() <= reader.Token() {
			t.Errorf("token %d, before %d, the reader's %d", l.Token(), before, reader.Token())
		}
		release(t, l)
		expectFree(t, m, key)
	})
}
