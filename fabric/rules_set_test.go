package fabric_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/jskv"
)

// tree returns a name of one level that no other test uses.
func (s *site) tree(t testing.TB) string { return strings.ReplaceAll(s.key(t), "/", "-") }

// below limits a sort of requests to a tree.
func below(t testing.TB, root string, match func(*nats.Msg) bool) func(*nats.Msg) bool {
	return func(msg *nats.Msg) bool {
		return match(msg) && strings.Contains(msg.Subject+string(msg.Data), "-locks."+encoded(t, root))
	}
}

// free reports whether nobody holds or waits.
func free(t testing.TB, m *fabric.Manager, key string) bool {
	info := inspect(t, m, key)
	return len(info.Holders)+len(info.Waiters) == 0
}

func TestM1_AllMembersStandUnderOneLease(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, root := s.manager(t, fabric.WithIntentLinger(0)), s.tree(t)
		for _, opts := range [][]fabric.AcquireOption{nil, {fabric.WithTTL(9 * time.Second)}, {fabric.WithTTL(2 * time.Second), fabric.WithAutoRenew(false)}} {
			set := acquirePath(t, m, root+"/a/b", fabric.Exclusive, opts...)
			leases := map[string]bool{}
			for _, key := range []string{root, root + "/a", root + "/a/b"} {
				leases[leaseOf(inspect(t, m, key).Holders[0].ID)] = true
			}
			if len(leases) != 1 {
				t.Errorf("under %v", leases)
			}
			if opts == nil || len(opts) == 1 {
				releaseSet(t, set)
				continue
			}
			receive(t, set.Lost()) // it is not renewed
			if err := set.Err(); !errors.Is(err, fabric.ErrExpired) {
				t.Errorf("lost with %v", err)
			}
			if err := set.Release(waitContext(t)); !errors.Is(err, fabric.ErrLost) {
				t.Errorf("release: %v", err)
			}
		}
	})
}

// A member that is taken away while another one is waited for is acquired again.
func TestM2_EveryMemberIsHeldWhenTheSetIsHandedOut(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, other, k := s.manager(t), s.manager(t), s.keys(t, 2)
		busy := acquire(t, other, k[1])
		waiting := acquireAllAsync(waitContext(t), m, fabric.Names(k...))
		waitQueue(t, other, k[1], 1)
		if _, err := other.ForceRelease(waitContext(t), k[0], fabric.ForceNow()); err != nil {
			t.Fatal(err)
		}
		taken := acquire(t, other, k[0])
		eventually(t, "the wait for the other one ends", func() bool { return len(inspect(t, other, k[1]).Waiters) == 0 })
		release(t, busy)
		waitQueue(t, other, k[0], 1)
		select {
		case <-waiting:
			t.Fatal("granted without its first member")
		default:
		}
		release(t, taken)
		g := receive(t, waiting)
		if g.err != nil {
			t.Fatal(g.err)
		}
		for _, l := range g.set.Locks() {
			expectHolder(t, other, l.Key(), l)
		}
		releaseSet(t, g.set)
	})
}

func TestM3_AllHandlesAreInvalidBeforeTheFirstRelease(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, w := s.wired(t, fabric.WithIntentLinger(0))
		root := s.tree(t)
		set := acquirePath(t, m, root+"/a/b/c", fabric.Exclusive)
		locks := set.Locks()
		f := w.fault(-1, below(t, root, lockWrite), seen(func(*nats.Msg) {
			for _, l := range append(locks, set.Lock(root+"/a/b/c")) {
				if l.Err() == nil || set.Err() == nil {
					t.Errorf("%s is valid while a release is sent", l.Key())
				}
			}
		}))
		releaseSet(t, set)
		if f.count() == 0 {
			t.Error("nothing was released")
		}
	})
}

