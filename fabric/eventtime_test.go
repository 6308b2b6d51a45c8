package fabric_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/jskv"
)

// Read by their times, the events of several holds never show two of them at once
// that exclude each other: whoever is let in by a downgrade comes after it, even if
// that one's confirmation is late.
func TestEventTimeOfADowngrade(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		var rec recorder
		key := s.key(t)
		m, w := s.wired(t, fabric.WithEvents(rec.hook))
		l := acquire(t, m, key)
		reader := queue(t, waitContext(t), s.manager(t, fabric.WithEvents(rec.hook)), key, fabric.WithMode(fabric.Shared))
		admitted := make(chan struct{})
		w.fault(-1, about(t, key, lockPut), func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
			reply, err := send(ctx, msg)
			if err == nil && !strings.Contains(string(reply.Data), `"error"`) {
				<-admitted
			}
			return reply, err
		})
		done := make(chan error, 1)
		go func() { done <- l.Convert(waitContext(t), fabric.Shared) }()
		granted(t, reader)
		close(admitted)
		if err := receive(t, done); err != nil {
			t.Fatal(err)
		}
		converted := rec.await(t, fabric.EventConverted)
		eventually(t, "both grants", func() bool { return len(rec.of(fabric.EventGranted)) == 2 })
		let := rec.of(fabric.EventGranted)[1]
		if !converted.Time.Before(let.Time) || converted.Mode != fabric.Shared || converted.Waited <= 0 {
			t.Errorf("%+v\nlets in\n%+v", converted, let)
		}
	})
}

// Why a wait ended is told as the end of a hold is.
func TestWithdrawnWhenTheBucketIsGone(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		var rec recorder
		own, key := s.fabric(t), s.key(t)
		m := s.manager(t, fabric.WithFabric(own), fabric.WithEvents(rec.hook))
		acquire(t, m, key)
		waiting := acquireAsync(waitContext(t), m, key)
		rec.await(t, fabric.EventQueued)
		if err := s.jetStream(t).DeleteStream(waitContext(t), "KV_"+own+"-locks"); err != nil {
			t.Fatal(err)
		}
		if e := rec.await(t, fabric.EventWithdrawn); !errors.Is(e.Reason, fabric.ErrBucketGone) {
			t.Errorf("%+v", e)
		}
		if e := rec.await(t, fabric.EventLost); !errors.Is(e.Reason, fabric.ErrBucketGone) {
			t.Errorf("%+v", e)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		<-waiting
		rec.check(t)
	})
}
