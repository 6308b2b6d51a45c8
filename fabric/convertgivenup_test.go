package fabric_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
)

// endsOnceAsked is a context that ends right after somebody was told that it hasn't.
type endsOnceAsked struct {
	context.Context
	end   context.CancelFunc
	asked atomic.Bool
}

func (c *endsOnceAsked) Err() error {
	if !c.asked.Swap(true) {
		c.end()
		return nil
	}
	return c.Context.Err()
}

// A conversion that is given up before anything of it was written leaves the handle
// with what both modes have in common. The record follows, so that nobody waits for
// nothing, and what the hold gets after that is a new grant.
func TestConversionGivenUpAtOnceLowersTheRecord(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, other, key := s.manager(t), s.manager(t), s.key(t)
		l := acquire(t, m, key, fabric.WithMode("IX"))
		before := l.Token()
		ctx := &endsOnceAsked{}
		ctx.Context, ctx.end = context.WithCancel(waitContext(t))
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
