package primitives_test

import (
	"context"
	"errors"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

// Who has died keeps a name neither from being used as another kind, nor from being deleted: it is observed, and goes.
func TestDeadUsersKeepNoName(t *testing.T) {
	t.Parallel()
	for _, s := range []*site{singleSite, bothRoadsSite} {
		onSite(t, s, func(t *testing.T, s *site) {
			t.Parallel()
			m := s.manager(t)
			dying, die := crash(t, s, fabric.WithTTL(mortalTTL))
			ctx := waitContext(t)
			run := func(key string) {
				_, _ = primitives.NewOnce(dying, key).Do(ctx, func(ctx context.Context, _ uint64) ([]byte, error) {
					<-ctx.Done()
					return nil, ctx.Err()
				})
			}
			permit := func(key string) { _, _ = primitives.NewSemaphore(dying, key, 2).Acquire(ctx) }
			waits := func(key string) {
				mu := primitives.NewMutex(dying, key)
				if l, err := mu.Lock(ctx); err == nil {
					_, _ = primitives.NewCond(mu, "full").Wait(ctx, l)
				}
			}
			cases := []struct {
				name string
				use  func(key string)
				free func(key string) error
			}{
				{"lock, then semaphore", func(key string) { _, _ = dying.Acquire(ctx, key) }, func(key string) error {
					return second(primitives.NewSemaphore(m, key, 2).Acquire(ctx))
				}},
				{"condition, then semaphore", waits, func(key string) error { return second(primitives.NewSemaphore(m, key, 2).Acquire(ctx)) }},
				{"semaphore, then lock", permit, func(key string) error { return second(m.Acquire(ctx, key)) }},
				{"semaphore, then of another size", permit, func(key string) error { return second(primitives.NewSemaphore(m, key, 3).Acquire(ctx)) }},
				{"double barrier, then of another number", func(key string) { _, _ = primitives.NewDoubleBarrier(dying, key, 2).Enter(ctx) }, func(key string) error {
					return second(primitives.NewDoubleBarrier(m, key, 1).Enter(ctx))
				}},
				{"double barrier, then barrier", func(key string) { _, _ = primitives.NewDoubleBarrier(dying, key, 2).Enter(ctx) }, func(key string) error {
					return second(primitives.NewBarrier(m, key, 1).Wait(ctx))
				}},
				{"once, then latch", run, func(key string) error { return primitives.NewLatch(m, key, 2).CountDown(ctx) }},
				{"semaphore deleted", permit, func(key string) error { return primitives.NewSemaphore(m, key, 2).Delete(ctx) }},
				{"barrier deleted", func(key string) { _, _ = primitives.NewBarrier(dying, key, 2).Wait(ctx) }, func(key string) error {
					return primitives.NewBarrier(m, key, 2).Delete(ctx)
				}},
				{"latch deleted", func(key string) { _ = primitives.NewLatch(dying, key, 2).Wait(ctx) }, func(key string) error {
					return primitives.NewLatch(m, key, 2).Delete(ctx)
				}},
				{"once forgotten", run, func(key string) error { return primitives.NewOnce(m, key).Forget(ctx) }},
			}
			kept := func(err error) bool {
				return errors.Is(err, fabric.ErrKindMismatch) || errors.Is(err, fabric.ErrSizeMismatch) || errors.Is(err, fabric.ErrHeld)
			}
			keys := make([]string, len(cases))
			for i, c := range cases {
				keys[i] = s.key(t)
				go c.use(keys[i])
				waitInfo(t, m, keys[i], c.name, func(i fabric.Info) bool {
					return len(i.Holders)+len(i.Waiters)+len(i.Conditions) > 0 && (c.name != cases[1].name || len(i.Conditions) > 0)
				})
			}
			for i, c := range cases {
				if err := c.free(keys[i]); !kept(err) {
					t.Errorf("%s, while it lives: %v", c.name, err)
				}
			}
			die()
			for i, c := range cases {
				eventually(t, c.name, func() bool {
					err := c.free(keys[i])
					if err != nil && !kept(err) {
						t.Fatalf("%s: %v", c.name, err)
					}
					return err == nil
				})
			}
		})
	}
}