// What a set took beyond the lock that it waits for would keep others waiting, and two
// sets of which each took what the other one misses would never be granted.
func TestM7_AWaitingSetHoldsOnlyWhatComesBefore(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, other, k := s.manager(t), s.manager(t), s.keys(t, 4)
		busy := acquire(t, other, k[1])
		waiting := acquireAllAsync(waitContext(t), m, fabric.Names(k[3], k[2], k[1], k[0]))
		waitQueue(t, other, k[1], 1)
		eventually(t, "the later ones are let go", func() bool { return free(t, other, k[2]) && free(t, other, k[3]) })
		if got := inspect(t, other, k[0]); len(got.Holders) != 1 {
			t.Errorf("the one before: %+v", got)
		}
		release(t, busy)
		g := receive(t, waiting)
		if g.err != nil {
			t.Fatal(g.err)
		}
		releaseSet(t, g.set)
	})
}

// Cancelled at any moment, an acquire leaves nothing.
func TestM13_CancelAtAnyStepLeavesNothing(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		for _, act := range []action{
			func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
				return send(ctx, msg)
			},
			deaf, vanish,
		} {
			m, w := s.wired(t, fabric.WithIntentLinger(time.Millisecond))
			other, root := s.manager(t), s.tree(t)
			k := []string{root, root + "/a", root + "/a/b", root + "/a/b/c"}
			busy := acquire(t, other, k[2])
			for n := 1; ; n++ {
				ctx, cancel := context.WithCancel(waitContext(t))
				hits := 0
				var mu sync.Mutex
				f := w.fault(-1, below(t, root, lockWrite), func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
					mu.Lock()
					hits++
					now := hits == n
					mu.Unlock()
					if !now {
						return send(ctx, msg)
					}
					defer cancel()
					return act(ctx, msg, send)
				})
				waiting := acquireAllAsync(ctx, m, []fabric.Want{{Key: k[3], Path: true}})
				eventually(t, "it waits, or is cancelled", func() bool {
					return ctx.Err() != nil || len(inspect(t, other, k[2]).Waiters) == 1
				})
				reached := ctx.Err() != nil
				cancel()
				if g := receive(t, waiting); !errors.Is(g.err, context.Canceled) || !errors.Is(g.err, fabric.ErrNotAcquired) {
					t.Errorf("step %d: %v", n, g.err)
				}
				f.end()
				eventually(t, "nothing is left", func() bool {
					return free(t, other, k[0]) && free(t, other, k[1]) && free(t, other, k[3]) &&
						len(inspect(t, other, k[2]).Waiters) == 0
				})
				if !reached {
					break
				}
			}
			release(t, busy)
		}
	})
}

func TestM15_AnotherKindIsFoundBeforeAnythingIsWaitedFor(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, other, k := s.manager(t), s.manager(t), s.keys(t, 3)
		busy := acquire(t, other, k[0])
		permit, err := other.Claim(waitContext(t), k[1], fabric.Claim{Kind: fabric.KindSemaphore, Permits: 1, Limit: 1})
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.AcquireAll(waitContext(t), fabric.Names(k...))
		var failed *fabric.NotAcquiredError
		if !errors.Is(err, fabric.ErrKindMismatch) || !errors.As(err, &failed) || failed.Key != k[1] {
			t.Errorf("with a semaphore among them: %v", err)
		}
		if !free(t, other, k[2]) || len(inspect(t, other, k[0]).Waiters) > 0 {
			t.Error("something is left")
		}
		release(t, busy)
		if err := permit.Release(waitContext(t)); err != nil {
			t.Error(err)
		}
	})
}

