package fabric_test

import (
	"context"
	"errors"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
)

// While the children are waited for, the whole is still held, and when it is given up they are: nobody gets the whole, nor
// what is narrowed to, in between.
func TestM17_NarrowGivesNothingUpBeforeAllIsHeld(t *testing.T) {
	for _, s := range []*site{singleSite, clusterSite, coalescedSite, beltSite} {
		onSite(t, s, func(t *testing.T, s *site) {
			m, other, root := s.manager(t), s.manager(t), s.tree(t)
			set := acquirePath(t, m, root+"/a", fabric.Exclusive)
			inTheWay := acquire(t, other, root+"/a/c/1") // takes no intents
			whole := queue(t, waitContext(t), other, root+"/a")
			ended := make(chan error, 1)
			go func() {
				ended <- set.Narrow(waitContext(t), fabric.Want{Key: root + "/a/b"}, fabric.Want{Key: root + "/a/c/1", Mode: fabric.Shared})
			}()
			eventually(t, "it waits", func() bool { return len(inspect(t, m, root+"/a/c/1").Waiters) == 1 })
			if got := modesOf(t, m, root+"/a"); got != "X" {
				t.Errorf("the whole is held in %s while a part is waited for", got)
			}
			release(t, inTheWay)
			if err := receive(t, ended); err != nil {
				t.Fatal(err)
			}
			for key, want := range map[string]string{"": "IX", "/a": "IX", "/a/b": "X", "/a/c": "IS", "/a/c/1": "S"} {
				if got := modesOf(t, m, root+key); got != want {
					t.Errorf("%s is held in %s, want %s", root+key, got, want)
				}
			}
			select {
			case <-whole:
				t.Error("somebody else holds the whole")
			default:
			}
			if above, l := set.Lock(root+"/a").Token(), set.Lock(root+"/a/b"); l == nil || l.Token() <= above || set.Key() != root+"/a/c/1" || set.Err() != nil {
				t.Errorf("%v below %d in a set named %s, %v", l, above, set.Key(), set.Err())
			}
			if err := set.Lock(root + "/a/b").Release(waitContext(t)); !errors.Is(err, fabric.ErrMember) {
				t.Errorf("release of a child alone: %v", err)
			}
			releaseSet(t, set)
			receive(t, whole)
		})
	}
}

// Others get the rest of what was narrowed.
func TestNarrowLetsOthersIn(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, other, root := s.manager(t), s.manager(t), s.tree(t)
		set := acquirePath(t, m, root, fabric.SharedIntentExclusive)
		if err := set.Narrow(waitContext(t), fabric.Want{Key: root + "/a"}); err != nil {
			t.Fatal(err)
		}
		releaseSet(t, acquirePath(t, other, root+"/b", fabric.Exclusive))
		for _, key := range []string{root, root + "/a"} {
			if _, err := other.TryAcquirePath(waitContext(t), key, fabric.Exclusive); !errors.Is(err, fabric.ErrHeld) {
				t.Errorf("%s: %v", key, err)
			}
		}
		if err := set.Convert(waitContext(t), root, fabric.Shared); !errors.Is(err, fabric.ErrMember) {
			t.Errorf("the whole made weaker than the part needs: %v", err)
		}
		releaseSet(t, set)
		expectFree(t, m, root+"/a")
	})
}

// One that is given up, or refused, changes nothing.
func TestNarrowGivenUp(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, other, root := s.manager(t), s.manager(t), s.tree(t)
		set := acquirePath(t, m, root+"/a", fabric.Exclusive)
		inTheWay := acquire(t, other, root+"/a/c")
		ctx, cancel := context.WithCancel(waitContext(t))
		ended := make(chan error, 1)
		go func() { ended <- set.Narrow(ctx, fabric.Want{Key: root + "/a/b"}, fabric.Want{Key: root + "/a/c"}) }()
		eventually(t, "it waits", func() bool { return len(inspect(t, m, root+"/a/c").Waiters) == 1 })
		if err := set.Convert(waitContext(t), root+"/a", fabric.Shared); !errors.Is(err, fabric.ErrConverting) {
			t.Errorf("a conversion meanwhile: %v", err)
		}
		cancel()
		if err := receive(t, ended); !errors.Is(err, context.Canceled) || !errors.Is(err, fabric.ErrNotAcquired) {
			t.Errorf("given up: %v", err)
		}
		release(t, inTheWay)
		expectFree(t, m, root+"/a/b")
		expectFree(t, m, root+"/a/c")
		for name, wants := range map[string][]fabric.Want{
			"none":              nil,
			"a member":          fabric.Names(root + "/a"),
			"not below":         fabric.Names(root + "/b"),
			"of another tree":   fabric.Names(root + "x/a/b"),
			"one is not below":  fabric.Names(root+"/a/b", root+"/b"),
			"of no mode":        {{Key: root + "/a/b", Mode: "Y"}},
			"too many":          names(root+"/a/", fabric.MaxSet),
			"no name to encode": fabric.Names(root + "/a/\x00"),
		} {
			if err := set.Narrow(waitContext(t), wants...); !errors.Is(err, fabric.ErrNotAcquired) || !errors.Is(err, fabric.ErrInvalidOption) && !errors.Is(err, fabric.ErrInvalidName) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if got := modesOf(t, m, root+"/a"); got != "X" || set.Err() != nil || len(set.Tokens()) != 2 {
			t.Errorf("held in %s, %v, %v", got, set.Err(), set.Tokens())
		}
		releaseSet(t, set)
		if err := set.Narrow(waitContext(t), fabric.Want{Key: root + "/a/b"}); !errors.Is(err, fabric.ErrReleased) {
			t.Errorf("after the release: %v", err)
		}
		expectFree(t, m, root+"/a/b")
	})
}

func names(prefix string, n int) (all []fabric.Want) {
	for i := range n {
		all = append(all, fabric.Want{Key: prefix + string(rune('0'+i))})
	}
	return all
}
