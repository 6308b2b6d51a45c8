package fabric_test

import (
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/cluster"
	"github.com/lockfabric/lockfabric/kv"
)

var stampsFor = flag.Duration("stamps", 0, "how long the tests of stamps run on one server and, with leaders that resign, on three; 0 is a second on one")

// stampSoak is writers who hold a lock and validators who take it not to be held, of processes of their own.
type stampSoak struct {
	t       *testing.T
	key     string
	locks   string       // bucket
	begun   atomic.Int64 // odd while somebody holds exclusively
	valid   atomic.Int64
	stale   atomic.Int64
	unknown atomic.Int64
}

func (k *stampSoak) write(ctx context.Context, m *fabric.Manager, r *rand.Rand) {
	for ctx.Err() == nil {
		l, err := m.Acquire(ctx, k.key)
		if err != nil {
			if ctx.Err() == nil {
				k.t.Errorf("acquire: %v", err)
			}
			return
		}
		k.begun.Add(1)
		time.Sleep(time.Duration(r.IntN(500)) * time.Microsecond)
		if err := l.Err(); err != nil {
			k.t.Errorf("lost: %v", err)
		}
		k.begun.Add(1)
		if err := l.Release(ctx); err != nil && ctx.Err() == nil {
			k.t.Errorf("release: %v", err)
		}
		time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
	}
}