// A conversion upwards announces itself first. If it comes to nothing the level is as it was.
func TestM16_IntentsBeforeTheLevelThatNeedsThem(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, other, root := s.manager(t, fabric.WithIntentLinger(0)), s.manager(t), s.tree(t)
		set := acquirePath(t, m, root+"/a/b", fabric.Shared)
		leaf := set.Lock(root + "/a/b")
		reader := acquireMode(t, other, root+"/a", fabric.Shared)
		ctx, cancel := context.WithCancel(waitContext(t))
		ended := make(chan error, 1)
		go func() { ended <- leaf.Convert(ctx, fabric.Exclusive) }()
		eventually(t, "it waits for the reader above", func() bool { return modesOf(t, m, root+"/a") == "IS>IX S" })
		if modes := modesOf(t, m, root+"/a/b"); modes != "S" {
			t.Errorf("the leaf is held in %s beside a reader above", modes)
		}
		cancel()
		var failed *fabric.ConvertError
		if err := receive(t, ended); !errors.As(err, &failed) || failed.Key != root+"/a" || leaf.Mode() != fabric.Shared {
			t.Errorf("%v, and the leaf is %s", err, leaf.Mode())
		}
		release(t, reader)
		if err := set.Convert(waitContext(t), leaf.Key(), fabric.Exclusive); err != nil {
			t.Fatal(err)
		}
		for key, want := range map[string]string{root: "IX", root + "/a": "IX", root + "/a/b": "X"} {
			if modes := modesOf(t, m, key); modes != want {
				t.Errorf("%s of %s, want %s", modes, key, want)
			}
		}
		if err := leaf.Convert(waitContext(t), fabric.IntentShared); err != nil {
			t.Fatal(err)
		}
		for key, want := range map[string]string{root: "IS", root + "/a": "IS", root + "/a/b": "IS"} {
			if modes := modesOf(t, m, key); modes != want {
				t.Errorf("downwards: %s of %s, want %s", modes, key, want)
			}
		}
		releaseSet(t, set)
	})
}

// modesOf lists the modes held, with what they convert to.
func modesOf(t testing.TB, m *fabric.Manager, key string) string {
	var modes []string
	for _, h := range inspect(t, m, key).Holders {
		mode := string(h.Mode)
		if h.Converting != "" {
			mode += ">" + string(h.Converting)
		}
		modes = append(modes, mode)
	}
	return strings.Join(modes, " ")
}

func TestM18_AMemberStaysWhileOthersNeedIt(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, root := s.manager(t), s.tree(t)
		set := acquireAll(t, m, []fabric.Want{{Key: root}, {Key: root + "/a", Path: true}})
		l := set.Lock(root)
		if err := l.Release(waitContext(t)); !errors.Is(err, fabric.ErrMember) {
			t.Errorf("release: %v", err)
		}
		if err := l.Convert(waitContext(t), fabric.IntentShared); !errors.Is(err, fabric.ErrMember) || l.Mode() != fabric.Exclusive {
			t.Errorf("convert: %v", err)
		}
		if err := l.Convert(waitContext(t), fabric.IntentExclusive); err != nil || set.Err() != nil {
			t.Errorf("to what it is needed for: %v", err)
		}
		if _, err := m.Claim(waitContext(t), root, fabric.Claim{Kind: fabric.KindLock, Verb: "wait", Queue: "q", From: l.Hold}); !errors.Is(err, fabric.ErrMember) || l.Err() != nil {
			t.Errorf("given up for a condition: %v", err)
		}
		releaseSet(t, set)
	})
}

// A guard that has seen the token of one who held the root meanwhile would refuse a leaf
// that was granted before.
func TestM19_TokensIncreaseDownAPath(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, w := s.wired(t, fabric.WithIntentLinger(0))
		root := s.tree(t)
		expect := func(set *fabric.Set) {
			t.Helper()
			locks := set.Locks()
			for i := 1; i < len(locks); i++ {
				if locks[i].Token() <= locks[i-1].Token() {
					t.Errorf("%s has %d, %s above it %d", locks[i].Key(), locks[i].Token(), locks[i-1].Key(), locks[i-1].Token())
				}
			}
			if set.Token() != locks[len(locks)-1].Token() {
				t.Errorf("the set's token is %d", set.Token())
			}
			releaseSet(t, set)
			for _, l := range locks {
				expectFree(t, m, l.Key())
			}
		}
		w.fault(1, about(t, root, lockPut), busy)
		expect(acquirePath(t, m, root+"/a/b", fabric.Exclusive))
		w.fault(1, about(t, root, lockPut), busy)
		set, err := m.TryAcquireHierarchy(waitContext(t), fabric.NewHierarchy(root, "a"+root, root+"/x"), fabric.Shared)
		if err != nil {
			t.Fatal(err)
		}
		expect(set)
	})
}

