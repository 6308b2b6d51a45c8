package fabric_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/coalesce"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// office is a fabric of its own whose owner a test looks at.
type office struct {
	s      *site
	name   string
	bucket jetstream.KeyValue
	nc     *nats.Conn
}

// inOffice opens a fabric of its own, with a manager that is no candidate.
func (s *site) inOffice(t *testing.T) (*office, *fabric.Manager) {
	t.Helper()
	o := &office{s: s, name: s.fabric(t), nc: s.conn(t)}
	m := s.manager(t, fabric.WithFabric(o.name))
	o.bucket = s.bucket(t, kv.LocksBuckets(o.name, s.shards)[0])
	return o, m
}

func (o *office) manager(t *testing.T, opts ...fabric.Option) *fabric.Manager {
	t.Helper()
	return o.s.manager(t, append(opts, fabric.WithFabric(o.name))...)
}

// hello asks for an owner, as a client does.
func (o *office) hello(t *testing.T) {
	t.Helper()
	if err := errors.Join(o.nc.Publish(coalesce.HelloSubject(o.name, 0), nil), o.nc.Flush()); err != nil {
		t.Fatal(err)
	}
}

// record returns the record of the owner's lock, nil if there is none.
func (o *office) record(t *testing.T) *record.Record {
	t.Helper()
	e, err := o.bucket.Get(waitContext(t), fabric.OwnerKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	rec, err := record.Decode(e.Value())
	if err != nil {
		t.Fatal(err)
	}
	rec.Resolve(e.Revision())
	return rec
}

// owner returns the owner's entry, and how many wait to follow.
func (o *office) owner(t *testing.T) (owner record.Entry, waiting int) {
	t.Helper()
	if rec := o.record(t); rec != nil && len(rec.Holders) > 0 {
		return rec.Holders[0], len(rec.Waiters)
	}
	return record.Entry{}, 0
}

// owned waits for another owner than was, asking for one, and returns it.
func (o *office) owned(t *testing.T, was record.Entry) (owner record.Entry) {
	t.Helper()
	eventually(t, "another owner", func() bool {
		owner, _ = o.owner(t)
		if owner.ID == "" {
			o.hello(t)
		}
		return owner.ID != "" && owner.ID != was.ID
	})
	if owner.Token <= was.Token {
		t.Errorf("term %d after %d", owner.Token, was.Token)
	}
	return owner
}

// queued waits until n candidates wait to follow.
func (o *office) queued(t *testing.T, n int) {
	t.Helper()
	eventually(t, "candidates wait", func() bool { _, waiting := o.owner(t); return waiting == n })
}

func TestCoalescer_OwnsOnlyWhenAsked(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		o, m := s.inOffice(t)
		o.manager(t, fabric.WithCoalescer(), fabric.WithLeisure(300*time.Millisecond))
		lock := acquire(t, m, "name")
		if rec := o.record(t); rec != nil {
			t.Fatalf("an owner though nobody has asked: %+v", rec)
		}
		owner := o.owned(t, record.Entry{})
		if list, err := m.List(waitContext(t), ""); err != nil || len(list) != 1 || list[0].Key != "name" {
			t.Errorf("listed: %+v, %v", list, err)
		}
		release(t, lock)
		eventually(t, "the owner lets go", func() bool { return o.record(t) == nil })
		o.owned(t, owner)
	})
}

func TestCoalescer_CloseLeavesNobodyWaiting(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		o, _ := s.inOffice(t)
		first := o.manager(t, fabric.WithCoalescer())
		owner := o.owned(t, record.Entry{})
		o.manager(t, fabric.WithCoalescer())
		o.queued(t, 1)
		began := time.Now()
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		o.owned(t, owner)
		if took := time.Since(began); took > 3*time.Second { // of a lease's 4
			t.Errorf("took %v, as if a lease had been waited for", took)
		}
	})
}

func TestCoalescer_ACrashedOwnerIsFollowed(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		o, _ := s.inOffice(t)
		nc := s.conn(t)
		first := newManager(t, nc, fabric.WithFabric(o.name), fabric.WithCoalescer())
		owner := o.owned(t, record.Entry{})
		o.manager(t, fabric.WithCoalescer())
		o.queued(t, 1)
		nc.Close()
		o.owned(t, owner)
		_ = first.Close()
	})
}

func TestCoalescer_HandsOverToABetterOne(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		o, _ := s.inOffice(t)
		o.manager(t, fabric.WithCoalescer())
		owner := o.owned(t, record.Entry{})
		o.manager(t, fabric.AsServer())
		owner = o.owned(t, owner)
		if owner.Meta["rank"] != "3" {
			t.Errorf("rank %q owns", owner.Meta["rank"])
		}
		o.queued(t, 1) // the first one again, and it stays behind
		if again, _ := o.owner(t); again.ID != owner.ID {
			t.Errorf("%s owns after %s", again.ID, owner.ID)
		}
	})
}

