package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/coalesce"
	"github.com/lockfabric/lockfabric/fabric"
)

// twoOwners are two processes, of which the one labelled "0" owns shard 0 of a fabric and "1" owns shard 1. Each waits to follow
// the other one.
type twoOwners struct {
	t       *testing.T
	s       *site
	name    string
	clients [2]*fabric.Manager // which take the road over the owners
	owners  [2]*fabric.Manager
	kill    func() // has the first owner's connection end
}

const ownedShards = 3

func newTwoOwners(t *testing.T, s *site) *twoOwners {
	t.Helper()
	o := &twoOwners{t: t, s: s, name: s.fabricOf(t, ownedShards)}
	opts := []fabric.Option{fabric.WithFabric(o.name), fabric.WithShards(ownedShards)}
	candidate := func(label string) []fabric.Option {
		return append(opts[:len(opts):len(opts)], fabric.WithCoalescer(), fabric.WithLeisure(time.Hour), fabric.WithLabel(label))
	}
	for i := range o.clients {
		o.clients[i] = newManager(t, s.conn(t), append(opts[:len(opts):len(opts)], fabric.WithRoad(fabric.RoadCoalesced))...)
	}
	o.owners[1] = newManager(t, s.conn(t), candidate("1")...)
	for shard := range 2 {
		o.owned(shard, "1")
	}
	nc := s.conn(t)
	o.kill = nc.Close
	o.owners[0] = newManager(t, nc, candidate("0")...)
	waiters := func(shard int) func() bool { return func() bool { return len(o.record(shard).Waiters) == 1 } }
	for shard := range 2 {
		eventually(t, "the second process waits to follow", waiters(shard))
	}
	if err := fabric.Depose(waitContext(t), o.clients[0], 0); err != nil {
		t.Fatal(err)
	}
	o.owned(0, "0")
	eventually(t, "the process that was deposed waits to follow", waiters(0))
	return o
}

func (o *twoOwners) record(shard int) fabric.Info {
	o.t.Helper()
	info, err := o.clients[0].CoalescerOf(waitContext(o.t), shard)
	if err != nil {
		o.t.Fatal(err)
	}
	return info
}

// owned waits until the process with the label owns the shard, asking for an owner, and returns its term.
func (o *twoOwners) owned(shard int, label string) (term uint64) {
	o.t.Helper()
	nc := o.s.conn(o.t)
	eventually(o.t, fmt.Sprintf("%q owns shard %d", label, shard), func() bool {
		holders := o.record(shard).Holders
		if len(holders) == 0 {
			_ = nc.Publish(coalesce.HelloSubject(o.name, shard), nil)
			return false
		}
		term = holders[0].Token
		return holders[0].Lease.Label == label
	})
	return term
}

// over has a client take and release locks of a shard until they go over its owner.
func (o *twoOwners) over(m *fabric.Manager, shard int) {
	o.t.Helper()
	key := inShard(shard, ownedShards) + "/over"
	eventually(o.t, "operations go over the owner", func() bool {
		before := m.Stats().Coalesced
		release(o.t, acquire(o.t, m, key))
		return m.Stats().Coalesced >= before+2
	})
}

// Two processes own different shards: each writes what is its own, sets of both shards exclude each other, and of one owner
// that closes or dies only the shard is carried on without it, by its clients and then by the other owner.
func TestShards_TwoOwners(t *testing.T) {
	t.Parallel()
	of := &site{name: "a server of its own"} // where no other test stands by for every fabric
	t.Cleanup(func() {
		if of.server != nil {
			_ = of.server.Shutdown(context.Background())
		}
	})
	onSite(t, of, func(t *testing.T, s *site) {
		t.Run("each writes its own", func(t *testing.T) { t.Parallel(); eachWritesItsOwn(t, newTwoOwners(t, s)) })
		t.Run("one closes", func(t *testing.T) { t.Parallel(); oneOwnerEnds(t, newTwoOwners(t, s), false) })
		t.Run("one is killed", func(t *testing.T) { t.Parallel(); oneOwnerEnds(t, newTwoOwners(t, s), true) })
	})
}

func eachWritesItsOwn(t *testing.T, o *twoOwners) {
	const pairs = 10
	for shard := range 2 {
		o.over(o.clients[1], shard)
		writes := func() (own, other uint64) { return o.owners[shard].Stats().Writes, o.owners[1-shard].Stats().Writes }
		eventually(t, fmt.Sprintf("the owner of shard %d writes what is its own, and the other one nothing", shard), func() bool {
			own, other := writes()
			for range pairs {
				release(t, acquire(t, o.clients[1], inShard(shard, ownedShards)+"/own"))
			}
			nowOwn, nowOther := writes()
			return nowOwn >= own+pairs && nowOther == other
		})
	}
}

// oneOwnerEnds has locks and sets of both shards in use while the owner of shard 0 ends.
func oneOwnerEnds(t *testing.T, o *twoOwners, killed bool) {
	for shard := range 2 {
		o.over(o.clients[1], shard)
	}
	var keys [2]string
	var counts [2]int // under the lock of this shard
	var done [3]atomic.Int64
	for shard := range keys {
		keys[shard] = inShard(shard, ownedShards)
	}
	ctx, stop := context.WithCancel(t.Context())
	var users sync.WaitGroup
	defer users.Wait()
	defer stop()
	use := func(n int, once func() error) {
		users.Go(func() {
			for ctx.Err() == nil {
				if err := once(); err != nil && !errors.Is(err, fabric.ErrUnconfirmed) {
					t.Error(err)
					return
				}
				done[n].Add(1)
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	for _, m := range o.clients {
		for shard, key := range keys {
			use(shard, func() error {
				l, err := m.Acquire(waitContext(t), key)
				if err != nil {
					return err
				}
				counts[shard]++
				return l.Release(waitContext(t))
			})
		}
		use(2, func() error {
			set, err := m.AcquireAll(waitContext(t), []fabric.Want{{Key: keys[0]}, {Key: keys[1]}})
			if err != nil {
				return err
			}
			counts[0]++
			counts[1]++
			return set.Release(waitContext(t))
		})
	}
	goOn := func() {
		t.Helper()
		for n := range done {
			was := done[n].Load()
			eventually(t, "locks of each shard, and sets, go on", func() bool { return done[n].Load() > was+5 })
		}
	}
	goOn()
	term, began := o.owned(1, "1"), time.Now()
	if killed {
		o.kill()
	} else if err := o.owners[0].Close(); err != nil {
		t.Error(err)
	}
	goOn()
	if now := o.owned(1, "1"); now != term && time.Since(began) < 2*time.Second { // its lease of 4 s has not run out meanwhile
		t.Errorf("the owner of shard 1 has term %d after %d", now, term)
	}
	if !killed || *roads { // whoever was killed is followed when its lease has ended
		o.owned(0, "1")
		o.over(o.clients[1], 0)
		goOn()
	}
	o.over(o.clients[1], 1)
	stop()
	users.Wait()
	for shard := range counts {
		if want := int(done[shard].Load() + done[2].Load()); counts[shard] != want {
			t.Errorf("shard %d: counted %d of %d", shard, counts[shard], want)
		}
		expectFree(t, o.clients[0], keys[shard])
	}
}