// Whoever gets the whole has a larger token than all that was locked of its parts meanwhile, though it queued before.
func TestM6_TheWholeComesAfterItsParts(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, other, root := s.manager(t), s.manager(t), s.tree(t)
		for _, end := range []func(l *fabric.Lock){
			func(l *fabric.Lock) { release(t, l) },
			func(l *fabric.Lock) {
				if _, err := m.ForceRelease(waitContext(t), root, fabric.ForceNow()); err != nil {
					t.Error(err)
				}
			},
		} {
			intent := acquireMode(t, m, root, fabric.IntentExclusive)
			whole := queue(t, waitContext(t), other, root)
			part := acquire(t, m, root+"/part")
			end(intent)
			l := granted(t, whole)
			if l.Token() <= part.Token() {
				t.Errorf("the whole has token %d, a part of before %d", l.Token(), part.Token())
			}
			release(t, part)
			release(t, l)
		}
	})
}

func TestM22_AnOwnersSets(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, root, me := s.manager(t), s.tree(t), fabric.WithOwner("me")
		a := acquirePath(t, m, root+"/a", fabric.Exclusive, me)
		b := acquirePath(t, m, root+"/b", fabric.Exclusive, me)
		_, err := m.AcquireAll(waitContext(t), fabric.Names(root+"-free", root+"/a"), me)
		var failed *fabric.NotAcquiredError
		if !errors.Is(err, fabric.ErrAlreadyHeld) || !errors.As(err, &failed) || failed.Key != root+"/a" {
			t.Errorf("with a member that is held: %v", err)
		}
		if !free(t, m, root+"-free") {
			t.Error("something is left")
		}
		releaseSet(t, a)
		releaseSet(t, b)
	})
}

// A set is tried without waiting first, and that passes nobody who waits for a member.
func TestM8_TheFirstTryPassesNobody(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, other, k := s.manager(t), s.manager(t), s.keys(t, 2)
		reader := acquireMode(t, other, k[1], fabric.Shared)
		writer := queue(t, waitContext(t), other, k[1])
		wants := []fabric.Want{{Key: k[0]}, {Key: k[1], Mode: fabric.Shared}}
		if _, err := m.TryAcquireAll(waitContext(t), wants, fabric.WithoutTakeover()); !errors.Is(err, fabric.ErrHeld) {
			t.Errorf("a try behind one who waits: %v", err)
		}
		set := acquireAllAsync(waitContext(t), m, wants)
		waitQueue(t, other, k[1], 2)
		release(t, reader)
		w := granted(t, writer)
		select {
		case g := <-set:
			t.Errorf("a set has passed who waited: %v", g.err)
		default:
		}
		release(t, w)
		g := receive(t, set)
		if g.err != nil {
			t.Fatal(g.err)
		}
		releaseSet(t, g.set)
	})
}

// All locks of a fabric stand in one stream: so one guard admits the token of a level and then those of the
// levels below it, and refuses them when the whole was locked meanwhile.
func TestM23_OneGuardForAPath(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, w := s.wired(t)
		other, root := s.manager(t), s.tree(t)
		var g fabric.Guard
		h := fabric.NewHierarchy(root, "a"+root, root+"/x") // not in the order of names
		for range 3 {
			w.fault(1, about(t, root, lockPut), busy)
			set, err := m.AcquireHierarchy(waitContext(t), h, fabric.Exclusive)
			if err != nil {
				t.Fatal(err)
			}
			tokens := set.Tokens()
			for _, level := range []string{root, "a" + root, root + "/x"} {
				if err := g.Admit(fabric.Exclusive, tokens[level]); err != nil {
					t.Errorf("%s: %v", level, err)
				}
			}
			releaseSet(t, set)
			whole := acquire(t, other, root)
			if err := g.Admit(fabric.Exclusive, whole.Token()); err != nil {
				t.Errorf("the whole: %v", err)
			}
			if err := g.Admit(fabric.Exclusive, tokens[root+"/x"]); !errors.Is(err, fabric.ErrStaleToken) {
				t.Errorf("a part of before: %v", err)
			}
			release(t, whole)
		}
	})
}
