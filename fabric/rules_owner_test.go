package fabric_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/jskv"
)

// An owner whose hold was lost holds nothing any more: its own entry that still
// stands, under a lease whose tombstone is not written yet, is waited for, not
// taken for another handle of the same owner.
func TestRule1_OwnerMayComeBackAfterALoss(t *testing.T) {
	t.Parallel()
	for name, take := range map[string]func(*fabric.Manager, string, ...fabric.AcquireOption) (*fabric.Lock, error){
		"acquire": func(m *fabric.Manager, key string, opts ...fabric.AcquireOption) (*fabric.Lock, error) {
			return m.Acquire(waitContext(t), key, opts...)
		},
		"try": func(m *fabric.Manager, key string, opts ...fabric.AcquireOption) (*fabric.Lock, error) {
			return m.TryAcquire(waitContext(t), key, opts...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			onSite(t, singleSite, func(t *testing.T, s *site) {
				t.Parallel()
				m, w := s.wired(t)
				key, me := s.key(t), fabric.WithOwner("me")
				release(t, acquire(t, m, s.key(t))) // the manager has its lease
				l := acquire(t, m, key, me, fabric.WithTTL(2*time.Second), fabric.WithAutoRenew(false))
				lease := leaseOf(l.ID())
				if _, err := take(m, key, me); !errors.Is(err, fabric.ErrAlreadyHeld) {
					t.Fatalf("while it is held: %v", err)
				}
				f := w.fault(-1, func(msg *nats.Msg) bool { return leaseWrite(msg) && strings.HasSuffix(msg.Subject, lease) }, vanish)
				waitLost(t, l)
				eventually(t, "a tombstone that gets lost", func() bool { return f.count() > 0 })
				ended := make(chan error, 1)
				go func() {
					again, err := take(m, key, me)
					if err == nil && again.Token() <= l.Token() {
						err = errors.New("an old token")
					}
					ended <- err
				}()
				reads := w.fault(-1, func(msg *nats.Msg) bool { return leaseRead(msg, lease) }, seen(func(*nats.Msg) {}))
				eventually(t, "it looks at the lease", func() bool { return reads.count() > 0 || len(ended) > 0 })
				f.end()
				if err := receive(t, ended); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func leaseRead(msg *nats.Msg, lease string) bool {
	return strings.HasPrefix(msg.Subject, "$JS.API.STREAM.MSG.GET.") && strings.Contains(string(msg.Data), lease)
}

// A refusal takes as many round trips whether one process is in the way or many.
func TestRule10_ThoseInTheWayAreLookedAtTogether(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		const others = 6
		key := s.key(t)
		in := make(chan string, 100)
		m, w := s.wired(t)
		holder := acquire(t, s.manager(t), key)
		var waits []<-chan grant
		for range others - 1 {
			waits = append(waits, queue(t, waitContext(t), s.manager(t), key))
		}
		release(t, acquire(t, m, s.key(t))) // the manager has its lease
		all := make(chan struct{})
		w.fault(-1, func(msg *nats.Msg) bool {
			return leaseRead(msg, "last_by_subj") && strings.HasSuffix(msg.Subject, "-leases")
		},
			func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
				in <- string(msg.Data)
				select {
				case <-all:
				case <-ctx.Done():
				}
				return send(ctx, msg)
			})
		ended := make(chan error, 1)
		go func() {
			_, err := m.TryAcquire(waitContext(t), key)
			ended <- err
		}()
		asked := map[string]bool{}
		for len(asked) < others {
			select {
			case about := <-in:
				asked[about] = true
			case err := <-ended:
				t.Fatalf("%v after %d questions", err, len(asked))
			}
		}
		close(all)
		if err := receive(t, ended); !errors.Is(err, fabric.ErrHeld) {
			t.Error(err)
		}
		release(t, holder)
		for _, next := range waits {
			release(t, granted(t, next))
		}
	})
}
