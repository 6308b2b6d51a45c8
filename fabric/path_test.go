package fabric_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/kv"
)

func acquirePath(t testing.TB, m *fabric.Manager, path string, mode fabric.Mode, opts ...fabric.AcquireOption) *fabric.Set {
	t.Helper()
	s, err := m.AcquirePath(waitContext(t), path, mode, opts...)
	if err != nil {
		t.Fatalf("acquire %s: %v", path, err)
	}
	return s
}

func encoded(t testing.TB, name string) string {
	t.Helper()
	enc, err := kv.EncodeName(name)
	if err != nil {
		t.Fatal(err)
	}
	return enc
}

func TestPaths(t *testing.T) {
	runBehaviours(t, []behaviour{
		{"intents on the ancestors", pathIntents},
		{"a lock of the whole and locks of parts keep each other out", pathWholeAndParts},
		{"ten levels", pathDeep},
		{"a hierarchy of any names, released in reverse", hierarchyOrder},
		{"what is no hierarchy", hierarchyNonsense},
	}, coalescedSite, beltSite, shardedSite)
}

func pathIntents(t *testing.T, s *site) {
	m := s.manager(t)
	for mode, intent := range map[fabric.Mode]string{"": "IX", "X": "IX", "S": "IS", "IS": "IS", "IX": "IX", "SIX": "IX", "U": "IX"} {
		root := s.tree(t)
		set := acquirePath(t, m, root+"/a/b", mode)
		for _, key := range []string{root, root + "/a"} {
			got := strings.Fields(modesOf(t, m, key)) // a shared one that was granted before the level above it stays for a while
			if len(slices.Compact(got)) != 1 || got[0] != intent {
				t.Errorf("%v above %s", got, mode)
			}
		}
		if len(set.Locks()) == 3 && set.Locks()[0].Key() != root || set.Key() != root+"/a/b" {
			t.Errorf("the members are %v", set.Tokens())
		}
		releaseSet(t, set)
		err := m.DoPath(waitContext(t), root+"/a/b", mode, func(ctx context.Context, set *fabric.Set) error {
			return errors.Join(ctx.Err(), set.Err())
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func pathWholeAndParts(t *testing.T, s *site) {
	m, other, root := s.manager(t), s.manager(t), s.tree(t)
	part := acquirePath(t, m, root+"/a/b", fabric.Exclusive)
	if _, err := other.TryAcquirePath(waitContext(t), root+"/a", fabric.Shared); !errors.Is(err, fabric.ErrHeld) {
		t.Errorf("the whole beside a part: %v", err)
	}
	beside, err := other.TryAcquirePath(waitContext(t), root+"/a/c", fabric.Exclusive)
	if err != nil {
		t.Fatalf("another part: %v", err)
	}
	releaseSet(t, beside)
	whole := make(chan setGrant, 1)
	go func() {
		set, err := other.AcquirePath(waitContext(t), root, fabric.Exclusive)
		whole <- setGrant{set, err}
	}()
	waitQueue(t, m, root, 1)
	releaseSet(t, part)
	g := receive(t, whole)
	if g.err != nil {
		t.Fatal(g.err)
	}
	if _, err := m.TryAcquirePath(waitContext(t), root+"/a/b", fabric.IntentShared); !errors.Is(err, fabric.ErrHeld) {
		t.Errorf("a part beside the whole: %v", err)
	}
	releaseSet(t, g.set)
	reader := acquirePath(t, other, root+"/a", fabric.Shared)
	if _, err := m.TryAcquirePath(waitContext(t), root+"/a/b", fabric.Exclusive); !errors.Is(err, fabric.ErrHeld) {
		t.Errorf("a part to write beside a reader of the whole: %v", err)
	}
	beside, err = m.TryAcquirePath(waitContext(t), root+"/a/b", fabric.Shared)
	if err != nil {
		t.Fatalf("a part to read beside a reader of the whole: %v", err)
	}
	releaseSet(t, beside)
	releaseSet(t, reader)
}

func pathDeep(t *testing.T, s *site) {
	m, other := s.manager(t), s.manager(t)
	levels := []string{s.tree(t)}
	for len(levels) < 10 {
		levels = append(levels, levels[len(levels)-1]+"/x")
	}
	set := acquirePath(t, m, levels[9], fabric.Exclusive)
	for i, l := range levels {
		_, err := other.TryAcquirePath(waitContext(t), l, fabric.Shared, fabric.WithoutTakeover())
		if modes := modesOf(t, m, l); !strings.HasPrefix(modes, "I") && i < 9 || !errors.Is(err, fabric.ErrHeld) {
			t.Errorf("level %d: held in %q; another reader of it: %v", i, modes, err)
		}
		besides, err := other.TryAcquirePath(waitContext(t), l+"/y", fabric.Exclusive)
		if i == 9 {
			if !errors.Is(err, fabric.ErrHeld) {
				t.Errorf("below: %v", err)
			}
			break
		}
		if err != nil {
			t.Fatalf("beside level %d: %v", i, err)
		}
		releaseSet(t, besides)
	}
	releaseSet(t, set)
}

func hierarchyOrder(t *testing.T, s *site) {
	m, w := s.wired(t, fabric.WithIntentLinger(0))
	base := s.tree(t)
	names := []string{base + "/z", base + "/m", base + "/a"} // not in the order of names
	var mu sync.Mutex
	var order []string
	w.fault(-1, lockWrite, seen(func(msg *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		_, enc, _ := strings.Cut(strings.TrimPrefix(msg.Subject, "$KV."), ".")
		name, _ := kv.DecodeKey(enc)
		if strings.HasPrefix(name, base) {
			order = append(order, name)
		}
	}))
	set, err := m.AcquireHierarchy(waitContext(t), fabric.NewHierarchy(names[0], names[1:]...), fabric.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	if got := modesOf(t, m, names[0]) + modesOf(t, m, names[1]) + modesOf(t, m, names[2]); got != "IXIXX" {
		t.Errorf("held in %s", got)
	}
	releaseSet(t, set)
	want := slices.Concat(names, []string{names[2], names[1], names[0]})
	mu.Lock()
	defer mu.Unlock()
	if s == singleSite && m.Stats().Timeouts == 0 && !slices.Equal(order, want) { // replicas may put one off, and what is not answered in time is sent again
		t.Errorf("written in the order %v", order)
	}
}

func hierarchyNonsense(t *testing.T, s *site) {
	m := s.manager(t)
	long := make([]string, fabric.MaxHierarchy)
	for i := range long {
		long[i] = s.key(t)
	}
	for name, c := range map[string]struct {
		h    fabric.Hierarchy
		mode fabric.Mode
		is   error
	}{
		"none":  {fabric.Hierarchy{}, "", fabric.ErrInvalidOption},
		"twice": {fabric.NewHierarchy("a", "b", "a"), "", fabric.ErrInvalidOption},
		"long":  {fabric.NewHierarchy("root", long...), "", fabric.ErrInvalidOption},
		"mode":  {fabric.NewHierarchy("a", "b"), "Y", fabric.ErrInvalidOption},
		"name":  {fabric.NewHierarchy("a", ""), "", fabric.ErrInvalidName},
	} {
		if _, err := m.AcquireHierarchy(waitContext(t), c.h, c.mode); !errors.Is(err, c.is) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The costs of paths and sets that are free: as many writes as members, all of them under way
// before the first is answered, and no reads.
func TestCostOfSets(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, w := s.wired(t)
		root := s.tree(t)
		release(t, acquire(t, m, s.key(t)))
		cost := func(what string, writes, reads, trips int, do func()) {
			t.Helper()
			before := m.Stats()
			f := w.fault(-1, below(t, root, lockWrite), together(writes/trips))
			do()
			f.end()
			after := m.Stats()
			if w, r, u := int(after.Writes-before.Writes), int(after.Reads-before.Reads), after.Unknown-before.Unknown; (w != writes || r != reads || u != 0) && after.Timeouts == before.Timeouts {
				t.Errorf("%s: %d writes and %d reads, %d unknown; want %d and %d", what, w, r, u, writes, reads)
			}
		}
		var set *fabric.Set
		path := func(path string, mode fabric.Mode, opts ...fabric.AcquireOption) func() {
			return func() { set = acquirePath(t, m, path, mode, opts...) }
		}
		free := func() { releaseSet(t, set) }
		cost("a path of 4, with intents of its own", 4, 0, 1, path(root+"/a/b/c", fabric.Exclusive, fabric.WithoutSharedIntents()))
		cost("its release", 4, 0, 1, free)
		cost("a path of 4, cold", 4, 0, 1, path(root+"/a/b/c", fabric.Exclusive))
		cost("its release", 1, 0, 1, free)
		cost("a path of 4, warm", 1, 0, 1, path(root+"/a/b/d", fabric.Exclusive))
		cost("its release", 1, 0, 1, free)
		cost("one more level", 2, 0, 1, path(root+"/a/b/c/d", fabric.Shared))
		cost("to exclusive under IS", 2, 0, 2, func() { convert(t, set.Lock(root+"/a/b/c/d"), fabric.Exclusive) })
		cost("its release", 2, 0, 1, free)
		cost("a reader beside shared intents of writers", 1, 0, 1, path(root+"/a/b/x", fabric.Shared))
		cost("to exclusive under IX", 1, 0, 1, func() { convert(t, set.Lock(root+"/a/b/x"), fabric.Exclusive) })
		cost("its release", 1, 0, 1, free)
		cost("a set of 5", 5, 0, 1, func() {
			set = acquireAll(t, m, fabric.Names(root+"-1", root+"-2", root+"-3", root+"-4", root+"-5"))
		})
		cost("its release", 5, 0, 1, free)
		busy := acquire(t, m, root+"-3")
		cost("a try that is known to be refused", 0, 1, 1, func() {
			_, err := m.TryAcquireAll(waitContext(t), fabric.Names(root+"-1", root+"-2", root+"-3", root+"-4", root+"-5"), fabric.WithoutTakeover())
			if !errors.Is(err, fabric.ErrHeld) {
				t.Error(err)
			}
		})
		release(t, busy)
		other := s.manager(t)
		release(t, acquire(t, other, root+"-2"))
		cost("a set of 3, one record newer than known", 3, 1, 3, func() {
			set = acquireAll(t, m, fabric.Names(root+"-1", root+"-2", root+"-3"))
		})
		releaseSet(t, set)
	})
}

// together has writes answered only when so many are out.
func together(n int) action {
	var mu sync.Mutex
	out, all := 0, make(chan struct{})
	return func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
		mu.Lock()
		if out++; out == n {
			close(all)
		}
		mu.Unlock()
		reply, err := send(ctx, msg)
		select {
		case <-all:
		case <-ctx.Done():
			return nil, nats.ErrTimeout
		}
		return reply, err
	}
}
