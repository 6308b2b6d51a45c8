package fabric

import (
	"context"
	"strconv"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// Who serves a shard holds a lock on it: an exclusive one on a key that no name encodes to, taken directly, under a
// lease of its own. Its token is the owner's term. Losing it in a failover is harmless, so its TTL is short.
const (
	ownerKey = kv.CoalescerKey
	ownerTTL = 4 * time.Second
	metaRank = "rank" // of an owner and of those who wait to be one
)

// Ranks of owners: a better one is let in.
const (
	rankProcess = 2 // a process with WithCoalescer
	rankServer  = 3 // a server, which is next to the data
)

// ownership is the lock on the shard while this process has it.
type ownership struct {
	s    *session
	slot *slot
	id   string
	rank int
	rev  uint64
	term uint64

	gone   chan struct{} // holds an element once somebody has removed the lock
	better chan struct{} // holds an element once a better candidate waits for it
	stop   []func()
}

// ownShard waits until this process owns the shard.
func (s *session) ownShard(ctx context.Context, rank int) (*ownership, error) {
	sl, err := s.newSlot(ctx, timing{ttl: ownerTTL, owner: true})
	if err != nil {
		return nil, err
	}
	op := record.Op{
		Kind: record.KindLock, Verb: record.OpAcquire, Mode: record.X, ID: sl.lease.NextOp(), Lease: sl.id,
		TTL: ownerTTL, Since: time.Now(), Meta: map[string]string{metaRank: strconv.Itoa(rank)},
	}
	o := &ownership{s: s, slot: sl, id: op.ID, rank: rank, gone: make(chan struct{}, 1), better: make(chan struct{}, 1)}
	sl.begin(op.ID)
	before := s.seen()
	out, err := engine.Do(ctx, s.engine, ownerKey, op, engine.Options{Stop: sl.lease.Lost()})
	if err != nil {
		o.leave()
		return nil, err
	}
	o.term, o.rev = out.Entry.Token, out.Revision
	if err := s.confirm(ctx, out, before); err != nil {
		s.engine.ReleaseInBackground(ownerKey, sl.id, o.id, o.rev)
		o.leave()
		return nil, err
	}
	o.stop = append(o.stop,
		s.engine.WatchHold(ownerKey, o.id, o.term, o.rev, func(error) { signal(o.gone) }),
		s.lockHub.Follow(ownerKey, o.see))
	return o, nil
}

// signal leaves an element in a channel that has room for one. One that is there and was not received yet will do.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// see looks for a better candidate among those who wait.
func (o *ownership) see(e jskv.Entry) {
	rec, err := record.Decode(e.Value)
	if err != nil || rec == nil {
		return
	}
	for i := range rec.Waiters {
		if rankOf(&rec.Waiters[i]) > o.rank {
			signal(o.better)
		}
	}
}

func rankOf(e *record.Entry) int {
	n, _ := strconv.Atoi(e.Meta[metaRank])
	return n
}

func (o *ownership) release(ctx context.Context) {
	op := record.Op{Verb: record.OpRelease, ID: o.id, Lease: o.slot.id}
	_, _ = engine.Do(ctx, o.s.engine, ownerKey, op, engine.Options{FailFast: true, AtLeast: o.rev}) // else it ends with the lease
	o.leave()
}

// leave ends the lease, and with it what is left of the lock.
func (o *ownership) leave() {
	for _, stop := range o.stop {
		stop()
	}
	o.slot.mu.Lock()
	o.slot.retired = true
	o.slot.mu.Unlock()
	o.slot.give(o.id)
}

// Coalescer tells who carries out together what many want of this fabric (see docs/coalescing.md), as the
// holder, and who stands by, as the waiters. It is Inspect for that lock, which has no name.
func (m *Manager) Coalescer(ctx context.Context) (Info, error) {
	return m.readEncoded(ctx, "", ownerKey, true)
}
