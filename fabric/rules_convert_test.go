package fabric_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/jskv"
)

// Rule 13.7: weaker before it is sent, stronger only after it is acknowledged.
func TestRule7_WeakerBeforeStrongerAfter(t *testing.T) {
	t.Parallel()
	onBothSites(t, func(t *testing.T, s *site) {
		for _, from := range modes {
			for _, to := range modes {
				t.Run(fmt.Sprintf("%s to %s", from, to), func(t *testing.T) {
					m, w := s.wired(t)
					key := s.key(t)
					l := acquireMode(t, m, key, from)
					token := l.Token()
					check := func() {
						if had := l.Mode(); !covers(from, had) || !covers(to, had) || l.Token() != token {
							t.Errorf("the handle says %s, token %d", had, l.Token())
						}
					}
					w.fault(-1, about(t, key, lockWrite), func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
						check()
						defer check()
						return send(ctx, msg)
					})
					convert(t, l, to)
					expectMode(t, m, l, to)
				})
			}
		}
	})
}

// A conversion whose outcome is not known is one conversion, or none.
func TestRule2_LateConversions(t *testing.T) {
	t.Parallel()
	onBothSites(t, func(t *testing.T, s *site) {
		t.Run("up, replies lost", func(t *testing.T) {
			t.Parallel()
			m, w := s.wired(t)
			key := s.key(t)
			l := acquireMode(t, m, key, fabric.Shared)
			w.fault(2, about(t, key, lockWrite), deaf)
			convert(t, l, fabric.Exclusive)
			expectHolder(t, s.manager(t), key, l)
			expectMode(t, m, l, fabric.Exclusive)
		})
		t.Run("up, given up, delivered late", func(t *testing.T) {
			t.Parallel()
			m, w := s.wired(t)
			key, other := s.key(t), s.manager(t)
			l := acquireMode(t, m, key, fabric.Shared)
			deliver := make(chan struct{})
			act, replies := w.delayed(deliver)
			w.fault(1, about(t, key, lockWrite), act)
			w.fault(-1, about(t, key, lockWrite), vanish)
			ctx, cancel := context.WithTimeout(waitContext(t), 300*time.Millisecond)
			defer cancel()
			expectConvertError(t, l.Convert(ctx, fabric.Exclusive), fabric.Exclusive, fabric.Shared, context.DeadlineExceeded)
			close(deliver)
			if reply := <-replies; reply != "" {
				t.Errorf("the late request was answered %q", reply)
			}
			w.heal()
			// Long before the lease could end.
			eventually(t, "the record has the old mode", func() bool { p := partyOf(t, other, l); return p.Mode == fabric.Shared && p.Converting == "" })
			release(t, acquire(t, other, key, shared))
			expectMode(t, other, l, fabric.Shared)
		})
		t.Run("down, without a leader", func(t *testing.T) {
			t.Parallel()
			m, w := s.wired(t)
			key, other := s.key(t), s.manager(t)
			l := acquire(t, m, key)
			wait := queue(t, waitContext(t), other, key, shared)
			w.fault(-1, about(t, key, lockTraffic), vanish)
			expectConvertError(t, l.Convert(waitContext(t), fabric.Shared), fabric.Shared, fabric.Shared, fabric.ErrUnconfirmed)
			w.heal()
			release(t, granted(t, wait))
			expectMode(t, other, l, fabric.Shared)
		})
		t.Run("up, fail-fast without a leader", func(t *testing.T) {
			t.Parallel()
			m, w := s.wired(t, fabric.WithFailFast())
			key := s.key(t)
			// On a busy machine an answer can be late for a manager that is in a hurry.
			var l *fabric.Lock
			eventually(t, "acquired in a hurry", func() (ok bool) {
				var err error
				l, err = m.Acquire(waitContext(t), key, shared)
				return err == nil
			})
			w.fault(-1, about(t, key, lockTraffic), notSent)
			expectConvertError(t, l.Convert(waitContext(t), fabric.Exclusive), fabric.Exclusive, fabric.Shared, fabric.ErrUnavailable)
			w.heal()
			eventually(t, "converted in a hurry", func() bool { return l.Convert(waitContext(t), fabric.Exclusive) == nil })
			expectMode(t, m, l, fabric.Exclusive)
		})
	})
}