func TestCoalescer_FewWaitToFollow(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		o, _ := s.inOffice(t)
		o.manager(t, fabric.WithCoalescer())
		o.owned(t, record.Entry{})
		for range 2 {
			o.manager(t, fabric.WithCoalescer())
		}
		o.queued(t, 2)
		for range 3 {
			m := o.manager(t, fabric.WithCoalescer())
			_ = m.Close() // which ends what it has begun
		}
		o.queued(t, 2)
	})
}

func TestCoalescer_StepsDownWhenItsLockIsTaken(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		o, _ := s.inOffice(t)
		o.manager(t, fabric.WithCoalescer())
		owner := o.owned(t, record.Entry{})
		if err := o.bucket.Purge(waitContext(t), fabric.OwnerKey); err != nil {
			t.Fatal(err)
		}
		eventually(t, "an owner again, though nobody asks", func() bool { again, _ := o.owner(t); return again.Token > owner.Token })
	})
}

func TestStandBy_ServesWhoeverAsks(t *testing.T) {
	t.Parallel()
	for _, s := range []*site{singleSite, shardedSite} {
		onSite(t, s, standBy)
	}
}

func standBy(t *testing.T, s *site) {
	t.Parallel()
	o, _ := s.inOffice(t)
	nc := s.conn(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	var open atomic.Int32
	watch := func(m *fabric.Manager) (stop func()) {
		if fabric.Name(m) != o.name { // of another test
			return func() {}
		}
		open.Add(1)
		return func() { open.Add(-1) }
	}
	go func() {
		ended <- fabric.StandBy(ctx, nc, fabric.WithLeisure(300*time.Millisecond), fabric.WithWatch(watch))
	}()
	t.Cleanup(cancel)
	owner := o.owned(t, record.Entry{})
	if owner.Meta["rank"] != "3" {
		t.Errorf("rank %q owns", owner.Meta["rank"])
	}
	eventually(t, "the owner lets go", func() bool { return o.record(t) == nil })
	eventually(t, "the fabric is closed", func() bool { return open.Load() == 0 })
	o.owned(t, owner)
	if s.shards > 1 {
		o.oneShardRests(t)
	}
	for _, name := range []string{"nobody-has-opened-it", ">"} {
		if err := errors.Join(o.nc.Publish(coalesce.HelloSubject(name, 0), nil), o.nc.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := receive(t, ended); err != nil {
		t.Error(err)
	}
	if o.record(t) != nil {
		t.Error("it ended, and owns")
	}
	for name := range s.jetStream(t).KeyValueStoreNames(waitContext(t)).Name() {
		if strings.HasPrefix(name, "nobody-") {
			t.Errorf("made %s", name)
		}
	}
}

// oneShardRests has another shard in use while nobody asks for the owner of the first one.
func (o *office) oneShardRests(t *testing.T) {
	t.Helper()
	m, key := o.manager(t, fabric.WithRoad(fabric.RoadCoalesced)), inShard(1, o.s.shards)
	term := func() uint64 {
		info, err := m.CoalescerOf(waitContext(t), 1)
		if err != nil || len(info.Holders) == 0 {
			return 0
		}
		return info.Holders[0].Token
	}
	var held *fabric.Lock
	var next <-chan grant // whom the owner has to do with as long as it waits
	var was uint64
	eventually(t, "one who waits with an owner of shard 1", func() bool {
		if next != nil {
			release(t, held)
			release(t, granted(t, next))
		}
		held = acquire(t, m, key)
		before := m.Stats().Coalesced
		was = term()
		next = queue(t, waitContext(t), m, key)
		return m.Stats().Coalesced > before && was > 0 && term() == was
	})
	eventually(t, "the owner of shard 0 lets go", func() bool { return o.record(t) == nil })
	if now := term(); now != was || now == 0 {
		t.Errorf("shard 1 was in use, and has an owner of term %d after %d", now, was)
	}
	release(t, held)
	release(t, granted(t, next))
}

func TestStats_TellOfTheCoalescer(t *testing.T) {
	onSite(t, coalescedSite, func(t *testing.T, s *site) {
		t.Parallel()
		m := s.manager(t)
		before := m.Stats()
		release(t, acquire(t, m, s.key(t)))
		st, owner := m.Stats(), s.owner.Stats()
		if st.CoalescedRTT <= 0 || st.CoalescedRTT > time.Minute {
			t.Errorf("the road over the coalescer takes %v", st.CoalescedRTT)
		}
		if st.Coalesced < before.Coalesced+2 || st.Frames <= before.Frames || st.CoalescerTerm == 0 || owner.Serving == 0 {
			t.Errorf("a pair over the coalescer: %+v, before %+v; it says %+v", st, before, owner)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		if now := m.Stats(); now.Coalesced < st.Coalesced || now.CoalescerTerm != 0 {
			t.Errorf("closed: %+v, before %+v", now, st)
		}
	})
}
