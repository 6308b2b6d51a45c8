package fabric

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/lease"
)

// oneKey is a bucket with one key. While it is silent nobody answers.
type oneKey struct {
	mu     sync.Mutex
	entry  jskv.Entry
	silent bool
}

func (b *oneKey) setSilent(on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.silent = on
}

func (b *oneKey) Get(ctx context.Context, _ string) (jskv.Entry, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.silent {
		return jskv.Entry{}, jskv.ErrUnknown
	}
	return b.entry, nil
}

func (b *oneKey) Update(ctx context.Context, key string, value []byte, rev uint64, _ time.Duration) (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.silent:
		return 0, jskv.ErrUnknown
	case rev != b.entry.Revision:
		return 0, &jskv.ConflictError{Key: key, Expected: rev, Actual: b.entry.Revision}
	}
	b.entry = jskv.Entry{Key: key, Value: value, Revision: rev + 1}
	return rev + 1, nil
}

// dropped is told which leases have ended.
type dropped struct {
	doer
	leases []string
}

func (d *dropped) DropLease(id string) { d.leases = append(d.leases, id) }

// A lost lease's tombstone is tried until TTL + margin, when others have written it, and not for the three seconds that
// Close has; that long only once the session ends.
func TestE5_TombstonesAreTriedForTheWholeTTL(t *testing.T) {
	const ttl = 30 * time.Second
	for _, ends := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b, d := new(oneKey), new(dropped)
			le, err := lease.Create(t.Context(), b, lease.Config{TTL: ttl})
			if err != nil {
				t.Fatal(err)
			}
			s := &session{m: &Manager{cfg: config{logger: slog.New(slog.DiscardHandler)}}, shards: []*shard{{doer: d}}}
			s.ctx, s.stop = context.WithCancel(t.Context())
			defer s.stop()
			b.setSilent(true)
			begun, done := time.Now(), make(chan struct{})
			go func() {
				defer close(done)
				s.abandon(le)
			}()
			time.Sleep(time.Second)
			if ends {
				s.stop()
				<-done
				if took := time.Since(begun); took != time.Second+closeTimeout {
					t.Errorf("it went on for %v after the session had ended", took-time.Second)
				}
				return
			}
			time.Sleep(ttl / 2)
			b.setSilent(false)
			<-done
			info, err := lease.Decode(le.ID(), b.entry.Value)
			if err != nil || !info.Dead || len(d.leases) != 1 {
				t.Errorf("after %v: %+v, %v; told of %v", time.Since(begun), info, err, d.leases)
			}
		})
	}
}