func (k *stampSoak) validate(ctx context.Context, m *fabric.Manager, r *rand.Rand) {
	for ctx.Err() == nil {
		st, err := m.Optimistic(ctx, k.key)
		if errors.Is(err, fabric.ErrHeld) {
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil {
			if ctx.Err() == nil {
				k.t.Errorf("stamp: %v", err)
			}
			return
		}
		first := k.begun.Load()
		time.Sleep(time.Duration(r.IntN(2000)) * time.Microsecond)
		last := k.begun.Load()
		vctx, cancel := context.WithTimeout(ctx, time.Duration(1+r.IntN(100))*time.Millisecond)
		valid, err := m.Validate(vctx, st)
		cancel()
		switch {
		case err != nil:
			k.unknown.Add(1)
		case !valid:
			k.stale.Add(1)
		case first != last || first%2 == 1:
			k.t.Errorf("a stamp is valid, and meanwhile the lock was held: %d, then %d", first, last)
			return
		default:
			k.valid.Add(1)
		}
	}
}

// expire removes the key's delete marker, as its TTL does.
func (k *stampSoak) expire(ctx context.Context, stream jetstream.Stream, r *rand.Rand) {
	subject := "$KV." + k.locks + "." + k.key
	for ctx.Err() == nil {
		time.Sleep(time.Duration(r.IntN(50)) * time.Millisecond)
		last, err := stream.GetLastMsgForSubject(ctx, subject)
		if err == nil && last.Header.Get("KV-Operation") != "" {
			_ = stream.Purge(ctx, jetstream.WithPurgeSubject(subject), jetstream.WithPurgeSequence(last.Sequence+1))
		}
	}
}

// run keeps on for d, and until it shows something. The site's own faults come on top.
func (k *stampSoak) run(s *site, d time.Duration, own string) {
	ctx, cancel := context.WithCancel(waitContext(k.t))
	defer cancel()
	time.AfterFunc(d, func() {
		for ctx.Err() == nil && (k.valid.Load() < 5 || k.stale.Load() < 5) {
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
	})
	stream, err := s.jetStream(k.t).Stream(ctx, "KV_"+k.locks)
	if err != nil {
		k.t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 3 {
		writer, validator := s.manager(k.t, fabric.WithFabric(own)), s.manager(k.t, fabric.WithFabric(own))
		wg.Go(func() { k.write(ctx, writer, rand.New(rand.NewPCG(1, uint64(i)))) })
		for j := range 2 {
			wg.Go(func() { k.validate(ctx, validator, rand.New(rand.NewPCG(2, uint64(2*i+j)))) })
		}
	}
	wg.Go(func() { k.expire(ctx, stream, rand.New(rand.NewPCG(3, 0))) })
	wg.Wait()
	k.t.Logf("%d times held, %d valid stamps, %d old ones, %d not known", k.begun.Load()/2, k.valid.Load(), k.stale.Load(), k.unknown.Load())
	if k.valid.Load() < 5 || k.stale.Load() < 5 {
		k.t.Error("the test shows nothing")
	}
}

func newStampSoak(t *testing.T, s *site) (k *stampSoak, own string) {
	own = s.fabric(t)
	s.manager(t, fabric.WithFabric(own)) // makes the buckets
	return &stampSoak{t: t, key: "k", locks: kv.LocksBucket(own)}, own
}

// Stale stamps never validate: random writers, who make the record and delete it, against validators of other
// processes. With -stamps also on three servers, whose leaders resign.
func TestStaleStampsNeverValidate(t *testing.T) {
	d := max(*stampsFor, time.Second)
	onSite(t, singleSite, func(t *testing.T, s *site) {
		k, own := newStampSoak(t, s)
		k.run(s, d, own)
	})
	if *stampsFor == 0 {
		return
	}
	onSite(t, clusterSite, func(t *testing.T, s *site) {
		k, own := newStampSoak(t, s)
		ctx, cancel := context.WithCancel(waitContext(t))
		var wg sync.WaitGroup
		wg.Go(func() {
			for ctx.Err() == nil {
				_ = s.cluster.StepDown(ctx, "KV_"+k.locks)
				time.Sleep(700 * time.Millisecond)
			}
		})
		k.run(s, d, own)
		cancel()
		wg.Wait()
	})
}

// A leader that is cut off answers reads, for a while, with the state that was. A stamp taken of it is not valid.
// It needs a cluster of its own and some seconds, so it comes with -stamps.
func TestM40_ADeposedLeaderValidatesNothing(t *testing.T) {
	if *stampsFor == 0 {
		return
	}
	c := cluster.Run(t, 3)
	s := &site{name: "its own", cluster: c}
	s.once.Do(func() {})
	key, stream := "k", "KV_"+fabric.DefaultFabric+"-locks"
	s.manager(t)
	leader, err := c.WaitStreamLeader(waitContext(t), stream)
	if err != nil {
		t.Fatal(err)
	}
	at := func(i int) *fabric.Manager {
		nc, err := c.Node(i).Connect()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return newManager(t, nc)
	}
	deposed, other := at(leader), at((leader+1)%3)
	before := stampOf(t, deposed, key)
	expectValid(t, deposed, before, true)
	c.Isolate(leader)
	defer c.Heal(leader)
	l := acquire(t, other, key)
	for _, take := range []func() (fabric.Stamp, error){
		func() (fabric.Stamp, error) { return before, nil },
		func() (fabric.Stamp, error) { return deposed.Optimistic(waitContext(t), key) }, // of the state that was
	} {
		st, err := take()
		if err != nil {
			t.Logf("no stamp: %v", err)
			continue
		}
		ctx, cancel := context.WithTimeout(waitContext(t), time.Second)
		if valid, err := deposed.Validate(ctx, st); valid {
			t.Errorf("valid, and held by %s (%v)", l.ID(), err)
		}
		cancel()
	}
	c.Heal(leader)
	eventually(t, "the leader of before is told", func() bool {
		ctx, cancel := context.WithTimeout(waitContext(t), time.Second)
		defer cancel()
		valid, err := deposed.Validate(ctx, before)
		if valid {
			t.Error("valid after it was healed")
		}
		return err == nil
	})
	release(t, l)
}

// M39: eight processes that validate in loops on three servers leave a writer of the lock its time.
func TestM39_ValidatorsLeaveWritersTheirTime(t *testing.T) {
	if *stampsFor == 0 {
		return
	}
	onSite(t, clusterSite, func(t *testing.T, s *site) {
		key, m := s.key(t), s.manager(t)
		p99 := func() time.Duration {
			var took []time.Duration
			for began := time.Now(); time.Since(began) < *stampsFor; time.Sleep(5 * time.Millisecond) {
				asked := time.Now()
				l := acquire(t, m, key)
				took = append(took, time.Since(asked))
				release(t, l)
			}
			slices.Sort(took)
			return took[len(took)*99/100]
		}
		alone := p99()
		ctx, cancel := context.WithCancel(waitContext(t))
		var wg sync.WaitGroup
		var validated atomic.Int64
		for range 8 {
			m := s.manager(t)
			wg.Go(func() {
				for ctx.Err() == nil {
					if err := m.ReadOptimistic(ctx, key, func(context.Context) error { return nil }); err == nil {
						validated.Add(1)
					}
				}
			})
		}
		beside := p99()
		cancel()
		wg.Wait()
		t.Logf("%d validated; a writer's p99 is %v, and %v alone", validated.Load(), beside, alone)
		if beside > max(50*time.Millisecond, 10*alone) { // on a machine that is busy with other things, too
			t.Errorf("a writer's p99 is %v, and %v alone", beside, alone)
		}
	})
}
